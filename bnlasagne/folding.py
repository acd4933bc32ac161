"""Fold batch normalization into the linear layer beside it, for inference.

For testing, a batch normalization layer computes ``scale * x + shift`` with
constants. The linear layer before it, or after it, can do the same by other
weights and another bias.
"""

import collections
import copy
import logging

import lasagne
import numpy as np
import theano
import theano.tensor as T

from .graphs.flags import own_expressions
from .graphs.needed import needed
from .layers.layer import BatchNormLayer
from .networks.copy import copy_network
from .networks.labels import numbered_labels
from .networks.linear import is_linear, linear_base, linear_of
from .networks.outputs import computes_like, overrides
from .networks.parts import of_library
from .networks.setting import NotConstant, value_of
from .networks.walk import (
    checked_layers,
    inputs_of,
    layers_in,
    references_of,
    replace_layer,
    variables_in,
    variables_of,
)

__all__ = [
    "Folding",
    "fold_batch_norm",
]

_log = logging.getLogger(__name__)


class Folding(collections.namedtuple("Folding", "layer, into, text")):
    """What became of a batch normalization layer.

    Attributes
    ----------
    layer : Layer
        The batch normalization layer, in the original network.
    into : Layer or None
        The layer, in the original network, whose copy does its work now. None
        if it was left in place.
    text : str
        A sentence on that, with the reasons where it was left in place.
    """

    __slots__ = ()

    def __str__(self):
        return self.text


class _LeftInPlace(Exception):
    """The reason why a layer is left in place."""


def fold_batch_norm(network, return_report=False):
    """A copy of a network for inference, without batch normalization layers.

    .. math::
        f((W x + b) s + t) = f((W s) x + (b s + t))

    with :math:`s = \\gamma / (\\sigma + \\epsilon)` and
    :math:`t = \\beta - \\mu s` by the stored averages. Each layer is folded
    into the dense, convolutional, network-in-network or locally connected
    layer whose output it normalizes, which takes over its nonlinearity; or,
    where there is none, into one that it feeds. Where that would not be exact,
    the batch normalization layer is left in place.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers. They, the layers below them and all their
        parameters stay as they are.
    return_report : bool
        Whether to return what became of each batch normalization layer, too.

    Returns
    -------
    network : Layer or list of Layer
        The output layer or layers of the new network. It has parameters of its
        own, and the input layers of the original. Its deterministic output is
        that of the original, to rounding.
    report : list of Folding
        If `return_report`: one for each batch normalization layer, in the
        order of :func:`lasagne.layers.get_all_layers`, and then for those
        within other layers. ``str()`` makes a sentence of each.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers.

    Notes
    -----
    A layer is left in place if the layer before it has a nonlinearity or is of
    a type that is not known, if its output is used elsewhere as well, is
    returned, or is normalized by statistics that differ along an axis along
    which its weights do not; and if parameters depend on inputs of the
    network. Into a layer *after* it, one without a nonlinearity is folded that
    feeds nothing else, but not through zero padding, and not with a mean of
    more than 100 standard deviations, which would cost precision.

    Parameters that are expressions, or shared with other layers, are no
    obstacle: the folded layer has weights of its own. Lasagne's own later
    batch normalization layers are folded as well; the ``NonlinearityLayer`` on
    them stays.

    Functions that refer to layers or parameters, such as a nonlinearity with a
    parameter, are copied together with these; so are objects that are called
    as functions. Other functions stay the same objects. Shared variables that
    only functions refer to, and no layer has among its parameters or
    attributes, stay the same variables: to set one later changes both
    networks. What functions reach through other objects, such as
    ``model.layer.W``, stays that of the original network.

    A layer of a subclass is folded, or has another layer folded into it, if
    its deterministic output is that of the class that it extends. It is left
    in place if not; so is a convolutional layer with a ``convolution``
    function that computes something else than Lasagne's default.

    Layers that are left in place are frozen (see :func:`freeze_batch_norm`).
    Lasagne's own layers, and those of a class with a ``get_output_for()`` of
    its own, stay as they are instead. Build outputs with
    ``deterministic=True`` all the same, if there is dropout.

    The copy has no parameters that nothing uses, such as those that weights
    were computed from before.

    What becomes of each layer is logged, too, by the logger
    ``bnlasagne.folding``: as a warning, which Python shows by default, for
    those that are left in place.

    References
    ----------
    .. [1] Ioffe, Sergey and Szegedy, Christian (2015): Batch Normalization:
           Accelerating Deep Network Training by Reducing Internal Covariate
           Shift, section 3.1 and algorithm 2.
           http://arxiv.org/abs/1502.03167.

    Examples
    --------
    >>> from lasagne.layers import DenseLayer, InputLayer, get_all_layers
    >>> from bnlasagne import batch_norm, fold_batch_norm
    >>> layer = batch_norm(DenseLayer(InputLayer((None, 8)), 5, name="fc"))
    >>> folded, report = fold_batch_norm(layer, return_report=True)
    >>> print(report[0])
    BatchNormLayer 'fc_bn' folded into DenseLayer 'fc' before it
    >>> [param.name for param in folded.get_params()]
    ['fc.W', 'fc.b']
    """
    outputs = checked_layers(network, "fold_batch_norm()")
    fold = _Fold(copy_network(outputs), outputs)
    report = fold.fold_all()
    for entry in report:
        _log.log(logging.INFO if entry.into else logging.WARNING, "%s", entry)
    folded = fold.outputs if isinstance(network, (list, tuple)) \
        else fold.outputs[0]
    return (folded, report) if return_report else folded


