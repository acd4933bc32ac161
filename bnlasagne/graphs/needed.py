"""Find what a graph computes the values of.

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
    """Find the variables whose values some outputs are computed from.

    Parameters
    ----------
    outputs : list of Theano variables

    Returns
    -------
    set of Theano variables
        Not among them: variables of which only the shape is used.
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
    """The inputs of a node whose values, not only shapes, it uses.

    Returns
    -------
    list of Theano variables
    """
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
