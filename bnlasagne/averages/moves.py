"""Move running averages by the statistics of batches."""

import collections

import theano.tensor as T
from theano.gof.graph import clone_get_equiv
from theano.scan_module.scan_utils import equal_computations

from ..kernels import dispatch, expressions, ops

__all__ = [
    "Move",
    "ScheduledMove",
    "are_equal",
    "have_one_weight",
    "lifted",
    "pooled",
]


class Move(collections.namedtuple(
        "Move", "index input alpha count statistics fused")):
    """One move of a running average by one batch.

    Parameters
    ----------
    index : int
        Which of the statistics the average follows.
    input : Theano variable
        What the layer was applied to.
    alpha, count : Theano variables
        Weight of the batch, and number of its values; scalars.
    statistics : list of Theano variables
        Mean and standard deviation of the batch.
    fused : bool
        Whether the fused Op moves the average; decided when the layer is
        applied.
    """

    __slots__ = ()

    def advance(self, average):
        """The average after the batch, from the average before."""
        statistics = list(self.statistics)
        # The one to follow comes first.
        statistics.insert(0, statistics.pop(self.index))
        return dispatch.move_average(average, statistics, self.count,
                                     self.alpha, self.fused)

    def by(self, count, *statistics):
        """The same move by other statistics, of any precision."""
        return self._replace(count=count, statistics=[
            T.cast(statistic, own.dtype)
            for statistic, own in zip(statistics, self.statistics)])

    def weighted(self, alpha):
        """The same move with another weight."""
        return self._replace(alpha=ops.double(alpha))

    def variables(self):
        """The variables that the move is made of."""
        return [self.input, self.alpha, self.count, *self.statistics]

    def lifted(self, replace):
        """The same move, with variables replaced in what it is made of."""
        x, alpha, count, *statistics = lifted(self.variables(), replace)
        return self._replace(input=x, alpha=alpha, count=count,
                             statistics=statistics)

    def is_like(self, other):
        """Whether another move of the average is of the same application.

        It may be a copy, where the user cloned the graph.
        """
        return isinstance(other, Move) and are_equal(
            self.input, other.input) and are_equal(self.alpha, other.alpha)


class ScheduledMove(collections.namedtuple(
        "ScheduledMove", "next_value averages")):
    """A variable in a layer's `alpha` gets its next value.

    That happens once in a function, however many layers have the weight.

    Parameters
    ----------
    next_value : Theano variable
    averages : list of Theano variables
        Aliases of the running averages that have the weight.
    """

    __slots__ = ()

    def advance(self, variable):
        return self.next_value

    def variables(self):
        return [self.next_value]

    def lifted(self, replace):
        value, = lifted([self.next_value], replace)
        return ScheduledMove(value, [replace.get(average, average)
                                     for average in self.averages])

    def is_like(self, other):
        return True


def lifted(variables, replace):
    """Copies of variables, with others in what they are computed from."""
    copies = clone_get_equiv([], variables, memo=dict(replace))
    return [copies[variable] for variable in variables]


def are_equal(variable, other):
    """Whether two variables are computed alike from the same variables."""
    return variable is other or equal_computations([variable], [other])


def have_one_weight(moves):
    """Whether the batches of all moves have the same weight."""
    return all(are_equal(move.alpha, moves[0].alpha) for move in moves)


def pooled(moves):
    """One move by the statistics of all batches taken together.

    Parameters
    ----------
    moves : list of Move
        Of one average, and one weight.

    Returns
    -------
    Move
    """
    return moves[0].by(*expressions.pool([
        [move.count, *move.statistics] for move in moves]))
