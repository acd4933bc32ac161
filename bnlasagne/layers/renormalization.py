"""Correct the statistics of a batch towards the running averages."""

import theano
import theano.tensor as T

__all__ = ["corrected_params", "renormalizes"]


def renormalizes(layer):
    """Tell whether a layer does batch renormalization (Ioffe, 2017)."""
    return layer.r_max != 1 or layer.d_max != 0


def corrected_params(layer, batch_mean, batch_std, gamma, beta):
    """Return the scale and shift that include the correction.

    Normalized by the batch, ``x`` becomes ``(x * r + d) * gamma + beta``. That
    is batch normalization with the scale ``r * gamma`` and the shift
    ``d * gamma + beta``, so the fused Ops do the rest. For gradients, ``r``
    and ``d`` are constants.
    """
    pattern = [axis in layer.axes for axis in range(len(layer.input_shape))]
    mean, std, gamma, beta = (
        param if param is None else T.patternbroadcast(param, pattern)
        for param in (layer.mean, layer.std, gamma, beta))
    mean, std, r_max, d_max, epsilon = (
        T.cast(value, batch_std.dtype) for value in (
            mean, std, layer.r_max, layer.d_max, layer.epsilon))
    r = T.clip((batch_std + epsilon) / (std + epsilon), 1 / r_max, r_max)
    d = T.clip((batch_mean - mean) / (std + epsilon), -d_max, d_max)
    r, d = map(theano.gradient.disconnected_grad, (r, d))
    if gamma is not None:
        r, d = r * gamma, d * gamma
    return r, d if beta is None else d + beta
