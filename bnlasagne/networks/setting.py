"""Read the values of parameters, and set several of them in one step."""

import contextlib
import reprlib
import warnings

import numpy as np
import theano

__all__ = [
    "Changes",
    "NotConstant",
    "Setting",
    "all_or_nothing",
    "as_numbers",
    "converted",
    "settable",
    "value_of",
]


def as_numbers(name, value):
    """A value as an array of real numbers.

    Parameters
    ----------
    name : str
        For messages.
    value : array_like

    Returns
    -------
    numpy array

    Raises
    ------
    TypeError
        If the value is something else, such as text, truth values or objects.
    """
    try:
        with warnings.catch_warnings():
            # NumPy warns of lists of different lengths.
            warnings.simplefilter("error")
            array = _as_array(value)
    except Exception as error:
        raise TypeError("%s must be an array of numbers: %s"
                        % (name, error)) from error
    if array.dtype.kind not in "fiu":
        raise TypeError("%s must be an array of numbers, got %s."
                        % (name, reprlib.repr(value)))
    return array


def _as_array(value):
    if not callable(getattr(value, "detach", None)):
        return np.asarray(value)
    # A tensor of PyTorch: one to be trained, or on a GPU, is no array.
    value = value.detach().cpu()
    try:
        return np.asarray(value)
    except TypeError:
        # NumPy has no type for its bfloat16.
        return np.asarray(value.float())


_EXPECTED = {"b": "truth values", "f": "numbers", "c": "numbers"}
# The kinds of values that a type of each kind can hold.
_HELD = {"b": "b", "i": "iuf", "u": "iuf", "f": "iuf", "c": "iufc"}


def converted(name, value, dtype):
    """A copy of a value in another type, if that type can hold it.

    Parameters
    ----------
    name : str
        For messages.
    value : array_like
    dtype : str or numpy dtype
        Truth values, integers, floats or complex numbers.

    Returns
    -------
    numpy array

    Raises
    ------
    ValueError
        If the type cannot hold one of the numbers: a fraction, or one that is
        not finite or out of range, in a type of integers; one that becomes
        infinite in a narrower type of floats; a complex number in a type of
        real ones. Rounding is no reason.
    """
    value, dtype = np.asarray(value), np.dtype(dtype)
    if value.dtype.kind not in _HELD[dtype.kind]:
        found = "an array of type %s" % value.dtype
    elif dtype.kind in "iu":
        found = _no_integer(value, np.iinfo(dtype))
    else:
        found = _too_large(value, dtype)
    if found is not None:
        expected = _EXPECTED.get(dtype.kind)
        if expected is None:
            expected = "whole numbers from %d to %d" % (
                np.iinfo(dtype).min, np.iinfo(dtype).max)
        raise ValueError("%s must be an array of %s, which its type %s can "
                         "hold, got %s." % (name, expected, dtype, found))
    return np.array(value, dtype=dtype)


def _no_integer(value, limits):
    """A number that is not whole, or beyond the limits; or None."""
    if value.dtype.kind == "f":
        whole = np.isfinite(value) & (np.floor(value) == value)
        if not np.all(whole):
            return value[~whole][0]
    if not value.size:
        return None
    # Python compares integers of any size.
    extremes = int(np.min(value)), int(np.max(value))
    return next((number for number in extremes
                 if not limits.min <= number <= limits.max), None)


def _too_large(value, dtype):
    """A finite number that is infinite in a type; or None."""
    if dtype.kind == "b":
        return None
    with np.errstate(over="ignore"):
        lost = np.isinf(value.astype(dtype)) & ~np.isinf(value)
    return value[lost][0] if np.any(lost) else None


class NotConstant(ValueError):
    """The value of an expression differs from call to call."""


