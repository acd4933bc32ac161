"""How standard deviations and variances of others translate; NumPy only.

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
        The constant that the layer adds which they come from. `inv_std` has
        it in it already. None: these are statistics as such, of data.
    own_epsilon : float
        Added to the standard deviations of data.

    Returns
    -------
    float64 array

    Raises
    ------
    ValueError
        If not exactly one is given, `epsilon` is no number from zero on, or
        what is given is infinite, not a number, or would be divided by while
        negative.
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
        _check("std", std, (std >= 0) | (std + added > 0), "zero or more")
        return std + added
    added = 0 if epsilon is None else epsilon
    _check("var", var, (var >= 0) | (var + added > 0), "zero or more")
    root = np.sqrt(var + added)
    return root + own_epsilon if epsilon is None else root


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
        Of the type of `std`.

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
