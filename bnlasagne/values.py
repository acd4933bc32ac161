"""What parameters are worth: to read where they are constant, to set at once.
"""

import collections
import reprlib
import warnings

import numpy as np
import theano

__all__ = [
    "NotConstant",
    "Setting",
    "as_numbers",
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
        If it is something else, such as text, truth values or objects.
    """
    try:
        with warnings.catch_warnings():
            # That is how NumPy tells of lists of different lengths.
            warnings.simplefilter("error")
            array = np.asarray(value)
    except Exception as error:
        # Such as that of PyTorch for tensors that NumPy has no type for.
        raise TypeError("%s must be an array of numbers: %s"
                        % (name, error)) from error
    if array.dtype.kind not in "fiu":
        raise TypeError("%s must be an array of numbers, got %s."
                        % (name, reprlib.repr(value)))
    return array


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
    # Called once: without C, it is there sooner.
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


class Setting(object):
    """Shared variables that are to be set: all of them or, on an error, none.
    """

    def __init__(self):
        self._values = collections.OrderedDict()

    def add(self, variable, value):
        """Have a variable set to a value of its shape.

        Raises
        ------
        ValueError
            If it is to be set to another value already, has another shape, or
            cannot hold numbers as large.
        """
        shape = variable.get_value(borrow=True).shape
        if np.shape(value) != shape:
            raise ValueError("%s is of shape %s, got %s."
                             % (variable, shape, np.shape(value)))
        with np.errstate(over="ignore"):
            converted = np.array(value, dtype=variable.dtype)
        if np.any(np.isinf(converted) & ~np.isinf(value)):
            largest = np.max(np.abs(value))
            raise ValueError("%s is of type %s, which is too narrow for %s."
                             % (variable, variable.dtype, largest))
        before = self._values.setdefault(variable, converted)
        if not np.all((before == converted) | (before != before)):
            raise ValueError("%s is shared by layers whose weights differ."
                             % variable)

    def add_all(self, values):
        for variable, value in values:
            self.add(variable, value)

    def carry_out(self):
        for variable, value in self._values.items():
            variable.set_value(value)