_Affine = collections.namedtuple("_Affine", "scale, shift, offset, dtypes")
_Affine.__doc__ = """Scale and shift by a batch normalization layer in tests.

Attributes
----------
scale, shift : arrays
    They have an axis for each axis of the layer's input.
offset : float
    The largest mean, in standard deviations with epsilon.
dtypes : set of str
    The types of the layer's parameters.
"""

_LARGE_OFFSET = 100

_Plan = collections.namedtuple("_Plan", "linear, W, b, nonlinearity")
_Plan.__doc__ = """New weights, bias and nonlinearity of a linear layer."""


class _Fold(object):
    """Fold the batch normalization layers of a copy, one after the other.

    Layers are those of the copy; the report has the layers of the original.
    """

    def __init__(self, copies, outputs):
        self.outputs = [copies[layer] for layer in outputs]
        self._originals = {copy: layer for layer, copy in copies.items()}
        labels = numbered_labels(list(copies))
        self._labels = {new: labels[layer] for layer, new in copies.items()}
        # For each layer, the layers that take its output, once for each time;
        # and the layers that refer to it in ways that are not known.
        self._consumers = collections.defaultdict(list)
        self._holders = collections.defaultdict(list)
        for layer in copies.values():
            for used in _used_by(layer):
                self._consumers[used].append(layer)
            for held in _held_by(layer):
                self._holders[held].append(layer)
        self._reached = _reached_from(self.outputs, _used_by)
        # For each folded layer, the shared variables that its weights and its
        # bias were computed from.
        self._replaced = {}
        # For each layer that was removed, the layer that does its work.
        self._successors = collections.OrderedDict()

    def fold_all(self):
        """Fold what can be; return the report."""
        left = [layer for layer in self._originals if _is_batch_norm(layer)]
        report = collections.OrderedDict.fromkeys(left)
        changed = True
        # Again: the layer that was in the way may have been folded since.
        while changed:
            report.update((bn, self._fold(bn)) for bn in left)
            remaining = [bn for bn in left if report[bn].into is None]
            changed = len(remaining) < len(left)
            left = remaining
        for bn in left:
            if bn in self._reached and isinstance(bn, BatchNormLayer) and \
                    not overrides(bn, BatchNormLayer, "get_output_for"):
                bn.frozen = True
        self._register_used()
        return list(report.values())

    def _fold(self, bn):
        original = self._originals[bn]
        try:
            # Weights that would not be finite are refused later.
            with np.errstate(all="ignore"):
                plan, where = self._plan(bn)
        except _LeftInPlace as reason:
            return Folding(original, None, "%s left in place: %s"
                           % (self._labels[bn], reason))
        layer = plan.linear.layer
        self._replaced.setdefault(layer, set()).update(
            _sources(layer.W, layer.b))
        _carry_out(plan, layer)
        self._bypass(bn)
        self._successors[bn] = layer
        return Folding(original, self._originals[layer],
                       "%s folded into %s %s"
                       % (self._labels[bn], self._labels[layer], where))

    def _plan(self, bn):
        """How to fold a layer, and where the linear layer is."""
        affine = self._affine(bn)
        reasons = []
        for plan, where in [(self._plan_before, "before it"),
                            (self._plan_after, "after it")]:
            try:
                return self._checked(plan(bn, affine), affine), where
            except _LeftInPlace as reason:
                reasons.append(str(reason))
        raise _LeftInPlace("; ".join(reasons))

    def _affine(self, bn):
        """Scale and shift by a layer."""
        if bn not in self._reached:
            raise _LeftInPlace("it is within a layer that does not tell it "
                               "what to normalize by")
        self._check_unheld(bn)
        if not inputs_of(bn):
            raise _LeftInPlace("there is no layer before it")
        if not any(isinstance(bn, base) and computes_like(bn, base)
                   for base in _types()):
            raise _LeftInPlace("its class overrides get_output_for() or other "
                               "methods, and its test output is not that of "
                               "a BatchNormLayer")
        values = self._values(bn, "beta", "gamma", "mean", *(
            ("std", "epsilon") if isinstance(bn, BatchNormLayer)
            else ("inv_std",)))
        try:
            affine = _affine(bn, values)
        except ValueError:
            raise _LeftInPlace("its parameters do not have the shape that its "
                               "axes %s ask for" % (bn.axes,)) from None
        if affine.scale.shape[0] != 1:
            raise _LeftInPlace("it normalizes each example by statistics of "
                               "its own")
        return affine

    def _plan_before(self, bn, affine):
        """Fold into the layer that a layer normalizes."""
        layer = inputs_of(bn)[0]
        linear = self._linear(layer, "before it")
        if not is_linear(layer):
            raise _LeftInPlace("%s before it has a nonlinearity, %s" % (
                self._labels[layer], _function_name(layer.nonlinearity)))
        if layer in self.outputs:
            raise _LeftInPlace("the output of %s before it is returned, too"
                               % self._labels[layer])
        if len(self._consumers[layer]) > 1:
            raise _LeftInPlace("the output of %s before it goes to %s" % (
                self._labels[layer], self._names(self._consumers[layer])))
        self._check_axes(affine, linear.outputs_share(), layer)
        W, b = self._weights(linear)
        scale, shift = map(linear.of_output, (affine.scale, affine.shift))
        return _Plan(linear, linear.scale_outputs(W, scale),
                     _aligned(b, scale.ndim) * scale + shift,
                     getattr(bn, "nonlinearity", None))

    def _plan_after(self, bn, affine):
        """Fold into the layer that a layer feeds."""
        if not is_linear(bn):
            raise _LeftInPlace("it has a nonlinearity, %s"
                               % _function_name(bn.nonlinearity))
        if bn in self.outputs:
            raise _LeftInPlace("its output is returned")
        if len(self._consumers[bn]) != 1:
            raise _LeftInPlace("its output goes to %s"
                               % self._names(self._consumers[bn]))
        layer = self._consumers[bn][0]
        linear = self._linear(layer, "after it")
        reason = linear.why_not_inputs()
        if reason:
            raise _LeftInPlace("%s after it %s"
                               % (self._labels[layer], reason))
        self._check_axes(affine, linear.inputs_share(), layer)
        if _may_be_discrete(inputs_of(bn)[0]):
            raise _LeftInPlace("its input may be of whole numbers, which it "
                               "converts")
        # What is subtracted from the input is exact; weights would multiply
        # it first, and round off what is left of large numbers.
        if affine.offset > _LARGE_OFFSET:
            raise _LeftInPlace("its mean is %.0f standard deviations from "
                               "zero, which weights could not subtract "
                               "precisely" % affine.offset)
        W, b = self._weights(linear)
        shift = linear.shift(W, affine.shift[0])
        ndim = max(b.ndim, shift.ndim)
        return _Plan(linear, linear.scale_inputs(W, affine.scale[0]),
                     _aligned(b, ndim) + _aligned(shift, ndim),
                     layer.nonlinearity)

    def _checked(self, plan, affine):
        """A plan, if numbers of its layer's type can express it."""
        layer = plan.linear.layer
        dtypes = affine.dtypes | {
            np.result_type(param.dtype).name for param in (layer.W, layer.b)
            if param is not None}
        if len(dtypes) > 1:
            raise _LeftInPlace("its parameters and the weights of %s are of "
                               "different types, %s" % (
                                   self._labels[layer],
                                   ", ".join(sorted(dtypes))))
        if not all(np.all(np.isfinite(value.astype(layer.W.dtype)))
                   for value in (plan.W, plan.b)):
            raise _LeftInPlace("weights or bias of %s would not be finite"
                               % self._labels[layer])
        # A subclass may use no bias, or no nonlinearity, if it had none yet.
        trial, base = copy.copy(layer), linear_base(layer)
        _carry_out(plan, trial)
        if not computes_like(trial, base):
            raise _LeftInPlace(
                "%s does not use another bias or nonlinearity as Lasagne's %s "
                "does" % (self._labels[layer], base.__name__))
        return plan

    def _linear(self, layer, where):
        linear = linear_of(layer)
        if linear is None:
            base = linear_base(layer)
            raise _LeftInPlace("%s %s is not known to be linear%s" % (
                self._labels[layer], where, "" if base is None else
                ": it does not compute what Lasagne's %s computes"
                % base.__name__))
        self._check_unheld(layer)
        return linear

    def _weights(self, linear):
        """Weights and bias of a layer; zeros where it has no bias."""
        layer = linear.layer
        values = self._values(layer, "W", "b")
        b = values.get("b", np.zeros(values["W"].shape[linear.outputs]))
        return values["W"], b

    def _values(self, layer, *names):
        """Values of a layer's parameters, those that it has."""
        present = [name for name in names
                   if getattr(layer, name, None) is not None]
        of_layer = " of " + self._labels[layer]
        try:
            return {name: np.asarray(
                value_of(getattr(layer, name), name + of_layer), "float64")
                for name in present}
        except NotConstant as reason:
            raise _LeftInPlace(str(reason)) from None

    def _check_unheld(self, layer):
        if self._holders[layer]:
            raise _LeftInPlace("%s is referred to by %s" % (
                self._labels[layer], self._names(self._holders[layer])))

    def _check_axes(self, affine, axes, layer):
        differ = [axis for axis in axes if affine.scale.shape[axis] != 1]
        if differ:
            raise _LeftInPlace(
                "its statistics differ along axes %s, along which the weights "
                "of %s do not" % (differ, self._labels[layer]))

    def _bypass(self, bn):
        """Connect the consumers of a layer to the layer before it."""
        below, = inputs_of(bn)
        for consumer in self._consumers[bn]:
            replace_layer(consumer, bn, below)
        self._consumers[below].remove(bn)
        self._consumers[below] += self._consumers.pop(bn, [])
        self.outputs = [below if layer is bn else layer
                        for layer in self.outputs]

    def _register_used(self):
        """Have folded layers register the parameters in use, and no others."""
        layers = _reached_from(self.outputs, _referred_by)
        used = {layer: self._used(layer) for layer in layers}
        everywhere = set().union(*used.values())
        for layer in self._replaced:
            layer.params = collections.OrderedDict(
                (source, tags) for param, tags in layer.params.items()
                for source in _sources(param) if source in everywhere)
        registered = {source for layer in layers for param in layer.params
                      for source in _sources(param)}
        for bn, layer in self._successors.items():
            # Such as the parameter of a nonlinearity.
            for param, tags in bn.params.items():
                for source in _sources(param):
                    if source in everywhere and source not in registered:
                        layer.params[source] = tags

    def _used(self, layer):
        """The variables of which a layer of the new network uses values."""
        found = needed(variables_of(layer))
        if layer in self._replaced:
            # Its attributes may still have sources of its former weights.
            found -= self._replaced[layer]
            found |= needed(variables_in(
                [layer.W, layer.b, layer.nonlinearity]))
        return found

    def _names(self, layers):
        names = dict.fromkeys(self._labels[layer] for layer in layers)
        return " and ".join(names) or "no other layer"


