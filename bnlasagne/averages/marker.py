"""What an application of a layer leaves in a graph.

:func:`track` ties to a layer's output what the application was: its input, the
statistics of the batch, and the running averages that are to follow them. It
computes nothing, and every function that is made from the graph drops it. But
until then, others can read it: :mod:`bnlasagne.averages.updates`, which moves
running averages, and :mod:`bnlasagne.accumulation`. It survives what users do
to a graph: cloning it, replacing its inputs, taking gradients.
"""

import copy
import threading

import theano
import theano.tensor as T
from theano.gof.graph import clone_get_equiv, inputs
from theano.scan_module.scan_utils import equal_computations

from ..graphs.next_values import next_value
from ..kernels import dispatch, expressions, ops

__all__ = [
    "FusedMove",
    "Move",
    "TrackAverages",
    "UpdatedAverage",
    "application_of",
    "average_of",
    "has_one_weight",
    "last_application",
    "pooled",
    "schedule_of",
    "track",
]


class _Applications:
    """Number the applications of layers in their order."""

    def __init__(self):
        self._lock = threading.Lock()
        self.last = 0

    def next(self):
        with self._lock:
            self.last += 1
            return self.last

    def loaded(self, number):
        """Have later applications come after one of another process."""
        with self._lock:
            self.last = max(self.last, number)


_applications = _Applications()


def last_application():
    """The number of the latest application."""
    return _applications.last


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
    number = _applications.next()
    clones = [_clone(average, number, automatic) for average in averages]
    scheduled, values, alpha = _schedule(alpha if clones else 0, number,
                                         automatic)
    move = FusedMove if dispatch.are_usable(*clones, *statistics) else Move
    op = TrackAverages(number, layer, by_batch, len(params), len(clones),
                       len(scheduled), move)
    terms = move.terms(statistics, count, alpha)
    return op(output, x, *list(params) + clones + scheduled + values + terms)


def _clone(variable, application, automatic):
    """Alias of a variable, with a default update still to be found."""
    clone = variable.clone()
    clone.tag.application = application
    clone.tag.average = variable
    if automatic:
        clone.default_update = UpdatedAverage()(clone)
    return clone


def schedule_of(alpha):
    """The shared variables in a weight that move on with the averages.

    Parameters
    ----------
    alpha : float or Theano variable

    Returns
    -------
    list of Theano shared variables
    """
    sources, stack = [], [alpha]
    while stack:
        roots = inputs([variable for variable in [stack.pop()]
                        if isinstance(variable, theano.Variable)])
        for source in roots:
            if source not in sources and next_value(source) is not None:
                sources.append(source)
                stack.append(next_value(source))
    return sources


def _schedule(alpha, application, automatic):
    """Have a weight that moves on by itself do so with the averages only.

    Returns
    -------
    scheduled : list of Theano shared variables
        Aliases of the variables in `alpha` that move on.
    values : list of Theano variables
        Their next values.
    alpha : float or Theano variable
        The weight, by the aliases.
    """
    sources = schedule_of(alpha)
    if not sources:
        return [], [], alpha
    clones = [_clone(source, application, automatic) for source in sources]
    alpha, *values = theano.clone(
        [alpha] + [next_value(source) for source in sources],
        replace=dict(zip(sources, clones)))
    return clones, values, alpha


def application_of(variable):
    """The application that an average was cloned for, or None."""
    return getattr(variable.tag, "application", None)


def average_of(variable):
    """The variable that a clone stands for; others stand for themselves."""
    return getattr(variable.tag, "average", variable)


class UpdatedAverage(theano.Op):
    """Placeholder for the value of a running average after a function ran.

    It takes the average before. :mod:`bnlasagne.averages.updates` replaces it
    in every function; on its own it computes nothing new.
    """

    __props__ = ()
    # No C code, so the empty __props__ costs no compilation.

    def make_node(self, average):
        return theano.Apply(self, [average], [average.type()])

    def perform(self, node, inputs, output_storage):
        # Only ever run for Theano's test values.
        output_storage[0][0] = copy.copy(inputs[0])

    def infer_shape(self, node, shapes):
        return shapes

    def connection_pattern(self, node):
        return [[False]]

    def grad(self, inputs, output_gradients):
        return [theano.gradient.DisconnectedType()()]

    def R_op(self, inputs, eval_points):
        return [None]

    def inputs_by_value(self, node):
        """See :mod:`bnlasagne.graphs.needed`."""
        return []


