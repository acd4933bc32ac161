"""Plan the weights of a linear layer that does batch normalization as well."""

import collections
import copy

import lasagne
import numpy as np
import theano.tensor as T

from ..layers.layer import BatchNormLayer
from ..networks.linear import is_linear, linear_base, linear_of
from ..networks.outputs import computes_like
from ..networks.parts import of_library
from ..networks.values import NotConstant, value_of
from ..networks.walk import inputs_of
from ..theano_tools.quiet_checks import quiet_checks
from .network import LeftInPlace
from .params import set_params

__all__ = ["is_batch_norm", "plan_for"]

# What a batch normalization layer multiplies its input by and adds, with an
# axis for each axis of the input; its largest mean, in standard deviations;
# and the types of its parameters.
_Affine = collections.namedtuple("_Affine", "scale, shift, offset, dtypes")

_LARGE_OFFSET = 100


class Plan(collections.namedtuple("Plan",
                                  "layer, W, b, nonlinearity, where")):
    """Give a linear layer other weights, another bias and nonlinearity.

    `where` says whether it is the layer before or after batch normalization.
    """

    __slots__ = ()

    def carry_out(self, layer):
        """Change the layer of the plan, or a copy of it."""
        b = self.b
        untied = b.size > len(b) or (layer.b is not None and layer.b.ndim > 1)
        if hasattr(layer, "untie_biases"):
            layer.untie_biases = untied
        set_params(layer, self.W, np.broadcast_to(b, layer.output_shape[1:])
                   if untied else b.reshape(-1))
        layer.nonlinearity = lasagne.nonlinearities.identity \
            if self.nonlinearity is None else self.nonlinearity
        # batch_norm() refuses to wrap a layer twice, but can wrap this one.
        vars(layer).pop("_normalized_by", None)


def plan_for(network, bn):
    """Plan how to fold a batch normalization layer, or raise LeftInPlace."""
    reasons = []
    affine = _affine_of(network, bn)
    for plan in _plan_before, _plan_after:
        try:
            return _checked(network, plan(network, bn, affine), affine)
        except LeftInPlace as reason:
            reasons.append(str(reason))
    raise LeftInPlace("; ".join(reasons))


def _types():
    """Return this package's class of layers, and Lasagne's later one."""
    theirs = getattr(lasagne.layers, "BatchNormLayer", BatchNormLayer)
    return BatchNormLayer, theirs


def is_batch_norm(layer):
    """Tell whether a layer is one of batch normalization."""
    return isinstance(layer, _types())


def _affine_of(network, bn):
    """Read the scale and the shift by a batch normalization layer in tests."""
    if not network.gives_flags_to(bn):
        raise LeftInPlace("another layer contains it, and may not pass on "
                          "`deterministic`")
    network.check_unheld(bn)
    if len(inputs_of(bn)) > 1:
        raise LeftInPlace("it has a mask, outside of which its output is zero")
    if not inputs_of(bn):
        raise LeftInPlace("there is no layer before it")
    if not any(isinstance(bn, base) and computes_like(bn, base)
               for base in _types()):
        raise LeftInPlace("its class overrides get_output_for() or other "
                          "methods, and its test output is not that of a "
                          "BatchNormLayer")
    values = _values(network, bn, "beta", "gamma", "mean", *(
        ("std", "epsilon") if isinstance(bn, BatchNormLayer)
        else ("inv_std",)))
    try:
        affine = _scale_and_shift(bn, values)
    except ValueError:
        raise LeftInPlace("its parameters do not have the shape that its axes "
                          f"{bn.axes} ask for") from None
    if affine.scale.shape[0] != 1:
        raise LeftInPlace("its statistics differ from example to example")
    return affine


def _values(network, layer, *names):
    """Read the values of those parameters that a layer has, by name."""
    try:
        return {name: np.asarray(value_of(
            getattr(layer, name), f"{name} of {network.labels[layer]}"),
            "float64") for name in names
            if getattr(layer, name, None) is not None}
    except NotConstant as reason:
        raise LeftInPlace(str(reason)) from None


def _scale_and_shift(bn, values):
    short = [1 if axis in bn.axes else size
             for axis, size in enumerate(bn.input_shape)]
    # The parameters of Lasagne's layers leave out the axes.
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


def _plan_before(network, bn, affine):
    """Fold into the layer that a layer normalizes."""
    layer = inputs_of(bn)[0]
    name, consumers = network.labels[layer], network.consumers[layer]
    linear = _linear(network, layer, "before it")
    if not is_linear(layer):
        raise LeftInPlace(f"{name} before it has a nonlinearity, "
                          f"{_function_name(layer.nonlinearity)}")
    if layer in network.outputs:
        raise LeftInPlace(f"the output of {name} before it is returned, too")
    if len(consumers) > 1:
        raise LeftInPlace(f"the output of {name} before it goes to "
                          f"{network.names(consumers)}")
    _check_axes(affine, linear.outputs_share(), name)
    W, b = _weights(network, linear)
    scale, shift = map(linear.of_output, (affine.scale, affine.shift))
    return Plan(layer, linear.scale_outputs(W, scale),
                _aligned(b, scale.ndim) * scale + shift,
                getattr(bn, "nonlinearity", None), "before it")


