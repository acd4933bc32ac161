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


def divisor_of(std, var, inv_std, epsilon, own_epsilon):
    """Compute what a layer divides by.

    Parameters
    ----------
    std, var, inv_std : float64 arrays or None
        Exactly one of them is given.
    epsilon : number or None
        Epsilon of the layer that the statistics come from. Not used with
        `inv_std`, which includes it. None: they are statistics of data.
    own_epsilon : float
        Added to the standard deviations of data.

    Returns
    -------
    float64 array

    Raises
    ------
    ValueError
        If not exactly one is given, `epsilon` is no number from zero on, or
        the values are not finite, or too small for a positive divisor. The
        standard deviation of data may be zero.
    """
    given = [name for name, value in [
        ("std", std), ("var", var), ("inv_std", inv_std)] if value is not None]
    if len(given) != 1:
        raise ValueError("expected one of std, var and inv_std, got "
                         + (" and ".join(given) or "none of them"))
    _check_epsilon(epsilon)
    if inv_std is not None:
        _check("inv_std", inv_std, inv_std > 0, "positive")
        return 1 / inv_std
    if std is not None:
        added = own_epsilon if epsilon is None else epsilon
        # Where a smaller divisor than epsilon was stored, std is negative.
        _check_sum("std", std, epsilon, added)
        return std + added
    added = 0 if epsilon is None else epsilon
    _check_sum("var", var, epsilon, added)
    root = np.sqrt(var + added)
    return root + own_epsilon if epsilon is None else root


def stored_std(divisor, own_epsilon, dtype):
    """Compute the standard deviation to store for a divisor.

    Parameters
    ----------
    divisor : float64 array
    own_epsilon : float
        Epsilon of the layer that stores it.
    dtype : str
        Type of the stored array.

    Returns
    -------
    float64 array

    Raises
    ------
    ValueError
        If the layer, which adds its epsilon in `dtype`, would not divide by
        `divisor` to a precision of 1e-5, or four roundings of that type.
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

    Parameters
    ----------
    mean, std : arrays
        The stored statistics.
    own_epsilon : float
        Epsilon of the layer that stores them.
    epsilon : number or None
        Epsilon of the layer that gets them. None: statistics of data.

    Returns
    -------
    Statistics
        Of the type of `mean`.

    Raises
    ------
    ValueError
        If `epsilon` is no number from zero on.
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


def _check_sum(name, value, epsilon, added):
    fits = value + added > 0
    if epsilon is None:
        _check(name, value, fits | (value == 0), "zero or more")
    else:
        _check(name, value, fits, f"positive with epsilon={epsilon} added")


def _check(name, value, fits, expected):
    fits = fits & np.isfinite(value)
    if not np.all(fits):
        raise ValueError(f"{name} must be finite and {expected}, got "
                         f"{np.unique(value[~fits])}")
