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
    "Statistics", "divisor_of", "errors_of", "statistics_of", "stored_std",
]

Statistics = collections.namedtuple("Statistics", "mean, std, var, inv_std")
Statistics.__doc__ = "Hold the statistics of a layer, in all conventions."


def divisor_of(name, value, epsilon, own_epsilon):
    """Compute what a layer divides by, from its 'std', 'var' or 'inv_std'.

    `epsilon` is that of the layer that the values come from. It is not used
    with `inv_std`, which includes it. If it is None, the values are statistics
    of data: `own_epsilon` is added to the standard deviations.
    """
    _check_epsilon(epsilon)
    if name == "inv_std":
        _check(name, value, value > 0, "positive")
        return 1 / value
    # A layer that divides by less than its epsilon stores a negative std.
    if epsilon is None:
        least = value + own_epsilon if name == "std" else value
        _check(name, value, (least > 0) | (value == 0), "zero or more")
        return (value if name == "std" else np.sqrt(value)) + own_epsilon
    total = value + epsilon
    _check(name, value, total > 0, f"positive with epsilon={epsilon} added")
    return total if name == "std" else np.sqrt(total)


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
    std, var = (wide, np.square(wide)) if epsilon is None else (
        divisor - epsilon, np.square(divisor) - epsilon)
    with np.errstate(divide="ignore"):
        inv_std = 1 / divisor
    return Statistics(mean, *(value.astype(mean.dtype)
                              for value in (std, var, inv_std)))


@contextlib.contextmanager
def errors_of(layer, text=None):
    """Have errors about values start with a text, by default the label."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{text or label(layer)}: {error}.") from None


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
