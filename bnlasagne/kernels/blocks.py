"""Arrange the axes of a batch as the kernels see them.

The kernels see an array as [M][C][S], with the axes of the parameters in one
block, C. Other axes are brought into this order first.
"""

import collections

import numpy as np
import theano.tensor as T

__all__ = ["Blocks", "Layout"]


class Layout(collections.namedtuple(
        "Layout", "first end masked virtual_size")):
    """Tell an Op how the axes of its batch are ordered, and what counts.

    Attributes
    ----------
    first, end : int
        First axis of the parameters, and the one after the last. All others
        are normalized over.
    masked : bool
        Whether the Op has a mask as its last input.
    virtual_size : int
        Number of examples in a virtual batch; 0 without virtual batches.
    """

    __slots__ = ()

    def __new__(cls, first, end, masked=False, virtual_size=0):
        return super().__new__(cls, int(first), int(end), bool(masked),
                               int(virtual_size))


class Blocks:
    """An order of a batch's axes with those of the parameters in one block."""

    def __init__(self, batch):
        self.batch = batch
        x, axes = batch.x, batch.axes
        self.order = tuple(range(x.ndim))
        others = [axis for axis in self.order if axis not in axes]
        if not others:
            # One channel. Its block may be anywhere.
            first = end = _end_of_rows(batch.mask)
        elif others[-1] - others[0] + 1 == len(others):
            first, end = others[0], others[-1] + 1
        else:
            self.order = tuple(axes) + tuple(others)
            first, end = x.ndim - len(others), x.ndim
        self.layout = Layout(first, end, batch.mask is not None,
                             batch.virtual_size or 0)

    def x(self):
        """Return the values of the batch, in order."""
        return self._shuffled(self.batch.x, self.order)

    def mask(self):
        """Return a list of the mask, in order; an empty one without a mask."""
        mask = self.batch.mask
        return [] if mask is None else [self._shuffled(mask, self.order)]

    def param(self, param, value):
        """Return a parameter, in order; an array of a value if it is None.

        If a parameter is declared to have one value for all channels, it is
        repeated for them.
        """
        x, axes = self.batch.x, self.batch.axes
        if param is None:
            param = T.constant(np.full((1,) * x.ndim, value, x.dtype))
        if any(broadcastable and axis not in axes and not x.broadcastable[axis]
               for axis, broadcastable in enumerate(param.broadcastable)):
            param = T.alloc(param, *[1 if axis in axes else x.shape[axis]
                                     for axis in range(x.ndim)])
        return self._shuffled(param, self.order)

    def params(self, gamma, beta):
        """Return scale and shift, in order."""
        return self.param(gamma, 1), self.param(beta, 0)

    def back(self, variable):
        """Return an output of an Op in the batch's own order of axes."""
        return self._shuffled(variable, np.argsort(self.order).tolist())

    def _shuffled(self, variable, order):
        if self.order == tuple(range(self.batch.x.ndim)):
            return variable
        return variable.dimshuffle(*order)


def _end_of_rows(mask):
    """Find the axis behind those that a mask varies along.

    From there on, all values of a row count, or none. If there is no such
    axis, rows are the last axis.
    """
    if mask is None:
        return 0
    varying = [axis for axis in range(mask.ndim)
               if not mask.broadcastable[axis]]
    return min(varying[-1] + 1, mask.ndim - 1) if varying else 0
