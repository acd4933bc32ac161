"""How running averages leave a graph.

A layer that normalizes by the statistics of a batch also wants its stored
averages moved towards them, by every function that is compiled from its
output and without the user passing any updates. Three pieces do this:

1. :func:`track_averages` ties memory-aliased *clones* of the stored averages
   to the layer's output. Theano finds the clones there, sees that they have a
   ``default_update`` and makes it an output of the function.
2. That ``default_update`` is a placeholder, :class:`UpdatedAverage`. It
   depends on the clone alone, so the output may be cloned, have its inputs
   replaced, be differentiated or be built in the step of a loop, and the
   placeholder stays valid.
3. When a function is made, :class:`ResolveAverages` puts the real updates
   where the placeholders are, from the statistics it finds in *that*
   function's graph, and removes what tied them to the output.

Clones of one average share a buffer without Theano knowing. The third step
therefore also makes them one variable, and chains their updates in the order
in which the layer was applied.
"""

import collections
import itertools

import theano
import theano.tensor as T
from theano.compile.function_module import std_fgraph
from theano.compile.sharedvalue import SharedVariable
from theano.gof import toolbox
from theano.gof.graph import io_toposort
from theano.scan_module.scan_op import Scan
from theano.scan_module.scan_utils import equal_computations

from . import ops

__all__ = [
    "FusedMove",
    "Move",
    "ResolveAverages",
    "TrackAverages",
    "UpdatedAverage",
    "track_averages",
]

_applications = itertools.count(1)


def track_averages(output, averages, statistics, count, alpha):
    """Have functions that compute `output` update running averages.

    For each average, the update is

    .. math:: a \\leftarrow (1 - \\alpha) a + \\alpha s

    with the batch's statistic :math:`s`. A batch of which any statistic is
    not finite, or with fewer than two values per statistic, leaves all of the
    averages as they are.

    Parameters
    ----------
    output : Theano variable
        What carries the updates: they are part of every function that
        computes it, or anything that depends on it, or a gradient through it.
    averages : sequence of Theano shared variables
        The averages to update.
    statistics : sequence of Theano variables
        For each average, the batch's statistic, of the same shape.
    count : Theano variable
        Number of values, in each statistic, that the batch has; a scalar.
    alpha : float or Theano variable
        Weight of the batch in the new average; a scalar.

    Returns
    -------
    Theano variable
        `output`, tied to the updates.

    Notes
    -----
    Each call is one application, with its place in the order in which
    updates of one average are chained.
    """
    application = next(_applications)
    clones = [_clone(average, application) for average in averages]
    move = FusedMove if ops.are_usable(*(clones + list(statistics))) else Move
    track = TrackAverages(len(clones), move)
    return track(output, *(clones + move.terms(statistics, count, alpha)))


def _clone(average, application):
    """Alias of `average` whose default update is still to be found."""
    clone = average.clone()
    clone.tag.application = application
    clone.default_update = UpdatedAverage()(clone)
    return clone


class UpdatedAverage(theano.Op):
    """Placeholder for the value of a running average after a function ran.

    It takes the average before. :class:`ResolveAverages` replaces it in every
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
    """Identity on its first input that ties running averages to it.

    The further inputs are the averages, and the terms of their moves. Unlike
    ``output + 0 * average``, it involves the averages in no arithmetic, so
    nothing that is stored in them can reach the output.

    Parameters
    ----------
    n_averages : int
        Number of running averages.
    move : class
        What moves them on: `Move` or `FusedMove`.
    """

    __props__ = ("n_averages", "move")
    view_map = {0: [0]}

    def __init__(self, n_averages, move):
        self.n_averages = n_averages
        self.move = move

    def make_node(self, output, *rest):
        return theano.Apply(self, [output] + list(rest), [output.type()])

    def moves(self, node):
        """Each running average of `node` with what moves it on."""
        averages = node.inputs[1:1 + self.n_averages]
        terms = node.inputs[1 + self.n_averages:]
        return [(average, self.move(i, terms))
                for i, average in enumerate(averages)]

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = inputs[0]

    def infer_shape(self, node, shapes):
        return [shapes[0]]

    def connection_pattern(self, node):
        return [[True]] + [[False]] * (len(node.inputs) - 1)

    def grad(self, inputs, output_gradients):
        # The gradient is tied as well: a function that computes a gradient
        # through the output, yet nothing else of it, applies the updates too.
        tied = self(output_gradients[0], *inputs[1:])
        disconnected = theano.gradient.DisconnectedType()
        return [tied] + [disconnected() for _ in inputs[1:]]

    def R_op(self, inputs, eval_points):
        return [eval_points[0]]


class ResolveAverages(toolbox.Feature):
    """Resolve the running averages of each function's graph as it is made.

    Theano attaches it to the graph of every function before it optimizes, in
    all modes, also those without any optimization.
    """

    def on_attach(self, fgraph):
        _resolve(fgraph, {variable: _Alias(variable.container,
                                           _application(variable))
                          for variable in fgraph.inputs
                          if isinstance(variable, SharedVariable)})
        # What was to do is done, nothing is left to listen for.
        raise toolbox.AlreadyThere("running averages are resolved")


std_fgraph.features.append(ResolveAverages)


# What a variable stands for: the memory that holds its value, and the
# application that it was cloned for, or None for the average itself.
_Alias = collections.namedtuple("_Alias", "container application")


def _application(variable):
    return getattr(variable.tag, "application", None)


def _resolve(fgraph, aliases):
    """Replace all placeholders in a graph and remove what tied them to it.

    Parameters
    ----------
    fgraph : FunctionGraph
        The graph, which is changed in place.
    aliases : dict
        For each of the graph's inputs that may stand for a stored average, an
        ``_Alias``.
    """
    loops = _resolve_loops(fgraph, aliases)
    tracks = _nodes(fgraph, TrackAverages)
    steps = _steps(tracks, loops)
    placeholders = {node.inputs[0]: node.outputs[0]
                    for node in _nodes(fgraph, UpdatedAverage)}
    for average in placeholders:
        if average not in steps or average not in aliases:
            raise ValueError(_OUT_OF_REACH % average)
    for group in _groups(aliases, steps):
        _update_as_one(fgraph, group, aliases, placeholders, steps)
    for node in tracks:
        _replace(fgraph, node.outputs[0], node.inputs[0])


_OUT_OF_REACH = (
    "The running average %s is to be updated from statistics that another Op "
    "computes in a graph of its own, where they are out of reach. Build the "
    "output with get_output(..., batch_norm_update_averages=False) there: it "
    "is normalized by the statistics of the batch as before, but leaves the "
    "averages of its batch normalization layers as they are.")


def _nodes(fgraph, op_class):
    """The graph's nodes with an Op of the given class, in order."""
    if not any(isinstance(node.op, op_class) for node in fgraph.apply_nodes):
        return []
    return [node for node in fgraph.toposort()
            if isinstance(node.op, op_class)]


