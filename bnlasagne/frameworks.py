"""How PyTorch and Keras name weights, and order their axes."""

import collections
import collections.abc

import numpy as np

from .features import check_images, order_with_channels_last
from .linear import Dense, NetworkInNetwork, TransposedConvolution

__all__ = [
    "Keras",
    "Torch",
]


class Framework(object):
    """What the frameworks have in common.

    Attributes
    ----------
    what, how : str
        What it calls a dict of weights, and a sentence on how to get one.
    separator : str
        Between the name of a layer and that of its weights.
    names : dict of str to str
        Its names for `W`, `b`, `gamma`, `beta`, `mean` and `var`.
    ignored : tuple of str
        Names of what has no equivalent and does not matter.
    """

    ignored = ()

    def split(self, key):
        """The name of a layer, in full, and that of its weights."""
        layer, _, name = key.rpartition(self.separator)
        return layer, name

    def flat(self, weights):
        """Weights by their full names."""
        return weights

    def restored(self, found, like):
        """Weights by their full names, in the form of others."""
        return collections.OrderedDict((key, found[key]) for key in like)

    def axes(self, linear):
        """The axes of Lasagne's `W` in this framework's order."""
        raise NotImplementedError

    def with_taps(self, W, count):
        """Weights as filters of a single position."""
        raise NotImplementedError

    def feature_order(self, layer):
        """For each feature of a layer's input there, its number here.

        None if they are the same.
        """

    def check(self, layers):
        """Refuse layers that compute something else there."""

    def to_theirs(self, linear, W):
        """Weights for this framework, from Lasagne's."""
        order = self._row_order(linear)
        W = W if order is None else W[order]
        W = np.flip(W, linear.taps) if linear.flips() else W
        W = W.transpose(self.axes(linear))
        if isinstance(linear, NetworkInNetwork):
            W = self.with_taps(W, len(linear.layer.input_shape) - 2)
        return W

    def to_ours(self, linear, weights, shape):
        """Lasagne's weights, of the given shape, from this framework's."""
        axes = self.axes(linear)
        # Filters of a single position may come with or without its axes.
        weights = weights.reshape([shape[axis] for axis in axes])
        W = weights.transpose(np.argsort(axes))
        W = np.flip(W, linear.taps) if linear.flips() else W
        order = self._row_order(linear)
        return W if order is None else W[np.argsort(order)]

    def _row_order(self, linear):
        return self.feature_order(linear.layer) if isinstance(linear, Dense) \
            else None


class Torch(Framework):
    """PyTorch: cross-correlations, of images with channels first."""

    what = "state_dict"
    how = "Pass module.state_dict()."
    separator = "."
    names = {"W": "weight", "b": "bias", "gamma": "weight", "beta": "bias",
             "mean": "running_mean", "var": "running_var"}
    ignored = ("num_batches_tracked",)

    def axes(self, linear):
        if isinstance(linear, TransposedConvolution):
            return (linear.inputs, linear.outputs) + linear.taps
        return (linear.outputs, linear.inputs) + linear.taps

    def with_taps(self, W, count):
        return W.reshape(W.shape + (1,) * count)


class Keras(Framework):
    """Keras: cross-correlations, of images with channels last or first.

    Parameters
    ----------
    data_format : None, 'channels_last' or 'channels_first'
        None: last, for what the network tells to be images.

    Raises
    ------
    ValueError
        If it is something else.
    """

    what = "dict of weights"
    how = "Pass {w.path: w.numpy() for w in model.weights}."
    separator = "/"
    names = {"W": "kernel", "b": "bias", "gamma": "gamma", "beta": "beta",
             "mean": "moving_mean", "var": "moving_variance"}

    def __init__(self, data_format):
        if data_format not in (None, "channels_last", "channels_first"):
            raise ValueError("data_format must be None, 'channels_last' or "
                             "'channels_first', got %r." % (data_format,))
        self._data_format = data_format

    def split(self, key):
        # Keras 2 numbers its variables, as in conv/kernel:0.
        return super(Keras, self).split(key.partition(":")[0])

    def flat(self, weights):
        found = collections.OrderedDict()
        for key, value in weights.items():
            if isinstance(value, collections.abc.Mapping):
                parts = value.items()
            elif isinstance(value, (list, tuple)):
                # Of get_weights(): by their numbers.
                parts = enumerate(value)
            else:
                found[key] = value
                continue
            found.update(("%s/%s" % (key, name), part) for name, part in parts)
        return found

    def restored(self, found, like):
        restored = collections.OrderedDict()
        for key, value in like.items():
            if isinstance(value, collections.abc.Mapping):
                restored[key] = collections.OrderedDict(
                    (name, found["%s/%s" % (key, name)]) for name in value)
            elif isinstance(value, (list, tuple)):
                restored[key] = [found["%s/%d" % (key, number)]
                                 for number in range(len(value))]
            else:
                restored[key] = found[key]
        return restored

    def axes(self, linear):
        if isinstance(linear, TransposedConvolution):
            return linear.taps + (linear.outputs, linear.inputs)
        return linear.taps + (linear.inputs, linear.outputs)

    def with_taps(self, W, count):
        return W.reshape((1,) * count + W.shape)

    def feature_order(self, layer):
        if self._data_format == "channels_first":
            return None
        return order_with_channels_last(
            layer, assumed=self._data_format == "channels_last")

    def check(self, layers):
        if self._data_format != "channels_first":
            check_images(layers)
