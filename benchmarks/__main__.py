"""Measure, and write the report: ``python -m benchmarks``."""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path

import bnlasagne

import lasagne
import numpy
import theano

from . import accumulation, cnn, memory, report, speed, startup
from .cases import CASES, QUICK_CASES
from .goals import Times
from .peers import PEERS

PARTS = ["speed", "startup", "memory", "cnn", "accumulation"]


def parse_arguments(arguments=None):
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure bnlasagne against its peers and its limit.")
    add = parser.add_argument
    names = [case.name for case in CASES]
    add("--rounds", type=int, default=9, metavar="N",
        help="quiet rounds to measure (default: %(default)s)")
    add("--shapes", nargs="+", choices=names, default=names, metavar="SHAPE",
        help=f"of {', '.join(names)} (default: all)")
    add("--threads", nargs="+", type=int, default=[1, 2], metavar="N",
        help="numbers of threads (default: 1 2)")
    add("--peers", nargs="+", choices=list(PEERS), metavar="PEER",
        help=f"of {', '.join(PEERS)} (default: all that are installed)")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
        help=f"of {', '.join(PARTS)} (default: all)")
    add("--layers", type=int, default=50, metavar="N",
        help="of the deep network (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the order of the peers")
    add("--quick", action="store_true",
        help="tiny shapes, one round: only to see that all runs")
    add("--output", type=Path, default=speed.ROOT / "benchmarks",
        metavar="FOLDER", help="for the report (default: benchmarks)")
    args = parser.parse_args(arguments)
    if args.rounds < 1 or args.layers < 1 or min(args.threads) < 1:
        parser.error("--rounds, --layers, --threads: expected 1 or more")
    if not theano.config.cxx:
        parser.error("there is nothing to measure without a C++ compiler")
    has_torch = importlib.util.find_spec("torch") is not None
    if args.peers is None:
        args.peers = [peer for peer in PEERS
                      if has_torch or not peer.startswith("torch")]
    elif not has_torch and any(
            peer.startswith("torch") for peer in args.peers):
        parser.error("PyTorch is not installed: pip install '.[bench]'")
    if "ours" not in args.peers:
        args.peers.insert(0, "ours")
    return args


def describe_machine():
    """List what the results depend on, as (name, value)."""
    versions = ["Python " + platform.python_version()]
    versions += [f"{module.__name__} {module.__version__}"
                 for module in (theano, lasagne, numpy, bnlasagne)]
    try:
        from torch import __version__
        versions.append("torch " + __version__)
    except ImportError:
        pass
    return [("processor", _processor()), ("cores", os.cpu_count()),
            ("system", f"{platform.system()} {platform.machine()}"),
            ("versions", ", ".join(versions)),
            ("load when started", f"{os.getloadavg()[0]:.1f}"),
            ("date", datetime.date.today().isoformat())]


def _processor():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def measure(args):
    """Run the parts; return the results and the cases."""
    cases = QUICK_CASES if args.quick else [
        case for case in CASES if case.name in args.shapes]
    rounds = 1 if args.quick else args.rounds
    results = {
        "command": "python -m benchmarks" + "".join(
            " " + option for option in sys.argv[1:]
            if sys.argv[0].endswith("__main__.py")),
        "machine": describe_machine(), "threads": args.threads,
        "peers": args.peers, "rows": []}
    if "speed" in args.parts:
        for threads in args.threads:
            results["rows"] += speed.measure(
                [case.name for case in cases], args.peers, threads, rounds,
                args.seed)
            # So that an end before the end does not lose it all.
            _save(args, results)
    if "startup" in args.parts:
        # Cold takes a minute, and more, however small the network.
        results["startup"] = startup.measure(
            2 if args.quick else args.layers, min(rounds, 3), not args.quick)
    if "memory" in args.parts:
        shape = (2, 4, 8, 8) if args.quick else memory.SHAPE
        results["memory"] = memory.measure(args.peers, shape)
    if "cnn" in args.parts:
        results["cnn"] = cnn.measure(1, rounds)
    if "accumulation" in args.parts:
        smaller = {"depths": [1, 2], "width": 16, "size": 32}
        results["accumulation"] = accumulation.measure(
            1, rounds, **smaller if args.quick else {})
    return results, cases


def _save(args, results):
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(json.dumps(results))


def main(arguments=None):
    """Measure, and write results.md, results.png and results.json."""
    args = parse_arguments(arguments)
    results, cases = measure(args)
    _save(args, results)
    times = Times(results["rows"])
    text = report.markdown(results, cases if results["rows"] else [], times)
    (args.output / "results.md").write_text(text, encoding="utf-8")
    if results["rows"]:
        report.chart(args.output / "results.png", results, cases, times)
    print(text)


if __name__ == "__main__":
    main()