def _replace(fgraph, old, new):
    if old is not new and old in fgraph.variables:
        fgraph.replace(old, new, reason="running averages")


def _groups(aliases, averages):
    """Lists of the aliases of each average, in order of application."""
    groups = collections.OrderedDict()
    for average in averages:
        if average in aliases:
            groups[id(aliases[average].container)] = []
    for variable in aliases:
        if id(aliases[variable].container) in groups:
            groups[id(aliases[variable].container)].append(variable)
    for group in groups.values():
        yield sorted(group, key=lambda alias: aliases[alias].application or 0)


def _update_as_one(fgraph, group, aliases, placeholders, steps):
    """Make aliases one variable, and their updates one chain.

    An update that the user gave for the average itself takes the place of the
    chain, as an explicit update replaces a default update in all of Theano.
    """
    outputs = {fgraph.inputs[position]: index for index, position
               in (fgraph.update_mapping or {}).items()}
    given = [alias for alias in group
             if alias in outputs and aliases[alias].application is None]
    moving = [alias for alias in group if alias in steps
              and (alias in placeholders or alias in outputs)]
    if len(group) > 1 and fgraph.update_mapping is None and any(
            alias in steps for alias in group if alias not in moving):
        # A loop in a loop's step, whose updates the step passed on itself:
        # they are among the outputs of the step, and which ones is unknown.
        raise ValueError(_OUT_OF_REACH % group[0])
    if given:
        average, value = given[0], fgraph.outputs[outputs[given[0]]]
    elif moving:
        average, value = moving[0], _chain(fgraph, moving, steps)
    else:
        return
    for alias in group:
        if alias in placeholders:
            _replace(fgraph, placeholders[alias], value)
        if alias in outputs:
            fgraph.change_input("output", outputs[alias], value)
        # Now Theano can tell that what overwrites the one overwrites the
        # others: the average is an input that the function may overwrite.
        _replace(fgraph, alias, average)


def _chain(fgraph, averages, steps):
    """The value of an average after all steps of all of its aliases."""
    value, taken = averages[0], []
    for average in averages:
        for step in steps[average]:
            if step not in taken:
                taken.append(step)
                value = step.advance(fgraph, value)
    return value


# What moves an average on

def _steps(tracks, loops):
    """For each running average, what it goes through in this graph.

    Returns
    -------
    dict
        Average → list of steps. A step's method ``advance(fgraph, value)``
        takes the value before and returns that after.
    """
    steps = collections.OrderedDict()
    for node in tracks:
        for average, move in node.op.moves(node):
            known = steps.setdefault(average, [])
            if not any(step.is_like(move) for step in known):
                known.append(move)
    for loop in loops:
        for average in loop.finals:
            steps.setdefault(average, []).append(loop)
    return steps


