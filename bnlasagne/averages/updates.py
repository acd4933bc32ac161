"""How running averages leave a graph.

A layer that normalizes by the statistics of a batch also wants its stored
averages moved towards them, by every function that is compiled from its
output and without the user passing any updates. Three pieces do this:

1. :func:`bnlasagne.averages.marker.mark` ties memory-aliased *clones* of the
   stored averages to the layer's output. Theano finds the clones there, sees
   that they have a ``default_update`` and makes it an output of the function.
2. That ``default_update`` is a placeholder, ``UpdatedAverage``. It depends on
   the clone alone, so the output may be cloned, have its inputs replaced, be
   differentiated or be built in the step of a loop, and the placeholder stays
   valid.
3. When a function is made, :class:`ResolveAverages` puts the real updates
   where the placeholders are, from the statistics it finds in *that*
   function's graph, and removes what tied them to the output.

Clones of one average share a buffer without Theano knowing. The third step
therefore also makes them one variable, and chains their updates in the order
in which the layer was applied.

:func:`get_batch_norm_updates` makes the same updates from the same findings in
the user's graph, for the user to pass on.
"""

import collections
import contextlib
import functools
import warnings

import lasagne
import theano
import theano.tensor as T
from theano.compile import function_module
from theano.compile.sharedvalue import SharedVariable
from theano.gof import toolbox
from theano.gof.graph import io_toposort
from theano.scan_module.scan_op import Scan

from ..graphs.flags import own_expressions
from ..graphs.loops import all_nodes, inner_graph
from ..graphs.needed import needed
from ..graphs.next_values import moving_variables, next_value
from ..networks.labels import label
from ..networks.walk import all_layers
from .aliases import (
    UpdatedAverage,
    application_of,
    average_of,
)
from .marker import Application, Marker, last_application
from .moves import ScheduledMove, have_one_weight, pooled

__all__ = [
    "ResolveAverages",
    "check_applied",
    "combined",
    "find_steps",
    "get_batch_norm_updates",
    "scheduled_updates",
    "wanted_averages",
]


class ResolveAverages(toolbox.Feature):
    """Resolve the running averages of each function's graph as it is made.

    Theano attaches it to the graph of every function before it optimizes, in
    all modes, also those without any optimization.
    """

    # Whatever the user asks Theano to check in the user's own expressions.
    @own_expressions()
    def on_attach(self, fgraph):
        aliases = _aliases(fgraph.inputs)
        # For a test value, Theano compiles the step of a loop by itself: each
        # of its states moves on, with nothing to chain.
        aliases.update((variable, _Alias(variable, None))
                       for variable in fgraph.inputs
                       if variable not in aliases)
        _resolve(fgraph, aliases)
        # What was to do is done, nothing is left to listen for.
        raise toolbox.AlreadyThere("running averages are resolved")


function_module.std_fgraph.features.append(ResolveAverages)


# What a variable stands for: the memory that holds its value, and the
# application that it was cloned for, or None for the average itself.
_Alias = collections.namedtuple("_Alias", "container application")


def _aliases(variables):
    """Those of a graph's inputs that may stand for a stored average."""
    return {variable: _Alias(variable.container, application_of(variable))
            for variable in variables if isinstance(variable, SharedVariable)}


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
    marked = _nodes(fgraph, Marker)
    computed = needed(fgraph.outputs)
    steps = _steps(marked, loops, computed)
    placeholders = {node.inputs[0]: node.outputs[0]
                    for node in _nodes(fgraph, UpdatedAverage)}
    reached = _in_order([pair for node in marked
                         for pair in Application(node).moves()], loops)
    for average in placeholders:
        if average in computed and average not in reached or (
                average not in aliases):
            raise ValueError(_OUT_OF_REACH % average)
    moved = set()
    for group in _groups(aliases, list(dict.fromkeys(
            reached + list(placeholders)))):
        # A schedule moves on with the averages that have its weight.
        taken = {alias: [step for step in steps.get(alias, ())
                         if not isinstance(step, ScheduledMove)
                         or moved.intersection(step.averages)]
                 for alias in group}
        moved.update(_update_as_one(fgraph, group, aliases, placeholders,
                                    taken))
    for node in marked:
        _replace(fgraph, node.outputs[0],
                 Application(node).unmarked(computed))


