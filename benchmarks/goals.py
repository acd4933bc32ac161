"""What was wanted of the library's speed, and what was reached."""

import math
import statistics
from collections import namedtuple

from .speed import ENOUGH, is_quiet

Goal = namedtuple("Goal", "text, wanted, reached, at_least, settled")
Goal.__doc__ = """A goal, a bound on a ratio, and the ratio.

`reached` is None where nothing was measured. `settled` is False where other
jobs were running: the ratio then says nothing.
"""


class Times:
    """Times of a measurement, looked up by case.

    Parameters
    ----------
    rows : list of dict
        See :func:`benchmarks.speed.measure`.
    """

    def __init__(self, rows):
        self._rows = {self._key(**row): row for row in rows}

    @staticmethod
    def _key(threads, training, rectify, case, peer, **_):
        return threads, training, rectify, case, peer

    def rounds(self, *key):
        """Seconds of the rounds that count, and whether they are enough.

        Without any quiet round, all are given, for want of better.
        """
        row = self._rows.get(key)
        if row is None:
            return None, False
        quiet = [seconds for seconds, others
                 in zip(row["seconds"], row["others"]) if is_quiet(others)]
        return quiet or row["seconds"], len(quiet) >= ENOUGH

    def median(self, *key):
        """Median of a peer's rounds, or None."""
        seconds, _ = self.rounds(*key)
        return seconds and statistics.median(seconds)

    def fastest(self, *key):
        """The fastest call of all, or None."""
        row = self._rows.get(key)
        return row and row["fastest"]

    def ratio(self, cell, above, below):
        """Median over rounds of one peer's time by another's, or None.

        Parameters
        ----------
        cell : tuple
            Threads, training, rectify, case.
        above, below : str
            Peers.
        """
        seconds, _ = self.rounds(*cell, above)
        others, _ = self.rounds(*cell, below)
        if not seconds or not others:
            return None
        return statistics.median(a / b for a, b in zip(seconds, others))

    def is_settled(self, cell):
        """Whether enough rounds of a cell were quiet."""
        return self.rounds(*cell, "ours")[1]


def geometric_mean(values):
    """Of a list that is not empty."""
    return math.exp(sum(map(math.log, values)) / len(values))


def speed_goals(times, cases, threads):
    """The goals for training steps and inference.

    Parameters
    ----------
    times : Times
    cases : list of Case
    threads : list of int

    Returns
    -------
    list of Goal
    """
    goals = []

    def goal(text, wanted, count, training, rectify, above, below, merge,
             kinds=None):
        cells = [(count, training, rectify, case.name) for case in cases
                 if kinds is None or case.kind in kinds]
        ratios = [times.ratio(cell, above, below) for cell in cells]
        known = bool(ratios) and None not in ratios
        goals.append(Goal(
            "%s%s, %s, threads: %d" % (
                "training" if training else "inference",
                " + rectifier" if rectify else "", text, count),
            wanted, merge(ratios) if known else None, below == "ours",
            known and all(map(times.is_settled, cells))))

    for rectify in (False, True):
        if 1 in threads:
            against = 1, True, rectify, "gist", "ours", min
            goal("gist's graph / ours, every dense shape", 20, *against,
                 kinds=["dense"])
            goal("gist's graph / ours, every convolutional shape", 9,
                 *against, kinds=["convolutional"])
            goal("gist's graph / ours, every shape", 1, *against)
    for count in threads:
        for rectify in (False, True):
            torch = count, True, rectify, "torch", "ours"
            goal("PyTorch eager / ours, every shape", 1.5, *torch, min)
            goal("PyTorch eager / ours, geometric mean",
                 2.8 if rectify else 2.2, *torch, geometric_mean)
            limit = count, True, rectify, "ours", "limit-twice"
            goal("ours / limit (x twice), geometric mean",
                 1.5 if rectify else 1.3, *limit, geometric_mean)
            goal("ours / limit (x twice), every shape", 2, *limit, max)
            goal("ours / limit, every shape", 1.2, count, False, rectify,
                 "ours", "limit-once", max)
            goal("PyTorch eager / ours, every shape", 1.2, count, False,
                 rectify, "torch", "ours", min)
    return goals


def startup_goals(startup):
    """The goals for the time to the first step.

    Parameters
    ----------
    startup : dict
        See :func:`benchmarks.startup.measure`.

    Returns
    -------
    list of Goal
    """
    ours, gist = startup["ours"], startup["gist"]
    cold = ours["cold"] and ours["cold"] / gist["cold"]
    warm = statistics.median(
        a / b for a, b in zip(ours["warm"], gist["warm"]))
    return [
        Goal("deep network's first step, warm cache, ours / gist's graph",
             0.3, warm, False, True),
        Goal("deep network's first step, empty cache, ours / gist's graph",
             1 / 3, cold, False, cold is not None)]


def verdict(goal):
    """Whether a goal is reached; if not, by how much it is missed."""
    if goal.reached is None:
        return "not measured"
    if not goal.settled:
        return "not settled: other jobs were running"
    short = goal.wanted / goal.reached if goal.at_least \
        else goal.reached / goal.wanted
    return "yes" if short <= 1 else "**missed** by a factor of %.2f" % short
