"""Values of parameters, and values that are checked."""

from bnlasagne.networks.values import (
    NotConstant,
    as_numbers,
    converted,
    value_of,
)

import numpy as np
import pytest
import theano
import theano.tensor as T
from numpy.testing import assert_array_equal
from theano.sandbox.rng_mrg import MRG_RandomStreams
from theano.tensor.shared_randomstreams import RandomStreams

# --- value_of() ------------------------------------------------------------

@pytest.mark.parametrize("make, expected", [
    (lambda: 3, 3),
    (lambda: [1, 2], [1, 2]),
    (lambda: np.arange(3), [0, 1, 2]),
    (lambda: T.constant([1, 2]), [1, 2]),
    (lambda: theano.shared(np.arange(3)), [0, 1, 2]),
    (lambda: 2 * theano.shared(np.arange(3)) + 1, [1, 3, 5]),
    (lambda: theano.shared(np.eye(2, 3)).T, [[1, 0], [0, 1], [0, 0]]),
    (lambda: T.arange(3), [0, 1, 2]),
])
def test_value(make, expected):
    found = value_of(make(), "it")
    assert type(found) is np.ndarray
    assert_array_equal(found, expected)


def test_value_of_today():
    variable = theano.shared(np.arange(3.))
    double = 2 * variable
    variable.set_value(np.ones(3))
    assert_array_equal(value_of(double, "it"), [2, 2, 2])


def test_type_stays(floatX):
    variable = theano.shared(np.ones(2, floatX))
    for each in (variable, variable * 2):
        assert value_of(each, "it").dtype == floatX


@pytest.mark.parametrize("make", [lambda value: value, theano.shared,
                                  lambda value: theano.shared(value) + 0])
def test_value_is_the_callers_own(make):
    source = np.zeros(3)
    variable = make(source)
    value_of(variable, "it")[:] = 5
    assert_array_equal(source, np.zeros(3))
    assert_array_equal(value_of(variable, "it"), np.zeros(3))


@pytest.mark.parametrize("make, reason", [
    (lambda: T.vector("v"), "v is an input of the network"),
    (lambda: T.vector("v") + theano.shared(np.ones(2)), "v is an input of"),
    (lambda: theano.shared(np.ones(2)) * MRG_RandomStreams(1).normal((2,)),
     "is updated by each function"),
    (lambda: RandomStreams(1).normal((2,)), "is updated by each function"),
])
def test_not_constant(make, reason):
    with pytest.raises(NotConstant,
                       match="^it has no value of its own: .*" + reason):
        value_of(make(), "it")
    assert issubclass(NotConstant, ValueError)


def test_updates_itself():
    counter = theano.shared(1.)
    counter.default_update = counter + 1
    for variable in (counter, 2 * counter):
        with pytest.raises(NotConstant, match="is updated by each function"):
            value_of(variable, "it")
    assert counter.get_value() == 1


# --- as_numbers() --------------------------------------------------------

@pytest.mark.parametrize("value", [
    "1", [True], [None], [[1], [1, 2]], [1j], np.array([object()])])
def test_no_numbers(value):
    with pytest.raises(TypeError, match="^it must be an array of numbers"):
        as_numbers("it", value)


@pytest.mark.parametrize("value", [1, [1.5], np.ones((2, 1), "uint8")])
def test_numbers(value):
    assert_array_equal(as_numbers("it", value), value)


def test_tensor_with_a_gradient():
    class Tensor:
        """Of PyTorch, of a type that NumPy does not know."""

        def detach(self):
            return self

        cpu = detach

        def float(self):
            return [1.5]

        def __array__(self, *args, **kwargs):
            raise TypeError("Got unsupported ScalarType BFloat16")

    assert_array_equal(as_numbers("it", Tensor()), [1.5])


# --- converted() -----------------------------------------------------------

WIDE = np.finfo("float64").max


@pytest.mark.parametrize("value, dtype", [
    ([1., -2., 0.], "int8"), ([255.], "uint8"), ([2. ** 62], "int64"),
    (np.array([2 ** 63], "uint64"), "uint64"), ([3], "float16"),
    ([1.1], "float16"), ([np.inf, np.nan], "float16"), ([65504.], "float16"),
    ([1], "complex64"), ([1j], "complex128"), ([True, False], "bool"),
    (np.zeros((0, 3)), "int32"), (np.array(5.), "int8"), ([-0.], "uint8"),
    (np.array([2 ** 53 + 1]), "float32"),
])
def test_held(value, dtype):
    found = converted("it", value, dtype)
    assert found.dtype == dtype and found.shape == np.shape(value)
    assert_array_equal(found, np.asarray(value).astype(dtype))


@pytest.mark.parametrize("value, dtype, expected, found", [
    ([1, .5], "int64", "whole numbers from -9223372036854775808 to", "0.5"),
    ([np.nan], "int32", "whole numbers from", "nan"),
    ([np.inf], "int32", "whole numbers from", "inf"),
    ([-1], "uint8", "whole numbers from 0 to 255", "-1"),
    ([256.], "uint8", "whole numbers from 0 to 255", "256"),
    (np.array([2. ** 63]), "int64", "whole numbers", "9223372036854775808"),
    (np.array([2 ** 63], "uint64"), "int64", "whole", "9223372036854775808"),
    (np.array([300], "float16"), "int8", "whole numbers", "300"),
    ([True], "int8", "whole numbers", "an array of type bool"),
    ([1], "bool", "truth values", "an array of type int64"),
    ([True], "float32", "numbers", "an array of type bool"),
    ([1j], "float32", "numbers", "an array of type complex128"),
    ([1j], "int32", "whole numbers", "an array of type complex128"),
    ([0., WIDE], "float32", "numbers", "1.79"),
    ([1e5], "float16", "numbers", "100000.0"),
    ([WIDE * 1j], "complex64", "numbers", "1.79"),
    (["a"], "float32", "numbers", "an array of type <U1"),
])
def test_not_held(value, dtype, expected, found):
    with pytest.raises(ValueError) as caught:
        converted("it", value, dtype)
    text = str(caught.value)
    assert text.startswith("it must be an array of " + expected)
    assert "its type %s can hold" % dtype in text
    assert found in text.partition(", got ")[2]
