"""Read and set the weights of layers in the form of other frameworks."""

import collections

import lasagne
import numpy as np

from ..layers.layer import BatchNormLayer
from ..networks.labels import numbered_labels
from ..networks.linear import (
    LocallyConnected,
    NetworkInNetwork,
    is_linear,
    linear_base,
    linear_of,
)
from ..networks.setting import settable, value_of

__all__ = [
    "BatchNormSlot",
    "LinearSlot",
    "distinct",
    "params_of",
    "slots_of",
]


class LinearSlot(object):
    """A linear layer, and its weights in another framework.

    Attributes
    ----------
    layer : Layer
    label : str
        For messages.
    names : dict of str to str
        Of its parameters there.
    """

    def __init__(self, layer, label, linear, framework):
        self.layer = layer
        self.label = label
        self.names = {role: framework.names[role] for role in ("W", "b")}
        self._linear = linear
        self._framework = framework

    def weights(self, epsilon=None):
        """Weights for there, by the names of parameters here."""
        found = collections.OrderedDict()
        found["W"] = np.ascontiguousarray(self._framework.to_theirs(
            self._linear, _value(self, "W")))
        if self.layer.b is not None:
            found["b"] = _value(self, "b")
        return found

    def neutral(self):
        """What the layer lacks, and might have there; as :meth:`weights`."""
        if self.layer.b is not None:
            return {}
        return {"b": np.zeros(self.layer.output_shape[self._linear.channel])}

    def in_order(self, count):
        """Parameters, by the order in which so many come without names.

        None stands for one that the number does not tell.
        """
        return ["W", "b"]

    def absorbed_by(self, consumers, outputs):
        """The layers whose means could have a bias in them, all or none."""
        over = set(range(len(self.layer.output_shape)))
        over -= {self._linear.channel}
        absorb = is_linear(self.layer) and self.layer not in outputs and all(
            isinstance(layer, BatchNormLayer) and set(layer.axes) == over
            for layer in consumers)
        return consumers if absorb else []

    def fits(self, role, shape, expected):
        """Whether weights of a shape will do."""
        # Filters of a single position may come without its axes.
        return shape == expected or (
            role == "W" and isinstance(self._linear, NetworkInNetwork) and
            shape == tuple(self._W_shape()[axis] for axis
                           in self._framework.axes(self._linear)))

    def set(self, setting, values, epsilon, bias):
        """Have the layer set to weights from there."""
        W = self._framework.to_ours(self._linear, values["W"],
                                    self._W_shape())
        setting.add(_settable(self, "W"), W, _name(self, "W"))
        if self.layer.b is not None:
            setting.add(_settable(self, "b"), values["b"],
                        _name(self, "b"))

    def _W_shape(self):
        return _value(self, "W").shape


class BatchNormSlot(object):
    """A batch normalization layer, as :class:`LinearSlot`."""

    def __init__(self, layer, label, framework):
        self.layer = layer
        self.label = label
        self.names = {role: framework.names[role]
                      for role in ("gamma", "beta", "mean", "var")}
        self._order = framework.feature_order(layer)

    def weights(self, epsilon=None):
        found = collections.OrderedDict()
        statistics = self.layer.get_statistics(epsilon)
        for role in ("gamma", "beta"):
            if getattr(self.layer, role) is not None:
                found[role] = _value(self, role).reshape(
                    statistics.mean.shape)
        found.update(mean=statistics.mean, var=statistics.var)
        if self._order is None:
            return found
        return collections.OrderedDict(
            (role, value[self._order]) for role, value in found.items())

    def neutral(self):
        shape = self.layer.get_statistics().mean.shape
        return {role: np.zeros(shape) for role in ("gamma", "beta")
                if getattr(self.layer, role) is None}

    def in_order(self, count):
        roles = list(self.names)
        own = [role for role in roles if role in ("mean", "var") or
               getattr(self.layer, role) is not None]
        if count in (len(own), len(roles)):
            return own if count == len(own) else roles
        # Statistics come last. The first of three may be either of two.
        return [None] * (count - 2) + ["mean", "var"]

    def fits(self, role, shape, expected):
        return shape == expected

    def set(self, setting, values, epsilon, bias):
        if self._order is not None:
            order = np.argsort(self._order)
            values = {role: value[order] for role, value in values.items()}
        for role in ("gamma", "beta"):
            if role in values:
                setting.add(_settable(self, role), values[role].reshape(
                    self.layer.param_shape()), _name(self, role))
        # Deviations from the mean are the same without the bias as with it.
        for role, (variable, value) in zip(
                ("mean", "std"), self.layer.converted_statistics(
                    values["mean"] - bias, var=values["var"],
                    epsilon=epsilon)):
            setting.add(variable, value, _name(self, role))


def slots_of(layers, framework, caller):
    """The layers of a network that have weights, from input to output."""
    layers = lasagne.layers.get_all_layers(layers)
    framework.check(layers)
    slots, labels = [], numbered_labels(layers)
    for layer in layers:
        linear = linear_of(layer)
        if isinstance(layer, BatchNormLayer):
            slots.append(BatchNormSlot(layer, labels[layer], framework))
        elif linear is not None and not isinstance(linear, LocallyConnected):
            slots.append(LinearSlot(layer, labels[layer], linear,
                                    framework))
        elif layer.get_params():
            raise ValueError("%s: %s %s" % (caller, labels[layer],
                                            _why_unknown(layer)))
    return slots


def _why_unknown(layer):
    base = linear_base(layer)
    if base is None or linear_of(layer) is not None:
        return ("has parameters, but its weights are not known there. Known "
                "are dense, network-in-network, convolutional and bnlasagne's "
                "batch normalization layers.")
    if getattr(layer, "convolution", None) is not None:
        return ("does not compute what Lasagne's %s computes, or its "
                "`convolution` is a function of your own that does so in "
                "another way. Weights for that are not known there. Build the "
                "layer with a `convolution` of Theano's or Lasagne's, or with "
                "the default." % base.__name__)
    return ("does not compute what Lasagne's %s computes, whose weights would "
            "be known there. Build the layer of that class." % base.__name__)


def params_of(slot):
    """The parameters of a layer; equal for layers that share all of them."""
    names = ("W", "b", "gamma", "beta", "mean", "std")
    return tuple(getattr(slot.layer, name, None) for name in names)


def distinct(slots):
    """The first one of the layers that share all parameters."""
    found = collections.OrderedDict()
    for slot in slots:
        found.setdefault(params_of(slot), slot)
    return list(found.values())


def _value(slot, name):
    return value_of(getattr(slot.layer, name), _name(slot, name))


def _settable(slot, name):
    return settable(getattr(slot.layer, name), _name(slot, name))


def _name(slot, name):
    return "%s: %s" % (slot.label, name)
