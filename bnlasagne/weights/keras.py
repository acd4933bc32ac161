"""Take weights to and from Keras.

Keras need not be installed: weights come and go as NumPy arrays.
"""

import collections
import collections.abc
import re

import lasagne
import numpy as np

from ..layers.layer import BatchNormLayer
from ..networks.linear import Dense, linear_of
from ..networks.walk import inputs_of
from .table import Framework

__all__ = ["get_keras_weights", "set_keras_weights"]


def get_keras_weights(network, like=None, epsilon=1e-3, data_format=None):
    """Get the weights of a network as Keras' layers store them.

    Parameters
    ----------
    network : Layer or list of Layer
        As in :func:`get_torch_state_dict`.
    like : dict or None
        The weights of the model that these are for, as in
        :func:`set_keras_weights`. They give names and types, and tell where a
        bias of zeros or a scale of ones is wanted. By default, names are those
        of the layers, and types those of the parameters.
    epsilon : number
        The `epsilon` of the model's batch normalization layers.
    data_format : None, 'channels_last' or 'channels_first'
        The axis of channels in the model's images. By default, the last one
        where convolution, pooling or batch normalization tells of images.

    Returns
    -------
    OrderedDict of str to array
        By names such as ``'conv/kernel'``, or those of `like`.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers.
    ValueError
        If a layer with parameters is of another type or, without `like`, has
        no name; if `like` does not fit: the message then lists both sides; or
        if the order of features cannot be told.

    See also
    --------
    set_keras_weights : The other way, with more on names and on features.
    """
    keras = _Keras("get_keras_weights()", epsilon, data_format)
    return keras.get(network, like)


def set_keras_weights(network, weights, epsilon=1e-3, data_format=None):
    """Load the weights of a Keras model.

    Parameters
    ----------
    network : Layer or list of Layer
        As in :func:`set_torch_state_dict`.
    weights : dict of str to array, dict or list
        Such as ``{w.path: w.numpy() for w in model.weights}``, with names like
        ``'model/conv/kernel'``, or with ``w.name`` in Keras 2, like
        ``'conv/kernel:0'``. The weights of a layer may also come as a dict, or
        as a list: ``{layer.name: layer.get_weights() for layer in
        model.layers}``. Dicts may hold dicts, as the groups of HDF5 files do.
    epsilon, data_format
        As in :func:`get_keras_weights`.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers, or `weights` no dict of
        arrays of numbers.
    ValueError
        If a layer with parameters is of another type; if names and shapes do
        not fit: the message lists both sides; if names, the order of layers or
        that of features are ambiguous; or if weights are NaN, or too large for
        the type of the parameter. Nothing is changed then.

    Notes
    -----
    Layers find their weights as in :func:`set_torch_state_dict`, with slashes
    for dots. Training does not continue identically, as there.

    Build layers without what a model lacks: ``gamma=None`` for
    ``scale=False``, ``beta=None`` for ``center=False``, and ``b=None`` for
    ``use_bias=False``.

    A model with channels last that flattens images has the features in another
    order than Lasagne, where channels come first. The weights of dense layers,
    and the parameters of batch normalization layers, are put in order if the
    layer follows a flattening directly, or through dropout, nonlinearities,
    batch normalization, sums or concatenation. Other ways from images to
    features or back are refused. If no layer tells whether the network
    flattens images, `data_format` must.
    """
    _Keras("set_keras_weights()", epsilon, data_format).set(network, weights)


