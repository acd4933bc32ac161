"""Measure the cost of several ranks, and of synchronized batch normalization.

``python -m benchmarks.distributed`` fills the tables of ``distributed.md``:
times of steps and messages, and from these a model of hundreds of ranks.
"""

import argparse
import math
import re
import statistics
from operator import sub, truediv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .ranks import CHANNELS, GLOBAL_BATCH, RANK_BATCH, measure
from .report import milliseconds, table
from .speed import ENOUGH, ROOT, is_quiet

PAGE = ROOT / "benchmarks" / "distributed.md"
RANKS = [2, 8, 32, 128, 512]
# Statistics of so many examples count as good enough.
WANTED = 32


class Line(NamedTuple):
    """What takes `alpha` seconds, and `beta` more for each byte."""

    alpha: float
    beta: float


# Assumed, not measured.
LINKS = {"InfiniBand": Line(2e-6, 1 / 12.5e9),
         "10 Gbit Ethernet": Line(30e-6, 1 / 1.25e9)}


class Network(NamedTuple):
    """Channels of each layer, number of parameters, seconds per image."""

    channels: list
    parameters: int
    image: float


RESNET_CHANNELS = [64]
for _width, _blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
    RESNET_CHANNELS += [_width, _width, 4 * _width] * _blocks + [4 * _width]
# 4.1 G multiplications and additions forward, and twice as many backward, at a
# teraflop per second.
RESNET = Network(RESNET_CHANNELS, 25600000, 6 * 4.1e9 / 1e12)
# Filters of 3x3, gamma, beta; and the last layer.
OWN_PARAMETERS = 9 * (3 * 16 + 16 * 32 + 32 * 64) + 2 * 112 + 10 * 1025


# The model

def fit(seconds):
    """Fit a line to times by least squares of the relative errors.

    `seconds` is a dict from bytes, as text, to seconds.
    """
    values = np.array(list(seconds.values()), float)
    sizes = np.array(list(seconds), float)
    matrix = np.stack([np.ones_like(sizes), sizes], 1) / values[:, None]
    return Line(*np.linalg.lstsq(matrix, np.ones_like(sizes), rcond=None)[0])


def rounds_of(ranks):
    """Count the rounds in which the ranks of a tree exchange messages."""
    return math.ceil(math.log2(ranks))


def allreduce_seconds(size, ranks, link):
    """Time a sum: recursive doubling or Rabenseifner's, the faster."""
    rounds = rounds_of(ranks)
    return min(rounds * (link.alpha + size * link.beta),
               2 * rounds * link.alpha
               + 2 * size * link.beta * (ranks - 1) / ranks)


def merge_seconds(size, ranks, link, merge):
    """Time a merge of moments: recursive doubling, and the merges in it."""
    return rounds_of(ranks) * (link.alpha + merge.alpha
                               + size * (link.beta + merge.beta))


def agreement_seconds(ranks, link):
    """Time the gathering of 16 bytes of each rank, once for each function."""
    return rounds_of(ranks) * link.alpha + 16 * (ranks - 1) * link.beta


def synchronization_seconds(channels, ranks, link, merge):
    """Time what synchronized batch normalization adds to a step."""
    if ranks == 1:
        return 0.
    return sum(merge_seconds(8 + 16 * c, ranks, link, merge)
               + allreduce_seconds(16 * c, ranks, link) for c in channels)


def exchange_seconds(parameters, ranks, link):
    """Time the agreement and the gradients, in single precision."""
    return agreement_seconds(ranks, link) + allreduce_seconds(
        4 + 4 * parameters, ranks, link)


def images_for(share, cost, image):
    """Count the images per rank of which a cost is such a share."""
    return max(1, math.ceil(cost / (share * image)))


def group_size(images, ranks, wanted=WANTED):
    """Count the ranks that have the wanted number of images together."""
    needed = max(1, math.ceil(wanted / images))
    return min(ranks, 2 ** math.ceil(math.log2(needed)))


# The tables

def tables(found, machine):
    """Make all tables of the page, as a dict from names to Markdown.

    `found` holds, for each number of ranks as text, what `measure` returned;
    `machine` is a list of (name, value).
    """
    sums = {name: statistics.median(times) for name, times
            in found["2"]["messages"].items() if name != "agree"}
    links = dict({"shared memory": fit(sums)}, **LINKS)
    merge = fit(found["1"]["merge"])
    row = _row(found, "1", "convolutional", RANK_BATCH)
    own = Network(CHANNELS["convolutional"], OWN_PARAMETERS,
                  statistics.median(row["local"]) / RANK_BATCH)
    networks = {"ResNet-50": RESNET, "own": own}

    def cost(network, ranks, link):
        return synchronization_seconds(network.channels, ranks, link, merge)

    return {
        "run": _run(found, machine), "steps": _steps(found),
        "messages": _messages(found),
        "lines": _lines(links, merge, sums),
        "model": _model(networks, links, cost),
        "check": _check(found, links["shared memory"], merge),
        "choice": _choice(networks, links, cost),
        "groups": _groups(networks, cost)}


def _run(found, machine):
    quiet = [sum(map(is_quiet, run["others"])) for run in found.values()]
    one = found["1"]["rows"]
    return table(["machine", ""], [*machine, (
        "rounds, and those that other jobs left alone, by ranks",
        f"{len(found['1']['others'])}; " + ", ".join(map(str, quiet))), (
        "the times of 1 and 2 ranks are settled",
        "yes" if min(quiet[:2]) >= ENOUGH else
        "**no: other jobs were running; measure again**"), (
        "graph of one rank with `comm`",
        "that without" if all(row["same"] for row in one) else
        "**another than without**")])


