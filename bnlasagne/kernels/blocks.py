"""Arrange the axes of a batch as the kernels see them.

The kernels see an array as [M][C][S], with the axes of the parameters in one
block, C. Other axes are brought into this order first.
"""

import numpy as np
import theano.tensor as T

__all__ = ["Blocks"]


class Blocks:
    """An order of a batch's axes with those of the parameters in one block.

    `first` is the first axis of the parameters, in
    order, and `end` the one after the last.
    """

    def __init__(self, batch):
        self.batch = batch
        x, axes = batch.x, batch.axes
        self.order = tuple(range(x.ndim))
        others = [axis for axis in self.order if axis not in axes]
        if not others:
            # One channel, and all its values lie one after the other.
            self.first = self.end = 0
        elif others[-1] - others[0] + 1 == len(others):
            self.first, self.end = others[0], others[-1] + 1
        else:
            self.order = tuple(axes) + tuple(others)
            self.first, self.end = x.ndim - len(others), x.ndim

    def x(self):
        """Return the values of the batch, in order."""
        return self._shuffled(self.batch.x, self.order)

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
