"""get_statistics() and set_statistics(): conventions of other layers."""

from bnlasagne import BatchNormLayer, batch_norm

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.common import later, tensor
from helpers.layers import apply, params
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lasagne.layers import DenseLayer, InputLayer, get_output
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("quick")


CLOSE = {"float32": {"rtol": 1e-5, "atol": 1e-5},
         "float64": {"rtol": 1e-12, "atol": 1e-12}}

# The output of a layer of each convention

def by_std(x, mean, std, gamma, beta, epsilon):
    return (x - mean) / (std + epsilon) * gamma + beta


def by_var(x, mean, var, gamma, beta, epsilon):
    """Of PyTorch, Keras and ONNX."""
    return (x - mean) / np.sqrt(var + epsilon) * gamma + beta


def by_inv_std(x, mean, inv_std, gamma, beta, epsilon):
    """Of Lasagne's later layer, whose inv_std includes epsilon."""
    return (x - mean) * (gamma * inv_std) + beta


THEIRS = {"std": by_std, "var": by_var, "inv_std": by_inv_std}


def make(shape, rng, **kwargs):
    """A layer with a scale and a shift."""
    layer = BatchNormLayer((None,) + shape, **kwargs)
    gamma, beta = rng.normal(size=(2,) + layer.param_shape())
    layer.set_values(gamma=gamma, beta=beta)
    return layer


def batch_for(layer, rng):
    return np.asarray(rng.normal(3, 2, size=(5,) + layer.input_shape[1:]),
                      theano.config.floatX)


def check_output(layer, rng, mean, value, theirs, epsilon):
    """The layer's output for testing is that of another layer."""
    batch = batch_for(layer, rng)
    if not hasattr(layer, "compiled"):
        x = tensor(batch)
        layer.compiled = theano.function(
            [x], layer.get_output_for(x, deterministic=True))
    shape = layer.param_shape()
    expected = theirs(batch.astype("float64"), np.reshape(mean, shape),
                      np.reshape(value, shape), layer.gamma.get_value(),
                      layer.beta.get_value(), epsilon)
    assert_allclose(layer.compiled(batch), expected,
                    **CLOSE[theano.config.floatX])


# The output is that of the other layer

small = st.sampled_from([0, 1e-5, 1e-3, 0.5]) | st.floats(1e-6, 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(list(THEIRS)), theirs=small, data=st.data())
@pytest.mark.parametrize("ours", [0, 1e-4, 0.01, 2])
def test_there_and_back(floatX, ours, layers, name, theirs, data):
    if (floatX, ours) not in layers:
        layers[floatX, ours] = make((4,), np.random.RandomState(1),
                                    epsilon=ours)
    layer, rng = layers[floatX, ours], np.random.RandomState(2)
    mean, value = (np.array(data.draw(st.lists(
        st.floats(*limits), min_size=4, max_size=4)))
        for limits in ((-2, 2), (0.3, 3)))
    layer.set_statistics(mean, epsilon=theirs, **{name: value})
    check_output(layer, rng, mean, value, THEIRS[name], theirs)
    found = layer.get_statistics(epsilon=theirs)
    assert [each.dtype for each in found] == [floatX] * 4
    assert [each.shape for each in found] == [(4,)] * 4
    assert_allclose(found.mean, mean, **CLOSE[floatX])
    assert_allclose(getattr(found, name), value, **CLOSE[floatX])
    # All of them, not only the one that was set.
    for each, function in THEIRS.items():
        check_output(layer, rng, found.mean, getattr(found, each), function,
                     theirs)


@pytest.fixture(scope="module")
def layers():
    """Layers whose functions are compiled once for many examples."""
    return {}


@pytest.mark.parametrize("ours", [0, 0.01, 2])
@pytest.mark.parametrize("name, value", [("std", 3), ("var", 9)])
def test_statistics_of_data(rng, float64, name, value, ours):
    layer = make((4,), rng, epsilon=ours)
    layer.set_statistics(1, **{name: value})
    assert_allclose(layer.std.get_value(), np.full((1, 4), 3.), rtol=1e-15)
    check_output(layer, rng, np.ones(4), np.full(4, 3), by_std, ours)
    found = layer.get_statistics()
    assert_allclose(found.std, np.full(4, 3), rtol=1e-15)
    assert_allclose(found.var, np.full(4, 9), rtol=1e-15)
    assert_allclose(found.inv_std, np.full(4, 1 / (3 + ours)), rtol=1e-15)