def _in_order(moves, loops):
    """All averages that are moved, then what schedules of weights move on.

    Whether that is the case depends on what becomes of the averages.
    """
    moves = moves + [pair for loop in loops for pair in loop.outside]
    scheduled = {average for average, move in moves
                 if isinstance(move, ScheduledMove)}
    reached = [average for average, _ in moves] + [
        average for loop in loops for average in loop.starts]
    return sorted(dict.fromkeys(reached), key=scheduled.__contains__)


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
    groups = {}
    for average in averages:
        if average in aliases:
            groups[id(aliases[average].container)] = []
    for variable in aliases:
        if id(aliases[variable].container) in groups:
            groups[id(aliases[variable].container)].append(variable)
    return [sorted(group, key=lambda alias: aliases[alias].application or 0)
            for group in groups.values()]


def _update_as_one(fgraph, group, aliases, placeholders, steps):
    """Make aliases one variable, and their updates one chain.

    An update that the user gave for the average itself takes the place of the
    chain, as an explicit update replaces a default update in all of Theano.

    Returns
    -------
    list of Theano variables
        The aliases that the chain moves on.
    """
    outputs = {fgraph.inputs[position]: index for index, position
               in (fgraph.update_mapping or {}).items()}
    given = [alias for alias in group
             if alias in outputs and aliases[alias].application is None]
    updated = [alias for alias in group
               if alias in placeholders or alias in outputs]
    if len(group) > 1 and fgraph.update_mapping is None and any(
            steps[alias] for alias in group if alias not in updated):
        # A loop in a loop's step, whose updates the step passed on itself:
        # they are among the outputs of the step, and which ones is unknown.
        raise ValueError(_OUT_OF_REACH % group[0])
    if not updated:
        return []
    if given:
        average, value = given[0], fgraph.outputs[outputs[given[0]]]
    else:
        average = updated[0]
        value = _chain(average, _taken(updated, steps))
    for alias in group:
        if alias in placeholders:
            _replace(fgraph, placeholders[alias], value)
        if alias in outputs:
            fgraph.change_input("output", outputs[alias], value)
        # Now Theano can tell that what overwrites the one overwrites the
        # others: the average is an input that the function may overwrite.
        _replace(fgraph, alias, average)
    return [] if given else [alias for alias in updated if steps[alias]]


# What moves an average on

def _steps(marked, loops, computed):
    """For each running average, what it goes through in this graph.

    Parameters
    ----------
    marked : list of nodes
        With :class:`Marker`.
    loops : list of _Loop
    computed : set of Theano variables
        See :func:`bnlasagne.graphs.needed.needed`.

    Returns
    -------
    dict
        Average → list of steps. A step's method ``advance(value)`` takes the
        value before and returns that after.
    """
    steps = {}
    moves = [move for node in marked if node.outputs[0] in computed
             for move in Application(node).moves()]
    loops = [loop for loop in loops if not computed.isdisjoint(loop.outputs)]
    for loop in loops:
        moves.extend(loop.outside)
    for average, move in moves:
        known = steps.setdefault(average, [])
        if not any(step.is_like(move) for step in known):
            known.append(move)
    for loop in loops:
        for moving in loop.inside:
            for average in moving.finals:
                steps.setdefault(average, []).append(moving)
    return steps


def _taken(group, steps):
    """The steps of all aliases in a group, in order of application."""
    taken = []
    for alias in group:
        taken.extend(step for step in steps.get(alias, ())
                     if step not in taken)
    return taken


def _chain(average, steps):
    """The value of an average after some steps."""
    value = average
    for step in steps:
        value = step.advance(value)
        # Ranks compare how often an average moves.
        value.tag.moved = True
    return value


# The step of a loop (theano.scan) is a graph of its own. Theano makes each
# variable with a default update a state of the loop: its value before the loop
# is an input of the loop's node, its value in a step is an input of the step,
# and the default update, here the placeholder, is an output of the step.
#
# What a layer was applied to outside of the loop is the same in each step, and
# so are its statistics: there, the averages must not be a state of the loop.

class _Loop:
    """What becomes of running averages in a loop.

    Attributes
    ----------
    starts : set of Theano variables
        Aliases of averages that the loop gets.
    outputs : list of Theano variables
        Of the loop.
    inside : list of _MovedInLoop
        Averages that each step moves on.
    outside : list of pairs
        An average, and what moves it on, of applications outside of the loop.
    """

    def __init__(self, starts, outputs, inside, outside):
        self.starts = starts
        self.outputs = outputs
        self.inside = inside
        self.outside = outside


