"""Read and set weights by the table of a framework.

The modules torch and keras have the tables: names and axes of the weights.
"""

import collections

import lasagne
import numpy as np

from ..layers.layer import BatchNormLayer
from ..networks.labels import numbered_labels
from ..networks.linear import (
    LocallyConnected,
    NetworkInNetwork,
    TransposedConvolution,
    is_linear,
    linear_base,
    linear_of,
)
from ..networks.setting import Setting, settable
from ..networks.values import as_numbers, converted, value_of
from ..networks.walk import checked_layers, inputs_of
from .matching import check_pairs, distinct, match

__all__ = ["Framework"]


class Framework:
    """Exchange weights by the table of a framework: a base class.

    Attributes
    ----------
    what, how : str
        Its word for a dict of weights, and an expression that makes one.
    separator : str
        Between the name of a layer and that of its weights.
    names : dict of str to str
        Its names for `W` and `b` of linear layers, and for `gamma`, `beta`,
        `mean` and `var` of batch normalization layers.
    without : dict of str to str
        Its arguments that build a layer without one of these.
    ignored : tuple of str
        Names of counts of batches, which have no equivalent here.
    no_statistics : str
        Sentences on normalization layers without running averages.
    array : type
        Of the arrays for there.
    """

    ignored = ()
    array = np.ndarray

    def __init__(self, caller, epsilon):
        # To a layer, None would mean statistics of data.
        if epsilon is None:
            raise ValueError(f"{caller}: epsilon must be a number, got None. "
                             "Pass the epsilon of the batch normalization.")
        self.caller = caller
        self.epsilon = epsilon

    def axes(self, channels, taps):
        """Put the axes of `W` in the framework's order.

        `channels` are the axes with the output's and the input's channels; of
        transposed convolutions, the other way round. `taps` are as in Linear.
        """
        raise NotImplementedError

    def feature_order(self, layer):
        """Number the features of a layer's input there as here, or None."""

    def split(self, key):
        """Split a key into the full name of a layer and that of weights."""
        layer, _, name = key.rpartition(self.separator)
        return layer, name

    def flat(self, weights):
        """Map the full names of weights to the weights."""
        return weights

    def restored(self, found, like):
        """Put weights with full names into the form of others."""
        return collections.OrderedDict((key, found[key]) for key in like)

    def check(self, layers):
        """Refuse layers that compute something else there."""

    def get(self, network, like):
        """Get the weights of a network as the framework stores them."""
        entries = self._entries(checked_layers(network, self.caller))
        if like is None:
            return self._named_by_layers(distinct(entries))
        pairs = match(self, entries, like)
        check_pairs(self, pairs, {entry: entry.optional()
                                  for entry in entries})
        # Counts stay as they are.
        found = {key: np.array(as_numbers(key, value))
                 for key, value in self.flat(like).items()}
        for entry, weights, _ in pairs:
            values = {**entry.optional(), **entry.get()}
            for role, (key, value) in weights.items():
                found[key] = converted(
                    f"{self.caller}: {key}", values[role].reshape(value.shape),
                    value.dtype)
        return self.restored({key: value.view(self.array)
                              for key, value in found.items()}, like)

    def _named_by_layers(self, entries):
        names = collections.Counter(entry.layer.name for entry in entries)
        for entry in entries:
            if entry.layer.name is None or names[entry.layer.name] > 1:
                raise ValueError(
                    f"{self.caller}: {entry.label} must have a name that no "
                    f"other layer has, got {entry.layer.name!r}. Name all "
                    "layers with parameters, or pass `like`.")
        return collections.OrderedDict(
            (entry.layer.name + self.separator + entry.names[role],
             value.view(self.array))
            for entry in entries for role, value in entry.get().items())

    def set(self, network, weights):
        """Set the parameters of a network to the framework's weights."""
        outputs = checked_layers(network, self.caller)
        entries = self._entries(outputs)
        pairs = match(self, entries, weights)
        absorbing = _absorbing(entries, pairs, outputs)
        check_pairs(self, pairs, {entry: entry.optional()
                                  for entry in absorbing})
        setting, biases = Setting(self.caller), {}
        for entry, found, _ in pairs:
            values = {role: value for role, (_, value) in found.items()}
            bias = values.get("b")
            if entry in absorbing and bias is not None:
                biases.update((norm, bias) for norm in absorbing[entry])
            entry.set(setting, values, biases.get(entry.layer, 0))
        setting.carry_out()

    def _entries(self, outputs):
        """Find the layers of a network that have weights, in its order."""
        layers = lasagne.layers.get_all_layers(outputs)
        self.labels = numbered_labels(layers)
        self.check(layers)
        entries = []
        for layer in layers:
            linear = linear_of(layer)
            if isinstance(layer, BatchNormLayer):
                entries.append(BatchNormEntry(layer, self))
            elif linear and not isinstance(linear, LocallyConnected):
                entries.append(LinearEntry(linear, self))
            elif layer.get_params():
                raise ValueError(f"{self.caller}: {self.labels[layer]} "
                                 f"{_why_unknown(layer)}")
        return entries


