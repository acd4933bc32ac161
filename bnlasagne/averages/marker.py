"""Mark the applications of layers in a graph.

:func:`mark` puts a marker on a layer's output. The marker holds what the
application was: the layer, its input, the statistics of the batch, and the
running averages that are to move. It computes nothing, and every function that
is made from the graph drops it. But until then, others can read it with
:class:`Application`: :mod:`bnlasagne.averages.automatic`, which moves running
averages, and whoever looks for the applications of layers in a graph
(:func:`applications_in`). It survives what users do to a graph: cloning it,
replacing its inputs, taking gradients.
"""

import collections
import itertools
import threading

import theano
import theano.tensor as T
from theano.gof.graph import clone_get_equiv, io_toposort
from theano.scan_module.scan_op import Scan

from ..graphs.loops import inner_graph
from ..graphs.needed import needed
from ..graphs.next_values import moving_variables, next_value
from ..kernels import dispatch, ops
from ..networks.labels import label
from .aliases import new_alias
from .moves import Move, ScheduledMove, are_equal

__all__ = [
    "Application",
    "Batch",
    "Marker",
    "applications_in",
    "last_application",
    "lifted",
    "mark",
    "markers_in",
    "without_markers",
]


class _Numbers:
    """Number the applications of layers in their order."""

    def __init__(self):
        self._lock = threading.Lock()
        self.last = 0

    def next(self):
        with self._lock:
            self.last += 1
            return self.last

    def loaded(self, number):
        """Have later applications come after one of another process."""
        with self._lock:
            self.last = max(self.last, number)


_numbers = _Numbers()


def last_application():
    """The number of the latest application."""
    return _numbers.last


Batch = collections.namedtuple("Batch", "mean std count normalizes")
Batch.__doc__ = """Statistics of a batch.

Parameters
----------
mean, std : Theano variables
count : Theano variable
    Number of values in each statistic; a scalar.
normalizes : bool
    Whether the layer normalized by them.
"""


def mark(output, layer, x, batch=None, update=False):
    """Mark an application of a layer.

    Parameters
    ----------
    output, x : Theano variables
        What came out of the layer, and what it was applied to.
    layer : BatchNormLayer
    batch : Batch or None
        Statistics of `x`, if they are known.
    update : bool or 'explicit'
        Whether functions that compute `output`, or anything that depends on
        it, or a gradient through it, move the layer's running averages by
        themselves. 'explicit': the updates have to be collected.

    Returns
    -------
    Theano variable
        `output`, marked.

    Notes
    -----
    Each call is one application, with its place in the order in which
    moves of one average are chained. For each average, the move is

    .. math:: a \\leftarrow (1 - \\alpha) a + \\alpha s

    with the batch's statistic :math:`s`. A batch of which any statistic is
    not finite, or with fewer than two values per statistic, leaves all of the
    averages as they are.
    """
    number = _numbers.next()
    if batch is None:
        return Marker(number, layer)(output, x)

    def alias(variable):
        return new_alias(variable, number, update != "explicit")

    averages = [alias(average) for average
                in (layer.mean, layer.std)] if update else []
    scheduled, next_values, alpha = _with_aliases(
        layer.alpha if update else 0, alias)
    params = [param for param in (layer.gamma, layer.beta)
              if param is not None]
    parts = _Parts(params, averages, scheduled, next_values, [
        ops.double(alpha), batch.count, batch.mean, batch.std])
    marker = Marker(
        number, layer, _Parts(*map(len, parts)), batch.normalizes,
        dispatch.are_usable(*averages, batch.mean, batch.std))
    return marker(output, x, *itertools.chain(*parts))


# What a marker takes after the output and the input of a layer; see the
# attributes of an application.
_Parts = collections.namedtuple(
    "_Parts", "params averages scheduled next_values batch",
    defaults=[0] * 5)
_NO_PARTS = _Parts()


def _with_aliases(alpha, alias):
    """Have a weight that moves on by itself do so with the averages only.

    Returns
    -------
    scheduled : list of Theano shared variables
        Aliases of the variables in `alpha` that move on.
    next_values : list of Theano variables
        Their next values, by the aliases.
    alpha : float or Theano variable
        The weight, by the aliases.
    """
    variables = moving_variables(alpha)
    if not variables:
        return [], [], alpha
    aliases = [alias(variable) for variable in variables]
    alpha, *next_values = theano.clone(
        [alpha, *map(next_value, variables)],
        replace=dict(zip(variables, aliases)))
    return aliases, next_values, alpha


