"""Weights to and from other frameworks: NumPy stands in for these.

test_frameworks.py has the real ones.
"""

import re
from collections import OrderedDict, namedtuple
from functools import partial, update_wrapper

from bnlasagne import (
    BatchNormLayer,
    batch_norm,
    get_keras_weights,
    get_lasagne_values,
    get_torch_state_dict,
    set_keras_weights,
    set_lasagne_values,
    set_torch_state_dict,
)

import lasagne
import numpy as np
import pytest
import reference
import theano
import theano.tensor as T
from lasagne.layers import (
    ConcatLayer,
    Conv2DLayer,
    CustomRecurrentLayer,
    DenseLayer,
    DropoutLayer,
    ElemwiseSumLayer,
    FeaturePoolLayer,
    FlattenLayer,
    InputLayer,
    LSTMLayer,
    NonlinearityLayer,
    ReshapeLayer,
    get_all_layers,
    get_all_param_values,
    get_all_params,
    get_output,
    set_all_param_values,
)
from numpy.testing import assert_allclose, assert_array_equal

# What only Lasagne's development version has.
LATER = hasattr(lasagne.layers, "BatchNormLayer")
later = pytest.mark.skipif(
    not LATER, reason="needs Lasagne's development version")
needs_compiler = pytest.mark.skipif(
    not theano.config.cxx, reason="needs a C++ compiler")
quick = pytest.mark.usefixtures("quick")

CLOSE = {"float32": 1e-5, "float64": 1e-12}


# --- what the tests share --------------------------------------------------

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


# --- each kind of layer ----------------------------------------------------

def dense(x, W, leading=1):
    return reference.dense(x, np.transpose(W), leading)


def channels_last(x):
    return np.moveaxis(x, 1, -1)


Case = namedtuple("Case", "kind, options, shape, W, compute")
CASES = {
    "dense": Case("DenseLayer", {}, (7,), (5, 7), dense),
    "dense on images": Case("DenseLayer", {}, (2, 3, 4), (5, 24), dense),
    "nin": Case("NINLayer", {}, (3, 4, 2), (5, 3, 1, 1), reference.correlate),
    "nin 1D": Case("NINLayer", {}, (3, 4), (5, 3, 1), reference.correlate),
    "conv 1D": Case(
        "Conv1DLayer", {"filter_size": 3, "stride": 2, "pad": 1}, (3, 9),
        (5, 3, 3), partial(reference.correlate, stride=2, pad=1)),
    "conv": Case(
        "Conv2DLayer", {"filter_size": (3, 2), "stride": (1, 2), "pad": 1},
        (3, 5, 6), (5, 3, 3, 2),
        partial(reference.correlate, stride=(1, 2), pad=1)),
}
LATER_CASES = {
    "dense, leading axes": Case(
        "DenseLayer", {"num_leading_axes": 2}, (3, 7), (5, 7),
        partial(dense, leading=2)),
    "conv, not flipped": Case(
        "Conv2DLayer", {"filter_size": 3, "flip_filters": False}, (2, 5, 4),
        (5, 2, 3, 3), reference.correlate),
    "groups": Case(
        "Conv2DLayer", {"filter_size": 2, "num_groups": 5}, (10, 4, 4),
        (5, 2, 2, 2), partial(reference.correlate, groups=5)),
    "conv 3D": Case(
        "Conv3DLayer", {"filter_size": (3, 2, 1)}, (2, 4, 3, 3),
        (5, 2, 3, 2, 1), reference.correlate),
    "dilated": Case(
        "DilatedConv2DLayer", {"filter_size": (2, 3), "dilation": (2, 1)},
        (3, 5, 6), (3, 5, 2, 3)[1::-1] + (2, 3),
        partial(reference.correlate, dilation=(2, 1))),
    "transposed": Case(
        "TransposedConv2DLayer",
        {"filter_size": (3, 2), "stride": 2, "crop": 1}, (3, 4, 3),
        (3, 5, 3, 2), partial(reference.transposed, stride=2, crop=1)),
    "transposed, flipped": Case(
        "TransposedConv2DLayer", {"filter_size": 3, "flip_filters": True},
        (3, 4, 3), (3, 5, 3, 3), reference.transposed),
    "transposed 3D": Case(
        "TransposedConv3DLayer", {"filter_size": 2, "stride": 2},
        (2, 3, 2, 2), (2, 5, 2, 2, 2), partial(reference.transposed,
                                               stride=2)),
}


def computed(case, framework, weights, x):
    """What a model puts out: a layer, normalized, and another with bias."""
    axis = -1 if case.options.get("num_leading_axes") else 1
    for name in ("first", "second"):
        linear = group(weights, name, framework.separator)
        if framework is KERAS:
            W = from_keras(linear["kernel"])
            y = case.compute(x if axis == -1 or W.ndim > 2
                             else channels_last(x), W)
        else:
            y = case.compute(x, linear["weight"])
        shape = [-1 if each == axis % y.ndim else 1 for each in range(y.ndim)]
        y += linear["bias"].reshape(shape)
        if name == "first":
            yield normalized(y, group(weights, "norm", framework.separator),
                             framework.epsilon, axis % y.ndim)
    yield y


@pytest.mark.parametrize("case", [
    *[pytest.param(case, id=name) for name, case in CASES.items()],
    *[pytest.param(case, id=name, marks=later)
      for name, case in LATER_CASES.items()]])
@needs_compiler
def test_layers(rng, floatX, case):
    x = T.TensorType(floatX, (False,) * (1 + len(case.shape)))()
    incoming = InputLayer((None,) + case.shape, x)
    make = partial(linear, getattr(lasagne.layers, case.kind), incoming, 5,
                   **case.options)
    axes = (0, 1) if "num_leading_axes" in case.options else None
    network = [batch_norm(make(name="first"), axes=axes, name="norm"),
               make(name="second")]
    function = compiled(network, theano.Mode("cvm", "fast_compile"))
    batch = batch_for(incoming, rng)
    for framework in (TORCH, KERAS):
        weights = OrderedDict()
        for name in ("first", "second"):
            weights.update(named(name, OrderedDict([
                ("weight", rng.normal(size=case.W)),
                ("bias", rng.normal(size=5))]), framework))
        weights.update(named("norm", random_norm(rng, 5), framework))
        framework.set(network, weights)
        output = function(batch)
        for actual, expected in zip(output, computed(case, framework, weights,
                                                     batch)):
            assert_close(actual, expected)
        found = framework.get(network, like=weights)
        assert list(found) == list(weights)
        for key, value in weights.items():
            assert found[key].shape == value.shape
            if not key.endswith(("mean", "first" + framework.separator +
                                 "bias")):
                assert_close(found[key], value)
        for actual, expected in zip(output, computed(case, framework, found,
                                                     batch)):
            assert_close(actual, expected)
        # And by the names of layers, without a bias that went into the mean.
        assert set(weights) - set(framework.get(network)) == {
            "first" + framework.separator + "bias"}


