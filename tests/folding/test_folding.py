"""Networks for inference, without batch normalization layers."""

import concurrent.futures
import logging
import pickle
import re

from bnlasagne import (
    BatchNormLayer,
    batch_norm,
    fold_batch_norm,
    freeze_batch_norm,
)
from bnlasagne.networks.walk import all_layers

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.common import later, needs_compiler
from helpers.folded import (
    LEAKY,
    Applies,
    assert_close,
    batches_for,
    check,
    compiled,
    dense,
    deterministic,
    fold_and_run,
    into,
    kinds,
    randomize,
    roots_of,
    state_of,
)
from helpers.networks import sized
from helpers.subclasses import ByBatch, Unchanged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lasagne.layers import (
    Conv2DLayer,
    CustomRecurrentLayer,
    DenseLayer,
    DropoutLayer,
    ElemwiseSumLayer,
    InputLayer,
    MaxPool2DLayer,
    ReshapeLayer,
    get_all_layers,
    get_all_params,
    get_output,
)
from lasagne.nonlinearities import identity, rectify, tanh
from numpy.testing import assert_array_equal
from theano.gof.graph import ancestors

pytestmark = pytest.mark.usefixtures("float64", "quick")


# --- networks --------------------------------------------------------------

def test_shared_weights(rng, x):
    first = dense(x, 5)
    second = dense(BatchNormLayer(first, nonlinearity=LEAKY), 5, W=first.W)
    network = randomize(BatchNormLayer(second), rng)
    folded, report = check(network, rng)
    assert into(report) == [first, second]
    weights = [layer.W for layer in get_all_layers(folded)[1:]]
    assert len(set(weights)) == 2


def test_one_of_two_with_shared_weights(rng, x):
    first = dense(x, 5, nonlinearity=LEAKY)
    second = dense(first, 5, W=first.W, b=first.b)
    network = randomize(BatchNormLayer(second), rng)
    _, report = check(network, rng)
    assert into(report) == [second]


def test_shared_batch_norm_parameters(rng, x):
    first = BatchNormLayer(dense(x))
    second = dense(first)
    network = randomize(BatchNormLayer(
        second, mean=first.mean, std=first.std, gamma=first.gamma,
        beta=first.beta), rng)
    _, report = check(network, rng)
    assert into(report) == [first.input_layer, second]


def test_several_outputs(rng, x):
    trunk = batch_norm(dense(x, nonlinearity=LEAKY), name="trunk")
    left, right = dense(trunk), dense(trunk, 3)
    network = randomize([BatchNormLayer(left), BatchNormLayer(right), trunk],
                        rng)
    folded, report = check(network, rng)
    assert into(report) == [trunk.input_layer, left, right]
    assert [each.output_shape for each in folded] == [
        (None, 4), (None, 3), (None, 4)]
    assert len(get_all_layers(folded)) == 4
    assert folded[0].input_layer is folded[2]
    assert isinstance(fold_batch_norm([trunk]), list)
    assert isinstance(fold_batch_norm(tuple(network)), list)


def test_one_output_twice(rng, x):
    network = randomize(BatchNormLayer(dense(x)), rng)
    (first, second), _ = check([network, network], rng)
    assert first is second


def test_twice_in_a_sum(rng, x):
    norm = BatchNormLayer(dense(x))
    folded, _ = check(randomize(ElemwiseSumLayer([norm, norm]), rng), rng)
    assert kinds(folded) == ["Input", "Dense", "ElemwiseSum"]
    assert len(set(folded.input_layers)) == 1


@needs_compiler
def test_residual_network(rng, float64):
    def conv(incoming, size=3, **options):
        return batch_norm(Conv2DLayer(incoming, 4, size, pad="same",
                                      **options))

    trunk = conv(InputLayer((None, 3, 6, 6)))
    branch = conv(conv(trunk), nonlinearity=None)
    total = ElemwiseSumLayer([conv(trunk, 1, nonlinearity=None), branch])
    normed = BatchNormLayer(total, nonlinearity=rectify, name="total")
    last = Conv2DLayer(normed, 5, 3, untie_biases=True, nonlinearity=None)
    network = batch_norm(dense(MaxPool2DLayer(BatchNormLayer(last), 2)))
    randomize(network, rng)
    folded, report = check(network, rng,
                           mode=theano.Mode("cvm", "fast_compile"))
    assert [entry.layer for entry in report if entry.into is None] == [normed]
    # The two that feed the sum: each would be scaled by itself.
    assert kinds(folded) == ["Input"] + ["Conv2D"] * 4 + [
        "ElemwiseSum", "BatchNorm", "Conv2D", "MaxPool2D", "Dense"]


