"""Write tables in Markdown, and those of training steps and inference."""

import itertools
import statistics

from tabulate import tabulate

from .goals import Cell, is_reached, label, speed_goals, width_goal
from .isa import SETS
from .paired import BEST, OF_MALLOC
from .peers import PEERS
from .speed import ENOUGH, QUIET

METHOD = """\
Every program runs in a process of its own. In each round, each of them has a
turn, in random order. Times are in milliseconds, the median over rounds of the
round's median call. Ratios are taken within a round, and their median is
given. Inputs are in place before the call. Peers allocate their outputs in
each call, but for oneDNN and the limit: they write into memory that is
allocated before, which saves them page faults. Before they were timed, all
peers agreed on a step with NumPy in double precision, each with its own
convention of epsilon. The limit is a loop in C++ with the same memory traffic.
Instruction sets restrict the compiler of ours, and all others but ONNX Runtime
at run time.

A round counts if other jobs used no more than QUIET cores during it. A result
with fewer than ENOUGH such rounds is marked "?" and settles no goal.
""".replace("QUIET", str(QUIET)).replace("ENOUGH", str(ENOUGH))

LUCK = """\
By default, malloc gives memory back to the system, depending on the sizes of
the arrays that it freed before and on what lies behind them. If so, the next
call faults in its pages anew. This differs between processes. Kept: malloc
never gives memory back (MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_=2^40).
"""
# What is compared with ours, as far as it was measured.
COLUMNS = [name for name in PEERS
           if name != "ours" and not name.startswith(("onednn-", "limit"))]
COLUMNS.insert(COLUMNS.index("onnxruntime"), "onednn")
ALL = [name for name in PEERS if name != "ours" and "limit" not in name]
LIMITS = ["limit-twice", "limit-once"]
LABELS = {**{name: peer.label for name, peer in PEERS.items()},
          **{name: label for name, (label, _) in BEST.items()}}
MISSING = "–"


def table(head, rows, floatfmt=".2f"):
    """Write a table; what was not measured is a dash in it."""
    return tabulate(rows, head, "github", floatfmt, missingval="–") + "\n"


def milliseconds(seconds):
    """Return the median of some seconds, in milliseconds."""
    return 1e3 * statistics.median(seconds)


