"""Compare the library's speed with what was wanted of it."""

import itertools
import operator
import statistics
from typing import Callable, NamedTuple, Optional

from .cases import SMALL
from .speed import ENOUGH, is_quiet


class Goal(NamedTuple):
    """A goal, a bound on a ratio, and the ratio.

    `reached` is None where nothing was measured. `settled` is False where
    other jobs were running: the ratio then says nothing.
    """

    text: str
    wanted: float
    reached: Optional[float]
    at_least: bool
    settled: bool


class Cell(NamedTuple):
    """What is the same for all peers that are compared.

    `malloc` is None for peers that allocate nothing.
    """

    isa: str
    malloc: Optional[str]
    threads: int
    training: bool
    rectify: bool
    case: str

    @classmethod
    def of(cls, row):
        """Return the cell of a row of a measurement."""
        return cls(*(row[name] for name in cls._fields))


class Times:
    """Look up the times of a measurement by case.

    `rows` are those of :func:`benchmarks.paired.measure`.
    """

    def __init__(self, rows):
        self._rows = {(Cell.of(row), row["peer"]): row for row in rows}

    def _row(self, cell, peer):
        return self._rows.get((cell, peer)) or self._rows.get(
            (cell._replace(malloc=None), peer))

    def rounds(self, cell, peer):
        """Return the rounds' seconds that count, and whether they are enough.

        Without any quiet round, all are given, for want of better.
        """
        row = self._row(cell, peer)
        if row is None:
            return None, False
        quiet = [seconds for seconds, others
                 in zip(row["seconds"], row["others"]) if is_quiet(others)]
        return quiet or row["seconds"], len(quiet) >= ENOUGH

    def median(self, cell, peer):
        """Return the median of a peer's rounds, or None."""
        seconds, _ = self.rounds(cell, peer)
        return seconds and statistics.median(seconds)

    def name(self, cell, peer):
        """Return the peer that was measured, if `peer` is the best of some."""
        row = self._row(cell, peer)
        return row and row.get("name")

    def ratio(self, cell, above, below, other=None):
        """Return the median ratio of two peers' times in a round, or None.

        The first is in a `cell`, the second in the same or in the `other`.
        """
        seconds, _ = self.rounds(cell, above)
        others, _ = self.rounds(other or cell, below)
        if not seconds or not others:
            return None
        return statistics.median(a / b for a, b in zip(seconds, others))

    def is_settled(self, cell):
        """Tell whether enough rounds of a cell were quiet."""
        return self.rounds(cell, "ours")[1]


# Goals

class _Wanted(NamedTuple):
    """A bound on the ratio of two peers' times, over some shapes.

    `bounds` are those without and with the rectifier. `merge` makes one of the
    ratios of all shapes for which `applies(case)`.
    """

    above: str
    below: str
    label: str
    bounds: tuple
    merge: Callable
    training: bool = True
    applies: Callable = lambda case: case not in SMALL


_MEAN = statistics.geometric_mean
_WANTED = [
    _Wanted("torch", "ours", "PyTorch eager / ours, geometric mean",
            (2.5, 3.2), _MEAN),
    _Wanted("torch", "ours", "PyTorch eager / ours, every shape",
            (1.5, 1.8), min),
    _Wanted("torch", "ours", "PyTorch eager / ours, every small shape",
            (2, 2), min,
            applies=lambda case: case in SMALL or case.name == "128x512"),
    _Wanted("torch-best", "ours", "PyTorch's best layout / ours, geometric "
            "mean", (1.2, 1.3), _MEAN),
    _Wanted("torch-best", "ours", "PyTorch's best layout / ours, every shape",
            (0.95, 0.95), min),
    _Wanted("onednn", "ours", "oneDNN's best layout / ours, geometric mean",
            (1.2, 1.3), _MEAN),
    _Wanted("onednn", "ours", "oneDNN's best layout / ours, every shape",
            (0.95, 0.95), min),
    _Wanted("gist", "ours", "gist's graph / ours, every convolutional shape",
            (12, 12), min, applies=lambda case: case not in SMALL
            and case.kind == "convolutional"),
    _Wanted("ours", "limit-twice", "ours / limit (x twice), geometric mean",
            (1.25, 1.4), _MEAN),
    _Wanted("torch", "ours", "PyTorch eager / ours, every shape", (1, 1), min,
            training=False, applies=lambda case: True),
]