class _MovedInLoop:
    """An average is part of a loop's state and moves in each of its steps.

    Parameters
    ----------
    finals : dict
        For each alias of the average that the loop starts from, its value
        after the loop. All are equal.
    substitute : callable
        Takes a variable and a dict of replacements, and returns the variable
        with them made in what it is computed from.
    """

    def __init__(self, finals, substitute):
        self.finals = finals
        self.substitute = substitute

    def is_like(self, other):
        return False

    def advance(self, value):
        return self.substitute(next(iter(self.finals.values())),
                               dict.fromkeys(self.finals, value))


def _resolve_loops(fgraph, aliases):
    """Resolve the averages inside of loops, and tell what becomes of them.

    Returns
    -------
    list of _Loop
    """
    def substitute(variable, replacements):
        for old, new in replacements.items():
            _replace(fgraph, old, new)
        return variable

    loops = []
    for node in _nodes(fgraph, Scan):
        if _is_marked(node.op.outputs):
            loop = _resolve_loop(node, aliases, substitute)
            fgraph.replace_all(list(zip(node.outputs, loop.outputs)),
                               reason="running averages")
            loops.append(loop)
    return loops


def _is_marked(outputs):
    """Whether layers are applied in a graph or in a loop in it."""
    return any(isinstance(node.op, (Marker, UpdatedAverage))
               for node in all_nodes(outputs))


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


def _resolve_loop(node, aliases, substitute):
    """Make a new node like `node`, with the averages resolved.

    Returns
    -------
    _Loop
    """
    averages = [_initial(variable, aliases)
                for variable in node.op.outer_sitsot(node.inputs)]
    outside = _moves_outside(node)
    step = theano.gof.FunctionGraph(node.op.inputs, node.op.outputs)
    states = node.op.inner_sitsot(step.inputs)
    _resolve(step, {state: aliases[average]
                    for state, average in zip(states, averages)
                    if average is not None})
    inputs, outputs = list(step.inputs), list(step.outputs)
    step.disown()
    outputs = Scan(inputs, outputs, node.op.info)(
        *node.inputs, return_list=True)
    finals = node.op.outer_sitsot_outs(outputs)
    starts = {average for average in averages if average is not None}
    starts.update(average for average, _ in outside)
    return _Loop(starts, outputs,
                 _moved_inside(averages, finals, aliases, substitute),
                 outside)


def _moved_inside(averages, finals, aliases, substitute):
    """One _MovedInLoop for each average, with all of its aliases."""
    by_container = {}
    for average, final in zip(averages, finals):
        if average is not None:
            aliased = by_container.setdefault(
                id(aliases[average].container), {})
            aliased[average] = final[-1]
    return [_MovedInLoop(aliased, substitute)
            for aliased in by_container.values()]


def _moves_outside(node):
    """Find what moves averages on that a loop has as constants.

    Returns
    -------
    list of pairs
        An average, and what moves it on, as variables outside of the loop.
    """
    inner = inner_graph(node)
    computed, lift = needed(inner.outputs), inner.constants
    moves = []
    for each in io_toposort([], inner.outputs):
        if computed.isdisjoint(each.outputs):
            continue
        if isinstance(each.op, Marker):
            moves.extend(Application(each).moves())
        elif isinstance(each.op, Scan) and _is_marked(each.op.outputs):
            moves.extend(_moves_outside(each))
    return [(lift[average], move.lifted(lift)) for average, move in moves
            if average in lift and all(
                root in lift or isinstance(root, theano.Constant)
                for root in theano.gof.graph.inputs(move.variables()))]


def _held_in_loops(scan):
    """Have theano.scan leave averages of applications outside of it alone."""
    @functools.wraps(scan)
    def scan_and_hold(fn, *args, **kwargs):
        last = last_application()
        with contextlib.ExitStack() as stack:
            def step(*inputs):
                result = fn(*inputs)
                stack.enter_context(_held(_variables_in(result), last))
                return result
            return scan(step, *args, **kwargs)
    return scan_and_hold


@contextlib.contextmanager
def _held(variables, last):
    """Take the default updates from applications up to a number."""
    held = {root: root.default_update
            for root in theano.gof.graph.inputs(variables)
            if hasattr(root, "default_update")
            and (application_of(root) or last + 1) <= last}
    try:
        for root in held:
            del root.default_update
        yield
    finally:
        for root, update in held.items():
            root.default_update = update


def _variables_in(value):
    """The variables in what the step of a loop returned."""
    if isinstance(value, theano.Variable):
        return [value]
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, (list, tuple)):
        return [variable for each in value for variable in
                _variables_in(each)]
    # theano.scan_module.until
    return _variables_in(value.condition) if hasattr(
        value, "condition") else []