class Marker(theano.Op):
    """Identity on its first input, a layer's output or its gradient.

    The second input is what the layer was applied to; the further ones are
    the parts of an :class:`Application`. Unlike ``output + 0 * average``, the
    marker involves them in no arithmetic, so nothing that is stored in an
    average can reach the output.

    Parameters
    ----------
    number : int
        Number of the application.
    layer : Layer
        What was applied.
    sizes : _Parts of int
        Numbers of the parts' variables.
    normalizes : bool
        Whether the layer normalized by the statistics of the batch.
    fused : bool
        Whether the fused Op moves the averages.
    of_gradient : bool
        Whether the first input is a gradient with respect to the output.
    """

    __props__ = ("identity", "sizes", "normalizes", "fused", "of_gradient")
    view_map = {0: [0]}

    def __init__(self, number, layer, sizes=_NO_PARTS, normalizes=False,
                 fused=False, of_gradient=False):
        self.number = number
        self.layer = layer
        self.sizes = sizes
        self.normalizes = normalizes
        self.fused = fused
        self.of_gradient = of_gradient

    @property
    def has_batch(self):
        """Whether the statistics of the batch are known."""
        return self.sizes.batch > 0

    @property
    def identity(self):
        """What tells the application from others.

        Without a batch there is no difference, so that two graphs for
        testing are equal if they compute the same.
        """
        return (self.number, self.layer) if self.has_batch else None

    def __str__(self):
        return "Marker{%s}" % (self.layer and label(self.layer))

    def __getstate__(self):
        # Nobody asks for a layer that left its averages alone, and it may have
        # attributes that cannot be pickled.
        return self.__dict__ if self.has_batch else dict(
            self.__dict__, layer=None)

    def __setstate__(self, state):
        self.__dict__.update(state)
        _numbers.loaded(self.number)

    def make_node(self, output, *rest):
        return theano.Apply(self, [output, *rest], [output.type()])

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = inputs[0]

    def infer_shape(self, node, shapes):
        return [shapes[0]]

    def connection_pattern(self, node):
        return [[True]] + [[False]] * (len(node.inputs) - 1)

    def grad(self, inputs, output_gradients):
        gradient, = output_gradients
        if self.has_batch:
            # A function that computes a gradient through the output, yet
            # nothing else of it, moves the averages too.
            marker = Marker(self.number, self.layer, self.sizes,
                            self.normalizes, self.fused, of_gradient=True)
            gradient = marker(gradient, *inputs[1:])
        disconnected = theano.gradient.DisconnectedType()
        return [gradient] + [disconnected() for _ in inputs[1:]]

    def R_op(self, inputs, eval_points):
        return [eval_points[0]]

    def inputs_by_value(self, node):
        """See :mod:`bnlasagne.graphs.needed`."""
        return node.inputs if self.sizes.averages else node.inputs[:1]


@T.opt.register_canonicalize("fast_compile")
@theano.gof.local_optimizer([Marker])
def _local_unmark(node):
    """Drop a marker from a graph that Theano inlines as it optimizes."""
    return node.inputs[:1]


class Application:
    """An application of a layer, as its marker tells it.

    Parameters
    ----------
    node : Theano node
        With a `Marker`.

    Attributes
    ----------
    number : int
        Place in the order of all applications.
    layer : Layer
    input, output : Theano variables
        What the layer was applied to, and what came out; the latter marked,
        and before the nonlinearity (but rectified). Or the gradient by it.
    normalizes : bool
        Whether the layer normalized by the statistics of the batch.
    params : list of Theano variables
        In the place of `gamma` and `beta`, those that are not None.
    averages : list of Theano shared variables
        Aliases of the running averages to move; may be empty.
    alpha, count : Theano variables or None
        Weight of the batch and number of its values; None if not known.
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
        self._parts = parts = _Parts(*[
            list(itertools.islice(rest, size)) for size in op.sizes])
        self.params, self.averages = parts.params, parts.averages
        self.alpha, self.count, *self.statistics = parts.batch or (None, None)

    def moves(self):
        """What moves, and how.

        Returns
        -------
        list of pairs
            An alias and its `Move`: of the running averages first, then of
            what a schedule of their weight moves on.
        """
        scheduled = zip(self._parts.scheduled, self._parts.next_values)
        return [(average, Move(index, self.input, self.alpha, self.count,
                               self.statistics, self._fused))
                for index, average in enumerate(self.averages)
                ] + [(variable, ScheduledMove(value, self.averages))
                     for variable, value in scheduled]

    def variables(self):
        """What the moves are made of."""
        return [self.input, *itertools.chain(*self._parts[1:])]

    def unmarked(self, computed):
        """What may take the place of the output.

        Parameters
        ----------
        computed : set of Theano variables
            See :func:`bnlasagne.graphs.needed.needed`.
        """
        if self.output not in computed and (
                self.input.type == self.output.type):
            # Only the shape is asked for, and that is the input's.
            return self.input
        return self._unmarked


def applications_in(outputs):
    """Find the applications of layers whose values variables depend on.

    Parameters
    ----------
    outputs : list of Theano variables

    Returns
    -------
    list of Application
        In order of application, with those in :func:`markers_in` other graphs.
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
    """Find the markers whose values variables depend on.

    Parameters
    ----------
    outputs : list of Theano variables
    kinds : type or tuple of types
        Ops to look into the graphs of.

    Yields
    ------
    Theano node
        With a `Marker`. Of a marker in a graph within another node, a copy by
        variables outside, as far as these are the same whenever that graph is
        computed.
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
    """A copy of a marker, with variables replaced in what it holds.

    Parameters
    ----------
    marker : Theano node
    constants : dict
        Variable in a graph within a node → variable outside of it.
    """
    output, *rest = marker.inputs
    copies = clone_get_equiv([], rest, memo=dict(constants))
    return marker.clone_with_new_inputs(
        [output] + [copies[variable] for variable in rest])


def without_markers(variables, inputs=()):
    """Copies of variables, without the markers in what they depend on.

    Parameters
    ----------
    variables : list of Theano variables
    inputs : collection of Theano variables
        To stop at: these stay as they are.
    """
    copies = {}
    for node in io_toposort(inputs, variables):
        parents = [copies.get(variable, variable) for variable in node.inputs]
        if isinstance(node.op, Marker):
            copies[node.outputs[0]] = parents[0]
        elif parents != node.inputs:
            copy = node.clone_with_new_inputs(parents, strict=False)
            copies.update(zip(node.outputs, copy.outputs))
    return [copies.get(variable, variable) for variable in variables]