def test_inverse_has_its_epsilon_in_it(float64):
    layer = BatchNormLayer((None, 2), epsilon=0.5)
    for epsilon in (None, 0, 1e-4):
        layer.set_statistics([1, 2], inv_std=[0.5, 0.25], epsilon=epsilon)
        assert_array_equal(layer.std.get_value(), [[1.5, 3.5]])
        assert_array_equal(layer.get_statistics(epsilon).inv_std, [0.5, 0.25])


@pytest.mark.parametrize("name, value, divisor", [
    ("var", 0., 1e-5 ** 0.5), ("var", 1e-12, (1e-5 + 1e-12) ** 0.5),
    ("std", 0., 1e-5), ("inv_std", 1e4, 1e-4)])
def test_less_than_our_epsilon(rng, float64, name, value, divisor):
    layer = make((3,), rng)
    layer.set_statistics(1, epsilon=1e-5, **{name: value})
    assert np.all(layer.std.get_value() < 0)
    check_output(layer, rng, np.ones(3), np.full(3, divisor), by_std, 0)
    found = layer.get_statistics(epsilon=1e-5)
    assert_allclose(getattr(found, name), value, atol=1e-16, rtol=1e-11)
    # And such a layer's own go in again.
    for epsilon in (1e-5, None):
        found = layer.get_statistics(epsilon)
        layer.set_statistics(0, std=1)
        layer.set_statistics(found.mean, std=found.std, epsilon=epsilon)
        check_output(layer, rng, np.ones(3), np.full(3, divisor), by_std, 0)


def test_less_than_their_epsilon(rng, float64):
    layer = make((3,), rng, epsilon=1e-4, std=0.1)
    found = layer.get_statistics(epsilon=0.5)
    assert np.all(found.var < 0) and np.all(found.std < 0)
    for name, function in THEIRS.items():
        value = getattr(found, name)
        check_output(layer, rng, found.mean, value, function, 0.5)
        other = make((3,), rng)
        other.set_statistics(found.mean, epsilon=0.5, **{name: value})
        check_output(other, rng, found.mean, value, function, 0.5)


def test_no_divisor(float64):
    layer = BatchNormLayer((None, 2), epsilon=0, std=[0., 2.])
    found = layer.get_statistics()
    assert_array_equal(found.inv_std, [np.inf, 0.5])
    assert_array_equal(found.var, [0, 4])


@pytest.mark.parametrize("epsilon", [
    lambda: theano.shared(0.25),
    lambda: theano.shared(np.float32(0.5)) ** 2,
    lambda: T.constant(0.25),
    lambda: np.array(0.25),
])
def test_symbolic_epsilon(rng, float64, epsilon):
    layer = make((3,), rng, epsilon=epsilon())
    mean, var = rng.normal(size=3), rng.uniform(1, 2, 3)
    layer.set_statistics(mean, var=var, epsilon=1e-3)
    assert_allclose(layer.std.get_value()[0], np.sqrt(var + 1e-3) - 0.25)
    check_output(layer, rng, mean, var, by_var, 1e-3)
    assert_allclose(layer.get_statistics(1e-3).var, var)


def test_epsilon_of_a_later_day(rng, float64):
    epsilon = theano.shared(0.25)
    layer = make((3,), rng, epsilon=epsilon)
    epsilon.set_value(0.5)
    layer.set_statistics(0, inv_std=0.5)
    assert_array_equal(layer.std.get_value(), np.full((1, 3), 1.5))


# Shapes

@pytest.mark.parametrize("shape, axes, short", [
    ((4,), None, (4,)),
    ((4,), (0, 1), ()),
    ((3, 2, 5), "auto", (3,)),
    ((3, 2, 5), 0, (3, 2, 5)),
    ((3, 2, 5), (0, -1), (3, 2)),
    ((3, 2, 5), (-2, -3, 0), (5,)),
    ((3, 2, 5), (0, 1, 2, 3), ()),
    ((6, 5), (0, 1), (5,)),
])
def test_shapes(rng, float64, shape, axes, short):
    layer = make(shape, rng, axes=axes)
    mean, var = rng.normal(size=short), rng.uniform(1, 2, short)
    for form in (short, layer.param_shape()):
        layer.set_statistics(0, std=1)
        layer.set_statistics(mean.reshape(form), var=var.reshape(form),
                             epsilon=1e-3)
        check_output(layer, rng, mean, var, by_var, 1e-3)
    found = layer.get_statistics(1e-3)
    assert [each.shape for each in found] == [short] * 4
    assert_allclose(found.var, var)
    # One number for all, and what is not of NumPy.
    layer.set_statistics(mean.tolist(), std=3)
    assert_array_equal(layer.std.get_value(), np.full(layer.param_shape(), 3))
    assert_array_equal(layer.get_statistics().mean, mean)