@quick
@both
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 1), (5, 3, 1, 1)])
def test_filters_of_one_position(rng, float64, framework, shape):
    layer = linear(lasagne.layers.NINLayer, InputLayer((None, 3, 4, 2)), 5)
    W = rng.normal(size=shape)
    weights = named("0", OrderedDict([
        ("weight", W), ("bias", np.zeros(5))]), framework)
    if len(shape) == 3:
        with pytest.raises(ValueError, match=r"! 0.*NINLayer, W: "):
            framework.set(layer, weights)
        return
    framework.set(layer, weights)
    assert_array_equal(layer.W.get_value(), W.reshape(5, 3).T)
    found = framework.get(layer, like=weights)
    for key, value in weights.items():
        assert_array_equal(found[key], value)


# --- a bias before batch normalization -------------------------------------

def fork(incoming, **kwargs):
    below = linear(DenseLayer, incoming, 5, b=None, name="fc")
    return below, [BatchNormLayer(below, name="n%d" % number, **kwargs)
                   for number in range(2)]


@pytest.fixture
def matrix():
    return InputLayer((None, 4))


def fork_weights(rng, framework):
    weights = named("fc", {"weight": rng.normal(size=(5, 4)),
                           "bias": rng.normal(size=5)}, framework)
    for number in range(2):
        weights.update(named("n%d" % number, random_norm(rng, 5), framework))
    return weights


@both
@quick
def test_bias_goes_into_all_means(rng, floatX, framework, matrix):
    _, network = fork(InputLayer((None, 4)))
    weights = fork_weights(rng, framework)
    batch = batch_for(matrix, rng)
    for given in (weights, OrderedDict(
            item for item in weights.items() if not item[0].endswith("c%sbias"
            % framework.separator))):
        framework.set(network, given, epsilon=0.1)
        found = framework.get(network, like=weights, epsilon=0.1)
        assert np.all(found["fc" + framework.separator + "bias"] == 0)
        for each in (given, found):
            fc = group(each, "fc", framework.separator)
            product = batch @ np.transpose(fc["weight"]) \
                if framework is TORCH else batch @ fc["kernel"]
            for number, output in enumerate(compiled(network)(batch)):
                assert_close(output, normalized(
                    product + fc.get("bias", 0),
                    group(each, "n%d" % number, framework.separator), 0.1))


@both
@pytest.mark.parametrize("change", [
    lambda fc, norms: [fc, *norms],
    lambda fc, norms: norms + [NonlinearityLayer(fc)],
    lambda fc, norms: norms + [BatchNormLayer(fc, axes=(0, 1), beta=None,
                                              gamma=None, name="n2")],
], ids=["is an output", "is used elsewhere", "normalized over units"])
def test_bias_cannot_be_absorbed(rng, float64, framework, change, matrix):
    fc, norms = fork(matrix)
    network = change(fc, norms)
    weights = fork_weights(rng, framework)
    if len(get_all_params(network)) > 9:
        weights.update(named("n2", {"running_mean": np.array(0.),
                                    "running_var": np.array(1.)}, framework))
    before = bits(network)
    with pytest.raises(ValueError, match=r"\n! fc.bias: \(5,\) +-(\n|$)"):
        framework.set(network, weights)
    assert bits(network) == before
    del weights["fc%sbias" % framework.separator]
    framework.set(network, weights)


@both
@pytest.mark.parametrize("nonlinearity", [None, lasagne.nonlinearities.tanh])
def test_no_bias_to_set(rng, float64, framework, matrix, nonlinearity):
    layer = DenseLayer(matrix, 5, b=None, nonlinearity=nonlinearity)
    if nonlinearity:
        layer = BatchNormLayer(layer)
    weights = fork_weights(rng, framework)
    weights = OrderedDict(item for item in weights.items()
                          if not item[0].startswith(
                              "n1" if nonlinearity else "n"))
    with pytest.raises(ValueError, match=r"\n! fc.bias: \(5,\) +-(\n|$)"):
        framework.set(layer, weights)
    # There, a bias of zeros does the same.
    found = framework.get(layer, like=weights)
    assert_array_equal(found["fc%sbias" % framework.separator], np.zeros(5))


# --- scale and shift left out ----------------------------------------------

@both
@quick
@pytest.mark.parametrize("left_out", [("weight", "bias"), ("weight",),
                                      ("bias",)])
def test_left_out(rng, floatX, framework, matrix, left_out):
    options = {"weight": "gamma", "bias": "beta"}
    layer = BatchNormLayer(InputLayer((None, 4)), name="n",
                           **{options[name]: None for name in left_out})
    full = named("n", random_norm(rng, 4), framework)
    fewer = named("n", OrderedDict(
        item for item in random_norm(rng, 4).items()
        if item[0] not in left_out), framework)
    framework.set(layer, fewer)
    batch = batch_for(matrix, rng)
    output = compiled(layer)(batch)
    assert_close(output, normalized(
        batch, group(fewer, "n", framework.separator), framework.epsilon))
    # A model that has them gets ones and zeros, but none here can be set.
    before = bits(layer)
    with pytest.raises(ValueError, match=r"\n! n.*: \(4,\) +-(\n|$)"):
        framework.set(layer, full)
    assert bits(layer) == before
    found = framework.get(layer, like=full)
    assert_close(output, normalized(
        batch, group(found, "n", framework.separator), framework.epsilon))
    assert set(framework.get(layer)) == set(fewer)
    # Nor can there be one here alone.
    for function in (framework.set, framework.get):
        with pytest.raises(ValueError, match=r"\n! - +BatchNormLayer 'm', "):
            function(BatchNormLayer(matrix, name="m"), fewer)


