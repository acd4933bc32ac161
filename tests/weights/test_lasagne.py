"""Parameter lists of networks with Lasagne's later layer."""

import re
from functools import partial

from bnlasagne import (
    BatchNormLayer,
    batch_norm,
    get_lasagne_values,
    set_lasagne_values,
)

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.common import later, needs_compiler, quick
from helpers.folded import randomize
from helpers.weights import (
    assert_close,
    batch_for,
    compiled,
    linear,
    network_of_names,
    refused,
)
from lasagne.layers import (
    CustomRecurrentLayer,
    DenseLayer,
    ElemwiseSumLayer,
    InputLayer,
    get_all_param_values,
    set_all_param_values,
)
from numpy.testing import assert_allclose, assert_array_equal


@pytest.fixture
def network(rng):
    return network_of_names(rng)


@pytest.fixture
def matrix():
    return InputLayer((None, 4))


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
    with refused(network) as caught:
        set_lasagne_values(network, change(lasagne_values(rng)))
    text = str(caught.value)
    assert text.startswith("set_lasagne_values(): the parameter list does not "
                           "fit the network, where marked:\n")
    for row in rows:
        assert re.search("\n" + row, text)


def test_list_of_the_gist(rng, float64, matrix):
    network = DenseLayer(batch_norm(DenseLayer(matrix, 5)), 2)
    values = get_all_param_values(network)
    with refused(network, (
            r"(?s)! array 1: \(1, 5\) .*\nThe list has the shapes of this "
            "network's own .* Use lasagne.layers.set_all_param_values"
            r"\(network, values\) for it.$")):
        set_lasagne_values(network, values)
    with pytest.raises(ValueError) as caught:
        set_lasagne_values(network, values[:-1])
    assert "set_all_param_values" not in str(caught.value)


@pytest.mark.parametrize("number, value, error, expected", [
    (1, np.full(5, np.nan), ValueError, r"^set_lasagne_values\(\): array 1, "
                                        "for n.beta, must be .* got 5 NaN"),
    (6, np.array([1, np.nan]), ValueError, r"\(\): array 6, for b, must be "),
    (3, np.full(5, 1e300), ValueError, "BatchNormLayer 'n': mean must be "),
    (4, np.zeros(5), ValueError, "BatchNormLayer 'n': inv_std must be finite "
                                 "and positive"),
    (4, np.full(5, np.nan), ValueError, "'n': inv_std must be finite"),
    (3, np.full(5, np.inf), ValueError, "'n': mean must be finite"),
    (6, np.array(["a", "b"]), TypeError, "array 6 must be an array of num"),
    (6, np.array([None, None]), TypeError, "array 6 must be an array of num"),
])
def test_lasagne_wrong_values(rng, matrix, number, value, error, expected):
    with theano.configparser.change_flags(floatX="float32"):
        network = DenseLayer(batch_norm(DenseLayer(matrix, 5), name="n"), 2)
    values = lasagne_values(rng)
    values[number] = value
    with refused(network, expected, error):
        set_lasagne_values(network, values)


@pytest.mark.parametrize("values", [None, {"a": 1}])
def test_what_is_no_list(matrix, values):
    with pytest.raises(TypeError, match=r"^set_lasagne_values\(\): values must"
                                        " be a list of arrays as get_all_pa"):
        set_lasagne_values(DenseLayer(matrix, 5), values)


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
