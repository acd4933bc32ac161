"""Put features that were images in order: channels first or last.

Lasagne's convolutional layers have channels second, so that images are
flattened channel by channel. Where channels are last, they are flattened pixel
by pixel.
"""

import lasagne
import numpy as np

from ..layers.layer import BatchNormLayer
from ..networks.labels import label
from ..networks.linear import Dense, linear_of
from ..networks.walk import inputs_of

__all__ = [
    "check_images",
    "order_with_channels_last",
]

# These tell that axis 1 has channels, whatever it is that they are applied to.
_OF_IMAGES = tuple(
    getattr(lasagne.layers, name) for name in (
        "MaxPool1DLayer", "MaxPool2DLayer", "MaxPool3DLayer", "Pool1DLayer",
        "Pool2DLayer", "Pool3DLayer", "Upscale1DLayer", "Upscale2DLayer",
        "Upscale3DLayer")
    if hasattr(lasagne.layers, name))


def order_with_channels_last(layer, assumed):
    """The order that a layer's input features have with channels last.

    Parameters
    ----------
    layer : Layer
    assumed : bool
        Whether axis 1 has channels where the network does not tell: where
        neither convolution nor pooling comes before the flattening.

    Returns
    -------
    array of int or None
        For each feature there, its number here. None if they are the same.

    Raises
    ------
    ValueError
        If the network does not tell.
    """
    order = _Order(assumed)
    linear = linear_of(layer)
    below = inputs_of(layer)
    if isinstance(linear, Dense) and len(linear.features()) > 1:
        # With more than one leading axis, axis 1 is not among the features.
        return order.of_flattened(layer, layer.input_shape[1:]) \
            if len(linear.features()) == len(layer.input_shape) - 1 else None
    return order.of_output(below[0]) if len(below) == 1 else None


def check_images(layers):
    """Refuse networks that make images of features computed by weights.

    Raises
    ------
    ValueError
        Where channels last would make other images of them.
    """
    for layer in layers:
        if _axis_1(layer) == "channels":
            for reshape in _reshapes_below(layer):
                raise ValueError(
                    "%s makes images of features, whose order is another with "
                    "channels last. Build the model with data_format="
                    "'channels_first'." % label(reshape))


def _reshapes_below(layer):
    """What gives axes to features that a layer takes for images."""
    for below in inputs_of(layer):
        if isinstance(below, lasagne.layers.ReshapeLayer):
            if len(below.input_shape) == 2 and _has_weights(below) and \
                    _flat_order(below.output_shape[1:]) is not None:
                yield below
        elif linear_of(below) is None:
            yield from _reshapes_below(below)


def _has_weights(layer):
    return any(below.params or _has_weights(below)
               for below in inputs_of(layer))


def _flat_order(shape):
    """Of features by channels and positions; None where it is the same."""
    if None in shape:
        return None
    numbers = np.arange(np.prod(shape))
    order = np.moveaxis(numbers.reshape(shape), 0, -1).ravel()
    return None if np.array_equal(order, numbers) else order


def _axis_1(layer):
    """What a layer tells of its output's axis 1, or None.

    Returns
    -------
    'channels', 'others', 'moved' or None
    """
    ndim = len(layer.output_shape)
    linear = linear_of(layer)
    if linear is not None:
        return "channels" if linear.channel == 1 and ndim > 2 else "others"
    if isinstance(layer, _OF_IMAGES):
        return "channels"
    if isinstance(layer, BatchNormLayer) and ndim > 2:
        own = set(range(ndim)) - set(layer.axes)
        return {1: "channels", ndim - 1: "others"}.get(
            own.pop() if len(own) == 1 else None)
    keeps = ndim > 2 and not isinstance(
        layer, lasagne.layers.DimshuffleLayer) and not (
            isinstance(layer, lasagne.layers.ReshapeLayer) and
            layer.input_shape[:2] != layer.output_shape[:2])
    return None if keeps else "moved"


class _Order(object):
    """Follows features back to where they were flattened."""

    def __init__(self, assumed):
        self._assumed = assumed

    def of_output(self, layer):
        """Of the features that a layer puts out."""
        below = inputs_of(layer)
        if len(layer.output_shape) != 2 or not below or \
                linear_of(layer) is not None:
            return None
        if len(below) > 1:
            return self._of_merged(layer, below)
        shape = below[0].output_shape
        if isinstance(layer, (lasagne.layers.FlattenLayer,
                              lasagne.layers.ReshapeLayer)) and \
                len(shape) > 2 and \
                np.prod(shape[1:]) == layer.output_shape[1]:
            return self.of_flattened(layer, shape[1:])
        order = self.of_output(below[0])
        if order is None or layer.output_shape == shape:
            return order
        raise ValueError(_UNKNOWN % label(layer))

    def of_flattened(self, layer, shape):
        """Of the features that a layer flattens to one axis."""
        order = _flat_order(shape)
        if order is None:
            return None
        found = self._find(layer)
        if found == "moved":
            raise ValueError(_UNKNOWN % label(layer))
        if found is None and not self._assumed:
            raise ValueError(_UNTOLD % (label(layer), shape))
        return None if found == "others" else order

    def _find(self, layer):
        """What the layers below one tell of axis 1."""
        for below in inputs_of(layer):
            found = _axis_1(below) or self._find(below)
            if found:
                return found
        return None

    def _of_merged(self, layer, below):
        orders = [self.of_output(each) for each in below]
        if all(order is None for order in orders):
            return None
        sizes = [shape[1] for shape in layer.input_shapes]
        orders = [np.arange(size) if order is None else order
                  for order, size in zip(orders, sizes)]
        if isinstance(layer, lasagne.layers.ConcatLayer) and \
                layer.axis == 1 and layer.output_shape[1] == sum(sizes):
            starts = np.cumsum([0] + sizes)
            return np.concatenate([order + start for order, start
                                   in zip(orders, starts)])
        if isinstance(layer, lasagne.layers.ElemwiseMergeLayer) and all(
                np.array_equal(order, orders[0]) for order in orders):
            return orders[0]
        raise ValueError(_UNKNOWN % label(layer))


_UNKNOWN = (
    "The order of features with channels last cannot be told at %s. Have a "
    "dense layer follow the flattening directly, or build the model with "
    "data_format='channels_first'.")
_UNTOLD = (
    "%s flattens %s, of which no convolution or pooling tells whether these "
    "are images. Pass data_format='channels_last' if the model has the first "
    "of these axes last, and 'channels_first' if it takes the same arrays.")
