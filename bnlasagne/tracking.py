"""What an application of a layer leaves in a graph.

:func:`track` ties to a layer's output what the application was: its input, the
statistics of the batch, and the running averages that are to follow them. It
computes nothing, and every function that is made from the graph drops it. But
until then, others can read it: :mod:`bnlasagne.updates`, which moves running
averages, and :mod:`bnlasagne.accumulation`. It survives what users do to a
graph: cloning it, replacing its inputs, taking gradients.
"""

import itertools

import theano
import theano.tensor as T
from theano.scan_module.scan_utils import equal_computations

from . import expressions, ops

__all__ = [
    "FusedMove",
    "Move",
    "TrackAverages",
    "UpdatedAverage",
    "application_of",
    "average_of",
    "has_one_weight",
    "pooled",
    "track",
    "tracks",
]

_applications = itertools.count(1)


def track(output, x, params, statistics, count, layer, averages=(),
          alpha=0, by_batch=True, automatic=True):
    """Tie an application of a layer to its output.

    Parameters
    ----------
    output, x : Theano variables
        What came out of the layer, and what it was applied to.
    params : sequence of Theano variables
        Of the layer, that `output` was computed with.
    statistics : pair of Theano variables
        Mean and standard deviation of the batch.
    count : Theano variable
        Number of values, in each statistic, that the batch has; a scalar.
    layer : Layer
        Which one it was.
    averages : sequence of Theano shared variables
        The averages to update, one for each statistic. By default, none.
    alpha : float or Theano variable
        Weight of the batch in the new average; a scalar.
    by_batch : bool
        Whether the layer normalized by the statistics of the batch.
    automatic : bool
        Whether functions that compute `output`, or anything that depends on
        it, or a gradient through it, update the averages by themselves. If
        not, the updates have to be collected.

    Returns
    -------
    Theano variable
        `output`, tied.

    Notes
    -----
    Each call is one application, with its place in the order in which
    updates of one average are chained. For each average, the update is

    .. math:: a \\leftarrow (1 - \\alpha) a + \\alpha s

    with the batch's statistic :math:`s`. A batch of which any statistic is
    not finite, or with fewer than two values per statistic, leaves all of the
    averages as they are.
    """
    number = next(_applications)
    clones = [_clone(average, number, automatic) for average in averages]
    move = FusedMove if ops.are_usable(*clones + list(statistics)) else Move
    op = TrackAverages(number, layer, by_batch, len(params), len(clones), move)
    terms = move.terms(statistics, count, alpha)
    return op(output, x, *list(params) + clones + terms)


def _clone(average, application, automatic):
    """Alias of `average`, with a default update still to be found."""
    clone = average.clone()
    clone.tag.application = application
    clone.tag.average = average
    if automatic:
        clone.default_update = UpdatedAverage()(clone)
    return clone


def application_of(variable):
    """The application that an average was cloned for, or None."""
    return getattr(variable.tag, "application", None)


def average_of(variable):
    """The average that a clone stands for; others stand for themselves."""
    return getattr(variable.tag, "average", variable)


class UpdatedAverage(theano.Op):
    """Placeholder for the value of a running average after a function ran.

    It takes the average before. :mod:`bnlasagne.updates` replaces it in every
    function; on its own it computes nothing new.
    """

    __props__ = ()
    # No C code, so the empty __props__ costs no compilation.

    def make_node(self, average):
        return theano.Apply(self, [average], [average.type()])

    def perform(self, node, inputs, output_storage):
        # Only ever run for Theano's test values.
        output_storage[0][0] = inputs[0].copy()

    def infer_shape(self, node, shapes):
        return shapes

    def connection_pattern(self, node):
        return [[False]]

    def grad(self, inputs, output_gradients):
        return [theano.gradient.DisconnectedType()()]

    def R_op(self, inputs, eval_points):
        return [None]


