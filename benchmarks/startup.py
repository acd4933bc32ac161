"""Measure when a deep network has made its first step, and its graph's size.

From the call of :func:`theano.function` to the first result, without imports;
with an empty cache of compiled code, and with a full one.
"""

import tempfile
import time

from .speed import answer, environment, run_module

UNITS = 64
LABELS = {"ours": "bnlasagne", "gist": "gist's graph"}


def measure(layers, rounds, cold):
    """Measure both networks, each time in a process of its own.

    `rounds` are measurements with a full cache. Only if `cold` is set, one
    with an empty cache comes first; otherwise, the user's cache is used.

    Returns
    -------
    dict
        For ours and the gist's graph: ``nodes``, ``cold`` (seconds, or None)
        and ``warm`` (list of seconds).
    """
    found = {peer: {"cold": None, "warm": []} for peer in LABELS}
    with tempfile.TemporaryDirectory() as folder:
        def run(peer):
            flags = {}
            if cold:
                flags["base_compiledir"] = f"{folder}/{peer}"
            return run_module("startup", {"peer": peer, "layers": layers},
                              environment(1, **flags))

        for peer, result in found.items():
            first = run(peer)
            result["nodes"] = first["nodes"]
            if cold:
                result["cold"] = first["seconds"]
        for _ in range(rounds):
            for peer, result in found.items():
                result["warm"].append(run(peer)["seconds"])
    return found


def deep_network(way, layers):
    """Build a deep network of one of :data:`benchmarks.layers.WAYS`.

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
    loss = T.sqr(lasagne.layers.get_output(network)).mean()
    updates = lasagne.updates.sgd(
        loss, lasagne.layers.get_all_params(network, trainable=True), 0.01)
    batch = np.random.RandomState(0).normal(size=(UNITS, UNITS))
    return (lambda: theano.function([x], loss, updates=updates),
            batch.astype("float32"))


def _first_step(peer, layers):
    compile_step, batch = deep_network(peer, layers)
    start = time.perf_counter()
    train = compile_step()
    train(batch)
    return {"seconds": time.perf_counter() - start,
            "nodes": len(train.maker.fgraph.apply_nodes)}


if __name__ == "__main__":
    answer(_first_step)
