"""Values of parameters, and setting several in one step."""

from bnlasagne.networks.setting import (
    Changes,
    NotConstant,
    Setting,
    all_or_nothing,
    as_numbers,
    converted,
    settable,
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


# --- all_or_nothing() ------------------------------------------------------

class Holder:
    name = "before"


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_all_or_nothing(error):
    """A function that computes in a variable's memory is undone, too."""
    first, second = theano.shared(np.zeros(2)), theano.shared(np.zeros(3))
    holder, undone = Holder(), []
    add = theano.function([], [], updates=[(second, second + 1)],
                          mode="FAST_COMPILE")
    try:
        with all_or_nothing() as changes:
            changes.callback(undone.append, "it")
            changes.set_value(first, np.ones(2))
            changes.set_value(first, np.full(2, 3.))
            changes.keep_values([second])
            second.get_value(borrow=True)[:] += 1
            add()
            changes.set_attribute(holder, "name", "after")
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        assert error
    assert_array_equal(first.get_value(), np.full(2, 0 if error else 3))
    assert_array_equal(second.get_value(), np.full(3, 0 if error else 2))
    assert holder.name == ("before" if error else "after")
    assert undone == (["it"] if error else [])


def test_changes_for_a_while():
    variable, holder = theano.shared(1.), Holder()
    changes = Changes()
    changes.set_value(variable, 2)
    changes.set_attribute(holder, "name", "after")
    assert (variable.get_value(), holder.name) == (2, "after")
    with changes:
        pass
    assert (variable.get_value(), holder.name) == (1, "before")


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
    with pytest.raises(ValueError, match="v2 must be an array of numbers, "
                                         r"which its type float32 can.*-1e\+30"
                       ):
        setting.add(variables[1], [5, -1e300])
    assert_untouched(variables)


def test_infinite(variables):
    setting = Setting()
    for _ in range(2):
        setting.add(variables[1], [5, np.inf])
    setting.carry_out()
    assert_array_equal(variables[1].get_value(), [5, np.inf])


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_not_a_number(dtype):
    variable = theano.shared(np.zeros(2, dtype), "v")
    setting = Setting("load()")
    with pytest.raises(ValueError, match=r"^load\(\): fc.W must be an array "
                                         "of numbers, got 1 NaN among 2 val"):
        setting.add(variable, [5, np.nan], "fc.W")
    setting.carry_out()
    assert_array_equal(variable.get_value(), [0, 0])


@pytest.mark.parametrize("fails", [1, 2])
def test_all_is_put_back(variables, monkeypatch, fails):
    """An error in the middle, such as one of memory, undoes the others."""
    def fail(*args, **kwargs):
        raise MemoryError

    class Holder:
        @property
        def first(self):
            return self._first

        @first.setter
        def first(self, value):
            self._first = value
            if value == fails:
                raise MemoryError

    holder = Holder()
    holder.first = 0
    setting = Setting()
    setting.add(variables[0], [5])
    setting.add(variables[1], [6, 7])
    setting.add_attribute(holder, "first", 2, "first")
    if fails == 1:
        monkeypatch.setattr(variables[1], "set_value", fail)
    with pytest.raises(MemoryError):
        setting.carry_out()
    monkeypatch.undo()
    assert_untouched(variables)
    assert holder.first == 0


def test_attributes_that_differ():
    setting, holder = Setting(), theano.shared(0)
    setting.add_attribute(holder, "name", "a", "first")
    setting.add_attribute(holder, "name", "a", "second")
    with pytest.raises(ValueError, match="third is shared by layers whose "
                                         "values differ: a and b"):
        setting.add_attribute(holder, "name", "b", "third")


# --- as_numbers() and settable() -------------------------------------------

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


def test_expressions_are_not_settable(variables):
    assert settable(variables[0], "it") is variables[0]
    with pytest.raises(ValueError, match="^it is an expression"):
        settable(variables[0] + 1, "it")


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


def test_broadcastable():
    variable = theano.shared(np.zeros((1, 3)), broadcastable=(True, False))
    setting = Setting()
    setting.add(variable, np.ones((1, 3)))
    setting.carry_out()
    assert_array_equal(variable.get_value(), np.ones((1, 3)))
    assert variable.broadcastable == (True, False)
