"""End ranks of jobs at random moments, and count the faults."""

import argparse
import collections
import functools
import random
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from helpers.kills import (  # noqa: E402
    COLD,
    NAMED,
    PHASES,
    WAYS,
    draw_kill,
    faults,
    run_kill,
    undisturbed,
)


def parsed(arguments):
    parser = argparse.ArgumentParser(
        prog="python tests/parallel/kills",
        description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=100,
                        help="number of jobs (default: 100)")
    parser.add_argument("--seed", type=int, default=None,
                        help="seed of the first job; the next ones count up")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--phases", nargs="+", default=PHASES,
                        choices=(*PHASES, COLD))
    return parser.parse_args(arguments)


def main(arguments=None):
    args = parsed(arguments)
    # As in conftest.py.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Then this program ends its job, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    first = random.randrange(2 ** 31) if args.seed is None else args.seed
    table = collections.Counter()
    for seed in range(first, first + args.times):
        kill = draw_kill(random.Random(seed), args.ways, args.phases)
        seconds, bits = known(kill.ranks)
        if kill.phase == COLD:
            bits = None
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_kill(kill, folder, seconds)
        found = faults(outcome, bits)
        end = "ill" if found else "late" if outcome.came_late else "well"
        table[kill.way, kill.phase, end] += 1
        print(f"seed {seed}: {kill.way} of rank {kill.rank} of {kill.ranks} "
              f"after {kill.fraction:.3f} of {kill.phase} "
              f"({' '.join(kill.flags) or 'plain'}): exit status "
              f"{outcome.code} after {outcome.seconds:.1f} s"
              + (", too late" if outcome.came_late else ""), flush=True)
        for rank, _, last in NAMED.findall(outcome.errors):
            print(f"    rank {rank} last did: {last}")
        if found:
            print("  FAULT: " + "; ".join(found) + "\n" + outcome.errors,
                  flush=True)
    report(table)
    return any(end == "ill" for _, _, end in table)


@functools.lru_cache(maxsize=None)
def known(ranks):
    """Return how long phases take without any kill, and the bits."""
    with tempfile.TemporaryDirectory() as folder:
        return undisturbed(folder, ranks)


def report(table):
    """Print how many jobs ended as they should, by way and phase."""
    ends = "well", "late", "ill"
    print("Jobs that ended as they should / before the rank was to end / with "
          "a fault:")
    phases = *PHASES, COLD
    print("".join(f"{text:>12}" for text in ("", *phases)))
    for way in WAYS:
        print(f"{way:>12}" + "".join(
            f"{' / '.join(str(table[way, phase, end]) for end in ends):>12}"
            for phase in phases))


if __name__ == "__main__":
    sys.exit(main())
