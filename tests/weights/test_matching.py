"""Finding the layer for the weights of each module."""

import re

from bnlasagne import BatchNormLayer

import numpy as np
import pytest
from helpers.common import quick
from helpers.folded import randomize
from helpers.weights import (
    KERAS,
    TORCH,
    assert_close,
    batch_for,
    both,
    chain,
    compiled,
    named,
    named_dense,
    named_norm,
    network_of_names,
    norm,
    normalized,
    numbered,
    numbers_in,
    product,
    refused,
    without,
)
from hypothesis import example, given
from hypothesis import strategies as st
from lasagne.layers import DenseLayer, InputLayer
from numpy.testing import assert_allclose, assert_array_equal


@pytest.fixture
def matrix():
    return InputLayer((None, 4))


# --- names ------------------------------------------------------------------

CASES = [
    ([None, None, None], ["a", "b", "c"], [0, 1, 2]),
    ([None, None, None], ["c", "a", "b"], [0, 1, 2]),
    (["a", "b", "c"], ["c", "a", "b"], [1, 2, 0]),
    ([None, "a", None], ["a", "b", "c"], [1, 0, 2]),
    (["a", None, "c"], ["m|c", "m|b", "m|a"], [2, 1, 0]),
    # Names that tell nothing.
    (["x", "x", None], ["b", "x", "c"], [0, 1, 2]),
    (["x", "y", "z"], ["b", "a", "c"], [0, 1, 2]),
    (["features|0", None, "net|x"], ["net|x", "features|0", "q"], [1, 2, 0]),
    # Names with more before them.
    (["d", None], ["m|d", "m|e"], [0, 1]),
    ([None, "d"], ["m|d", "m|e"], [1, 0]),
    (["n|d", "m|d"], ["outer|m|d", "outer|n|d"], [1, 0]),
    (["conv", "l|0|conv", "fc"], ["a|conv", "b|l|0|conv", "c|d|fc"],
     [0, 1, 2]),
    # The longest end that they have in common.
    (["d", "m|d"], ["outer|m|d", "outer|d"], [1, 0]),
    (["d", "m|d"], ["n|m|d", "q|d"], [1, 0]),
    # One that is the whole name.
    (["d", None], ["m|d", "d"], [1, 0]),
    # The network is part of another, or the names have other starts.
    (["model|a", "model|b|a"], ["model|b|a", "model|a"], [1, 0]),
    (["net|model|a", "net|model|b"], ["ema|model|a", "ema|model|b"], [0, 1]),
    (["model|a", "model|b"], ["backbone|a", "head|b"], [0, 1]),
    # Orders that are not those of a file.
    ([None, None], ["a9", "a10"], [0, 1]),
    ([None, None], ["a10", "b2"], [0, 1]),
    ([None, None, None], ["b10", "b9", "a"], [0, 1, 2]),
    ([None, None], ["d|1", "d|a"], [0, 1]),
    ([None, None, None], ["d", "d_1", "d_2"], [0, 1, 2]),
]


@both
def test_names(float64, framework):
    for names, modules, expected in CASES:
        layers = chain(*[name and name.replace("|", framework.separator)
                         for name in names])
        weights = numbered(framework, modules)
        framework.set(layers[-1], weights)
        assert numbers_in(layers) == expected, (names, modules)
        found = framework.get(layers[-1], like=weights)
        assert list(found) == list(weights)
        for key, value in weights.items():
            assert_array_equal(found[key], value)


NAMES = st.lists(st.lists(st.sampled_from(["a", "b", "conv1", "0"]),
                          min_size=1, max_size=3).map("|".join),
                 min_size=1, max_size=5, unique=True)
STARTS = st.lists(st.sampled_from(["model", "net"]), max_size=2)


