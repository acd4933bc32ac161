"""Find what a graph computes the values of.

A `ReshapeLayer` may be given ``get_output(layer).shape[0]``, of an output that
is needed only for its shape. Such an output is part of the graph, but no
function computes it. So it must not count as an application.
"""

import theano
import theano.tensor as T
from theano.compile.ops import Shape, Shape_i
from theano.scan_module.scan_op import Scan

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
    if isinstance(op, Scan):
        return _inputs_of_loop(node)
    if isinstance(op, theano.OpFromGraph):
        inner = needed(op.local_outputs)
        return [variable for variable, argument
                in zip(node.inputs, op.local_inputs) if argument in inner]
    if hasattr(op, "inputs_by_value"):
        return op.inputs_by_value(node)
    return node.inputs


def _inputs_of_loop(node):
    """The same for a loop (theano.scan), whose iteration is a graph too."""
    op, positions = node.op, list(range(len(node.inputs)))
    in_iteration = needed(op.outputs)
    unused = {
        position for outer, inner in (
            (op.outer_seqs, op.inner_seqs),
            (op.outer_non_seqs, op.inner_non_seqs))
        for position, variable in zip(outer(positions), inner(op.inputs))
        if variable not in in_iteration}
    return [node.inputs[position] for position in positions
            if position not in unused]
