"""Write tables in Markdown, and those of training steps and inference."""

import itertools
import statistics

from tabulate import tabulate

from .goals import Cell, is_reached, label, speed_goals, width_goal
from .isa import SETS
from .paired import BEST
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

A round counts if other jobs used no more than QUIET cores during it. A result
with fewer than ENOUGH such rounds is marked "?" and settles no goal.
""".replace("QUIET", str(QUIET)).replace("ENOUGH", str(ENOUGH))

# What is compared with ours, as far as it was measured.
COLUMNS = ["gist", "theano", "lasagne", "torch", "torch-inplace",
           "torch-compile", "torch-channels-last", "onednn", "onnxruntime"]
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
        self._peers = [*results["peers"], *BEST]
        self._times = times

    def all(self):
        """List all tables, with their titles."""
        order = ", then ".join(SETS[isa].label for isa in self._isas)
        parts = ["## Goals\n", self._goals(),
                 f"With {self._malloc[0]} malloc, if nothing else is said. "
                 f"Tables have the values of {order} in each cell.\n"]
        for threads, training, rectify in itertools.product(
                self._threads, (True, False), (False, True)):
            title = label(training, rectify).capitalize()
            parts += [f"## {title}, threads: {threads}\n",
                      self._speed(threads, training, rectify)]
        if "onednn" in self._peers and any(
                name in self._peers for name in BEST["onednn"][1]):
            parts += ["## Layouts of oneDNN, ms\n", self._layouts()]
        if len(self._malloc) > 1:
            parts += ["## What malloc costs\n", self._of_malloc()]
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

    def _speed(self, threads, training, rectify):
        """Time ours, and compare it with others."""
        peers = [peer for peer in COLUMNS + LIMITS if peer in self._peers
                 and self._is_measured(peer, threads, training, rectify)]
        pairs = [("ours", peer) if peer in LIMITS else (peer, "ours")
                 for peer in peers]
        rows, ratios = [], []
        for case in self._cases:
            cells = self._cells(case, threads, training, rectify)
            ratios.append([[self._times.ratio(cell, *pair) for cell in cells]
                           for pair in pairs])
            rows.append([
                self._name(cells), self._ms(cells, "ours"),
                *map(_joined, ratios[-1])])
        rows.append(["geometric mean", "", *(
            _joined([_mean(values) for values in zip(*column)])
            for column in zip(*ratios))])
        return table(["shape", "ours, ms", *(
            " / ".join("ours" if peer == "ours" else LABELS[peer]
                       for peer in pair) for pair in pairs)], rows)

    def _layouts(self):
        names = [name for name in BEST["onednn"][1] if name in self._peers]
        threads = self._threads[0]
        columns = list(itertools.product((True, False), (False, True), names))
        rows = [[case.name, *(
            self._ms(self._cells(case, threads, *kind), name)
            for *kind, name in columns)] for case in self._cases]
        return table([f"threads: {threads}", *(
            f"{label(*kind)}, {name.split('-')[1]}"
            for *kind, name in columns)], rows)

    def _of_malloc(self):
        """Compare ours, and PyTorch with ours, with each way of malloc."""
        columns = list(itertools.product(
            self._threads, (False, True), self._malloc))
        rows = []
        for case in self._cases:
            row = [case.name]
            for threads, rectify, malloc in columns:
                cells = [cell._replace(malloc=malloc) for cell in self._cells(
                    case, threads, True, rectify)]
                ratios = _joined([self._times.ratio(cell, "torch", "ours")
                                  for cell in cells])
                row.append(f"{self._ms(cells, 'ours')} ({ratios})")
            rows.append(row)
        return table(["ours, ms (PyTorch eager / ours)", *(
            f"{label(True, rectify)}, threads: {threads}, {malloc}"
            for threads, rectify, malloc in columns)], rows)

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

    def _is_measured(self, peer, *kind):
        return any(self._times.median(cell, peer) is not None
                   for case in self._cases
                   for cell in self._cells(case, *kind))

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