@both
@given(names=NAMES, start=STARTS, end=STARTS, data=st.data())
@example(names=["a", "b|a"], start=["model"], end=[], data=None)
@example(names=["a", "b|a"], start=[], end=["model"], data=None)
def test_each_layer_finds_its_name(framework, names, start, end, data):
    """In any order; either side may have more before all names."""
    order = data.draw(st.permutations(range(len(names)))) if data \
        else range(len(names))
    if end:
        # A start that layers alone have is found if it tells nothing.
        start = []
    layers = chain(*["|".join([*end, name]).replace("|", framework.separator)
                     for name in names])
    framework.set(layers[-1], numbered(
        framework, ["|".join([*start, names[number]]) for number in order]))
    assert numbers_in(layers) == list(np.argsort(order))


@both
def test_some_names_of_several(float64, framework):
    """Of layers that were named, none gets other weights in order."""
    for layers, modules in [
            (["x", None, "a"], ["a", "b", "c"]),
            (["x", "x", "a"], ["a", "x", "y"]),
            (["A", "b ", "c"], ["a", "c", "b"]),
            # Those that Keras gives, one off.
            (["dense_1", "dense_2"], ["dense", "dense_1"])]:
        network = chain(*layers)[-1]
        with refused(network, r"\n! -  (.|\n)*\n! \w.*  -"):
            framework.set(network, numbered(framework, modules))


@both
@pytest.mark.parametrize("layers, modules, name", [
    (["d", None], ["m|d", "n|d"], "d"),
    ([None, "d"], ["outer|m|d", "outer|n|d"], "d"),
    (["a", "b"], ["model|a", "ema|a"], "a"),
    (["c|d", "d"], ["x|c|d", "y|c|d"], "c|d"),
])
def test_names_of_several(float64, framework, layers, modules, name):
    layers, modules, (name,) = (
        [each and each.replace("|", framework.separator) for each in names]
        for names in (layers, modules, [name]))
    network = chain(*layers)[-1]
    for function in (framework.set, framework.get):
        with refused(network, (
                r"%s\(\): the name of DenseLayer '%s' is the end of several "
                "names in the .*: '%s' and '%s'. Give the layer the whole name"
                % (function.__name__, name, *modules))):
            function(network, numbered(framework, modules))


# --- orders -----------------------------------------------------------------

@quick
@both
def test_layers_and_norms_in_orders_of_their_own(rng, float64, framework):
    """As in modules that make all layers first, and then all norms."""
    incoming = InputLayer((None, 3))
    network = norm(DenseLayer, norm(DenseLayer, incoming, 3), 3)
    weights = {}
    for name in ("fc1", "fc2"):
        weights.update(named_dense(name, framework, rng.normal(size=(3, 3))))
    for name in ("bn1", "bn2"):
        weights.update(named_norm(name, framework, rng, 3))
    framework.set(network, weights)
    expected = batch = batch_for(incoming, rng)
    for number in "12":
        expected = normalized(product(expected, weights, "fc" + number,
                                      framework),
                              weights, "bn" + number, framework)
    assert_close(compiled(network)(batch), expected)


@both
@pytest.mark.parametrize("modules", [
    ["dense", "dense_1", "dense_10", "dense_2"], ["m|dense_10", "m|dense_2"],
    ["a10|b", "a2|b"], ["0", "10", "2"],
    # Sorted by groups, though not as a whole.
    ["d10|x", "d10-b|x", "d2|x"]])
def test_order_of_the_alphabet(float64, framework, modules):
    network = chain(*[None] * len(modules))
    weights = numbered(framework, modules)
    with refused(network[-1], (
            "_dict|weights.*: the names in the .* are in the order of the "
            "alphabet, with '.*10.*' before '.*2.*'. .*Name the layers, or "
            "pass ")):
        framework.set(network[-1], weights)
    # Where names decide, it does not matter.
    named_ones = chain(*[module.replace("|", framework.separator)
                         for module in modules])
    framework.set(named_ones[-1], weights)
    assert numbers_in(named_ones) == list(range(len(modules)))
    # Other orders are those of a model.
    framework.set(network[-1], dict(reversed(list(weights.items()))))


# --- what does not fit ------------------------------------------------------

