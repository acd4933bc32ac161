"""Freeze batch normalization while the rest of a network is trained."""

import copy
import warnings

from ..averages.marker import average_of
from ..graphs.needed import needed
from ..networks.labels import numbered_labels
from ..networks.linear import have_equal_graphs, output_of, overrides
from ..networks.walk import all_layers, checked_layers
from .layer import BatchNormLayer

__all__ = [
    "freeze_batch_norm",
    "unfreeze_batch_norm",
    "uses_stored_statistics",
]


def freeze_batch_norm(network, params=False, treat_as_input=None):
    """Freeze the batch normalization layers of a network.

    From now on, outputs that are built of it are normalized by the stored
    statistics there and do not update them, for training as for testing, and
    whatever flags :func:`lasagne.layers.get_output` is given. Outputs and
    functions that exist already stay as they are.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers of a network, or of the part to freeze.
    params : bool
        Whether `beta` and `gamma` also stop being trainable parameters, so
        that ``get_all_params(network, trainable=True)`` leaves them out.
    treat_as_input : list of Layer or None
        Layers to stop at: neither these nor what is below them is frozen.

    Returns
    -------
    context manager
        To freeze for the time of a ``with`` statement: in the end, all layers
        are again as they were before.

    Raises
    ------
    ValueError
        If there is no batch normalization layer that can be frozen.
    TypeError
        If `network` is no layer or list of layers.

    Warns
    -----
    UserWarning
        If a layer of a subclass does not use its stored statistics for
        testing, such as a layer that always normalizes by the batch. It is not
        frozen: its output would be another one.

    Notes
    -----
    Layers within others, such as those of a ``CustomRecurrentLayer``, are
    frozen, too. :func:`update_population_statistics` leaves the statistics of
    frozen layers as they are.

    Examples
    --------
    >>> from lasagne.layers import DenseLayer, InputLayer, get_output
    >>> from bnlasagne import batch_norm, freeze_batch_norm
    >>> layer = batch_norm(DenseLayer(InputLayer((None, 8)), 5))
    >>> with freeze_batch_norm(layer):
    ...     output = get_output(layer)  # by the stored statistics
    >>> layer.frozen
    False
    """
    layers = _freezable(_layers(network, treat_as_input, _FREEZE), network)
    before = _Restore(layers)
    for layer in layers:
        layer.frozen = True
        for param in (layer.beta, layer.gamma) if params else ():
            _stop_training(layer, param)
    return before


def unfreeze_batch_norm(network, treat_as_input=None):
    """Undo :func:`freeze_batch_norm`, parameters included.

    Parameters
    ----------
    network, treat_as_input
        See :func:`freeze_batch_norm`.

    Returns
    -------
    context manager
        To unfreeze for the time of a ``with`` statement.

    Raises
    ------
    ValueError
        If there is no batch normalization layer.
    TypeError
        If `network` is no layer or list of layers.
    """
    layers = _layers(network, treat_as_input, "unfreeze_batch_norm()")
    before = _Restore(layers)
    for layer in layers:
        layer.frozen = False
        for param in layer.params:
            if _WAS_TRAINABLE in layer.params[param]:
                layer.params[param] -= {_WAS_TRAINABLE}
                layer.params[param] |= {"trainable"}
    return before


_FREEZE = "freeze_batch_norm()"


def _freezable(layers, network):
    """The layers that can be frozen; warn of the others."""
    left = [layer for layer in layers if not uses_stored_statistics(layer)]
    if left:
        labels = numbered_labels(all_layers(checked_layers(network, _FREEZE)))
        text = ("%s: %s cannot be frozen: get_output_for() of this subclass "
                "does not normalize by the stored statistics for testing."
                % (_FREEZE, ", ".join(labels[layer] for layer in left)))
        if len(left) == len(layers):
            raise ValueError(text + " The network has no other batch "
                             "normalization layer.")
        warnings.warn(text + " It stays as it is, and the other layers are "
                      "frozen.", stacklevel=3)
    return [layer for layer in layers if layer not in left]


def uses_stored_statistics(layer):
    """Whether a layer normalizes by its stored statistics for testing.

    A layer of a subclass may not, whatever its flags are. If it does, it does
    so in training as well once it is frozen.
    """
    if not overrides(layer, BatchNormLayer, *dir(BatchNormLayer)):
        return True
    free, frozen = copy.copy(layer), copy.copy(layer)
    free.frozen, frozen.frozen = False, True
    if not have_equal_graphs(free, frozen):
        return False
    try:
        used = needed([output_of(frozen, deterministic=False)])
    except Exception:  # A method of the user's may raise any.
        return False
    return {layer.mean, layer.std} <= used and all(
        average_of(variable) is variable for variable in used)


# A tag in the place of "trainable", to tell the parameters that freezing took
# it from, from those that the user did.
_WAS_TRAINABLE = "trainable_unless_frozen"


def _stop_training(layer, param):
    if "trainable" in layer.params.get(param, ()):
        layer.params[param] -= {"trainable"}
        layer.params[param] |= {_WAS_TRAINABLE}


class _Restore(object):
    """Context manager that in the end has layers as they are now."""

    def __init__(self, layers):
        self._state = [
            (layer, layer.frozen,
             {param: set(tags) for param, tags in layer.params.items()})
            for layer in layers]

    def __enter__(self):
        return None

    def __exit__(self, *error):
        for layer, frozen, params in self._state:
            layer.frozen = frozen
            for param, tags in params.items():
                if param in layer.params:
                    layer.params[param] = tags


def _layers(network, treat_as_input, caller):
    """The batch normalization layers of a network, checked."""
    found = [layer for layer in all_layers(checked_layers(network, caller),
                                           treat_as_input or ())
             if isinstance(layer, BatchNormLayer)]
    if not found:
        raise ValueError("%s: the network has no batch normalization layer."
                         % caller)
    return found
