"""What Keras has of its own: names, weights by layer, channels last."""

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
from helpers.folded import randomize
from helpers.weights import (
    KERAS,
    assert_close,
    batch_for,
    chain,
    channels_last,
    compiled,
    linear,
    named_dense,
    named_norm,
    norm,
    normalized,
    numbered,
    numbers_in,
    product,
    refused,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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


@pytest.mark.parametrize("weights, expected", [
    ([np.ones(2)], r"expected a dict of weights, got \[array"),
    ({3: np.ones(2)}, "with names of weights, got the name 3. Pass {w.path"),
])
def test_what_is_no_dict_of_weights(matrix, weights, expected):
    with pytest.raises(TypeError, match=r"^set_keras_weights\(\): .*"
                       + expected):
        set_keras_weights(DenseLayer(matrix, 5, name="fc"), weights)


def test_numbers_of_variables(float64):
    """Keras 2 puts them after the name."""
    layers = chain("n/d", "m/d")
    set_keras_weights(layers[-1], {
        key + ":0": value for key, value
        in numbered(KERAS, ["outer/m/d", "outer/n/d"]).items()})
    assert numbers_in(layers) == [1, 0]


# --- weights by layer -------------------------------------------------------

def by_layer(weights, form):
    """Weights as dicts or lists, by the names of layers."""
    found = {}
    for key, value in weights.items():
        layer, _, name = key.partition("/")
        found.setdefault(layer, {})[name] = value
    return {layer: group if form is dict else list(group.values())
            for layer, group in found.items()}


forms = pytest.mark.parametrize("form", [list, dict])
left_out = pytest.mark.parametrize("left_out", [
    (), ("gamma",), ("beta",), ("gamma", "beta")])
OF_TORCH = {"gamma": "weight", "beta": "bias"}


@forms
@left_out
def test_by_layer(rng, float64, matrix, form, left_out):
    layer = norm(DenseLayer, matrix, 5, name="fc")
    layer = BatchNormLayer(layer, name="n", **dict.fromkeys(left_out))
    others = {**named_dense("fc", KERAS, rng.normal(size=(5, 4)),
                            rng.normal(size=5)),
              **named_norm("fc_bn", KERAS, rng, 5)}
    flat = {**named_norm("n", KERAS, rng, 5, [OF_TORCH[each]
                                              for each in left_out]),
            **others}
    given = {**by_layer(flat, form), "dropout": form()}
    set_keras_weights(layer, given)
    one = get_keras_weights(layer)
    set_keras_weights(randomize(layer, rng), flat)
    for key, value in get_keras_weights(layer).items():
        assert_array_equal(one[key], value)
    assert_allclose(one["n/moving_variance"], flat["n/moving_variance"])
    if left_out:
        # What is too much is named, whether or not it has a name of its own.
        full = by_layer(named_norm("n", KERAS, rng, 5), form)
        with pytest.raises(ValueError) as caught:
            set_keras_weights(layer, {**full, **by_layer(others, form)})
        for number, role in enumerate(("gamma", "beta")):
            name = role if form is dict else number
            assert (f"\n! n/{name}: (5,)" in str(caught.value)) == (
                role in left_out)


@forms
@left_out
def test_like_by_layer(rng, float64, matrix, form, left_out):
    dense = DenseLayer(matrix, 5, b=None, name="fc")
    layer = randomize(BatchNormLayer(dense, name="n", **dict.fromkeys(
        left_out)), rng)
    flat = {**named_norm("n", KERAS, rng, 5),
            **named_dense("fc", KERAS, np.zeros((5, 4)), np.zeros(5))}
    like = {**by_layer(flat, form), "dropout": form()}
    found = get_keras_weights(layer, like=like)
    expected = by_layer(get_keras_weights(layer, like=flat), form)
    assert list(found) == list(like) and found.pop("dropout") == form()
    for name, values in expected.items():
        actual = found[name]
        if form is dict:
            assert list(actual) == list(values)
            values, actual = list(values.values()), list(actual.values())
        for value, right in zip(actual, values):
            assert_array_equal(value, right)
        assert len(actual) == len(values)


def test_groups_of_a_file(rng, float64, matrix):
    """Dicts in dicts, such as the groups of an HDF5 file."""
    layer = norm(DenseLayer, matrix, 5, name="fc")
    flat = {**named_dense("fc", KERAS, rng.normal(size=(5, 4))),
            **named_norm("fc_bn", KERAS, rng, 5)}
    groups = by_layer(flat, list)
    nested = {"fc": {"fc": {"kernel:0": flat["fc/kernel"]}}, "dropout": {},
              "fc_bn": {"fc_bn": groups["fc_bn"]}}
    set_keras_weights(layer, nested)
    found = get_keras_weights(layer, like=nested)
    assert_allclose(found["fc"]["fc"]["kernel:0"], flat["fc/kernel"])
    for actual, expected in zip(found["fc_bn"]["fc_bn"], groups["fc_bn"]):
        assert_allclose(actual, expected)
    assert found["dropout"] == {} and list(found) == list(nested)


@pytest.mark.parametrize("left_out, hint", [
    (("weight",), None), (("bias",), None),
    (("weight", "bias"), "'n' has no gamma and no beta (scale=False and "
                         "center=False)"),
])
def test_lists_of_what_one_side_lacks(rng, float64, matrix, left_out, hint):
    """An array without a name may be either."""
    layer = BatchNormLayer(matrix, name="n")
    with refused(layer) as caught:
        set_keras_weights(layer, by_layer(
            named_norm("n", KERAS, rng, 4, left_out), list))
    text = str(caught.value)
    assert (hint or "'n' has no gamma or no beta (scale=False or center=False)"
            ". Build BatchNormLayer 'n' with gamma=None or beta=None.") in text
    assert "\n  n/" in text and "BatchNormLayer 'n', var: (4,)" in text


# --- the order of features --------------------------------------------------

def features(x):
    """What Keras' models make of images, by flattening them."""
    return channels_last(x).reshape(len(x), -1)


class Model:
    """A network on images; and the same in Keras, by its weights in NumPy.

    Each way goes on from the last layer, whose output Keras has in `there`.
    """

    def __init__(self, rng, size=3):
        self.rng = rng
        self.images = self.layer = InputLayer((None, 2, 3, 4))
        self.batch = batch_for(self.images, rng, size)
        self.there = features(self.batch.astype("float64"))
        self.weights, self.count = {}, 0

    def named(self):
        self.count += 1
        return f"layer{self.count}"

    def flatten(self):
        self.layer = FlattenLayer(self.layer)

    def reshape(self):
        self.layer = ReshapeLayer(self.layer, ([0], -1))

    def in_two_steps(self):
        self.layer = FlattenLayer(ReshapeLayer(self.layer, ([0], [1], -1)))

    def flatten_twice(self):
        """Images that were concatenated."""
        self.layer = FlattenLayer(ConcatLayer([self.layer, self.layer]))
        x = self.batch.astype("float64")
        self.there = features(np.concatenate([x, x], 1))

    def pool(self):
        self.layer = lasagne.layers.GlobalPoolLayer(self.layer)
        self.there = self.batch.astype("float64").mean((2, 3))

    def dropout(self):
        self.layer = DropoutLayer(self.layer)

    def rectify(self):
        self.layer = NonlinearityLayer(self.layer)
        self.there = np.maximum(self.there, 0)

    def add(self):
        self.layer = ElemwiseSumLayer([self.layer, DropoutLayer(self.layer)])
        self.there = 2 * self.there

    def concatenate(self):
        """With units, whose order is their own, and with one channel."""
        channel = lasagne.layers.SliceLayer(self.images, slice(1, 2), axis=1)
        below, there = self.layer, self.there
        self.units()
        self.layer = ConcatLayer([below, self.layer, FlattenLayer(channel),
                                  DropoutLayer(below)])
        self.there = np.concatenate([
            there, self.there, features(self.batch[:, 1:2]), there], 1)

    def normalize(self):
        name = self.named()
        self.layer = BatchNormLayer(self.layer, name=name)
        self.weights.update(named_norm(name, KERAS, self.rng,
                                       self.there.shape[1]))
        self.there = normalized(self.there, self.weights, name, KERAS)

    def units(self):
        name = self.named()
        self.layer = linear(DenseLayer, self.layer, 5, name=name)
        self.weights.update(named_dense(
            name, KERAS, self.rng.normal(size=(5, self.there.shape[1])),
            self.rng.normal(size=5)))
        self.there = product(self.there, self.weights, name, KERAS)


FLATTENING = ["flatten", "reshape", "in_two_steps", "flatten_twice", "pool"]
GOING_ON = ["dropout", "rectify", "add", "concatenate", "normalize", "units"]


@quick
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flattening=st.sampled_from(FLATTENING),
       ways=st.lists(st.sampled_from(GOING_ON), max_size=4))
