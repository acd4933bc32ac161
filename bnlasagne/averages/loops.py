"""Move running averages in loops (theano.scan).

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
from theano.gof import FunctionGraph
from theano.gof.graph import inputs
from theano.scan_module.scan_op import Scan

from ..theano_tools.loops import all_nodes, inner_graph
from .aliases import UpdatedAverage, application_of
from .applications import Application, lifted, markers_in
from .marker import Marker, last_application

__all__ = ["Loop", "LoopMoves", "is_marked_loop"]


class Loop:
    """Make a loop like that of a node, with the averages resolved in it.

    `aliases` maps the variables that may stand for a stored one to their
    `Alias`; ``resolve(iteration, aliases)`` is
    :func:`bnlasagne.averages.automatic.resolve`.
    """

    def __init__(self, node, aliases, resolve, substitute):
        self._outside = list(_outside(node))
        op = node.op
        averages = [_initial(variable, aliases)
                    for variable in op.outer_sitsot(node.inputs)]
        iteration = FunctionGraph(op.inputs, op.outputs)
        resolve(iteration, {
            state: aliases[average] for state, average
            in zip(op.inner_sitsot(iteration.inputs), averages)
            if average is not None})
        inner = list(iteration.inputs), list(iteration.outputs)
        iteration.disown()
        self.outputs = Scan(*inner, op.info)(*node.inputs, return_list=True)
        finals = {}
        for average, states in zip(averages,
                                   op.outer_sitsot_outs(self.outputs)):
            if average is not None:
                container = id(aliases[average].container)
                finals.setdefault(container, {})[average] = states[-1]
        self._inside = [LoopMoves(each, substitute)
                        for each in finals.values()]

    def moves(self):
        """List each alias that the loop moves, with its moves."""
        return [pair for application in self._outside
                for pair in application.moves()] + [
            (alias, moves) for moves in self._inside for alias in moves.finals]


class LoopMoves:
    """Move an average that is a state of a loop, in all iterations.

    `finals` maps each alias of the average that the loop starts from to its
    value after the loop; all are equal. ``substitute(variable, replacements)``
    returns a variable with replacements made in what it is computed from.
    """

    def __init__(self, finals, substitute):
        self.finals, self._substitute = finals, substitute

    def is_copy_of(self, other):
        return False

    def advance(self, average):
        return self._substitute(next(iter(self.finals.values())),
                                dict.fromkeys(self.finals, average))


def is_marked_loop(node):
    """Tell whether a node is a loop with applications of layers in it."""
    return isinstance(node.op, Scan) and any(
        isinstance(inner.op, (Marker, UpdatedAverage))
        for inner in all_nodes(node.op.outputs))


def _initial(variable, aliases):
    """Return the alias that theano.scan made a first state of, or None."""
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
    """Yield applications outside of a loop whose averages it has as constants.

    Its iterations take gradients through them.
    """
    inner = inner_graph(node)
    for marker in markers_in(inner.outputs, Scan):
        application = Application(marker)
        if application.averages and all(
                root in inner.constants or isinstance(root, theano.Constant)
                for root in inputs(application.variables())):
            yield Application(lifted(marker, inner.constants))


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


_original = theano.scan
_wrapper = _holding(_original)
for _module in (theano, theano.scan_module, theano.scan_module.scan_views):
    if _module.scan is _original:
        _module.scan = _wrapper
