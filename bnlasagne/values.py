"""What parameters are worth: to read where they are constant, to set at once.
"""

import numpy as np
import theano

__all__ = [
    "NotConstant",
    "assign",
    "value_of",
]


class NotConstant(ValueError):
    """The value of an expression differs from call to call."""


def value_of(variable):
    """The value of a parameter.

    Parameters
    ----------
    variable : number, array, Theano shared variable or expression

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
        _check_constant(source, variable)
    if isinstance(variable, theano.compile.SharedVariable):
        return np.array(variable.get_value())
    # Called once: without C, it is there sooner.
    function = theano.function([], variable,
                               mode=theano.Mode("py", "fast_compile"))
    return np.array(function())


def _check_constant(source, variable):
    what = "it" if source is variable else "%s of it" % source
    if getattr(source, "default_update", None) is not None:
        raise NotConstant("%s is updated by each function" % what)
    if not isinstance(source, (theano.Constant,
                               theano.compile.SharedVariable)):
        raise NotConstant("%s is an input of the network" % what)


def assign(values):
    """Set shared variables, all of them or, on an error, none.

    Parameters
    ----------
    values : list of (Theano shared variable, array)
        Of shapes that the caller has checked.
    """
    checked = [(variable, variable.type.filter(
        np.array(value, dtype=variable.dtype))) for variable, value in values]
    for variable, value in checked:
        variable.set_value(value)
