"""Rebuild the user's graph, with the statistics of layers as inputs in it."""

import numpy as np
import theano
import theano.tensor as T
from theano.gof.graph import io_toposort
from theano.scan_module.scan_op import Scan

from ..averages import marker
from ..averages.marker import Marker
from ..graphs.loops import all_nodes, inner_graph
from ..graphs.needed import inputs_by_value, needed
from ..kernels.moments import Moments
from ..networks.labels import label

__all__ = ["Application", "ExactGraph", "moments_by_std"]


class Application:
    """Hold the statistics of an application, and the loss's derivatives.

    Parameters
    ----------
    x : Theano variable
        What the layer is applied to, in the rebuilt graph.
    moments : list of Theano variables
        Count, mean and standard deviation of a micro-batch, there.
    key : tuple of Theano variables
        The statistics in the user's graph.
    depth : int
        Number of layers, one on the other, that this one is the last of.
    op : Marker

    Attributes
    ----------
    by_batch : bool
        Whether the layer normalizes by the statistics of the batch.
    statistics : list of Theano shared variables
        Mean and standard deviation of the full batch.
    found : Moments
        Those of the full batch.
    """

    def __init__(self, x, moments, key, depth, op):
        self.x = x
        self.moments = moments
        self.key = key
        self.depth = depth
        self.by_batch = op.normalizes
        self.found = None
        self.statistics, self._derivatives = (
            [theano.shared(np.zeros(op.layer.param_shape(), variable.dtype),
                           broadcastable=variable.broadcastable)
             for variable in moments[1:]] for _ in range(2))

    def contribution(self):
        """A micro-batch's part of the statistics, times the derivatives.

        The derivatives are divided by the number of values.
        """
        by_mean, by_variance = self._derivatives
        mean = theano.gradient.disconnected_grad(self.statistics[0])
        return T.sum(by_mean * self.x + by_variance * T.sqr(self.x - mean))

    def set_moments(self, moments):
        """Set the statistics of the full batch."""
        self.found = moments
        _set(self.statistics, [moments.mean, moments.std()])

    def set_derivatives(self, by_mean, by_std):
        """Set the derivatives of the loss by the statistics."""
        std = self.found.std()
        by_variance = np.divide(by_std, 2 * std, out=np.zeros_like(std),
                                where=std > 0)
        _set(self._derivatives, [
            np.broadcast_to(by_mean, std.shape) / self.found.count,
            by_variance / self.found.count])


def _set(variables, values):
    for variable, value in zip(variables, values):
        variable.set_value(np.asarray(value, variable.dtype))


def moments_by_std(count, mean, std):
    """Moments from a standard deviation, in double precision."""
    mean, std = (np.asarray(value, "float64") for value in (mean, std))
    return Moments(int(count), mean, np.square(std) * count)


class ExactGraph:
    """Rebuild a graph, with the statistics of layers as inputs in it.

    Parameters
    ----------
    outputs : list of Theano variables
    averaged : container
        Statistics that running averages follow, as in `Application.key`.

    Attributes
    ----------
    outputs : list of Theano variables
    applications : list of Application
        In an order in which none depends on later ones.
    """

    def __init__(self, outputs, averaged):
        self.applications = []
        self._averaged = averaged
        self._copies = {}
        self._depths = {}
        computed = needed(outputs)
        for node in io_toposort([], outputs):
            self._set_depths(node.outputs, max(
                map(self._depth, inputs_by_value(node)), default=0))
            is_computed = not computed.isdisjoint(node.outputs)
            if is_computed:
                _check(node)
            if is_computed and isinstance(node.op, Marker):
                self._apply(node)
            else:
                self._copy(node)
        self.outputs = self._of(outputs)

    def _depth(self, variable):
        return self._depths.get(variable, 0)

    def _set_depths(self, variables, depth):
        self._depths.update(dict.fromkeys(variables, depth))

    def _of(self, variables):
        """The variables in the place of variables of the user's graph."""
        return [self._copies.get(variable, variable)
                for variable in variables]

    def _copy(self, node):
        inputs = self._of(node.inputs)
        if inputs != node.inputs:
            copy = node.clone_with_new_inputs(inputs, strict=False)
            self._copies.update(zip(node.outputs, copy.outputs))

    def _apply(self, node):
        op, output = node.op, node.outputs[0]
        marked = marker.Application(node)
        x, = self._of([marked.input])
        depth = self._depth(marked.input) + 1
        key = tuple(marked.statistics)
        if op.normalizes or key in self._averaged:
            moments = self._of([marked.count, *marked.statistics])
            application = Application(x, moments, key, depth, op)
            self.applications.append(application)
        if op.normalizes:
            normalized = op.layer.normalize_as_in_training(
                x, *application.statistics + self._of(marked.params))
            self._copies[output] = output.type.filter_variable(normalized)
            self._set_depths([output], depth)
        else:
            self._copies[output], = self._of(node.inputs[:1])
            self._set_depths([output], self._depth(node.inputs[0]))


def _has_batch(op):
    return isinstance(op, Marker) and op.has_batch


def _check(node):
    """Raise an error if a node cannot be worked on in micro-batches."""
    caller = "GradientAccumulator.exact_function()"
    if isinstance(node.op, (Scan, theano.OpFromGraph)) and any(
            _has_batch(inner.op)
            for inner in all_nodes(inner_graph(node).outputs)):
        raise ValueError(
            f"{caller}: there is batch normalization in a loop, or in another "
            "Op's graph, where its statistics are out of reach. Use "
            "function().")
    if not _has_batch(node.op):
        return
    if node.op.of_gradient:
        raise ValueError(
            f"{caller}: the loss or the outputs have a gradient through batch "
            "normalization in them, which micro-batches do not give exactly. "
            "Use function().")
    if node.op.layer.channel is not None:
        raise ValueError(
            f"{caller}: {label(node.op.layer)} has a communicator, and what "
            "the ranks exchange is not divided into micro-batches. Build it "
            "without comm, or use function().")
