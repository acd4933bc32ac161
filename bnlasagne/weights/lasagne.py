"""Take parameter lists to and from networks with Lasagne's later layer.

That layer came with Lasagne's development version. It stores vectors, inverse
standard deviations, and all in another order.
"""

import collections
import itertools
import reprlib

import lasagne

from ..layers.layer import BatchNormLayer
from ..networks.labels import numbered_labels
from ..networks.setting import Setting, settable
from ..networks.values import as_numbers
from ..networks.walk import all_layers, checked_layers
from .matching import compare

__all__ = ["get_lasagne_values", "set_lasagne_values"]


def get_lasagne_values(network):
    """Get parameters as a network with Lasagne's later layer has them.

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
    for param in _params(network, "get_lasagne_values()"):
        if param.role in ("mean", "std"):
            statistics = param.layer.get_statistics()
            values.append(getattr(statistics, _LATER_NAMES[param.role]))
        else:
            values.append(param.variable.get_value().reshape(param.shape))
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
    params = _params(network, "set_lasagne_values()")
    if not isinstance(values, (list, tuple)):
        raise TypeError(
            "set_lasagne_values(): values must be a list of arrays as "
            f"get_all_param_values() returns it, got {reprlib.repr(values)}.")
    values = [as_numbers(f"set_lasagne_values(): array {number}", value)
              for number, value in enumerate(values)]
    own = [variable.get_value(borrow=True).shape
           for variable in lasagne.layers.get_all_params(network)]
    compare("set_lasagne_values()", "parameter list", itertools.zip_longest(
        [(f"array {number}", value.shape)
         for number, value in enumerate(values)],
        [(param.name, param.shape) for param in params]),
        [_FROM_HERE] if own == [value.shape for value in values] else [])
    setting, statistics = Setting("set_lasagne_values()"), {}
    for number, (param, value) in enumerate(zip(params, values)):
        if param.role in ("mean", "std"):
            statistics.setdefault(param.layer, {})[param.role] = param, value
        else:
            setting.add(
                param.variable,
                value.reshape(param.variable.get_value(borrow=True).shape),
                f"array {number}, for {param.name},")
    for layer, found in statistics.items():
        _add_statistics(setting, layer, found)
    setting.carry_out()


def _add_statistics(setting, layer, found):
    """Have running averages of a layer set: one of them, or both."""
    values = {role: value for role, (_, value) in found.items()}
    text = next(param.label for param, _ in found.values())
    converted = layer.converted_statistics(
        values.get("mean", 0), inv_std=values.get("std", 1),
        text=f"set_lasagne_values(): {text}")
    for role, (variable, value) in zip(("mean", "std"), converted):
        # One of them may be another layer's.
        if role in found:
            setting.add(variable, value,
                        f"{found[role][0].label}: {_LATER_NAMES[role]}")


_FROM_HERE = (
    "The list has the shapes of this network's own parameters, as from a "
    "network with this package's layer, or the original one. Use "
    "lasagne.layers.set_all_param_values(network, values) for it.")

# In the order of the later layer.
_LATER_NAMES = {"beta": "beta", "gamma": "gamma", "mean": "mean",
                "std": "inv_std"}

_Param = collections.namedtuple(
    "_Param", "variable, name, shape, layer, label, role",
    defaults=(None, None, None))
_Param.__doc__ = """Hold a parameter, and its batch normalization layer."""


def _params(network, caller):
    """List parameters in the order of a network with Lasagne's later layer."""
    outputs = checked_layers(network, caller)
    owners = {}
    for layer, text in numbered_labels(all_layers(outputs)).items():
        for role in _LATER_NAMES if isinstance(layer, BatchNormLayer) else ():
            variable = getattr(layer, role)
            if variable is not None:
                owners.setdefault(settable(variable, f"{text}: {role}"),
                                  (layer, text, role))
    params = []
    for variable in lasagne.layers.get_all_params(outputs):
        name, shape = str(variable), variable.get_value(borrow=True).shape
        owner = owners.get(variable, ())
        if owner:
            layer, _, role = owner
            name = f"inv_std for {name}" if role == "std" else name
            shape = layer.get_statistics().mean.shape
        params.append(_Param(variable, name, shape, *owner))
    order = [None, *_LATER_NAMES]
    return [param for _, run in itertools.groupby(params, lambda each:
                                                  each.layer)
            for param in sorted(run, key=lambda each: order.index(each.role))]
