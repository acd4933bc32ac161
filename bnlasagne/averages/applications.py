"""Find the applications of layers in a graph, by their markers."""

import itertools

import theano
from theano.gof.graph import clone_get_equiv, io_toposort
from theano.scan_module.scan_op import Scan

from ..theano_tools.copies import Copies
from ..theano_tools.loops import inner_graph
from ..theano_tools.needed import needed
from .marker import Marker, Parts
from .moves import Move, ScheduledMove, are_equal

__all__ = ["Application", "applications_in", "lifted", "markers_in",
           "without_markers"]


class Application:
    """Read an application of a layer from the node of its marker.

    Attributes
    ----------
    number : int
        Place in the order of all applications.
    layer : Layer
    input, output : Theano variables
        What the layer was applied to, and what came out; the latter marked,
        and before the nonlinearity (but rectified). Or the gradient by it.
    mask : Theano variable or None
        Of the input, with its number of dimensions.
    normalizes : bool
        Whether the layer normalized by the statistics of the batch.
    params : list of Theano variables
        In the place of `gamma` and `beta`, those that are not None.
    averages : list of Theano shared variables
        Aliases of the running averages to move; may be empty.
    alpha, count : Theano variables or None
        Weight of the batch and number of its values; None if not known. Of
        virtual batches, the numbers are a vector.
    statistics : list of Theano variables
        Mean and standard deviation of the batch; empty if not known.
    """

    def __init__(self, node):
        op = node.op
        self.number, self.layer = op.number, op.layer
        self.normalizes, self._fused = op.normalizes, op.fused
        self.output = node.outputs[0]
        self._unmarked, self.input, *rest = node.inputs
        rest = iter(rest)
        self._parts = parts = Parts(*[
            list(itertools.islice(rest, size)) for size in op.sizes])
        self.mask, = parts.masks or [None]
        self.params, self.averages = parts.params, parts.averages
        self.alpha, self.count, *self.statistics = parts.batch or (None, None)

    def moves(self):
        """List each alias with its move, those of schedules last."""
        scheduled = zip(self._parts.scheduled, self._parts.next_values)
        return [(average, Move(index, self.input, self.alpha, self.count,
                               self.statistics, self._fused))
                for index, average in enumerate(self.averages)
                ] + [(variable, ScheduledMove(value, self.averages))
                     for variable, value in scheduled]

    def variables(self):
        """List the variables that the moves are computed from."""
        parts = self._parts._replace(params=[])
        return [self.input, *itertools.chain(*parts)]

    def unmarked(self, computed):
        """Return the output without its marker; see `needed`."""
        if self.output not in computed and (
                self.input.type == self.output.type):
            # Only the shape is asked for, and that is the input's.
            return self.input
        return self._unmarked


def applications_in(outputs):
    """List the applications whose values variables depend on, in order.

    Those in loops, say, are among them; see :func:`markers_in`.
    """
    found = {}
    for application in map(Application, markers_in(outputs)):
        same = found.setdefault(application.number, [])
        # Its gradients are marked, too, and the graph may hold copies.
        if not any(are_equal(application.input, other.input)
                   for other in same):
            same.append(application)
    return [application for number in sorted(found)
            for application in found[number]]


def markers_in(outputs, kinds=(Scan, theano.OpFromGraph)):
    """Yield the nodes of markers whose values variables depend on.

    Graphs within Ops of some kinds are read as well. The node of a marker in
    such a graph is a copy by variables outside, as far as these have the same
    value whenever that graph is computed.
    """
    computed = needed(outputs)
    for node in io_toposort([], outputs):
        if computed.isdisjoint(node.outputs):
            continue
        if isinstance(node.op, Marker):
            yield node
        elif isinstance(node.op, kinds):
            inner = inner_graph(node)
            for marker in markers_in(inner.outputs, kinds):
                yield lifted(marker, inner.constants)


def lifted(marker, constants):
    """Copy a marker from a graph within a node to the graph outside."""
    output, *rest = marker.inputs
    copies = clone_get_equiv([], rest, memo=dict(constants))
    return marker.clone_with_new_inputs(
        [output] + [copies[variable] for variable in rest])


def without_markers(variables, inputs=()):
    """Copy variables, without the markers between them and `inputs`."""
    copies = Copies()
    for node in io_toposort(inputs, variables):
        if isinstance(node.op, Marker):
            copies[node.outputs[0]], = copies.of(node.inputs[:1])
        else:
            copies.add(node)
    return copies.of(variables)
