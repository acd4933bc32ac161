"""Made-up weights of other frameworks, for the tests of several modules."""

import contextlib
from collections import namedtuple
from functools import partial, update_wrapper

from bnlasagne import (
    batch_norm,
    get_keras_weights,
    get_torch_state_dict,
    set_keras_weights,
    set_torch_state_dict,
)

import lasagne
import numpy as np
import pytest
import theano
from lasagne.layers import (
    DenseLayer,
    InputLayer,
    Layer,
    get_all_params,
    get_output,
)

from helpers.folded import inputs_of, randomize

CLOSE = {"float32": 1e-5, "float64": 1e-12}

Framework = namedtuple("Framework", "set, get, separator, epsilon")
TORCH = Framework(set_torch_state_dict, get_torch_state_dict, ".", 1e-5)
# Made-up networks need not tell that their inputs are images.
KERAS = Framework(*[update_wrapper(
    partial(function, data_format="channels_last"), function)
    for function in (set_keras_weights, get_keras_weights)], "/", 1e-3)
both = pytest.mark.parametrize("framework", [TORCH, KERAS],
                               ids=["torch", "keras"])


# --- networks --------------------------------------------------------------

def linear(kind, *args, **kwargs):
    """A layer of a class, or of the class of that name."""
    kind = getattr(lasagne.layers, kind) if isinstance(kind, str) else kind
    return kind(*args, nonlinearity=None, **kwargs)


def norm(*args, **kwargs):
    """A layer that is normalized, and not rectified."""
    return batch_norm(linear(*args, **kwargs))


def chain(*names):
    """Dense layers of these names, one on the other."""
    layer, layers = InputLayer((None, 3)), []
    for name in names:
        layer = DenseLayer(layer, 3, name=name)
        layers.append(layer)
    return layers


def network_of_names(rng):
    layer = InputLayer((None, 4))
    for number in range(2):
        layer = batch_norm(DenseLayer(layer, 5 - number, name=f"fc{number}"))
    return randomize([DenseLayer(layer, 2, name="out"), layer], rng)


def compiled(network, mode=None):
    """The deterministic output, as a function of the network's inputs."""
    return theano.function(inputs_of(network),
                           get_output(network, deterministic=True), mode=mode)


def batch_for(layer, rng, size=3):
    batch = rng.normal(size=(size,) + layer.output_shape[1:])
    return np.asarray(batch, theano.config.floatX)


def assert_close(actual, expected, tolerance=None):
    assert actual.shape == expected.shape
    error = abs(actual - expected).max() / abs(expected).max()
    assert error < (tolerance or CLOSE[theano.config.floatX])


def bits(network):
    return [(param.dtype, param.get_value().tobytes())
            for param in get_all_params(network)]


@contextlib.contextmanager
def refused(network, match=None, error=ValueError):
    """A block raises an error, and leaves all parameters as they are."""
    before = bits(network)
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert bits(network) == before


# --- weights ---------------------------------------------------------------

KERAS_NAMES = {"running_mean": "moving_mean", "running_var": "moving_variance"}


def named(module, weights, framework):
    """Weights of a module of PyTorch, by their full names; or of Keras."""
    if framework is TORCH:
        return {f"{module}.{name}": value for name, value in weights.items()}
    names = dict(KERAS_NAMES, weight="gamma", bias="beta") \
        if "running_var" in weights else {"weight": "kernel", "bias": "bias"}
    return {f"{module}/{names[name]}": to_keras(value)
            for name, value in weights.items()}


def named_dense(module, framework, W, b=None):
    """Weights of a linear module, from those of PyTorch."""
    weights = {"weight": W} if b is None else {"weight": W, "bias": b}
    return named(module, weights, framework)


def named_norm(module, framework, rng, size, without=()):
    """Random weights of batch normalization, by PyTorch's names in order."""
    weights = {"weight": rng.normal(size=size), "bias": rng.normal(size=size),
               "running_mean": rng.normal(size=size),
               "running_var": rng.uniform(0.2, 2, size)}
    found = named(module, weights, framework)
    return {key: found[key] for key, name in zip(found, weights)
            if name not in without}


def numbered(framework, modules):
    """Weights of dense modules that are full of the numbers of these."""
    weights = {}
    for number, module in enumerate(modules):
        weights.update(named_dense(
            module.replace("|", framework.separator), framework,
            np.full((3, 3), number), np.full(3, number)))
    return weights


def numbers_in(layers):
    """The number that each layer is full of."""
    for layer in layers:
        assert np.ptp(layer.W.get_value()) == np.ptp(layer.b.get_value()) == 0
        assert layer.W.get_value()[0, 0] == layer.b.get_value()[0]
    return [layer.b.get_value()[0] for layer in layers]


def without(weights, *ends):
    """Those weights whose names have other ends."""
    return {name: value for name, value in weights.items()
            if not name.endswith(ends)}


def group(weights, name, framework):
    """Weights of one layer."""
    start = name + framework.separator
    return {key[len(start):]: np.asarray(value, "float64")
            for key, value in weights.items() if key.startswith(start)}


def normalized(x, weights, name, framework, epsilon=None, axis=1):
    """What a module of PyTorch or Keras makes of an array."""
    names = [("running_mean", "moving_mean", 0),
             ("running_var", "moving_variance", 1), ("weight", "gamma", 1),
             ("bias", "beta", 0)]
    own = group(weights, name, framework)
    shape = [-1 if each == axis else 1 for each in range(np.ndim(x))]
    mean, var, gamma, beta = (
        np.reshape(own.get(torch, own.get(keras, neutral)), shape)
        if torch in own or keras in own else neutral
        for torch, keras, neutral in names)
    return (x - mean) / np.sqrt(var + (epsilon or framework.epsilon)
                                ) * gamma + beta


def product(x, weights, name, framework):
    """What a dense module makes of an array."""
    own = group(weights, name, framework)
    W = own["weight"].T if framework is TORCH else own["kernel"]
    return x @ W + own.get("bias", 0)


def to_keras(value):
    """Filters of PyTorch in the order of Keras."""
    # From filters, channels, positions to positions, channels, filters; from
    # channels, filters, positions, if transposed, to positions, filters,
    # channels; and dense, from units, features to features, units.
    return np.moveaxis(value, [0, 1], [-1, -2]) if value.ndim > 1 else value


def from_keras(kernel):
    return np.moveaxis(kernel, [-1, -2], [0, 1])


def channels_last(x):
    return np.moveaxis(x, 1, -1)


class Values(Layer):
    """A layer with parameters of any type."""

    def __init__(self, values, incoming=(None, 3), name="s"):
        super().__init__(incoming, name=name)
        for number, value in enumerate(values):
            param = theano.shared(value)
            setattr(self, f"n{number}", param)
            self.params[param] = set()
