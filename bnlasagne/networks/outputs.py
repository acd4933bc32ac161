"""Build the outputs of layers, and compare what layers compute."""

import inspect
import types

import lasagne
import theano
import theano.tensor as T
from theano.scan_module.scan_utils import equal_computations

from ..theano_tools.quiet_checks import quiet_checks
from .parts import of_library

__all__ = ["computes_like", "have_equal_graphs", "output_of", "overrides"]


def computes_like(layer, base):
    """Tell whether a layer computes what one of its base classes computes.

    The base is a class of Lasagne or of this package. A subclass may override
    methods, if that makes no difference to the deterministic output.
    """
    if not overrides(layer, base, *dir(base)) and _knows_convolution(layer):
        return True
    return have_equal_graphs(layer, _plain(layer, base))


def have_equal_graphs(*layers):
    """Tell whether two layers compute the same for testing."""
    x = _input_of(layers[0])
    try:
        return equal_computations(*([output_of(layer, x)]
                                    for layer in layers))
    except Exception:  # A user's method may raise any.
        return False


def output_of(layer, x=None, deterministic=True):
    """Build the output of a layer for an input, by default a new variable."""
    # The input has no test value.
    with quiet_checks():
        return T.as_tensor_variable(layer.get_output_for(
            _input_of(layer) if x is None else x,
            deterministic=deterministic))


def _input_of(layer):
    if isinstance(layer, lasagne.layers.MergeLayer):
        return [_variable_of(shape) for shape in layer.input_shapes]
    return _variable_of(layer.input_shape)


def _variable_of(shape):
    return T.TensorType(theano.config.floatX, (False,) * len(shape))()


def _plain(layer, base):
    """Make a layer of a base class, with the attributes of another layer."""
    new = object.__new__(base)
    attributes = dict(vars(layer))
    for name in dir(type(layer)):
        # An attribute may be computed, such as weights by a property.
        if isinstance(getattr(type(layer), name), property) and \
                not hasattr(base, name):
            attributes[name] = getattr(layer, name)
    vars(new).update((name, value) for name, value in attributes.items()
                     if not _is_method(base, name))
    if not _knows_convolution(layer):
        new.convolution = inspect.signature(
            base.__init__).parameters["convolution"].default
    return new


def _knows_convolution(layer):
    """Tell whether a layer convolves by a function of a library, or not."""
    function = getattr(layer, "convolution", None)
    return function is None or of_library(function)


def overrides(layer, base, *methods):
    """Tell whether a layer has other methods than one of its base classes.

    Methods of its own, set as attributes of the layer, count as well.
    """
    return any(_is_method(base, name) and (
        name in vars(layer) or inspect.getattr_static(type(layer), name)
        is not inspect.getattr_static(base, name)) for name in methods)


def _is_method(base, name):
    # A class may also have default values of attributes, which are no methods.
    return not name.startswith("__") and isinstance(
        inspect.getattr_static(base, name, None),
        (types.FunctionType, classmethod, property))