# --- names and order -------------------------------------------------------

def chain(*names):
    layer, layers = InputLayer((None, 3)), []
    for name in names:
        layer = DenseLayer(layer, 3, name=name)
        layers.append(layer)
    return layers


@both
@pytest.mark.parametrize("layers, modules, expected", [
    ([None, None, None], ["a", "b", "c"], [0, 1, 2]),
    ([None, None, None], ["c", "a", "b"], [0, 1, 2]),
    (["a", "b", "c"], ["c", "a", "b"], [1, 2, 0]),
    ([None, "a", None], ["a", "b", "c"], [1, 0, 2]),
    (["a", None, "c"], ["m|c", "m|b", "m|a"], [2, 1, 0]),
    # Names that tell nothing.
    (["x", "x", None], ["b", "x", "c"], [0, 1, 2]),
    (["x", "y", "z"], ["b", "a", "c"], [0, 1, 2]),
    (["features.0", None, "net/x"], ["net/x", "features.0", "q"], [1, 2, 0]),
])
def test_names(float64, framework, layers, modules, expected):
    if framework is KERAS and "net/x" in layers:
        pytest.skip("names of Keras' models have slashes")
    layers = chain(*layers)
    weights = OrderedDict()
    for number, module in enumerate(modules):
        module = module.replace("|", framework.separator)
        weights.update(named(module, OrderedDict([
            ("weight", np.full((3, 3), number)),
            ("bias", np.full(3, number))]), framework))
    framework.set(layers[-1], weights)
    for layer, number in zip(layers, expected):
        assert np.all(layer.W.get_value() == number)
        assert np.all(layer.b.get_value() == number)
    found = framework.get(layers[-1], like=weights)
    assert list(found) == list(weights)
    for key, value in weights.items():
        assert_array_equal(found[key], value)


@both
@pytest.mark.parametrize("layers, modules", [
    (["x", None, "a"], ["a", "b", "c"]),
    (["x", "x", "a"], ["a", "x", "y"]),
    (["A", "b ", "c"], ["a", "c", "b"]),
    # Those that Keras gives, one off.
    (["dense_1", "dense_2"], ["dense", "dense_1"]),
])
def test_some_names_of_several(float64, framework, layers, modules):
    """Of layers that were named, none gets other weights in order."""
    layers = chain(*layers)
    weights = OrderedDict()
    for module in modules:
        weights.update(named(module, OrderedDict([
            ("weight", np.ones((3, 3))), ("bias", np.ones(3))]), framework))
    before = bits(layers[-1])
    with pytest.raises(ValueError, match=r"\n! -  (.|\n)*\n! \w.*  -"):
        framework.set(layers[-1], weights)
    assert bits(layers[-1]) == before


@quick
@both
def test_layers_and_norms_in_orders_of_their_own(rng, float64, framework):
    """As in modules that make all layers first, and then all norms."""
    incoming = InputLayer((None, 3))
    network = batch_norm(DenseLayer(incoming, 3, nonlinearity=None))
    network = batch_norm(DenseLayer(network, 3, nonlinearity=None))
    weights = OrderedDict()
    for name in ("fc1", "fc2"):
        weights.update(named(name, OrderedDict([
            ("weight", rng.normal(size=(3, 3)))]), framework))
    for name in ("bn1", "bn2"):
        weights.update(named(name, random_norm(rng, 3), framework))
    framework.set(network, weights)
    batch = batch_for(incoming, rng)
    expected = batch
    for number in "12":
        W, = group(weights, "fc" + number, framework.separator).values()
        expected = normalized(
            expected @ (W.T if framework is TORCH else W),
            group(weights, "bn" + number, framework.separator),
            framework.epsilon)
    assert_close(compiled(network)(batch), expected)


@pytest.mark.parametrize("layers, modules, expected", [
    (["d", None], ["m/d", "m/e"], [0, 1]),
    ([None, "d"], ["m/d", "m/e"], [1, 0]),
    (["n/d", "m/d"], ["m/d", "n/d"], [1, 0]),
    (["n/d", "m/d"], ["outer/m/d", "outer/n/d"], [1, 0]),
    # Not the only ones of that name.
    (["d", None], ["m/d", "n/d"], [0, 1]),
    ([None, "d"], ["outer/m/d", "outer/n/d"], [0, 1]),
])
@pytest.mark.parametrize("suffix", ["", ":0"])
def test_names_within_models(float64, layers, modules, expected, suffix):
    layers = chain(*layers)
    weights = OrderedDict()
    for number, module in enumerate(modules):
        weights[module + "/kernel" + suffix] = np.full((3, 3), number)
        weights[module + "/bias" + suffix] = np.full(3, number)
    set_keras_weights(layers[-1], weights)
    assert [layer.W.get_value()[0, 0] for layer in layers] == expected


def test_names_of_their_own(float64, matrix):
    network = batch_norm(DenseLayer(matrix, 5, name="a"), name="b.c")
    assert [(key, value.shape) for key, value in get_torch_state_dict(
        network).items()] == [
            ("a.weight", (5, 4)), ("b.c.weight", (5,)), ("b.c.bias", (5,)),
            ("b.c.running_mean", (5,)), ("b.c.running_var", (5,))]
    assert [(key, value.shape) for key, value in get_keras_weights(
        network).items()] == [
            ("a/kernel", (4, 5)), ("b.c/gamma", (5,)), ("b.c/beta", (5,)),
            ("b.c/moving_mean", (5,)), ("b.c/moving_variance", (5,))]


@both
def test_needs_names(framework, matrix):
    with pytest.raises(ValueError, match=r"get_\w+\(\): .*DenseLayer.* name"):
        framework.get(DenseLayer(matrix, 5))
    with pytest.raises(ValueError, match=r"get_\w+\(\): .*BatchNormLayer"):
        framework.get(BatchNormLayer(DenseLayer(matrix, 5, name="a")))
    with pytest.raises(ValueError, match=r"get_\w+\(\): DenseLayer 'a'.*name"):
        framework.get(chain("a", "b", "a")[-1])


