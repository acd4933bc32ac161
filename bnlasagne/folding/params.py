"""Register the parameters of layers that others were folded into."""

import collections

import numpy as np
import theano

from ..layers.parameters import full_name
from ..networks.walk import shared_in, variables_in, variables_of
from ..theano_tools.needed import needed

__all__ = ["Registry", "set_params"]


def set_params(layer, W, b):
    """Give a layer new weights and another bias, as parameters."""
    dtype = layer.W.dtype
    params = collections.OrderedDict()
    for name, value in ("W", W), ("b", b):
        new = _shared(layer, name, value, dtype)
        params[new] = _tags(layer, getattr(layer, name))
        setattr(layer, name, new)
    # Some of the old ones may be used elsewhere; see Registry.
    for param, tags in layer.params.items():
        params.setdefault(param, tags)
    layer.params = params


def _shared(layer, name, value, dtype):
    """Make a shared variable in the place of a parameter of a layer."""
    old = getattr(layer, name)
    pattern = getattr(old, "broadcastable", ())
    given = isinstance(old, theano.compile.SharedVariable) and old.name
    return theano.shared(
        np.array(value, dtype), given or full_name(layer, name),
        broadcastable=[each and size == 1 for each, size
                       in zip(pattern, value.shape)]
        if len(pattern) == value.ndim else None)


def _tags(layer, old):
    """Find the tags for what replaces weights or a bias."""
    # An expression has the tags of its sources. Weights that were no
    # parameter become one: batch normalization's parameters are in them.
    sources = set(shared_in(old))
    tags = [tags for param, tags in layer.params.items()
            if sources.intersection(shared_in(param))]
    return set().union(*tags) or {"trainable"}


class Registry:
    """Have layers register the parameters in use, and no others."""

    def __init__(self):
        # For each layer that others are folded into, the shared variables
        # that its weights and its bias were computed from.
        self._former = {}
        self._folded = []

    def folds(self, bn, layer):
        """Take note of a layer that is about to be folded into another."""
        self._former.setdefault(layer, set()).update(
            shared_in(layer.W, layer.b))
        self._folded.append((bn, layer))

    def register(self, layers):
        """Change `params` of the layers of the folded network."""
        used = set().union(*map(self._used, layers))
        for layer in self._former:
            layer.params = collections.OrderedDict(
                (source, tags) for param, tags in layer.params.items()
                for source in shared_in(param) if source in used)
        registered = {source for layer in layers
                      for source in shared_in(*layer.params)}
        for bn, layer in self._folded:
            # Such as the parameter of a nonlinearity.
            layer.params.update(
                (source, tags) for param, tags in bn.params.items()
                for source in shared_in(param)
                if source in used and source not in registered)

    def _used(self, layer):
        """Find the variables of which a layer uses values."""
        found = needed(variables_of(layer))
        if layer in self._former:
            # Its attributes may still refer to its former weights.
            found -= self._former[layer]
            found |= needed(variables_in(
                [layer.W, layer.b, layer.nonlinearity]))
        return found
