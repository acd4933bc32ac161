"""Describe the weights of Lasagne's linear layers.

Each of these layers computes ``nonlinearity(W * x + b)`` for some product that
is linear in `W` and in `x`. They differ in where `W` has its axes, and in
whether a constant input gives a constant output.
"""

import lasagne
import numpy as np

from .outputs import computes_like, overrides

__all__ = [
    "Dense", "Linear", "LocallyConnected", "NetworkInNetwork",
    "TransposedConvolution", "is_linear", "linear_base", "linear_of",
]


class Linear:
    """Describe the linear part of a layer, and change its weights.

    `channel_axis` is the axis of the layer's output that has one index per
    unit or filter. `outputs` and `inputs` are the axes of `W` with the
    output's and the input's channels, and `taps` those with the positions in a
    filter.
    """

    channel_axis = 1
    outputs, inputs = 0, 1

    def __init__(self, layer):
        self.layer = layer

    @property
    def taps(self):
        return tuple(range(2, 2 + len(self.layer.filter_size)))

    def flips(self):
        """Tell whether filters are flipped, as no other framework does."""
        # Lasagne 0.1 has no such option, and always flips them.
        return bool(getattr(self.layer, "flip_filters", True))

    def outputs_share(self):
        """List the axes of the output, from 1 on, that share weights."""
        return [axis for axis in range(1, len(self.layer.output_shape))
                if axis != self.channel_axis]

    def of_output(self, value):
        """Reduce an array that broadcasts with the output to a bias."""
        return value[0]

    def scale_outputs(self, W, scale):
        """Multiply the output by an array from :meth:`of_output`."""
        return W * _along(scale, self.outputs, W.ndim)

    def why_not_inputs(self):
        """Say why inputs cannot be scaled and shifted; None if they can."""
        pad = getattr(self.layer, "pad", ())
        if pad in ("full", "same"):
            pad = [size - 1 for size in self.layer.filter_size]
        if any(pad):
            return "pads its input with zeros, which would not be shifted"
        return None

    def inputs_share(self):
        """List the axes of the input, from 1 on, that share weights."""
        return range(2, len(self.layer.input_shape))

    def scale_inputs(self, W, scale):
        """Multiply the input by an array that broadcasts with it."""
        return W * self._of_inputs(scale, W)

    def shift(self, W, shift):
        """Compute what a shift of the input adds to the bias."""
        product = W * self._of_inputs(shift, W)
        return product.sum(tuple({self.inputs, *self.taps} - {self.outputs}))

    def _of_inputs(self, value, W):
        """Align one number per channel of the input with the weights."""
        return _along(value, self.inputs, W.ndim)


class Convolution(Linear):
    """Describe a convolution of one or more groups of channels."""

    def _of_inputs(self, value, W):
        channels = self.layer.input_shape[1]
        value = np.broadcast_to(value.reshape(-1), channels)
        # Each filter sees the channels of its group only.
        groups = getattr(self.layer, "num_groups", 1)
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
    def channel_axis(self):
        return len(self.layer.output_shape) - 1

    def of_output(self, value):
        return value.reshape(-1)

    def inputs_share(self):
        return range(1, self._leading())

    def features(self):
        """Return the shape of the input's axes that are flattened to one."""
        return self.layer.input_shape[self._leading():]

    def _leading(self):
        leading = getattr(self.layer, "num_leading_axes", 1)
        return leading % len(self.layer.input_shape)

    def _of_inputs(self, value, W):
        # The axes before are of size 1.
        value = value.reshape(value.shape[self._leading() - 1:])
        return np.broadcast_to(value, self.features()).reshape(-1, 1)


class NetworkInNetwork(Linear):
    outputs, inputs = 1, 0
    taps = ()


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
    """Describe the linear part of a layer; return None if none is known.

    It is not known if the layer computes something else than the class of
    Lasagne that it belongs to.
    """
    base = linear_base(layer)
    # A property may be set, and then have another value.
    if base is None or any(
            isinstance(getattr(type(layer), name, None), property)
            for name in ("W", "b", "nonlinearity")) or overrides(
                layer, base, "get_output_shape_for", "get_W_shape",
                "get_params") or not computes_like(layer, base):
        return None
    linear = _KINDS[base.__name__](layer)
    # A dense layer may take all its input for one example.
    return linear if linear.channel_axis else None


def linear_base(layer):
    """Return the linear class of Lasagne that a layer extends, or None."""
    return next((base for base in type(layer).__mro__ if base.__name__ in
                 _KINDS and base.__module__.startswith("lasagne.")), None)


def is_linear(layer):
    """Tell whether a layer has no nonlinearity."""
    return getattr(layer, "nonlinearity", None) in (
        None, lasagne.nonlinearities.identity)


def _along(value, axis, ndim):
    """Lay all values of an array along one axis of several."""
    shape = [1] * ndim
    shape[axis] = -1
    return value.reshape(shape)
