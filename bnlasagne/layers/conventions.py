"""Translate standard deviations and variances between conventions.

A batch normalization layer divides by something that is stored as a standard
deviation, a variance or an inverse standard deviation, with a small constant
epsilon added here or there. What counts for its deterministic output is the
divisor:

====================  ===============================  ====================
stored                divisor                          stored so by
====================  ===============================  ====================
standard deviation    ``std + epsilon``                this package
variance              ``sqrt(var + epsilon)``          PyTorch, Keras, ONNX
inverse of a divisor  ``1 / inv_std``                  Lasagne's later layer
====================  ===============================  ====================
"""

import collections
import numbers

import numpy as np

__all__ = [
    "Statistics",
    "divisor_of",
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
    """What a layer divides by.

    Parameters
    ----------
    std, var, inv_std : float64 arrays or None
        One of them is given.
    epsilon : number or None
        Epsilon of the layer that the statistics come from. Not used with
        `inv_std`, which includes it. None: these are statistics of data.
    own_epsilon : float
        Added to the standard deviations of data.

    Returns
    -------
    float64 array

    Raises
    ------
    ValueError
        If not exactly one is given, `epsilon` is no number from zero on, or
        what is given is infinite, not a number, or not large enough for a
        positive divisor. Data may have a standard deviation of zero.
    """
    given = [name for name, value in [
        ("std", std), ("var", var), ("inv_std", inv_std)] if value is not None]
    if len(given) != 1:
        raise ValueError("expected one of std, var and inv_std, got %s"
                         % (" and ".join(given) or "none of them"))
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


def _check_sum(name, value, epsilon, added):
    fits = value + added > 0
    if epsilon is None:
        _check(name, value, fits | (value == 0), "zero or more")
    else:
        _check(name, value, fits, "positive with epsilon=%s added" % epsilon)


def stored_std(divisor, own_epsilon, dtype):
    """The standard deviation that is stored for a divisor.

    Parameters
    ----------
    divisor : float64 array
    own_epsilon : float
        What is added to it by the layer.
    dtype : str
        Of what is stored.

    Returns
    -------
    float64 array

    Raises
    ------
    ValueError
        If their sum, in that type, is not the divisor to 1e-5, or to what the
        type can tell.
    """
    std = divisor - own_epsilon
    narrow = np.dtype(dtype).type
    with np.errstate(over="ignore"):
        total = (std.astype(dtype) + narrow(own_epsilon)).astype("float64")
    precision = max(1e-5, 4 * np.finfo(dtype).eps)
    fits = np.abs(total - divisor) <= precision * np.abs(divisor)
    if not np.all(fits):
        raise ValueError(
            "deviations would be divided by %s, which epsilon=%s plus a "
            "number of type %s cannot give precisely. Build the layer with "
            "another epsilon" % (divisor[~fits][0], own_epsilon, dtype))
    return std


def statistics_of(mean, std, own_epsilon, epsilon):
    """Statistics of a layer in the conventions of others.

    Parameters
    ----------
    mean, std : arrays
        As they are stored.
    own_epsilon : float
        What the layer adds to `std`.
    epsilon : number or None
        What the layer adds that they go to. None: they are to be statistics
        as such, of data.

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


def _check_epsilon(epsilon):
    if epsilon is not None and not (isinstance(epsilon, numbers.Real) and
                                    0 <= epsilon < np.inf):
        raise ValueError("epsilon must be a finite number from 0 on, or None, "
                         "got %r" % (epsilon,))


def _check(name, value, fits, expected):
    fits = fits & np.isfinite(value)
    if not np.all(fits):
        raise ValueError("%s must be finite and %s, got %s"
                         % (name, expected, np.unique(value[~fits])))
