"""How PyTorch and Keras name weights, and order their axes and features."""

import collections
import collections.abc

import lasagne
import numpy as np

from .layer import label
from .linear import Dense, NetworkInNetwork, TransposedConvolution, linear_of
from .networks import inputs_of

__all__ = [
    "Keras",
    "Torch",
]


class Framework(object):
    """What the frameworks have in common.

    Attributes
    ----------
    what : str
        What it calls a dict of weights.
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

    def short(self, layer):
        """The name of a layer, without those of models around it."""
        return layer

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
    data_format : 'channels_last' or 'channels_first'

    Raises
    ------
    ValueError
        If it is something else.
    """

    what = "dict of weights"
    separator = "/"
    names = {"W": "kernel", "b": "bias", "gamma": "gamma", "beta": "beta",
             "mean": "moving_mean", "var": "moving_variance"}

    def __init__(self, data_format):
        if data_format not in ("channels_last", "channels_first"):
            raise ValueError("data_format must be 'channels_last' or "
                             "'channels_first', got %r." % (data_format,))
        self._channels_last = data_format == "channels_last"

    def split(self, key):
        # Keras 2 numbers its variables, as in conv/kernel:0.
        return super(Keras, self).split(key.partition(":")[0])

    def short(self, layer):
        return layer.rpartition("/")[2]

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
        if not self._channels_last:
            return None
        if isinstance(linear_of(layer), Dense):
            shape = linear_of(layer).features()
            if len(shape) > 1:
                return _channels_last(shape)
        return _order_of(inputs_of(layer))

    def check(self, layers):
        for layer in layers if self._channels_last else ():
            if isinstance(layer, lasagne.layers.DimshuffleLayer) and \
                    len(layer.output_shape) > 2:
                raise ValueError(_UNKNOWN % label(layer))
            if isinstance(layer, lasagne.layers.ReshapeLayer) and \
                    len(layer.input_shape) == 2 and \
                    len(layer.output_shape) > 3:
                raise ValueError(
                    "%s makes images of features, whose order is another with "
                    "channels last. Build the model with data_format="
                    "'channels_first'." % label(layer))


# The order of features that were images. Lasagne's layers have it from
# channels, rows and columns; Keras' from rows, columns and channels.

def _channels_last(shape):
    return np.moveaxis(np.arange(np.prod(shape)).reshape(shape), 0,
                       -1).ravel()


def _order_of(inputs):
    """Of the features that a layer with one input takes."""
    return _output_order(inputs[0]) if inputs else None


def _output_order(layer):
    """Of the features that a layer puts out, None where it is the same."""
    shape = layer.output_shape
    below = inputs_of(layer)
    if len(shape) != 2 or not below or linear_of(layer) is not None:
        return None
    if len(below) == 1:
        return _order_above(layer, below[0])
    return _order_of_merged(layer, [_output_order(each) for each in below])


def _order_above(layer, below):
    if isinstance(layer, (lasagne.layers.FlattenLayer,
                          lasagne.layers.ReshapeLayer)):
        shape = below.output_shape
        if len(shape) > 2 and np.prod(shape[1:]) == layer.output_shape[1]:
            return _channels_last(shape[1:])
    order = _output_order(below)
    if order is None or layer.output_shape == below.output_shape:
        return order
    raise ValueError(_UNKNOWN % label(layer))


def _order_of_merged(layer, orders):
    if all(order is None for order in orders):
        return None
    sizes = [shape[1] for shape in layer.input_shapes]
    orders = [np.arange(size) if order is None else order
              for order, size in zip(orders, sizes)]
    if isinstance(layer, lasagne.layers.ConcatLayer) and layer.axis == 1 and \
            layer.output_shape[1] == sum(sizes):
        starts = np.cumsum([0] + sizes)
        return np.concatenate([order + start for order, start
                               in zip(orders, starts)])
    if isinstance(layer, lasagne.layers.ElemwiseMergeLayer) and all(
            np.array_equal(order, orders[0]) for order in orders):
        return orders[0]
    raise ValueError(_UNKNOWN % label(layer))


_UNKNOWN = (
    "The order of features with channels last cannot be told above %s. Have a "
    "dense layer follow the flattening directly, or build the model with "
    "data_format='channels_first'.")
