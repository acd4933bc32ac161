"""Wrap layers of Lasagne by batch normalization of ours and of others.

Each way takes a layer that has weights and returns one with batch
normalization in front of its nonlinearity, as ``batch_norm()`` does; or it
stacks batch normalization on a layer that has no weights.
"""

from bnlasagne import BatchNormLayer, batch_norm

import lasagne

from .cases import ALPHA
from .peers import gist_output, later_lasagne_output


class _OtherLayer(lasagne.layers.Layer):
    """Normalize as others do: `output`, whose averages start at 0 and 1."""

    output = None

    def __init__(self, incoming, axes=None, nonlinearity=None):
        super().__init__(incoming)
        shape = incoming.output_shape
        if axes is None:
            axes = (0,) + tuple(range(2, len(shape)))
        self.axes = axes
        self.nonlinearity = nonlinearity or lasagne.nonlinearities.identity
        sizes = [1 if axis in axes else size
                 for axis, size in enumerate(shape)]
        self.gamma, self.beta, self.mean, self.spread = (
            self.add_param(lasagne.init.Constant(value), sizes, name,
                           trainable=name in ("gamma", "beta"))
            for name, value in (("gamma", 1), ("beta", 0), ("mean", 0),
                                ("spread", 1)))
        for param in self.params:
            param.type = param.type.clone(
                broadcastable=[axis in axes for axis in range(len(shape))])

    def get_output_for(self, input, **kwargs):
        return self.nonlinearity(self.output(
            input, self.gamma, self.beta, self.mean, self.spread, self.axes,
            training=True))


class GistLayer(_OtherLayer):
    """Build the gist's graph."""

    output = staticmethod(gist_output)


class LaterLasagneLayer(_OtherLayer):
    """Build the graph of the `BatchNormLayer` of Lasagne 0.2."""

    output = staticmethod(later_lasagne_output)


def _wrapper(stack):
    def wrap(layer):
        layer.params.pop(layer.b)
        layer.b = None
        nonlinearity = layer.nonlinearity
        layer.nonlinearity = lasagne.nonlinearities.identity
        return stack(layer, nonlinearity=nonlinearity)
    return wrap


def _ours(layer, **kwargs):
    return batch_norm(layer, alpha=ALPHA, **kwargs)


def _our_layer(layer, **kwargs):
    return BatchNormLayer(layer, alpha=ALPHA, **kwargs)


def _unchanged(layer, **kwargs):
    return layer


# For each way: a function that wraps a layer, and one that stacks batch
# normalization on a layer.
WAYS = {
    "without": (_unchanged, _unchanged),
    "ours": (_ours, _our_layer),
    "gist": (_wrapper(GistLayer), GistLayer),
    "lasagne": (_wrapper(LaterLasagneLayer), LaterLasagneLayer),
}
