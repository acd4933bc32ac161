"""Measure, and write the report: ``python -m benchmarks``."""

import argparse
import contextlib
import datetime
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import bnlasagne

import lasagne
import numpy
import theano

from . import (
    accumulation,
    chart,
    growth,
    isa,
    memory,
    networks,
    paired,
    report,
    startup,
)
from .cases import CASES, QUICK_CASES
from .goals import Times
from .peers import PEERS
from .speed import ROOT

# They tell little that the others do not.
NOT_BY_DEFAULT = ["theano", "lasagne", "torch-inplace", "torch-compile"]
PARTS = ["speed", "startup", "memory", "networks", "accumulation", "growth"]


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
    peers = [*PEERS, *paired.BEST]
    add("--peers", nargs="+", choices=peers, metavar="PEER",
        help=f"of {', '.join(peers)} (default: all that are installed, but "
             f"{', '.join(NOT_BY_DEFAULT)})")
    add("--isa", nargs="+", choices=list(isa.SETS), metavar="SET",
        help=f"instruction sets, of {', '.join(isa.SETS)} (default: native, "
             "and avx2 if native is AVX-512)")
    add("--malloc", nargs="+", choices=list(paired.MALLOC), metavar="WAY",
        default=list(paired.MALLOC),
        help="memory as users have it (default), or kept (default: both)")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
        help=f"of {', '.join(PARTS)} (default: all)")
    add("--layers", type=int, default=50, metavar="N",
        help="of the deep network (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the order of the peers")
    add("--quick", action="store_true",
        help="tiny shapes, one round: only to see that all runs")
    add("--output", type=Path, default=ROOT / "benchmarks",
        metavar="FOLDER", help="for the report (default: benchmarks)")
    args = parser.parse_args(arguments)
    if args.rounds < 1 or args.layers < 1 or min(args.threads) < 1:
        parser.error("--rounds, --layers, --threads: expected 1 or more")
    if not theano.config.cxx:
        parser.error("there is nothing to measure without a C++ compiler")
    args.isa = _sets(parser, args.isa)
    args.peers = _peers(parser, args.peers)
    return args


def _sets(parser, wanted):
    available = isa.available()
    if wanted is None:
        return [name for name in ("native", "avx2") if name in available]
    for name in wanted:
        if name not in available:
            parser.error(f"--isa {name}: this machine has "
                         f"{', '.join(available)}, each different")
    return [name for name in isa.SETS if name in wanted]


def _peers(parser, wanted):
    """List the peers to measure, ours first."""
    if wanted is None:
        return [name for name, peer in PEERS.items()
                if peer.is_installed() and name not in NOT_BY_DEFAULT]
    names = {"ours"}
    for name in wanted:
        names.update(paired.BEST[name][1] if name in paired.BEST else [name])
    for name in names:
        if not PEERS[name].is_installed():
            parser.error(f"{PEERS[name].label} is not installed: "
                         "pip install '.[bench]'")
    return [name for name in PEERS if name in names]


def describe_machine():
    """List what the results depend on, as (name, value)."""
    versions = ["Python " + platform.python_version()]
    versions += [f"{module.__name__} {module.__version__}"
                 for module in (theano, lasagne, numpy, bnlasagne)]
    for name in ("torch", "onednn-cpu-gomp", "onnxruntime"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
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
    rounds = args.rounds = 1 if args.quick else args.rounds
    results = {
        "command": "python -m benchmarks" + "".join(
            " " + option for option in sys.argv[1:]
            if sys.argv[0].endswith("__main__.py")),
        "machine": describe_machine(), "threads": args.threads,
        "isa": args.isa, "malloc": args.malloc, "peers": args.peers,
        "rows": []}
    if "speed" in args.parts:
        for threads in args.threads:
            results["rows"] += paired.measure(cases, threads, args)
            # So that an end before the end does not lose it all.
            _save(args, results)
    if "startup" in args.parts:
        # Cold takes a minute, and more, however small the network.
        results["startup"] = startup.measure(
            [1, 2 if args.quick else args.layers], min(rounds, 3),
            not args.quick)
    if "memory" in args.parts:
        shape = (2, 4, 8, 8) if args.quick else memory.SHAPE
        results["memory"] = memory.measure(args.peers, shape)
    if "networks" in args.parts:
        results["networks"] = networks.measure(
            ["lstm"] if args.quick else list(networks.NETWORKS), 1, rounds)
    if "accumulation" in args.parts:
        smaller = {"depths": [1, 2], "width": 16, "size": 32}
        results["accumulation"] = accumulation.measure(
            1, rounds, **smaller if args.quick else {})
    if "growth" in args.parts:
        results["growth"] = growth.measure(
            rounds, args.threads, [1, 2] if args.quick else growth.LAYERS)
    return results, cases


def _save(args, results):
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(json.dumps(results))


def main(arguments=None):
    """Measure, and write results.md, pictures and results.json."""
    args = parse_arguments(arguments)
    results, cases = measure(args)
    _save(args, results)
    times = Times(results["rows"])
    text = report.markdown(results, cases if results["rows"] else [], times)
    (args.output / "results.md").write_text(text, encoding="utf-8")
    if results["rows"]:
        chart.draw(args.output / "results.png", results, cases, times)
    if "growth" in results:
        growth.draw(args.output / "growth.png", results["growth"])
    print(text)


if __name__ == "__main__":
    main()
