"""Describe a batch that is normalized: values, axes, mask, virtual batches."""

import collections
import functools
import operator

import theano.tensor as T

__all__ = ["LEAST_VALUES", "Batch", "n_virtual_batches", "split"]

# A batch with fewer values per channel moves no average.
LEAST_VALUES = 2


class Batch(collections.namedtuple("Batch", "x axes mask virtual_size")):
    """A batch of values, and what of it is normalized together.

    Attributes
    ----------
    x : Theano variable
        The values, of a floating-point type.
    axes : tuple of int
        The axes that are normalized over.
    mask : Theano variable or None
        Of any type, with the number of dimensions of `x`. Positions where it
        is not zero count. It is broadcastable along the axes that are not
        normalized over, and may be so along others.
    virtual_size : int or None
        Number of examples in a virtual batch, each of which is normalized by
        statistics of its own. The first axis is one of `axes` then.
    """

    __slots__ = ()

    def __new__(cls, x, axes, mask=None, virtual_size=None):
        return super().__new__(cls, x, axes, mask, virtual_size)

    def counted(self):
        """Return a mask of truth values; None if there is no mask."""
        if self.mask is None:
            return None
        return T.neq(self.mask, T.zeros_like(self.mask))

    def size(self):
        """Return the number of values per channel, whether counted or not."""
        return _size_along(self.x, self.axes)

    def n_virtual_batches(self):
        """Return the number of virtual batches, as an expression."""
        return n_virtual_batches(
            self.x.shape[0], self.virtual_size,
            _size_along(self.x, self.axes[1:]), T.maximum)


def _size_along(x, axes):
    return functools.reduce(operator.mul, (x.shape[axis] for axis in axes), 1)


def n_virtual_batches(examples, size, values, maximum=max):
    """Count the virtual batches of a batch.

    All but the last have `size` examples, each with so many `values` per
    channel. The last has the rest. A rest that is too small to be normalized
    by itself belongs to the virtual batch before it.
    """
    values = maximum(values, 1)
    # No more than the examples, or the product below may be too large.
    size = -maximum(-size, -maximum(examples, 1))
    return maximum((examples * values + size * values - LEAST_VALUES)
                   // (size * values), 1)


def split(batch):
    """Split a batch into its virtual batches; return two batches.

    All virtual batches but the last are one batch, in which they have the
    first axis for themselves, as a channel has. The last one is the other.
    """
    x, mask = batch.x, batch.mask
    # No array is larger than the batch, not even an empty one.
    sizes = batch.n_virtual_batches() - 1, T.minimum(
        batch.virtual_size, T.maximum(x.shape[0], 1))
    head, tail = _split(x, *sizes)
    masks = None, None
    if mask is not None and mask.broadcastable[0]:
        # It is the same for all examples.
        masks = mask.dimshuffle("x", *range(mask.ndim)), mask
    elif mask is not None:
        masks = _split(mask, *sizes)
    axes = (1, *(axis + 1 for axis in batch.axes[1:]))
    return Batch(head, axes, masks[0]), Batch(tail, batch.axes, masks[1])


def _split(array, n_heads, size):
    head = array[:n_heads * size]
    shape = n_heads, size, *(array.shape[axis]
                             for axis in range(1, array.ndim))
    pattern = (False, False, *array.broadcastable[1:])
    return (T.patternbroadcast(head.reshape(shape, len(shape)), pattern),
            array[n_heads * size:])