def speed_goals(times, cases, isa, threads):
    """List the goals for training steps and inference, default malloc."""
    goals = []
    for wanted, rectify in itertools.product(_WANTED, (False, True)):
        cells = [Cell(isa, "default", threads, wanted.training, rectify,
                      case.name) for case in cases if wanted.applies(case)]
        goals.append(_goal(
            f"{label(wanted.training, rectify)}, {wanted.label}",
            wanted.bounds[rectify], wanted.below == "ours", wanted.merge,
            [(times.ratio(cell, wanted.above, wanted.below),
              times.is_settled(cell)) for cell in cells]))
    return goals


def width_goal(times, cases, isas, threads):
    """Return the goal for an instruction set and the next wider one."""
    wider, isa = isas
    cells = [Cell(isa, "default", threads, training, rectify, case.name)
             for case in cases for training in (True, False)
             for rectify in (False, True)]
    return _goal(
        f"ours, {isa} / {wider}, all of these", 1.4, False, max,
        [(times.ratio(cell, "ours", "ours", cell._replace(isa=wider)),
          times.is_settled(cell)) for cell in cells])


def label(training, rectify):
    """Name what was measured."""
    return ("training" if training else "inference") + (
        " + rectifier" if rectify else "")


def _goal(text, wanted, at_least, merge, ratios):
    """Make a goal of the ratios of some cells, and whether each is settled."""
    known = bool(ratios) and all(ratio is not None for ratio, _ in ratios)
    return Goal(text, wanted,
                merge(ratio for ratio, _ in ratios) if known else None,
                at_least, known and all(settled for _, settled in ratios))


def startup_goals(found):
    """List the goals for the time to the first step."""
    goals = []
    for depth, ways in found.items():
        name = f"first step, layers: {depth}"

        def goal(text, wanted, *pairs, name=name, ways=ways):
            goals.append(Goal(f"{name}, {text}", wanted, _pairs(ways, *pairs),
                              False, True))

        goal("warm cache, from the process on, ours / gist's graph", 0.35,
             "gist", "warm", "start", operator.truediv)
        goal("warm cache, from theano.function on, ours / gist's graph", 0.3,
             "gist", "warm", "function", operator.truediv)
        if depth == "1":
            goal("empty cache, seconds that batch norm adds", 8,
                 "without", "cold", "start", operator.sub)
        else:
            goal("empty cache, from theano.function on, ours / gist's graph",
                 1 / 3, "gist", "cold", "function", operator.truediv)
    return goals


def _pairs(ways, other, cache, since, compare):
    """Compare ours with another way, by pairs; return the median, or None."""
    pairs = zip(ways["ours"][cache], ways[other][cache])
    compared = [compare(a[since], b[since]) for a, b in pairs]
    return statistics.median(compared) if compared else None


def network_goals(found):
    """List the goals for training steps of whole networks."""
    return [_goal(
        f"{name}, bnlasagne / no batch norm", 1.1, False, max,
        [(statistics.median(map(
            operator.truediv, row["seconds"]["ours"],
            row["seconds"]["without"])),
          sum(map(is_quiet, row["others"])) >= ENOUGH)])
        for name, row in found.items()]


def is_reached(goal):
    """Tell whether a ratio is within its bound."""
    return goal.reached >= goal.wanted if goal.at_least \
        else goal.reached <= goal.wanted


def verdict(goal):
    """Tell whether a goal is reached, or by how much it is missed."""
    if goal.reached is None:
        return "not measured"
    if not goal.settled:
        return "not settled: other jobs were running"
    if is_reached(goal):
        return "yes"
    short = goal.wanted / goal.reached
    return f"**missed** by a factor of {max(short, 1 / short):.2f}"
