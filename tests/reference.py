"""Batch normalization in NumPy, in float64, after Ioffe & Szegedy (2015).

The tests compare the package with this. It imports nothing of it.
"""

import numpy as np


def statistics(x, axes):
    """Mean and biased standard deviation, of size 1 along the axes."""
    x = np.asarray(x, dtype=np.float64)
    mean = x.mean(axes, keepdims=True)
    return mean, np.sqrt(np.square(x - mean).mean(axes, keepdims=True))


def normalize(x, mean, std, gamma=1, beta=0, epsilon=0.01):
    x = np.asarray(x, dtype=np.float64)
    return (x - mean) * gamma / (std + epsilon) + beta


def normalize_batch(x, axes, gamma=1, beta=0, epsilon=0.01):
    return normalize(x, *statistics(x, axes), gamma=gamma, beta=beta,
                     epsilon=epsilon)


def gradient_of_normalize_batch(x, dy, axes, gamma=1, epsilon=0.01):
    """Gradient of ``sum(dy * y)`` with respect to x, gamma and beta."""
    mean, std = statistics(x, axes)
    count = np.prod([np.shape(x)[axis] for axis in axes])
    deviation = np.asarray(x, dtype=np.float64) - mean
    dgamma = (dy * deviation).sum(axes, keepdims=True) / (std + epsilon)
    dbeta = np.sum(dy, axes, keepdims=True, dtype=np.float64)
    centred = dy - dbeta / count
    # d std / dx = (x - mean) / (count * std), and zero where std is zero
    direction = np.divide(deviation, count * std, where=std > 0,
                          out=np.zeros(deviation.shape))
    dx = gamma / (std + epsilon) * (centred - dgamma * direction)
    return dx, dgamma, dbeta


def running_average(average, batches, alpha=0.5):
    """An average after it has followed the statistics of some batches."""
    for batch in batches:
        average = (1 - alpha) * average + alpha * batch
    return average


def finite_differences(function, x, step=1e-5):
    """Gradient of a function of one array, by central differences."""
    x = np.array(x, dtype=np.float64)
    gradient = np.empty(x.shape)
    for index in np.ndindex(x.shape):
        centre = x[index]
        x[index] = centre + step
        above = function(x)
        x[index] = centre - step
        gradient[index] = (above - function(x)) / (2 * step)
        x[index] = centre
    return gradient