class _Keras(Framework):
    """Describe Keras: cross-correlations, channels last or first."""

    what = "dict of weights"
    how = "{w.path: w.numpy() for w in model.weights}"
    separator = "/"
    names = {"W": "kernel", "b": "bias", "gamma": "gamma", "beta": "beta",
             "mean": "moving_mean", "var": "moving_variance"}
    without = {"b": "use_bias=False", "gamma": "scale=False",
               "beta": "center=False"}
    no_statistics = ("It is another kind of normalization than "
                     "BatchNormalization.")

    def __init__(self, caller, epsilon, data_format):
        super().__init__(caller, epsilon)
        if data_format not in (None, "channels_last", "channels_first"):
            raise ValueError(
                f"{caller}: data_format must be None, 'channels_last' or "
                f"'channels_first', got {data_format!r}.")
        self._data_format = data_format

    def axes(self, channels, taps):
        return taps + channels[::-1]

    def split(self, key):
        # Keras 2 numbers its variables, as in conv/kernel:0.
        return super().split(key.partition(":")[0])

    def flat(self, weights):
        found = {}
        _mapped(found.setdefault, weights)
        return found

    def restored(self, found, like):
        return _mapped(lambda path, _: found[path], like)

    def feature_order(self, layer):
        # Lasagne flattens images channel by channel. Where channels are last,
        # they are flattened pixel by pixel.
        if self._data_format == "channels_first":
            return None
        linear, below = linear_of(layer), inputs_of(layer)
        if isinstance(linear, Dense) and len(linear.features()) > 1:
            # With several leading axes, axis 1 is not among the features.
            if len(linear.features()) != len(layer.input_shape) - 1:
                return None
            return self._of_flattened(layer, linear.features())
        return self._of_output(below[0]) if len(below) == 1 else None

    def _of_output(self, layer):
        """Find the order of the features that a layer puts out."""
        below = inputs_of(layer)
        if len(layer.output_shape) != 2 or not below or \
                linear_of(layer) is not None:
            return None
        if len(below) > 1:
            return self._of_merged(layer, below)
        shape = below[0].output_shape
        if isinstance(layer, (lasagne.layers.FlattenLayer,
                              lasagne.layers.ReshapeLayer)) and \
                len(shape) > 2:
            if None not in shape[1:] and \
                    np.prod(shape[1:]) == layer.output_shape[1]:
                return self._of_flattened(layer, shape[1:])
            # Rows of each example: steps of a sequence, not of an image.
            if layer.output_shape[1] != shape[-1] and None in shape[1:] or \
                    shape[1] != 1 and _axis_1_below(layer) == "channels":
                raise self._unknown(layer)
            return None
        order = self._of_output(below[0])
        if order is None or layer.output_shape == shape:
            return order
        raise self._unknown(layer)

    def _of_flattened(self, layer, shape):
        """Find the order of the features that a layer flattens to one axis."""
        order = _flat_order(shape)
        axis_1 = None if order is None else _axis_1_below(layer)
        if axis_1 == "moved":
            raise self._unknown(layer)
        if order is not None and axis_1 is None and self._data_format is None:
            raise ValueError(
                f"{self.caller}: {self.labels[layer]} flattens {shape}, of "
                "which no convolution or pooling tells whether these are "
                "images. Pass data_format='channels_last' if the model has the"
                " first of these axes last, and 'channels_first' if it takes "
                "the same arrays.")
        return None if axis_1 == "features" else order

    def _of_merged(self, layer, below):
        """Find the order of features that come from several layers."""
        orders = [self._of_output(each) for each in below]
        if all(order is None for order in orders):
            return None
        sizes = [each.output_shape[1] for each in below]
        orders = [np.arange(size) if order is None else order
                  for order, size in zip(orders, sizes)]
        if isinstance(layer, lasagne.layers.ConcatLayer) and \
                layer.axis == 1 and layer.output_shape[1] == sum(sizes):
            return np.concatenate([order + start for order, start in zip(
                orders, np.cumsum([0] + sizes))])
        if isinstance(layer, lasagne.layers.ElemwiseMergeLayer) and all(
                np.array_equal(order, orders[0]) for order in orders):
            return orders[0]
        raise self._unknown(layer)

    def _unknown(self, layer):
        return ValueError(
            f"{self.caller}: the order of features with channels last cannot "
            f"be told at {self.labels[layer]}. Have a dense layer follow the "
            "flattening directly, or build the model with data_format="
            "'channels_first'.")

    def check(self, layers):
        # Where channels are last, features computed by weights make other
        # images.
        if self._data_format == "channels_first":
            return
        for layer in layers:
            for reshape in _reshapes_below(layer) \
                    if _axis_1(layer) == "channels" else ():
                raise ValueError(
                    f"{self.caller}: {self.labels[reshape]} makes images of "
                    "features, whose order is another with channels last. "
                    "Build the model with data_format='channels_first'.")


def _mapped(function, weights, path=None):
    """Replace weights in dicts and lists by function(name, weights)."""
    def inner(key, value):
        return _mapped(function, value,
                       key if path is None else f"{path}/{key}")

    if isinstance(weights, collections.abc.Mapping):
        return collections.OrderedDict(
            (key, inner(key, value)) for key, value in weights.items())
    if isinstance(weights, (list, tuple)):
        # Of get_weights(): by their numbers.
        return [inner(number, value) for number, value in enumerate(weights)]
    return function(path, weights)


def _flat_order(shape):
    """Number features by positions, then channels; None if in order."""
    numbers = np.arange(np.prod(shape))
    order = np.moveaxis(numbers.reshape(shape), 0, -1).ravel()
    return None if np.array_equal(order, numbers) else order


# In the input of these layers, axis 1 has channels.
_OF_IMAGES = tuple(
    kind for name, kind in vars(lasagne.layers).items()
    if re.fullmatch(r"(Max)?Pool\dDLayer|Upscale\dDLayer", name))


def _axis_1(layer):
    """Tell whether axis 1 of a layer's output has channels, or what else."""
    ndim = len(layer.output_shape)
    linear = linear_of(layer)
    if linear is not None:
        return "channels" if linear.channel_axis == 1 and ndim > 2 \
            else "features"
    if isinstance(layer, _OF_IMAGES):
        return "channels"
    if isinstance(layer, BatchNormLayer) and ndim > 2:
        own = set(range(ndim)) - set(layer.axes)
        return "channels" if own == {1} else \
            "features" if own == {ndim - 1} else None
    if ndim < 3 or isinstance(layer, lasagne.layers.DimshuffleLayer) or (
            isinstance(layer, lasagne.layers.ReshapeLayer) and
            layer.input_shape[:2] != layer.output_shape[:2]):
        return "moved"
    return None


def _axis_1_below(layer):
    """Tell what axis 1 is by the layers below one; the nearest knows best."""
    found = (_axis_1(below) or _axis_1_below(below)
             for below in inputs_of(layer))
    return next(filter(None, found), None)


def _reshapes_below(layer):
    """Yield the layers below that reshape features computed by weights."""
    for below in inputs_of(layer):
        if isinstance(below, lasagne.layers.ReshapeLayer):
            shape = below.output_shape[1:]
            if len(below.input_shape) == 2 and any(
                    each.params for each
                    in lasagne.layers.get_all_layers(below)) and (
                        None in shape or _flat_order(shape) is not None):
                yield below
        elif linear_of(below) is None:
            yield from _reshapes_below(below)
