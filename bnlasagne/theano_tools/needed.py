"""Find the variables whose values a graph computes.

A `ReshapeLayer` may be given ``get_output(layer).shape[0]``, of an output that
is needed only for its shape. Such an output is part of the graph, but no
function computes it. So it must not count as an application.
"""

import theano
import theano.tensor as T
from theano.compile.ops import Shape, Shape_i

from .loops import inner_graph

__all__ = ["inputs_by_value", "needed"]


def needed(outputs):
    """Return the set of variables whose values some outputs are computed from.

    Variables of which only the shape is used are not among them.
    """
    found, stack = set(), list(outputs)
    while stack:
        variable = stack.pop()
        if variable not in found:
            found.add(variable)
            if variable.owner is not None:
                stack.extend(inputs_by_value(variable.owner))
    return found


def inputs_by_value(node):
    """List the inputs of a node whose values, not only shapes, it uses."""
    op = node.op
    if isinstance(op, (Shape, Shape_i)):
        return []
    if isinstance(op, T.Elemwise) and isinstance(
            op.scalar_op, theano.scalar.Second):
        # T.fill, T.zeros_like: an array of the shape of the first input.
        return node.inputs[1:]
    if hasattr(op, "inputs_by_value"):
        return op.inputs_by_value(node)
    inner = inner_graph(node)
    if inner is None:
        return node.inputs
    used = needed(inner.outputs)
    return [variable for variable, argument in zip(node.inputs, inner.inputs)
            if argument is None or argument in used]