def _hold_in_loops():
    original = theano.scan
    wrapper = _held_in_loops(original)
    for module in (theano, theano.scan_module, theano.scan_module.scan_views):
        if module.scan is original:
            module.scan = wrapper


_hold_in_loops()


# Explicit updates

def get_batch_norm_updates(outputs, layers=None, combine="chain"):
    """Collect the updates of running averages from a graph.

    They are those that functions apply by themselves, as expressions to pass
    to :func:`theano.function`, change, or leave out.

    Parameters
    ----------
    outputs : Theano variable or list of Theano variables
        Outputs of layers, losses, gradients, or anything computed from
        outputs that were built for training.
    layers : Layer, list of Layer or None
        Batch normalization layers to collect the updates of; by default all.
    combine : 'chain', 'pool' or 'error'
        What to do where a layer was applied several times, or shares its
        averages with others. 'chain': the updates follow each other in the
        order of application, as they do by default; copies of one application
        that :func:`theano.clone` made, in the order in which `outputs` depend
        on them. 'pool': one update, by the statistics of all that the layer
        was applied to, taken together. 'error': it is an error.

    Returns
    -------
    OrderedDict
        Shared variable → its new value, in order of application. What a
        schedule of a layer's `alpha` moves on comes last; see
        :class:`CumulativeAverage`.

    Raises
    ------
    ValueError
        If one of the `layers` is not applied in the graph, with averages to
        update; if statistics are out of reach in another Op's graph; if
        applications cannot be combined as `combine` says.
    TypeError
        If an argument is of another type than stated.

    Notes
    -----
    An update that is passed for an average takes the place of the automatic
    one, so none is applied twice, with ``no_default_updates=True`` or without.
    Other layers in the function still update their averages by themselves. To
    have none do that, build the outputs with
    ``batch_norm_update_averages='explicit'``. (With
    ``no_default_updates=True``, random layers would repeat themselves.)

    Examples
    --------
    >>> import theano
    >>> from lasagne.layers import InputLayer, get_output
    >>> from bnlasagne import BatchNormLayer, get_batch_norm_updates
    >>> layer = BatchNormLayer(InputLayer((None, 3)))
    >>> x = theano.tensor.matrix()
    >>> output = get_output(layer, x, batch_norm_update_averages='explicit')
    >>> updates = get_batch_norm_updates(output)
    >>> list(updates)
    [mean, std]
    >>> train = theano.function([x], output, updates=updates)
    """
    if combine not in ("chain", "pool", "error"):
        raise ValueError("get_batch_norm_updates(): combine must be 'chain', "
                         "'pool' or 'error', got %r." % (combine,))
    caller = "get_batch_norm_updates()"
    wanted = wanted_averages(layers, caller)
    steps = find_steps(_checked_outputs(outputs, caller), wanted)
    check_applied(wanted, steps, caller)
    if wanted is None and not steps:
        warnings.warn(_NO_APPLICATION, stacklevel=2)
    updates = collections.OrderedDict(
        (average, combined(average, taken, combine))
        for average, taken in steps.items())
    for variable, value in scheduled_updates(steps).items():
        updates.setdefault(variable, value)
    return updates


def scheduled_updates(steps):
    """Updates of what moves on with the averages in their weights.

    Parameters
    ----------
    steps : dict
        As :func:`find_steps` returned it; without loops, whose updates
        include what moves on in them.

    Returns
    -------
    dict
        Shared variable → its new value.
    """
    return {variable: next_value(variable)
            for taken in steps.values() for step in taken
            if not isinstance(step, _MovedInLoop)
            for variable in moving_variables(step.alpha)}


_NO_APPLICATION = (
    "get_batch_norm_updates(): there is nothing to update, as no training "
    "output of a batch normalization layer is part of `outputs`. Pass "
    "get_output(network), or a loss computed from it, built without "
    "deterministic=True.")


