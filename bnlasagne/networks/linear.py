"""Describe the weights of Lasagne's linear layers.

Each of these layers computes ``nonlinearity(W * x + b)`` for some product that
is linear in `W` and in `x`. They differ in where `W` has its axes, and in
whether a constant input gives a constant output.
"""

import inspect
import types

import lasagne
import numpy as np
import theano
import theano.tensor as T
from theano.scan_module.scan_utils import equal_computations

from ..graphs.flags import own_expressions
from .parts import of_library

__all__ = [
    "Linear",
    "computes_like",
    "have_equal_graphs",
    "is_linear",
    "linear_base",
    "linear_of",
    "output_of",
    "overrides",
]


class Linear(object):
    """The linear part of a layer.

    Parameters
    ----------
    layer : Layer
        Of a type that :func:`linear_of` knows.

    Attributes
    ----------
    layer : Layer
    channel : int
        The axis of the layer's output that has one place per unit or filter.
    outputs, inputs : int
        The axes of `W` with the output's and the input's channels.
    taps : tuple of int
        The axes of `W` with the positions in a filter.
    """

    channel = 1
    outputs, inputs = 0, 1

    def __init__(self, layer):
        self.layer = layer

    @property
    def taps(self):
        return tuple(range(2, 2 + len(self.layer.filter_size)))

    def flips(self):
        """Whether filters are turned round: whether this is a convolution.

        Others, and other frameworks, compute a cross-correlation.
        """
        # Lasagne 0.1 has no such option, where it always does.
        return bool(getattr(self.layer, "flip_filters", True))

    def outputs_share(self):
        """Axes of the output, but the first, that have the same weights."""
        return [axis for axis in range(1, len(self.layer.output_shape))
                if axis != self.channel]

    def of_output(self, value):
        """Of an array that goes with the output, what goes with the bias."""
        return value[0]

    def scale_outputs(self, W, scale):
        """Weights for an output that is scaled.

        Parameters
        ----------
        W : array
        scale : array
            From :meth:`of_output`.
        """
        return W * _along(scale, self.outputs, W.ndim)

    def why_not_inputs(self):
        """The reason why inputs cannot be scaled and shifted, or None."""
        if any(self._padding()):
            return "pads its input with zeros, which would not be shifted"
        return None

    def inputs_share(self):
        """Axes of the input, but the first, that have the same weights."""
        return range(2, len(self.layer.input_shape))

    def scale_inputs(self, W, scale):
        """Weights for an input that was scaled.

        Parameters
        ----------
        W : array
        scale : array
            Of the shape of one example, or of size 1 along some axes.
        """
        return W * self._of_inputs(scale, W)

    def shift(self, W, shift):
        """The output for an input that is constant in each channel.

        Parameters
        ----------
        W : array
        shift : array
            As `scale`, of :meth:`scale_inputs`.

        Returns
        -------
        array
            That goes with the bias.
        """
        product = W * self._of_inputs(shift, W)
        return product.sum(tuple({self.inputs, *self.taps}))

    def _of_inputs(self, value, W):
        """One number per channel of the input, to go with the weights."""
        return _along(value, self.inputs, W.ndim)

    def _padding(self):
        pad = self.layer.pad
        if pad == "full":
            return [size - 1 for size in self.layer.filter_size]
        if pad == "same":
            return [size // 2 for size in self.layer.filter_size]
        return pad


class Convolution(Linear):
    """Convolutions, of one or more groups of channels."""

    def _groups(self):
        return getattr(self.layer, "num_groups", 1)

    def _of_inputs(self, value, W):
        channels = self.layer.input_shape[1]
        value = np.broadcast_to(value.reshape(-1), channels)
        # Each filter sees the channels of its group only.
        groups = self._groups()
        per_filter = np.repeat(value.reshape(groups, -1),
                               len(W) // groups, axis=0)
        return per_filter.reshape(per_filter.shape + (1,) * (W.ndim - 2))


class DilatedConvolution(Linear):
    outputs, inputs = 1, 0

    def flips(self):
        return False


class TransposedConvolution(Linear):
    outputs, inputs = 1, 0

    def flips(self):
        # Its option names the flip of the convolution that it transposes.
        return not self.layer.flip_filters

    def why_not_inputs(self):
        return ("has outputs that see different parts of the filters, and "
                "would not be shifted alike")


class Dense(Linear):
    outputs, inputs = 1, 0
    taps = ()

    @property
    def channel(self):
        return len(self.layer.output_shape) - 1

    def flips(self):
        return False

    def of_output(self, value):
        return value.reshape(-1)

    def why_not_inputs(self):
        return None

    def inputs_share(self):
        return range(1, self._leading())

    def features(self):
        """Shape of the input's axes that are flattened to one."""
        return self.layer.input_shape[self._leading():]

    def _leading(self):
        leading = getattr(self.layer, "num_leading_axes", 1)
        return leading % len(self.layer.input_shape)

    def _of_inputs(self, value, W):
        # The others of its axes are of size 1.
        value = value.reshape(value.shape[self._leading() - 1:])
        return np.broadcast_to(value, self.features()).reshape(-1, 1)


class NetworkInNetwork(Linear):
    outputs, inputs = 1, 0
    taps = ()

    def flips(self):
        return False

    def why_not_inputs(self):
        return None


class LocallyConnected(Linear):

    @property
    def taps(self):
        first = 1 if self.layer.channelwise else 2
        return (first, first + 1)

    @property
    def inputs(self):
        return 0 if self.layer.channelwise else 1

    def outputs_share(self):
        return []

    def scale_outputs(self, W, scale):
        scale = scale.reshape(scale.shape[:1] + (1,) * (W.ndim - 3) +
                              scale.shape[1:])
        return W * scale

    def shift(self, W, shift):
        product = W * self._of_inputs(shift, W)
        return product.sum(tuple({self.inputs, *self.taps} - {0}))


_KINDS = {
    "Conv1DLayer": Convolution,
    "Conv2DLayer": Convolution,
    "Conv3DLayer": Convolution,
    "Conv2DMMLayer": Convolution,
    "Conv2DDNNLayer": Convolution,
    "Conv3DDNNLayer": Convolution,
    "DenseLayer": Dense,
    "DilatedConv2DLayer": DilatedConvolution,
    "LocallyConnected2DLayer": LocallyConnected,
    "NINLayer": NetworkInNetwork,
    "TransposedConv2DLayer": TransposedConvolution,
    "TransposedConv3DLayer": TransposedConvolution,
}


def linear_of(layer):
    """The linear part of a layer, or None where it is none or unknown.

    Parameters
    ----------
    layer : Layer

    Returns
    -------
    Linear or None
        None, too, if the layer computes something else than the known class
        that it belongs to.
    """
    base = linear_base(layer)
    if base is None or not _is_known(layer, base):
        return None
    linear = _KINDS[base.__name__](layer)
    # A dense layer may take all its input for one example.
    return linear if linear.channel else None


def _is_known(layer, base):
    # A property may be set, and then have another value.
    plain = not any(isinstance(getattr(type(layer), name, None), property)
                    for name in ("W", "b", "nonlinearity"))
    return plain and not overrides(
        layer, base, "get_output_shape_for", "get_W_shape", "get_params"
    ) and computes_like(layer, base)


def linear_base(layer):
    """The class of Lasagne's linear layers that a layer belongs to, or None.

    It tells what the layer should compute. :func:`computes_like` tells whether
    it does.
    """
    for base in type(layer).__mro__:
        if base.__module__.startswith("lasagne.") and base.__name__ in _KINDS:
            return base
    return None


def computes_like(layer, base):
    """Whether a layer computes what one of its base classes computes.

    Compares graphs of the two deterministic outputs. A subclass may override
    methods, if that makes no difference for testing.

    Parameters
    ----------
    layer : Layer
    base : type
        A class of Lasagne or of this package.

    Returns
    -------
    bool
        False, too, if the output cannot be built.
    """
    if not overrides(layer, base, *dir(base)) and _knows_convolution(layer):
        return True
    return have_equal_graphs(layer, _plain(layer, base))


def have_equal_graphs(*layers):
    """Whether two layers compute the same for testing.

    Returns
    -------
    bool
        False, too, if an output cannot be built.
    """
    # Each layer is to have the same input.
    x = _input_of(layers[0])
    # Whatever a method of the user's raises, it is not what is known.
    try:
        return equal_computations(*([output_of(layer, x)]
                                    for layer in layers))
    except Exception:
        return False


def output_of(layer, x=None, deterministic=True):
    """The output of a layer for an input, by default of one of its own."""
    # The input has no test value.
    with own_expressions():
        return T.as_tensor_variable(layer.get_output_for(
            _input_of(layer) if x is None else x,
            deterministic=deterministic))


def _input_of(layer):
    return T.TensorType(theano.config.floatX,
                        (False,) * len(layer.input_shape))()


def _plain(layer, base):
    """A layer of a base class, with the attributes of another layer."""
    new = object.__new__(base)
    attributes = dict(vars(layer))
    for name in dir(type(layer)):
        # An attribute may be computed, such as weights by a property.
        if isinstance(getattr(type(layer), name), property) and \
                not hasattr(base, name):
            attributes[name] = getattr(layer, name)
    vars(new).update((name, value) for name, value in attributes.items()
                     if not _is_method(base, name))
    if not _knows_convolution(layer):
        new.convolution = inspect.signature(
            base.__init__).parameters["convolution"].default
    return new


def _knows_convolution(layer):
    """Whether a layer convolves by a function of Theano's or Lasagne's."""
    function = getattr(layer, "convolution", None)
    return function is None or of_library(function)


def overrides(layer, base, *methods):
    """Whether a layer has other methods than one of its base classes.

    Methods of its own, set as attributes of the layer, count as well.
    """
    return any(_is_method(base, name) and (
        name in vars(layer) or inspect.getattr_static(type(layer), name)
        is not inspect.getattr_static(base, name)) for name in methods)


def _is_method(base, name):
    # Not those that are values: a class may have defaults for attributes.
    return not name.startswith("__") and isinstance(
        inspect.getattr_static(base, name, None),
        (types.FunctionType, classmethod, property))


def is_linear(layer):
    """Whether nothing is applied to a layer's output."""
    return getattr(layer, "nonlinearity", None) in (
        None, lasagne.nonlinearities.identity)


def _along(value, axis, ndim):
    """All that an array has, along one axis of several."""
    shape = [1] * ndim
    shape[axis] = -1
    return value.reshape(shape)
