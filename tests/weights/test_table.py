"""Weights of each kind of layer in PyTorch and Keras.

NumPy stands in for these; test_frameworks.py has the real ones.
"""

from collections import namedtuple
from functools import partial

from bnlasagne import BatchNormLayer, batch_norm, get_torch_state_dict

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.common import later, needs_compiler, quick
from helpers.folded import randomize
from helpers.weights import (
    KERAS,
    TORCH,
    assert_close,
    batch_for,
    bits,
    both,
    channels_last,
    compiled,
    from_keras,
    group,
    linear,
    named,
    named_dense,
    named_norm,
    normalized,
    product,
    refused,
    without,
)
from lasagne.layers import (
    Conv2DLayer,
    DenseLayer,
    InputLayer,
    LSTMLayer,
    NonlinearityLayer,
    get_all_params,
)
from numpy.testing import assert_allclose, assert_array_equal


def dense(x, W, leading=1):
    return reference.dense(x, np.transpose(W), leading)


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
        own = group(weights, name, framework)
        if framework is KERAS:
            W = from_keras(own["kernel"])
            y = case.compute(x if axis == -1 or W.ndim > 2
                             else channels_last(x), W)
        else:
            y = case.compute(x, own["weight"])
        shape = [-1 if each == axis % y.ndim else 1 for each in range(y.ndim)]
        y += own["bias"].reshape(shape)
        if name == "first":
            yield normalized(y, weights, "norm", framework, axis=axis % y.ndim)
    yield y


@pytest.mark.parametrize("case", [
    *[pytest.param(case, id=name) for name, case in CASES.items()],
    *[pytest.param(case, id=name, marks=later)
      for name, case in LATER_CASES.items()]])
@needs_compiler
def test_layers(rng, floatX, case):
    x = T.TensorType(floatX, (False,) * (1 + len(case.shape)))()
    incoming = InputLayer((None,) + case.shape, x)
    make = partial(linear, case.kind, incoming, 5, **case.options)
    axes = (0, 1) if "num_leading_axes" in case.options else None
    network = [batch_norm(make(name="first"), axes=axes, name="norm"),
               make(name="second")]
    function = compiled(network, theano.Mode("cvm", "fast_compile"))
    batch = batch_for(incoming, rng)
    for framework in (TORCH, KERAS):
        weights = named_norm("norm", framework, rng, 5)
        for name in ("first", "second"):
            weights.update(named_dense(name, framework, rng.normal(
                size=case.W), rng.normal(size=5)))
        framework.set(network, weights)
        output = function(batch)
        found = framework.get(network, like=weights)
        assert list(found) == list(weights)
        for given in (weights, found):
            for actual, expected in zip(output, computed(
                    case, framework, given, batch)):
                assert_close(actual, expected)
        # A bias went into the mean.
        bias = f"first{framework.separator}bias"
        for key, value in without(weights, "mean", bias).items():
            assert_close(found[key], value)
        # The same by the names of layers.
        assert set(weights) - set(framework.get(network)) == {bias}


@quick
@both
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 1), (5, 3, 1, 1)])
def test_filters_of_one_position(rng, float64, framework, shape):
    layer = linear(lasagne.layers.NINLayer, InputLayer((None, 3, 4, 2)), 5)
    W = rng.normal(size=shape)
    weights = named_dense("0", framework, W, np.zeros(5))
    if len(shape) == 3:
        with refused(layer, r"! 0.*NINLayer \(layer 1\), W: "):
            framework.set(layer, weights)
        return
    framework.set(layer, weights)
    assert_array_equal(layer.W.get_value(), W.reshape(5, 3).T)
    found = framework.get(layer, like=weights)
    for key, value in weights.items():
        assert_array_equal(found[key], value)


# --- biases that go into running means --------------------------------------

def fork(incoming, **kwargs):
    below = linear(DenseLayer, incoming, 5, b=None, name="fc")
    return below, [BatchNormLayer(below, name=f"n{number}", **kwargs)
                   for number in range(2)]


