"""The order of features that were images, in Keras and here."""

from functools import partial

from bnlasagne import (
    BatchNormLayer,
    get_keras_weights,
    get_torch_state_dict,
    set_keras_weights,
    set_torch_state_dict,
)

import lasagne
import numpy as np
import pytest
from helpers.common import later, needs_compiler, quick
from helpers.weights import (
    KERAS,
    assert_close,
    batch_for,
    bits,
    channels_last,
    compiled,
    group,
    linear,
    named,
    normalized,
    random_norm,
)
from lasagne.layers import (
    ConcatLayer,
    Conv2DLayer,
    DenseLayer,
    DropoutLayer,
    ElemwiseSumLayer,
    FeaturePoolLayer,
    FlattenLayer,
    InputLayer,
    NonlinearityLayer,
    ReshapeLayer,
)
from numpy.testing import assert_allclose, assert_array_equal


@pytest.fixture
def matrix():
    return InputLayer((None, 4))


def features(x):
    """What Keras' models make of images, by flattening them."""
    return channels_last(x).reshape(len(x), -1)


def through_batch_norm(images, rng):
    layer = BatchNormLayer(FlattenLayer(images), name="n")
    weights = named("n", random_norm(rng, 24), KERAS)
    return layer, lambda x: normalized(
        features(x), group(weights, "n", "/"), 1e-3), weights


def through_units(images, rng):
    """Units have an order of their own, whatever is below."""
    layer = DenseLayer(FlattenLayer(images), 6, nonlinearity=None, name="u")
    layer = BatchNormLayer(layer, name="n")
    weights = named("n", random_norm(rng, 6), KERAS)
    weights.update({"u/kernel": rng.normal(size=(24, 6)),
                    "u/bias": rng.normal(size=6)})
    return layer, lambda x: normalized(
        features(x) @ weights["u/kernel"] + weights["u/bias"],
        group(weights, "n", "/"), 1e-3), weights


def concatenated(images, rng):
    units = DenseLayer(images, 2, b=None, nonlinearity=None, name="u")
    channel = lasagne.layers.SliceLayer(images, slice(1, 2), axis=1)
    kernel = rng.normal(size=(24, 2))
    return ConcatLayer([FlattenLayer(images), units, FlattenLayer(channel),
                        DropoutLayer(FlattenLayer(images))]), lambda x: \
        np.concatenate([features(x), features(x) @ kernel,
                        features(x[:, 1:2]), features(x)], 1), {
                            "u/kernel": kernel}


def merged_images(images, rng):
    return ConcatLayer([images, images]), lambda x: np.concatenate(
        [x, x], 1), {}


WAYS = {
    "none": lambda images, rng: (images, features, {}),
    "flatten": lambda images, rng: (FlattenLayer(images), features, {}),
    "reshape": lambda images, rng: (
        ReshapeLayer(images, ([0], -1)), features, {}),
    "in two steps": lambda images, rng: (FlattenLayer(ReshapeLayer(
        images, ([0], [1], -1))), features, {}),
    "dropout": lambda images, rng: (
        DropoutLayer(FlattenLayer(images)), features, {}),
    "nonlinearity": lambda images, rng: (NonlinearityLayer(
        FlattenLayer(images), lasagne.nonlinearities.rectify),
        lambda x: np.maximum(features(x), 0), {}),
    "sum": lambda images, rng: (ElemwiseSumLayer(
        [FlattenLayer(images), FlattenLayer(DropoutLayer(images))]),
        lambda x: 2 * features(x), {}),
    "pooled": lambda images, rng: (
        lasagne.layers.GlobalPoolLayer(images),
        lambda x: x.mean((2, 3)), {}),
    "batch norm": through_batch_norm,
    "units": through_units,
    "concat": concatenated,
    "concatenated images": lambda images, rng: (
        FlattenLayer(ConcatLayer([images, images])),
        lambda x: features(np.concatenate([x, x], 1)), {}),
}


