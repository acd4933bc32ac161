"""Set several values of parameters, all or none."""

import contextlib

import numpy as np
import theano

from .values import converted

__all__ = ["Changes", "Setting", "all_or_nothing", "settable"]


def settable(variable, name):
    """Return a shared variable; raise a ValueError if it is an expression."""
    if not isinstance(variable, theano.compile.SharedVariable):
        raise ValueError(f"{name} is an expression, which has no place for a "
                         "value of its own. Make it a shared variable.")
    return variable


class Changes(contextlib.ExitStack):
    """Change values and attributes, and put all of them back in the end.

    What was changed last is put back first. ``callback()`` adds what else has
    to be undone.
    """

    def keep_values(self, variables):
        """Have shared variables put back whose values functions change."""
        for variable in variables:
            # A copy: a function may compute in the memory of the value.
            self.callback(variable.set_value, variable.get_value())

    def set_value(self, variable, value):
        """Set a shared variable."""
        self.keep_values([variable])
        variable.set_value(value)

    def set_attribute(self, holder, name, value):
        """Set an attribute that an object has."""
        self.callback(setattr, holder, name, getattr(holder, name))
        setattr(holder, name, value)


@contextlib.contextmanager
def all_or_nothing():
    """Keep all changes of a block or, on any error, none of them."""
    with Changes() as changes:
        yield changes
        changes.pop_all()


class Setting:
    """Collect values, and set all of them or, on an error, none.

    Messages start with `caller`, the function that the user called.
    """

    def __init__(self, caller=None):
        self._prefix = "" if caller is None else f"{caller}: "
        self._values, self._attributes = {}, {}

    def add(self, variable, value, name=None):
        """Have a shared variable set to a value of its shape.

        Raises a ValueError if the variable is to be set to another value
        already, has another shape, or has a type that cannot hold the value;
        or if the value holds NaN. By default, `name` is the variable's own.
        """
        name = self._prefix + str(name or variable)
        shape = variable.get_value(borrow=True).shape
        if np.shape(value) != shape:
            raise ValueError(
                f"{name} must have shape {shape}, got {np.shape(value)}.")
        value = converted(name, value, variable.dtype)
        lost = np.sum(np.isnan(value))
        if lost:
            raise ValueError(f"{name} must be an array of numbers, got {lost} "
                             f"NaN among {value.size} values. Take weights "
                             "from before training diverged.")
        before = self._values.setdefault(variable, value)
        if not np.array_equal(before, value):
            raise ValueError(
                f"{name} is shared by layers whose weights differ. Build the "
                "layers with parameters of their own, or pass equal weights.")

    def add_attribute(self, holder, attribute, value, name):
        """Have an attribute of an object set.

        Raises a ValueError if it is to be set to another value already.
        """
        before = self._attributes.setdefault((holder, attribute), value)
        if before != value:
            raise ValueError(
                f"{self._prefix}{name} is shared by layers whose values differ"
                f": {before} and {value}. Build the layers with one each.")

    def carry_out(self):
        """Set what was added."""
        with all_or_nothing() as changes:
            for variable, value in self._values.items():
                changes.set_value(variable, value)
            for (holder, attribute), value in self._attributes.items():
                changes.set_attribute(holder, attribute, value)
