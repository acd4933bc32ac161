"""Have Theano's functions update stored variables through aliases of them.

An alias is another variable with the memory of a stored one. Theano finds the
aliases in a graph, sees that they have a ``default_update``, and makes it an
output of the function. That ``default_update`` is a placeholder,
:class:`UpdatedAverage`. It depends on the alias alone, so it stays valid
whatever users do to the graph; :mod:`bnlasagne.averages.automatic` replaces it
when a function is made.
"""

import collections
import copy

import theano
from theano.compile.sharedvalue import SharedVariable

__all__ = ["Alias", "UpdatedAverage", "aliases_among", "application_of",
           "average_of", "new_alias"]


class UpdatedAverage(theano.Op):
    """Hold the place of a stored variable's value after a function ran.

    Its input is the value before. On its own it computes nothing new.
    """

    __props__ = ()
    # No C code, so the empty __props__ costs no compilation.

    def make_node(self, average):
        return theano.Apply(self, [average], [average.type()])

    def perform(self, node, inputs, output_storage):
        # Only ever run for Theano's test values.
        output_storage[0][0] = copy.copy(inputs[0])

    def connection_pattern(self, node):
        return [[False]]

    def R_op(self, inputs, eval_points):
        # For a loop, whose states all have a derivative.
        return [inputs[0].zeros_like()]

    def inputs_by_value(self, node):
        """See :mod:`bnlasagne.theano_tools.needed`."""
        return []


def new_alias(variable, application, automatic):
    """Make an alias of a stored variable for the application of a number.

    If it is `automatic`, functions that the alias is part of update the
    variable by themselves.
    """
    alias = variable.clone()
    alias.tag.application = application
    alias.tag.average = variable
    if automatic:
        alias.default_update = UpdatedAverage()(alias)
    return alias


def application_of(variable):
    """Return the number of an alias's application; None for others."""
    return getattr(variable.tag, "application", None)


def average_of(variable):
    """Return the variable of an alias, or the variable itself."""
    return getattr(variable.tag, "average", variable)


# What a variable stands for: the memory that holds its value, and the
# application that it is an alias for, or None for the stored variable itself.
Alias = collections.namedtuple("Alias", "container application")


def aliases_among(variables):
    """Map each shared variable among some variables to its `Alias`."""
    return {variable: Alias(variable.container, application_of(variable))
            for variable in variables if isinstance(variable, SharedVariable)}