@quick
@pytest.mark.parametrize("way", list(WAYS))
def test_features(rng, floatX, way):
    images = InputLayer((None, 2, 3, 4))
    below, compute, weights = WAYS[way](images, rng)
    network = linear(DenseLayer, below, 5, name="out")
    batch = batch_for(images, rng)
    expected = compute(batch.astype("float64"))
    weights.update(named("out", {
        "weight": rng.normal(size=(5, expected.shape[1])),
        "bias": rng.normal(size=5)}, KERAS))
    expected = expected @ weights["out/kernel"] + weights["out/bias"]
    KERAS.set(network, weights)
    function = compiled(network)
    assert_close(function(batch), expected)
    found = KERAS.get(network)
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        assert_close(found[key], value)


@quick
def test_features_with_channels_first(rng, float64):
    images = InputLayer((None, 2, 3, 4))
    below = BatchNormLayer(FlattenLayer(images), name="n")
    network = linear(DenseLayer, below, 5, b=None, name="out")
    weights = named("n", random_norm(rng, 24), KERAS)
    weights["out/kernel"] = kernel = rng.normal(size=(24, 5))
    set_keras_weights(network, weights, data_format="channels_first")
    batch = batch_for(images, rng)
    assert_close(compiled(network)(batch), normalized(
        batch.reshape(3, -1), group(weights, "n", "/"), 1e-3) @ kernel)
    found = get_keras_weights(network, data_format="channels_first")
    for key, value in weights.items():
        assert_allclose(found[key], value)


