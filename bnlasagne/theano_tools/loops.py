"""Read the graph within a node.

Nodes with a graph are loops (``theano.scan``), graphs used as an Op
(``OpFromGraph``), and conditions (``theano.ifelse``).
"""

import collections

from theano.compile.builders import OpFromGraph
from theano.gof.graph import io_toposort
from theano.ifelse import IfElse
from theano.scan_module.scan_op import Scan

__all__ = ["all_nodes", "inner_graph"]


# For each input of the node, `inputs` has the variable that stands for its
# value, or for slices of it; None where there is not exactly one, as for a
# state of a loop. `constants` maps variables to inputs of the node with the
# same value whenever the graph is computed.
InnerGraph = collections.namedtuple("InnerGraph", "outputs inputs constants")


def inner_graph(node):
    """Return the `InnerGraph` of a node, or None if it has none."""
    op = node.op
    if isinstance(op, Scan):
        return _iteration(node)
    if isinstance(op, OpFromGraph):
        return InnerGraph(op.local_outputs, list(op.local_inputs),
                          dict(zip(op.local_inputs, node.inputs)))
    if isinstance(op, IfElse):
        branches = node.inputs[1:]
        return InnerGraph(branches, [None] + branches,
                          dict(zip(branches, branches)))
    return None


def _iteration(node):
    op, inputs = node.op, [None] * len(node.inputs)
    for outer, inner in ((op.outer_seqs, op.inner_seqs),
                         (op.outer_non_seqs, op.inner_non_seqs)):
        for position, variable in zip(outer(list(range(len(inputs)))),
                                      inner(op.inputs)):
            inputs[position] = variable
    return InnerGraph(op.outputs, inputs, dict(zip(
        op.inner_non_seqs(op.inputs), op.outer_non_seqs(node.inputs))))


def all_nodes(outputs):
    """Yield all nodes that variables depend on, those within nodes as well.

    The order in each graph is one to compute in.
    """
    seen, graphs = set(), [outputs]
    while graphs:
        for node in io_toposort([], graphs.pop()):
            if node not in seen:
                seen.add(node)
                yield node
                inner = inner_graph(node)
                if inner is not None:
                    graphs.append(inner.outputs)
