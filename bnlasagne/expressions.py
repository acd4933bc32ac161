"""Batch normalization as plain Theano expressions.

This is what the layer builds its output from, and the one place that a faster
way to compute it has to replace.

Throughout, the arguments other than `x` are of size 1, and broadcastable,
along the axes that are normalized over; `gamma` and `beta` may be None.
"""

import theano
import theano.tensor as T

__all__ = [
    "batch_statistics",
    "normalize",
    "normalize_batch",
    "pool",
    "safe_sqrt",
    "scale_and_shift",
    "standardization",
]


def normalize_batch(x, gamma, beta, epsilon, axes):
    """Normalize a batch by its own statistics.

    Parameters
    ----------
    x : Theano variable
        The batch, of a floating-point type.
    gamma, beta : Theano variables or None
        Scale and shift.
    epsilon : float or scalar Theano variable
        Added to the standard deviation.
    axes : tuple of int
        The axes to normalize over.

    Returns
    -------
    output : Theano variable
        Of the shape of `x`.
    mean, std : Theano variables
        The statistics of the batch; `std` is the biased standard deviation.
    """
    deviation, mean, std = standardization(x, axes)
    return scale_and_shift(deviation, std, gamma, beta, epsilon), mean, std


def normalize(x, mean, std, gamma, beta, epsilon):
    """Normalize a batch by the given statistics.

    Parameters
    ----------
    x : Theano variable
        The batch, of a floating-point type.
    mean, std, gamma, beta : Theano variables
        Statistics, scale and shift.
    epsilon : float or scalar Theano variable
        Added to the standard deviation.

    Returns
    -------
    Theano variable
        Of the shape of `x`.
    """
    return scale_and_shift(x - mean, std, gamma, beta, epsilon)


def batch_statistics(x, axes):
    """Mean and biased standard deviation of a batch.

    Parameters
    ----------
    x : Theano variable
        The batch, of a floating-point type.
    axes : tuple of int
        The axes to take them over.

    Returns
    -------
    mean, std : Theano variables
        Of the shape of `x`, but of size 1 along the axes.
    """
    return standardization(x, axes)[1:]


def pool(parts):
    """Statistics of several batches, as if they were one.

    Parameters
    ----------
    parts : list of tuple (count, mean, std) of Theano variables
        Of each batch: the number of values per channel, their mean, and their
        biased standard deviation.

    Returns
    -------
    count, mean, std : Theano variables
        Of all values. `mean` and `std` are of double precision.
    """
    count = sum(part[0] for part in parts)
    # Of a batch without values, the statistics have no meaning.
    parts = [[T.switch(T.gt(part[0], 0), T.cast(value, "float64"), 0)
              for value in part] for part in parts]
    divisor = T.maximum(T.cast(count, "float64"), 1)
    mean = sum(n * mean for n, mean, _ in parts) / divisor
    squares = sum(n * (T.sqr(std) + T.sqr(part_mean - mean))
                  for n, part_mean, std in parts)
    return count, mean, safe_sqrt(squares / divisor)


def standardization(x, axes):
    """Deviation from the mean, mean and standard deviation."""
    mean = x.mean(axes, keepdims=True)
    # Where the mean is large, what rounds it off is not small against the
    # standard deviation: take it from the deviations. Their mean is zero by
    # definition, so it has no gradient.
    rounding = theano.gradient.disconnected_grad(
        (x - mean).mean(axes, keepdims=True))
    deviation = x - mean - rounding
    variance = T.sqr(deviation).mean(axes, keepdims=True)
    return deviation, mean + rounding, safe_sqrt(variance)


def safe_sqrt(variance):
    """Square root whose gradient is zero, not infinite, at zero."""
    is_zero = T.eq(variance, 0)
    return T.switch(is_zero, 0, T.sqrt(T.switch(is_zero, 1, variance)))


def scale_and_shift(deviation, std, gamma, beta, epsilon):
    factor = 1 / (std + T.cast(epsilon, std.dtype))
    if gamma is not None:
        factor = gamma * factor
    output = deviation * factor
    return output if beta is None else output + beta