@pytest.mark.parametrize("framework, options, left_out, hint", [
    (TORCH, {}, ("weight", "bias"),
     "'m.n' has no weight and no bias (affine=False). Build BatchNormLayer 'n'"
     " with gamma=None and beta=None."),
    (TORCH, {"beta": None}, ("weight", "bias"),
     "'m.n' has no weight (affine=False). Build BatchNormLayer 'n' with "
     "gamma=None."),
    (TORCH, {}, ("running_mean", "running_var"),
     "'m.n' has no running_mean and no running_var. It may be a batch "
     "normalization module with track_running_stats=False, "),
    (TORCH, {"gamma": None}, (),
     "'m.n' has a weight. Build BatchNormLayer 'n' without gamma=None."),
    (KERAS, {}, ("weight",),
     "'m/n' has no gamma (scale=False). Build BatchNormLayer 'n' with "
     "gamma=None."),
    (KERAS, {}, ("bias",),
     "'m/n' has no beta (center=False). Build BatchNormLayer 'n' with "
     "beta=None."),
    (KERAS, {}, ("weight", "bias"),
     "'m/n' has no gamma and no beta (scale=False and center=False). Build "
     "BatchNormLayer 'n' with gamma=None and beta=None."),
    (KERAS, {}, ("running_mean", "running_var"),
     "'m/n' has no moving_mean and no moving_variance. It is another kind of "
     "normalization than BatchNormalization."),
    (KERAS, {"beta": None, "gamma": None}, (),
     "'m/n' has a gamma and a beta. Build BatchNormLayer 'n' without "
     "gamma=None and beta=None."),
])
def test_what_one_side_lacks(rng, matrix, framework, options, left_out, hint):
    layer = BatchNormLayer(matrix, name="n", **options)
    weights = named_norm(f"m{framework.separator}n", framework, rng, 4,
                         without=left_out)
    with refused(layer) as caught:
        framework.set(layer, weights)
    assert ("\n" + hint) in str(caught.value)
    # A wrong name is something else.
    other = BatchNormLayer(BatchNormLayer(matrix, name="n", **options),
                           name="p", **options)
    with pytest.raises(ValueError) as caught:
        framework.set(other, {**weights, **named_norm("q", framework, rng, 4)})
    assert "'q'" not in str(caught.value)


@pytest.mark.parametrize("missing", ["running_mean", "running_var"])
def test_half_of_the_statistics_is_no_other_kind_of_norm(
        rng, matrix, missing):
    layer = BatchNormLayer(matrix, name="n")
    with refused(layer) as caught:
        TORCH.set(layer, named_norm("n", TORCH, rng, 4, without=(missing,)))
    assert "track_running_stats" not in str(caught.value)


@both
@pytest.mark.parametrize("here, there, hint", [
    (False, True, r"\n'a' has a bias. Build DenseLayer 'a' without b=None."),
    (True, False, r"\n'a' has no bias \((use_)?bias=False\). Build DenseLayer "
                  "'a' with b=None.")])
def test_bias_that_one_side_lacks(framework, matrix, here, there, hint):
    layer = DenseLayer(matrix, 5, name="a", **{} if here else {"b": None})
    weights = named_dense("a", framework, np.ones((5, 4)),
                          np.ones(5) if there else None)
    with refused(layer, hint):
        framework.set(layer, weights)


def test_kind_of_one_array(rng, float64, matrix):
    """A scale without statistics, or weights of a dense layer that is flat."""
    network = BatchNormLayer(DenseLayer(matrix, 4, name="fc"), name="n")
    weights = {**named_dense("fc", TORCH, np.ones(16), np.ones(4)),
               **named_norm("n", TORCH, rng, 4)}
    with refused(network, r"\n! fc.weight: \(16,\) +DenseLayer 'fc', W: "
                 ) as caught:
        TORCH.set(network, weights)
    assert str(caught.value).count("\n!") == 1
    network = BatchNormLayer(DenseLayer(matrix, 4))
    weights = {**named_dense("0", TORCH, np.ones((4, 4)), np.ones(4)),
               **named_dense("1", TORCH, np.ones(4), np.ones(4))}
    with refused(network, "'1' has no running_mean and no "):
        TORCH.set(network, weights)