def test_whole_numbers(rng, floatX):
    layer = make((2,), rng)
    layer.set_statistics(np.array([1, 2], "int8"), var=np.array([3, 8], "u2"),
                         epsilon=np.float32(1))
    assert_allclose(layer.get_statistics().std, [1.99, 2.99], rtol=1e-6)
    assert layer.mean.dtype == layer.std.dtype == floatX


def test_arrays_are_the_callers_own(float64):
    layer = BatchNormLayer((None, 2))
    mean, std = np.zeros((1, 2)), np.ones((1, 2))
    layer.set_statistics(mean, std=std)
    mean[:] = std[:] = 7
    for each in layer.get_statistics():
        each[...] = 5
    assert_array_equal(layer.mean.get_value(), [[0, 0]])
    assert_array_equal(layer.std.get_value(), [[1, 1]])


def test_the_rest_stays(rng, float64):
    layer = make((3,), rng)
    gamma, beta = layer.gamma.get_value(), layer.beta.get_value()
    layer.set_statistics(1, std=2)
    assert_array_equal(layer.gamma.get_value(), gamma)
    assert_array_equal(layer.beta.get_value(), beta)


def test_without_scale_and_shift(rng, float64):
    layer = BatchNormLayer((None, 3), gamma=None, beta=None)
    mean, var = rng.normal(size=3), rng.uniform(1, 2, 3)
    layer.set_statistics(mean, var=var, epsilon=1e-3)
    batch = batch_for(layer, rng)
    output, = apply(layer, batch, deterministic=True)
    assert_allclose(output, by_var(batch, mean, var, 1, 0, 1e-3))


def test_function_from_before_sees_them(rng, float64):
    x = T.matrix()
    layer = batch_norm(DenseLayer(InputLayer((None, 3), x), 2,
                                  W=np.ones((3, 2))))
    function = theano.function([x], get_output(layer, deterministic=True))
    layer.set_statistics(-1, var=3, epsilon=1)
    assert_allclose(function(np.ones((1, 3))), [[2, 2]])


# Errors

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("arguments, expected", [
    ({}, "expected one of std, var and inv_std, got none"),
    ({"std": 1, "var": 1}, "expected one of .* got std and var"),
    ({"std": 1, "var": 1, "inv_std": 1}, "expected .*std and var and inv_std"),
    ({"var": [1, 2]}, r"var must have shape \(1, 3\) or \(3,\), got \(2,\)"),
    ({"mean": np.ones((3, 1)), "std": 1}, r"mean must have shape \(1, 3\)"),
    ({"std": np.ones((1, 1, 3))}, r"std must have shape .*\(1, 1, 3\)"),
    ({"mean": [1, NAN, 0], "std": 1}, "mean must be finite, got .*nan"),
    ({"mean": -INF, "std": 1}, "mean must be finite"),
    ({"mean": None, "std": 1}, "mean must be finite, got None"),
    ({"std": [1, 2, NAN]}, "std must be finite and zero or more, got .*nan"),
    ({"var": [1, 2, INF]}, "var must be finite and zero or more, got .*inf"),
    ({"inv_std": [1, 2, NAN]}, "inv_std must be finite and positive.*nan"),
    ({"inv_std": INF}, "inv_std must be finite and positive, got .*inf"),
    ({"inv_std": [1, 0, 2]}, r"inv_std must be finite and positive.*\[0\.\]"),
    ({"inv_std": -1}, "inv_std must be finite and positive"),
    ({"std": [1, -2, 3]}, r"std must be .*zero or more, got \[-2\.\]"),
    ({"std": [1, -2, 3], "epsilon": 2},
     "std must be finite and positive with epsilon=2 added"),
    ({"var": [1, -1e-3, 3]}, "var must be finite and zero or more"),
    ({"var": [1, -1e-3, 3], "epsilon": 1e-3},
     "var must be finite and positive with epsilon=0.001 added"),
    ({"std": 1, "epsilon": -1e-3}, "epsilon must be a finite number from 0"),
    ({"var": 1, "epsilon": NAN}, "epsilon must be .*got nan"),
    ({"inv_std": 1, "epsilon": INF}, "epsilon must be .*got inf"),
    ({"var": 1, "epsilon": "0.1"}, "epsilon must be .*or None, got '0.1'"),
])
def test_wrong_values(float64, arguments, expected):
    layer = BatchNormLayer((None, 3), mean=[1, 2, 3], std=4, name="norm")
    before = params(layer)
    with pytest.raises(ValueError, match="BatchNormLayer 'norm': " + expected):
        layer.set_statistics(**dict({"mean": 0}, **arguments))
    assert_array_equal(params(layer), before)