class Entry:
    """Read and set the weights of a layer as a framework stores them.

    A base class. In its subclasses, ``get()`` returns values by the names of
    parameters here, which are their roles. ``set(setting, values, bias)`` has
    the layer set to such values; `bias` is what the layer before it adds there
    and not here. ``optional()`` returns values of weights that the layer does
    without, and that change nothing there. `names` are the framework's names
    of the weights, by roles.
    """

    def __init__(self, layer, framework):
        self.layer = layer
        self.label = framework.labels[layer]
        self.names = {role: framework.names[role] for role in self.roles}
        self._caller, self._epsilon = framework.caller, framework.epsilon
        self._order = framework.feature_order(layer)

    def takes(self, role, shape):
        """Tell whether weights may have a shape other than that of `get`."""
        return False

    def in_order(self, count):
        """List the roles of numbered weights; None for an unknown one."""
        return self.roles

    def params(self):
        """List the parameters: equal for layers that share all of them."""
        return tuple(getattr(self.layer, name, None) for name in (
            "W", "b", "gamma", "beta", "mean", "std"))

    def _has(self, role):
        return getattr(self.layer, role) is not None

    def _value(self, role):
        return value_of(getattr(self.layer, role), f"{self.label}: {role}")

    def _add(self, setting, role, value):
        name = f"{self.label}: {role}"
        setting.add(settable(getattr(self.layer, role), name), value, name)


class LinearEntry(Entry):
    """Read and set the weights of a dense or convolutional layer."""

    kind = "linear"
    roles = ("W", "b")

    def __init__(self, linear, framework):
        super().__init__(linear.layer, framework)
        self._linear = linear
        self._taps = linear.taps
        if isinstance(linear, NetworkInNetwork):
            # Elsewhere, these are filters of a single position.
            self._taps = tuple(range(2, len(linear.layer.input_shape)))
        channels = linear.outputs, linear.inputs
        if isinstance(linear, TransposedConvolution):
            channels = channels[::-1]
        self._axes = framework.axes(channels, self._taps)

    def get(self):
        W = self._value("W")
        W = W.reshape(self._full_shape(W)) if self._order is None \
            else W[self._order]
        W = np.flip(W, self._linear.taps) if self._linear.flips() else W
        found = {"W": np.ascontiguousarray(W.transpose(self._axes))}
        return {**found, "b": self._value("b")} if self._has("b") else found

    def set(self, setting, values, bias):
        W = self._value("W")
        shape = self._full_shape(W)
        new = values["W"].reshape([shape[axis] for axis in self._axes])
        new = new.transpose(np.argsort(self._axes)).reshape(W.shape)
        new = np.flip(new, self._linear.taps) if self._linear.flips() else new
        self._add(setting, "W", new if self._order is None
                  else new[np.argsort(self._order)])
        if self._has("b"):
            self._add(setting, "b", values["b"])

    def _full_shape(self, W):
        """Add the axes of a single position to the shape of `W`."""
        return W.shape + (1,) * (2 + len(self._taps) - W.ndim)

    def optional(self):
        size = self.layer.output_shape[self._linear.channel_axis]
        return {} if self._has("b") else {"b": np.zeros(size)}

    def takes(self, role, shape):
        # Filters of a single position may come without its axes.
        return role == "W" and isinstance(self._linear, NetworkInNetwork) and \
            shape == tuple(self._value("W").shape[axis] for axis in self._axes
                           if axis not in self._taps)

    def absorbing(self, consumers, outputs):
        """List the consumers, if the means of all can absorb a bias."""
        over = set(range(len(self.layer.output_shape)))
        over -= {self._linear.channel_axis}
        absorb = is_linear(self.layer) and self.layer not in outputs and all(
            isinstance(layer, BatchNormLayer) and set(layer.axes) == over
            for layer in consumers)
        return consumers if absorb else []