@pytest.fixture
def network(rng):
    return network_of_names(rng)


def weights_for(rng, framework):
    weights = {}
    for number, shape in enumerate([(5, 4), (4, 5)]):
        weights.update(named_dense(f"fc{number}", framework,
                                   rng.normal(size=shape),
                                   rng.normal(size=shape[0])))
        weights.update(named_norm(f"fc{number}_bn", framework, rng, shape[0]))
    return {**weights, **named_dense("out", framework, rng.normal(size=(2, 4)),
                                     rng.normal(size=2))}


OF_KERAS = {"fc0.weight": "fc0/kernel", "out.weight": "out/kernel",
            "fc0_bn.weight": "fc0_bn/gamma", "fc0_bn.bias": "fc0_bn/beta",
            "fc1_bn.running_mean": "fc1_bn/moving_mean",
            "fc1_bn.running_var": "fc1_bn/moving_variance"}


MISFITS = [
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
]


@both
def test_misfits(rng, framework, network):
    for case in MISFITS:
        check_misfit(rng, framework, network, *case)


def check_misfit(rng, framework, network, key, value, row):
    weights = weights_for(rng, framework)
    if framework is KERAS:
        key = OF_KERAS.get(key, key.replace(".", "/"))
    if value is None:
        del weights[key]
    else:
        weights[key] = np.zeros(value)
    row = row.format(key=re.escape(key),
                     W="5, 4" if framework is TORCH else "4, 5")
    fits = r"\n  fc1.(weight|kernel): \(\d, \d\)  +DenseLayer 'fc1', W: \(\d"
    for function in (framework.set, framework.get):
        with refused(network) as caught:
            function(network, weights)
        text = str(caught.value)
        assert text.startswith(function.__name__ + "(): the ")
        assert "needed by the network" in text.splitlines()[1]
        assert re.search("\n! " + row, text) and re.search(fits, text)
        assert text.count("\n!") == 1


@both
def test_nothing_fits(rng, framework, network):
    with refused(network) as caught:
        framework.set(network, {})
    assert str(caught.value).count("\n! - ") == 12
    nothing = InputLayer((None, 3))
    with pytest.raises(ValueError, match=r"\n! a.*: \(5,\)  +-$"):
        framework.set(nothing, named("a", {"weight": np.zeros(5)}, framework))
    framework.set(nothing, {})
    assert framework.get(nothing) == framework.get(nothing, like={}) == {}


@both
def test_not_numeric(rng, framework, network):
    weights = weights_for(rng, framework)
    for value in (np.array(["a", "b"]), np.array([None, None]),
                  np.array([True, False]), np.array([1j, 2]), "text"):
        weights[f"out{framework.separator}bias"] = value
        for function in (framework.set, framework.get):
            with refused(network, "out.bias must be an array of numbers, got ",
                         TypeError):
                function(network, weights)


@both
def test_no_network(framework):
    for function in (framework.set, framework.get):
        for network in ("network", [InputLayer((3, 4)), 5]):
            with pytest.raises(TypeError, match=r"\w+\(\): network must be a "
                                                "Layer or a list of them"):
                function(network, {})


@both
def test_several_outputs(rng, float64, framework, network):
    weights = weights_for(rng, framework)
    for given_network in (network, tuple(network)):
        framework.set(randomize(given_network, rng), weights)
        found = framework.get(given_network, like=weights)
        for key, value in without(weights, "mean", "bias").items():
            assert_allclose(found[key], value)


def test_who_gets_which(network, rng, caplog):
    with caplog.at_level("INFO", "bnlasagne.weights"):
        TORCH.set(network, weights_for(rng, TORCH))
    assert "BatchNormLayer 'fc0_bn' gets the weights of fc0_bn" in caplog.text