def test_batch_norm_on_a_sum_into_the_layer_after(rng, x):
    total = BatchNormLayer(ElemwiseSumLayer([dense(x), dense(x)]))
    network = randomize(dense(total), rng)
    folded, report = check(network, rng)
    assert into(report) == [network]


# --- sizes -----------------------------------------------------------------

def of_input(incoming):
    size, time, _ = incoming.input_var.shape
    return size, time


def of_output(incoming):
    shape = get_output(batch_norm(dense(ReshapeLayer(incoming, (-1, 5))))
                       ).shape
    return shape[0] // 2, 2


def of_folded_output(incoming):
    return None


@pytest.mark.parametrize("sizes", [of_input, of_output, of_folded_output])
def test_sizes(rng, sizes):
    incoming = InputLayer((None, 2, 5))
    first = dense(ReshapeLayer(incoming, (-1, 5)), name="first")
    normed = BatchNormLayer(first)
    found = sizes(incoming) or (get_output(normed).shape[0] // 2, 2)
    again = BatchNormLayer(ReshapeLayer(normed, found + (4,)), axes=(0, 1))
    network = dense(ReshapeLayer(again, (-1, 4)), name="last")
    folded, report = check(randomize(network, rng), rng)
    assert into(report) == [first, None]
    assert [param.name for param in get_all_params(folded)] == [
        "first.W", "first.b", "mean", "std", "beta", "gamma", "last.W",
        "last.b"]
    # For other data, too.
    batch = rng.normal(size=(7, 2, 5))
    expected, actual = (
        theano.function([incoming.input_var], get_output(
            each, {incoming: incoming.input_var}, deterministic=True))(batch)
        for each in (network, folded))
    assert_close(actual, expected)


def test_input_layers_on_expressions(rng):
    x = T.matrix()
    incoming = InputLayer((None, 1, 5), x.dimshuffle(0, "x", 1))
    size = incoming.input_var.shape[0]
    first = dense(ReshapeLayer(incoming, (size, 5)))
    network = dense(Applies(BatchNormLayer(first), lambda output: output +
                            incoming.input_var.sum((1, 2), keepdims=False
                                                   ).dimshuffle(0, "x")))
    randomize(network, rng)
    folded, report = fold_batch_norm(network, return_report=True)
    assert into(report) == [first]
    expected, actual = theano.function([x], [
        get_output(each, deterministic=True) for each in (network, folded)])(
            rng.normal(size=(3, 5)))
    assert_close(actual, expected)
    assert incoming.input_var in ancestors([get_output(folded)])
    assert not set(get_all_params(network)) & roots_of(folded)


@later
@needs_compiler
def test_transposed_convolution_sized_by_the_input(rng, float64):
    incoming = InputLayer((None, 1, 7, 6))
    layer = Conv2DLayer(incoming, 2, 3, stride=2, nonlinearity=None)
    upper = lasagne.layers.TransposedConv2DLayer(
        BatchNormLayer(layer, nonlinearity=LEAKY), 2, 3, stride=2,
        nonlinearity=None, output_size=incoming.input_var.shape[2:])
    network = randomize(BatchNormLayer(upper), rng)
    _, report = check(network, rng, mode=theano.Mode("cvm", "fast_compile"))
    assert into(report) == [layer, upper]


# --- layers within layers --------------------------------------------------

@pytest.mark.parametrize("precompute", [False, True])
def test_recurrent(rng, precompute):
    step_in = dense(InputLayer((None, 5)))
    step = dense(InputLayer((None, 4)))
    network = randomize(dense(CustomRecurrentLayer(
        InputLayer((2, 3, 5)), BatchNormLayer(step_in), BatchNormLayer(step),
        precompute_input=precompute, unroll_scan=True)), rng)
    layers = all_layers([network])
    batches = [rng.normal(size=(2, 3, 5))]
    folded, report = check(network, rng, batches)
    assert [entry.layer for entry in report] == [
        layer for layer in layers if isinstance(layer, BatchNormLayer)]
    assert into(report) == [step_in, step]
    assert not any(isinstance(layer, BatchNormLayer)
                   for layer in all_layers([folded]))


def test_recurrent_with_scan(rng):
    step = dense(InputLayer((None, 4)))
    network = randomize(CustomRecurrentLayer(
        InputLayer((2, 3, 5)), dense(InputLayer((None, 5))),
        BatchNormLayer(step)), rng)
    _, report = check(network, rng, [rng.normal(size=(2, 3, 5))])
    assert into(report) == [step]


class Caller(lasagne.layers.Layer):
    """Applies a network of its own, for training always."""

    def __init__(self, incoming, inner):
        super().__init__(incoming)
        self.inner = inner

    def get_output_for(self, input, **kwargs):
        return get_output(self.inner, input)


def test_within_a_layer_that_is_not_known(rng, x):
    network = Caller(x, batch_norm(dense(InputLayer((None, 5)), 5)))
    folded, report = check(randomize(network, rng), rng)
    assert into(report) == [None]
    assert "another layer contains it, and may not pass" in str(report[0])
    assert not folded.inner.frozen


# --- Lasagne's own batch normalization -------------------------------------

@later
def test_lasagnes_own(rng, x):
    theirs = lasagne.layers.BatchNormLayer(x)
    layer = dense(theirs, nonlinearity=LEAKY, name="fc")
    network = randomize(lasagne.layers.batch_norm(layer), rng)
    folded, report = check(network, rng)
    assert into(report) == [layer, layer]
    assert kinds(folded) == ["Input", "Dense", "Nonlinearity"]
    assert str(report[0]) == ("BatchNormLayer (layer 1) folded into "
                              "DenseLayer 'fc' after it")


@later
def test_lasagnes_own_on_images(rng):
    layer = lasagne.layers.NINLayer(InputLayer((None, 2, 4, 3)), 3,
                                    nonlinearity=None)
    network = randomize(lasagne.layers.BatchNormLayer(layer), rng)
    batches = batches_for(network, rng)
    _, _, (actual,) = fold_and_run(network, batches)
    mean, inv_std, gamma, beta = (
        getattr(network, name).get_value()[:, None, None]
        for name in ("mean", "inv_std", "gamma", "beta"))
    expected = reference.normalize(
        reference.add_bias(reference.nin(*batches, layer.W.get_value()),
                           layer.b.get_value()),
        mean, 1 / inv_std, gamma, beta, epsilon=0)
    assert_close(actual, expected)


@later
def test_lasagnes_own_left_in_place(rng, x):
    network = randomize(lasagne.layers.BatchNormLayer(x), rng)
    folded, report = check(network, rng)
    assert into(report) == [None]
    assert not hasattr(folded, "frozen")


# --- the original and its copy ---------------------------------------------

@pytest.fixture
def network(rng, x):
    """One that is folded before, one after, and one that is left."""
    first = batch_norm(DenseLayer(x, 4, nonlinearity=tanh, name="first"))
    second = DenseLayer(BatchNormLayer(first, name="before"), 3,
                        nonlinearity=tanh, name="second")
    return randomize(BatchNormLayer(second, name="left"), rng)


def test_original_stays(rng, network):
    batch, = batches_for(network, rng)
    first = get_all_layers(network)[2]
    trained = compiled(network, get_output(network))
    trained(batch)
    freeze_batch_norm(first, params=True)
    function = compiled(network, deterministic(network))
    expected, = function(batch)
    before = state_of(network)
    fold_batch_norm(network)
    assert state_of(network) == before
    assert first.frozen and first.nonlinearity is tanh
    assert first.input_layer.b is None
    assert first.input_layer.nonlinearity is identity
    with pytest.raises(ValueError, match="was wrapped before"):
        batch_norm(first.input_layer)
    assert_array_equal(function(batch)[0], expected)
    trained(batch)
    assert np.all(function(batch)[0] != expected)


def test_neither_follows_the_other(rng, network):
    batches = batches_for(network, rng)
    folded = fold_batch_norm(network)
    pair = [compiled(network, get_output(each, deterministic=True))
            for each in (network, folded)]
    before = pair[0](*batches)
    randomize(folded, rng)
    assert np.all(pair[1](*batches) != before)
    assert_array_equal(pair[0](*batches), before)
    changed = pair[1](*batches)
    randomize(network, rng)
    assert np.all(pair[0](*batches) != before)
    assert_array_equal(pair[1](*batches), changed)
    for layer in get_all_layers(network):
        for tags in layer.params.values():
            tags.add("new")
    assert not get_all_params(folded, new=True)


def test_names_and_tags(network):
    layers = get_all_layers(network)
    layers[1].params[layers[1].W].add("own")
    folded = fold_batch_norm(network)
    assert [layer.name for layer in get_all_layers(folded)] == [
        None, "first", "second", "left"]
    params = get_all_params(folded)
    assert [param.name for param in params] == [
        # The bias that batch_norm() had removed is new.
        "first.W", "first.b", "second.W", "second.b", "left.mean", "left.std",
        "left.beta", "left.gamma"]
    assert get_all_params(folded, own=True) == params[:1]
    assert get_all_params(folded, trainable=True) == params[:4] + params[6:]
    assert get_all_params(folded, regularizable=True) == [
        params[0], params[2], params[6]]
    assert get_all_params(folded, batch_norm_stat=True) == params[4:6]


@pytest.mark.parametrize("named", [False, True])
def test_names_given_to_variables(x, named):
    W = theano.shared(np.ones((5, 4)), "mine" if named else None)
    folded = fold_batch_norm(BatchNormLayer(dense(x, W=W, name="fc")))
    assert [param.name for param in folded.get_params()] == [
        "mine" if named else "fc.W", "fc.b"]


def test_wrapped_again(rng, x):
    layer = DenseLayer(x, 4)
    folded = fold_batch_norm(batch_norm(layer))
    again = batch_norm(folded)
    assert again.nonlinearity is rectify
    refolded, _ = check(randomize(again, rng), rng)
    assert kinds(refolded) == ["Input", "Dense"]


def test_pickle(rng, network):
    folded = fold_batch_norm(network)
    copy = pickle.loads(pickle.dumps(folded))
    assert [param.get_value().tobytes() for param in get_all_params(copy)] \
        == [param.get_value().tobytes() for param in get_all_params(folded)]


# --- the report ------------------------------------------------------------

def test_report(network, caplog):
    first, norm, before, second, left = get_all_layers(network)[1:]
    with caplog.at_level(logging.INFO, "bnlasagne.folding"):
        folded, report = fold_batch_norm(network, return_report=True)
    assert [(entry.layer, entry.into) for entry in report] == [
        (norm, first), (before, second), (left, None)]
    assert [str(entry) for entry in report] == [
        "BatchNormLayer 'first_bn' folded into DenseLayer 'first' before it",
        "BatchNormLayer 'before' folded into DenseLayer 'second' after it",
        "BatchNormLayer 'left' left in place: DenseLayer 'second' before it "
        "has a nonlinearity, tanh; its output is returned"]
    assert report[0].text == str(report[0])
    assert [(record.levelname, record.name, record.getMessage())
            for record in caplog.records] == [
        (level, "bnlasagne.folding", str(entry)) for level, entry
        in zip(["INFO", "INFO", "WARNING"], report)]


def test_without_report(network):
    folded = fold_batch_norm(network)
    assert isinstance(folded, BatchNormLayer)
    assert isinstance(fold_batch_norm([network]), list)


def test_no_batch_norm(rng, caplog, x):
    network = randomize(dense(DropoutLayer(dense(x, nonlinearity=LEAKY))),
                        rng)
    with caplog.at_level(logging.INFO, "bnlasagne.folding"):
        folded, report = check(network, rng)
    assert report == [] and not caplog.records
    assert kinds(folded) == kinds(network)


@pytest.mark.parametrize("wrong", ["network", None, [None]])
def test_wrong_network(wrong):
    with pytest.raises(TypeError, match=re.escape(
            "fold_batch_norm(): network must be a Layer or a list of them")):
        fold_batch_norm(wrong)


# --- networks drawn by chance ----------------------------------------------

@st.composite
def networks(draw):
    """Networks of layers with 4 units, as they may come."""
    incoming = InputLayer((None, 4))
    layers, weights = [incoming], []

    def some():
        # Late ones are likelier: else, all would be used more than once.
        return layers[-1 - draw(st.integers(0, min(len(layers), 3) - 1))]

    def options():
        return {"nonlinearity": draw(st.sampled_from([None, LEAKY]))}

    def norm():
        axes = draw(st.sampled_from([0, (0, 1)]))
        return BatchNormLayer(some(), axes=axes, **options())

    def wrapped():
        return batch_norm(DenseLayer(some(), 4, **options()))

    def linear():
        layer = dense(some(), **options())
        weights.append(layer.W)
        return layer

    def shared():
        return dense(some(), W=weights[-1], **options()) if weights \
            else linear()

    def tied():
        layer = dense(some(), **options())
        if weights:
            layer.W = weights[-1].T
        return layer

    def centred():
        layer = dense(some(), **options())
        layer.W = layer.W - layer.W.mean(0, keepdims=True)
        return layer

    def subclass():
        return draw(st.sampled_from([Unchanged, ByBatch]))(some())

    def total():
        return ElemwiseSumLayer([some(), some()])

    def sized():
        sizes = draw(st.sampled_from([incoming.input_var,
                                      get_output(some())]))
        return ReshapeLayer(some(), (sizes.shape[0], 4))

    def function():
        other = some()
        return Applies(some(), lambda output: output / 2 + get_output(
            other, deterministic=True))

    kinds = [norm, norm, wrapped, linear, shared, tied, centred, subclass,
             total, sized, function]
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=6,
                              max_size=12)):
        layers.append(kind())
    return [layers[-1]] + ([some()] if draw(st.booleans()) else [])


