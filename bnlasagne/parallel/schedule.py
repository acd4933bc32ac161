"""Compare what a function does on all ranks, before it does anything.

Functions that exchange equal messages may still do different things. So a
schedule also names the shared variables that the function updates, and the
outputs that it computes from messages.
"""

from collections import namedtuple

import numpy as np
import theano
import theano.tensor as T
from theano.gof import toolbox
from theano.gof.graph import ancestors

from .collectives import Collective
from .compiling import function_name

__all__ = ["RecordUpdates", "Schedule", "schedule_of", "sources_of"]

# What these compute depends on no value.
_SHAPES = (theano.compile.Shape, theano.compile.Shape_i)


class Schedule(theano.Op):
    """Give the first token, after a comparison with the other ranks.

    `plans` has, for each channel that the function uses: the channel; lines on
    the messages in their order, then on what the function updates and returns;
    and notes on the messages.
    """

    __props__ = ("plans",)

    def __init__(self, plans):
        self.plans = plans

    def __str__(self):
        n_messages = sum(len(notes) for *_, notes in self.plans)
        return f"Schedule{{{n_messages} messages}}"

    def make_node(self):
        return theano.Apply(self, [], [theano.gof.generic()])

    def perform(self, node, inputs, output_storage):
        for channel, lines, _ in self.plans:
            channel.agree(lines)
        for channel, _, notes in self.plans:
            channel.expect(notes)
        output_storage[0][0] = True

    def do_constant_folding(self, node):
        return False


def schedule_of(fgraph, nodes):
    """Make the schedule of a graph; `nodes` are its collectives, in order."""
    messages = {}
    for node in nodes:
        messages.setdefault(node.op.channel, []).append(node)
    plans = []
    for channel, mine in messages.items():
        first, *others = [node.op.describe(node) for node in mine]
        plans.append((channel, (
            f"a function that exchanges, first, {first}", *others,
            "nothing more to exchange", *_results(fgraph, mine)),
            _notes(mine)))
    return Schedule(tuple(plans))


def _notes(nodes):
    """Describe messages by their number, for a rank that ends in one."""
    return tuple(
        f"message {number} of {len(nodes)} of {function_name()}: "
        f"{node.op.what}".encode() for number, node in enumerate(nodes, 1))


def sources_of(fgraph, skipped=()):
    """Map variables to the messages that they are computed from.

    Messages are frozensets of nodes, without those that only other messages
    are computed from. Outputs of Ops of the types `skipped` count as computed
    from no message.
    """
    found = {variable: frozenset() for variable in fgraph.variables}
    for node in fgraph.toposort():
        if isinstance(node.op, Collective):
            sources = frozenset([node])
        elif isinstance(node.op, skipped):
            continue
        else:
            sources = frozenset().union(*map(found.get, node.inputs))
        found.update(dict.fromkeys(node.outputs, sources))
    return found


# Lines on what a function updates and returns

def _results(fgraph, messages):
    """Describe what a function does with the messages of one channel.

    An output that comes from no message needs no other rank, so each rank may
    have its own. The same holds for an update by the messages of other
    channels only. A running average that moves by the batches of one rank
    differs from rank to rank in any case.
    """
    sources = sources_of(fgraph, _SHAPES)
    expressions = next((feature.found for feature in fgraph._features
                        if isinstance(feature, _Expressions)), {})
    updated = _updated(fgraph)
    updates, outputs = [], []
    for index, output in enumerate(fgraph.outputs):
        numbers = [number for number, node in enumerate(messages, 1)
                   if node in sources[output]]
        if index in updated:
            expression = expressions.get(index)
            is_local_average = expression and expression.n_moves
            if numbers or not (is_local_average or sources[output]):
                updates.append((not updated[index].name, _update_line(
                    updated[index], numbers, expression)))
        elif numbers and index not in (fgraph.update_mapping or {}):
            outputs.append(f"an output ({_type(output)}){_from(numbers)}")
    # The user may give the updates in any order.
    return [line for _, line in sorted(updates)] + outputs


