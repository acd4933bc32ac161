"""Compare the library's speed with what was wanted of it."""

import statistics
from typing import NamedTuple, Optional

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


class Times:
    """Look up the times of a measurement by case.

    `rows` are those of :func:`benchmarks.speed.measure`. A key is the number
    of threads, training, rectify, the name of the case, and the peer. A cell
    is a key without the peer.
    """

    def __init__(self, rows):
        self._rows = {self._key(**row): row for row in rows}

    @staticmethod
    def _key(threads, training, rectify, case, peer, **_):
        return threads, training, rectify, case, peer

    def rounds(self, *key):
        """Return the rounds' seconds that count, and whether they are enough.

        Without any quiet round, all are given, for want of better.
        """
        row = self._rows.get(key)
        if row is None:
            return None, False
        quiet = [seconds for seconds, others
                 in zip(row["seconds"], row["others"]) if is_quiet(others)]
        return quiet or row["seconds"], len(quiet) >= ENOUGH

    def median(self, *key):
        """Return the median of a peer's rounds, or None."""
        seconds, _ = self.rounds(*key)
        return seconds and statistics.median(seconds)

    def fastest(self, *key):
        """Return the time of the fastest call of all, or None."""
        row = self._rows.get(key)
        return row and row["fastest"]

    def ratio(self, cell, above, below):
        """Return the median ratio of two peers' times in a round, or None."""
        seconds, _ = self.rounds(*cell, above)
        others, _ = self.rounds(*cell, below)
        if not seconds or not others:
            return None
        return statistics.median(a / b for a, b in zip(seconds, others))

    def is_settled(self, cell):
        """Tell whether enough rounds of a cell were quiet."""
        return self.rounds(*cell, "ours")[1]


def speed_goals(times, cases, threads):
    """List the goals for training steps and inference."""
    goals = []

    def goal(text, wanted, count, training, rectify, above, below, merge,
             kinds=None):
        cells = [(count, training, rectify, case.name) for case in cases
                 if kinds is None or case.kind in kinds]
        ratios = [times.ratio(cell, above, below) for cell in cells]
        known = bool(ratios) and None not in ratios
        goals.append(Goal(
            f"{'training' if training else 'inference'}"
            f"{' + rectifier' if rectify else ''}, {text}, threads: {count}",
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
                 2.8 if rectify else 2.2, *torch, statistics.geometric_mean)
            limit = count, True, rectify, "ours", "limit-twice"
            goal("ours / limit (x twice), geometric mean",
                 1.5 if rectify else 1.3, *limit, statistics.geometric_mean)
            goal("ours / limit (x twice), every shape", 2, *limit, max)
            goal("ours / limit, every shape", 1.2, count, False, rectify,
                 "ours", "limit-once", max)
            goal("PyTorch eager / ours, every shape", 1.2, count, False,
                 rectify, "torch", "ours", min)
    return goals


def startup_goals(startup):
    """List the goals for the time to the first step."""
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
    """Tell whether a goal is reached, or by how much it is missed."""
    if goal.reached is None:
        return "not measured"
    if not goal.settled:
        return "not settled: other jobs were running"
    short = goal.wanted / goal.reached if goal.at_least \
        else goal.reached / goal.wanted
    return "yes" if short <= 1 else f"**missed** by a factor of {short:.2f}"
