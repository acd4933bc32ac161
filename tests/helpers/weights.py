"""Made-up weights of other frameworks, for the tests of several modules."""

from collections import OrderedDict, namedtuple
from functools import partial, update_wrapper

from bnlasagne import (
    batch_norm,
    get_keras_weights,
    get_torch_state_dict,
    set_keras_weights,
    set_torch_state_dict,
)

import numpy as np
import pytest
import theano
from lasagne.layers import (
    DenseLayer,
    InputLayer,
    get_all_layers,
    get_all_params,
    get_output,
)

CLOSE = {"float32": 1e-5, "float64": 1e-12}


def linear(layer_class, incoming, *args, **kwargs):
    return layer_class(incoming, *args, nonlinearity=None, **kwargs)


def norm(*args, **kwargs):
    """A layer that is normalized, and not rectified."""
    return batch_norm(linear(*args, **kwargs))


def randomize(network, rng):
    """Give all parameters of a network random values."""
    for param in get_all_params(network):
        random = rng.uniform(0.5, 2, param.get_value().shape)
        if not param.name or not param.name.endswith("std"):
            random -= 1.2
        param.set_value(np.asarray(random, param.dtype))


def compiled(network, mode=None):
    """The deterministic output, as a function of the network's inputs."""
    inputs = [layer.input_var for layer in get_all_layers(network)
              if isinstance(layer, InputLayer)]
    return theano.function(inputs, get_output(network, deterministic=True),
                           mode=mode)


def batch_for(layer, rng, size=3):
    batch = rng.normal(size=(size,) + layer.output_shape[1:])
    return np.asarray(batch, theano.config.floatX)


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    error = abs(actual - expected).max() / abs(expected).max()
    assert error < CLOSE[theano.config.floatX]


def bits(network):
    return [(param.dtype, param.get_value().tobytes())
            for param in get_all_params(network)]


def normalized(x, group, epsilon, axis=1):
    """What PyTorch and Keras compute, by names of either."""
    names = [("running_mean", "moving_mean", 0),
             ("running_var", "moving_variance", 1), ("weight", "gamma", 1),
             ("bias", "beta", 0)]
    shape = [-1 if each == axis else 1 for each in range(np.ndim(x))]
    mean, var, gamma, beta = (
        np.reshape(group.get(torch, group.get(keras, neutral)), shape)
        if torch in group or keras in group else neutral
        for torch, keras, neutral in names)
    return (x - mean) / np.sqrt(var + epsilon) * gamma + beta


def group(weights, name, separator):
    """Weights of one layer."""
    return {key[len(name) + 1:]: np.asarray(value, "float64")
            for key, value in weights.items()
            if key.startswith(name + separator)}


def random_norm(rng, size):
    return OrderedDict([
        ("weight", rng.normal(size=size)), ("bias", rng.normal(size=size)),
        ("running_mean", rng.normal(size=size)),
        ("running_var", rng.uniform(0.2, 2, size))])


KERAS_NAMES = {"running_mean": "moving_mean", "running_var": "moving_variance"}


def named(module, weights, framework):
    """Weights of a module of PyTorch, by their full names; or of Keras."""
    if framework is TORCH:
        return OrderedDict((module + "." + name, value)
                           for name, value in weights.items())
    names = dict(KERAS_NAMES, weight="gamma", bias="beta") \
        if "running_var" in weights else {"weight": "kernel", "bias": "bias"}
    return OrderedDict(
        (module + "/" + names[name], to_keras(value))
        for name, value in weights.items())


def to_keras(value):
    """Filters of PyTorch in the order of Keras."""
    # From filters, channels, positions to positions, channels, filters; from
    # channels, filters, positions, if transposed, to positions, filters,
    # channels; and dense, from units, features to features, units.
    return np.moveaxis(value, [0, 1], [-1, -2]) if value.ndim > 1 else value


def from_keras(kernel):
    return np.moveaxis(kernel, [-1, -2], [0, 1])


Framework = namedtuple("Framework", "set, get, separator, epsilon")
TORCH = Framework(set_torch_state_dict, get_torch_state_dict, ".", 1e-5)
# Made-up networks need not tell that their inputs are images.
KERAS = Framework(*[update_wrapper(
    partial(function, data_format="channels_last"), function)
    for function in (set_keras_weights, get_keras_weights)], "/", 1e-3)
both = pytest.mark.parametrize("framework", [TORCH, KERAS],
                               ids=["torch", "keras"])


def chain(*names):
    layer, layers = InputLayer((None, 3)), []
    for name in names:
        layer = DenseLayer(layer, 3, name=name)
        layers.append(layer)
    return layers


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def network_of_names(rng):
    layer = InputLayer((None, 4))
    for number in range(2):
        layer = batch_norm(DenseLayer(layer, 5 - number, name="fc%d" % number))
    layers = [DenseLayer(layer, 2, name="out"), layer]
    randomize(layers, rng)
    return layers
