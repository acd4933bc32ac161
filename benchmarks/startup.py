"""Measure when a network has made its first step, and its graph's size.

From the start of the process, and from the call of :func:`theano.function`;
with an empty cache of compiled code, and with a full one.
"""

import itertools
import tempfile
import time

from .speed import answer, environment, run_module

UNITS, CLASSES = 64, 10
LABELS = {"ours": "bnlasagne", "gist": "gist's graph, plain Theano",
          "without": "no batch norm"}
# Repairs that make the start faster. Plain Theano does without.
_FASTER = ("keep_ops_without_props,version_code_in_files,remember_march_flags,"
           "remember_trials,scipy_for_theano")


def measure(depths, rounds, cold):
    """Measure networks of some depths, each time in a process of its own.

    `rounds` are measurements with a full cache. Only if `cold` is set, one
    with an empty cache comes first; otherwise, the user's cache is used.

    Returns
    -------
    dict
        For each depth, as a text, and each key of `LABELS`: ``nodes``,
        ``cold`` and ``warm``, two lists of measurements. These are dicts of
        seconds: from the ``start`` of the process, and from the call of
        ``function``.
    """
    found = {str(depth): {way: {"cold": [], "warm": []} for way in LABELS}
             for depth in depths}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):
            for depth, way in itertools.product(depths, LABELS):
                flags = {"base_compiledir": f"{folder}/{way}-{depth}"}
                result = _run(way, depth, flags if cold else {})
                row = found[str(depth)][way]
                row["nodes"] = result.pop("nodes")
                if turn:
                    row["warm"].append(result)
                elif cold:
                    row["cold"].append(result)
    return found


def _run(way, layers, flags):
    variables = environment(1, **flags)
    if way == "gist":
        variables["BNLASAGNE_NO_REPAIR"] = _FASTER
    return run_module("startup", {
        "way": way, "layers": layers, "begun": time.time()}, variables)


def deep_network(way, layers):
    """Build a deep classifier of one of :data:`benchmarks.layers.WAYS`.

    Returns a function that compiles a training step, and its batch.
    """
    from .layers import WAYS  # isort: skip  # First: it repairs imports.

    import lasagne
    import numpy as np
    import theano
    import theano.tensor as T
    from lasagne.layers import DenseLayer, InputLayer

    x = T.matrix("x")
    wrap, _ = WAYS[way]
    network = InputLayer((None, UNITS), x)
    for _ in range(layers):
        network = wrap(DenseLayer(network, UNITS))
    network = DenseLayer(
        network, CLASSES, nonlinearity=lasagne.nonlinearities.softmax)
    labels = theano.shared(np.arange(UNITS, dtype="int32") % CLASSES)
    loss = lasagne.objectives.categorical_crossentropy(
        lasagne.layers.get_output(network), labels).mean()
    updates = lasagne.updates.sgd(
        loss, lasagne.layers.get_all_params(network, trainable=True), 0.01)
    batch = np.random.RandomState(0).normal(size=(UNITS, UNITS))
    return (lambda: theano.function([x], loss, updates=updates),
            batch.astype("float32"))


def _first_step(way, layers, begun):
    compile_step, batch = deep_network(way, layers)
    called = time.time()
    train = compile_step()
    train(batch)
    ended = time.time()
    return {"start": ended - begun, "function": ended - called,
            "nodes": len(train.maker.fgraph.apply_nodes)}


if __name__ == "__main__":
    answer(_first_step)
