"""Give a batch normalization layer a mask as its second input."""

import copyreg
import functools

import lasagne
import theano
import theano.tensor as T
from theano.gradient import DisconnectedType

from ..networks.labels import label

__all__ = ["aligned_mask", "check_mask", "incomings_with", "make_masked",
           "split_inputs"]


class Masked:
    """Mix in what a layer with two inputs has, the batch and its mask."""

    @property
    def input_layer(self):
        return self.input_layers[0]

    @property
    def input_shape(self):
        return self.input_shapes[0]

    def get_output_shape_for(self, input_shapes):
        return input_shapes[0]

    def __reduce_ex__(self, protocol):
        # Its class is made by make_masked(): pickles name the one before.
        _, arguments, *rest = super().__reduce_ex__(max(protocol, 2))
        return (_new, (_class_before(arguments[0]), *arguments[1:]), *rest)


def make_masked(layer):
    """Have Lasagne treat a layer as one with several inputs.

    Lasagne passes the outputs of several layers to a `MergeLayer` only. Layers
    without a mask are not of that class, as they have always been.
    """
    layer.__class__ = _masked(type(layer))


@functools.lru_cache(maxsize=None)
def _masked(cls):
    if issubclass(cls, Masked):
        return cls
    return type(cls.__name__, (Masked, cls, lasagne.layers.MergeLayer), {
        "__module__": cls.__module__, "__doc__": cls.__doc__})


def _class_before(cls):
    return cls.__mro__[cls.__mro__.index(Masked) + 1]


def _new(cls, *arguments):
    return copyreg.__newobj__(_masked(cls), *arguments)


def incomings_with(layer, incoming, mask_input):
    """Return what a layer with a mask is stacked on."""
    if not isinstance(mask_input, (lasagne.layers.Layer, tuple)):
        raise TypeError(
            f"{type(layer).__name__}: mask_input must be a Layer instance, "
            "such as InputLayer((None, None)), or a tuple with the mask's "
            f"shape, got {mask_input!r}.")
    return [incoming, mask_input]


def check_mask(layer):
    """Raise an error if the shape of a layer's mask does not fit its input."""
    shape, mask, axes = layer.input_shape, layer.input_shapes[1], layer.axes
    if _fits(mask, shape, axes):
        return
    short = tuple(shape[axis] for axis in axes)
    fitting = [short[:n] for n in range(1, 1 + min(len(axes), len(shape) - 1))]
    fitting.append(tuple(size if axis in axes else 1
                         for axis, size in enumerate(shape)))
    leading, hint = tuple(range(len(mask))), ""
    if len(mask) < len(shape) and _fits(mask, shape, leading):
        hint = f" To normalize over the mask's axes, pass axes={leading}."
    raise ValueError(
        f"{label(layer)}: mask_input has shape {mask}, which does not go with "
        f"the input's shape {shape}, normalized over axes {axes}. It must "
        f"have shape {' or '.join(map(str, fitting))}, where any size may be "
        f"1 if the mask does not vary along that axis.{hint}")


def _fits(mask, shape, axes):
    along = _axes_of_mask(len(mask), len(shape), axes)
    return along is not None and len(mask) > 0 and all(
        size == 1 or axis in axes and (
            size is None or shape[axis] in (None, size))
        for size, axis in zip(mask, along))


def _axes_of_mask(mask_ndim, ndim, axes):
    """List the axes of the input that the axes of a mask go with, or None."""
    if mask_ndim == ndim:
        return list(range(ndim))
    return list(axes[:mask_ndim]) if mask_ndim <= len(axes) else None


def split_inputs(layer, input):
    """Return the input of a layer, and its mask if it has one."""
    if not isinstance(layer, Masked):
        return input, None
    if not isinstance(input, (list, tuple)) or len(input) != 2 or (
            input[1] is None):
        raise ValueError(
            f"{label(layer)} has a mask: its input must be a list of two "
            f"variables, the batch and the mask, got {input!r}.")
    return input


def aligned_mask(layer, x, mask):
    """Give a mask the axes of the layer's input, `x`; None stays None."""
    if mask is None:
        return None
    mask, shape = T.as_tensor_variable(mask), layer.input_shapes[1]
    if mask.ndim != len(shape):
        raise ValueError(
            f"{label(layer)} expects a mask with {len(shape)} dimensions, "
            f"like the shape {shape} of its mask_input, but got one with "
            f"{mask.ndim}.")
    along = _axes_of_mask(mask.ndim, x.ndim, layer.axes)
    sizes = [None if size == 1 or broadcastable else axis
             for size, broadcastable, axis
             in zip(shape, mask.broadcastable, along)]
    mask = _CheckedMask(label(layer), sizes, layer.axes)(mask, x.shape)
    return T.patternbroadcast(mask, [size is None for size in sizes]) \
        .dimshuffle([along.index(axis) if axis in along else "x"
                     for axis in range(x.ndim)])


class _CheckedMask(theano.Op):
    """Return a mask whose shape fits that of the batch.

    `sizes` has the axis of the batch for each axis of the mask; None where the
    mask is of size 1. Theano's own errors would not name the layer.
    """

    __props__ = ("label", "sizes", "axes")
    # No C code, for it would be compiled for each layer.
    view_map = {0: [0]}

    def __init__(self, label, sizes, axes):
        self.label, self.sizes, self.axes = label, tuple(sizes), tuple(axes)

    def make_node(self, mask, shape):
        return theano.Apply(self, [mask, shape], [mask.type()])

    def perform(self, node, inputs, output_storage):
        mask, shape = inputs
        wanted = tuple(1 if axis is None else int(shape[axis])
                       for axis in self.sizes)
        if mask.shape != wanted:
            raise ValueError(
                f"{self.label}: the mask has shape {mask.shape}, which does "
                f"not go with an input of shape {tuple(map(int, shape))}, "
                f"normalized over axes {self.axes}. Pass a mask of shape "
                f"{wanted}. (Where a mask does not vary, the shape of the "
                "layer in mask_input may have 1.)")
        output_storage[0][0] = mask

    def do_constant_folding(self, node):
        # Theano would log the error, and go on.
        return False

    def infer_shape(self, node, shapes):
        return shapes[:1]

    def connection_pattern(self, node):
        return [[False], [False]]

    def grad(self, inputs, output_gradients):
        return [DisconnectedType()() for _ in inputs]

    def R_op(self, inputs, eval_points):
        return [None]