class BatchNormEntry(Entry):
    """Read and set the weights of a batch normalization layer."""

    kind = "batch norm"
    roles = ("gamma", "beta", "mean", "var")

    def get(self):
        statistics = self.layer.get_statistics(self._epsilon)
        found = {role: self._value(role).reshape(statistics.mean.shape)
                 for role in ("gamma", "beta") if self._has(role)}
        found.update(mean=statistics.mean, var=statistics.var)
        if self._order is not None:
            found = {role: value[self._order] for role, value in found.items()}
        return found

    def set(self, setting, values, bias):
        if self._order is not None:
            order = np.argsort(self._order)
            values = {role: value[order] for role, value in values.items()}
        for role in ("gamma", "beta"):
            if role in values:
                self._add(setting, role, values[role].reshape(
                    self.layer.param_shape()))
        # Deviations from the mean are the same without the bias as with it.
        statistics = self.layer.converted_statistics(
            values["mean"] - bias, var=values["var"], epsilon=self._epsilon,
            text=f"{self._caller}: {self.label}")
        for role, (param, value) in zip(("mean", "std"), statistics):
            setting.add(param, value, f"{self.label}: {role}")

    def optional(self):
        shape = self.layer.get_statistics().mean.shape
        return {role: neutral(shape) for role, neutral in [
            ("gamma", np.ones), ("beta", np.zeros)] if not self._has(role)}

    def in_order(self, count):
        own = [role for role in self.roles
               if role in ("mean", "var") or self._has(role)]
        if count == len(own):
            return own
        if count == len(self.roles):
            return self.roles
        # Statistics come last. The first of three may be either of two.
        return [None] * (count - 2) + ["mean", "var"]


def _absorbing(entries, pairs, outputs):
    """Find the batch norm layers that can absorb a bias for others."""
    consumers = collections.defaultdict(list)
    for layer in lasagne.layers.get_all_layers(outputs):
        for below in inputs_of(layer):
            consumers[below].append(layer)
    matched = [pair.entry for pair in pairs]
    found = {}
    for entry in matched:
        if isinstance(entry, LinearEntry) and entry.optional():
            # A module that is applied several times has one bias for all.
            applied = [entry] + [other for other in entries
                                 if other not in matched and
                                 other.params() == entry.params()]
            norms = [each.absorbing(consumers[each.layer], outputs)
                     for each in applied]
            if all(norms):
                found[entry] = sum(norms, [])
    return found


def _why_unknown(layer):
    """Say why the weights of a layer are not known to a framework."""
    base = linear_base(layer)
    if base is None or linear_of(layer) is not None:
        return ("has parameters, but its weights are not known there. Known "
                "are dense, network-in-network, convolutional and bnlasagne's "
                "batch normalization layers.")
    if getattr(layer, "convolution", None) is not None:
        return (f"does not compute what Lasagne's {base.__name__} computes, or"
                " its `convolution` is a function of your own that does so in "
                "another way. Weights for that are not known there. Build the "
                "layer with a `convolution` of Theano's or Lasagne's, or with "
                "the default.")
    return (f"does not compute what Lasagne's {base.__name__} computes, whose "
            "weights would be known there. Build the layer of that class.")
