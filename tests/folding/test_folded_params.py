"""Parameters of folded networks, and of those that are to be folded."""

import io
import pickle
from functools import partial

from bnlasagne import (
    BatchNormLayer,
    batch_norm,
    fold_batch_norm,
    load_network,
    save_network,
)

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.common import later, needs_compiler
from helpers.folded import (
    assert_close,
    batches_for,
    check,
    compiled,
    dense,
    into,
    kinds,
    randomize,
)
from lasagne.layers import (
    Conv2DLayer,
    DenseLayer,
    DropoutLayer,
    InputLayer,
    get_all_layers,
    get_all_params,
    get_output,
)
from lasagne.nonlinearities import tanh
from numpy.testing import assert_array_equal
from theano.gof.graph import inputs
from theano.sandbox.rng_mrg import MRG_RandomStreams
from theano.tensor.shared_randomstreams import RandomStreams

pytestmark = pytest.mark.usefixtures("float64", "quick")


# --- expressions -----------------------------------------------------------

@later
def test_expressions_of_weights(rng, x):
    w, b = theano.shared(np.ones((4, 5))), theano.shared(np.ones(4))
    layer = dense(x, W=w.T, b=T.exp(b))
    tied = dense(BatchNormLayer(layer), 5, W=w)
    network = randomize(BatchNormLayer(tied), rng)
    folded, report = check(network, rng)
    assert into(report) == [layer, tied]
    for each in get_all_layers(folded)[1:]:
        assert isinstance(each.W, theano.compile.SharedVariable)
    assert len(get_all_params(folded)) == 4


def centred(x):
    layer = DenseLayer(x, 4, name="fc")
    layer.W = layer.W - layer.W.mean(0, keepdims=True)
    return batch_norm(layer)


def weight_normalized(x):
    layer = DenseLayer(x, 4, name="fc")
    layer.v = layer.W
    layer.g = layer.add_param(np.ones(4), (4,), "g", regularizable=False)
    layer.W = layer.v * (layer.g / layer.v.norm(2, axis=0))
    return batch_norm(layer)


def of_itself_after(x):
    layer = dense(BatchNormLayer(x), name="fc")
    layer.W = 2 * layer.W
    layer.b = T.sqr(layer.b)
    return layer


def constant(x):
    layer = dense(x, b=None, name="fc")
    layer.W = T.constant(np.arange(20.0).reshape(5, 4))
    layer.params.clear()
    return BatchNormLayer(layer)


def array(x):
    network = constant(x)
    network.input_layer.W = network.input_layer.W.data
    return network


def not_registered(x):
    layer = dense(x, name="fc")
    layer.W = theano.shared(np.arange(20.0).reshape(5, 4))
    layer.b = theano.shared(np.arange(4.0))
    return BatchNormLayer(layer)


@pytest.mark.parametrize("make", [
    centred, weight_normalized, of_itself_after, constant, array,
    not_registered])
def test_parameters_that_are_left_over(rng, x, make):
    network = randomize(make(x), rng)
    folded, report = check(network, rng)
    assert len(into(report)) == 1 and None not in into(report)
    assert folded.get_params() == [folded.W, folded.b]
    assert [param.name for param in get_all_params(folded)] == ["fc.W", "fc.b"]
    assert lasagne.layers.count_params(folded) == 24
    assert folded.W in folded.get_params(trainable=True)
    # As the weights were that they are made of.
    regularizable = folded.W in folded.get_params(regularizable=True)
    assert regularizable == (make in (centred, weight_normalized,
                                      of_itself_after))
    reloaded = fold_batch_norm(network)
    randomize(reloaded, rng)
    with io.BytesIO() as file:
        save_network(folded, file)
        assert sorted(np.load(io.BytesIO(file.getvalue()))) == ["fc.W", "fc.b"]
        file.seek(0)
        load_network(reloaded, file)
    assert_array_equal(reloaded.W.get_value(), folded.W.get_value())


@pytest.mark.parametrize("both", [False, True])
def test_tied_weights(rng, x, both):
    """The weights stay for as long as a layer uses them."""
    encoder = dense(x, name="encoder")
    decoder = dense(BatchNormLayer(encoder), 5, name="decoder")
    del decoder.params[decoder.W]
    decoder.W = encoder.W.T
    network = BatchNormLayer(decoder) if both else DropoutLayer(decoder)
    folded, report = check(randomize(network, rng), rng)
    assert into(report) == [encoder, decoder][:1 + both]
    encoder, decoder = get_all_layers(folded)[1:3]
    assert encoder.get_params()[:2] == [encoder.W, encoder.b]
    source, = set(inputs([decoder.W]))
    if both:
        assert source is decoder.W
        assert [param.name for param in get_all_params(folded)] == [
            "encoder.W", "encoder.b", "decoder.W", "decoder.b"]
    else:
        assert get_all_params(folded) == [
            encoder.W, encoder.b, source, decoder.b]


