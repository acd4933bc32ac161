"""Weights of the batches in running averages."""

import lasagne
import numpy as np
import theano

__all__ = ["CumulativeAverage"]


class CumulativeAverage:
    """Have running averages weigh all batches alike.

    Give its `alpha` to layers. The n-th batch then has the weight 1/n, and the
    running averages are the plain averages of all batches so far. Nothing has
    to be done in the training loop: each call of a function that updates
    averages with this weight moves the weight on.

    Attributes
    ----------
    alpha : Theano shared variable
        The weight of the next batch; a scalar.

    Notes
    -----
    A batch that leaves the averages as they are, because its statistics are
    not finite, counts as well; and so does, once, a call of a function that
    applies a layer several times.

    Examples
    --------
    Start over in each epoch:

    >>> from lasagne.layers import DenseLayer, InputLayer
    >>> from bnlasagne import CumulativeAverage, batch_norm
    >>> average = CumulativeAverage()
    >>> dense = DenseLayer(InputLayer((None, 8)), 5)
    >>> layer = batch_norm(dense, alpha=average.alpha)
    >>> for epoch in range(3):
    ...     average.reset()
    ...     # ... call the training function for all batches
    """

    def __init__(self):
        # Of the next batch. An integer, for 1 / (1 / n) is not n for long.
        self._number = theano.shared(np.asarray(1, "int64"), "number")
        self.alpha = theano.shared(lasagne.utils.floatX(1), "alpha")
        number = self._number + 1
        self._number.default_update = number
        self.alpha.default_update = (
            1 / number.astype("float64")).astype(self.alpha.dtype)

    def reset(self):
        """Forget all batches: the next one replaces the averages."""
        self._number.set_value(1)
        self.alpha.set_value(lasagne.utils.floatX(1))