def _row(found, ranks, kind, batch):
    row, = (row for row in found[ranks]["rows"]
            if row["network"] == kind and row["batch"] == batch)
    return row


def _steps(found):
    rows = []
    for kind, channels in CHANNELS.items():
        for scaling in ("strong", "weak"):
            for ranks in found:
                batch = (GLOBAL_BATCH // int(ranks) if scaling == "strong"
                         else RANK_BATCH)
                row = _row(found, ranks, kind, batch)
                ratios = map(truediv, row["sync"], row["local"])
                rows.append([
                    f"{kind} ({len(channels)} batch norms)", scaling, ranks,
                    batch, *map(milliseconds, (row["local"], row["sync"])),
                    statistics.median(ratios),
                    row["messages"]["local"], row["messages"]["sync"]])
    return table(
        ["network", "scaling", "ranks", "images per rank", "local, ms",
         "sync, ms", "sync / local", "messages, local", "sync"],
        rows)


def _messages(found):
    names = list(found["2"]["messages"])
    sizes = [f"{int(name)} B" if int(name) < 1024 else
             f"{int(name) // 1024} KiB" for name in names[1:]]
    return table(["ranks", "agreement", *sizes], [
        [ranks] + [1e6 * statistics.median(run["messages"][name])
                   for name in names]
        for ranks, run in found.items() if run["messages"]], ".1f")


def _lines(links, merge, sums):
    measured = links["shared memory"]
    error = max(abs((measured.alpha + int(size) * measured.beta) / seconds - 1)
                for size, seconds in sums.items())
    lines = dict(links, **{"one merge of moments": merge})
    remarks = {"shared memory": f"measured; errors up to {100 * error:.0f} %",
               "one merge of moments": "measured, without a message"}
    return table(["", "α, µs", "β, ns per byte", ""], [
        [name, 1e6 * line.alpha, 1e9 * line.beta,
         remarks.get(name, "assumed")] for name, line in lines.items()],
        ("", ".1f", ".3f", ""))


def _model(networks, links, cost):
    rows = []
    for name, network in networks.items():
        for label, link in links.items():
            row = [name, 1e3 * network.image, label]
            for ranks in RANKS:
                sync = cost(network, ranks, link)
                rest = exchange_seconds(network.parameters, ranks, link)
                share = sync / (WANTED * network.image + sync + rest)
                row.append(f"{1e3 * sync:.2f} ({100 * share:.0f} %) + "
                           f"{1e3 * rest:.2f}")
            rows.append(row)
    return _by_ranks(["network", "an image, ms", "link"],
                     "sync (share) + rest", rows)


def _by_ranks(head, label, rows):
    return table([*head, f"{label}, P = {RANKS[0]}", *RANKS[1:]], rows)


def _check(found, link, merge):
    rows = []
    for kind, channels in CHANNELS.items():
        row = _row(found, "2", kind, RANK_BATCH)
        rows.append([
            kind, 1e3 * synchronization_seconds(channels, 2, link, merge),
            milliseconds(map(sub, row["sync"], row["local"]))])
    return table(["network", "model", "measured, sync − local"], rows)


def _choice(networks, links, cost):
    return _by_ranks(["network", "link"], "5 %, 50 %", [
        [name, label] + [
            ", ".join(str(images_for(share, cost(network, ranks, link),
                                     network.image)) for share in (0.05, 0.5))
            for ranks in RANKS]
        for name, network in networks.items()
        for label, link in links.items()])


def _groups(networks, cost):
    chosen = [(name, label) for name in networks for label in LINKS]
    rows = []
    for images in (1, 2, 4, 8, 16, 32):
        group = group_size(images, RANKS[-1])
        rows.append([
            images, f"{images ** -0.5:.2f}, {(2 * images) ** -0.5:.2f}",
            group] + [", ".join(
                "%.1f" % (100 * cost(networks[name], ranks, LINKS[label])
                          / (images * networks[name].image))
                for ranks in (group, RANKS[-1])) for name, label in chosen])
    return table(["images per rank", "errors of mean, std", "G"] + [
        f"{name}, {label}: G, 512" for name, label in chosen], rows)


def fill(page, made):
    """Put tables in a page, each between its marks.

    The marks are ``<!-- NAME -->`` and ``<!-- end -->``.
    """
    for name, text in made.items():
        page, count = re.subn(
            rf"(<!-- {name} -->\n).*?(?=<!-- end -->)",
            lambda match, text=text: match[1] + "\n" + text + "\n",
            page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"The page must have one place for the table "
                             f"{name!r}, got {count}.")
    return page


def main(arguments=None):
    """Measure, and write distributed.md."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distributed",
        description="Measure training on 1, 2 and 4 ranks.")
    add = parser.add_argument
    add("--rounds", type=int, default=11, metavar="N",
        help="rounds to measure (default: %(default)s)")
    add("--ranks", type=int, nargs="+", default=[1, 2, 4], metavar="N",
        choices=[1, 2, 4], help="1 and 2 are needed (default: 1 2 4)")
    add("--output", type=Path, default=PAGE.parent, metavar="FOLDER",
        help="for the report (default: benchmarks)")
    args = parser.parse_args(arguments)
    if args.rounds < 1 or not {1, 2} <= set(args.ranks):
        parser.error("expected 1 round or more, and 1 and 2 among the ranks")
    from .__main__ import describe_machine

    machine = describe_machine()
    found = {str(ranks): measure(ranks, args.rounds)
             for ranks in sorted(args.ranks)}
    text = fill(PAGE.read_text(encoding="utf-8"), tables(found, machine))
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "distributed.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
