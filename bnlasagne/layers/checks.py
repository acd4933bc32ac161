"""Check the arguments of a batch normalization layer."""

import contextlib
import difflib
import inspect
import numbers

import lasagne
import numpy as np
import theano
import theano.tensor as T

from ..networks.labels import label

__all__ = [
    "check_flags", "check_incoming", "check_params", "checked_axes",
    "checked_input", "checked_nonlinearity", "checked_scalar",
    "checked_virtual_size", "unknown_arguments_explained",
]


# Arguments of the constructor

def check_incoming(incoming):
    """Raise an error if a layer cannot be stacked on `incoming`."""
    if not isinstance(incoming, (lasagne.layers.Layer, tuple)):
        raise TypeError("BatchNormLayer: incoming must be a Layer instance or "
                        f"a tuple with the input shape, got {incoming!r}.")


def checked_axes(layer, axes):
    """Return the axes to normalize over, counted from the start, in order."""
    ndim = len(layer.input_shape)
    if axes is None or isinstance(axes, str) and axes == "auto":
        axes = (0,) + tuple(range(2, ndim))
    elif isinstance(axes, numbers.Integral):
        axes = (axes,)
    elif (not isinstance(axes, (tuple, list)) or
          not all(isinstance(axis, numbers.Integral) for axis in axes)):
        raise TypeError(f"{label(layer)}: axes must be None, 'auto', an int "
                        f"or a tuple of int, got {axes!r}.")
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(
                f"{label(layer)}: axis {axis} is out of range for an input "
                f"with {ndim} dimensions.")
    positive = tuple(sorted(int(axis) % ndim for axis in axes))
    if not positive:
        raise ValueError(f"{label(layer)}: axes must name at least one axis, "
                         f"got {axes!r}.")
    if len(set(positive)) < len(positive):
        raise ValueError(f"{label(layer)}: axes {tuple(axes)} name an axis "
                         "twice. Name each axis once.")
    return positive


def checked_scalar(layer, name, value, least, largest):
    """Return a number of a range as a float, or a scalar Theano variable."""
    if isinstance(value, theano.Variable):
        if value.ndim != 0:
            raise ValueError(
                f"{label(layer)}: {name} must be a scalar, got a Theano "
                f"variable with {value.ndim} dimensions.")
        return value
    if not isinstance(value, (numbers.Real, np.ndarray)):
        raise TypeError(f"{label(layer)}: {name} must be a number or a scalar "
                        f"Theano variable, got {value!r}.")
    if np.ndim(value) != 0 or not least <= value <= largest:
        raise ValueError(f"{label(layer)}: {name} must be a number from "
                         f"{least} to {largest}, got {value!r}.")
    return float(value)


def checked_virtual_size(layer, size):
    """Return the number of examples in a virtual batch, or None."""
    if size is None:
        return None
    if not isinstance(size, numbers.Integral) or isinstance(size, bool):
        raise TypeError(f"{label(layer)}: virtual_batch_size must be None or "
                        f"a whole number of examples, got {size!r}.")
    if layer.axes[0] != 0:
        raise ValueError(
            f"{label(layer)}: virtual_batch_size cuts batches along axis 0, "
            f"which must be normalized over, but axes are {layer.axes}.")
    others = [layer.input_shape[axis] for axis in layer.axes[1:]]
    if size < 1 or size == 1 and all(each == 1 for each in others):
        raise ValueError(
            f"{label(layer)}: virtual_batch_size must be such that a virtual "
            f"batch has two values per channel or more, got {size!r}.")
    return int(size)


def checked_nonlinearity(layer, nonlinearity):
    """Return a nonlinearity; for None, the identity."""
    if nonlinearity is None:
        return lasagne.nonlinearities.identity
    if not callable(nonlinearity):
        raise TypeError(
            f"{label(layer)}: nonlinearity must be None or a callable such as "
            f"lasagne.nonlinearities.rectify, got {nonlinearity!r}.")
    return nonlinearity