@pytest.mark.parametrize("arguments", [
    {"mean": "3", "std": 1}, {"mean": True, "std": 1},
    {"mean": T.vector(), "std": 1}, {"mean": 0, "var": {"a": 1}},
    {"mean": 0, "inv_std": ["1", 1, 2]}, {"mean": 0, "std": [[1], [2, 3]]},
    {"mean": 0, "var": np.array([1j, 2, 3])},
    {"mean": 0, "std": np.array([True, True, False])},
    {"mean": 0, "inv_std": np.array([1, 2, 3], object)}])
def test_not_numeric(float64, arguments):
    layer = BatchNormLayer((None, 3), mean=[1, 2, 3], std=4, name="norm")
    before = params(layer)
    with pytest.raises(TypeError, match="'norm': (mean|std|var|inv_std) must "
                                        "be an array of numbers"):
        layer.set_statistics(**arguments)
    assert_array_equal(params(layer), before)


@pytest.mark.parametrize("epsilon", [-1e-3, NAN, INF, "0.1"])
def test_epsilon_to_get_for(epsilon):
    layer = BatchNormLayer((None, 3), name="norm")
    with pytest.raises(ValueError, match="'norm': epsilon must be a finite "
                                         "number from 0 on, or None, got "):
        layer.get_statistics(epsilon)


@later
def test_expressions(float64):
    source = theano.shared(np.full((1, 3), 4.), broadcastable=(True, False))
    for name in ("mean", "std"):
        layer = BatchNormLayer((None, 3), name="norm", **{name: source / 2})
        assert_array_equal(getattr(layer.get_statistics(), name), [2, 2, 2])
        with pytest.raises(ValueError, match="'norm': %s is an expression, "
                           "which has no place for a value" % name):
            layer.set_statistics(0, std=1)
        other = layer.std if name == "mean" else layer.mean
        assert_array_equal(other.get_value(), np.full((1, 3), name == "mean"))
        assert_array_equal(source.get_value(), np.full((1, 3), 4))


@later
def test_no_value_of_their_own(float64):
    layer = BatchNormLayer((None, 3), mean=T.matrix("m"), name="norm")
    with pytest.raises(ValueError, match="'norm': mean has no value of its own"
                                         ".*is an input"):
        layer.get_statistics()


def test_epsilon_without_value(float64):
    layer = BatchNormLayer((None, 3), epsilon=T.scalar("e"), name="norm")
    for use in (layer.get_statistics, lambda: layer.set_statistics(5, std=1)):
        with pytest.raises(ValueError, match="'norm': epsilon has no value"):
            use()
    assert_array_equal(layer.mean.get_value(), np.zeros((1, 3)))


@pytest.mark.parametrize("dtype, arguments", [
    ("float32", {"inv_std": [1, 1e10, 1]}),
    ("float32", {"var": [1, 1e-12, 1], "epsilon": 1e-12}),
    ("float16", {"inv_std": [1, 1e6, 1]}),
])
def test_divisors_that_are_lost_beside_epsilon(dtype, arguments):
    with theano.configparser.change_flags(floatX=dtype):
        layer = BatchNormLayer((None, 3), mean=[1, 2, 3], std=4, name="norm")
        before = params(layer)
        with pytest.raises(ValueError, match="BatchNormLayer 'norm': .*Build "
                                             "the layer with another epsilon"):
            layer.set_statistics(0, **arguments)
        assert_array_equal(params(layer), before)
        layer = BatchNormLayer((None, 3), epsilon=1e-9)
        if dtype == "float32":
            layer.set_statistics(0, **arguments)


def test_zero_std_of_another_layer(float64):
    layer = BatchNormLayer((None, 3), name="norm")
    for values in ({"var": 0, "epsilon": 0}, {"std": 0, "epsilon": 0}):
        with pytest.raises(ValueError, match="positive with epsilon=0 added"):
            layer.set_statistics(0, **values)
    # Of data, it is no matter.
    layer.set_statistics(0, var=0)
    assert_array_equal(layer.std.get_value(), np.zeros((1, 3)))
