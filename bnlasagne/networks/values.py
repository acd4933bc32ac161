"""Read the values of parameters, and check values that they are to have."""

import reprlib
import warnings

import numpy as np
import theano

__all__ = ["NotConstant", "as_numbers", "converted", "value_of"]


def as_numbers(name, value):
    """Return a value as an array of real numbers, or raise a TypeError.

    `name` is for messages, here and below.
    """
    try:
        with warnings.catch_warnings():
            # NumPy warns of lists of different lengths.
            warnings.simplefilter("error")
            array = _as_array(value)
    except Exception as error:
        raise TypeError(
            f"{name} must be an array of numbers: {error}") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be an array of numbers, got "
                        f"{reprlib.repr(value)}.")
    return array


def _as_array(value):
    if not callable(getattr(value, "detach", None)):
        return np.asarray(value)
    # NumPy cannot read a tensor of PyTorch with a gradient, or on a GPU.
    value = value.detach().cpu()
    try:
        return np.asarray(value)
    except TypeError:
        # NumPy has no type for its bfloat16.
        return np.asarray(value.float())


# The kinds of values that a type of each kind can hold.
_HELD = {"b": "b", "i": "iuf", "u": "iuf", "f": "iuf", "c": "iufc"}


def converted(name, value, dtype):
    """Copy a value to another type, if that type can hold it.

    Raises a ValueError if it cannot: a fraction, or a number that is not
    finite or out of range, in a type of integers; a number that becomes
    infinite in a narrower type of floats; a complex number in a type of real
    ones. Rounding is no reason.
    """
    value, dtype = np.asarray(value), np.dtype(dtype)
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    if value.dtype.kind not in _HELD[dtype.kind]:
        found = f"an array of type {value.dtype}"
    elif limits:
        found = _no_integer(value, limits)
    else:
        found = _too_large(value, dtype)
    if found is not None:
        expected = f"whole numbers from {limits.min} to {limits.max}" \
            if limits else "truth values" if dtype.kind == "b" else "numbers"
        raise ValueError(f"{name} must be an array of {expected}, which its "
                         f"type {dtype} can hold, got {found}.")
    return np.array(value, dtype=dtype)


def _no_integer(value, limits):
    """Find a number that is not whole, or beyond the limits; or None."""
    whole = np.isfinite(value) & (np.floor(value) == value)
    if not np.all(whole):
        return value[~whole][0]
    if not value.size:
        return None
    # Python compares integers of any size.
    extremes = int(np.min(value)), int(np.max(value))
    return next((number for number in extremes
                 if not limits.min <= number <= limits.max), None)


def _too_large(value, dtype):
    """Find a finite number that is infinite in a type; or None."""
    with np.errstate(over="ignore"):
        lost = np.isinf(value.astype(dtype)) & ~np.isinf(value)
    return value[lost][0] if np.any(lost) else None


class NotConstant(ValueError):
    """Say that the value of an expression differs from call to call."""


def value_of(variable, name):
    """Return a copy of the value of a number, array, variable or expression.

    Raises NotConstant if it depends on an input of the network, or on what
    functions update by themselves, such as random numbers.
    """
    if not isinstance(variable, theano.Variable):
        return np.array(variable)
    for source in theano.gof.graph.inputs([variable]):
        reason = _why_not_constant(source)
        if reason:
            raise NotConstant(
                f"{name} has no value of its own: {source} {reason}")
    if isinstance(variable, theano.compile.SharedVariable):
        return np.array(variable.get_value())
    # The function is called once, and compiles sooner without C.
    function = theano.function([], variable,
                               mode=theano.Mode("py", "fast_compile"))
    return np.array(function())


def _why_not_constant(source):
    if getattr(source, "default_update", None) is not None:
        return "is updated by each function"
    if not isinstance(source, (theano.Constant,
                               theano.compile.SharedVariable)):
        return "is an input of the network"
    return None