def test_features(float64, flattening, ways):
    model = Model(np.random.RandomState(len(ways)))
    for way in [flattening, *ways, "units"]:
        getattr(model, way)()
    KERAS.set(model.layer, model.weights)
    assert_close(compiled(model.layer)(model.batch), model.there, 1e-10)
    found = KERAS.get(model.layer)
    assert found.keys() == model.weights.keys()
    for key, value in model.weights.items():
        assert_close(found[key], value)


@quick
def test_features_of_a_dense_layer_on_images(rng, float64):
    model = Model(rng)
    model.units()
    KERAS.set(model.layer, model.weights)
    assert_close(compiled(model.layer)(model.batch), model.there)


@quick
def test_features_with_channels_first(rng, float64):
    model = Model(rng)
    model.there = model.batch.reshape(3, -1)
    for way in ("flatten", "normalize", "units"):
        getattr(model, way)()
    set_keras_weights(model.layer, model.weights, data_format="channels_first")
    assert_close(compiled(model.layer)(model.batch), model.there)
    found = get_keras_weights(model.layer, data_format="channels_first")
    for key, value in model.weights.items():
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


@pytest.mark.parametrize("kind", REFUSED)
def test_features_in_an_order_unknown(rng, float64, kind):
    below = REFUSED[kind](InputLayer((None, 2, 3, 4)))
    below.name = "it"
    network = DenseLayer(below, 5, name="out")
    known = get_keras_weights(network, data_format="channels_first")
    for use in (KERAS.get, partial(KERAS.set, weights=known),
                partial(KERAS.get, like=known)):
        with refused(network, r"^[gs]et_keras_weights\(\): .*"
                              "Layer '(it|out)'.*'channels_fi"):
            use(network)
    set_keras_weights(network, known, data_format="channels_first")
    # PyTorch has them in the order that they have here.
    set_torch_state_dict(network, get_torch_state_dict(network))
    found = get_keras_weights(network, data_format="channels_first")
    for key, value in known.items():
        assert_array_equal(found[key], value)


