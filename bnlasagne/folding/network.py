"""Find which layers of a network use which others, and remove layers."""

import collections

import lasagne

from ..networks.copy import copy_network
from ..networks.labels import numbered_labels
from ..networks.outputs import overrides
from ..networks.walk import (
    inputs_of,
    layers_in,
    references_of,
    replace_layer,
)

__all__ = ["LeftInPlace", "Network"]


class LeftInPlace(Exception):
    """Give the reason why a batch normalization layer is not folded."""


class Network:
    """Copy a network, given its output layers, and remove layers from it.

    All attributes name layers of the copy: its `outputs`; its `originals`, a
    dict to the layers of the original; their `labels`, for messages; and the
    `consumers` of a layer, once for each time that they take its output.
    """

    def __init__(self, outputs):
        copies = copy_network(outputs)
        labels = numbered_labels(list(copies))
        self.outputs = [copies[layer] for layer in outputs]
        self.originals = {new: layer for layer, new in copies.items()}
        self.labels = {new: labels[layer] for layer, new in copies.items()}
        self.consumers = collections.defaultdict(list)
        self._holders = collections.defaultdict(list)
        for layer in copies.values():
            for used in _used_by(layer):
                self.consumers[used].append(layer)
            for held in _held_by(layer):
                self._holders[held].append(layer)
        self._reached = _reached_from(self.outputs, _used_by)

    def gives_flags_to(self, layer):
        """Tell whether a layer gets the flags that get_output() is given."""
        return layer in self._reached

    def referred(self):
        """Find all layers that are left, whatever they are used for."""
        return _reached_from(self.outputs, lambda layer:
                             inputs_of(layer) + references_of(layer))

    def check_unheld(self, layer):
        """Raise LeftInPlace if others refer to a layer in unknown ways."""
        if self._holders[layer]:
            raise LeftInPlace(f"{self.labels[layer]} is referred to by "
                              f"{self.names(self._holders[layer])}")

    def names(self, layers):
        """Join the labels of several layers for a sentence."""
        names = dict.fromkeys(self.labels[layer] for layer in layers)
        return " and ".join(names) or "no other layer"

    def bypass(self, bn):
        """Connect the consumers of a layer to the layer before it."""
        below, = inputs_of(bn)
        for consumer in self.consumers[bn]:
            replace_layer(consumer, bn, below)
        self.consumers[below].remove(bn)
        self.consumers[below] += self.consumers.pop(bn)
        self.outputs = [below if layer is bn else layer
                        for layer in self.outputs]


def _used_by(layer):
    """List the layers of which a layer uses the outputs, and no more."""
    return inputs_of(layer) + _called_by(layer)


def _called_by(layer):
    """List the layers within a layer that get the flags which it gets."""
    recurrent = lasagne.layers.CustomRecurrentLayer
    if not isinstance(layer, recurrent) or overrides(layer, recurrent,
                                                     "get_output_for"):
        return []
    return [layer.input_to_hidden, layer.hidden_to_hidden]


def _held_by(layer):
    """List the layers to which a layer refers in ways that are not known."""
    known = _called_by(layer)
    if type(layer).__module__.startswith("lasagne."):
        # The inputs of Lasagne's layers are nothing but inputs, whatever
        # attributes refer to them, such as hid_init. But functions may.
        below = inputs_of(layer)
        known += [each for each in layers_in(layer) if each in below]
    held = collections.Counter(references_of(layer))
    held.subtract(known)
    return [each for each in held.elements() if each is not layer]


def _reached_from(outputs, below):
    """Find the layers that are reached from outputs through those below."""
    reached, stack = set(), list(outputs)
    while stack:
        layer = stack.pop()
        if layer not in reached:
            reached.add(layer)
            stack.extend(below(layer))
    return reached
