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


def masked_statistics(x, axes, mask):
    """The same of the values that a mask counts; 0 if there are none."""
    x, n = _counted(x, mask), _count(x, axes, mask)
    mean = x.sum(axes, keepdims=True) / max(n, 1)
    squares = _counted(np.square(x - mean), mask).sum(axes, keepdims=True)
    return mean, np.sqrt(squares / max(n, 1))


def normalize_masked(x, axes, mask, gamma=1, beta=0, epsilon=0.01):
    statistics = masked_statistics(x, axes, mask)
    return _counted(normalize(_counted(x, mask), *statistics, gamma, beta,
                              epsilon), mask)


def gradient_of_normalize_masked(x, dy, axes, mask, gamma=1, epsilon=0.01):
    """Gradient of ``sum(dy * y)`` with respect to x, gamma and beta.

    Unmasked, by one channel after the other with nothing but its values.
    """
    x, dy = (np.array(_counted(each, mask)) for each in (x, dy))
    counts = np.broadcast_to(np.asarray(mask) != 0, x.shape)
    short = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    gamma = np.broadcast_to(gamma, short)
    dx, dgamma, dbeta = np.zeros(x.shape), np.zeros(short), np.zeros(short)
    if not _count(x, axes, mask):
        return dx, dgamma, dbeta
    for index in np.ndindex(*short):
        channel = tuple(slice(None) if axis in axes else slice(i, i + 1)
                        for axis, i in enumerate(index))
        own = counts[channel]
        dx[channel][own], (dgamma[index],), (dbeta[index],) = (
            gradient_of_normalize_batch(x[channel][own], dy[channel][own],
                                        (0,), gamma[index], epsilon))
    return dx, dgamma, dbeta


def _counted(values, mask):
    return np.where(np.asarray(mask) != 0, np.asarray(values, np.float64), 0)


def _count(x, axes, mask):
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    return int(np.broadcast_to(np.asarray(mask) != 0, shape).sum())


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


def nin(x, W):
    """Network in network: a dense layer at each position."""
    return np.einsum("nc...,cf->nf...", x, W)


def dense(x, W, leading=1):
    """Product of weights with examples, their axes flattened to one."""
    x = np.asarray(x, dtype=np.float64)
    return x.reshape(x.shape[:leading] + (-1,)) @ np.asarray(W, np.float64)


def correlate(x, W, stride=1, pad=0, groups=1, dilation=1):
    """Cross-correlation: filters slide over the input as they are.

    The input is of shape (examples, channels, positions...), the filters of
    (filters, channels / groups, positions...). Numbers are for all axes.
    """
    x, W = np.asarray(x, np.float64), np.asarray(W, np.float64)
    stride, pad, dilation = (np.broadcast_to(each, W.ndim - 2)
                             for each in (stride, pad, dilation))
    x = np.pad(x, [(0, 0), (0, 0)] + [(size, size) for size in pad])
    extent = dilation * (np.array(W.shape[2:]) - 1) + 1
    count = (np.array(x.shape[2:]) - extent) // stride + 1
    y = np.zeros((len(x), len(W)) + tuple(count))
    for tap in np.ndindex(*W.shape[2:]):
        seen = x[(slice(None), slice(None)) + tuple(
            slice(start, start + step * size, step) for start, step, size
            in zip(tap * dilation, stride, count))]
        for filters, channels in zip(np.split(np.arange(len(W)), groups),
                                     np.split(seen, groups, axis=1)):
            y[:, filters] += np.einsum("nc...,fc->nf...", channels,
                                       W[(filters, slice(None)) + tap])
    return y


def flipped(W):
    """Filters turned round, along all axes of positions."""
    return np.flip(W, tuple(range(2, np.ndim(W))))


def convolve(x, W, **options):
    """Convolution: :func:`correlate`, with filters turned round."""
    return correlate(x, flipped(W), **options)


def transposed(x, W, stride=1, crop=0):
    """Each input adds its filter to the output: correlation transposed.

    The filters are of shape (channels, filters, positions...).
    """
    x, W = np.asarray(x, np.float64), np.asarray(W, np.float64)
    stride, crop = (np.broadcast_to(each, W.ndim - 2)
                    for each in (stride, crop))
    size = (np.array(x.shape[2:]) - 1) * stride + W.shape[2:]
    y = np.zeros((len(x), W.shape[1]) + tuple(size))
    for position in np.ndindex(*x.shape[2:]):
        reached = tuple(slice(start, start + taps) for start, taps
                        in zip(position * stride, W.shape[2:]))
        y[(slice(None), slice(None)) + reached] += np.einsum(
            "nc,cf...->nf...", x[(slice(None), slice(None)) + position], W)
    return y[(slice(None), slice(None)) + tuple(
        slice(cut, total - cut) for cut, total in zip(crop, size))]


def locally_connected(x, W):
    """Correlation with filters of their own for each position.

    They are of shape (filters, channels, rows, columns, output rows, output
    columns), and the output is of the input's size.
    """
    x, W = np.asarray(x, np.float64), np.asarray(W, np.float64)
    rows, columns = W.shape[4:]
    x = np.pad(x, [(0, 0), (0, 0)] + [(size // 2, size // 2)
                                      for size in W.shape[2:4]])
    return sum(np.einsum("nchw,fchw->nfhw",
                         x[:, :, row:row + rows, column:column + columns],
                         W[:, :, row, column])
               for row, column in np.ndindex(*W.shape[2:4]))


def add_bias(y, b, channel=1):
    """A bias for each channel; or one for each position, too."""
    b = np.asarray(b, dtype=np.float64)
    return y + b.reshape(b.shape + (1,) * (np.ndim(y) - channel - b.ndim))