class TrackAverages(theano.Op):
    """Identity on its first input, a layer's output or its gradient.

    The further inputs are those of :func:`track`, in its order, with clones in
    the place of the averages. Unlike ``output + 0 * average``, it involves
    them in no arithmetic, so nothing that is stored in an average can reach
    the output.

    Parameters
    ----------
    application : int
        Number of the application.
    layer : Layer
        What was applied.
    by_batch : bool
        Whether it normalized by the statistics of the batch.
    n_params, n_averages : int
        Numbers of parameters and of running averages.
    move : class
        What moves the averages on: `Move` or `FusedMove`.
    of_gradient : bool
        Whether the first input is a gradient with respect to the output.
    """

    __props__ = ("application", "layer", "by_batch", "n_params", "n_averages",
                 "move", "of_gradient")
    view_map = {0: [0]}

    def __init__(self, application, layer, by_batch, n_params, n_averages,
                 move, of_gradient=False):
        self.application = application
        self.layer = layer
        self.by_batch = by_batch
        self.n_params = n_params
        self.n_averages = n_averages
        self.move = move
        self.of_gradient = of_gradient

    def make_node(self, output, *rest):
        return theano.Apply(self, [output] + list(rest), [output.type()])

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = inputs[0]

    def infer_shape(self, node, shapes):
        return [shapes[0]]

    def connection_pattern(self, node):
        return [[True]] + [[False]] * (len(node.inputs) - 1)

    def grad(self, inputs, output_gradients):
        # The gradient is tied as well: a function that computes a gradient
        # through the output, yet nothing else of it, applies the updates too.
        op = TrackAverages(self.application, self.layer, self.by_batch,
                           self.n_params, self.n_averages, self.move,
                           of_gradient=True)
        disconnected = theano.gradient.DisconnectedType()
        return [op(output_gradients[0], *inputs[1:])] + [
            disconnected() for _ in inputs[1:]]

    def R_op(self, inputs, eval_points):
        return [eval_points[0]]

    # What the inputs of a node are

    def input(self, node):
        """What the layer was applied to."""
        return node.inputs[1]

    def params(self, node):
        """The layer's parameters, in the order given to :func:`track`."""
        return node.inputs[2:2 + self.n_params]

    def moves(self, node):
        """For each running average, the pair of it and what moves it on."""
        end = 2 + self.n_params + self.n_averages
        averages, terms = node.inputs[2 + self.n_params:end], node.inputs[end:]
        return [(average, self.move(index, terms))
                for index, average in enumerate(averages)]

    def moments(self, node):
        """Number of values, mean and standard deviation of the batch."""
        move = self.move(0, node.inputs[2 + self.n_params + self.n_averages:])
        return [move.count] + move.statistics


def tracks(nodes):
    """Those of a graph's nodes that track an application.

    An application shows with the layer's output and again with each gradient
    through it.
    """
    return [node for node in nodes if isinstance(node.op, TrackAverages)]


# What moves an average on

class _Move(object):
    """An average follows the statistic of one batch.

    Parameters
    ----------
    index : int
        Of the statistic.
    terms : list of Theano variable
        As :meth:`terms` made them, or copies.

    Attributes
    ----------
    alpha, count : Theano variables
        Weight of the batch, and number of its values; scalars.
    statistics : list of Theano variable
        Mean and standard deviation of the batch.
    """

    def __init__(self, index, terms):
        self.index = index
        self.alpha, self.count = terms[:2]
        self.statistics = terms[2:4]
        self._made = terms[4:]

    @classmethod
    def terms(cls, statistics, count, alpha):
        """What an average's move needs of a batch.

        Constants are made here: Theano lets none into the graph of a function.
        """
        alpha = ops.double(alpha)
        return [alpha, count] + list(statistics) + cls._make(
            statistics, count, alpha)

    @staticmethod
    def _make(statistics, count, alpha):
        return []

    def by(self, count, *statistics):
        """The same move by other statistics, of any precision."""
        statistics = [T.cast(statistic, mine.dtype) for statistic, mine
                      in zip(statistics, self.statistics)]
        return type(self)(self.index, self.terms(statistics, count,
                                                 self.alpha))

    def is_like(self, other):
        """Whether another move is of the same application.

        Its statistics may be copies, where the user cloned the graph.
        """
        mine, others = ((move.alpha, move.statistics[move.index])
                        for move in (self, other))
        return all(map(_is_same, mine, others))

    def advance(self, value):
        """The average after the batch, from that before."""
        raise NotImplementedError


class Move(_Move):
    """An average follows the statistic of one batch; as an expression."""

    @staticmethod
    def _make(statistics, count, alpha):
        usable = T.ge(count, 2)
        for statistic in statistics:
            unusable = T.or_(T.isnan(statistic), T.isinf(statistic))
            usable = T.and_(usable, T.invert(T.any(unusable)))
        return [usable, 1 - alpha]

    def advance(self, value):
        usable, keep = self._made
        moved = keep * value + self.alpha * self.statistics[self.index]
        moved = T.switch(usable, moved, value).astype(value.dtype)
        return value.type.filter_variable(
            T.patternbroadcast(moved, value.broadcastable))


class FusedMove(_Move):
    """The same, as one Op."""

    def advance(self, value):
        statistics = list(self.statistics)
        # The one to average comes first.
        statistics.insert(0, statistics.pop(self.index))
        move = ops.MoveAverage(len(statistics))
        return move(value, self.alpha, self.count, *statistics)


def has_one_weight(moves):
    """Whether the batches of all moves have the same weight."""
    return all(_is_same(move.alpha, moves[0].alpha) for move in moves)


def pooled(moves):
    """One move by the statistics of all batches taken together.

    Parameters
    ----------
    moves : list of Move or list of FusedMove
        Of one average, and one weight.

    Returns
    -------
    Move or FusedMove
    """
    return moves[0].by(*expressions.pool([
        [move.count] + move.statistics for move in moves]))


def _is_same(variable, other):
    return variable is other or equal_computations([variable], [other])