class Move(object):
    """An average follows the statistic of one batch; as an expression.

    Parameters
    ----------
    index : int
        Of the statistic.
    terms : list of Theano variable
        As :meth:`terms` made them, or copies.
    """

    def __init__(self, index, terms):
        # Whether the average may follow, and the weight of what it was.
        self.usable, self.keep = terms[:2]
        self.contribution = terms[2 + index]

    @staticmethod
    def terms(statistics, count, alpha):
        """What an average's move needs of a batch.

        Constants are made here: Theano lets none into the graph of a function.
        """
        alpha = T.as_tensor_variable(alpha)
        usable = T.ge(count, 2)
        for statistic in statistics:
            unusable = T.or_(T.isnan(statistic), T.isinf(statistic))
            usable = T.and_(usable, T.invert(T.any(unusable)))
        return [usable, 1 - alpha] + [
            alpha * statistic for statistic in statistics]

    def is_like(self, other):
        """Whether another move is of the same application.

        An application shows with the layer's output and again with each
        gradient through it; and with its statistics copied, where the user
        cloned the graph.
        """
        return (isinstance(other, Move)
                and _is_same(self.contribution, other.contribution))

    def advance(self, fgraph, value):
        moved = self.keep * value + self.contribution
        moved = T.switch(self.usable, moved, value).astype(value.dtype)
        return value.type.filter_variable(
            T.patternbroadcast(moved, value.broadcastable))


class FusedMove(object):
    """The same, as one Op."""

    def __init__(self, index, terms):
        self.alpha, self.count = terms[:2]
        self.statistic = terms[2 + index]
        self.others = terms[2:2 + index] + terms[3 + index:]

    @staticmethod
    def terms(statistics, count, alpha):
        return [ops.double(alpha), count] + list(statistics)

    def is_like(self, other):
        return (isinstance(other, FusedMove)
                and _is_same(self.statistic, other.statistic)
                and _is_same(self.alpha, other.alpha))

    def advance(self, fgraph, value):
        statistics = [self.statistic] + self.others
        move = ops.MoveAverage(len(statistics))
        return move(value, self.alpha, self.count, *statistics)


def _is_same(variable, other):
    return variable is other or equal_computations([variable], [other])


class _Loop(object):
    """An average is part of a loop's state and moves in each of its steps.

    Parameters
    ----------
    finals : dict
        For each alias of the average that the loop starts from, its value
        after the loop. All are equal.
    """

    def __init__(self, finals):
        self.finals = finals

    def is_like(self, other):
        return False

    def advance(self, fgraph, value):
        for average in self.finals:
            _replace(fgraph, average, value)
        return list(self.finals.values())[0]


# The step of a loop (theano.scan) is a graph of its own. Theano makes each
# variable with a default update a state of the loop: its value before the loop
# is an input of the loop's node, its value in a step is an input of the step,
# and the default update, here the placeholder, is an output of the step.

def _resolve_loops(fgraph, aliases):
    """Resolve the averages inside of loops, and tell what becomes of them.

    Returns
    -------
    list of _Loop
    """
    loops = []
    for node in _nodes(fgraph, Scan):
        if _is_tracked(node.op.outputs):
            averages = [_initial(variable, aliases)
                        for variable in node.op.outer_sitsot(node.inputs)]
            outputs = _resolve_loop(node, averages, aliases)
            fgraph.replace_all(list(zip(node.outputs, outputs)),
                               reason="running averages")
            finals = node.op.outer_sitsot_outs(outputs)
            loops.extend(_loops(averages, finals, aliases))
    return loops


def _is_tracked(outputs):
    """Whether running averages are updated in a graph or in a loop in it."""
    ops = [node.op for node in io_toposort([], outputs)]
    return any(isinstance(op, (TrackAverages, UpdatedAverage))
               or (isinstance(op, Scan) and _is_tracked(op.outputs))
               for op in ops)


def _initial(variable, aliases):
    """The average that theano.scan made an initial state from, or None."""
    while variable.owner is not None:
        op, inputs = variable.owner.op, variable.owner.inputs
        if isinstance(op, T.IncSubtensor):
            variable = inputs[1]
        elif isinstance(op, (T.Rebroadcast, T.DimShuffle)):
            variable = inputs[0]
        else:
            return None
    alias = aliases.get(variable)
    return variable if alias and alias.application is not None else None


def _resolve_loop(node, averages, aliases):
    """Outputs of a new node like `node`, with the averages resolved."""
    step = theano.gof.FunctionGraph(node.op.inputs, node.op.outputs)
    states = node.op.inner_sitsot(step.inputs)
    _resolve(step, {state: aliases[average]
                    for state, average in zip(states, averages)
                    if average is not None})
    inputs, outputs = list(step.inputs), list(step.outputs)
    step.disown()
    return Scan(inputs, outputs, node.op.info)(*node.inputs, return_list=True)


def _loops(averages, finals, aliases):
    """One _Loop for each average, with all of its aliases."""
    by_container = collections.OrderedDict()
    for average, final in zip(averages, finals):
        if average is not None:
            aliased = by_container.setdefault(
                id(aliases[average].container), collections.OrderedDict())
            aliased[average] = final[-1]
    return [_Loop(aliased) for aliased in by_container.values()]