def fork_weights(rng, framework):
    return {**named_dense("fc", framework, rng.normal(size=(5, 4)),
                          rng.normal(size=5)),
            **named_norm("n0", framework, rng, 5),
            **named_norm("n1", framework, rng, 5)}


@pytest.fixture
def matrix():
    return InputLayer((None, 4))


@both
@quick
def test_bias_goes_into_all_means(rng, floatX, framework, matrix):
    _, network = fork(matrix)
    weights = fork_weights(rng, framework)
    bias = f"fc{framework.separator}bias"
    batch = batch_for(matrix, rng)
    function = compiled(network)
    for given in (weights, without(weights, bias)):
        framework.set(network, given, epsilon=0.1)
        found = framework.get(network, like=weights, epsilon=0.1)
        assert np.all(found[bias] == 0)
        for each in (given, found):
            for number, output in enumerate(function(batch)):
                assert_close(output, normalized(
                    product(batch, each, "fc", framework), each,
                    f"n{number}", framework, 0.1))


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
    with refused(network, r"\n! fc.bias: \(5,\) +-(\n|$)"):
        framework.set(network, weights)
    framework.set(network, without(weights, f"fc{framework.separator}bias"))


@both
@pytest.mark.parametrize("nonlinearity", [None, lasagne.nonlinearities.tanh])
def test_no_bias_to_set(rng, float64, framework, matrix, nonlinearity):
    layer = DenseLayer(matrix, 5, b=None, nonlinearity=nonlinearity)
    weights = named_dense("fc", framework, rng.normal(size=(5, 4)), np.ones(5))
    if nonlinearity:
        layer = BatchNormLayer(layer)
        weights.update(named_norm("n0", framework, rng, 5))
    with refused(layer, r"\n! fc.bias: \(5,\) +-(\n|$)"):
        framework.set(layer, weights)
    # There, a bias of zeros does the same.
    found = framework.get(layer, like=weights)
    assert_array_equal(found[f"fc{framework.separator}bias"], np.zeros(5))


@both
def test_bias_is_of_another_axis(rng, float64, framework):
    """Statistics of rows do not absorb a bias of as many channels."""
    layer = linear(lasagne.layers.NINLayer, InputLayer((None, 3, 4, 4)), 4,
                   b=None, name="c")
    network = BatchNormLayer(layer, axes=(0, 1, 3), name="n")
    weights = {**named_dense("c", framework, rng.normal(size=(4, 3, 1, 1)),
                             rng.normal(size=4)),
               **named_norm("n", framework, rng, 4)}
    with refused(network, r"\n! c.bias: \(4,\) +-(\n|$)"):
        framework.set(network, weights)


# --- modules that are applied twice -----------------------------------------

@both
def test_shared_weights(rng, float64, framework):
    first = DenseLayer(InputLayer((None, 3)), 3, name="a")
    second = DenseLayer(first, 3, W=first.W, name="b")
    W, biases = rng.normal(size=(3, 3)), rng.normal(size=(2, 3))
    weights = {**named_dense("a", framework, W, biases[0]),
               **named_dense("b", framework, W, biases[1])}
    framework.set(second, weights)
    assert_array_equal(first.W.get_value(), W.T)
    assert_array_equal(second.b.get_value(), biases[1])
    for key, value in framework.get(second, like=weights).items():
        assert_array_equal(value, weights[key])
    weights.update(named_dense("b", framework, W + 1e-3))
    with refused(second, "is shared by layers whose weights differ"):
        framework.set(second, weights)


