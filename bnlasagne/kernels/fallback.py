"""Compute batch normalization in NumPy, where there is no C++ compiler.

Statistics and sums are of double precision. Statistics and parameters have the
batch's number of dimensions, and size 1 along the axes that are normalized
over.
"""

import numpy as np

from .batch import LEAST_VALUES
from .moments import Moments

__all__ = ["Standardized", "move_average", "statistics"]


def statistics(x, axes):
    """Compute the mean and the biased standard deviation of a batch."""
    unit = _unit_of(np.abs(x).max(axes, initial=0, keepdims=True))
    moments = Moments.of(x * unit, axes)
    if not moments.count:
        return (np.full_like(moments.mean, np.nan),) * 2
    return moments.mean / unit, moments.std() / unit


class Standardized:
    """A batch, or a part of one, standardized by given statistics."""

    def __init__(self, x, mean, std, epsilon):
        mean, std = (np.asarray(value, np.float64) for value in (mean, std))
        # Deviations of about 1 have products that do not leave the range.
        self.unit = _unit_of(np.maximum(std, 1e-30 * np.abs(mean)))
        self.std = std * self.unit
        self.deviation = x * self.unit - mean * self.unit
        # The statistics of a batch without values are not numbers.
        self.inverse = 1 / (std + epsilon) if x.size else np.zeros(std.shape)

    def normalized(self, gamma, beta, rectify=False):
        """Scale and shift; if told so, replace values below zero by zero."""
        y = self.deviation * (gamma * (self.inverse / self.unit)) + beta
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
        return gamma * self.inverse * (
            dy - sums / count - self.deviation * slope)


def move_average(average, alpha, count, statistics):
    """Move a running average by the first one of a batch's statistics."""
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
