"""Fold networks, and compare them with the originals."""

from bnlasagne import fold_batch_norm
from bnlasagne.networks.walk import all_layers

import numpy as np
import theano
from lasagne.layers import (
    DenseLayer,
    InputLayer,
    Layer,
    get_all_layers,
    get_all_params,
    get_output,
)
from lasagne.nonlinearities import LeakyRectify
from theano.gof.graph import inputs

CLOSE = {"float32": 1e-5, "float64": 1e-12}
LEAKY = LeakyRectify(0.5)


class Applies(Layer):
    """Applies a function, as Lasagne's later `ExpressionLayer`."""

    def __init__(self, incoming, function, **kwargs):
        super().__init__(incoming, **kwargs)
        self.function = function

    def get_output_for(self, input, **kwargs):
        return self.function(input)


def randomize(network, rng):
    """Give all parameters of a network random values, and return it."""
    for param in get_all_params(network):
        value = param.get_value()
        # Factors are kept away from zero, and have either sign.
        scale = param.name and param.name.endswith(("std", "gamma"))
        random = rng.uniform(0.5, 2, value.shape) if scale \
            else rng.normal(size=value.shape)
        if scale and param.name.endswith("gamma"):
            random *= rng.choice([-1, 1], value.shape)
        param.set_value(np.asarray(random, value.dtype))
    return network


def input_layers_of(network):
    return [layer for layer in get_all_layers(network)
            if isinstance(layer, InputLayer)]


def inputs_of(network):
    return [layer.input_var for layer in input_layers_of(network)]


def batches_for(network, rng, size=3):
    return [np.asarray(5 * rng.normal(size=[each or size for each
                                            in layer.shape]),
                       layer.input_var.dtype)
            for layer in input_layers_of(network)]


def compiled(network, outputs, mode=None):
    return theano.function(inputs_of(network), outputs, mode=mode)


def deterministic(*networks):
    """The deterministic outputs of networks, in one list."""
    return get_output([layer for network in networks
                       for layer in listed(network)], deterministic=True)


def listed(network):
    return list(network) if isinstance(network, (list, tuple)) else [network]


def assert_close(actual, expected, dtype="float64"):
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max()
    assert error <= CLOSE[dtype] * np.abs(expected).max()


def state_of(network):
    """All that there is to a network, to see that nothing changes."""
    def fixed(value):
        if isinstance(value, dict):
            return type(value), [(key, fixed(each))
                                 for key, each in value.items()]
        if isinstance(value, (list, tuple, set)):
            return type(value), set(value) if isinstance(value, set) \
                else [fixed(each) for each in value]
        return id(value)

    layers = all_layers(listed(network))
    params = get_all_params(listed(network))
    return (layers, [fixed(vars(layer)) for layer in layers], params,
            [(param.name, dict(vars(param.tag)), param.get_value().tobytes(),
              getattr(param, "default_update", None)) for param in params])


def roots_of(network):
    """The variables that the output of a network is computed from."""
    return {variable for variable in inputs(deterministic(network))
            if not isinstance(variable, theano.Constant)}


def fold_and_run(network, batches, mode=None):
    """Fold a network: the same output, from other parameters.

    The original stays as it is.

    Returns
    -------
    folded, report
        From fold_batch_norm().
    outputs : list of array
        Of the folded network.
    """
    outputs = deterministic(network)
    before = state_of(network)
    folded, report = fold_batch_norm(network, return_report=True)
    assert state_of(network) == before
    assert inputs_of(folded) == inputs_of(network)
    assert roots_of(network) & roots_of(folded) <= set(
        inputs(inputs_of(network)))
    assert not set(get_all_params(network)) & set(get_all_params(folded))
    # One function for both is compiled sooner.
    values = compiled(network, outputs + deterministic(folded), mode)(*batches)
    for value, found in zip(values, values[len(outputs):]):
        assert found.dtype == value.dtype
        assert np.all(np.isfinite(value)) and np.ptp(value) > 0
        assert_close(found, value, str(value.dtype))
    return folded, report, values[len(outputs):]


def check(network, rng, batches=None, mode=None):
    """Fold a network, as :func:`fold_and_run`, on batches drawn for it."""
    if batches is None:
        batches = batches_for(network, rng)
    return fold_and_run(network, batches, mode)[:2]


def kinds(network):
    return [type(layer).__name__.replace("Layer", "")
            for layer in get_all_layers(network)]


def into(report):
    return [entry.into for entry in report]


def dense(incoming, units=4, nonlinearity=None, **options):
    return DenseLayer(incoming, units, nonlinearity=nonlinearity, **options)