def told(kind, below):
    """A layer that tells something of its axis 1, but changes nothing."""
    layers = lasagne.layers
    return {
        "input": lambda: below,
        "dropout": lambda: layers.DropoutLayer(below),
        "pooling": lambda: layers.MaxPool2DLayer(below, 1),
        "convolution": lambda: Conv2DLayer(below, 2, 1, name="conv"),
        "network in network": lambda: layers.NINLayer(below, 2, name="nin"),
        "batch norm": lambda: BatchNormLayer(below, name="bn"),
        "features last": lambda: BatchNormLayer(below, axes=(0, 1, 2),
                                                name="bn"),
        "per position": lambda: BatchNormLayer(below, axes=(0,), name="bn"),
        "channels first again": lambda: layers.DimshuffleLayer(
            layers.DimshuffleLayer(below, (0, 2, 3, 1)), (0, 3, 1, 2)),
        "flattened in part": lambda: FlattenLayer(
            layers.MaxPool2DLayer(below, 1), 3),
    }[kind]()


def kernel_of(network, **kwargs):
    return get_keras_weights(network, **kwargs)["out/kernel"]


def pixel_by_pixel(network):
    """Weights of a dense layer on images of 2 channels, as Keras has them."""
    W = network.W.get_value()
    return np.moveaxis(W.reshape(2, 12, -1), 0, 1).reshape(W.shape)


@pytest.mark.parametrize("kind, expected", [
    ("pooling", "last"), ("convolution", "last"), ("batch norm", "last"),
    ("network in network", "last"), ("flattened in part", "last"),
    ("features last", "first"), ("input", None), ("dropout", None),
    ("per position", None), ("channels first again", None)])
def test_whether_axis_1_has_channels(float64, kind, expected):
    below = told(kind, InputLayer((None, 2, 3, 4)))
    network = DenseLayer(DropoutLayer(below), 5, name="out")
    if expected is None:
        with pytest.raises(ValueError, match="DenseLayer 'out'.*'channels_f"):
            get_keras_weights(network)
    else:
        assert_array_equal(kernel_of(network), pixel_by_pixel(network)
                           if expected == "last" else network.W.get_value())
    # Those who know better have the last word.
    assert_array_equal(kernel_of(network, data_format="channels_first"),
                       network.W.get_value())


@pytest.mark.parametrize("shape", [(None, 1, 3, 4), (None, 5, 1, 1)])
def test_order_that_makes_no_difference(float64, shape):
    network = DenseLayer(InputLayer(shape), 5, name="out")
    assert_array_equal(kernel_of(network), network.W.get_value())


@later
def test_several_leading_axes_are_no_images(float64):
    layer = DenseLayer(InputLayer((None, 5, 4)), 3, num_leading_axes=2,
                       name="steps")
    network = DenseLayer(layer, 2, name="out")
    assert_array_equal(kernel_of(network), network.W.get_value())


@pytest.mark.parametrize("shape, rows", [
    ((None, 5, 24), (-1, 24)), ((None, None, 24), (-1, 24)),
    ((None, 5, 2, 12), (-1, 24))])