REFUSED = {
    "FeaturePoolLayer": lambda images: FeaturePoolLayer(
        FlattenLayer(images), 2),
    "SliceLayer": lambda images: lasagne.layers.SliceLayer(
        FlattenLayer(images), slice(3, 9)),
    "ElemwiseSumLayer": lambda images: ElemwiseSumLayer(
        [FlattenLayer(images), DenseLayer(images, 24, name="u")]),
    "ReshapeLayer": lambda images: ReshapeLayer(
        DenseLayer(images, 12, name="u"), ([0], 3, 2, 2)),
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_features_in_an_order_unknown(rng, float64, kind):
    below = REFUSED[kind](InputLayer((None, 2, 3, 4)))
    below.name = "it"
    network = DenseLayer(below, 5, name="out")
    known = get_keras_weights(network, data_format="channels_first")
    before = bits(network)
    for use in (KERAS.get, partial(KERAS.set, weights=known),
                partial(KERAS.get, like=known)):
        with pytest.raises(ValueError, match="Layer '(it|out)'.*'channels_fi"):
            use(network)
    assert bits(network) == before
    set_keras_weights(network, known, data_format="channels_first")
    assert bits(network) == before
    # PyTorch has them in the order that they have here.
    set_torch_state_dict(network, get_torch_state_dict(network))
    assert bits(network) == before


def told(kind, below):
    """A layer that tells something of its axis 1, but changes nothing."""
    layers = lasagne.layers
    return {
        "input": lambda: below,
        "dropout": lambda: layers.DropoutLayer(below),
        "pooling": lambda: layers.MaxPool2DLayer(below, 1),
        "convolution": lambda: Conv2DLayer(
            below, 2, 1, W=np.eye(2)[..., None, None], b=None, name="conv"),
        "network in network": lambda: layers.NINLayer(
            below, 2, W=np.eye(2), b=None, name="nin"),
        "batch norm": lambda: BatchNormLayer(below, name="bn"),
        "features last": lambda: BatchNormLayer(below, axes=(0, 1, 2),
                                                name="bn"),
        "per position": lambda: BatchNormLayer(below, axes=(0,), name="bn"),
        "channels first again": lambda: layers.DimshuffleLayer(
            layers.DimshuffleLayer(below, (0, 2, 3, 1)), (0, 3, 1, 2)),
        "flattened in part": lambda: FlattenLayer(
            layers.MaxPool2DLayer(below, 1), 3),
    }[kind]()


@pytest.mark.parametrize("kind, expected", [
    ("pooling", "last"), ("convolution", "last"), ("batch norm", "last"),
    ("network in network", "last"), ("flattened in part", "last"),
    ("features last", "first"), ("input", None), ("dropout", None),
    ("per position", None), ("channels first again", None)])
def test_whether_axis_1_has_channels(float64, kind, expected):
    below = told(kind, InputLayer((None, 2, 3, 4)))
    network = DenseLayer(DropoutLayer(below), 5, name="out")
    if expected is None:
        with pytest.raises(ValueError, match="DenseLayer 'out'"):
            get_keras_weights(network)
        return
    found = get_keras_weights(network)["out/kernel"]
    W = network.W.get_value()
    if expected == "last":
        W = np.moveaxis(W.reshape(2, 12, 5), 0, 1).reshape(24, 5)
    assert_array_equal(found, W)
    # Those who know better have the last word.
    found = get_keras_weights(network, data_format="channels_first")
    assert_array_equal(found["out/kernel"], network.W.get_value())


def test_order_that_makes_no_difference(float64):
    for shape in [(None, 1, 3, 4), (None, 5, 1, 1)]:
        network = DenseLayer(InputLayer(shape), 5, name="out")
        assert_array_equal(get_keras_weights(network)["out/kernel"],
                           network.W.get_value())


@later
def test_several_leading_axes_are_no_images(float64):
    layer = DenseLayer(InputLayer((None, 5, 4)), 3, num_leading_axes=2,
                       name="steps")
    network = DenseLayer(layer, 2, name="out")
    assert_array_equal(get_keras_weights(network)["out/kernel"],
                       network.W.get_value())


@needs_compiler
def test_images_with_channels_last_here(float64):
    images = lasagne.layers.DimshuffleLayer(
        InputLayer((None, 3, 4, 2)), (0, 3, 1, 2))
    layer = Conv2DLayer(images, 2, 1, name="conv")
    network = DenseLayer(layer, 5, name="out")
    assert_array_equal(
        get_keras_weights(network)["out/kernel"], np.moveaxis(
            network.W.get_value().reshape(2, 12, 5), 0, 1).reshape(24, 5))


@pytest.mark.parametrize("ndim", [3, 4])
def test_images_of_features(float64, ndim):
    matrix = InputLayer((None, 24))
    conv = {3: lasagne.layers.Conv1DLayer, 4: Conv2DLayer}[ndim]
    shape = {3: ([0], 2, 12), 4: ([0], 2, 3, 4)}[ndim]

    def network(below):
        images = ReshapeLayer(below, shape, name="it")
        return conv(DropoutLayer(images), 2, 1, name="conv")
    refused = network(DenseLayer(matrix, 24, name="fc"))
    with pytest.raises(ValueError, match="ReshapeLayer 'it' makes images"):
        get_keras_weights(refused)
    get_keras_weights(refused, data_format="channels_first")
    # No weights have to do with the order of data.
    get_keras_weights(network(matrix))


@pytest.mark.parametrize("data_format", ["channels", "NCHW", 1])
def test_data_format(data_format, matrix):
    with pytest.raises(ValueError, match="data_format must be None, "
                                         "'channels_last' or "
                                         "'channels_first', got %r"
                                         % data_format):
        get_keras_weights(matrix, data_format=data_format)
    with pytest.raises(ValueError, match="data_format must be"):
        set_keras_weights(matrix, {}, data_format=data_format)


def test_axes_moved(rng, float64):
    images = InputLayer((None, 2, 3, 4))
    moved = lasagne.layers.DimshuffleLayer(images, (0, 2, 3, 1), name="it")
    network = DenseLayer(FlattenLayer(moved), 5, name="out")
    with pytest.raises(ValueError, match="cannot be told at FlattenLayer"):
        KERAS.get(network)
    get_keras_weights(network, data_format="channels_first")
