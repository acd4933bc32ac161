"""Move running averages by the statistics of batches."""

import collections

import theano.tensor as T
from theano.scan_module.scan_utils import equal_computations

from ..kernels import dispatch

__all__ = ["Move", "ScheduledMove", "are_equal"]


class Move(collections.namedtuple(
        "Move", "index input alpha count statistics fused")):
    """Move a running average by one batch.

    `index` tells which of the `statistics`, mean and standard deviation, the
    average follows; `alpha` is the weight of the batch, and `count` the number
    of its values. `fused`: whether the fused Op moves the average.
    """

    __slots__ = ()

    def advance(self, average):
        """Return the average after the batch, from the average before."""
        statistics = list(self.statistics)
        # The one to follow comes first.
        statistics.insert(0, statistics.pop(self.index))
        return dispatch.move_average(average, statistics, self.count,
                                     self.alpha, self.fused)

    def by(self, count, *statistics):
        """Return the same move by other statistics, of any precision."""
        return self._replace(count=count, statistics=[
            T.cast(statistic, own.dtype)
            for statistic, own in zip(statistics, self.statistics)])

    def is_copy_of(self, other):
        """Tell whether a move is of the same application, or a clone's."""
        return isinstance(other, Move) and are_equal(
            self.input, other.input) and are_equal(self.alpha, other.alpha)


class ScheduledMove(collections.namedtuple(
        "ScheduledMove", "next_value averages")):
    """Move a variable in a layer's `alpha` to its next value.

    That happens once in a function, however many layers have the weight.
    `averages` are aliases of the running averages that have it.
    """

    __slots__ = ()

    def advance(self, variable):
        return self.next_value

    def is_copy_of(self, other):
        return True


def are_equal(variable, other):
    """Tell whether two variables are computed alike from the same ones."""
    return variable is other or equal_computations([variable], [other])