def test_steps_of_sequences_are_no_images(float64, shape, rows):
    """Also where their number is not known."""
    network = DenseLayer(ReshapeLayer(InputLayer(shape), rows), 5, name="out")
    assert_array_equal(kernel_of(network), network.W.get_value())


@pytest.mark.parametrize("above", [
    lambda layer: layer,
    lambda layer: DropoutLayer(ReshapeLayer(layer, ([0], 24, 1)))])
def test_reshapes_that_make_no_difference(float64, above):
    layer = above(ReshapeLayer(DenseLayer(InputLayer((None, 24)), 24,
                                          name="fc"), ([0], 24, 1)))
    get_keras_weights(lasagne.layers.Conv1DLayer(layer, 2, 1, name="conv"))


@pytest.mark.parametrize("channels", [1, 2])
def test_rows_of_images(float64, channels):
    layer = BatchNormLayer(InputLayer((None, channels, 3, 4)), name="bn")
    network = DenseLayer(ReshapeLayer(layer, (-1, 4)), 5, name="out")
    if channels == 1:
        assert_array_equal(kernel_of(network), network.W.get_value())
    else:
        with pytest.raises(ValueError, match="cannot be told at ReshapeLayer"):
            get_keras_weights(network)


def test_images_of_unknown_size(float64):
    images = InputLayer((None, 2, None, None))
    network = DenseLayer(ReshapeLayer(images, ([0], 24), name="it"), 5,
                         name="out")
    with pytest.raises(ValueError, match="cannot be told at ReshapeLayer"):
        KERAS.get(network)
    assert_array_equal(kernel_of(network, data_format="channels_first"),
                       network.W.get_value())


@needs_compiler
def test_images_with_channels_last_here(float64):
    images = lasagne.layers.DimshuffleLayer(
        InputLayer((None, 3, 4, 2)), (0, 3, 1, 2))
    layer = Conv2DLayer(images, 2, 1, name="conv")
    network = DenseLayer(layer, 5, name="out")
    assert_array_equal(kernel_of(network), pixel_by_pixel(network))


@pytest.mark.parametrize("above", [
    lambda images: Conv2DLayer(DropoutLayer(images), 2, 1, name="conv"),
    lambda images: lasagne.layers.MaxPool2DLayer(images, 1),
    lambda images: BatchNormLayer(images, name="bn")])
def test_images_of_features(float64, above):
    def network(below):
        return above(ReshapeLayer(below, ([0], 2, 3, 4), name="it"))

    matrix = InputLayer((None, 24))
    generator = network(DenseLayer(matrix, 24, name="fc"))
    with pytest.raises(ValueError, match="ReshapeLayer 'it' makes images"):
        get_keras_weights(generator)
    get_keras_weights(generator, data_format="channels_first")
    # No weights have to do with the order of data.
    get_keras_weights(network(matrix))


def test_steps_of_features(float64):
    layer = ReshapeLayer(DenseLayer(InputLayer((None, 24)), 24, name="fc"),
                         ([0], 2, 12))
    with pytest.raises(ValueError, match=r"ReshapeLayer \(layer 2\) makes "):
        get_keras_weights(lasagne.layers.Conv1DLayer(layer, 2, 1, name="conv"))
    # Steps of a sequence, with their features last.
    get_keras_weights(BatchNormLayer(layer, axes=(0, 1), name="bn"))


@later
def test_steps_of_features_through_a_dense_layer(float64):
    """Its units have an order of their own, whatever is below."""
    layers = lasagne.layers
    layer = ReshapeLayer(DenseLayer(InputLayer((None, 24)), 24, name="fc"),
                         ([0], 2, 12))
    layer = DenseLayer(layer, 6, num_leading_axes=2, name="steps")
    get_keras_weights(layers.Conv1DLayer(layers.DimshuffleLayer(
        layer, (0, 2, 1)), 2, 1, name="conv"))


@pytest.mark.parametrize("data_format", ["channels", "NCHW", 1])
def test_data_format(data_format, matrix):
    for function in (get_keras_weights, partial(set_keras_weights,
                                                weights={})):
        with pytest.raises(ValueError, match=(
                r"_keras_weights\(\): data_format must be None, "
                f"'channels_last' or 'channels_first', got {data_format!r}")):
            function(matrix, data_format=data_format)


def test_axes_moved(rng, float64):
    images = InputLayer((None, 2, 3, 4))
    moved = lasagne.layers.DimshuffleLayer(images, (0, 2, 3, 1), name="it")
    network = DenseLayer(FlattenLayer(moved), 5, name="out")
    with pytest.raises(ValueError, match="cannot be told at FlattenLayer"):
        KERAS.get(network)
    get_keras_weights(network, data_format="channels_first")
