"""Read what a shared variable becomes as running averages move."""

__all__ = ["next_value"]


def next_value(variable):
    """What a variable in a layer's `alpha` becomes as averages move.

    Parameters
    ----------
    variable : Theano variable

    Returns
    -------
    Theano variable or None
        None if it stays. A default update of the user's own counts as well.
    """
    value = getattr(variable.tag, "next_value", None)
    return getattr(variable, "default_update", None) if value is None \
        else value
