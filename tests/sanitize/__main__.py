"""Run the kernels under GCC's sanitizers, and a Theano function in valgrind.

Each sanitizer runs the same random batches at each vector width that this
machine has, with checks of all results.
"""

import argparse
import concurrent.futures
import os
import random
import sys
import time
from pathlib import Path

from sanitize import driver, valgrind

SANITIZERS = {"memory": ("address", "undefined"), "threads": ("thread",)}


def parsed(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m sanitize", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10000,
                        help="random batches at each width (default: 10000)")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=Path("build/sanitize"),
                        help="for what is compiled (default: build/sanitize)")
    parser.add_argument("--without-valgrind", action="store_true")
    return parser.parse_args(arguments)


def sanitized(folder, seed, cases, job):
    """Build and run the driver for a width and a kind of sanitizers."""
    width, kind = job
    start = time.monotonic()
    program = driver.build(folder, width, SANITIZERS[kind])
    text, failed = driver.run(program, seed, cases)
    print(f"{kind}, {width} bytes, {time.monotonic() - start:.0f} s: "
          f"{text.strip()}", flush=True)
    return failed


def main(arguments=None):
    """Run everything; return whether anything failed."""
    args = parsed(arguments)
    seed = random.randrange(2 ** 31) if args.seed is None else args.seed
    print(f"Seed {seed}", flush=True)
    jobs = [(width, kind) for width in driver.WIDTHS
            if driver.runs_here(width) for kind in SANITIZERS]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = [job for job, is_bad in zip(jobs, pool.map(
            lambda job: sanitized(args.folder, seed, args.cases, job), jobs))
            if is_bad]
    if not args.without_valgrind:
        failed += valgrind.check(args.folder.resolve())
    print("Failed: " + repr(failed) if failed else "Nothing found.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
