"""Rebuild the user's graph, with the statistics of layers as inputs in it."""

import functools

import numpy as np
import theano
import theano.tensor as T
from theano.gof.graph import io_toposort
from theano.scan_module.scan_op import Scan

from ..averages.applications import Application
from ..averages.marker import Marker
from ..kernels import expressions
from ..kernels.batch import Batch
from ..kernels.moments import Moments
from ..networks.labels import label
from ..theano_tools.copies import Copies
from ..theano_tools.loops import all_nodes, inner_graph
from ..theano_tools.needed import inputs_by_value, needed

__all__ = ["ExactGraph", "set_values", "together"]


class ExactApplication:
    """Hold the statistics of an application, and the loss's derivatives.

    It is the last of `depth` layers, one on the other. ``of(variables)``
    returns those of the rebuilt graph for those of the user's.

    Attributes
    ----------
    x, mask : Theano variables
        What the layer is applied to, and the mask of it, or None.
    moments : list of Theano variables
        Count, mean and standard deviation of a micro-batch. Of its virtual
        batches, if the layer has such.
    key : tuple of Theano variables
        The statistics in the user's graph.
    statistics : list of Theano shared variables
        Mean and standard deviation of the full batch.
    found : list of array
        Count, mean and standard deviation of the full batch, or of all its
        virtual batches.
    """

    def __init__(self, marked, of, depth):
        self.x, = of([marked.input])
        # Some variables have no truth value.
        self.mask = None if marked.mask is None else of([marked.mask])[0]
        self.moments = of([marked.count, *marked.statistics])
        self.key = tuple(marked.statistics)
        self.normalizes = _by_full_batch(marked)
        self.depth = depth
        self.found = None
        zeros = np.zeros(marked.layer.param_shape())
        self.statistics, self._derivatives = (
            [theano.shared(zeros.astype(variable.dtype),
                           broadcastable=variable.broadcastable)
             for variable in marked.statistics] for _ in range(2))

    def contribution(self):
        """Multiply a micro-batch's part of the statistics by derivatives."""
        by_mean, by_variance = self._derivatives
        mean = theano.gradient.disconnected_grad(self.statistics[0])
        batch = Batch(self.x, (), self.mask)
        x = expressions.only_counted(self.x, batch)
        return T.sum(expressions.only_counted(
            by_mean * x + by_variance * T.sqr(x - mean), batch))

    def with_mask(self):
        """Return the layer's argument; none without a mask.

        Users' layers may know of no masks.
        """
        return {} if self.mask is None else {"mask": self.mask}

    def set_derivatives(self, by_mean, by_std):
        """Set the derivatives of the loss by the statistics, per value."""
        count, _, std = self.found
        count = max(count, 1)
        by_variance = np.divide(by_std, 2 * std, out=np.zeros_like(std),
                                where=std > 0)
        set_values(self._derivatives, [
            np.broadcast_to(by_mean, std.shape) / count, by_variance / count])


def set_values(variables, values):
    """Set shared variables, each in its own type."""
    for variable, value in zip(variables, values):
        variable.set_value(np.asarray(value, variable.dtype))


def together(parts):
    """Put the statistics of several micro-batches together.

    Each part, and the result, is a list of count, mean and standard deviation,
    the latter two in double precision. Those of virtual batches are joined.
    """
    if np.ndim(parts[0][0]):
        return [np.concatenate(each) for each in zip(*parts)]
    pooled = functools.reduce(Moments.merge, (
        Moments(int(count), np.asarray(mean, "float64"),
                np.square(std, dtype="float64") * count)
        for count, mean, std in parts))
    return [pooled.count, pooled.mean, pooled.std() if pooled.count
            else pooled.mean]


class ExactGraph:
    """Rebuild a graph, with the statistics of layers as inputs in it.

    `averaged` holds the `ExactApplication.key` of statistics that running
    averages follow. None of the `applications` depends on a later one.
    """

    def __init__(self, outputs, averaged):
        self.applications = []
        self._averaged, self._copies = averaged, Copies()
        self._depths = {}
        computed = needed(outputs)
        for node in io_toposort([], outputs):
            is_computed = not computed.isdisjoint(node.outputs)
            if is_computed:
                _check(node)
            if is_computed and isinstance(node.op, Marker):
                self._apply(Application(node), node.inputs[0])
            else:
                self._copy(node)
        self.outputs = self._copies.of(outputs)

    def _depth(self, variables):
        """Count the layers, one on the other, below some variables."""
        return max((self._depths.get(variable, 0) for variable in variables),
                   default=0)

    def _copy(self, node):
        depth = self._depth(inputs_by_value(node))
        self._depths.update(dict.fromkeys(node.outputs, depth))
        self._copies.add(node)

    def _apply(self, marked, unmarked):
        output = marked.output
        normalizes = _by_full_batch(marked)
        if normalizes or tuple(marked.statistics) in self._averaged:
            application = ExactApplication(
                marked, self._copies.of, self._depth([marked.input]) + 1)
            self.applications.append(application)
        if normalizes:
            normalized = marked.layer.normalize_as_in_training(
                application.x, *application.statistics,
                *self._copies.of(marked.params), **application.with_mask())
            self._copies[output] = output.type.filter_variable(normalized)
            self._depths[output] = application.depth
        else:
            self._copies[output], = self._copies.of([unmarked])
            self._depths[output] = self._depth([unmarked])


def _by_full_batch(marked):
    """Tell whether an application normalizes by the whole of a batch.

    Virtual batches are cut from each micro-batch.
    """
    return marked.normalizes and not marked.count.ndim


def _check(node):
    """Raise an error if a node cannot be worked on in micro-batches."""
    caller = "GradientAccumulator.exact_function()"

    def has_batch(node):
        return isinstance(node.op, Marker) and node.op.has_batch
    if isinstance(node.op, (Scan, theano.OpFromGraph)) and any(
            map(has_batch, all_nodes(inner_graph(node).outputs))):
        raise ValueError(
            f"{caller}: there is batch normalization in a loop, or in another "
            "Op's graph, where its statistics are out of reach. Use "
            "function().")
    if not has_batch(node):
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
