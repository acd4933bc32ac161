"""Weights to and from other frameworks: NumPy stands in for these.

test_frameworks.py has the real ones.
"""

from collections import OrderedDict, namedtuple
from functools import partial

from bnlasagne import (
    BatchNormLayer,
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
import theano.tensor as T
from helpers import reference
from helpers.common import later, needs_compiler, quick
from helpers.weights import (
    KERAS,
    TORCH,
    assert_close,
    batch_for,
    bits,
    both,
    chain,
    channels_last,
    compiled,
    from_keras,
    group,
    linear,
    named,
    norm,
    normalized,
    random_norm,
    randomize,
)
from lasagne.layers import (
    Conv2DLayer,
    DenseLayer,
    InputLayer,
    LSTMLayer,
    NonlinearityLayer,
    get_all_param_values,
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
        with pytest.raises(ValueError, match=r"! 0.*NINLayer \(layer 1\), "
                                             "W: "):
            framework.set(layer, weights)
        return
    framework.set(layer, weights)
    assert_array_equal(layer.W.get_value(), W.reshape(5, 3).T)
    found = framework.get(layer, like=weights)
    for key, value in weights.items():
        assert_array_equal(found[key], value)


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
    weights["n_averaged"] = np.array(5)
    set_torch_state_dict(layer, weights)
    assert_array_equal(layer.gamma.get_value()[0], weights["0.weight"])
    found = get_torch_state_dict(layer, like=weights)
    assert found["0.num_batches_tracked"] == 77
    assert list(found) == list(weights)


@both
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_types_of_like(rng, floatX, framework, matrix, dtype):
    network = batch_norm(DenseLayer(matrix, 5, name="fc"), name="n",
                         gamma=None)
    randomize(network, rng)
    like = named("fc", OrderedDict([("weight", np.zeros((5, 4), dtype)),
                                    ("bias", np.zeros(5, dtype))]), framework)
    like.update(named("n", OrderedDict(
        (key, value.astype(dtype))
        for key, value in random_norm(rng, 5).items()), framework))
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
    like = named("fc", OrderedDict([("weight", np.zeros((5, 4), "float16")),
                                    ("bias", np.zeros(5, "float16"))]),
                 framework)
    with pytest.raises(ValueError, match=r"^get_.*\(\): fc.bias must be an "
                                         "array of numbers, which its type "
                                         "float16 can hold, got 100000.0"):
        framework.get(layer, like=like)


class Tensor(object):
    """What NumPy makes no array of, as of PyTorch's tensors.

    One to be trained, on a GPU, or of the type bfloat16.
    """

    def __init__(self, value, *obstacles):
        self.value, self.obstacles = value, obstacles

    def __array__(self, dtype=None):
        if self.obstacles:
            raise TypeError("cannot convert %s" % (self.obstacles,))
        return np.asarray(self.value, dtype)

    def without(self, obstacle):
        return Tensor(self.value, *[each for each in self.obstacles
                                    if each != obstacle])

    def detach(self):
        return self.without("requires_grad")

    def cpu(self):
        if "requires_grad" in self.obstacles:
            raise RuntimeError
        return self.without("cuda")

    def float(self):
        return self.without("bfloat16")


@pytest.mark.parametrize("obstacles", [
    [], ["requires_grad"], ["cuda"], ["bfloat16"],
    ["requires_grad", "cuda", "bfloat16"]], ids=" ".join)
def test_tensors(rng, float64, matrix, obstacles):
    layer = batch_norm(DenseLayer(matrix, 5, name="fc"), name="n")
    weights = named("fc", {"weight": rng.normal(size=(5, 4))}, TORCH)
    weights.update(named("n", random_norm(rng, 5), TORCH))
    tensors = OrderedDict((key, Tensor(value, *obstacles))
                          for key, value in weights.items())
    set_torch_state_dict(layer, tensors)
    for found in (get_torch_state_dict(layer),
                  get_torch_state_dict(layer, like=tensors)):
        for key, value in weights.items():
            assert_allclose(found[key], value)
    before = bits(layer)
    tensors["fc.weight"] = Tensor(weights["fc.weight"], "sparse")
    with pytest.raises(TypeError, match=r"_dict\(\): fc.weight must be an "
                                        "array of numbers: cannot convert"):
        set_torch_state_dict(layer, tensors)
    assert bits(layer) == before


def test_groups_of_a_file(rng, float64, matrix):
    """Dicts in dicts, such as the groups of an HDF5 file."""
    layer = batch_norm(DenseLayer(matrix, 5, name="fc"), name="n")
    flat = named("fc", {"weight": rng.normal(size=(5, 4))}, KERAS)
    flat.update(named("n", random_norm(rng, 5), KERAS))
    nested = OrderedDict([
        ("fc", {"fc": {"kernel:0": flat["fc/kernel"]}}), ("dropout", {}),
        ("n", {"n": [value for key, value in flat.items() if key[0] == "n"]})])
    set_keras_weights(layer, nested)
    found = get_keras_weights(layer, like=nested)
    assert_allclose(found["fc"]["fc"]["kernel:0"], flat["fc/kernel"])
    assert [value.shape for value in found["n"]["n"]] == 4 * [(5,)]
    assert_allclose(found["n"]["n"][2], flat["n/moving_mean"])
    assert found["dropout"] == {} and list(found) == list(nested)


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


@both
@pytest.mark.parametrize("epsilon, expected", [
    (-1, "'n': epsilon must be a finite number"),
    ("a", "'n': epsilon must be a finite number"),
    # To a layer, that would mean statistics of data.
    (None, r"_(dict|weights)\(\): epsilon must be a number, got None"),
])
def test_epsilon(rng, float64, framework, epsilon, expected, matrix):
    layer = BatchNormLayer(matrix, name="n")
    weights = named("n", random_norm(rng, 4), framework)
    before = bits(layer)
    for function in (framework.set, framework.get):
        with pytest.raises(ValueError, match=expected):
            function(layer, weights, epsilon=epsilon)
    assert bits(layer) == before


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
        with pytest.raises(ValueError, match=r"\w+\(\): %s 'it' %s" % (
                kind, "does not compute what Lasagne's DenseLayer computes, "
                "whose weights" if kind == "Squared" else
                "has parameters, but its weights are not known")):
            function(NonlinearityLayer(layer))


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
    framework.set(layer, named("b", OrderedDict([
        ("weight", np.ones((5, 4))), ("bias", np.ones(5))]), framework))
    assert np.all(layer.W.get_value() == 1)


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
