"""Train a small network for a long time, and measure the memory.

The first part makes steps, and uses everything else now and then. The second
part compiles the same network again and again, and drops it. Memory must stay
flat after a warm-up, and a second process must compute the same bits.
"""

import argparse
import logging
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bnlasagne  # isort: skip  # noqa: F401  # First: it repairs the stack.
from helpers.soaking import LIMITS, cycles, steps


def parsed(arguments):
    parser = argparse.ArgumentParser(
        prog="python tests/soak", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000,
                        help="training steps (default: 100000)")
    parser.add_argument("--cycles", type=int, default=1000,
                        help="times to compile and drop (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=40,
                        help="measurements of each part (default: 40)")
    parser.add_argument("--once", action="store_true",
                        help="without a second process")
    args = parser.parse_args(arguments)
    if min(args.steps, args.cycles) < 0 or args.samples < 2:
        parser.error("--steps and --cycles are at least 0, --samples 2")
    return args


def digests_of_second(args):
    """Run the same in another process, and return the digests it prints.

    All cycles with the same optimizations have computed the same, so that few
    are enough.
    """
    out = subprocess.run(
        [sys.executable, os.path.dirname(__file__), "--once",
         f"--steps={args.steps}", f"--cycles={min(args.cycles, 2)}",
         f"--seed={args.seed}", f"--samples={args.samples}"],
        stdout=subprocess.PIPE, universal_newlines=True).stdout
    return [line for line in out.splitlines() if "digest" in line]


def main(arguments=None):
    """Run both parts; return 1 if memory grows or bits differ."""
    args = parsed(arguments)
    logging.getLogger("bnlasagne.folding").setLevel("ERROR")
    digests, failed = [], False
    for name, run, times in (("steps", steps, args.steps),
                             ("cycles", cycles, args.cycles)):
        if not times:
            continue
        memory, digest = run(times, args.seed, args.samples)
        digests.append(f"{name}: digest {digest}")
        print(digests[-1])
        for line, grows in memory.judged(LIMITS[name]):
            print(f"{name}: {line}", flush=True)
            failed |= grows
    if not args.once:
        same = digests_of_second(args) == digests
        print("A second process computes",
              "the same bits." if same else "OTHER BITS.")
        failed |= not same
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
