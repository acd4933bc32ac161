"""How running averages leave a graph.

A layer that normalizes by the statistics of a batch also wants its stored
averages moved towards them, by every function that is compiled from its
output and without the user passing any updates. Three pieces do this:

1. :func:`bnlasagne.tracking.track` ties memory-aliased *clones* of the stored
   averages to the layer's output. Theano finds the clones there, sees that
   they have a ``default_update`` and makes it an output of the function.
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

import lasagne
import theano
import theano.tensor as T
from theano.compile.function_module import std_fgraph
from theano.compile.sharedvalue import SharedVariable
from theano.gof import toolbox
from theano.gof.graph import io_toposort
from theano.scan_module.scan_op import Scan

from .tracking import (
    TrackAverages,
    UpdatedAverage,
    application_of,
    average_of,
    has_one_weight,
    pooled,
    tracks,
)

__all__ = [
    "ResolveAverages",
    "check_applied",
    "combined",
    "find_steps",
    "get_batch_norm_updates",
    "wanted_averages",
]


class ResolveAverages(toolbox.Feature):
    """Resolve the running averages of each function's graph as it is made.

    Theano attaches it to the graph of every function before it optimizes, in
    all modes, also those without any optimization.
    """

    def on_attach(self, fgraph):
        _resolve(fgraph, _aliases(fgraph.inputs))
        # What was to do is done, nothing is left to listen for.
        raise toolbox.AlreadyThere("running averages are resolved")


std_fgraph.features.append(ResolveAverages)


# What a variable stands for: the memory that holds its value, and the
# application that it was cloned for, or None for the average itself.
_Alias = collections.namedtuple("_Alias", "container application")


def _aliases(variables):
    """Those of a graph's inputs that may stand for a stored average."""
    return collections.OrderedDict(
        (variable, _Alias(variable.container, application_of(variable)))
        for variable in variables if isinstance(variable, SharedVariable))


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
    tracked = _nodes(fgraph, TrackAverages)
    steps = _steps(tracked, loops)
    placeholders = {node.inputs[0]: node.outputs[0]
                    for node in _nodes(fgraph, UpdatedAverage)}
    for average in placeholders:
        if average not in steps or average not in aliases:
            raise ValueError(_OUT_OF_REACH % average)
    for group in _groups(aliases, steps):
        _update_as_one(fgraph, group, aliases, placeholders, steps)
    for node in tracked:
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
        average = moving[0]
        value = _chain(average, _taken(moving, steps))
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


# What moves an average on

def _steps(tracked, loops):
    """For each running average, what it goes through in this graph.

    Returns
    -------
    dict
        Average → list of steps. A step's method ``advance(value)`` takes the
        value before and returns that after.
    """
    steps = collections.OrderedDict()
    for node in tracked:
        for average, move in node.op.moves(node):
            known = steps.setdefault(average, [])
            if not any(step.is_like(move) for step in known):
                known.append(move)
    for loop in loops:
        for average in loop.finals:
            steps.setdefault(average, []).append(loop)
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
    return value


class _Loop(object):
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
        return self.substitute(list(self.finals.values())[0],
                               dict.fromkeys(self.finals, value))


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
    def substitute(variable, replacements):
        for old, new in replacements.items():
            _replace(fgraph, old, new)
        return variable

    loops = []
    for node in _nodes(fgraph, Scan):
        if _is_tracked(node.op.outputs):
            outputs, found = _resolve_loop(node, aliases, substitute)
            fgraph.replace_all(list(zip(node.outputs, outputs)),
                               reason="running averages")
            loops.extend(found)
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


def _resolve_loop(node, aliases, substitute):
    """A new node like `node`, with the averages resolved.

    Returns
    -------
    outputs : list of Theano variables
        Of the new node.
    loops : list of _Loop
        What it does to averages.
    """
    averages = [_initial(variable, aliases)
                for variable in node.op.outer_sitsot(node.inputs)]
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
    return outputs, _loops(averages, finals, aliases, substitute)


def _loops(averages, finals, aliases, substitute):
    """One _Loop for each average, with all of its aliases."""
    by_container = collections.OrderedDict()
    for average, final in zip(averages, finals):
        if average is not None:
            aliased = by_container.setdefault(
                id(aliases[average].container), collections.OrderedDict())
            aliased[average] = final[-1]
    return [_Loop(aliased, substitute) for aliased in by_container.values()]


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
        Shared variable → its new value, in order of application.

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
    return collections.OrderedDict(
        (average, combined(average, taken, combine))
        for average, taken in steps.items())


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
    nodes = io_toposort([], outputs)

    def substitute(variable, replacements):
        # A loop starts from all of its averages, not only the one in question.
        replaced = {alias: average_of(alias) for alias in aliases}
        replaced.update(replacements)
        return theano.clone(variable, replace=replaced)

    loops = [loop for node in nodes
             if isinstance(node.op, Scan) and _is_tracked(node.op.outputs)
             for loop in _resolve_loop(node, aliases, substitute)[1]]
    steps = _steps(tracks(nodes), loops)
    for alias, (_, application) in aliases.items():
        if application is not None and alias not in steps and (
                wanted is None or average_of(alias) in wanted):
            raise ValueError(_OUT_OF_REACH % alias)
    found = collections.OrderedDict()
    for group in sorted(_groups(aliases, steps), key=_first_application):
        average = average_of(group[-1])
        if wanted is None or average in wanted:
            found[average] = _taken(group, steps)
    return found


def check_applied(wanted, found, caller):
    """Raise an error if there are no steps for an average."""
    for average, layer in (wanted or {}).items():
        if average not in found:
            raise ValueError(_NOT_APPLIED % (
                caller, layer.name or type(layer).__name__, average))


_NOT_APPLIED = (
    "%s: layer %s is applied nowhere so that its running average %s is to be "
    "updated. Frozen layers, outputs for testing, and those that are "
    "built with batch_norm_update_averages=False update none.")


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
    """For each average of some layers, its layer; or None for all."""
    if layers is None:
        return None
    if isinstance(layers, lasagne.layers.Layer):
        layers = [layers]
    wanted = collections.OrderedDict()
    for layer in layers:
        if not (hasattr(layer, "mean") and hasattr(layer, "std")):
            raise TypeError("%s: layers must be batch normalization layers, "
                            "got %r." % (caller, layer))
        wanted.update([(layer.mean, layer), (layer.std, layer)])
    return wanted


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
        if any(isinstance(step, _Loop) for step in steps):
            raise ValueError(_NOT_POOLED % (
                average, "a loop is among them, whose steps have moved it"))
        if not has_one_weight(steps):
            raise ValueError(_NOT_POOLED % (
                average, "they have different weights, alpha"))
        steps = [pooled(steps)]
    return _chain(average, steps)


_NOT_POOLED = (
    "The running average %s is to be updated by several applications of "
    "layers, and these cannot be pooled: %s. Choose combine='chain'.")
