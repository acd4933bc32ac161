"""Time and memory of a step from micro-batches, and of the full batch."""

import random
import statistics

from .speed import answer, environment, run_module

LABELS = {"full": "full batch", "accumulated": "function()",
          "exact": "exact_function()"}
DEPTHS = [1, 2, 4, 8]
MICRO_BATCHES = 8


def measure(threads, rounds, depths=DEPTHS, width=512, size=1024):
    """Measure steps of networks of dense layers.

    Parameters
    ----------
    threads, rounds : int
    depths : list of int
        Numbers of layers with batch normalization.
    width, size : int
        Of the layers, and of the batch.

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
    """A function that makes a step of the whole batch."""
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
        accumulate_all = lambda: accumulate(parts)  # noqa: E731
    else:
        accumulate = accumulator.function([x], loss, outputs=[])
        accumulate_all = lambda: list(map(accumulate, parts))  # noqa: E731
    step = accumulator.step_function(rule, learning_rate=0.01)

    def step_of_parts():
        accumulate_all()
        step()
    return step_of_parts


def _measure_here(depth, width, size, rounds=None, way=None):
    if way is not None:
        return _peak(_build(way, depth, width, size))

    from .speed import time_in_turns

    times, others = time_in_turns(
        {way: _build(way, depth, width, size) for way in LABELS}, rounds,
        random.Random(0))
    return {"others": others, "seconds": {
        way: [statistics.median(turn) for turn in turns]
        for way, turns in times.items()}}


def _peak(step):
    """Bytes that a first step adds to the peak of the process."""
    import resource
    import sys

    from .memory import resident

    before = resident()
    step()
    unit = 1 if sys.platform == "darwin" else 1024
    return max(0, resource.getrusage(
        resource.RUSAGE_SELF).ru_maxrss * unit - before)


if __name__ == "__main__":
    answer(_measure_here)