def value_of(variable, name):
    """The value of a parameter.

    Parameters
    ----------
    variable : number, array, Theano shared variable or expression
    name : str
        For messages.

    Returns
    -------
    numpy array
        The caller's own.

    Raises
    ------
    NotConstant
        If it is an expression that depends on an input of the network, or on
        something that functions update by themselves, such as random numbers.
    """
    if not isinstance(variable, theano.Variable):
        return np.array(variable)
    for source in theano.gof.graph.inputs([variable]):
        reason = _why_not_constant(source)
        if reason:
            raise NotConstant("%s has no value of its own: %s %s"
                              % (name, source, reason))
    if isinstance(variable, theano.compile.SharedVariable):
        return np.array(variable.get_value())
    # It is called once, and compiles sooner without C.
    function = theano.function([], variable,
                               mode=theano.Mode("py", "fast_compile"))
    return np.array(function())


def settable(variable, name):
    """A parameter, unless it is an expression.

    Parameters
    ----------
    variable : Theano shared variable or expression
    name : str
        For messages.

    Returns
    -------
    Theano shared variable

    Raises
    ------
    ValueError
        If it is an expression.
    """
    if not isinstance(variable, theano.compile.SharedVariable):
        raise ValueError("%s is an expression, which has no place for a value "
                         "of its own. Make it a shared variable." % name)
    return variable


def _why_not_constant(source):
    if getattr(source, "default_update", None) is not None:
        return "is updated by each function"
    if not isinstance(source, (theano.Constant,
                               theano.compile.SharedVariable)):
        return "is an input of the network"
    return None


class Changes(contextlib.ExitStack):
    """Change values and attributes, and put all of them back in the end.

    Use it as a context manager; :func:`all_or_nothing` keeps the changes
    unless there is an error. ``callback()`` adds what else has to be undone.
    What was changed last is put back first.
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
    """Keep all changes of a block or, on any error, none of them.

    Examples
    --------
    >>> import theano
    >>> from bnlasagne.networks.setting import all_or_nothing
    >>> variable = theano.shared(1.)
    >>> with all_or_nothing() as changes:
    ...     changes.set_value(variable, 2)
    ...     raise ValueError("no")
    Traceback (most recent call last):
    ValueError: no
    >>> variable.get_value()
    array(1.)
    """
    with Changes() as changes:
        yield changes
        changes.pop_all()


class Setting:
    """Values that are to be set: all of them or, on an error, none.

    Parameters
    ----------
    caller : str or None
        The function that the user called, for messages.
    """

    def __init__(self, caller=None):
        self._prefix = "" if caller is None else caller + ": "
        self._values, self._attributes = {}, {}

    def add(self, variable, value, name=None):
        """Have a variable set to a value of its shape.

        Parameters
        ----------
        variable : Theano shared variable
        value : array_like
        name : str or None
            For messages. By default, the variable's own.

        Raises
        ------
        ValueError
            If the variable is to be set to another value already, has another
            shape, or has a type that cannot hold the value; or if the value
            holds NaN.
        """
        name = self._prefix + str(name or variable)
        shape = variable.get_value(borrow=True).shape
        if np.shape(value) != shape:
            raise ValueError("%s is of shape %s, got %s."
                             % (name, shape, np.shape(value)))
        value = converted(name, value, variable.dtype)
        if value.dtype.kind in "fc" and np.any(np.isnan(value)):
            raise ValueError("%s must be an array of numbers, got %d NaN among"
                             " %d values. Take weights from before training "
                             "diverged." % (name, np.sum(np.isnan(value)),
                                            value.size))
        before = self._values.setdefault(variable, value)
        if not np.array_equal(before, value):
            raise ValueError("%s is shared by layers whose weights differ."
                             % name)

    def add_all(self, values):
        for variable, value in values:
            self.add(variable, value)

    def add_attribute(self, holder, attribute, value, name):
        """Have an attribute of an object set.

        Raises
        ------
        ValueError
            If it is to be set to another value already.
        """
        before = self._attributes.setdefault((holder, attribute), value)
        if before != value:
            raise ValueError("%s%s is shared by layers whose values differ: "
                             "%s and %s." % (self._prefix, name, before,
                                             value))

    def carry_out(self):
        with all_or_nothing() as changes:
            for variable, value in self._values.items():
                changes.set_value(variable, value)
            for (holder, attribute), value in self._attributes.items():
                changes.set_attribute(holder, attribute, value)
