"""Make the parameters of a batch normalization layer."""

import numpy as np
import theano

from ..networks.labels import label
from ..networks.values import as_numbers, value_of
from .conventions import divisor_of, errors_of, stored_std

__all__ = [
    "full_name", "in_full_shape", "shape_without_axes", "shared_param",
    "std_from", "value_in",
]


def shared_param(layer, name, initial):
    """Make the shared variable of a parameter from its initial value.

    Its type does not say that sizes along the axes are 1. Otherwise, Theano
    would refuse updates and replacements that are made of plain shared
    variables, such as the state of an optimizer.
    """
    if not isinstance(initial, theano.Variable):
        return theano.shared(_initial_value(layer, name, initial),
                             full_name(layer, name))
    ndim = len(layer.input_shape)
    if initial.ndim != ndim:
        raise ValueError(
            f"{label(layer)}: {name} must have {ndim} dimensions, like the "
            f"input, but the Theano variable given has {initial.ndim}.")
    return initial


def std_from(layer, inv_std):
    """Turn the argument `inv_std` into a value for `std`."""
    if isinstance(inv_std, theano.Variable):
        return _shared_std(layer, inv_std)
    value = _initial_value(layer, "inv_std", inv_std, "float64")
    epsilon = float(value_in(layer, "epsilon"))
    with errors_of(layer):
        divisor = divisor_of("inv_std", value, None, epsilon)
        return stored_std(divisor, epsilon, theano.config.floatX)


def _shared_std(layer, inv_std):
    """Return the `std` of the layer whose `inv_std` is an expression."""
    other = getattr(inv_std.tag, "of_layer", None)
    if other is None or other.epsilon is not layer.epsilon and (
            other.epsilon != layer.epsilon):
        raise ValueError(
            f"{label(layer)}: inv_std must be {_EXPECTED_INV_STD} with the "
            f"same epsilon, got {inv_std}. To share or give a standard "
            "deviation, pass std=.")
    return other.std


# What a parameter can be made from.
_EXPECTED = "an array, a number, a callable that returns an array, or "
_EXPECTED_INV_STD = _EXPECTED + "the inv_std of another BatchNormLayer"


def _initial_value(layer, name, initial, dtype=None):
    """Return the initial value of a parameter, in its full shape."""
    value = initial(layer.param_shape()) if callable(initial) else initial
    try:
        value = as_numbers(name, value)
    except TypeError:
        expected = _EXPECTED_INV_STD if name == "inv_std" \
            else _EXPECTED + "a Theano shared variable"
        raise TypeError(f"{label(layer)}: {name} must be {expected}, got "
                        f"{initial!r}.") from None
    return in_full_shape(layer, name, value, dtype or theano.config.floatX)


def in_full_shape(layer, name, value, dtype="float64"):
    """Return numbers in the shape of the parameters, with their axes."""
    value = as_numbers(f"{label(layer)}: {name}", value).astype(dtype)
    shape, short = layer.param_shape(), shape_without_axes(layer)
    if value.shape not in (shape, short, ()):
        raise ValueError(f"{label(layer)}: {name} must have shape {shape} or "
                         f"{short}, got {value.shape}.")
    return value.reshape(shape) if value.ndim else np.full(shape, value)


def shape_without_axes(layer):
    """Return the shape of the parameters without the normalized axes."""
    return tuple(size for axis, size in enumerate(layer.param_shape())
                 if axis not in layer.axes)


def value_in(layer, name):
    """Read an attribute of a layer, which may be an expression."""
    return value_of(getattr(layer, name), f"{label(layer)}: {name}")


def full_name(layer, name):
    """Return the name of a variable of a layer."""
    return name if layer.name is None else f"{layer.name}.{name}"
