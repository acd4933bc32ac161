"""Mark the applications of layers in a graph.

:func:`mark` puts a marker on a layer's output. The marker holds what the
application was: the layer, its input and mask, the statistics of the batch,
and the running averages that are to move. It computes nothing, and every
function that is made from the graph drops it. But until then, others can read
it (:mod:`bnlasagne.averages.applications`). It survives what users do to a
graph: cloning it, replacing its inputs, taking gradients.
"""

import collections
import itertools
import threading

import theano
import theano.tensor as T

from ..kernels import dispatch, ops
from ..networks.labels import label
from ..theano_tools.next_values import moving_variables, next_value
from .aliases import new_alias

__all__ = ["Marker", "Parts", "TakenStatistics", "last_application", "mark"]


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
    return _numbers.last


# Statistics that a layer took of a batch, each of `count` values, a scalar; or
# of virtual batches, with a vector of counts; and whether the layer normalized
# by them.
TakenStatistics = collections.namedtuple(
    "TakenStatistics", "mean std count normalizes")


def mark(output, layer, batch, taken=None, update=False):
    """Mark a layer's output as that of one application, to a `Batch`.

    `taken` are the `TakenStatistics` of the batch, None if not known. `update`
    tells whether functions that compute the output, or anything that depends
    on it, or a gradient through it, move the layer's running averages by
    themselves; 'explicit': the updates have to be collected.
    """
    number = _numbers.next()
    masks = [] if batch.mask is None else [batch.mask]
    if taken is None:
        marker = Marker(number, layer, _NO_PARTS._replace(masks=len(masks)))
        return marker(output, batch.x, *masks)

    def alias(variable):
        return new_alias(variable, number, update != "explicit")

    averages = [alias(average) for average
                in (layer.mean, layer.std)] if update else []
    scheduled, next_values, alpha = _with_aliases(
        layer.alpha if update else 0, alias)
    params = [param for param in (layer.gamma, layer.beta)
              if param is not None]
    parts = Parts(masks, params, averages, scheduled, next_values, [
        ops.double(alpha), taken.count, taken.mean, taken.std])
    marker = Marker(
        number, layer, Parts(*map(len, parts)), taken.normalizes,
        dispatch.are_usable(*averages, taken.mean, taken.std))
    return marker(output, batch.x, *itertools.chain(*parts))


# Lists of the variables that a marker holds: the mask, if any; `gamma` and
# `beta`, as far as they are not None; aliases of the running averages to move;
# aliases of what a schedule of the weight moves on, and what these become; and
# of the batch, if known, its weight, the number of its values, and the
# statistics.
Parts = collections.namedtuple(
    "Parts", "masks params averages scheduled next_values batch")
_NO_PARTS = Parts(0, 0, 0, 0, 0, 0)


def _with_aliases(alpha, alias):
    """Have a weight that moves on by itself do so with the averages only.

    Return aliases of what moves on in `alpha`; their next values; the weight.
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
    """Return the first input, a layer's output or its gradient.

    The second input is what the layer was applied to; the further ones are
    the parts, as many of each as `sizes` tells. Unlike ``output + 0 *
    average``, the marker involves them in no arithmetic, so nothing that is
    stored in an average can reach the output. `fused` tells whether the fused
    Op moves the averages.
    """

    __props__ = ("identity", "sizes", "normalizes", "fused", "of_gradient")
    view_map = {0: [0]}

    def __init__(self, number, layer, sizes=_NO_PARTS, normalizes=False,
                 fused=False, of_gradient=False):
        self.number, self.layer, self.sizes = number, layer, sizes
        self.normalizes, self.fused = normalizes, fused
        self.of_gradient = of_gradient

    @property
    def has_batch(self):
        return self.sizes.batch > 0

    @property
    def identity(self):
        """The attributes that tell an application from others.

        Graphs for testing have none: they are equal if they compute the same.
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
        """See :mod:`bnlasagne.theano_tools.needed`."""
        return node.inputs if self.sizes.averages else node.inputs[:1]


@T.opt.register_canonicalize("fast_compile")
@theano.gof.local_optimizer([Marker])
def _local_unmark(node):
    """Drop a marker from a graph that Theano inlines as it optimizes."""
    return node.inputs[:1]


# Printed expressions leave markers out: most of a marker's inputs are printed
# with its output already.
theano.printing.pprint.assign(Marker, theano.printing.IgnorePrinter())