def _types():
    """Batch normalization layers: this package's, and Lasagne's later one."""
    theirs = getattr(lasagne.layers, "BatchNormLayer", BatchNormLayer)
    return BatchNormLayer, theirs


def _is_batch_norm(layer):
    return isinstance(layer, _types())


def _affine(bn, values):
    short = [1 if axis in bn.axes else size
             for axis, size in enumerate(bn.input_shape)]
    # Those of Lasagne's layers leave out the axes.
    values = {name: value if name == "epsilon" or value.ndim == len(short)
              else value.reshape(short) for name, value in values.items()}
    factor = values["inv_std"] if "inv_std" in values \
        else 1 / (values["std"] + values["epsilon"])
    scale = factor * values.get("gamma", 1)
    shift = values.get("beta", 0) - values["mean"] * scale
    if any(shift.shape[axis] > 1 for axis in bn.axes):
        raise ValueError("The axes are not those of the parameters.")
    offset = np.max(np.abs(values["mean"] * factor))
    dtypes = {getattr(bn, name).dtype for name in values if name != "epsilon"}
    return _Affine(*np.broadcast_arrays(scale, shift), offset, dtypes)


def _aligned(value, ndim):
    """A value that goes with others of more axes, which follow its own."""
    return value.reshape(value.shape + (1,) * (ndim - value.ndim))


