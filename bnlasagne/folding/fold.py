"""Fold the batch normalization layers of a network.

For testing, a batch normalization layer computes ``scale * x + shift`` with
constants. The linear layer before it, or after it, can do the same by other
weights and another bias.
"""

import collections
import logging

import numpy as np

from ..layers.layer import BatchNormLayer
from ..networks.outputs import overrides
from ..networks.walk import checked_layers
from .network import LeftInPlace, Network
from .params import Registry
from .plans import is_batch_norm, plan_for

__all__ = ["Folding", "fold_batch_norm"]

_log = logging.getLogger(__package__)


class Folding(collections.namedtuple("Folding", "layer, into, text")):
    """Tell what became of a batch normalization layer.

    Attributes
    ----------
    layer : Layer
        The batch normalization layer, in the original network.
    into : Layer or None
        The layer that it was folded into, in the original network. None if
        it was left in place.
    text : str
        A sentence that says so, with the reasons if it was left in place.
    """

    __slots__ = ()

    def __str__(self):
        return self.text


def fold_batch_norm(network, return_report=False):
    """Copy a network for inference, without its batch normalization layers.

    .. math::
        f((W x + b) s + t) = f((W s) x + (b s + t))

    with :math:`s = \\gamma / (\\sigma + \\epsilon)` and
    :math:`t = \\beta - \\mu s` by the stored averages. Each layer is folded
    into the dense, convolutional, network-in-network or locally connected
    layer whose output it normalizes, which takes over its nonlinearity; or
    else into such a layer that it feeds. If neither is exact, the batch
    normalization layer stays in place.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers. The network stays as it is.
    return_report : bool
        Whether to return what became of each batch normalization layer, too.

    Returns
    -------
    network : Layer or list of Layer
        The output layer or layers of the new network. It has parameters of its
        own, and the input layers of the original. Its deterministic output is
        that of the original, to rounding.
    report : list of Folding
        If `return_report`: one for each batch normalization layer, in the
        order of :func:`lasagne.layers.get_all_layers`, and then for those
        within other layers. ``str()`` makes a sentence of each.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers.

    Notes
    -----
    A layer is folded only if the result is exact; the report gives the reasons
    why others stay in place. It stays if the layer before it has a
    nonlinearity or a type that is not known, if the output of that layer is
    used elsewhere or returned as well, if statistics differ along an axis
    along which weights do not, or if parameters depend on inputs of the
    network. It is folded into the layer *after* it if it has no nonlinearity
    and feeds nothing else; but not through zero padding, nor with a mean of
    more than 100 standard deviations, which would cost precision.

    Parameters may be expressions, or shared with other layers: the folded
    layer has weights of its own. Lasagne's own later batch normalization
    layers are folded as well; the ``NonlinearityLayer`` on them stays.

    Functions that refer to layers or parameters, such as a nonlinearity with a
    parameter, are copied together with these, and so are objects that are
    called as functions. Other functions stay the same objects. Shared
    variables that only functions refer to, and no layer has among its
    parameters or attributes, stay the same: to set one later changes both
    networks. What functions reach through other objects, such as
    ``model.layer.W``, stays that of the original network.

    A layer of a subclass is folded, or has another layer folded into it, if
    its deterministic output is that of the class that it extends. So is a
    convolutional layer with a ``convolution`` function of its own, if that
    computes what Lasagne's default computes.

    Layers that stay in place are frozen (see :func:`freeze_batch_norm`), but
    for Lasagne's own and for those of a class with a ``get_output_for()`` of
    its own. Build outputs with ``deterministic=True`` all the same, if there
    is dropout.

    The copy has no parameters that nothing uses, such as those that weights
    were computed from before.

    The logger ``bnlasagne.folding`` logs the report as well. Layers that stay
    in place are warnings, which Python shows by default.

    References
    ----------
    .. [1] Ioffe, Sergey and Szegedy, Christian (2015): Batch Normalization:
           Accelerating Deep Network Training by Reducing Internal Covariate
           Shift, section 3.1 and algorithm 2.
           http://arxiv.org/abs/1502.03167.

    Examples
    --------
    >>> from lasagne.layers import DenseLayer, InputLayer, get_all_layers
    >>> from bnlasagne import batch_norm, fold_batch_norm
    >>> layer = batch_norm(DenseLayer(InputLayer((None, 8)), 5, name="fc"))
    >>> folded, report = fold_batch_norm(layer, return_report=True)
    >>> print(report[0])
    BatchNormLayer 'fc_bn' folded into DenseLayer 'fc' before it
    >>> [param.name for param in folded.get_params()]
    ['fc.W', 'fc.b']
    """
    copied = Network(checked_layers(network, "fold_batch_norm()"))
    report = _fold_all(copied)
    for entry in report:
        _log.log(logging.INFO if entry.into else logging.WARNING, "%s", entry)
    folded = copied.outputs if isinstance(network, (list, tuple)) \
        else copied.outputs[0]
    return (folded, report) if return_report else folded


def _fold_all(network):
    """Fold the layers of a copy; return the report."""
    registry = Registry()
    left = [layer for layer in network.originals if is_batch_norm(layer)]
    report = dict.fromkeys(left)
    changed = True
    # Again: the layer that was in the way may have been folded since.
    while changed:
        report.update((bn, _fold(network, bn, registry)) for bn in left)
        remaining = [bn for bn in left if report[bn].into is None]
        changed = len(remaining) < len(left)
        left = remaining
    for bn in left:
        if network.gives_flags_to(bn) and isinstance(bn, BatchNormLayer) and \
                not overrides(bn, BatchNormLayer, "get_output_for"):
            bn.frozen = True
    registry.register(network.referred())
    return list(report.values())


def _fold(network, bn, registry):
    """Fold a layer, or find the reason why it is left in place."""
    original, label = network.originals[bn], network.labels[bn]
    try:
        # Weights that would not be finite are refused later.
        with np.errstate(all="ignore"):
            plan = plan_for(network, bn)
    except LeftInPlace as reason:
        return Folding(original, None, f"{label} left in place: {reason}")
    registry.folds(bn, plan.layer)
    plan.carry_out(plan.layer)
    network.bypass(bn)
    return Folding(
        original, network.originals[plan.layer],
        f"{label} folded into {network.labels[plan.layer]} {plan.where}")