@both
@quick
def test_module_that_is_applied_twice(rng, floatX, framework):
    incoming = InputLayer((None, 3))
    first = linear(DenseLayer, incoming, 3, name="a")
    hidden = BatchNormLayer(first, name="n")
    second = linear(DenseLayer, hidden, 3, W=first.W, b=first.b, name="c")
    network = linear(DenseLayer, second, 2, b=None, name="out")
    weights = {**named_dense("a", framework, rng.normal(size=(3, 3)),
                             rng.normal(size=3)),
               **named_norm("n", framework, rng, 3),
               **named_dense("out", framework, rng.normal(size=(2, 3)))}
    framework.set(network, weights)
    batch = batch_for(incoming, rng)
    expected = product(normalized(product(
        batch, weights, "a", framework), weights, "n", framework),
        weights, "a", framework)
    assert_close(compiled(second)(batch), expected)
    assert set(framework.get(network)) == set(weights)
    for key, value in framework.get(network, like=weights).items():
        assert_allclose(value, weights[key], rtol=1e-5, atol=1e-6)
    # Or there are two, of equal weights.
    more = {**weights, **{"c" + key[1:]: value
                          for key, value in weights.items() if key[0] == "a"}}
    framework.set(network, more)
    assert framework.get(network, like=more).keys() == more.keys()


@both
def test_shared_statistics(rng, float64, framework, matrix):
    first = BatchNormLayer(matrix, name="a")
    network = BatchNormLayer(first, name="b", mean=first.mean, std=first.std,
                             gamma=first.gamma)
    weights = named_norm("a", framework, rng, 4)
    other = named_norm("b", framework, rng, 4)
    beta = list(other)[1]
    shared = {**dict(zip(other, weights.values())), beta: other[beta]}
    framework.set(network, {**weights, **shared})
    assert_array_equal(network.beta.get_value()[0], other[beta])
    assert_array_equal(first.beta.get_value()[0], list(weights.values())[1])
    for key in set(other) - {beta}:
        with refused(network, "is shared by layers whose"):
            framework.set(network, {**weights, **shared, key: other[key]})


@both
@quick
def test_bias_of_a_module_that_is_applied_twice(rng, floatX, framework):
    incoming = InputLayer((None, 3))
    first = linear(DenseLayer, incoming, 3, b=None, name="a")
    hidden = BatchNormLayer(first, name="n0")
    second = linear(DenseLayer, hidden, 3, W=first.W, b=None, name="c")
    network = BatchNormLayer(second, name="n1")
    weights = {**named_dense("a", framework, rng.normal(size=(3, 3)),
                             rng.normal(size=3)),
               **named_norm("n0", framework, rng, 3),
               **named_norm("n1", framework, rng, 3)}
    framework.set(network, weights)
    expected = batch = batch_for(incoming, rng)
    for name in ("n0", "n1"):
        expected = normalized(product(expected, weights, "a", framework),
                              weights, name, framework)
    assert_close(compiled(network)(batch), expected)
    # Where one of the two cannot absorb it, nothing is set.
    network = DenseLayer(hidden, 3, W=first.W, b=None, name="c")
    weights = {key: value for key, value in weights.items()
               if not key.startswith("n1")}
    with refused(network, r"\n! a.bias: \(3,\) +-(\n|$)"):
        framework.set(network, weights)


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


# --- names, types, values ---------------------------------------------------

@both
@quick
@pytest.mark.parametrize("left_out", [("weight", "bias"), ("weight",),
                                      ("bias",)])
def test_left_out(rng, float64, framework, matrix, left_out):
    options = {"weight": "gamma", "bias": "beta"}
    layer = BatchNormLayer(matrix, name="n", **{
        options[name]: None for name in left_out})
    full = named_norm("n", framework, rng, 4)
    fewer = named_norm("n", framework, rng, 4, without=left_out)
    framework.set(layer, fewer)
    batch = batch_for(matrix, rng)
    output = compiled(layer)(batch)
    assert_close(output, normalized(batch, fewer, "n", framework))
    # A model that has them gets ones and zeros, but none here can be set.
    with refused(layer, r"\n! n.*: \(4,\) +-(\n|$)"):
        framework.set(layer, full)
    assert_close(output, normalized(batch, framework.get(layer, like=full),
                                    "n", framework))
    assert set(framework.get(layer)) == set(fewer)
    # Nor can there be one here alone.
    for function in (framework.set, framework.get):
        with pytest.raises(ValueError, match=r"\n! - +BatchNormLayer 'm', "):
            function(BatchNormLayer(matrix, name="m"), fewer)


