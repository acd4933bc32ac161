"""Measure the time of a training step of ``examples/cnn.py``."""

import random
import sys

from .speed import ROOT, answer, environment, medians_in_turns, run_module

LABELS = {"without": "no batch norm", "plain": "plain_expressions()",
          "kernels": "kernels"}


def measure(threads, rounds):
    """Measure the network's variants, in turns.

    Returns
    -------
    dict
        ``seconds``: for each variant, the median of each round; ``others``,
        as in :func:`benchmarks.speed.measure`.
    """
    return run_module("cnn", {"rounds": rounds}, environment(threads))


def _steps(rounds):
    from bnlasagne import plain_expressions

    import numpy as np

    sys.path.insert(0, str(ROOT / "examples"))
    import cnn as example

    rng = np.random.RandomState(0)
    x = rng.uniform(size=(100, 1, 28, 28)).astype("float32")
    y = rng.randint(0, 10, 100).astype("int32")
    trains = {"without": example.compile_network(False, 0.05)[0],
              "kernels": example.compile_network(True, 0.05)[0]}
    with plain_expressions():
        trains["plain"] = example.compile_network(True, 0.05)[0]
    calls = {name: lambda train=train: train(x, y)
             for name, train in trains.items()}
    return medians_in_turns(calls, rounds, random.Random(0))


if __name__ == "__main__":
    answer(_steps)
