"""Finding the layer for the weights of each module."""

import re
from collections import OrderedDict

from bnlasagne import (
    BatchNormLayer,
    batch_norm,
    get_keras_weights,
    get_torch_state_dict,
    set_keras_weights,
    set_lasagne_values,
    set_torch_state_dict,
)

import numpy as np
import pytest
import theano
from helpers.common import later, quick
from helpers.weights import (
    KERAS,
    TORCH,
    assert_close,
    batch_for,
    bits,
    both,
    chain,
    compiled,
    group,
    linear,
    named,
    network_of_names,
    normalized,
    random_norm,
    randomize,
)
from lasagne.layers import DenseLayer, InputLayer
from numpy.testing import assert_allclose, assert_array_equal


@pytest.fixture
def matrix():
    return InputLayer((None, 4))


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
    # The longest end that they have in common.
    (["d", "m/d"], ["outer/m/d", "outer/d"], [1, 0]),
    (["d", "m/d"], ["n/m/d", "q/d"], [1, 0]),
    # One that is the whole name.
    (["d", None], ["m/d", "d"], [1, 0]),
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


def weights_of(modules):
    """Of PyTorch's linear modules, with the number of each."""
    return OrderedDict(
        (module + "." + name, np.full(shape, number))
        for number, module in enumerate(modules)
        for name, shape in (("weight", (3, 3)), ("bias", 3)))


NAMES_OF_A_NETWORK = ["conv1", "layer1.0.conv1", "layer1.1.conv1", "fc"]


@pytest.mark.parametrize("layers, modules", [
    (["conv1", "layer1.0.conv1", "layer1.1.conv1", "fc"], each)
    for each in (
        ["module." + name for name in NAMES_OF_A_NETWORK],
        ["model.backbone." + name for name in NAMES_OF_A_NETWORK],
        ["backbone.conv1", "backbone.layer1.0.conv1",
         "backbone.layer1.1.conv1", "head.fc"],
        ["module.conv1", "layer1.0.conv1", "module.layer1.1.conv1", "fc"],
        ["a.conv1", "b.layer1.0.conv1", "c.layer1.1.conv1", "d.e.fc"])
] + [
    # Names of a network that is a part of another, or has parts of its own.
    (["model.a", "model.b.a"], ["a", "b.a"]),
    (["model.a", "model.b.a"], ["model.a", "model.b.a"]),
    (["model.a", "model.b.a"], ["module.model.a", "module.model.b.a"]),
    (["net.model.a", "net.model.b"], ["ema.model.a", "ema.model.b"]),
    (["model.a", "model.b"], ["backbone.a", "head.b"]),
])
def test_names_with_more_before_them(float64, layers, modules):
    for order in (1, -1):
        network = chain(*layers)
        weights = weights_of(modules[::order])
        set_torch_state_dict(network[-1], weights)
        assert [layer.W.get_value()[0, 0] for layer in network] == list(
            range(len(layers)))[::order]
        found = get_torch_state_dict(network[-1], like=weights)
        for key, value in weights.items():
            assert_array_equal(found[key], value)


@pytest.mark.parametrize("layers, modules, name, both_names", [
    (["d", None], ["m.d", "n.d"], "d", "'m.d' and 'n.d'"),
    ([None, "d"], ["outer.m.d", "outer.n.d"], "d",
     "'outer.m.d' and 'outer.n.d'"),
    (["a", "b"], ["model.a", "ema.a"], "a", "'model.a' and 'ema.a'"),
    (["c.d", "d"], ["x.c.d", "y.c.d"], "c.d", "'x.c.d' and 'y.c.d'"),
])
def test_names_of_several(float64, layers, modules, name, both_names):
    network = chain(*layers)[-1]
    before = bits(network)
    for function in (set_torch_state_dict, get_torch_state_dict):
        with pytest.raises(ValueError, match=(
                r"%s\(\): the name of DenseLayer '%s' is the end of several "
                "names in the state_dict: %s. Give the layer the whole name"
                % (function.__name__, name, both_names))):
            function(network, weights_of(modules))
    assert bits(network) == before


@both
@pytest.mark.parametrize("modules", [
    ["dense", "dense_1", "dense_10", "dense_2"], ["m|dense_10", "m|dense_2"],
    ["a10|b", "a2|b"], ["0", "10", "2"],
    # Sorted by groups, though not as a whole.
    ["d10|x", "d10-b|x", "d2|x"]])
