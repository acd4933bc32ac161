"""Batch normalization in long double, and how far rounding may lead from it.

Arrays are of shape (channels, values), with nothing but values that count.
What is returned maps a name to a pair, the exact result and a bound of errors.
It imports nothing of the package.

A sum of n numbers in a type of precision u is off by some ``u * sqrt(n)`` of
the sum of their sizes, as errors of both signs meet. Sums in the type of the
batch are over blocks of no more than 4,096 values, and merged in double. All
other bounds follow: each is the first-order effect of the errors before it,
and of one rounding for each operation.
"""

import numpy as np

__all__ = ["EXACT", "gradient", "normalized", "statistics", "total"]

EXACT = np.longdouble
_BLOCK = 4096
# Of sums that are not over values of random signs.
_SLACK = 8
_DOUBLE = np.finfo("float64").eps


def _precision(dtype):
    return np.finfo(dtype).eps


def _of_sums(values, dtype):
    n = min(values.shape[1], _BLOCK)
    return _precision(dtype) * (4 + _SLACK * np.sqrt(n))


def _no_less(bound, dtype):
    """Underflow is no error."""
    return bound + 16 * np.finfo(dtype).tiny


def statistics(x, dtype):
    """Mean and biased standard deviation, of shape (channels, 1).

    The mean once in double precision, as the centre, and once as an output.
    """
    x = x.astype(EXACT)
    mean = x.mean(1, keepdims=True)
    std = np.sqrt(np.square(x - mean).mean(1, keepdims=True))
    size, u = np.abs(mean), _precision(dtype)
    by_sums = _of_sums(x, dtype) * std
    # Blocks are merged by their means, in double precision. And a constant
    # channel's deviations are those of its rounded mean, and what double
    # precision leaves of their variance.
    by_mean = (2 * _DOUBLE + 8 * u * np.sqrt(_DOUBLE)) * size
    return {"centre": (mean, by_sums + 8 * _DOUBLE * size),
            "mean": (mean, _no_less(by_sums + 2 * u * size, dtype)),
            "std": (std, _no_less(by_sums + by_mean, dtype))}


def normalized(x, found, params, dtype):
    """Output by statistics; `params` are gamma, beta and epsilon."""
    x, (gamma, beta, epsilon) = x.astype(EXACT), params
    mean, (std, by_std) = found["centre"][0], found["std"]
    u, inverse = _precision(dtype), 1 / (std + epsilon)
    deviation = x - mean
    y = deviation * gamma * inverse + beta
    bound = abs(gamma) * inverse * (
        _of_deviations(x, found, dtype)
        + abs(deviation) * (by_std * inverse + 4 * u)
        + 2 * u ** 2 * abs(mean)) + 2 * u * (abs(y) + abs(beta))
    return {"y": (y, _no_less(bound, dtype))}


def _of_deviations(x, found, dtype):
    """Bound the errors of deviations from the mean."""
    mean, by_mean = found["centre"]
    return _precision(dtype) * abs(x - mean) + by_mean


def gradient(x, dy, found, params, dtype):
    """Gradients by x, gamma and beta; the rectifier is in `dy` already."""
    x, dy, (gamma, _, epsilon) = x.astype(EXACT), dy.astype(EXACT), params
    mean, (std, by_std) = found["centre"][0], found["std"]
    u, sums, n = _precision(dtype), _of_sums(x, dtype), x.shape[1]
    inverse, deviation = 1 / (std + epsilon), x - mean
    share = 1 / np.where(std > 0, std, 1) * (std > 0)
    by_deviation = _of_deviations(x, found, dtype)

    def average(values):
        return values.mean(1, keepdims=True)

    slope = average(dy * deviation) * inverse * share
    dx = gamma * inverse * (dy - average(dy) - deviation * slope)
    size, product = average(abs(dy)), average(abs(dy * deviation))
    by_product = sums * product + average(abs(dy) * by_deviation)
    by_slope = inverse * share * (
        by_product + product * by_std * (share + inverse))
    bound = abs(gamma) * inverse * (
        (sums + 4 * u) * (size + abs(dy)) + abs(deviation) * by_slope
        + (by_deviation + 4 * u * abs(deviation)) * product * inverse * share
        + size * by_std * inverse) + abs(dx) * (by_std * inverse + 4 * u)
    dgamma = n * average(dy * deviation) * inverse
    dbeta = n * average(dy)
    return {
        "dx": (dx, _no_less(bound, dtype)),
        "dgamma": (dgamma, _no_less(n * by_product * inverse + abs(
            dgamma) * (by_std * inverse + 4 * u), dtype)),
        "dbeta": (dbeta, _no_less(n * sums * size + u * abs(dbeta), dtype))}


def total(pairs):
    """Add results, and their bounds."""
    return tuple(sum(each) for each in zip(*pairs))
