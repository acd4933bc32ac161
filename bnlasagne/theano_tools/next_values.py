"""Read what shared variables become as running averages move."""

import theano
from theano.gof.graph import inputs

__all__ = ["moving_variables", "next_value"]


def next_value(variable):
    """Return what a variable becomes as averages move; None if it stays.

    A default update of the user's own counts as well.
    """
    value = getattr(variable.tag, "next_value", None)
    return getattr(variable, "default_update", None) if value is None \
        else value


def moving_variables(alpha):
    """List the shared variables in a weight that move on with the averages.

    `alpha` may be a number, which has none.
    """
    found, stack = [], [alpha]
    while stack:
        variable = stack.pop()
        for root in inputs([variable]) if isinstance(
                variable, theano.Variable) else ():
            if root not in found and next_value(root) is not None:
                found.append(root)
                stack.append(next_value(root))
    return found