@given(networks())
@settings(max_examples=16,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_drawn_networks(network):
    rng = np.random.RandomState(1502)
    check(randomize(network, rng), rng, batches_for(network, rng, 4))


def test_threads_fold_networks_of_their_own():
    def fold(seed):
        rng = np.random.RandomState(seed)
        network = randomize(batch_norm(DenseLayer(
            Unchanged(dense(InputLayer((None, 5)))), 3)), rng)
        folded, report = fold_batch_norm(network, return_report=True)
        return network, folded, [entry.into for entry in report]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fold, range(12)))
    rng = np.random.RandomState(1)
    for network, folded, layers in found[::4]:
        assert layers == get_all_layers(network)[1::2]
        batches = batches_for(network, rng)
        expected, actual = (
            compiled(each, get_output(each, deterministic=True))(*batches)
            for each in (network, folded))
        assert_close(actual, expected)


# --- precision, and objects of all kinds -----------------------------------

@pytest.mark.parametrize("mean, folds", [(90, True), (110, False)])
def test_large_means_before_weights(rng, floatX, quick, mean, folds):
    """What a layer subtracts, the weights after it would multiply first."""
    incoming = InputLayer((None, 5))
    norm = BatchNormLayer(incoming, mean=[0, -mean, 0, 0, 1], std=0.99)
    network = dense(norm)
    batch = mean + rng.normal(size=(6, 5)).astype(floatX)
    _, report = check(network, rng, [batch])
    assert (report[0].into is network) == folds
    assert folds or ("its mean is 110 standard deviations from zero"
                     in str(report[0]))
    # Into the layer before, it makes no difference: what is normalized has
    # been multiplied anyway.
    norm = BatchNormLayer(dense(incoming), mean=mean, std=0.99)
    assert check(norm, rng)[1][0].into is norm.input_layer


