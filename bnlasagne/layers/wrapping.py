"""Put batch normalization on an existing layer."""

import lasagne

from ..networks.labels import label
from .layer import BatchNormLayer

__all__ = ["batch_norm"]


def batch_norm(layer, **kwargs):
    """Apply batch normalization to an existing layer.

    .. math::
        f(W x + b) \\quad \\rightarrow \\quad
        f(\\mathrm{BatchNormLayer}(W x))

    The :class:`BatchNormLayer` goes between the layer's linear part and its
    nonlinearity :math:`f`, and takes over the nonlinearity. The bias
    :math:`b` is removed: normalization would undo it, and `beta` takes its
    place.

    Parameters
    ----------
    layer : Layer
        The layer to normalize the output of. It is changed for good.
    **kwargs
        Passed on to :class:`BatchNormLayer`. By default, `nonlinearity` is
        the layer's own, and `name` is the layer's name with ``_bn`` appended.

    Returns
    -------
    BatchNormLayer
        Stacked on `layer`. Use it in the place of `layer`.

    Raises
    ------
    TypeError
        If `layer` is no layer, or a recurrent layer.
    ValueError
        If an earlier call took the layer's nonlinearity, or an argument does
        not fit the layer. After any error, `layer` is as it was.

    Notes
    -----
    A bias that is shared with other layers is removed from this layer only.

    A bias that differs from position to position (``untie_biases=True``,
    locally connected layers) is removed as well, although normalization would
    undo only its mean over the positions. To keep it, stack a
    `BatchNormLayer` on the layer by hand.

    References
    ----------
    .. [1] Ioffe, Sergey and Szegedy, Christian (2015): Batch Normalization:
           Accelerating Deep Network Training by Reducing Internal Covariate
           Shift, section 3.2. http://arxiv.org/abs/1502.03167.

    Examples
    --------
    >>> from lasagne.layers import DenseLayer, InputLayer
    >>> from lasagne.nonlinearities import rectify
    >>> from bnlasagne import batch_norm
    >>> dense = DenseLayer(InputLayer((None, 8)), 5, nonlinearity=rectify)
    >>> layer = batch_norm(dense)
    >>> layer.nonlinearity is rectify
    True
    >>> dense.b is None
    True
    """
    _check(layer)
    name = getattr(layer, "name", None)
    if kwargs.get("name") is None and name is not None:
        kwargs["name"] = name + "_bn"
    # It checks all arguments, before the layer is changed.
    wrapper = BatchNormLayer(layer, **kwargs)
    bias = getattr(layer, "b", None)
    if bias is not None and bias in layer.params:
        del layer.params[bias]
        layer.b = None
    nonlinearity = _remove_nonlinearity(layer, wrapper)
    if "nonlinearity" not in kwargs:
        wrapper.nonlinearity = nonlinearity
    return wrapper


def _check(layer):
    """Raise an error if a layer cannot be wrapped."""
    if not isinstance(layer, lasagne.layers.Layer):
        raise TypeError("batch_norm() expects a Layer instance such as a "
                        f"DenseLayer, got {layer!r}.")
    if isinstance(layer, (lasagne.layers.CustomRecurrentLayer,
                          lasagne.layers.LSTMLayer, lasagne.layers.GRULayer)):
        raise TypeError(
            f"batch_norm() cannot wrap {label(layer)}: its nonlinearity is "
            "part of the recurrence. Normalize the input of the layer with "
            "BatchNormLayer(incoming, axes=(0, 1)), and with its mask_input "
            "if it has one; or, for a CustomRecurrentLayer, wrap its "
            "input-to-hidden layer with batch_norm().")
    wrapper = getattr(layer, "_normalized_by", None)
    if wrapper is not None:
        raise ValueError(
            f"batch_norm(): {label(layer)} has no nonlinearity left. It was "
            f"wrapped before, by {wrapper}. Use that layer in its place; or "
            "stack another BatchNormLayer(layer, nonlinearity=...) on the "
            "layer.")


def _remove_nonlinearity(layer, wrapper):
    """Make a layer linear and return the nonlinearity that it had."""
    identity = lasagne.nonlinearities.identity
    nonlinearity = getattr(layer, "nonlinearity", None)
    if nonlinearity is None or nonlinearity is identity:
        return identity
    layer.nonlinearity = identity
    # A layer that never had a nonlinearity may be wrapped again.
    layer._normalized_by = label(wrapper)
    return nonlinearity
