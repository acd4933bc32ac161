"""Write the report: a page of Markdown, and a bar chart."""

import statistics
from operator import truediv

from tabulate import tabulate

from . import accumulation, cnn, startup
from .goals import speed_goals, startup_goals, verdict
from .peers import PEERS
from .speed import ENOUGH, QUIET, is_quiet

METHOD = """\
Times are in milliseconds, the median over rounds of the round's median call;
in brackets the fastest call. In each round, every peer has a turn, in random
order. Ratios are taken within a round, and their median is given. Every peer
allocates its outputs in each call, with freed memory kept by malloc; inputs
are in place before the call. Before they were timed, all peers agreed on a
step with NumPy in double precision, each with its own convention of epsilon.
The limit is a loop in C++ with the same memory traffic, into memory that is
allocated before.

A round counts if other jobs used no more than QUIET cores during it. A result
with fewer than ENOUGH such rounds is marked "?" and settles no goal.
""".replace("QUIET", str(QUIET)).replace("ENOUGH", str(ENOUGH))

MISSED = """\
Where goals were missed on two cores of an AMD EPYC with 32 MiB of last-level
cache, and why:

- 128x512, a quarter of a megabyte, takes so little time that calling a Theano
  function and allocating its outputs count; the limit needs neither. One
  thread does all of it, because two threads would wait for each other longer
  than they would save. So on two threads, its limit is half of what one
  thread can reach.
- 1024x2048 fits in the last-level cache, which is nearly as fast as the
  arithmetic. There, the constants of the columns take as many loads as x
  does, and strides of 8 KiB collide in the caches. A loop that only subtracts
  a constant from each column misses the goal as well.
- Inference on 32x64x56x56 and 64x128x28x28: PyTorch is at the limit, too, and
  no loop that reads x and writes y through the caches can be 1.2 times as
  fast. Stores that bypass the caches could be, but they slow down the layer
  that reads y next; they are not used.
- Training on 32x56x56x64: PyTorch, whose channels are last in memory as well,
  needs 1.3 to 1.4 times the limit, so that 1.5 times its speed is the limit
  itself or less. A thread that reads x twice reads it from memory twice,
  because no part of the channels lies together.
- Two threads also wait for each other.
"""


def markdown(results, cases, times):
    """Write the whole report.

    Parameters
    ----------
    results : dict
        ``machine``: list of (name, value); ``threads``: list of int;
        ``peers``: list of str; and what ``startup``, ``memory``, ``cnn`` and
        ``accumulation`` measured, if they ran.
    cases : list of Case
    times : benchmarks.goals.Times

    Returns
    -------
    str
    """
    parts = ["# Speed of bnlasagne\n", f"Made by `{results['command']}`.\n",
             table(["machine", ""], results["machine"]), METHOD,
             "## Goals\n", _goals(results, cases, times), MISSED]
    for threads in results["threads"] if cases else []:
        for training in (True, False):
            for rectify in (False, True):
                parts += _speed(results["peers"], cases, times, threads,
                                training, rectify)
    for name, write in (("startup", _startup), ("memory", _memory),
                        ("cnn", _cnn), ("accumulation", _accumulation)):
        if name in results:
            parts += write(results[name])
    return "\n".join(parts)


def table(head, rows, floatfmt=".2f"):
    """Write a table; what was not measured is a dash in it."""
    return tabulate(rows, head, "github", floatfmt, missingval="–") + "\n"


def milliseconds(seconds):
    """Return the median of some seconds, in milliseconds."""
    return 1e3 * statistics.median(seconds)


def _goals(results, cases, times):
    goals = speed_goals(times, cases, results["threads"])
    if "startup" in results:
        goals += startup_goals(results["startup"])
    return table(["goal", "wanted", "measured", "reached"], [
        [goal.text, f"{'≥' if goal.at_least else '≤'} {goal.wanted:.3g}",
         goal.reached, verdict(goal)] for goal in goals])


def _speed(peers, cases, times, threads, training, rectify):
    cells = [(threads, training, rectify, case.name) for case in cases]
    peers = [peer for peer in peers if PEERS[peer].measures(rectify, training)]
    head = (f"## {'Training step' if training else 'Inference'}"
            f"{' + rectifier' if rectify else ''}, threads: {threads}\n")
    calls = [
        [_name(times, cell)] + [
            f"{1e3 * times.median(*cell, peer):.3f} "
            f"({1e3 * times.fastest(*cell, peer):.3f})" for peer in peers]
        for cell in cells]
    columns = [(peer, "ours") for peer in peers
               if peer != "ours" and not peer.startswith("limit")]
    columns += [("ours", peer) for peer in peers if peer.startswith("limit")]
    ratios = [[times.ratio(cell, *column) for column in columns]
              for cell in cells]
    rows = [[_name(times, cell), *row] for cell, row in zip(cells, ratios)]
    rows.append(["geometric mean",
                 *map(statistics.geometric_mean, zip(*ratios))])
    labels = [" / ".join("ours" if peer == "ours" else PEERS[peer].label
                         for peer in column) for column in columns]
    return [head, table(["shape"] + [PEERS[peer].label for peer in peers],
                        calls), table(["shape", *labels], rows)]


def _name(times, cell):
    return cell[-1] + ("" if times.is_settled(cell) else " ?")


def _startup(found):
    return ["## A deep network's first step\n",
            "Seconds from `theano.function` to the first result; warm, the "
            f"median of {len(found['ours']['warm'])}.\n",
            table(["", "nodes", "empty cache", "warm cache"], [
                [startup.LABELS[peer], row["nodes"], row["cold"],
                 statistics.median(row["warm"])]
                for peer, row in found.items()], ("", "", ".1f", ".2f"))]


def _memory(found):
    return ["## Peak memory of a training step\n",
            "Beyond x, dy and the parameters, in sizes of x; y and dx are "
            "two of it.\n",
            table(["", "sizes of x"], [[PEERS[peer].label, sizes]
                                       for peer, sizes in found.items()])]


def _cnn(found):
    quiet = sum(map(is_quiet, found["others"]))
    return ["## A step of examples/cnn.py\n",
            f"{quiet} of {len(found['others'])} rounds were quiet.\n",
            table(["", "ms"], [[label, milliseconds(found["seconds"][name])]
                               for name, label in cnn.LABELS.items()])]


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


def chart(path, results, cases, times):
    """Save a bar chart of the training steps' ratios, a PNG."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    peers = [peer for peer in results["peers"] if peer != "ours"
             and PEERS[peer].measures(False, True)]
    counts = results["threads"]
    figure, axes = pyplot.subplots(
        len(counts), figsize=(10, 3.6 * len(counts)), squeeze=False)
    for axis, threads in zip(axes[:, 0], counts):
        cells = [(threads, True, False, case.name) for case in cases]
        width = 0.8 / max(1, len(peers))
        for index, peer in enumerate(peers):
            axis.bar([place + index * width for place in range(len(cells))],
                     [times.ratio(cell, peer, "ours") for cell in cells],
                     width, label=PEERS[peer].label)
        axis.set_xticks([place + 0.4 for place in range(len(cells))])
        axis.set_xticklabels([_name(times, cell) for cell in cells],
                             fontsize=8)
        axis.set_yscale("log")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_ylabel("time / ours")
        axis.set_title(f"Training step, threads: {threads} (? = not settled, "
                       "other jobs were running)", fontsize=10)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8,
                  ncol=len(peers), loc="lower center")
    figure.savefig(str(path), dpi=100)
    pyplot.close(figure)