class TrackAverages(theano.Op):
    """Identity on its first input, a layer's output or its gradient.

    The further inputs are those of :func:`track`, in its order, with clones in
    the place of the averages; after these, clones of the variables that a
    schedule of the weight moves on, and their next values. Unlike
    ``output + 0 * average``, it involves them in no arithmetic, so nothing
    that is stored in an average can reach the output.

    Parameters
    ----------
    application : int
        Number of the application.
    layer : Layer
        What was applied.
    by_batch : bool
        Whether it normalized by the statistics of the batch.
    n_params, n_averages, n_scheduled : int
        Numbers of parameters, of running averages, and of variables that a
        schedule moves on.
    move : class
        What moves the averages on: `Move` or `FusedMove`.
    of_gradient : bool
        Whether the first input is a gradient with respect to the output.
    """

    __props__ = ("application", "layer", "by_batch", "n_params", "n_averages",
                 "n_scheduled", "move", "of_gradient")
    view_map = {0: [0]}

    def __init__(self, application, layer, by_batch, n_params, n_averages,
                 n_scheduled, move, of_gradient=False):
        self.application = application
        self.layer = layer
        self.by_batch = by_batch
        self.n_params = n_params
        self.n_averages = n_averages
        self.n_scheduled = n_scheduled
        self.move = move
        self.of_gradient = of_gradient

    def __setstate__(self, state):
        # Graphs of older versions know of no schedules.
        self.__dict__.update(dict({"n_scheduled": 0}, **state))
        _applications.loaded(self.application)

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
                           self.n_params, self.n_averages, self.n_scheduled,
                           self.move, of_gradient=True)
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

    def averages(self, node):
        """Clones of the running averages."""
        return self._parts(node)[0]

    def moves(self, node):
        """For each variable to move, the pair of it and what moves it on.

        The running averages come first, then what a schedule of their weight
        moves on.
        """
        averages, scheduled, values, terms = self._parts(node)
        return [(average, self.move(index, terms, self.input(node)))
                for index, average in enumerate(averages)
                ] + [(variable, ScheduledMove(value, averages))
                     for variable, value in zip(scheduled, values)]

    def moments(self, node):
        """Number of values, mean and standard deviation of the batch."""
        move = self.move(0, self._parts(node)[3], self.input(node))
        return [move.count] + move.statistics

    def inputs_by_value(self, node):
        """See :mod:`bnlasagne.graphs.needed`."""
        return node.inputs if self.n_averages else node.inputs[:1]

    def _parts(self, node):
        """Averages, what is scheduled, its next values, and the terms."""
        rest = node.inputs[2 + self.n_params:]
        parts = []
        for size in (self.n_averages, self.n_scheduled, self.n_scheduled):
            parts.append(rest[:size])
            rest = rest[size:]
        return parts + [rest]


# What moves an average on

class _Move:
    """An average follows the statistic of one batch.

    Parameters
    ----------
    index : int
        Of the statistic.
    terms : list of Theano variable
        As :meth:`terms` made them, or copies.
    x : Theano variable
        What the layer was applied to.

    Attributes
    ----------
    alpha, count : Theano variables
        Weight of the batch, and number of its values; scalars.
    statistics : list of Theano variable
        Mean and standard deviation of the batch.
    """

    def __init__(self, index, terms, x):
        self.index = index
        self.x = x
        self.alpha, self.count = terms[:2]
        # Graphs of older versions have more terms after these.
        self.statistics = list(terms[2:4])

    @staticmethod
    def terms(statistics, count, alpha):
        """What an average's move needs of a batch."""
        return [ops.double(alpha), count] + list(statistics)

    def by(self, count, *statistics):
        """The same move by other statistics, of any precision."""
        statistics = [T.cast(statistic, mine.dtype) for statistic, mine
                      in zip(statistics, self.statistics)]
        return type(self)(self.index, self.terms(statistics, count,
                                                 self.alpha), self.x)

    def weighted(self, alpha):
        """The same move with another weight."""
        return type(self)(self.index, self.terms(self.statistics, self.count,
                                                 alpha), self.x)

    def variables(self):
        """All that the move is made of."""
        return [self.x, self.alpha, self.count] + self.statistics

    def lifted(self, replace):
        """The same move, with variables replaced in what it is made of."""
        x, *terms = _lifted(self.variables(), replace)
        return type(self)(self.index, terms, x)

    def is_like(self, other):
        """Whether another move of the average is of the same application.

        It may be a copy, where the user cloned the graph.
        """
        return _is_same(self.x, other.x) and _is_same(self.alpha, other.alpha)

    fused = False

    def advance(self, value):
        """The average after the batch, from that before."""
        statistics = list(self.statistics)
        # The one to average comes first.
        statistics.insert(0, statistics.pop(self.index))
        return dispatch.move_average(value, statistics, self.count, self.alpha,
                                     self.fused)


class Move(_Move):
    """An average follows the statistic of one batch; as an expression."""


class FusedMove(_Move):
    """The same, as one Op."""

    fused = True


class ScheduledMove:
    """A variable in a layer's `alpha` gets its next value.

    That happens once in a function, however many layers have the weight.

    Parameters
    ----------
    value : Theano variable
        The next value.
    averages : list of Theano variables
        Clones of the running averages that have the weight.
    """

    def __init__(self, value, averages):
        self.value = value
        self.averages = averages

    def is_like(self, other):
        return True

    def variables(self):
        return [self.value]

    def lifted(self, replace):
        value, = _lifted([self.value], replace)
        return ScheduledMove(value, [replace.get(average, average)
                                     for average in self.averages])

    def advance(self, value):
        return self.value


def _lifted(variables, replace):
    """Copies of variables, with others in what they are computed from."""
    copies = clone_get_equiv([], variables, memo=dict(replace))
    return [copies[variable] for variable in variables]


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