class SpeedTables:
    """Write the tables of a measurement.

    A cell of a table has one value for each instruction set.
    """

    def __init__(self, results, cases, times):
        self._isas, self._malloc = results["isa"], results["malloc"]
        self._threads, self._cases = results["threads"], cases
        self._times = times

    def all(self):
        """List all tables, with their titles."""
        sets = ", then ".join(SETS[isa].label for isa in self._isas)
        parts = [
            "## Goals\n", self._goals(),
            f"With {self._malloc[0]} malloc. In bold: missed. In the tables, "
            f"a cell has the values of {sets}.\n"]
        for threads, training, rectify in itertools.product(
                self._threads, (True, False), (False, True)):
            title = label(training, rectify).capitalize()
            parts += [f"## {title}, threads: {threads}\n",
                      self._ratios(threads, training, rectify)]
        for rectify in (False, True):
            title = label(True, rectify).capitalize()
            parts += [f"## {title}, threads: {self._threads[0]}, ms\n",
                      self._times_of(rectify)]
        if len(self._malloc) > 1:
            parts += ["## Training with each way of malloc\n", LUCK,
                      self._of_malloc()]
        if len(self._isas) > 1:
            parts += ["## What narrower vectors cost\n", self._of_width()]
        return parts

    # Each makes one table.

    def _goals(self):
        columns = list(itertools.product(self._isas, self._threads))
        goals = [speed_goals(self._times, self._cases, *column)
                 for column in columns]
        rows = [[row[0].text, _bound(row[0]), *map(_verdict, row)]
                for row in zip(*goals)]
        for pair in zip(self._isas, self._isas[1:]):
            row = [width_goal(self._times, self._cases, pair, threads)
                   if isa == pair[1] else None for isa, threads in columns]
            first = next(goal for goal in row if goal)
            rows.append([first.text, _bound(first), *map(_verdict, row)])
        return table(["goal", "wanted", *(
            f"{SETS[isa].label}, threads: {threads}"
            for isa, threads in columns)], rows)

    def _ratios(self, threads, training, rectify):
        """Time ours, and compare it with others."""
        kind = threads, training, rectify
        pairs = [("ours", peer) if peer in LIMITS else (peer, "ours")
                 for peer in self._measured(COLUMNS + LIMITS, *kind)]
        rows, ratios = [], []
        for case in self._cases:
            cells = self._cells(case, *kind)
            ratios.append([[self._times.ratio(cell, *pair) for cell in cells]
                           for pair in pairs])
            rows.append([self._name(cells), self._ms(cells, "ours"),
                         *map(_joined, ratios[-1])])
        rows.append(["geometric mean", "", *(
            _joined([_mean(values) for values in zip(*column)])
            for column in zip(*ratios))])
        return table(["shape", "ours, ms", *(
            " / ".join("ours" if peer == "ours" else LABELS[peer]
                       for peer in pair) for pair in pairs)], rows)

    def _times_of(self, rectify):
        """Give the milliseconds of all peers, in training."""
        kind = self._threads[0], True, rectify
        peers = self._measured(["ours", *ALL, *LIMITS], *kind)
        return table(["shape", *(LABELS[peer] for peer in peers)], [
            [case.name, *(self._ms(self._cells(case, *kind), peer)
                          for peer in peers)] for case in self._cases])

    def _of_malloc(self):
        """Give the milliseconds of ours and PyTorch with each way."""
        columns = list(itertools.product(
            (False, True), self._measured(OF_MALLOC, self._threads[0], True,
                                          False), self._malloc))
        rows = []
        for case, threads in itertools.product(self._cases, self._threads):
            row = [f"{case.name}, threads: {threads}"]
            for rectify, peer, malloc in columns:
                cells = self._cells(case, threads, True, rectify)
                row.append(self._ms([cell._replace(malloc=malloc)
                                     for cell in cells], peer))
            rows.append(row)
        return table(["ms"] + [
            f"{LABELS[peer]}{' + rectifier' if rectify else ''}, {malloc}"
            for rectify, peer, malloc in columns], rows)

    def _of_width(self):
        columns = list(itertools.product(
            self._threads, (True, False), (False, True)))
        rows = []
        for case in self._cases:
            row = [case.name]
            for column in columns:
                cells = self._cells(case, *column)
                row.append(_joined([
                    self._times.ratio(narrow, "ours", "ours", wide)
                    for wide, narrow in zip(cells, cells[1:])]))
            rows.append(row)
        return table(["each / the next wider", *(
            f"{label(*kind)}, threads: {threads}"
            for threads, *kind in columns)], rows)

    # What they are made of.

    def _cells(self, case, threads, training, rectify):
        return [Cell(isa, self._malloc[0], threads, training, rectify,
                     case.name) for isa in self._isas]

    def _measured(self, peers, *kind):
        """List those peers of which there are times."""
        cells = [cell for case in self._cases
                 for cell in self._cells(case, *kind)]
        return [peer for peer in peers if any(
            self._times.median(cell, peer) is not None for cell in cells)]

    def _name(self, cells):
        settled = all(map(self._times.is_settled, cells))
        return cells[0].case + ("" if settled else " ?")

    def _ms(self, cells, peer):
        seconds = [self._times.median(cell, peer) for cell in cells]
        return _joined([value and 1e3 * value for value in seconds], ".3g")


def _joined(values, form=".2f"):
    """Write the values of the instruction sets."""
    if all(value is None for value in values):
        return MISSING
    return " · ".join(MISSING if value is None else format(value, form)
                      for value in values)


def _mean(values):
    """Return the geometric mean of what was measured, or None."""
    known = [value for value in values if value is not None]
    return statistics.geometric_mean(known) if known else None


def _bound(goal):
    return f"{'≥' if goal.at_least else '≤'} {goal.wanted:.3g}"


def _verdict(goal):
    """Write a ratio: in bold if the goal is missed."""
    if goal is None or goal.reached is None:
        return MISSING
    text = f"{goal.reached:.2f}"
    if not goal.settled:
        return text + " ?"
    return text if is_reached(goal) else f"**{text}**"