def _updated(fgraph):
    """Map each output that is an update to the variable that it updates.

    Of the aliases of a running average, which share one update, only one.
    """
    found = {}
    for index, position in sorted((fgraph.update_mapping or {}).items()):
        variable = fgraph.inputs[position]
        if fgraph.outputs[index] is not variable:
            found.setdefault(id(getattr(variable, "container", variable)),
                             (index, variable))
    return dict(found.values())


def _update_line(variable, numbers, expression):
    name = variable.name or "a variable without a name"
    kind = _type(variable)
    if numbers and expression and expression.is_common:
        shape = getattr(variable.get_value(borrow=True), "shape", None)
        kind = f"{getattr(variable, 'dtype', variable.type)}, shape {shape}"
    return (f"an update of {name} ({kind}){_from(numbers)}"
            + (expression.text if expression else ""))


def _type(variable):
    # Without the broadcast pattern, which a part of one example may change.
    if not isinstance(variable.type, T.TensorType):
        return str(variable.type)
    n = variable.ndim
    return f"{variable.dtype}, " + (
        f"{n} {_plural('dimension', n)}" if n else "scalar")


def _from(numbers):
    if not numbers:
        return ""
    return f", from {_plural('message', len(numbers))} " + ", ".join(
        map(str, numbers))


def _plural(noun, number):
    return noun if number == 1 else noun + "s"


# How the user wrote the updates

class RecordUpdates(theano.gof.Optimizer):
    """Record how a function computes its updates, as the user wrote them.

    It comes before all other optimizations: these fold constants, and choose
    the Ops that are fastest on the machine of one rank.
    """

    def apply(self, fgraph):
        if any(isinstance(node.op, Collective) for node in fgraph.apply_nodes):
            fgraph.attach_feature(_Expressions(fgraph))


theano.compile.optdb.register(
    "bnlasagne_record_updates", RecordUpdates(), -1, "fast_run",
    "fast_compile")


class _Expressions(toolbox.Feature):
    """Keep the `_Expression` of each update of a graph, by output."""

    def __init__(self, fgraph):
        state = {fgraph.inputs[position] for position
                 in (fgraph.update_mapping or {}).values()}
        self.found = {index: _expression(fgraph.outputs[index], state)
                      for index in _updated(fgraph)}


# How often a running average moves, 0 for all other variables; whether the
# update has to be the same on all ranks; and a text with the constants in it.
_Expression = namedtuple("_Expression", "n_moves is_common text")


def _expression(update, state):
    """Tell an update from others that are computed from the same messages.

    It is common if it is computed from messages, from the shared variables
    that the function updates, `state`, from constants and from scalars.
    Otherwise it depends on the rank's data, and so may its constants.
    """
    sources = {variable for variable in ancestors([update])
               if variable.owner is not None and isinstance(
                   variable.owner.op, (Collective,) + _SHAPES)}
    variables = ancestors([update], sources)
    n_moves = sum(hasattr(variable.tag, "moved") for variable in variables)
    is_common = all(
        isinstance(variable, theano.Constant) or variable.owner is not None
        or variable in state or getattr(variable, "ndim", None) == 0
        for variable in variables)
    text = f", in {n_moves} {_plural('move', n_moves)}" if n_moves else ""
    # Such as alpha or a learning rate; expressions are full of 0 and 1.
    numbers = {
        f"{value.item():.9g}" for value in (
            np.asarray(variable.data) for variable in variables
            if isinstance(variable, theano.Constant))
        if value.size == 1 and value.dtype.kind == "f"
        and value.item() not in (0, 1)}
    if is_common and numbers:
        text += f", with the {_plural('constant', len(numbers))} "
        text += ", ".join(sorted(numbers, key=float))
    return _Expression(n_moves, is_common, text)
