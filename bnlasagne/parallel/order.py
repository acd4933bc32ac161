"""Have all ranks exchange messages in one order.

Theano computes the nodes of a graph in any order that their inputs allow. The
nodes in which ranks meet need the same order on all ranks. So when a function
is compiled, `OrderCollectives` leads a token through them: each node takes the
token that the node before it gave. They are sorted by age as far as the graph
allows it. Where the same program runs, that is the same order.

The first token comes from a `Schedule`. Whenever the function is called, this
compares all that is to follow with the other ranks.
"""

import theano
from theano.compile.function_module import std_fgraph
from theano.gof import toolbox

from ..theano_tools.loops import all_nodes, inner_graph
from .collectives import Collective
from .schedule import schedule_of, sources_of

__all__ = ["OrderCollectives", "RefuseHidden"]


class OrderCollectives(theano.gof.Optimizer):
    """Lead a token through all nodes of a graph in which ranks meet."""

    def add_requirements(self, fgraph):
        fgraph.attach_feature(toolbox.ReplaceValidate())

    def apply(self, fgraph):
        nodes = [node for node in _in_order(fgraph) if not node.op.ordered]
        if not nodes:
            return
        token = schedule_of(fgraph, nodes)()
        for node in nodes:
            outputs = node.op.in_order()(*node.inputs + [token],
                                         return_list=True)
            token = outputs.pop()
            fgraph.replace_all_validate(
                list(zip(node.outputs, outputs)), reason="order of ranks")


# Just before Theano begins to guard what is overwritten.
theano.compile.optdb.register(
    "bnlasagne_collectives", OrderCollectives(), 49.2, "fast_run",
    "fast_compile")


def _in_order(fgraph):
    """Sort the nodes in which ranks meet.

    By age, but each after the nodes that it is computed from.
    """
    sources = sources_of(fgraph)
    waiting = sorted((node for node in fgraph.toposort()
                      if isinstance(node.op, Collective)),
                     key=lambda node: node.op.number)
    needed = {node: set().union(*map(sources.get, node.inputs))
              for node in waiting}
    order = []
    while waiting:
        node = next(node for node in waiting if needed[node].issubset(order))
        waiting.remove(node)
        order.append(node)
    return order


class RefuseHidden(toolbox.Feature):
    """Refuse graphs in which ranks meet where no token can be led.

    Theano attaches it to the graph of every function before it optimizes.
    """

    def on_attach(self, fgraph):
        for node in fgraph.apply_nodes:
            inner = inner_graph(node)
            for hidden in all_nodes(inner.outputs) if inner else ():
                if isinstance(hidden.op, Collective):
                    raise ValueError(
                        f"The ranks cannot exchange {hidden.op.what} inside "
                        f"of {node.op}: whether and how often that is "
                        "computed may differ between them. Build the layers "
                        "in there without comm.")
        raise toolbox.AlreadyThere("nothing is hidden")


std_fgraph.features.append(RefuseHidden)