class Doubled:
    """A nonlinearity that seems to be nothing."""

    def __call__(self, x):
        return 2 * x

    def __len__(self):
        return 0


def test_nonlinearity_that_is_false(rng, x):
    nonlinearity = Doubled()
    network = BatchNormLayer(dense(x), nonlinearity=nonlinearity)
    folded, _ = check(randomize(network, rng), rng)
    assert folded.nonlinearity is nonlinearity


@later
def test_layers_that_are_inputs_and_attributes(rng):
    """Lasagne's recurrent layers keep what they start from twice."""
    sequence = InputLayer((3, 6, 5))
    start = batch_norm(DenseLayer(InputLayer((3, 5)), 4))
    network = lasagne.layers.GRULayer(sequence, 4, hid_init=start)
    folded, report = fold_batch_norm(network, return_report=True)
    assert report[0].into is start.input_layer
    assert folded.hid_init in folded.input_layers
    assert type(folded.hid_init) is DenseLayer
    check(randomize(network, rng), rng)


def test_who_refers_is_named_once(x):
    holder = dense(x)
    norm = BatchNormLayer(dense(x), name="norm")
    holder.norms, holder.name = [norm, norm], "holder"
    network = lasagne.layers.ElemwiseSumLayer([holder, norm])
    _, report = fold_batch_norm(network, return_report=True)
    assert str(report[0]).endswith(
        "BatchNormLayer 'norm' is referred to by DenseLayer 'holder'")


@pytest.mark.parametrize("variable", [None, T.tensor3()])
def test_network_sized_by_its_input(rng, variable):
    l_in, _, second = sized(variable)
    network = randomize(DenseLayer(ReshapeLayer(second, (-1, 3)), 2), rng)
    outputs = [get_output(each, deterministic=True)
               for each in (network, fold_batch_norm(network))]
    expected, actual = theano.function([l_in.input_var], outputs)(
        rng.normal(2, 3, (2, 3, 4)))
    assert_close(actual, expected)