# Arguments of other frameworks' layers, and what to pass here.
_OTHER_NAMES = {
    "momentum": "alpha, the weight of the new batch: 1 - momentum in Keras, "
                "momentum itself in PyTorch",
    "eps": "epsilon, which is added to the standard deviation, not to the "
           "variance",
    "axis": "axes, the axes to normalize over (the others are channels)",
    "center": "beta=None to leave out the shift",
    "scale": "gamma=None to leave out the scale",
    "affine": "beta=None, gamma=None to leave out shift and scale",
    "track_running_stats": "get_output(..., batch_norm_update_averages=False)",
    "var": "std; or set_statistics(mean, var=...) on the layer",
    "decay": "alpha, the weight of the new batch: 1 - decay",
    "mask": "mask_input, the layer that the mask comes from",
    "ghost_batch_size": "virtual_batch_size",
    "mode": "nothing for it: there is one way to compute",
    "trainable": "nothing for it; see freeze_batch_norm(layer, params=True)",
}


@contextlib.contextmanager
def unknown_arguments_explained(layer_class, kwargs):
    """Have the error about an unknown argument say which one to use."""
    try:
        yield
    except TypeError as error:
        for name in kwargs:
            if f"unexpected keyword argument '{name}'" in str(error):
                raise TypeError(
                    f"{layer_class.__name__} has no argument {name}. "
                    f"{_what_to_pass(name, layer_class)}") from None
        raise


def _what_to_pass(name, layer_class):
    if name in _OTHER_NAMES:
        return f"Pass {_OTHER_NAMES[name]}."
    names = [each for each in inspect.signature(layer_class).parameters
             if each not in ("incoming", "kwargs")] + ["name"]
    meant = difflib.get_close_matches(name, names, 1)
    return (f"Did you mean {meant[0]}?" if meant
            else f"Its arguments are {', '.join(names)}.")


# Arguments of get_output_for()

_FLAGS = "batch_norm_use_averages", "batch_norm_update_averages"


def check_flags(layer, deterministic, use, update, others):
    """Raise an error for flags that are misspelled, or of a wrong type."""
    for name in others:
        meant = _meant_by(name)
        if meant:
            raise TypeError(f"{label(layer)}: there is no flag {name}. Did "
                            f"you mean {meant}?")
    for name, value in (("deterministic", deterministic), (_FLAGS[0], use)):
        if not _is_flag(value):
            raise TypeError(
                f"{label(layer)}: {name} must be True or False, got "
                f"{value!r}. It decides which output is built; to choose "
                "later, build both outputs.")
    if not (_is_flag(update) or update == "explicit"):
        raise ValueError(f"{label(layer)}: {_FLAGS[1]} must be True, False, "
                         f"None or 'explicit', got {update!r}.")


def _meant_by(name):
    """Return the flag that a keyword argument may stand for, or None."""
    if name.replace("_", "").startswith("batchnorm") or (
            name.endswith("averages")):
        return " or ".join(difflib.get_close_matches(name, _FLAGS, 1)
                           or _FLAGS)
    # Other layers may have flags with names that are somewhat alike.
    return next(iter(difflib.get_close_matches(
        name, ["deterministic"], 1, cutoff=0.9)), None)


def _is_flag(value):
    return value is None or isinstance(value, (np.bool_, numbers.Integral))


def checked_input(layer, input):
    """Return a layer's input as a tensor of a floating-point type."""
    x = T.as_tensor_variable(input)
    if x.ndim != len(layer.input_shape):
        raise ValueError(
            f"{label(layer)} expects an input with {len(layer.input_shape)} "
            f"dimensions, like its input_shape {layer.input_shape}, but got "
            f"one with {x.ndim}.")
    if x.dtype in T.discrete_dtypes:
        x = x.astype(theano.config.floatX)
    return x


def check_params(layer, update):
    """Raise an error if parameters do not go with the layer's axes.

    Or, with `update`, if functions cannot update the running averages.
    """
    for param in (layer.mean, layer.std, layer.beta, layer.gamma):
        if isinstance(param, theano.compile.SharedVariable):
            _check_shape(layer, param)
    for average in (layer.mean, layer.std) if update else ():
        if not isinstance(average, theano.compile.SharedVariable):
            raise ValueError(
                f"{label(layer)} cannot update its running averages: "
                f"{average} is an expression. Give a shared variable for it, "
                "or pass batch_norm_update_averages=False to get_output().")


def _check_shape(layer, param):
    shape = np.shape(param.get_value(borrow=True, return_internal_type=True))
    if any(shape[axis] != 1 for axis in layer.axes):
        raise ValueError(
            f"{label(layer)}: parameter {param} has shape {shape}, but with "
            f"axes={tuple(layer.axes)} it must have size 1 on these. Pass "
            "axes= when the layer is made, and do not change layer.axes "
            "afterwards.")
