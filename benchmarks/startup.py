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


def _first_step(peer, layers):
    from bnlasagne import batch_norm

    import lasagne
    import numpy as np
    import theano
    import theano.tensor as T
    from lasagne.layers import DenseLayer, InputLayer

    x = T.matrix("x")
    wrap = batch_norm if peer == "ours" else _gist_layer
    network = InputLayer((None, UNITS), x)
    for _ in range(layers):
        network = wrap(DenseLayer(network, UNITS))
    loss = T.sqr(lasagne.layers.get_output(network)).mean()
    updates = lasagne.updates.sgd(
        loss, lasagne.layers.get_all_params(network, trainable=True), 0.01)
    batch = np.random.RandomState(0).normal(size=(UNITS, UNITS))
    start = time.perf_counter()
    train = theano.function([x], loss, updates=updates)
    train(batch.astype("float32"))
    return {"seconds": time.perf_counter() - start,
            "nodes": len(train.maker.fgraph.apply_nodes)}


def _gist_layer(incoming):
    """Return a layer with the gist's graph, on a layer without bias."""
    import lasagne

    from .peers import gist_output

    class GistLayer(lasagne.layers.Layer):
        def __init__(self, incoming):
            super().__init__(incoming)
            shape, axes = (1, incoming.output_shape[1]), (True, False)
            constant = lasagne.init.Constant
            self.mean, self.std, self.beta, self.gamma = (
                self.add_param(constant(value), shape, name, trainable=trained)
                for name, value, trained in (
                    ("mean", 0, False), ("std", 1, False),
                    ("beta", 0, True), ("gamma", 1, True)))
            for param in self.params:
                param.type = param.type.clone(broadcastable=axes)

        def get_output_for(self, input, **kwargs):
            return lasagne.nonlinearities.rectify(gist_output(
                input, self.gamma, self.beta, self.mean, self.std, (0,),
                training=True))

    incoming.params.pop(incoming.b)
    incoming.b = None
    incoming.nonlinearity = lasagne.nonlinearities.identity
    return GistLayer(incoming)


if __name__ == "__main__":
    answer(_first_step)