@both
def test_arrays_are_the_callers_own(rng, floatX, framework, matrix):
    network = batch_norm(DenseLayer(matrix, 5, name="a"))
    before = bits(network)
    like = framework.get(network)
    for found in (like, framework.get(network, like=like)):
        for value in found.values():
            assert value.dtype == floatX
            assert value.flags.c_contiguous and value.flags.writeable
            value[...] = 7
    assert bits(network) == before


def test_count_of_batches_does_not_matter(rng, float64, matrix):
    layer = BatchNormLayer(matrix)
    weights = named("0", random_norm(rng, 4), TORCH)
    weights["0.num_batches_tracked"] = np.array(77)
    set_torch_state_dict(layer, weights)
    assert_array_equal(layer.gamma.get_value()[0], weights["0.weight"])
    found = get_torch_state_dict(layer, like=weights)
    assert found["0.num_batches_tracked"] == 77
    assert list(found) == list(weights)


def test_what_numpy_can_make_arrays_of(float64):
    class Tensor(object):
        def __init__(self, value):
            self.value = value

        def __array__(self, *args):
            return np.asarray(self.value, *args)

    layer, = chain("a")
    weights = {"a.weight": Tensor(np.eye(3)), "a.bias": Tensor([1, 2, 3])}
    set_torch_state_dict(layer, weights)
    assert_array_equal(layer.W.get_value(), np.eye(3))
    assert_array_equal(layer.b.get_value(), [1, 2, 3])
    assert_array_equal(get_torch_state_dict(layer, like=weights)["a.bias"],
                       [1, 2, 3])


@pytest.mark.parametrize("form", [
    lambda weights: list(weights.values()), lambda weights: OrderedDict(
        (key.partition("/")[2], value) for key, value in weights.items())],
    ids=["lists", "dicts"])
@pytest.mark.parametrize("left_out", [(), ("gamma",), ("beta",),
                                      ("gamma", "beta")])
def test_by_layer(rng, float64, matrix, form, left_out):
    layer = norm(DenseLayer, matrix, 5, name="fc")
    layer = BatchNormLayer(layer, name="n", **dict.fromkeys(left_out))
    weights = named("fc", {"weight": rng.normal(size=(5, 4)),
                           "bias": rng.normal(size=5)}, KERAS)
    first = named("fc_bn", random_norm(rng, 5), KERAS)
    second = named("n", random_norm(rng, 5), KERAS)
    for name in left_out:
        del second["n/" + name]
    set_keras_weights(layer, OrderedDict([
        ("n", form(second)), ("fc", form(weights)), ("fc_bn", form(first)),
        ("dropout", form({}))]))
    one, two = (get_all_param_values(layer), get_keras_weights(layer))
    set_keras_weights(layer, {**weights, **second, **first})
    for actual, expected in zip(one, get_all_param_values(layer)):
        assert_array_equal(actual, expected)
    assert_allclose(two["n/moving_variance"], second["n/moving_variance"])
    if left_out:
        # What is too much is named, whether or not it has a name of its own.
        full = form(named("n", random_norm(rng, 5), KERAS))
        with pytest.raises(ValueError) as caught:
            set_keras_weights(layer, {
                "n": full, "fc": form(weights), "fc_bn": form(first)})
        names = ["n/" + str(name) for name in (
            full if isinstance(full, dict) else range(4))]
        for name, role in zip(names, ("gamma", "beta")):
            assert ("\n! %s: (5,)" % name in str(caught.value)) == (
                role in left_out)


# --- features that were images ---------------------------------------------

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


# --- what does not fit -----------------------------------------------------

@pytest.fixture
def network(rng):
    layer = InputLayer((None, 4))
    for number in range(2):
        layer = batch_norm(DenseLayer(layer, 5 - number, name="fc%d" % number))
    layers = [DenseLayer(layer, 2, name="out"), layer]
    randomize(layers, rng)
    return layers


def weights_for(rng, framework):
    weights = OrderedDict()
    for number, shape in enumerate([(5, 4), (4, 5)]):
        weights.update(named("fc%d" % number, OrderedDict([
            ("weight", rng.normal(size=shape)),
            ("bias", rng.normal(size=shape[0]))]), framework))
        weights.update(named("fc%d_bn" % number, random_norm(rng, shape[0]),
                             framework))
    weights.update(named("out", OrderedDict([
        ("weight", rng.normal(size=(2, 4))), ("bias", rng.normal(size=2))]),
        framework))
    return weights


NAMES = {"fc0.weight": "fc0/kernel", "out.weight": "out/kernel",
         "fc0_bn.weight": "fc0_bn/gamma", "fc0_bn.bias": "fc0_bn/beta",
         "fc1_bn.running_mean": "fc1_bn/moving_mean",
         "fc1_bn.running_var": "fc1_bn/moving_variance"}


@both
@pytest.mark.parametrize("key, value, row", [
    ("fc0.weight", None, r"-  +DenseLayer 'fc0', W: \({W}\)"),
    ("fc0.weight", (3, 3), r"{key}: \(3, 3\)  +DenseLayer 'fc0', W: \({W}\)"),
    ("fc0.weight", (20,), r"{key}: \(20,\)  +DenseLayer 'fc0', W: \({W}\)"),
    ("fc0.weight", (1, 20), r"{key}: \(1, 20\)  +DenseLayer 'fc0', W: "),
    ("fc0.bias", (1, 5), r"{key}: \(1, 5\)  +DenseLayer 'fc0', b: \(5,\)"),
    ("fc0_bn.weight", None, r"-  +BatchNormLayer 'fc0_bn', gamma: \(5,\)"),
    ("fc0_bn.bias", (5, 1), r"{key}: \(5, 1\)  +BatchNormLayer 'fc0_bn', "
                            r"beta: \(5,\)"),
    ("fc1_bn.running_mean", (), r"{key}: \(\)  +BatchNormLayer 'fc1_bn', "
                                r"mean: \(4,\)"),
    ("fc1_bn.running_var", (5,), r"{key}: \(5,\)  +BatchNormLayer 'fc1_bn', "
                                 r"var: \(4,\)"),
    ("out.weight", (2, 2, 2), r"{key}: \(2, 2, 2\)  +DenseLayer 'out', W: "),
    ("out.bias", None, r"-  +DenseLayer 'out', b: \(2,\)"),
    ("out.scale", (2,), r"{key}: \(2,\)  +-"),
    ("more.weight", (2, 2), r"{key}: \(2, 2\)  +-"),
    ("weight", (2, 2), r"{key}: \(2, 2\)  +-"),
])
def test_misfits(rng, floatX, framework, network, key, value, row):
    weights = weights_for(rng, framework)
    if framework is KERAS:
        key = NAMES.get(key, key.replace(".", "/"))
    if value is None:
        del weights[key]
    else:
        weights[key] = np.zeros(value)
    row = row.format(key=re.escape(key),
                     W="5, 4" if framework is TORCH else "4, 5")
    fits = r"\n  fc1.(weight|kernel): \(\d, \d\)  +DenseLayer 'fc1', W: \(\d"
    before = bits(network)
    for function in (framework.set, framework.get):
        with pytest.raises(ValueError) as caught:
            function(network, weights)
        text = str(caught.value)
        assert text.startswith(function.__name__ + "(): the ")
        assert "needed by the network" in text.splitlines()[1]
        assert re.search("\n! " + row, text) and re.search(fits, text)
        assert text.count("\n!") == 1
    assert bits(network) == before