def _carry_out(plan, layer):
    """Give a layer its new weights, bias and nonlinearity."""
    b = plan.b
    untied = b.size > len(b) or (layer.b is not None and layer.b.ndim > 1)
    if hasattr(layer, "untie_biases"):
        layer.untie_biases = untied
    b = np.broadcast_to(b, layer.output_shape[1:]) if untied \
        else b.reshape(-1)
    dtype = layer.W.dtype
    params = collections.OrderedDict()
    for name, value in (("W", plan.W), ("b", b)):
        old, new = getattr(layer, name), _shared(layer, name, value, dtype)
        params[new] = _tags(layer, old)
        setattr(layer, name, new)
    # Some of the others may be used elsewhere; see `_register_used`.
    for param, tags in layer.params.items():
        params.setdefault(param, tags)
    layer.params = params
    layer.nonlinearity = lasagne.nonlinearities.identity \
        if plan.nonlinearity is None else plan.nonlinearity
    # batch_norm() refuses to wrap a layer twice. This layer it can wrap again.
    vars(layer).pop("_normalized_by", None)


def _shared(layer, name, value, dtype):
    old = getattr(layer, name)
    full_name = name if layer.name is None else layer.name + "." + name
    broadcastable = getattr(old, "broadcastable", (False,) * value.ndim)
    if len(broadcastable) != value.ndim:
        broadcastable = (False,) * value.ndim
    given = old.name if isinstance(
        old, theano.compile.SharedVariable) else None
    return theano.shared(
        np.array(value, dtype), given or full_name,
        broadcastable=[each and size == 1 for each, size
                       in zip(broadcastable, value.shape)])