def test_order_of_the_alphabet(float64, framework, modules):
    network = chain(*[None] * len(modules))
    modules = [module.replace("|", framework.separator) for module in modules]
    weights = OrderedDict()
    for number, module in enumerate(modules):
        weights.update(named(module, OrderedDict([
            ("weight", np.full((3, 3), number)),
            ("bias", np.full(3, number))]), framework))
    before = bits(network[-1])
    with pytest.raises(ValueError, match=(
            "_dict|weights.*: the names in the .* are in the order of the "
            "alphabet, with '.*10.*' before '.*2.*'. .*Name the layers, or "
            "pass ")):
        framework.set(network[-1], weights)
    assert bits(network[-1]) == before
    # Where names decide, it does not matter.
    named_ones = chain(*modules)
    framework.set(named_ones[-1], weights)
    assert [layer.W.get_value()[0, 0] for layer in named_ones] == list(
        range(len(modules)))
    # Other orders are those of a model.
    framework.set(network[-1], OrderedDict(reversed(weights.items())))


@both
def test_orders_that_are_not_those_of_a_file(float64, framework):
    for modules in (["a9", "a10"], ["a10", "b2"], ["b10", "b9", "a"],
                    ["d|1", "d|a"], ["d", "d_1", "d_2"]):
        network = chain(*[None] * len(modules))
        weights = OrderedDict()
        for number, module in enumerate(modules):
            weights.update(named(
                module.replace("|", framework.separator), OrderedDict([
                    ("weight", np.full((3, 3), number)),
                    ("bias", np.full(3, number))]), framework))
        framework.set(network[-1], weights)
        assert [layer.W.get_value()[0, 0] for layer in network] == list(
            range(len(modules)))