@both
def test_nothing_fits(rng, framework, network):
    before = bits(network)
    with pytest.raises(ValueError) as caught:
        framework.set(network, {})
    assert str(caught.value).count("\n! - ") == 12
    with pytest.raises(ValueError, match=r"\n! a.*: \(5,\)  +-$"):
        framework.set(InputLayer((None, 3)), named(
            "a", {"weight": np.zeros(5)}, framework))
    assert bits(network) == before
    framework.set(InputLayer((None, 3)), {})
    assert framework.get(InputLayer((None, 3))) == {}


@both
@pytest.mark.parametrize("value, expected", [
    (-1., "finite and positive with"), (np.nan, "finite and positive with"),
    (np.inf, "finite and positive with")])
def test_wrong_in_the_last_layer(rng, floatX, framework, value, expected):
    layers = chain("a", "b")
    layer = BatchNormLayer(layers[-1], name="last")
    weights = named("last", random_norm(rng, 3), framework)
    for name in "ab":
        weights.update(named(name, {"weight": np.eye(3), "bias": np.ones(3)},
                             framework))
    key = next(key for key in weights if "var" in key)
    weights[key][1] = value
    before = bits(layer)
    with pytest.raises(ValueError, match="'last': var must be " + expected):
        framework.set(layer, weights)
    weights[key] = np.ones(3)
    key = next(key for key in weights if "mean" in key)
    weights[key] = np.full(3, abs(value) * np.inf)
    with pytest.raises(ValueError, match="'last': mean must be finite"):
        framework.set(layer, weights)
    assert bits(layer) == before


@both
@pytest.mark.parametrize("epsilon", [-1, None, "a"])
def test_epsilon(rng, float64, framework, epsilon, matrix):
    layer = BatchNormLayer(matrix, name="n")
    weights = named("n", random_norm(rng, 4), framework)
    before = bits(layer)
    if epsilon is None:
        # Statistics as such.
        framework.set(layer, weights, epsilon=None)
        var = weights[next(key for key in weights if "var" in key)]
        assert_allclose(layer.std.get_value()[0], np.sqrt(var))
        return
    for function in (framework.set, framework.get):
        with pytest.raises(ValueError, match="'n': epsilon must be a finite"):
            function(layer, weights, epsilon=epsilon)
    assert bits(layer) == before


@both
@pytest.mark.parametrize("value", [
    np.array(["a", "b"]), np.array([None, None]), np.array([True, False]),
    np.array([1j, 2]), "text"],
    ids=["str", "object", "bool", "complex", "text"])
def test_not_numeric(rng, framework, network, value):
    weights = weights_for(rng, framework)
    weights["out%sbias" % framework.separator] = value
    before = bits(network)
    for function in (framework.set, framework.get):
        with pytest.raises(TypeError, match="out.bias must be an array of "
                                            "numbers, got "):
            function(network, weights)
    assert bits(network) == before


@both
@pytest.mark.parametrize("function", ["set", "get"])
def test_no_network(framework, function):
    function = getattr(framework, function)
    for network in ("network", [InputLayer((3, 4)), 5]):
        with pytest.raises(TypeError, match=r"\w+\(\): network must be a "
                                            "Layer or a list of them"):
            function(network, {})


UNKNOWN = {
    "LSTMLayer": lambda: LSTMLayer(InputLayer((None, 3, 2)), 4, name="it"),
    "EmbeddingLayer": lambda: lasagne.layers.EmbeddingLayer(
        InputLayer((None, 3), T.imatrix()), 4, 5, name="it"),
    "LocallyConnected2DLayer": lambda: lasagne.layers.LocallyConnected2DLayer(
        InputLayer((None, 2, 3, 4)), 2, 3, name="it"),
    "ScaleLayer": lambda: lasagne.layers.ScaleLayer(
        InputLayer((None, 2)), name="it"),
    "BatchNormLayer": lambda: lasagne.layers.BatchNormLayer(
        InputLayer((None, 2)), name="it"),
}


class Squared(DenseLayer):
    """A dense layer that computes something else."""

    def get_output_for(self, input, **kwargs):
        return super(Squared, self).get_output_for(input, **kwargs) ** 2


@both
@pytest.mark.parametrize("kind", [*list(UNKNOWN), "Squared"])
def test_unknown_layers(framework, kind, matrix):
    if kind == "Squared":
        layer = Squared(matrix, 5, name="it")
    elif hasattr(lasagne.layers, kind):
        layer = UNKNOWN[kind]()
    else:
        pytest.skip("needs Lasagne's development version")
    for function in (framework.get, partial(framework.set, weights={})
                     if framework is KERAS
                     else partial(framework.set, state_dict={})):
        with pytest.raises(ValueError, match=r"\w+\(\): %s 'it' has parameters"
                                             ", but its weights are not known"
                                             % kind):
            function(NonlinearityLayer(layer))


