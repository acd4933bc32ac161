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
from theano.gof import toolbox

from ..theano_tools.needed import needed
from ..theano_tools.quiet_checks import quiet_checks
from .aliases import Alias, UpdatedAverage, aliases_among
from .chains import Chains, chain, out_of_reach
from .loops import Loop, is_marked_loop
from .marker import Marker
from .moves import ScheduledMove

__all__ = ["resolve"]


class ResolveAverages(toolbox.Feature):
    """Resolve the running averages of each function's graph as it is made.

    Theano attaches it to every graph before it optimizes, in all modes.
    """

    @quiet_checks()
    def on_attach(self, fgraph):
        # For a test value, Theano compiles the iteration of a loop by itself:
        # each of its states moves on, with nothing to chain.
        aliases = {variable: Alias(variable, None)
                   for variable in fgraph.inputs}
        aliases.update(aliases_among(fgraph.inputs))
        resolve(fgraph, aliases)
        # Nothing is left to listen for.
        raise toolbox.AlreadyThere("running averages are resolved")


function_module.std_fgraph.features.append(ResolveAverages)


def resolve(fgraph, aliases):
    """Replace all placeholders in a graph, in place, and remove the markers.

    `aliases` maps inputs that may stand for a stored variable to their
    `Alias`.
    """
    loops = [_replace_loop(fgraph, node, aliases)
             for node in fgraph.toposort() if is_marked_loop(node)]
    nodes = fgraph.toposort()
    if not loops and not any(isinstance(node.op, (Marker, UpdatedAverage))
                             for node in nodes):
        return
    chains = Chains(nodes, loops, needed(fgraph.outputs), aliases)
    updates = _Updates(fgraph, nodes)
    chains.check_reach(updates.placeholders)
    for alias in updates.placeholders:
        chains.moves.setdefault(alias, [])
    moved = set()
    for group in chains.groups():
        moved.update(_update_as_one(updates, group, chains, moved))
    for application in chains.applications:
        _replace(fgraph, application.output,
                 application.unmarked(chains.computed))


def _replace_loop(fgraph, node, aliases):
    """Put a loop with resolved averages in the place of a node's."""
    def substitute(variable, replacements):
        for old, new in replacements.items():
            _replace(fgraph, old, new)
        return variable

    loop = Loop(node, aliases, resolve, substitute)
    fgraph.replace_all(list(zip(node.outputs, loop.outputs)),
                       reason="running averages")
    return loop


class _Updates:
    """Set the new values of a graph's inputs.

    `outputs` maps an input to the index of the output that updates it,
    `placeholders` an alias to the placeholder for its new value.
    """

    def __init__(self, fgraph, nodes):
        self.fgraph = fgraph
        self.are_known = fgraph.update_mapping is not None
        self.outputs = {fgraph.inputs[position]: index for index, position
                        in (fgraph.update_mapping or {}).items()}
        self.placeholders = {node.inputs[0]: node.outputs[0] for node in nodes
                             if isinstance(node.op, UpdatedAverage)}
        # Another Op may fail after an average is computed. To leave the old
        # value then, the function must not compute in place of it.
        self._kept = function_module.Supervisor([])
        fgraph.attach_feature(self._kept)

    def __contains__(self, variable):
        return variable in self.outputs or variable in self.placeholders

    def keep(self, variable):
        self._kept.protected.append(variable)

    def set(self, variable, value):
        if variable in self.placeholders:
            _replace(self.fgraph, self.placeholders[variable], value)
        if variable in self.outputs:
            self.fgraph.change_input("output", self.outputs[variable], value)


def _update_as_one(updates, group, chains, moved):
    """Make aliases of a variable one variable, and their moves one chain.

    An update that the user gave for the variable itself takes the place of
    the chain, as an explicit update replaces a default update in all of
    Theano. `moved` are the aliases that move so far; those that the chain
    moves are returned.
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
             and chains.aliases[alias].application is None]
    average = (given or updated)[0]
    # A schedule moves on with the averages that have its weight.
    moves = [move for move in chains.of(updated)
             if not isinstance(move, ScheduledMove)
             or moved.intersection(move.averages)]
    value = updates.fgraph.outputs[updates.outputs[average]] if given \
        else chain(average, moves)
    for alias in group:
        updates.set(alias, value)
        _replace(updates.fgraph, alias, average)
    updates.keep(average)
    return [] if given else [alias for alias in updated
                             if chains.moves.get(alias)]


def _replace(fgraph, old, new):
    if old is not new and old in fgraph.variables:
        fgraph.replace(old, new, reason="running averages")
