"""Move running averages in every function that is made from an output.

A layer that normalizes by the statistics of a batch also moves its running
averages, without the user passing any updates. Three pieces do this:

1. A marker ties *aliases* of the running averages to the layer's output
   (:mod:`bnlasagne.averages.marker`). Theano makes their default updates
   outputs of the function.
2. These default updates are placeholders (:mod:`bnlasagne.averages.aliases`),
   which stay valid whatever users do to the graph.
3. When a function is made, :class:`ResolveAverages` puts the moves where the
   placeholders are, by the statistics that it finds in *that* function's
   graph, and removes the markers.

Aliases of one average share a buffer without Theano knowing. The third step
therefore also makes them one variable, and chains their moves in the order in
which the layer was applied.
"""

from theano.compile import function_module
from theano.gof import FunctionGraph, toolbox
from theano.scan_module.scan_op import Scan

from ..theano_tools.needed import needed
from ..theano_tools.quiet_checks import quiet_checks
from .aliases import Alias, UpdatedAverage, aliases_among
from .applications import Application
from .chains import Chains, chain, out_of_reach
from .loops import Loop, LoopMoves, initial_averages, is_marked_loop
from .marker import Marker
from .moves import ScheduledMove

__all__ = ["ResolveAverages", "resolved_loop"]


class ResolveAverages(toolbox.Feature):
    """Resolve the running averages of each function's graph as it is made.

    Theano attaches it to the graph of every function before it optimizes, in
    all modes, also those without any optimization.
    """

    # Whatever the user asks Theano to check in the user's own expressions.
    @quiet_checks()
    def on_attach(self, fgraph):
        # For a test value, Theano compiles the iteration of a loop by itself:
        # each of its states moves on, with nothing to chain.
        aliases = {variable: Alias(variable, None)
                   for variable in fgraph.inputs}
        aliases.update(aliases_among(fgraph.inputs))
        _resolve(fgraph, aliases)
        # What was to do is done, nothing is left to listen for.
        raise toolbox.AlreadyThere("running averages are resolved")


function_module.std_fgraph.features.append(ResolveAverages)


def _resolve(fgraph, aliases):
    """Replace all placeholders in a graph and remove the markers.

    Parameters
    ----------
    fgraph : FunctionGraph
        The graph, which is changed in place.
    aliases : dict
        For the graph's inputs that may stand for a stored variable, their
        `Alias`.
    """
    loops = _resolve_loops(fgraph, aliases)
    if not loops and not any(isinstance(node.op, (Marker, UpdatedAverage))
                             for node in fgraph.apply_nodes):
        return
    nodes, computed = fgraph.toposort(), needed(fgraph.outputs)
    applications = [Application(node) for node in nodes
                    if isinstance(node.op, Marker)]
    chains = Chains(aliases, applications, loops, computed)
    updates = _Updates(fgraph, nodes)
    for alias in updates.placeholders:
        if alias not in aliases or (
                alias in computed and alias not in chains.moves):
            raise out_of_reach(alias)
        chains.moves.setdefault(alias, [])
    moved = set()
    for group in chains.groups():
        moved.update(_update_as_one(updates, group, aliases, chains, moved))
    for application in applications:
        _replace(fgraph, application.output, application.unmarked(computed))


class _Updates:
    """The places in a graph where inputs get their new values.

    Attributes
    ----------
    outputs : dict
        Input → index of the output that updates it.
    placeholders : dict
        Alias → placeholder for its new value.
    """

    def __init__(self, fgraph, nodes):
        self.fgraph = fgraph
        self.are_known = fgraph.update_mapping is not None
        self.outputs = {fgraph.inputs[position]: index for index, position
                        in (fgraph.update_mapping or {}).items()}
        self.placeholders = {node.inputs[0]: node.outputs[0] for node in nodes
                             if isinstance(node.op, UpdatedAverage)}

    def __contains__(self, variable):
        return variable in self.outputs or variable in self.placeholders

    def new_value(self, variable):
        return self.fgraph.outputs[self.outputs[variable]]

    def set(self, variable, value):
        if variable in self.placeholders:
            _replace(self.fgraph, self.placeholders[variable], value)
        if variable in self.outputs:
            self.fgraph.change_input("output", self.outputs[variable], value)


def _update_as_one(updates, group, aliases, chains, moved):
    """Make aliases of a variable one variable, and their moves one chain.

    An update that the user gave for the variable itself takes the place of
    the chain, as an explicit update replaces a default update in all of
    Theano.

    Parameters
    ----------
    moved : set of Theano variables
        The aliases that are moved so far.

    Returns
    -------
    list of Theano variables
        The aliases that the chain moves.
    """
    updated = [alias for alias in group if alias in updates]
    if len(group) > 1 and not updates.are_known and any(
            chains.moves.get(alias) for alias in set(group).difference(
                updated)):
        # A loop in a loop's iteration, whose updates the iteration passed on
        # itself: they are among its outputs, and which ones is unknown.
        raise out_of_reach(group[0])
    if not updated:
        return []
    given = [alias for alias in updated if alias in updates.outputs
             and aliases[alias].application is None]
    average = (given or updated)[0]
    # A schedule moves on with the averages that have its weight.
    moves = [move for move in chains.of(updated)
             if not isinstance(move, ScheduledMove)
             or moved.intersection(move.averages)]
    value = updates.new_value(average) if given else chain(average, moves)
    for alias in group:
        updates.set(alias, value)
        # Now Theano can tell that what overwrites the one overwrites the
        # others: the average is an input that the function may overwrite.
        _replace(updates.fgraph, alias, average)
    return [] if given else [alias for alias in updated
                             if chains.moves.get(alias)]


def _replace(fgraph, old, new):
    if old is not new and old in fgraph.variables:
        fgraph.replace(old, new, reason="running averages")


# Loops

def _resolve_loops(fgraph, aliases):
    """Resolve the averages inside of loops; the loops."""
    def substitute(variable, replacements):
        for old, new in replacements.items():
            _replace(fgraph, old, new)
        return variable

    marked = [node for node in fgraph.apply_nodes if isinstance(node.op, Scan)
              and is_marked_loop(node)]
    loops = []
    for node in fgraph.toposort() if marked else ():
        if node in marked:
            loop = resolved_loop(node, aliases, substitute)
            fgraph.replace_all(list(zip(node.outputs, loop.outputs)),
                               reason="running averages")
            loops.append(loop)
    return loops


def resolved_loop(node, aliases, substitute):
    """Make a loop like a node's, with the averages resolved in it.

    Parameters
    ----------
    node : Theano node
        With a ``Scan``.
    aliases : dict
        As for a graph.
    substitute : callable
        See :class:`bnlasagne.averages.loops.LoopMoves`.

    Returns
    -------
    Loop
    """
    averages = initial_averages(node, aliases)
    iteration = FunctionGraph(node.op.inputs, node.op.outputs)
    _resolve(iteration, {
        state: aliases[average] for state, average
        in zip(node.op.inner_sitsot(iteration.inputs), averages)
        if average is not None})
    inputs, outputs = list(iteration.inputs), list(iteration.outputs)
    iteration.disown()
    outputs = Scan(inputs, outputs, node.op.info)(
        *node.inputs, return_list=True)
    finals = {}
    for average, states in zip(averages, node.op.outer_sitsot_outs(outputs)):
        if average is not None:
            container = id(aliases[average].container)
            finals.setdefault(container, {})[average] = states[-1]
    return Loop(node, outputs, [LoopMoves(each, substitute)
                                for each in finals.values()])
