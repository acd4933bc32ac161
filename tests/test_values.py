"""What parameters are worth, and setting many at once."""

from bnlasagne.values import NotConstant, Setting, value_of

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


# --- Setting ---------------------------------------------------------------

@pytest.fixture
def variables():
    return [theano.shared(np.full(size, -1, "float32"), "v%d" % size)
            for size in (1, 2, 3)]


def assert_untouched(variables):
    for variable in variables:
        assert np.all(variable.get_value() == -1)


def test_sets_what_was_added(variables):
    setting = Setting()
    setting.add_all([(variable, np.arange(size)) for variable, size
                     in zip(variables[:2], (1, 2))])
    assert_untouched(variables)
    setting.carry_out()
    assert_array_equal(variables[0].get_value(), [0])
    assert_array_equal(variables[1].get_value(), [0, 1])
    assert variables[1].get_value().dtype == "float32"
    assert_untouched(variables[2:])


def test_value_is_the_variables_own(variables):
    value = np.zeros(1, "float32")
    setting = Setting()
    setting.add(variables[0], value)
    setting.carry_out()
    value[0] = 5
    assert variables[0].get_value() == [0]


@pytest.mark.parametrize("value", [np.zeros(2), 0, np.zeros((1, 3))])
def test_shape(variables, value):
    setting = Setting()
    setting.add(variables[0], [5])
    with pytest.raises(ValueError, match=r"v3 is of shape \(3,\), got \("):
        setting.add(variables[2], value)
    assert_untouched(variables)


def test_twice(variables):
    setting = Setting()
    setting.add(variables[1], [1, 2])
    setting.add(variables[1], np.array([1., 2.]))
    with pytest.raises(ValueError, match="v2 is shared by layers whose weights"
                                         " differ"):
        setting.add(variables[1], [1, 3])
    assert_untouched(variables)
    setting.carry_out()
    assert_array_equal(variables[1].get_value(), [1, 2])


def test_all_or_none(variables):
    setting = Setting()
    setting.add(variables[0], [5])
    with pytest.raises(ValueError, match="v2 is of type float32, which is too "
                                         "narrow for 1e"):
        setting.add(variables[1], [5, -1e300])
    assert_untouched(variables)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_not_finite(variables, number):
    setting = Setting()
    for _ in range(2):
        setting.add(variables[1], [5, number])
    setting.carry_out()
    assert_array_equal(variables[1].get_value(), [5, number])


def test_broadcastable():
    variable = theano.shared(np.zeros((1, 3)), broadcastable=(True, False))
    setting = Setting()
    setting.add(variable, np.ones((1, 3)))
    setting.carry_out()
    assert_array_equal(variable.get_value(), np.ones((1, 3)))
    assert variable.broadcastable == (True, False)
