"""Setting several values in one step."""

from bnlasagne.networks.setting import (
    Changes,
    Setting,
    all_or_nothing,
    settable,
)

import numpy as np
import pytest
import theano
from numpy.testing import assert_array_equal

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
    for variable, size in zip(variables[:2], (1, 2)):
        setting.add(variable, np.arange(size))
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
    with pytest.raises(ValueError, match=r"v3 must have shape \(3,\), got "):
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


def test_expressions_are_not_settable(variables):
    assert settable(variables[0], "it") is variables[0]
    with pytest.raises(ValueError, match="^it is an expression"):
        settable(variables[0] + 1, "it")


def test_broadcastable():
    variable = theano.shared(np.zeros((1, 3)), broadcastable=(True, False))
    setting = Setting()
    setting.add(variable, np.ones((1, 3)))
    setting.carry_out()
    assert_array_equal(variable.get_value(), np.ones((1, 3)))
    assert variable.broadcastable == (True, False)
