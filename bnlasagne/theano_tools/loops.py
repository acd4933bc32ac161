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


InnerGraph = collections.namedtuple("InnerGraph", "outputs inputs constants")
InnerGraph.__doc__ = """Hold the graph within a node.

Attributes
----------
outputs : list of Theano variables
    What is computed there.
inputs : list of Theano variables or None
    For each input of the node, the variable that stands for it there: for
    all of its value, or for slices of it. None where there is not
    exactly one, as for a state of a loop.
constants : dict
    Variable there → input of the node, where the two have the same value
    whenever the graph is computed.
"""


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
    """Return the graph of one iteration of a loop."""
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

    The nodes of each graph come in an order in which they can be computed.
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
