"""Read what becomes of running averages in a loop (theano.scan).

An iteration of a loop is a graph of its own. Theano makes each variable with a
default update a state of the loop: its value before the loop is an input of
the loop's node, its value in an iteration is an input of the iteration, and
the default update, here the placeholder, is an output of the iteration.

What a layer was applied to outside of the loop is the same in each iteration,
and so are its statistics: there, the averages must not be a state of the loop.
Importing this module changes ``theano.scan`` so that they are not.
"""

import contextlib
import functools

import theano
import theano.tensor as T
from theano.gof.graph import inputs
from theano.scan_module.scan_op import Scan

from ..theano_tools.loops import all_nodes, inner_graph
from .aliases import UpdatedAverage, application_of
from .applications import Application, lifted, markers_in
from .marker import Marker, last_application

__all__ = ["Loop", "LoopMoves", "initial_averages", "is_marked_loop"]


class Loop:
    """A loop whose averages are resolved in the iteration.

    Parameters
    ----------
    node : Theano node
        The loop as the user built it.
    outputs : list of Theano variables
        Of the loop that takes its place.
    inside : list of LoopMoves
        Of the averages that each iteration moves.
    """

    def __init__(self, node, outputs, inside):
        self.outputs = outputs
        self._inside = inside
        self._outside = list(_outside(node))

    def moves(self):
        """Pairs of an alias and its moves, of all that the loop moves."""
        return [pair for application in self._outside
                for pair in application.moves()] + [
            (alias, moves) for moves in self._inside for alias in moves.finals]


class LoopMoves:
    """The moves of an average that is a state of a loop, in all iterations.

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
        self._substitute = substitute

    def is_like(self, other):
        return False

    def advance(self, average):
        return self._substitute(next(iter(self.finals.values())),
                                dict.fromkeys(self.finals, average))


def is_marked_loop(node):
    """Whether a node is a loop with applications of layers in it."""
    return isinstance(node.op, Scan) and any(
        isinstance(inner.op, (Marker, UpdatedAverage))
        for inner in all_nodes(node.op.outputs))


def initial_averages(node, aliases):
    """For each state of a loop, the alias that it starts from, or None.

    Parameters
    ----------
    node : Theano node
        With a ``Scan``.
    aliases : dict
        For the variables that may stand for a stored one, their `Alias`.
    """
    return [_initial(variable, aliases)
            for variable in node.op.outer_sitsot(node.inputs)]


def _initial(variable, aliases):
    """The alias that theano.scan made an initial state from, or None."""
    while variable.owner is not None:
        op, parents = variable.owner.op, variable.owner.inputs
        if isinstance(op, T.IncSubtensor):
            variable = parents[1]
        elif isinstance(op, (T.Rebroadcast, T.DimShuffle)):
            variable = parents[0]
        else:
            return None
    alias = aliases.get(variable)
    return variable if alias and alias.application is not None else None


def _outside(node):
    """The applications outside of a loop whose averages it has as constants.

    Its iterations take gradients through them.
    """
    inner = inner_graph(node)
    for marker in markers_in(inner.outputs, Scan):
        application = Application(marker)
        if application.averages and all(
                root in inner.constants or isinstance(root, theano.Constant)
                for root in inputs(application.variables())):
            yield Application(lifted(marker, inner.constants))


# What changes theano.scan

def _holding(scan):
    """Have theano.scan leave averages of applications outside of it alone."""
    @functools.wraps(scan)
    def scan_and_hold(fn, *args, **kwargs):
        last = last_application()
        with contextlib.ExitStack() as stack:
            def iteration(*variables):
                result = fn(*variables)
                stack.enter_context(_held(_variables_in(result), last))
                return result
            return scan(iteration, *args, **kwargs)
    return scan_and_hold


@contextlib.contextmanager
def _held(variables, last):
    """Take the default updates from applications up to a number."""
    held = {root: root.default_update for root in inputs(variables)
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
    """The variables in what an iteration returned."""
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
    wrapper = _holding(original)
    for module in (theano, theano.scan_module, theano.scan_module.scan_views):
        if module.scan is original:
            module.scan = wrapper


_hold_in_loops()