@both
def test_known_by_what_they_compute(rng, float64, framework, matrix):
    class Named(DenseLayer):
        pass

    layer = Named(matrix, 5, name="a")
    framework.set(layer, named("b", OrderedDict([
        ("weight", np.ones((5, 4))), ("bias", np.ones(5))]), framework))
    assert np.all(layer.W.get_value() == 1)


# --- shared parameters and expressions -------------------------------------

@both
def test_shared_weights(rng, floatX, framework):
    first, second = chain("a", "b")
    second = DenseLayer(first, 3, W=first.W, name="b")
    W = rng.normal(size=(3, 3))
    weights = OrderedDict()
    for name in "ab":
        weights.update(named(name, OrderedDict([
            ("weight", W), ("bias", rng.normal(size=3))]), framework))
    framework.set(second, weights)
    assert_allclose(first.W.get_value(), W.T, rtol=1e-6)
    assert_allclose(second.b.get_value(),
                    weights["b%sbias" % framework.separator], rtol=1e-6)
    for key, value in framework.get(second, like=weights).items():
        assert_allclose(value, weights[key], rtol=1e-6)
    before = bits(second)
    key = next(key for key in weights if key.startswith("b"))
    weights[key] = W + 1e-3
    with pytest.raises(ValueError, match="is shared by layers whose weights "
                                         "differ"):
        framework.set(second, weights)
    assert bits(second) == before


@both
@quick
def test_module_that_is_applied_twice(rng, floatX, framework):
    incoming = InputLayer((None, 3))
    first = linear(DenseLayer, incoming, 3, name="a")
    hidden = BatchNormLayer(first, name="n")
    second = linear(DenseLayer, hidden, 3, W=first.W, b=first.b, name="c")
    network = linear(DenseLayer, second, 2, W=rng.normal(size=(3, 2)),
                     b=None, name="out")
    weights = named("a", OrderedDict([
        ("weight", rng.normal(size=(3, 3))), ("bias", rng.normal(size=3))]),
        framework)
    weights.update(named("n", random_norm(rng, 3), framework))
    weights.update(named("out", {"weight": rng.normal(size=(2, 3))},
                         framework))
    framework.set(network, weights)
    batch = batch_for(incoming, rng)
    W, b = (np.asarray(value, "float64") for value in (
        first.W.get_value(), first.b.get_value()))
    assert_allclose(b, weights["a%sbias" % framework.separator], rtol=1e-6)
    expected = normalized(batch @ W + b, group(
        weights, "n", framework.separator), framework.epsilon) @ W + b
    assert_close(compiled(second)(batch), expected)
    assert set(framework.get(network)) == set(weights)
    for key, value in framework.get(network, like=weights).items():
        assert_allclose(value, weights[key], rtol=1e-5, atol=1e-6)
    # Or there are two, of equal weights.
    more = {**weights, **{
        "c" + key[1:]: value for key, value in weights.items()
        if key.startswith("a")}}
    framework.set(network, more)
    assert framework.get(network, like=more).keys() == more.keys()


@both
def test_shared_statistics(rng, float64, framework, matrix):
    first = BatchNormLayer(matrix, name="a")
    network = BatchNormLayer(first, name="b", mean=first.mean, std=first.std,
                             gamma=first.gamma)
    weights = named("a", random_norm(rng, 4), framework)
    other = named("b", random_norm(rng, 4), framework)
    shared = OrderedDict(zip(other, weights.values()))
    beta = list(other)[1]
    shared[beta] = other[beta]
    framework.set(network, {**weights, **shared})
    assert_array_equal(network.beta.get_value()[0], other[beta])
    assert_array_equal(first.beta.get_value()[0], list(weights.values())[1])
    before = bits(network)
    for key in set(other) - {beta}:
        with pytest.raises(ValueError, match="is shared by layers whose"):
            framework.set(network, {**weights, **shared, key: other[key]})
    assert bits(network) == before


@later
@both
def test_expressions(rng, float64, framework, matrix):
    source = theano.shared(rng.uniform(1, 2, (4, 5)), "source")
    layer = DenseLayer(matrix, 5, W=source ** 2, name="fc")
    found = framework.get(layer)
    expected = named("fc", OrderedDict([
        ("weight", (source.get_value() ** 2).T), ("bias", np.zeros(5))]),
        framework)
    for key, value in expected.items():
        assert_allclose(found[key], value)
    before = bits(layer)
    with pytest.raises(ValueError, match="'fc': W is an expression, which has "
                                         "no place for a value"):
        framework.set(layer, expected)
    assert bits(layer) == before
    layer = DenseLayer(matrix, 5, W=T.dot(T.matrix("m"), source), name="fc")
    for function in (framework.get, framework.set):
        with pytest.raises(ValueError, match="'fc'.*W.*m is an input"):
            function(layer, expected)


@both
def test_several_outputs(rng, float64, framework, network):
    weights = weights_for(rng, framework)
    for given in (network, tuple(network)):
        randomize(network, rng)
        framework.set(given, weights)
        found = framework.get(given, like=weights)
        for key, value in weights.items():
            if not key.endswith(("mean", "bias")):
                assert_allclose(found[key], value)


# --- Lasagne's later layer -------------------------------------------------

def lasagne_values(rng):
    """Of a dense layer, batch normalization, and a dense layer again."""
    return [rng.normal(size=(4, 5)), rng.normal(size=5), rng.normal(size=5),
            rng.normal(size=5), rng.uniform(0.3, 9, 5),
            rng.normal(size=(5, 2)), rng.normal(size=2)]


@quick
@pytest.mark.parametrize("left_out", [(), ("beta",), ("gamma",),
                                      ("beta", "gamma")])
def test_lasagne(rng, floatX, left_out, matrix):
    incoming = InputLayer((None, 4))
    network = linear(DenseLayer, batch_norm(
        DenseLayer(incoming, 5), **dict.fromkeys(left_out)), 2)
    values = lasagne_values(rng)
    W, beta, gamma, mean, inv_std, V, b = values
    if "gamma" in left_out:
        del values[2]
        gamma = 1
    if "beta" in left_out:
        del values[1]
        beta = 0
    set_lasagne_values(network, values)
    batch = batch_for(incoming, rng)
    hidden = (batch.astype("float64") @ W - mean) * (gamma * inv_std) + beta
    assert_close(compiled(network)(batch), np.maximum(hidden, 0) @ V + b)
    found = get_lasagne_values(network)
    assert len(found) == len(values)
    for actual, expected in zip(found, values):
        assert actual.dtype == floatX
        assert_close(actual, expected)


