"""Weigh the batches in running averages, by a schedule."""

import numbers

import lasagne
import numpy as np
import theano
import theano.tensor as T

from ..networks.labels import label
from ..theano_tools.next_values import next_value

__all__ = ["CumulativeAverage"]


class CumulativeAverage:
    """Have running averages weigh all batches alike.

    Give it to layers as their `alpha`. The n-th batch then has the weight
    1/n, and the running averages are the plain averages of all batches so far.
    The training loop stays as it is: each call of a function that updates
    averages with this weight moves the weight on.

    Parameters
    ----------
    count : int
        Number of batches that the averages hold already. By default none, so
        that the first batch replaces what is stored.

    Attributes
    ----------
    alpha : Theano shared variable
        The weight of the next batch; a scalar.
    count : int
        Number of batches so far. Set it to go on from there.

    Raises
    ------
    ValueError
        If `count` is no whole number from zero on.

    Notes
    -----
    A batch that leaves the averages as they are, because its statistics are
    not finite, counts as well; and so does, once, a call of a function that
    applies a layer several times. A function that updates no average counts
    nothing. All virtual batches of a call have the weight of that call, so
    that later ones count more; for equal weights, see
    :func:`update_population_statistics`.

    The count goes wherever the layers go: it is pickled with them, and
    :func:`save_network` and :func:`load_network` keep it in the file.
    :meth:`of` finds the schedule of a layer.

    Examples
    --------
    Start over in each epoch:

    >>> from lasagne.layers import DenseLayer, InputLayer
    >>> from bnlasagne import CumulativeAverage, batch_norm
    >>> average = CumulativeAverage()
    >>> dense = DenseLayer(InputLayer((None, 8)), 5)
    >>> layer = batch_norm(dense, alpha=average)
    >>> for epoch in range(3):
    ...     average.reset()
    ...     # ... call the training function for all batches
    """

    def __init__(self, count=0):
        # Of the next batch. An integer, for 1 / (1 / n) is not n for long.
        self._number = theano.shared(np.asarray(1, "int64"), "number")
        self._number.tag.numbers_batches = True
        self.alpha = theano.shared(lasagne.utils.floatX(1), "alpha")
        # No default updates: whoever reads the weight would move it on.
        number = self._number + 1
        self._number.tag.next_value = number
        # Of integers, the quotient is of type floatX, but computed in double.
        self.alpha.tag.next_value = T.true_div(1, number)
        self.count = count

    @classmethod
    def of(cls, layer):
        """Find the schedule of a layer's running averages.

        Parameters
        ----------
        layer : BatchNormLayer

        Returns
        -------
        CumulativeAverage or None
            None if the layer's `alpha` does not depend on one.

        Raises
        ------
        TypeError
            If `layer` is no batch normalization layer.
        """
        if not hasattr(layer, "alpha"):
            raise TypeError("CumulativeAverage.of(): layer must be a "
                            "BatchNormLayer, got %s." % label(layer))
        for alpha in _roots(layer.alpha):
            for number in _roots(next_value(alpha)):
                if number is not alpha and getattr(
                        number.tag, "numbers_batches", False):
                    schedule = cls.__new__(cls)
                    schedule._number, schedule.alpha = number, alpha
                    return schedule
        return None

    @property
    def count(self):
        return int(self._number.get_value()) - 1

    @count.setter
    def count(self, count):
        if not (isinstance(count, numbers.Real) and 0 <= count < np.inf
                and count == int(count)):
            raise ValueError("CumulativeAverage: count must be a whole number "
                             "of batches, 0 or more, got %r." % (count,))
        number = int(count) + 1
        for variable, value in ((self._number, number),
                                (self.alpha, 1 / number)):
            variable.set_value(np.asarray(value, variable.dtype))

    def reset(self):
        """Forget all batches: the next one replaces the averages."""
        self.count = 0


def _roots(variable):
    """List the variables that one is computed from; none for a number."""
    return theano.gof.graph.inputs(
        [variable] if isinstance(variable, theano.Variable) else [])
