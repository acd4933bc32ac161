"""Measure how the time of a training step grows.

With the batch, the channels, the positions and the threads, as nanoseconds per
value, beside the limit of memory traffic: a knee that only the layer has is
its own. And with the number of layers, for a network of dense layers with and
without batch normalization, as seconds to compile and milliseconds per step.
"""

import functools
import itertools
import random
import statistics
import sys
import time
from typing import NamedTuple

import numpy as np

from .speed import answer, environment, medians_in_turns, run_module
from .startup import UNITS, deep_network

PEERS = {"ours": "bnlasagne", "limit-twice": "limit (x twice)"}


class Curve(NamedTuple):
    """Shapes that differ in one size.

    `shape` has None in place of that size, which grows from `least` to
    `most`.
    """

    label: str
    shape: tuple
    least: int
    most: int

    def sizes(self):
        """List sizes: powers of two, and one and a half times them."""
        powers = [2 ** power for power in range(self.most.bit_length())]
        return [size for size in sorted(powers + [
            3 * power // 2 for power in powers[1:]])
            if self.least <= size <= self.most]

    def case(self, size):
        """Return the case of a size."""
        from .cases import Case

        shape = tuple(size if each is None else each for each in self.shape)
        axes = (0,) + tuple(range(2, len(shape)))
        return Case("x".join(map(str, shape)), "", shape, axes)


CURVES = {
    "batch": Curve("batch, (n, 512)", (None, 512), 2, 2 ** 14),
    "channels": Curve("channels, (128, n)", (128, None), 1, 2 ** 16),
    "positions": Curve("positions, (32, 64, n)", (32, 64, None), 1, 2 ** 12),
    "maps": Curve("channels, (32, n, 28, 28)", (32, None, 28, 28), 1, 2 ** 8),
}
WAY_LABELS = {"without": "no batch norm", "ours": "bnlasagne"}
LAYERS = [1, 2, 5, 10, 20, 50, 100]


def measure(rounds, threads, layers):
    """Measure all curves.

    Returns
    -------
    dict
        ``curves``: for each curve and number of threads, a dict with
        ``sizes``, ``values`` (numbers in a batch) and, for each peer, the
        median seconds; ``layers``: for each way of
        :data:`benchmarks.layers.WAYS`, a list of compile and step seconds.
    """
    curves = {name: {
        str(count): run_module("growth", {
            "curve": name, "rounds": rounds}, environment(count))
        for count in threads} for name in CURVES}
    return {"curves": curves, "numbers": layers, "layers": run_module(
        "growth", {"layers": layers, "rounds": rounds}, environment(1))}


def _measure_here(rounds, curve=None, layers=None):
    return _deep(layers, rounds) if curve is None else _curve(curve, rounds)


def _curve(name, rounds):
    sizes = CURVES[name].sizes()
    cases = [CURVES[name].case(size) for size in sizes]
    found = {"sizes": sizes, "others": [], "values": [
        int(np.prod(case.shape)) for case in cases]}
    for peer in PEERS:
        calls = {str(size): _program(peer, case)
                 for size, case in zip(sizes, cases)}
        seconds, others = _medians(calls, rounds)
        found[peer] = [seconds[str(size)] for size in sizes]
        found["others"] += others
    return found


def _medians(calls, rounds):
    """Time functions in turns; return the median of each one's rounds."""
    found = medians_in_turns(calls, rounds, random.Random(0))
    return {name: statistics.median(seconds) for name, seconds
            in found["seconds"].items()}, found["others"]


def _program(peer, case):
    from .cases import random_data
    from .peers import PEERS as KNOWN

    return KNOWN[peer].build(case, random_data(case), True, True).call


def _deep(numbers, rounds):
    """Return seconds to compile deep networks, and those of their steps."""
    # Theano's gradients recurse, thousands of calls deep.
    sys.setrecursionlimit(20000)
    compiled, calls = {}, {}
    # The first networks of all pay for what is loaded and compiled once.
    for way, number in itertools.product(WAY_LABELS, (1, 2)):
        _compile(way, number)
    for way, number in itertools.product(WAY_LABELS, numbers):
        name = f"{way} {number}"
        compiled[name], calls[name] = _compile(way, number)
    seconds, _ = _medians(calls, rounds)
    return {way: [(compiled[f"{way} {number}"], seconds[f"{way} {number}"])
                  for number in numbers] for way in WAY_LABELS}


def _compile(way, layers):
    """Return seconds to compile a deep network, and a function for a step."""
    compile_step, batch = deep_network(way, layers)
    start = time.perf_counter()
    step = functools.partial(compile_step(), batch)
    step()
    return time.perf_counter() - start, step


def draw(path, found):
    """Save the curves, a PNG."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 2, figsize=(11, 12))
    for axis, (name, by_threads) in zip(axes.flat, found["curves"].items()):
        _draw_curve(axis, CURVES[name].label, by_threads)
    for axis, index, label, unit in zip(
            axes[2], (0, 1), ("seconds to compile", "step"), (1, 1e3)):
        for way, pairs in found["layers"].items():
            axis.plot(found["numbers"], [
                unit * pair[index] / number
                for pair, number in zip(pairs, found["numbers"])],
                marker="o", label=WAY_LABELS[way])
        axis.set_xscale("log")
        axis.set_ylim(0)
        axis.set_xlabel(f"dense layers of {UNITS} units")
        axis.set_title(f"{label}, {'milli' * index}seconds per layer"
                       if index else f"{label}, per layer", fontsize=10)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(str(path), dpi=100)
    pyplot.close(figure)


def _draw_curve(axis, label, by_threads):
    for threads, found in by_threads.items():
        for peer, name in PEERS.items():
            axis.plot(found["sizes"], per_value(found, peer), marker=".",
                      linestyle="-" if peer == "ours" else ":",
                      label=f"{name}, threads: {threads}")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel(label)
    axis.set_title("training step + rectifier, nanoseconds per value",
                   fontsize=10)
    axis.legend(fontsize=8)


def per_value(found, peer):
    """Return nanoseconds per value, for each size of a curve."""
    return [1e9 * seconds / values
            for seconds, values in zip(found[peer], found["values"])]


if __name__ == "__main__":
    answer(_measure_here)