def test_lasagne_list_of_layers(rng, float64, network):
    values = lasagne_values(rng)
    layer = BatchNormLayer(InputLayer((None, 5)))
    dense = DenseLayer(InputLayer((None, 4)), 5, b=None)
    set_lasagne_values([dense, layer], values[:5])
    for actual, expected in zip(get_lasagne_values([dense, layer]), values):
        assert_allclose(actual, expected)


@pytest.mark.parametrize("change, rows", [
    (lambda values: values[:-1], [r"! -  +b: \(2,\)"]),
    (lambda values: values[:1], [r"! -  +inv_std for std: \(5,\)"]),
    (lambda values: values + [np.ones(3)], [r"! array 7: \(3,\)  +-"]),
    (lambda values: [], [r"! -  +W: \(4, 5\)", r"! -  +gamma: \(5,\)"]),
    (lambda values: values[:4] + [np.ones((1, 5))] + values[5:],
     [r"! array 4: \(1, 5\)  +inv_std for std: \(5,\)",
      r"  array 3: \(5,\)  +mean: \(5,\)"]),
    (lambda values: values[5:] + values[:5],
     [r"! array 0: \(5, 2\)  +W: \(4, 5\)"]),
])
def test_lasagne_misfits(rng, float64, matrix, change, rows):
    network = DenseLayer(batch_norm(DenseLayer(matrix, 5)), 2)
    before = bits(network)
    with pytest.raises(ValueError) as caught:
        set_lasagne_values(network, change(lasagne_values(rng)))
    text = str(caught.value)
    assert text.startswith("set_lasagne_values(): the parameter list does not "
                           "fit the network, where marked:\n")
    for row in rows:
        assert re.search("\n" + row, text)
    assert bits(network) == before


@pytest.mark.parametrize("number, value, error, expected", [
    (4, np.zeros(5), ValueError, "BatchNormLayer 'n': inv_std must be finite "
                                 "and positive"),
    (4, np.full(5, np.nan), ValueError, "'n': inv_std must be finite"),
    (3, np.full(5, np.inf), ValueError, "'n': mean must be finite"),
    (6, np.array(["a", "b"]), TypeError, "array 6 must be an array of num"),
    (6, np.array([None, None]), TypeError, "array 6 must be an array of num"),
])
def test_lasagne_wrong_values(rng, matrix, number, value, error, expected):
    network = DenseLayer(batch_norm(DenseLayer(matrix, 5), name="n"), 2)
    values = lasagne_values(rng)
    values[number] = value
    before = bits(network)
    with pytest.raises(error, match=expected):
        set_lasagne_values(network, values)
    assert bits(network) == before


def test_lasagne_no_network():
    for function in (get_lasagne_values, partial(set_lasagne_values,
                                                 values=[])):
        with pytest.raises(TypeError, match=r"_lasagne_values\(\): network "
                                            "must be a Layer or a list"):
            function("network")


def plain(incoming, wrap):
    conv = wrap(lasagne.layers.Conv2DLayer(incoming, 4, 3))
    one = wrap(DenseLayer(conv, 5))
    return DenseLayer(ElemwiseSumLayer([linear(DenseLayer, conv, 5), one]), 2)


def without_some(incoming, wrap):
    layer = wrap(DenseLayer(incoming, 5), beta=None)
    return wrap(DenseLayer(layer, 5), gamma=None, name="a")


def shared(incoming, wrap):
    layer = wrap(DenseLayer(incoming, 5, name="a"))
    W = theano.shared(np.zeros((5, 5), theano.config.floatX))
    return wrap(DenseLayer(wrap(DenseLayer(layer, 5, W=W)), 5, W=W))


def recurrent(incoming, wrap):
    step = InputLayer((None, 6)), InputLayer((None, 5))
    layer = CustomRecurrentLayer(
        lasagne.layers.FlattenLayer(incoming, 3),
        wrap(DenseLayer(step[0], 5, nonlinearity=None), name="in"),
        wrap(DenseLayer(step[1], 5, nonlinearity=None), name="hidden"))
    return wrap(DenseLayer(layer, 3))


@later
@needs_compiler
@pytest.mark.parametrize("build", [plain, without_some, shared, recurrent])
def test_lasagnes_later_layer(rng, floatX, build):
    shape = (4, 3, 2, 3) if build is recurrent else (None, 3, 6, 6)
    incoming = InputLayer(shape, T.tensor4())
    theirs = build(incoming, lasagne.layers.batch_norm)
    ours = build(incoming, batch_norm)
    networks = [theirs, ours]
    function = compiled(networks, theano.Mode("cvm", "fast_compile"))
    batch = batch_for(incoming, rng, 4)
    randomize(theirs, rng)
    set_lasagne_values(ours, get_all_param_values(theirs))
    there, here = function(batch)
    assert_close(here, there)
    randomize(ours, rng)
    set_all_param_values(theirs, get_lasagne_values(ours))
    there, here = function(batch)
    assert_close(there, here)


@both
@quick
def test_bias_of_a_module_that_is_applied_twice(rng, floatX, framework):
    incoming = InputLayer((None, 3))
    first = linear(DenseLayer, incoming, 3, b=None, name="a")
    hidden = BatchNormLayer(first, name="n0")
    second = linear(DenseLayer, hidden, 3, W=first.W, b=None, name="c")
    network = BatchNormLayer(second, name="n1")
    weights = named("a", OrderedDict([
        ("weight", rng.normal(size=(3, 3))), ("bias", rng.normal(size=3))]),
        framework)
    for name in ("n0", "n1"):
        weights.update(named(name, random_norm(rng, 3), framework))
    framework.set(network, weights)
    batch = batch_for(incoming, rng)
    linear_part = group(weights, "a", framework.separator)
    W = linear_part["weight"].T if framework is TORCH \
        else linear_part["kernel"]
    expected = batch
    for name in ("n0", "n1"):
        expected = normalized(
            expected @ W + linear_part["bias"],
            group(weights, name, framework.separator), framework.epsilon)
    assert_close(compiled(network)(batch), expected)
    # Where one of the two cannot absorb it, nothing is set.
    network = DenseLayer(hidden, 3, W=first.W, b=None, name="c")
    weights = OrderedDict(item for item in weights.items()
                          if not item[0].startswith("n1"))
    before = bits(network)
    with pytest.raises(ValueError, match=r"\n! a.bias: \(3,\) +-(\n|$)"):
        framework.set(network, weights)
    assert bits(network) == before


