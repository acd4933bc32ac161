"""Compute batch normalization in NumPy, where there is no C++ compiler.

Statistics and sums are of double precision. Statistics and parameters have the
batch's number of dimensions, and size 1 along the axes that are normalized
over. A mask, of truth values, is None where all values count. Else these
functions expect zero at the other positions of their batches.
"""

import numpy as np

from .batch import LEAST_VALUES, n_virtual_batches
from .moments import Moments

__all__ = [
    "Standardized",
    "count",
    "move_average",
    "only_counted",
    "statistics",
    "virtual_batches",
]


def statistics(x, axes, mask=None):
    """Compute the mean, biased standard deviation and count of a batch."""
    unit = _unit_of(np.abs(x).max(axes, initial=0, keepdims=True))
    moments, values = Moments.of(x * unit, axes, mask), count(x, axes, mask)
    if not moments.count:
        nothing = np.nan if mask is None else 0
        return (*(np.full_like(moments.mean, nothing),) * 2, values)
    return moments.mean / unit, moments.std() / unit, values


def count(x, axes, mask=None):
    """Count the values per channel."""
    if mask is None:
        return int(np.prod([x.shape[axis] for axis in axes]))
    return int(np.broadcast_to(mask, [
        size if axis in axes else 1 for axis, size in enumerate(x.shape)
    ]).sum())


def only_counted(values, mask):
    """Replace values at positions that do not count by zero."""
    return values if mask is None else np.where(mask, values, 0)


def virtual_batches(x, axes, size):
    """List the slices of the first axis that are virtual batches."""
    if not size:
        return [slice(None)]
    number = n_virtual_batches(
        len(x), size, int(np.prod([x.shape[axis] for axis in axes[1:]])))
    return [slice(i * size, (i + 1) * size if i + 1 < number else None)
            for i in range(number)]


class Standardized:
    """A batch, or a part of one, standardized by given statistics."""

    def __init__(self, x, mean, std, epsilon, mask=None):
        mean, std = (np.asarray(value, np.float64) for value in (mean, std))
        # Deviations of about 1 have products that do not leave the range.
        self.unit = _unit_of(np.maximum(std, 1e-30 * np.abs(mean)))
        self.std = std * self.unit
        self.mask = mask
        self.deviation = x * self.unit - mean * self.unit
        # The statistics of a batch without values are not numbers.
        is_empty = not (x.size if mask is None else mask.any())
        self.inverse = np.zeros(std.shape) if is_empty else 1 / (std + epsilon)

    def normalized(self, gamma, beta, rectify=False):
        """Scale and shift; if told so, replace values below zero by zero."""
        y = self.deviation * (gamma * (self.inverse / self.unit)) + beta
        y = only_counted(y, self.mask)
        return np.where(y < 0, 0, y) if rectify else y

    def reaching(self, dy, gamma, beta):
        """Select the gradient that passes through the rectifier."""
        return np.where(self.normalized(gamma, beta) > 0, dy, 0)

    def gradient_sums(self, dy, axes):
        """Sum the gradient, and its product with the deviations, in `unit`."""
        return (dy.sum(axes, dtype=np.float64, keepdims=True),
                (dy * self.deviation).sum(axes, keepdims=True))

    def by_gamma(self, products):
        """Compute the gradient with respect to gamma from the sums."""
        return products * (self.inverse / self.unit)

    def gradient(self, gamma, dy, count, sums, products):
        """Compute the gradient with respect to the batch.

        `count`, `sums` and `products` are those of all that the statistics are
        of.
        """
        slope = self.by_gamma(products) / count / self.std
        # The standard deviation has no gradient where it is zero.
        slope = np.where(self.std == 0, 0, slope)
        return only_counted(gamma * self.inverse * (
            dy - sums / count - self.deviation * slope), self.mask)


def move_average(average, alpha, counts, statistics):
    """Move a running average by the first one of some statistics.

    If `counts` is a vector, these are statistics of virtual batches.
    """
    if not np.ndim(counts):
        return _moved(average, alpha, counts, statistics)
    for i, count in enumerate(counts):
        average = _moved(average, alpha, count, [
            each[i:i + 1] for each in statistics]).astype(average.dtype)
    return average


def _moved(average, alpha, count, statistics):
    if count < LEAST_VALUES or not all(np.all(np.isfinite(each))
                                       for each in statistics):
        return average.copy()
    if alpha == 1:
        return statistics[0].copy()
    return (1 - alpha) * average + alpha * statistics[0]


def _unit_of(sizes):
    """Find powers of two, as double, that bring sizes to about 1."""
    # Not to the ends of the range: what they multiply may be there, too.
    powers = np.clip(np.frexp(sizes)[1].astype(int), -700, 700)
    return np.ldexp(1., np.where(np.isfinite(sizes), -powers, 0))