def test_names_of_their_own(float64, matrix):
    network = batch_norm(DenseLayer(matrix, 5, name="a"), name="b.c")
    assert [(key, value.shape) for key, value in TORCH.get(
        network).items()] == [
            ("a.weight", (5, 4)), ("b.c.weight", (5,)), ("b.c.bias", (5,)),
            ("b.c.running_mean", (5,)), ("b.c.running_var", (5,))]
    assert [(key, value.shape) for key, value in KERAS.get(
        network).items()] == [
            ("a/kernel", (4, 5)), ("b.c/gamma", (5,)), ("b.c/beta", (5,)),
            ("b.c/moving_mean", (5,)), ("b.c/moving_variance", (5,))]


@both
@pytest.mark.parametrize("names, label", [
    ((None,), "DenseLayer"), (("a", None), "DenseLayer"),
    (("a", "b", "a"), "DenseLayer 'a'")])
def test_needs_names(framework, matrix, names, label):
    layer = matrix
    for name in names:
        layer = DenseLayer(layer, 4, name=name)
    with pytest.raises(ValueError, match=rf"get_\w+\(\): {label}.* must have"):
        framework.get(layer)
    with pytest.raises(ValueError, match=r"BatchNormLayer .*, got None\."):
        framework.get(BatchNormLayer(matrix))


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


@both
def test_types_of_like(rng, floatX, framework, matrix):
    network = randomize(batch_norm(DenseLayer(
        matrix, 5, name="fc"), name="n", gamma=None), rng)
    for dtype in ("float16", "float32", "float64"):
        like = {key: value.astype(dtype) for key, value in {
            **named_dense("fc", framework, np.zeros((5, 4)), np.zeros(5)),
            **named_norm("n", framework, rng, 5)}.items()}
        if framework is TORCH:
            like["n.num_batches_tracked"] = np.array(3)
        found = framework.get(network, like=like)
        assert [value.dtype for value in found.values()] == [
            value.dtype for value in like.values()]
        for key, value in framework.get(network).items():
            assert_allclose(found[key], value, rtol=1e-3)


@both
def test_too_large_for_like(float64, framework, matrix):
    layer = DenseLayer(matrix, 5, name="fc")
    layer.b.set_value(np.full(5, 1e5))
    like = named_dense("fc", framework, np.zeros((5, 4), "float16"),
                       np.zeros(5, "float16"))
    with pytest.raises(ValueError, match=r"^get_.*\(\): fc.bias must be an "
                                         "array of numbers, which its type "
                                         "float16 can hold, got 100000.0"):
        framework.get(layer, like=like)


@pytest.mark.parametrize("key, value, expected", [
    ("fc.weight", np.nan, "DenseLayer 'fc': W must be .* got 1 NaN"),
    ("fc.bias", 1e39, "DenseLayer 'fc': b must be .* float32 can hold, got "),
    ("n.weight", np.nan, "BatchNormLayer 'n': gamma must be .* got 1 NaN"),
    ("n.bias", np.nan, "BatchNormLayer 'n': beta must be .* got 1 NaN"),
    ("n.running_mean", 1e39, "BatchNormLayer 'n': mean must be .* float32 "),
])
def test_values_that_do_not_fit(rng, matrix, key, value, expected):
    with theano.configparser.change_flags(floatX="float32"):
        network = BatchNormLayer(DenseLayer(matrix, 4, name="fc"), name="n")
    weights = {**named_dense("fc", TORCH, np.ones((4, 4)), np.ones(4)),
               **named_norm("n", TORCH, rng, 4)}
    weights[key].flat[1] = value
    with refused(network, r"^set_torch_state_dict\(\): " + expected):
        TORCH.set(network, weights)