def test_nonlinearities_with_parameters(rng, x):
    slope = theano.shared(np.full(4, 0.3), "slope")
    layer = dense(x, name="fc")
    network = BatchNormLayer(
        layer, nonlinearity=lambda x: T.switch(x > 0, x, slope * x))
    network.params[slope] = {"trainable"}
    folded, report = check(randomize(network, rng), rng)
    assert into(report) == [layer]
    assert [param.name for param in get_all_params(folded)] == [
        "fc.W", "fc.b", "slope"]
    batches = batches_for(network, rng)
    function = compiled(folded, get_output(folded))
    before = function(*batches)
    folded.get_params()[2].set_value(np.full(4, 0.7))
    assert np.any(function(*batches) != before)


control = theano.shared(np.float64(1), "control")


def scaled_by_control(x):
    return x * control


def test_variables_that_are_no_parameters(rng, x):
    """Users set them for both networks; a function stays as it is."""
    network = randomize(batch_norm(dense(
        x, nonlinearity=scaled_by_control, name="fc")), rng)
    folded, report = fold_batch_norm(network, return_report=True)
    assert into(report) == [get_all_layers(network)[1]]
    batches = batches_for(network, rng)
    before, = compiled(folded, get_output([folded]))(*batches)
    try:
        control.set_value(3.0)
        for each in folded, pickle.loads(pickle.dumps(folded)):
            output, = compiled(each, get_output([each]))(*batches)
            assert_close(output, 3 * before)
    finally:
        control.set_value(1.0)


def test_parameters_of_layers_that_stay(x):
    """The layer that stays registers them, and gives them its name."""
    first = BatchNormLayer(dense(x, name="fc"))
    network = BatchNormLayer(dense(first, nonlinearity=tanh), name="stays",
                             beta=first.beta)
    folded = fold_batch_norm(network)
    layer = get_all_layers(folded)[1]
    assert layer.get_params() == [layer.W, layer.b]
    assert folded.beta in folded.get_params()


@later
def test_expressions_of_statistics(rng, x):
    row = partial(theano.shared, np.ones((1, 4)),
                  broadcastable=(True, False))
    layer = dense(x)
    network = randomize(BatchNormLayer(
        layer, mean=2 * row(), std=T.exp(row()), gamma=T.sqr(row()),
        beta=-row()), rng)
    _, report = check(network, rng)
    assert into(report) == [layer]


def test_epsilon_as_shared_variable(rng, x):
    layer = dense(x)
    network = randomize(BatchNormLayer(
        layer, epsilon=theano.shared(0.3) ** 2), rng)
    _, report = check(network, rng)
    assert into(report) == [layer]


@later
def test_weights_that_depend_on_inputs(rng, x):
    weights = T.tanh(T.dot(x.input_var.T, x.input_var))
    network = BatchNormLayer(dense(x, 5, W=weights))
    folded, report = check(randomize(network, rng), rng)
    assert kinds(folded) == kinds(network)
    assert "W of DenseLayer (layer 1) has no value of its own" \
        in str(report[0])
    assert "is an input of the network" in str(report[0])


@pytest.mark.parametrize("streams, name", [
    (MRG_RandomStreams, "gamma"), (RandomStreams, "W")])
def test_parameters_that_are_random(x, streams, name):
    layer = dense(x, b=None)
    network = BatchNormLayer(layer)
    owner = network if name == "gamma" else layer
    old = getattr(owner, name)
    # Lasagne 0.1 would not take an expression as an argument.
    new = T.patternbroadcast(
        streams(1).normal(old.get_value().shape, avg=0.0, std=1.0),
        old.broadcastable)
    setattr(owner, name, new)
    folded, report = fold_batch_norm(network, return_report=True)
    assert kinds(folded) == kinds(network)
    assert "is updated by each function" in str(report[0])
    function = compiled(folded, get_output(folded, deterministic=True))
    assert np.all(function(np.ones((1, 5))) != function(np.ones((1, 5))))


# --- broadcast -------------------------------------------------------------

def test_one_bias_for_all(rng, x):
    b = theano.shared(np.ones(1), broadcastable=(True,))
    layer = dense(x, b=b)
    folded, report = check(randomize(BatchNormLayer(layer), rng), rng)
    assert into(report) == [layer]
    assert folded.b.get_value().shape == (4,)


@needs_compiler
def test_one_bias_for_all_positions(rng, float64):
    b = theano.shared(np.ones((3, 1, 1)), broadcastable=(False, True, True))
    layer = Conv2DLayer(InputLayer((None, 2, 5, 5)), 3, 3, b=b,
                        untie_biases=True, nonlinearity=None)
    network = randomize(BatchNormLayer(layer), rng)
    _, report = check(network, rng, mode=theano.Mode("cvm", "fast_compile"))
    assert into(report) == [layer]


def test_one_factor_for_all(rng, x):
    one = partial(theano.shared, np.ones((1, 1)),
                  broadcastable=(True, True))
    first = BatchNormLayer(x, mean=one(), std=one(), gamma=one(), beta=None)
    layer = dense(first)
    network = randomize(BatchNormLayer(layer, std=one(), gamma=one()), rng)
    _, report = check(network, rng)
    assert into(report) == [layer, layer]