class Module(object):
    """What has weights, and other things that are trained with it."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state


A_STATE = {"fc.weight": np.ones((5, 4)), "fc.bias": np.ones(5)}
ADAM = {"state": {0: {"step": np.array(3), "exp_avg": np.ones((5, 4))}},
        "param_groups": [{"lr": 0.1, "params": [0]}]}


@pytest.mark.parametrize("checkpoint, paths", [
    ({"epoch": 3, "state_dict": A_STATE, "optimizer": ADAM}, "['state_dict']"),
    ({"model": A_STATE, "optimizer": ADAM}, "['model']"),
    ({"state_dict": A_STATE}, "['state_dict']"),
    ({"epoch": 3, "global_step": 5, "pytorch-lightning_version": "2.1",
      "state_dict": A_STATE, "loops": {"fit_loop": {"state_dict": {}}},
      "callbacks": {}, "optimizer_states": [ADAM], "lr_schedulers": []},
     "['state_dict']"),
    ({"net": {"model": A_STATE}}, "['net']['model']"),
    ({"model": A_STATE, "ema": A_STATE}, "['model'] or checkpoint['ema']"),
    ({"model": Module(A_STATE), "optimizer": Module(ADAM)},
     "['model'].state_dict()"),
    ({"optimizer": ADAM}, None),
])
def test_checkpoint(matrix, checkpoint, paths):
    layer = DenseLayer(matrix, 5, name="fc")
    before = bits(layer)
    pass_this = "one of its parts that has the weights" if paths is None \
        else "checkpoint" + paths
    for function in (set_torch_state_dict, get_torch_state_dict):
        with pytest.raises(TypeError) as caught:
            function(layer, checkpoint)
        text = str(caught.value)
        assert text.startswith(
            "%s(): expected a state_dict, got a checkpoint with the keys ['%s'"
            % (function.__name__, list(checkpoint)[0]))
        assert text.endswith("]. Pass %s." % pass_this)
    assert bits(layer) == before


def test_module_itself(matrix):
    with pytest.raises(TypeError, match="expected a state_dict, got <.*"
                                        r"Pass module.state_dict\(\)\."):
        set_torch_state_dict(DenseLayer(matrix, 5), Module(A_STATE))


def without(weights, *names):
    return OrderedDict(item for item in weights.items()
                       if not item[0].endswith(names))


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
    (KERAS, {}, ("gamma",),
     "'m/n' has no gamma (scale=False). Build BatchNormLayer 'n' with "
     "gamma=None."),
    (KERAS, {}, ("beta",),
     "'m/n' has no beta (center=False). Build BatchNormLayer 'n' with "
     "beta=None."),
    (KERAS, {}, ("beta", "gamma"),
     "'m/n' has no gamma and no beta (scale=False and center=False). Build "
     "BatchNormLayer 'n' with gamma=None and beta=None."),
    (KERAS, {}, ("moving_mean", "moving_variance"),
     "'m/n' has no moving_mean and no moving_variance. It is another kind of "
     "normalization than BatchNormalization."),
    (KERAS, {"beta": None, "gamma": None}, (),
     "'m/n' has a gamma and a beta. Build BatchNormLayer 'n' without "
     "gamma=None and beta=None."),
])
def test_what_one_side_lacks(rng, matrix, framework, options, left_out, hint):
    layer = BatchNormLayer(matrix, name="n", **options)
    weights = without(named("m%sn" % framework.separator, random_norm(rng, 4),
                            framework), *left_out)
    before = bits(layer)
    with pytest.raises(ValueError) as caught:
        framework.set(layer, weights)
    assert ("\n" + hint) in str(caught.value)
    assert bits(layer) == before
    # A wrong name is something else.
    other = BatchNormLayer(BatchNormLayer(matrix, name="n", **options),
                           name="p", **options)
    with pytest.raises(ValueError) as caught:
        framework.set(other, dict(weights, **named(
            "q", random_norm(rng, 4), framework)))
    assert "'q'" not in str(caught.value)


@pytest.mark.parametrize("left_out, hint", [
    ("gamma", None), ("beta", None),
    ("gamma, beta", "has no gamma and no beta (scale=False and center=False)"),
])
def test_lists_of_what_one_side_lacks(rng, float64, matrix, left_out, hint):
    """An array without a name may be either."""
    values = [value for key, value in random_norm(rng, 4).items()
              if {"weight": "gamma", "bias": "beta"}.get(key, "-")
              not in left_out]
    layer = BatchNormLayer(matrix, name="n")
    before = bits(layer)
    with pytest.raises(ValueError) as caught:
        set_keras_weights(layer, {"n": values})
    text = str(caught.value)
    assert (hint or "'n' has no gamma or no beta (scale=False or center=False)"
            ". Build BatchNormLayer 'n' with gamma=None or beta=None.") in text
    assert re.search(r"\n  n/\d: \(4,\) +BatchNormLayer 'n', var: ", text)
    assert bits(layer) == before


@both
@pytest.mark.parametrize("left_out", ["b", None])
def test_bias_that_one_side_lacks(framework, matrix, left_out):
    layer = DenseLayer(matrix, 5, name="a")
    if left_out:
        layer = DenseLayer(matrix, 5, b=None, name="a")
    weights = named("a", OrderedDict([("weight", np.ones(
        (5, 4))), ("bias", np.ones(5))]), framework)
    if not left_out:
        weights = without(weights, "bias")
    with pytest.raises(ValueError, match=(
            r"\n'a' has a bias. Build DenseLayer 'a' without b=None."
            if left_out else r"\n'a' has no bias \((use_)?bias=False\). Build "
            "DenseLayer 'a' with b=None.")):
        framework.set(layer, weights)


def test_kind_of_one_array(rng, float64, matrix):
    """A scale without statistics, or weights of a dense layer that is flat."""
    network = BatchNormLayer(DenseLayer(matrix, 4, name="fc"), name="n")
    weights = {"fc.weight": np.ones(16), "fc.bias": np.ones(4)}
    weights.update(named("n", random_norm(rng, 4), TORCH))
    with pytest.raises(ValueError, match=r"\n! fc.weight: \(16,\) +DenseLayer "
                                         "'fc', W: ") as caught:
        set_torch_state_dict(network, weights)
    assert str(caught.value).count("\n!") == 1
    network = BatchNormLayer(DenseLayer(matrix, 4))
    weights = {"0.weight": np.ones((4, 4)), "0.bias": np.ones(4),
               "1.weight": np.ones(4), "1.bias": np.ones(4)}
    with pytest.raises(ValueError, match="'1' has no running_mean and no "):
        set_torch_state_dict(network, weights)


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
    weights = {"fc.weight": np.ones((4, 4)), "fc.bias": np.ones(4)}
    weights.update(named("n", random_norm(rng, 4), TORCH))
    weights[key].flat[1] = value
    before = bits(network)
    with pytest.raises(ValueError, match=r"^set_torch_state_dict\(\): "
                       + expected):
        set_torch_state_dict(network, weights)
    assert bits(network) == before


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


@pytest.fixture
def network(rng):
    return network_of_names(rng)


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
    if "expected" in expected or "Of" in str(weights):
        assert str(caught.value).startswith(set_weights.__name__ + "(): ")