@both
def test_wrong_in_the_last_layer(rng, floatX, framework):
    layer = DenseLayer(InputLayer((None, 3)), 3, name="a")
    layer = BatchNormLayer(layer, name="last")
    for role, value, expected in [
            ("var", -1., "finite and positive with"),
            ("var", np.nan, "finite and positive with"),
            ("var", np.inf, "finite and positive with"),
            ("mean", np.inf, "finite"), ("mean", np.nan, "finite")]:
        weights = {**named_norm("last", framework, rng, 3),
                   **named_dense("a", framework, np.eye(3), np.ones(3))}
        weights[next(key for key in weights if role in key)][1] = value
        with refused(layer, f"'last': {role} must be {expected}"):
            framework.set(layer, weights)


@both
def test_epsilon(rng, float64, framework, matrix):
    layer = BatchNormLayer(matrix, name="n")
    weights = named_norm("n", framework, rng, 4)
    for epsilon, expected in [
            (-1, "'n': epsilon must be a finite number"),
            ("a", "'n': epsilon must be a finite number"),
            # To a layer, that would mean statistics of data.
            (None, r"_(dict|weights)\(\): epsilon must be a number, got No")]:
        for function in (framework.set, framework.get):
            with refused(layer, expected):
                function(layer, weights, epsilon=epsilon)


# --- layers that are not known ----------------------------------------------

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
        return super().get_output_for(input, **kwargs) ** 2


def assert_unknown(framework, layer, expected):
    for function in (framework.get, lambda each: framework.set(each, {})):
        with pytest.raises(ValueError, match=rf"\w+\(\): {expected}"):
            function(NonlinearityLayer(layer))


@both
@pytest.mark.parametrize("kind", UNKNOWN)
def test_unknown_layers(framework, kind):
    if not hasattr(lasagne.layers, kind):
        pytest.skip("needs Lasagne's development version")
    assert_unknown(framework, UNKNOWN[kind](), f"{kind} 'it' has parameters, "
                   "but its weights are not known")


@both
def test_layers_that_compute_something_else(framework, matrix):
    assert_unknown(framework, Squared(matrix, 5, name="it"), "Squared 'it' "
                   "does not compute what Lasagne's DenseLayer computes, ")


def test_unknown_convolutions():
    def convolution(*args, **options):
        return 2 * T.nnet.conv2d(*args, **options)

    layer = Conv2DLayer(InputLayer((None, 2, 5, 5)), 2, 3, name="it",
                        convolution=convolution)
    with pytest.raises(ValueError, match="Conv2DLayer 'it' does not compute .*"
                                         "`convolution` is a function of your "
                                         "own"):
        get_torch_state_dict(layer)


@both
def test_known_by_what_they_compute(rng, float64, framework, matrix):
    class Named(DenseLayer):
        pass

    layer = Named(matrix, 5, name="a")
    framework.set(layer, named_dense("b", framework, np.ones((5, 4)),
                                     np.ones(5)))
    assert np.all(layer.W.get_value() == 1)


@later
@both
def test_expressions(rng, float64, framework, matrix):
    source = theano.shared(rng.uniform(1, 2, (4, 5)), "source")
    layer = DenseLayer(matrix, 5, W=source ** 2, name="fc")
    found = framework.get(layer)
    expected = named_dense("fc", framework, (source.get_value() ** 2).T,
                           np.zeros(5))
    for key, value in expected.items():
        assert_allclose(found[key], value)
    with refused(layer, "'fc': W is an expression, which has no place for a "
                        "value"):
        framework.set(layer, expected)
    layer = DenseLayer(matrix, 5, W=T.dot(T.matrix("m"), source), name="fc")
    for function in (framework.get, framework.set):
        with pytest.raises(ValueError, match="'fc'.*W.*m is an input"):
            function(layer, expected)
