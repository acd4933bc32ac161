"""Run the random tests for some minutes, with new cases in each round.

The program prints the seed of each round. Hypothesis prints the smallest case
that fails; write it above its test as an ``@example``.
"""

import argparse
import collections
import contextlib
import os
import random
import subprocess
import sys
import time
import xml.etree.ElementTree
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]


def parsed(arguments):
    parser = argparse.ArgumentParser(
        prog="python tests/fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10,
                        help="begin no round after this time (default: 10)")
    parser.add_argument("--cases", type=int, default=50,
                        help="cases of each slow test in a round; of fast ones"
                        ", a multiple (default: 50)")
    parser.add_argument("--seed", type=int, default=None,
                        help="seed of the first round; the next ones count up")
    parser.add_argument("rest", nargs="*", default=[], metavar="option",
                        help="options of pytest, such as -k layer, after --")
    return parser.parse_args(arguments)


def run_round(seed, cases, options, report):
    """Run all random tests once, and return pytest's exit status."""
    return subprocess.call(
        [sys.executable, "-m", "pytest", "-q", "--no-header", "-n", "auto",
         "--maxprocesses", "4", "--dist", "worksteal",
         "--hypothesis-profile", "fuzz", f"--hypothesis-seed={seed}",
         f"--junitxml={report}", FOLDER, *options],
        cwd=ROOT, env={**os.environ, "FUZZ_CASES": str(cases)})


def counts_in(report):
    """Read from a report how many cases each file's tests have run."""
    counts = collections.Counter()
    for test in xml.etree.ElementTree.parse(report).iter("testcase"):
        for value in test.iter("property"):
            if value.get("name") == "cases":
                subject = test.get("classname").split(".")[-1]
                counts[subject] += int(value.get("value"))
    return counts


def main(arguments=None):
    """Run rounds until the time is over, or one fails; return the status."""
    args = parsed(arguments)
    seed = random.randrange(2 ** 31) if args.seed is None else args.seed
    report = ROOT / "build" / "fuzz.xml"
    total, start, status = collections.Counter(), time.monotonic(), 0
    while not status and time.monotonic() - start < 60 * args.minutes:
        print(f"Seed {seed}:", flush=True)
        # A round that ends early writes none.
        with contextlib.suppress(FileNotFoundError):
            report.unlink()
        status = run_round(seed, args.cases, args.rest, report)
        if report.exists():
            total += counts_in(report)
        seed += 1
    minutes = (time.monotonic() - start) / 60
    print(f"{sum(total.values()):,} cases in {minutes:.1f} minutes:",
          ", ".join(f"{name} {n:,}" for name, n in sorted(total.items())))
    return status


if __name__ == "__main__":
    sys.exit(main())