def _plan_after(network, bn, affine):
    """Fold into the layer that a layer feeds."""
    if not is_linear(bn):
        raise LeftInPlace(
            f"it has a nonlinearity, {_function_name(bn.nonlinearity)}")
    if bn in network.outputs:
        raise LeftInPlace("its output is returned")
    consumers = network.consumers[bn]
    if len(consumers) != 1:
        raise LeftInPlace(f"its output goes to {network.names(consumers)}")
    layer, name = consumers[0], network.labels[consumers[0]]
    linear = _linear(network, layer, "after it")
    reason = linear.why_not_inputs()
    if reason:
        raise LeftInPlace(f"{name} after it {reason}")
    _check_axes(affine, linear.inputs_share(), name)
    if _may_be_discrete(inputs_of(bn)[0]):
        raise LeftInPlace("its input may be of whole numbers, which it "
                          "converts")
    # A mean that is subtracted from the input leaves little to round. Weights
    # would multiply first, and round large numbers.
    if affine.offset > _LARGE_OFFSET:
        raise LeftInPlace(f"its mean is {affine.offset:.0f} standard "
                          "deviations from zero, which weights could not "
                          "subtract precisely")
    W, b = _weights(network, linear)
    shift = linear.shift(W, affine.shift[0])
    ndim = max(b.ndim, shift.ndim)
    return Plan(layer, linear.scale_inputs(W, affine.scale[0]),
                _aligned(b, ndim) + _aligned(shift, ndim),
                layer.nonlinearity, "after it")


def _checked(network, plan, affine):
    """Return a plan, if numbers of its layer's type can express it."""
    layer, name = plan.layer, network.labels[plan.layer]
    dtypes = affine.dtypes | {
        np.result_type(param.dtype).name for param in (layer.W, layer.b)
        if param is not None}
    if len(dtypes) > 1:
        raise LeftInPlace(f"its parameters and the weights of {name} are of "
                          f"different types, {', '.join(sorted(dtypes))}")
    if not all(np.all(np.isfinite(value.astype(layer.W.dtype)))
               for value in (plan.W, plan.b)):
        raise LeftInPlace(f"weights or bias of {name} would not be finite")
    # A subclass may use no bias, or no nonlinearity, if it had none yet.
    trial, base = copy.copy(layer), linear_base(layer)
    plan.carry_out(trial)
    if not computes_like(trial, base):
        raise LeftInPlace(f"{name} does not use another bias or nonlinearity "
                          f"as Lasagne's {base.__name__} does")
    return plan


def _linear(network, layer, where):
    """Describe the linear part of a layer that nothing else refers to."""
    linear = linear_of(layer)
    if linear is None:
        base = linear_base(layer)
        reason = "" if base is None else \
            f": it does not compute what Lasagne's {base.__name__} computes"
        raise LeftInPlace(f"{network.labels[layer]} {where} is not known to "
                          f"be linear{reason}")
    network.check_unheld(layer)
    return linear


def _weights(network, linear):
    """Read weights and bias of a layer; zeros where it has no bias."""
    values = _values(network, linear.layer, "W", "b")
    W = values["W"]
    return W, values.get("b", np.zeros(W.shape[linear.outputs]))


def _check_axes(affine, axes, name):
    differ = [axis for axis in axes if affine.scale.shape[axis] != 1]
    if differ:
        raise LeftInPlace(f"its statistics differ along axes {differ}, along "
                          f"which the weights of {name} do not")


def _aligned(value, ndim):
    """Append axes of size 1 to a value."""
    return value.reshape(value.shape + (1,) * (ndim - value.ndim))


def _may_be_discrete(layer):
    """Tell whether a layer's output may be of integers, not floats."""
    if isinstance(layer, lasagne.layers.InputLayer):
        return layer.input_var.dtype in T.discrete_dtypes
    functions = [getattr(layer, name, None)
                 for name in ("function", "nonlinearity")]
    if all(of_library(each) for each in [type(layer), *functions]
           if each is not None):
        # The output has the type of the layer's parameters or of its inputs.
        return not layer.params and any(
            map(_may_be_discrete, inputs_of(layer)))
    # A function of the user's may round, or compare.
    with quiet_checks():
        output = lasagne.layers.get_output(layer, deterministic=True)
    return output.dtype in T.discrete_dtypes


def _function_name(function):
    return getattr(function, "__name__", None) or type(function).__name__