@both
def test_bias_is_of_another_axis(rng, float64, framework):
    """Statistics of rows do not absorb a bias of as many channels."""
    layer = linear(lasagne.layers.NINLayer, InputLayer((None, 3, 4, 4)), 4,
                   b=None, name="c")
    network = BatchNormLayer(layer, axes=(0, 1, 3), name="n")
    weights = named("c", OrderedDict([
        ("weight", rng.normal(size=(4, 3, 1, 1))),
        ("bias", rng.normal(size=4))]), framework)
    weights.update(named("n", random_norm(rng, 4), framework))
    before = bits(network)
    with pytest.raises(ValueError, match=r"\n! c.bias: \(4,\) +-(\n|$)"):
        framework.set(network, weights)
    assert bits(network) == before


@later
@both
def test_weights_that_are_tied(rng, float64, framework, matrix):
    """The transposed is no second application of the same module."""
    encoder = DenseLayer(matrix, 3, b=None, name="enc")
    decoder = DenseLayer(encoder, 4, W=encoder.W.T, b=None, name="dec")
    found = list(framework.get(decoder).values())
    assert [value.shape for value in found] == (
        [(3, 4), (4, 3)] if framework is TORCH else [(4, 3), (3, 4)])
    assert_array_equal(found[0], found[1].T)


@pytest.mark.parametrize("left_out", [(), ("gamma",), ("beta",),
                                      ("gamma", "beta")])
@pytest.mark.parametrize("form", [list, dict])
def test_like_by_layer(rng, float64, matrix, form, left_out):
    dense = DenseLayer(matrix, 5, b=None, name="fc")
    layer = BatchNormLayer(dense, name="n", **dict.fromkeys(left_out))
    randomize(layer, rng)
    flat = named("fc", OrderedDict([
        ("weight", np.zeros((5, 4))), ("bias", np.zeros(5))]), KERAS)
    flat.update(named("n", random_norm(rng, 5), KERAS))
    like = OrderedDict((name, OrderedDict(
        (key.partition("/")[2], value) for key, value in flat.items()
        if key.startswith(name + "/"))) for name in ("n", "fc"))
    if form is list:
        like = OrderedDict((name, list(value.values()))
                           for name, value in like.items())
    like["dropout"] = form()
    found = get_keras_weights(layer, like=like)
    assert list(found) == list(like)
    expected = get_keras_weights(layer, like=flat)
    actual = [value for name in ("fc", "n") for value in (
        found[name] if form is list else found[name].values())]
    for value, right in zip(actual, expected.values()):
        assert_array_equal(value, right)
    assert len(actual) == len(expected) and found["dropout"] == form()


def test_axes_moved(rng, float64):
    images = InputLayer((None, 2, 3, 4))
    moved = lasagne.layers.DimshuffleLayer(images, (0, 2, 3, 1), name="it")
    network = DenseLayer(FlattenLayer(moved), 5, name="out")
    with pytest.raises(ValueError, match="cannot be told at FlattenLayer"):
        KERAS.get(network)
    get_keras_weights(network, data_format="channels_first")


@pytest.mark.parametrize("names", [
    ("gamma",), ("gamma", "std"), ("mean",), ("gamma", "mean", "std")])
def test_lasagne_shared_parameters_of_all_kinds(rng, float64, matrix, names):
    first = BatchNormLayer(matrix)
    second = BatchNormLayer(first, **{name: getattr(first, name)
                                      for name in names})
    roles = ["beta", "gamma", "mean", "std"]
    values = list(rng.uniform(1, 2, (8 - len(names), 4)))
    here = dict(zip(roles, values))
    own = dict(zip([role for role in roles if role not in names], values[4:]))
    set_lasagne_values(second, values)
    for layer, expected in [(first, here), (second, {**here, **own})]:
        for role in roles[:3]:
            assert_array_equal(getattr(layer, role).get_value()[0],
                               expected[role])
        assert_allclose(layer.get_statistics().inv_std, expected["std"])
    assert_allclose(get_lasagne_values(second), values)


@later
def test_lasagne_expressions(float64, matrix):
    layer = BatchNormLayer(matrix, std=T.exp(theano.shared(
        np.ones((1, 4)), "s", broadcastable=(True, False))), name="n")
    with pytest.raises(ValueError, match="'n': std is an expression"):
        get_lasagne_values(layer)
    with pytest.raises(ValueError, match="'n': std is an expression"):
        set_lasagne_values(layer, 4 * [np.ones(4)])


class OfNoType(object):
    """What PyTorch's tensors do of which NumPy has no type."""

    def __array__(self, dtype=None):
        raise RuntimeError("no such type")


@pytest.mark.parametrize("set_weights, weights, expected", [
    (set_torch_state_dict, [1], r"expected a state_dict, got \[1\]. Pass m"),
    (set_torch_state_dict, None, "expected a state_dict, got None"),
    (set_torch_state_dict, {3: np.ones(2)}, "got the name 3"),
    (set_torch_state_dict, {"fc.weight": OfNoType()},
     "fc.weight must be an array of numbers: no such type"),
    (set_keras_weights, [np.ones(2)], "expected a dict of weights, got "),
    (set_lasagne_values, None, "expected a list of arrays as get_all_param"),
    (set_lasagne_values, {"a": 1}, "expected a list of arrays as get_all_par"),
])
def test_what_is_not_weights(matrix, set_weights, weights, expected):
    with pytest.raises(TypeError, match=expected) as caught:
        set_weights(DenseLayer(matrix, 5, name="fc"), weights)
    if "expected" in expected:
        assert str(caught.value).startswith(set_weights.__name__ + "(): ")
