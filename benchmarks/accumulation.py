"""Measure time and memory of a step from micro-batches, or a full batch."""

import random

from .memory import peak_of
from .speed import answer, environment, medians_in_turns, run_module

LABELS = {"full": "full batch", "accumulated": "function()",
          "exact": "exact_function()"}
DEPTHS = [1, 2, 4, 8]
MICRO_BATCHES = 8


def measure(threads, rounds, depths=DEPTHS, width=512, size=1024):
    """Measure steps of networks of dense layers.

    Returns
    -------
    list of dict
        For each depth: ``depth``; ``seconds``, for each way the median of each
        round; ``others``, as in :func:`benchmarks.speed.measure`; and
        ``memory``, for each way the bytes that a step takes at its peak.
    """
    rows = []
    for depth in depths:
        options = {"depth": depth, "width": width, "size": size}
        row = run_module("accumulation", dict(options, rounds=rounds),
                         environment(threads))
        row["depth"] = depth
        row["memory"] = {
            way: run_module("accumulation", dict(options, way=way),
                            environment(threads, keep_freed=False))
            for way in LABELS}
        rows.append(row)
    return rows


def _build(way, depth, width, size):
    """Return a function that makes a step of the whole batch."""
    import bnlasagne

    import lasagne
    import numpy as np
    import theano
    import theano.tensor as T

    rng = np.random.RandomState(0)
    data = rng.normal(size=(size, width)).astype("float32")
    lasagne.random.set_rng(np.random.RandomState(1))
    network = lasagne.layers.InputLayer((None, width))
    for _ in range(depth):
        network = bnlasagne.batch_norm(lasagne.layers.DenseLayer(
            network, width))
    x = T.matrix()
    loss = T.sqr(lasagne.layers.get_output(network, x) - x).mean()
    params = lasagne.layers.get_all_params(network, trainable=True)
    rule = lasagne.updates.sgd
    if way == "full":
        step = theano.function([x], updates=rule(loss, params, 0.01))
        return lambda: step(data)
    accumulator = bnlasagne.GradientAccumulator(params)
    parts = np.split(data, MICRO_BATCHES)
    if way == "exact":
        accumulate = accumulator.exact_function([x], loss)
    else:
        accumulate = accumulator.function([x], loss, outputs=[])
    step = accumulator.step_function(rule, learning_rate=0.01)

    def step_of_parts():
        if way == "exact":
            accumulate(parts)
        else:
            for part in parts:
                accumulate(part)
        step()
    return step_of_parts


def _measure_here(depth, width, size, rounds=None, way=None):
    if way is not None:
        return peak_of(_build(way, depth, width, size))
    return medians_in_turns(
        {way: _build(way, depth, width, size) for way in LABELS}, rounds,
        random.Random(0))


if __name__ == "__main__":
    answer(_measure_here)
