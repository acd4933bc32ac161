"""batch_norm(): what it takes from a layer, and what it refuses."""

import copy

from bnlasagne import BatchNormLayer, batch_norm

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from lasagne.layers import DenseLayer, InputLayer, get_output
from lasagne.nonlinearities import identity, rectify, tanh
from numpy.testing import assert_allclose


def vectors():
    return InputLayer((None, 4))


def dense(**kwargs):
    return DenseLayer(vectors(), 3, **kwargs)


def optional(name):
    """A layer class that the installed Lasagne may lack."""
    return getattr(lasagne.layers, name, None)


def locally_connected(**kwargs):
    return optional("LocallyConnected2DLayer")(
        InputLayer((None, 2, 5, 5)), 3, 3, **kwargs)


LAYERS = {
    "dense": dense,
    "conv1d": lambda **kwargs: lasagne.layers.Conv1DLayer(
        InputLayer((None, 2, 5)), 3, 2, **kwargs),
    "conv2d": lambda **kwargs: lasagne.layers.Conv2DLayer(
        InputLayer((None, 2, 5, 5)), 3, 2, **kwargs),
    "untied conv2d": lambda **kwargs: lasagne.layers.Conv2DLayer(
        InputLayer((None, 2, 5, 5)), 3, 2, untie_biases=True, **kwargs),
    "nin": lambda **kwargs: lasagne.layers.NINLayer(
        InputLayer((None, 2, 5, 5)), 3, **kwargs),
}
if optional("LocallyConnected2DLayer"):
    LAYERS["locally connected"] = locally_connected


@pytest.fixture(params=LAYERS.values(), ids=list(LAYERS))
def make(request):
    return request.param


def snapshot(layer):
    return copy.copy(layer.__dict__), copy.copy(layer.params)


def test_layers_with_bias_and_nonlinearity(make, rng):
    layer = make(nonlinearity=tanh)
    bias = layer.b
    wrapped = batch_norm(layer)
    assert isinstance(wrapped, BatchNormLayer)
    assert wrapped.input_layer is layer
    assert wrapped.nonlinearity is tanh
    assert layer.nonlinearity is identity
    assert layer.b is None
    assert bias not in layer.params
    assert [p.name for p in layer.get_params()] == ["W"]

    x = T.constant(rng.normal(size=(3,) + layer.input_shape[1:])
                   .astype(theano.config.floatX))
    # In C: Theano has no convolutions in Python.
    linear, output = theano.function(
        [], [get_output(layer, x), get_output(wrapped, x)])()
    axes = (0,) + tuple(range(2, linear.ndim))
    assert_allclose(output, np.tanh(reference.normalize_batch(linear, axes)),
                    rtol=1e-4, atol=1e-4)


def test_layer_without_bias_parameter(make):
    layer = make(b=None)
    params = layer.get_params()
    assert batch_norm(layer).nonlinearity is rectify
    assert layer.get_params() == params


def test_layer_that_knows_no_bias():
    layer = batch_norm(vectors())
    assert layer.nonlinearity is identity
    assert not hasattr(layer.input_layer, "b")


def test_attribute_b_that_is_no_parameter_stays():
    layer = dense(b=None)
    layer.b = 5
    batch_norm(layer)
    assert layer.b == 5


def test_linear_layers_may_be_wrapped_again():
    layer = dense(nonlinearity=None)
    wrapped = [batch_norm(layer), batch_norm(layer)]
    assert all(one.nonlinearity is identity for one in wrapped)
    batch_norm(wrapped[0])


def test_shared_bias_stays_with_the_others():
    one = dense()
    other = DenseLayer(one.input_layer, 3, b=one.b)
    batch_norm(one)
    assert one.b is None
    assert other.b in other.params


def test_names():
    assert batch_norm(dense()).name is None
    assert batch_norm(dense(name="fc")).name == "fc_bn"
    assert batch_norm(dense(name="fc"), name="norm").name == "norm"
    assert batch_norm(dense(name="fc")).mean.name == "fc_bn.mean"


def test_arguments_are_passed_on():
    layer = batch_norm(dense(), alpha=0.1, epsilon=0.2, axes=(0, 1),
                       gamma=None)
    assert (layer.alpha, layer.epsilon, layer.axes) == (0.1, 0.2, (0, 1))
    assert layer.gamma is None


def test_given_nonlinearity_replaces_the_layers():
    layer = dense(nonlinearity=rectify)
    assert batch_norm(layer, nonlinearity=tanh).nonlinearity is tanh
    assert layer.nonlinearity is identity


def test_sequences_normalized_over_batch_and_time():
    layer = batch_norm(InputLayer((None, None, 4)), axes=(0, 1))
    assert layer.mean.get_value().shape == (1, 1, 4)


# Refusals

RECURRENT = {
    "RecurrentLayer": lambda: lasagne.layers.RecurrentLayer(
        InputLayer((2, 3, 4)), 5),
    "LSTMLayer": lambda: lasagne.layers.LSTMLayer(InputLayer((2, 3, 4)), 5),
    "GRULayer": lambda: lasagne.layers.GRULayer(InputLayer((2, 3, 4)), 5),
    "CustomRecurrentLayer": lambda: lasagne.layers.CustomRecurrentLayer(
        InputLayer((2, 3, 4)), dense(), DenseLayer(InputLayer((None, 3)), 3)),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_refused(name):
    layer = RECURRENT[name]()
    before = snapshot(layer)
    with pytest.raises(TypeError, match=name + r".*axes=\(0, 1\)"):
        batch_norm(layer)
    assert snapshot(layer) == before


def test_layer_that_lost_its_nonlinearity_is_refused():
    layer = dense(name="fc")
    wrapped = batch_norm(layer)
    before = snapshot(layer), snapshot(wrapped)
    with pytest.raises(ValueError, match="'fc'.*'fc_bn'.*in its place"):
        batch_norm(layer)
    assert (snapshot(layer), snapshot(wrapped)) == before


@pytest.mark.parametrize("thing", [None, (None, 3), "dense", DenseLayer])
def test_what_is_no_layer_is_refused(thing):
    with pytest.raises(TypeError, match="expects a Layer instance"):
        batch_norm(thing)


@pytest.mark.parametrize("arguments, error", [
    ({"alpha": 2}, ValueError),
    ({"axes": 7}, ValueError),
    ({"beta": np.zeros(5)}, ValueError),
    ({"nonlinearity": "tanh"}, TypeError),
    ({"momentum": 0.9}, TypeError),
])
def test_wrong_arguments_leave_the_layer_as_it_was(arguments, error):
    layer = dense(name="fc")
    before = snapshot(layer)
    with pytest.raises(error):
        batch_norm(layer, **arguments)
    assert snapshot(layer) == before


def test_unknown_size_leaves_the_layer_as_it_was():
    layer = lasagne.layers.ElemwiseSumLayer(
        [InputLayer((None, None)), InputLayer((None, None))])
    before = snapshot(layer)
    with pytest.raises(ValueError, match="needs specified input sizes"):
        batch_norm(layer)
    assert snapshot(layer) == before
