"""Translate parameter lists of networks with Lasagne's later layer.

That layer came with Lasagne's development version. It stores vectors, inverse
standard deviations, and all in another order.
"""

import collections
import itertools
import reprlib

import lasagne

from ..layers.layer import BatchNormLayer
from ..networks.labels import numbered_labels
from ..networks.setting import Setting, as_numbers, settable
from ..networks.walk import all_layers, checked_layers
from .comparison import Row, check_rows, described

__all__ = [
    "get_lasagne_values",
    "set_lasagne_values",
]


def get_lasagne_values(network):
    """Parameters as a network with Lasagne's later layer has them.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers of a network with layers of this package.

    Returns
    -------
    list of arrays
        What :func:`lasagne.layers.set_all_param_values` sets in a network that
        is built by ``lasagne.layers.batch_norm`` where this one is built by
        :func:`bnlasagne.batch_norm`: of each batch normalization layer, there
        are `beta`, `gamma`, `mean` and `inv_std`, as vectors. Its
        deterministic output is that of `network`, to rounding.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers.
    ValueError
        If parameters of a batch normalization layer are expressions.

    See also
    --------
    set_lasagne_values : The other way, with what does not carry over.
    """
    values = []
    for slot in _lasagne_params(network, "get_lasagne_values()"):
        if slot.role in ("mean", "std"):
            statistics = slot.layer.get_statistics()
            values.append(getattr(statistics, _LATER_NAMES[slot.role]))
        else:
            values.append(slot.param.get_value().reshape(slot.shape))
    return values


def set_lasagne_values(network, values):
    """Load parameters of a network with Lasagne's later layer.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers of a network that is built by
        :func:`bnlasagne.batch_norm` where the other is built by
        ``lasagne.layers.batch_norm``.
    values : list of arrays
        What :func:`lasagne.layers.get_all_param_values` returned for that.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers, or `values` no list of
        arrays of numbers.
    ValueError
        If number or shapes of the arrays are not those that the network needs;
        the message lists both. Or if the values cannot be stored: NaN, or
        numbers that are too large for the type of the parameter. Nothing is
        changed then.

    Notes
    -----
    The deterministic output is that of the other network, to rounding. How
    training goes on is not: see :meth:`BatchNormLayer.set_statistics`.

    Lists that were saved from networks with the original gist of this layer
    are for :func:`lasagne.layers.set_all_param_values`.
    """
    slots = _lasagne_params(network, "set_lasagne_values()")
    if not isinstance(values, (list, tuple)):
        raise TypeError("set_lasagne_values(): expected a list of arrays as "
                        "get_all_param_values() returns it, got %s."
                        % reprlib.repr(values))
    values = [as_numbers("array %d" % number, value)
              for number, value in enumerate(values)]
    theirs = [described("array %d" % number, value)
              for number, value in enumerate(values)]
    ours = ["%s: %s" % (slot.name, slot.shape) for slot in slots]
    as_here = [param.get_value(borrow=True).shape for param
               in lasagne.layers.get_all_params(network)]
    check_rows("set_lasagne_values()", "parameter list", [
        Row(*row) for row in itertools.zip_longest(
            theirs, ours, [value.shape == slot.shape for value, slot
                           in zip(values, slots)], fillvalue="")],
        [_FROM_HERE] if as_here == [value.shape for value in values] else [])
    setting = Setting("set_lasagne_values()")
    statistics = collections.OrderedDict()
    labels = numbered_labels(all_layers(checked_layers(network, "")))
    for number, (slot, value) in enumerate(zip(slots, values)):
        if slot.role in ("mean", "std"):
            found = statistics.setdefault(slot.layer, {})
            found[_LATER_NAMES[slot.role]] = value
        else:
            setting.add(
                slot.param,
                value.reshape(slot.param.get_value(borrow=True).shape),
                "array %d, for %s," % (number, slot.name))
    for layer, found in statistics.items():
        converted = layer.converted_statistics(
            found.get("mean", 0), inv_std=found.get("inv_std", 1))
        # One of them may be another layer's.
        for name, (param, value) in zip(("mean", "inv_std"), converted):
            if name in found:
                setting.add(param, value,
                            "%s: %s" % (labels[layer], name))
    setting.carry_out()


_FROM_HERE = (
    "The list has the shapes of this network's own parameters, as from a "
    "network with this package's layer, or the original one. Use "
    "lasagne.layers.set_all_param_values(network, values) for it.")

_LATER_NAMES = {"beta": "beta", "gamma": "gamma", "mean": "mean",
                "std": "inv_std"}

_Param = collections.namedtuple("_Param", "param, layer, role, name, shape")
_Param.__doc__ = """A parameter, and where it is in a network."""


def _lasagne_params(network, caller):
    """Parameters in the order of a network with Lasagne's later layer."""
    outputs = checked_layers(network, caller)
    owners, labels = {}, numbered_labels(all_layers(outputs))
    for layer in labels:
        for role in _LATER_NAMES if isinstance(layer, BatchNormLayer) else ():
            param = getattr(layer, role)
            if param is not None:
                name = "%s: %s" % (labels[layer], role)
                owners.setdefault(settable(param, name), (layer, role))
    slots = []
    for param in lasagne.layers.get_all_params(outputs):
        layer, role = owners.get(param, (None, None))
        shape = param.get_value(borrow=True).shape
        if layer is not None:
            shape = layer.get_statistics().mean.shape
        name = "inv_std for %s" % param if role == "std" else str(param)
        slots.append(_Param(param, layer, role, name, shape))
    return _ordered(slots)


def _ordered(slots):
    """With the parameters of each batch normalization layer in their order."""
    order = list(_LATER_NAMES)
    result = []
    while slots:
        layer = slots[0].layer
        length = next((i for i, slot in enumerate(slots)
                       if slot.layer is not layer), len(slots))
        run, slots = slots[:length], slots[length:]
        if layer is not None:
            run.sort(key=lambda slot: order.index(slot.role))
        result += run
    return result
