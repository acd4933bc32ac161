"""Write the report: a page of Markdown, and a bar chart."""

import statistics
from operator import truediv

from . import accumulation, growth, networks, startup
from .goals import network_goals, startup_goals, verdict
from .peers import PEERS
from .speed import ENOUGH, is_quiet
from .tables import METHOD, SpeedTables, milliseconds, table


def markdown(results, cases, times):
    """Write the whole report.

    Parameters
    ----------
    results : dict
        ``machine``: list of (name, value); ``isa``, ``malloc``, ``threads``
        and ``peers``: lists of what was measured; and what ``startup``,
        ``memory``, ``networks``, ``accumulation`` and ``growth`` measured,
        if they ran.
    cases : list of Case
    times : benchmarks.goals.Times

    Returns
    -------
    str
    """
    parts = ["# Speed of bnlasagne\n", f"Made by `{results['command']}`.\n",
             table(["machine", ""], results["machine"]), METHOD]
    if cases:
        parts += SpeedTables(results, cases, times).all()
    for name, write in (("startup", _startup), ("memory", _memory),
                        ("networks", _networks),
                        ("accumulation", _accumulation),
                        ("growth", _growth)):
        if name in results:
            parts += write(results[name])
    return "\n".join(parts)


def _startup(found):
    rows = [
        [depth, startup.LABELS[way], row["nodes"], *(
            statistics.median(seconds[since] for seconds in row[cache])
            if row[cache] else None
            for cache in ("cold", "warm") for since in ("start", "function"))]
        for depth, ways in found.items() for way, row in ways.items()]
    heads = ["layers", "", "nodes", "empty cache, process",
             "empty cache, function", "warm cache, process",
             "warm cache, function"]
    return ["## The first step\n",
            "Seconds from the start of the process, and from "
            "`theano.function`, to the first result; medians.\n",
            table(heads, rows, ("", "", "", ".1f", ".1f", ".2f", ".2f")),
            table(["goal", "wanted", "measured", "reached"], [
                [goal.text, f"≤ {goal.wanted:.3g}", goal.reached,
                 verdict(goal)] for goal in startup_goals(found)])]


def _memory(found):
    return ["## Peak memory of a training step\n",
            "Beyond x, dy and the parameters, in sizes of x; y and dx are "
            "two of it.\n",
            table(["", "sizes of x"], [[PEERS[peer].label, sizes]
                                       for peer, sizes in found.items()])]


def _networks(found):
    ways = dict(networks.LABELS, **{
        f"{way}-kept": f"{networks.LABELS[way]}, keep_freed_memory()"
        for way in networks.KEPT})
    rows = [
        [label, *(cell for row in found.values()
                  for cell in _network_cells(row["seconds"], way))]
        for way, label in ways.items()]
    heads = [head for name in found
             for head in (networks.NETWORKS[name].label, "ratio")]
    return ["## A step of whole networks\n",
            "Milliseconds, and the ratio to the same network without batch "
            "normalization. Memory is malloc's affair, unless "
            "`bnlasagne.keep_freed_memory()` was called.\n",
            table(["", *heads], rows),
            table(["goal", "wanted", "measured", "reached"], [
                [goal.text, f"≤ {goal.wanted:.3g}", goal.reached,
                 verdict(goal)] for goal in network_goals(found)])]


def _network_cells(seconds, way):
    if way not in seconds:
        return None, None
    base = "torch-without" if way.startswith("torch") else "without"
    return milliseconds(seconds[way]), statistics.median(
        map(truediv, seconds[way], seconds[base]))


def _accumulation(found):
    ways = accumulation.LABELS
    rows = []
    for row in found:
        settled = sum(map(is_quiet, row["others"])) >= ENOUGH
        seconds = row["seconds"]
        ratios = {way: statistics.median(
            map(truediv, seconds[way], seconds["full"])) for way in ways}
        rows.append([
            f"{row['depth']}{'' if settled else ' ?'}",
            *(f"{milliseconds(seconds[way]):.1f} ({ratios[way]:.2f})"
              for way in ways),
            *(row["memory"][way] / 2 ** 20 for way in ways)])
    return [f"## A step from {accumulation.MICRO_BATCHES} micro-batches\n",
            "Of a network of dense layers, 512 wide, with batch normalization "
            "and a batch of 1024. Milliseconds, and in brackets the ratio to "
            "the full batch; and the MiB that the first step takes.\n",
            table(["layers"] + [f"{label}, ms" for label in ways.values()]
                  + [f"{label}, MiB" for label in ways.values()], rows,
                  ".1f")]


def _growth(found):
    rows = [
        [growth.CURVES[name].label, threads, *(
            "{:.2f} at {}".format(*extreme(zip(
                growth.per_value(row, "ours"), row["sizes"])))
            for extreme in (min, max)),
         max(map(truediv, row["ours"], row["limit-twice"]))]
        for name, by_threads in found["curves"].items()
        for threads, row in by_threads.items()]
    deep = [[number, *(value for pairs in found["layers"].values()
                       for value in (pairs[i][0], 1e3 * pairs[i][1]))]
            for i, number in enumerate(found["numbers"])]
    heads = [f"{label}, {unit}" for label in growth.WAY_LABELS.values()
             for unit in ("s to compile", "ms per step")]
    return ["## How cost grows\n", "![Curves](growth.png)\n",
            "Training step + rectifier, nanoseconds per value.\n",
            table(["n", "threads", "least", "most", "most / limit"], rows),
            table(["layers", *heads], deep)]