def _tags(layer, old):
    """The tags for what replaces weights or a bias."""
    # An expression has the tags of its sources. A bias, or weights that were
    # no parameter: folded, they have the batch normalization's in them.
    sources = set(_sources(old))
    tags = [tags for param, tags in layer.params.items()
            if sources.intersection(_sources(param))]
    return set().union(*tags) or {"trainable"}


def _sources(*values):
    """The shared variables that values are made of, in order."""
    return [source for source in theano.gof.graph.inputs(_variables(*values))
            if isinstance(source, theano.compile.SharedVariable)]


def _variables(*values):
    return [value for value in values if isinstance(value, theano.Variable)]


def _used_by(layer):
    """Layers of which a layer uses the outputs, and nothing else."""
    return inputs_of(layer) + _called_by(layer)


def _called_by(layer):
    """Layers within a layer that get the flags which it gets."""
    recurrent = getattr(lasagne.layers, "CustomRecurrentLayer", ())
    if not isinstance(layer, recurrent) or overrides(layer, recurrent,
                                                     "get_output_for"):
        return []
    return [layer.input_to_hidden, layer.hidden_to_hidden]


def _held_by(layer):
    """Layers to which a layer refers in ways that are not known."""
    held = references_of(layer)
    known = _called_by(layer)
    if type(layer).__module__.startswith("lasagne."):
        # Of Lasagne's classes it is known that inputs are inputs, whatever
        # else refers to them, such as hid_init; but not of their functions.
        below = inputs_of(layer)
        known += [each for each in layers_in(layer) if each in below]
    for each in known:
        if each in held:
            held.remove(each)
    return [each for each in held if each is not layer]


def _referred_by(layer):
    """All layers to which a layer refers."""
    return inputs_of(layer) + references_of(layer)


def _reached_from(outputs, below):
    """Layers that are reached from the outputs, from each to those below."""
    reached, stack = set(), list(outputs)
    while stack:
        layer = stack.pop()
        if layer not in reached:
            reached.add(layer)
            stack.extend(below(layer))
    return reached


def _may_be_discrete(layer):
    """Whether a layer's output may be of integers, not floats."""
    if isinstance(layer, lasagne.layers.InputLayer):
        return layer.input_var.dtype in T.discrete_dtypes
    # A function of the user's may round, or compare.
    functions = [getattr(layer, name, None)
                 for name in ("function", "nonlinearity")]
    if not all(of_library(each) for each in [type(layer)] + functions
               if each is not None):
        with own_expressions():
            output = lasagne.layers.get_output(layer, deterministic=True)
        return output.dtype in T.discrete_dtypes
    # What parameters take part in is of their type.
    return not layer.params and any(map(_may_be_discrete, inputs_of(layer)))


def _function_name(function):
    return getattr(function, "__name__", None) or type(function).__name__
