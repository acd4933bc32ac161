"""Tell how subclasses of the batch normalization layer normalize."""

import copy

from ..averages.aliases import average_of
from ..networks.outputs import have_equal_graphs, output_of, overrides
from ..theano_tools.needed import needed
from .layer import BatchNormLayer

__all__ = ["uses_stored_statistics"]


def uses_stored_statistics(layer):
    """Tell whether a layer normalizes by its running averages for testing.

    If it does, it does so in training as well once it is frozen.
    """
    if not overrides(layer, BatchNormLayer, *dir(BatchNormLayer)):
        return True
    free, frozen = copy.copy(layer), copy.copy(layer)
    free.frozen, frozen.frozen = False, True
    if not have_equal_graphs(free, frozen):
        return False
    try:
        used = needed([output_of(frozen, deterministic=False)])
    except Exception:  # A user's method may raise any.
        return False
    # None of the averages may be moved.
    return {layer.mean, layer.std} <= used and all(
        average_of(variable) is variable for variable in used)