def find_steps(outputs, wanted=None):
    """What the running averages go through in a graph.

    Parameters
    ----------
    outputs : list of Theano variables
        See :func:`get_batch_norm_updates`.
    wanted : dict or None
        As :func:`wanted_averages` returned it.

    Returns
    -------
    OrderedDict
        Shared variable → list of steps, in order of application.
    """
    aliases = _aliases(theano.gof.graph.inputs(outputs))
    nodes, computed = io_toposort([], outputs), needed(outputs)

    def substitute(variable, replacements):
        # A loop starts from all of its averages, not only the one in question.
        replaced = {alias: average_of(alias) for alias in aliases}
        replaced.update(replacements)
        return theano.clone(variable, replace=replaced)

    loops = [_resolve_loop(node, aliases, substitute) for node in nodes
             if isinstance(node.op, Scan) and _is_marked(node.op.outputs)
             and not computed.isdisjoint(node.outputs)]
    computed.update(output for loop in loops for output in loop.outputs)
    marked = [node for node in nodes if isinstance(node.op, Marker)]
    steps = _steps(marked, loops, computed)
    reached = {average for node in marked
               for average, _ in Application(node).moves()}.union(steps)
    for alias, (_, application) in aliases.items():
        if application is not None and alias in computed and (
                alias not in reached) and (
                wanted is None or average_of(alias) in wanted):
            raise ValueError(_OUT_OF_REACH % alias)
    found = {}
    for group in sorted(_groups(aliases, steps), key=_first_application):
        average = average_of(group[-1])
        taken = [step if isinstance(step, _MovedInLoop)
                 else step.weighted(_by_originals(step.alpha, aliases))
                 for step in _taken(group, steps)
                 if not isinstance(step, ScheduledMove)]
        if taken and (wanted is None or average in wanted):
            found[average] = taken
    return found


def _by_originals(alpha, aliases):
    """A weight, with the variables that move it on in place of aliases."""
    return theano.clone(alpha, replace={
        alias: average_of(alias) for alias in aliases})


def check_applied(wanted, found, caller):
    """Raise an error if there are no steps for an average."""
    for average, layer in (wanted or {}).items():
        if average not in found:
            raise ValueError(_NOT_APPLIED % (
                caller, label(layer), average))


_NOT_APPLIED = (
    "%s: none of the outputs was built in training mode from %s, so there is "
    "no update for its %s. Build one with get_output(network), without "
    "deterministic=True or batch_norm_update_averages=False; a frozen layer "
    "has no updates.")


def _first_application(group):
    return min(application_of(alias) for alias in group
               if application_of(alias) is not None)


def _checked_outputs(outputs, caller):
    """A list of variables."""
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [
        outputs]
    for output in outputs:
        if not isinstance(output, theano.Variable):
            raise TypeError("%s: outputs must be a Theano variable or a list "
                            "of them, got %r." % (caller, output))
    return outputs


def wanted_averages(layers, caller):
    """For each average of some layers, its layer; or None for all.

    Parameters
    ----------
    layers : Layer, list of Layer or None
        Batch normalization layers; or networks, or all layers of networks, for
        all batch normalization layers among them that are not frozen.
    caller : str
        For messages.

    Returns
    -------
    dict or None
    """
    if layers is None:
        return None
    if isinstance(layers, lasagne.layers.Layer):
        layers = [layers]
    given, layers = layers, list(layers)
    if not all(isinstance(layer, lasagne.layers.Layer) for layer in layers):
        raise TypeError("%s: layers must be batch normalization layers, or a "
                        "network with some, got %r." % (caller, given))
    chosen = [layer for layer in layers if _has_averages(layer)]
    if len(chosen) < len(layers):
        chosen = [layer for layer in chosen or all_layers(layers)
                  if _has_averages(layer) and not layer.frozen]
        if not chosen:
            raise TypeError("%s: layers must be batch normalization layers, "
                            "or a network with some that are not frozen, got "
                            "%r." % (caller, layers))
    return {average: layer for layer in chosen
            for average in (layer.mean, layer.std)}


def _has_averages(layer):
    return hasattr(layer, "mean") and hasattr(layer, "std")


def combined(average, steps, combine):
    """The value of an average after some steps.

    Parameters
    ----------
    average : Theano shared variable
    steps : list
        As :func:`find_steps` returned them.
    combine : 'chain', 'pool' or 'error'
        See :func:`get_batch_norm_updates`.

    Returns
    -------
    Theano variable
    """
    if len(steps) > 1 and combine == "error":
        raise ValueError(
            "The running average %s is to be updated by %d applications of "
            "layers. Choose combine='chain' or 'pool'."
            % (average, len(steps)))
    if len(steps) > 1 and combine == "pool":
        if any(isinstance(step, _MovedInLoop) for step in steps):
            raise ValueError(_NOT_POOLED % (
                average, "a loop is among them, whose steps have moved it"))
        if not have_one_weight(steps):
            raise ValueError(_NOT_POOLED % (
                average, "they have different weights, alpha"))
        steps = [pooled(steps)]
    return _chain(average, steps)


_NOT_POOLED = (
    "The running average %s is to be updated by several applications of "
    "layers, and these cannot be pooled: %s. Choose combine='chain'.")
