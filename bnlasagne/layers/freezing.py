"""Freeze batch normalization while the rest of a network is trained."""

import warnings

from ..networks.labels import numbered_labels
from ..networks.setting import Changes
from ..networks.walk import all_layers, checked_layers
from .layer import BatchNormLayer
from .subclasses import uses_stored_statistics

__all__ = ["freeze_batch_norm", "unfreeze_batch_norm"]


def freeze_batch_norm(network, params=False, treat_as_input=None):
    """Freeze the batch normalization layers of a network.

    Outputs that are built from now on use the running averages of these
    layers and do not update them: for training as for testing, and whatever
    flags :func:`lasagne.layers.get_output` is given. Outputs and functions
    that exist already stay as they are.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers of a network, or of the part to freeze.
    params : bool
        Whether `beta` and `gamma` also stop being trainable, so that
        ``get_all_params(network, trainable=True)`` leaves them out. By
        default, they stay trainable.
    treat_as_input : list of Layer or None
        Layers to stop at: neither these layers nor the layers below them are
        frozen. By default, there are none.

    Returns
    -------
    context manager
        At the end of a ``with`` statement, it puts all layers back as they
        were. Without one, the layers stay frozen.

    Raises
    ------
    ValueError
        If the network has no batch normalization layer that can be frozen.
    TypeError
        If `network` is no layer or list of layers.

    Warns
    -----
    UserWarning
        If a layer of a subclass does not use its running averages for
        testing, such as a layer that always normalizes by the batch. It is
        not frozen, because that would change its output.

    Notes
    -----
    Layers within others, such as the layers in a ``CustomRecurrentLayer``,
    are frozen, too. :func:`update_population_statistics` leaves frozen layers
    as they are.

    Examples
    --------
    >>> from lasagne.layers import DenseLayer, InputLayer, get_output
    >>> from bnlasagne import batch_norm, freeze_batch_norm
    >>> layer = batch_norm(DenseLayer(InputLayer((None, 8)), 5))
    >>> with freeze_batch_norm(layer):
    ...     output = get_output(layer)  # by the running averages
    >>> layer.frozen
    False
    """
    layers = _freezable(_layers(network, treat_as_input, _FREEZE), network)
    with Changes() as changes:
        for layer in layers:
            changes.set_attribute(layer, "frozen", True)
            for param in (layer.beta, layer.gamma) if params else ():
                _replace_tag(changes, layer, param, "trainable",
                             _WAS_TRAINABLE)
        # Put back by the user's with statement; here, on an error only.
        return changes.pop_all()


def unfreeze_batch_norm(network, treat_as_input=None):
    """Undo :func:`freeze_batch_norm`, for parameters as well.

    Parameters
    ----------
    network, treat_as_input
        See :func:`freeze_batch_norm`.

    Returns
    -------
    context manager
        At the end of a ``with`` statement, it puts all layers back as they
        were. Without one, the layers stay unfrozen.

    Raises
    ------
    ValueError
        If the network has no batch normalization layer.
    TypeError
        If `network` is no layer or list of layers.
    """
    layers = _layers(network, treat_as_input, "unfreeze_batch_norm()")
    with Changes() as changes:
        for layer in layers:
            changes.set_attribute(layer, "frozen", False)
            for param in layer.params:
                _replace_tag(changes, layer, param, _WAS_TRAINABLE,
                             "trainable")
        return changes.pop_all()


_FREEZE = "freeze_batch_norm()"


def _freezable(layers, network):
    """Return the layers that can be frozen, and warn of the others."""
    left = [layer for layer in layers if not uses_stored_statistics(layer)]
    if left:
        labels = numbered_labels(all_layers(checked_layers(network, _FREEZE)))
        text = (f"{_FREEZE}: {', '.join(labels[layer] for layer in left)} "
                "cannot be frozen: get_output_for() of a subclass does not "
                "normalize by the running averages for testing.")
        if len(left) == len(layers):
            raise ValueError(f"{text} The network has no other batch "
                             "normalization layer.")
        warnings.warn(f"{text} Only the other layers are frozen.",
                      stacklevel=3)
    return [layer for layer in layers if layer not in left]


# Replaces the tag "trainable" of frozen parameters. Unfreezing gives it back
# to these, but not to parameters that the user made not trainable.
_WAS_TRAINABLE = "trainable_unless_frozen"


def _replace_tag(changes, layer, param, old, new):
    """Replace a tag of a layer's parameter, if the parameter has it."""
    tags = layer.params.get(param, ())
    if old in tags:
        changes.callback(_set_tags, layer, param, tags)
        _set_tags(layer, param, tags - {old} | {new})


def _set_tags(layer, param, tags):
    # The user may have removed the parameter meanwhile.
    if param in layer.params:
        layer.params[param] = tags


def _layers(network, treat_as_input, caller):
    """List the batch normalization layers, of which there must be one."""
    found = [layer for layer in all_layers(checked_layers(network, caller),
                                           treat_as_input or ())
             if isinstance(layer, BatchNormLayer)]
    if not found:
        raise ValueError(f"{caller}: the network has no batch normalization "
                         "layer.")
    return found
