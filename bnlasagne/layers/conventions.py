"""Translate standard deviations and variances between conventions.

A layer stores a standard deviation, a variance or an inverse standard
deviation, and adds a small constant epsilon to it, or has added it before.
Its deterministic output depends on the divisor only:

====================  ===============================  ====================
stored                divisor                          stored so by
====================  ===============================  ====================
standard deviation    ``std + epsilon``                this package
variance              ``sqrt(var + epsilon)``          PyTorch, Keras, ONNX
inverse of a divisor  ``1 / inv_std``                  Lasagne's later layer
====================  ===============================  ====================

All arithmetic is done in float64.
"""

import collections
import contextlib
import numbers

import numpy as np

from ..networks.labels import label

__all__ = [
    "Statistics",
    "divisor_of",
    "errors_of",
    "statistics_of",
    "stored_std",
]

Statistics = collections.namedtuple("Statistics", "mean, std, var, inv_std")
Statistics.__doc__ = """Statistics of a layer, in all conventions.

Attributes
----------
mean, std, var, inv_std : arrays
    Means; standard deviations, variances and inverse standard deviations.
"""


def divisor_of(name, value, epsilon, own_epsilon):
    """Compute what a layer divides by.

    Parameters
    ----------
    name : 'std', 'var' or 'inv_std'
    value : float64 array
    epsilon : number or None
        Epsilon of the layer that the values come from. Not used with
        `inv_std`, which includes it. None: they are statistics of data.
    own_epsilon : float
        Added to the standard deviations of data, which may be zero.
    """
    _check_epsilon(epsilon)
    if name == "inv_std":
        _check(name, value, value > 0, "positive")
        return 1 / value
    of_data, added = epsilon is None, epsilon
    if of_data:
        added = own_epsilon if name == "std" else 0
    total = value + added
    # A layer that divides by less than its epsilon stores a negative std.
    fits, expected = total > 0, f"positive with epsilon={epsilon} added"
    if of_data:
        fits, expected = fits | (value == 0), "zero or more"
    _check(name, value, fits, expected)
    if name == "std":
        return total
    return np.sqrt(total) + (own_epsilon if of_data else 0)


def stored_std(divisor, own_epsilon, dtype):
    """Compute the standard deviation to store for a divisor.

    The layer adds its epsilon in `dtype`. The sum must be the divisor to a
    precision of 1e-5, or of four roundings of that type.
    """
    std = divisor - own_epsilon
    narrow = np.dtype(dtype).type
    with np.errstate(over="ignore"):
        total = (std.astype(dtype) + narrow(own_epsilon)).astype("float64")
    precision = max(1e-5, 4 * np.finfo(dtype).eps)
    fits = np.abs(total - divisor) <= precision * np.abs(divisor)
    if not np.all(fits):
        raise ValueError(
            f"a divisor of {divisor[~fits][0]} was given, but epsilon="
            f"{own_epsilon} plus a number of type {dtype} cannot give it "
            "precisely. Build the layer with another epsilon")
    return std


def statistics_of(mean, std, own_epsilon, epsilon):
    """Convert the stored statistics of a layer to all conventions.

    `epsilon` is that of the layer that gets them; None: they are statistics
    of data. The returned :class:`Statistics` are of the type of `mean`.
    """
    _check_epsilon(epsilon)
    wide = np.asarray(std, "float64")
    divisor = wide + own_epsilon
    if epsilon is None:
        std, var = wide, np.square(wide)
    else:
        std, var = divisor - epsilon, np.square(divisor) - epsilon
    with np.errstate(divide="ignore"):
        inv_std = 1 / divisor
    return Statistics(mean, *(value.astype(mean.dtype)
                              for value in (std, var, inv_std)))


@contextlib.contextmanager
def errors_of(layer):
    """Have errors about values name the layer."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{label(layer)}: {error}.") from None


def _check_epsilon(epsilon):
    if epsilon is not None and not (isinstance(epsilon, numbers.Real) and
                                    0 <= epsilon < np.inf):
        raise ValueError("epsilon must be a finite number from 0 on, or None, "
                         f"got {epsilon!r}")


def _check(name, value, fits, expected):
    fits = fits & np.isfinite(value)
    if not np.all(fits):
        raise ValueError(f"{name} must be finite and {expected}, got "
                         f"{np.unique(value[~fits])}")
