"""Weights to and from Lasagne's later layer, PyTorch and Keras.

Nothing of these is imported: weights come and go as NumPy arrays.

How statistics translate is in :mod:`conventions`; how a framework names
weights and orders their axes, in :mod:`frameworks`.
"""

import collections
import collections.abc
import itertools
import logging
import reprlib

import lasagne
import numpy as np
import theano

from .comparison import Row, check_rows, described
from .frameworks import Keras, Torch
from .layer import BatchNormLayer, label
from .linear import LocallyConnected, NetworkInNetwork, is_linear, linear_of
from .networks import all_layers, checked_layers, inputs_of
from .values import Setting, as_numbers, value_of

__all__ = [
    "get_keras_weights",
    "get_lasagne_values",
    "get_torch_state_dict",
    "set_keras_weights",
    "set_lasagne_values",
    "set_torch_state_dict",
]


_log = logging.getLogger(__name__)


# Lasagne's later layer

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
        the message lists both. Nothing is changed then.

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
    check_rows("set_lasagne_values()", "parameter list", [
        Row(*row) for row in itertools.zip_longest(
            theirs, ours, [value.shape == slot.shape for value, slot
                           in zip(values, slots)], fillvalue="")])
    setting, statistics = Setting(), collections.OrderedDict()
    for slot, value in zip(slots, values):
        if slot.role in ("mean", "std"):
            found = statistics.setdefault(slot.layer, {})
            found[_LATER_NAMES[slot.role]] = value
        else:
            setting.add(slot.param, value.reshape(
                slot.param.get_value(borrow=True).shape))
    for layer, found in statistics.items():
        converted = layer.converted_statistics(
            found.get("mean", 0), inv_std=found.get("inv_std", 1))
        # One of them may be another layer's.
        setting.add_all(pair for name, pair in zip(("mean", "inv_std"),
                                                   converted) if name in found)
    setting.carry_out()


_LATER_NAMES = {"beta": "beta", "gamma": "gamma", "mean": "mean",
                "std": "inv_std"}

_Param = collections.namedtuple("_Param", "param, layer, role, name, shape")
_Param.__doc__ = """A parameter, and where it is in a network."""


def _lasagne_params(network, caller):
    """Parameters in the order of a network with Lasagne's later layer."""
    outputs = checked_layers(network, caller)
    owners = {}
    for layer in all_layers(outputs):
        for role in _LATER_NAMES if isinstance(layer, BatchNormLayer) else ():
            if getattr(layer, role) is not None:
                owners.setdefault(_settable(layer, role), (layer, role))
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


# PyTorch and Keras

def get_torch_state_dict(network, like=None, epsilon=1e-5):
    """Weights of a network as PyTorch's modules have them.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers of a network of dense, network-in-network,
        convolutional (transposed and dilated, too) and batch normalization
        layers, and of others without parameters.
    like : dict or None
        The ``state_dict()`` of the module that they are for. It tells names,
        and where a bias of zeros or a scale of ones is wanted. By default,
        modules have the names of the layers.
    epsilon : number
        The ``eps`` of the batch normalization modules, which is not among
        their weights.

    Returns
    -------
    OrderedDict of str to array
        What ``module.load_state_dict()`` takes when each array has become a
        tensor by ``torch.from_numpy()``. The module then computes in
        evaluation what the network does with ``deterministic=True``, to
        rounding.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers.
    ValueError
        If a layer with parameters is of another type or, without `like`, has
        no name; or if `like` does not fit: the message then lists both sides.

    See also
    --------
    set_torch_state_dict : The other way, with how layers find their modules.
    """
    return _get(Torch(), network, like, epsilon, "get_torch_state_dict()")


def set_torch_state_dict(network, state_dict, epsilon=1e-5):
    """Load the weights of a PyTorch module.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers of a network that computes the same, built
        of dense, network-in-network, convolutional (transposed and dilated,
        too) and batch normalization layers, and others without parameters.
    state_dict : dict of str to array
        The module's ``state_dict()``. Tensors will do as well, if NumPy can
        make arrays of them: those on the CPU.
    epsilon : number
        The ``eps`` of the module's batch normalization.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers, or `state_dict` no dict of
        arrays of numbers.
    ValueError
        If a layer with parameters is of another type, or what one side has
        and what the other needs are not the same in names and shapes: the
        message lists both. Nothing is changed then.

    Notes
    -----
    A layer whose name is that of a module gets its weights; it may also be the
    end of one's, after a dot, as long as it is no other's. If any layers find
    their weights so, all that have a name must. The others get those of the
    others, in order: of the ``state_dict``, which is the order in which
    modules were made, and of :func:`lasagne.layers.get_all_layers`, which goes
    from input to output. Where these differ, name the layers. All this goes
    for batch normalization layers, and for the others, separately.

    Build layers without what a module lacks: ``b=None``, or ``beta=None,
    gamma=None`` where it is not affine.

    Filters are turned round for layers that compute true convolutions, as
    Lasagne's do by default, while PyTorch computes cross-correlations. The
    bias of a convolution before batch normalization, which
    :func:`bnlasagne.batch_norm` leaves out, goes into the running mean.

    The deterministic output is what the module computes in evaluation, to
    rounding. How training goes on is not the same: see
    :meth:`BatchNormLayer.set_statistics`. Momentum is not among the weights,
    either: PyTorch's is this package's `alpha`.
    """
    _set(Torch(), network, state_dict, epsilon, "set_torch_state_dict()")


def get_keras_weights(network, like=None, epsilon=1e-3,
                      data_format=None):
    """Weights of a network as Keras' layers have them.

    Parameters
    ----------
    network : Layer or list of Layer
        As in :func:`get_torch_state_dict`.
    like : dict or None
        The weights of the model that they are for, as in
        :func:`set_keras_weights`. It tells names, and where a bias of zeros or
        a scale of ones is wanted. By default, names are those of the layers.
    epsilon : number
        The `epsilon` of the batch normalization layers there.
    data_format : None, 'channels_last' or 'channels_first'
        Where the model has the channels of images. By default, last, for what
        convolution, pooling or batch normalization tells to be images.

    Returns
    -------
    OrderedDict of str to array
        From names such as ``'conv/kernel'``, or those of `like`.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers.
    ValueError
        If a layer with parameters is of another type or, without `like`, has
        no name; if `like` does not fit: the message then lists both sides; or
        if the order of features cannot be told.

    See also
    --------
    set_keras_weights : The other way, with more on names and on features.
    """
    return _get(Keras(data_format), network, like, epsilon,
                "get_keras_weights()")


def set_keras_weights(network, weights, epsilon=1e-3,
                      data_format=None):
    """Load the weights of a Keras model.

    Parameters
    ----------
    network : Layer or list of Layer
        As in :func:`set_torch_state_dict`.
    weights : dict of str to array, dict or list
        Such as ``{w.path: w.numpy() for w in model.weights}``, with names like
        ``'model/conv/kernel'``, or with ``w.name`` in Keras 2, like
        ``'conv/kernel:0'``. The weights of a layer may also come as a dict, or
        as a list: ``{layer.name: layer.get_weights() for layer in
        model.layers}``.
    epsilon : number
        The `epsilon` of the model's batch normalization layers.
    data_format : None, 'channels_last' or 'channels_first'
        Where the model has the channels of images. By default, last, for what
        convolution, pooling or batch normalization tells to be images.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers, or `weights` no dict of
        arrays of numbers.
    ValueError
        If a layer with parameters is of another type, if what one side has
        and what the other needs are not the same in names and shapes: the
        message lists both; or if the order of features cannot be told. Nothing
        is changed then.

    Notes
    -----
    How layers find their weights, and what does not carry over, is as in
    :func:`set_torch_state_dict`, with slashes for dots.

    Where the model has channels last and flattens images, it has the features
    in another order than Lasagne, where channels come first. Weights of dense
    layers, and parameters of batch normalization layers, are put in order, if
    they follow on a flattening directly, or through dropout, nonlinearities,
    batch normalization, sums or concatenation. Other ways from images to
    features or back are refused. If nothing tells whether what is flattened
    are images, `data_format` must.
    """
    _set(Keras(data_format), network, weights, epsilon, "set_keras_weights()")


def _get(framework, network, like, epsilon, caller):
    slots = _slots(framework, network, caller)
    if like is None:
        return _named_by_layers(framework, slots, epsilon, caller)
    pairs = _match(framework, slots, like, caller)
    _check(pairs, {slot: slot.neutral() for slot in slots}, framework, caller)
    found = {}
    for pair in pairs:
        values = pair.slot.weights(epsilon)
        for role, (key, value) in pair.weights.items():
            found[key] = values[role].reshape(value.shape) \
                if role in values \
                else np.full(value.shape, _NEUTRAL[role], value.dtype)
    # What is ignored stays as it is.
    return framework.restored(
        {key: np.array(found.get(key, value))
         for key, value in framework.flat(like).items()}, like)


_NEUTRAL = {"b": 0, "beta": 0, "gamma": 1}


def _named_by_layers(framework, slots, epsilon, caller):
    slots = _distinct(slots)
    names = collections.Counter(slot.layer.name for slot in slots)
    for slot in slots:
        if slot.layer.name is None or names[slot.layer.name] > 1:
            raise ValueError("%s: %s has no name, or that of another. Name "
                             "all layers with parameters, or pass `like`."
                             % (caller, label(slot.layer)))
    return collections.OrderedDict(
        (slot.layer.name + framework.separator + slot.names[role], value)
        for slot in slots for role, value in slot.weights(epsilon).items())


def _set(framework, network, weights, epsilon, caller):
    slots = _slots(framework, network, caller)
    pairs = _match(framework, slots, weights, caller)
    absorbing = _absorbing(slots, pairs, checked_layers(network, caller))
    _check(pairs, {slot: slot.neutral() for slot in absorbing}, framework,
           caller)
    setting, biases = Setting(), {}
    for pair in pairs:
        values = {role: value for role, (_, value) in pair.weights.items()}
        if pair.slot in absorbing and "b" in values:
            bias = values.pop("b")
            biases.update((norm, bias) for norm in absorbing[pair.slot])
        pair.slot.set(setting, values, epsilon, biases.get(pair.slot.layer, 0))
    setting.carry_out()


class _Linear(object):
    """A linear layer, and its weights in another framework.

    Attributes
    ----------
    layer : Layer
    names : dict of str to str
        Of its parameters there.
    """

    def __init__(self, layer, linear, framework):
        self.layer = layer
        self.names = {role: framework.names[role] for role in ("W", "b")}
        self._linear = linear
        self._framework = framework

    def weights(self, epsilon=None):
        """Weights for there, by the names of parameters here."""
        found = collections.OrderedDict()
        found["W"] = np.ascontiguousarray(self._framework.to_theirs(
            self._linear, _value(self.layer, "W")))
        if self.layer.b is not None:
            found["b"] = _value(self.layer, "b")
        return found

    def neutral(self):
        """What the layer lacks, and might have there; as :meth:`weights`."""
        if self.layer.b is not None:
            return {}
        return {"b": np.zeros(self.layer.output_shape[self._linear.channel])}

    def in_order(self, count):
        """Parameters, by the order in which so many come without names."""
        return ["W", "b"]

    def absorbed_by(self, consumers, outputs):
        """The layers whose means could have a bias in them, all or none."""
        over = set(range(len(self.layer.output_shape)))
        over -= {self._linear.channel}
        absorb = is_linear(self.layer) and self.layer not in outputs and all(
            isinstance(layer, BatchNormLayer) and set(layer.axes) == over
            for layer in consumers)
        return consumers if absorb else []

    def fits(self, role, shape, expected):
        """Whether weights of a shape will do."""
        # Filters of a single position may come without its axes.
        return shape == expected or (
            role == "W" and isinstance(self._linear, NetworkInNetwork) and
            shape == tuple(self._W_shape()[axis] for axis
                           in self._framework.axes(self._linear)))

    def set(self, setting, values, epsilon, bias):
        """Have the layer set to weights from there."""
        setting.add(_settable(self.layer, "W"), self._framework.to_ours(
            self._linear, values["W"], self._W_shape()))
        if self.layer.b is not None:
            setting.add(_settable(self.layer, "b"), values["b"])

    def _W_shape(self):
        return _value(self.layer, "W").shape


class _BatchNorm(object):
    """A batch normalization layer, as :class:`_Linear`."""

    def __init__(self, layer, framework):
        self.layer = layer
        self.names = {role: framework.names[role]
                      for role in ("gamma", "beta", "mean", "var")}
        self._order = framework.feature_order(layer)

    def weights(self, epsilon=None):
        found = collections.OrderedDict()
        statistics = self.layer.get_statistics(epsilon)
        for role in ("gamma", "beta"):
            if getattr(self.layer, role) is not None:
                found[role] = _value(self.layer, role).reshape(
                    statistics.mean.shape)
        found.update(mean=statistics.mean, var=statistics.var)
        if self._order is None:
            return found
        return collections.OrderedDict(
            (role, value[self._order]) for role, value in found.items())

    def neutral(self):
        shape = self.layer.get_statistics().mean.shape
        return {role: np.zeros(shape) for role in ("gamma", "beta")
                if getattr(self.layer, role) is None}

    def in_order(self, count):
        return [role for role in self.names if count == len(self.names) or
                role == "var" or getattr(self.layer, role) is not None]

    def fits(self, role, shape, expected):
        return shape == expected

    def set(self, setting, values, epsilon, bias):
        if self._order is not None:
            order = np.argsort(self._order)
            values = {role: value[order] for role, value in values.items()}
        for role in ("gamma", "beta"):
            if role in values:
                setting.add(_settable(self.layer, role), values[role].reshape(
                    self.layer.param_shape()))
        # Deviations from the mean are the same without the bias as with it.
        setting.add_all(self.layer.converted_statistics(
            values["mean"] - bias, var=values["var"], epsilon=epsilon))


def _value(layer, name):
    return value_of(getattr(layer, name), "%s: %s" % (label(layer), name))


def _settable(layer, name):
    """A parameter of a layer, unless it is an expression."""
    variable = getattr(layer, name)
    if not isinstance(variable, theano.compile.SharedVariable):
        raise ValueError("%s: %s is an expression, which has no place for a "
                         "value of its own. Make it a shared variable."
                         % (label(layer), name))
    return variable


def _slots(framework, network, caller):
    """What there is in a network to get or set, from input to output."""
    layers = lasagne.layers.get_all_layers(checked_layers(network, caller))
    framework.check(layers)
    slots = []
    for layer in layers:
        linear = linear_of(layer)
        if isinstance(layer, BatchNormLayer):
            slots.append(_BatchNorm(layer, framework))
        elif linear is not None and not isinstance(linear, LocallyConnected):
            slots.append(_Linear(layer, linear, framework))
        elif layer.get_params():
            raise ValueError(
                "%s: %s has parameters, but its weights are not known there. "
                "Known are dense, network-in-network, convolutional and "
                "bnlasagne's batch normalization layers."
                % (caller, label(layer)))
    return slots


def _absorbing(slots, pairs, outputs):
    """Linear layers without a bias, and what could absorb one.

    Returns
    -------
    dict of _Linear to list of BatchNormLayer
    """
    consumers = collections.defaultdict(list)
    for layer in lasagne.layers.get_all_layers(outputs):
        for below in inputs_of(layer):
            consumers[below].append(layer)
    matched = [pair.slot for pair in pairs]
    found = {}
    for slot in matched:
        if isinstance(slot, _Linear) and slot.layer.b is None:
            # A module that is applied several times has one bias for all.
            uses = [slot] + [other for other in slots if other not in matched
                             and _params(other) == _params(slot)]
            absorb = [use.absorbed_by(consumers[use.layer], outputs)
                      for use in uses]
            if all(absorb):
                found[slot] = sum(absorb, [])
    return found


def _params(slot):
    """What a layer computes with; the same for layers that share it all."""
    names = ("W", "b", "gamma", "beta", "mean", "std")
    return tuple(getattr(slot.layer, name, None) for name in names)


# Which weights go to which layer, and whether they fit

_Pair = collections.namedtuple("_Pair", "slot, weights, others")
_Pair.__doc__ = """A layer and its weights.

Attributes
----------
slot : _Linear, _BatchNorm or None
weights : dict of str to (key, array)
    By the names of parameters here.
others : list of (key, array)
    What it has no parameters for.
"""


def _match(framework, slots, weights, caller):
    """Bring layers and weights together, by names and then in order.

    Layers that share all parameters with one before are those of a module that
    is applied several times; unless there are weights for each.
    """
    groups = _groups(framework, weights, caller)
    if len(groups) < len(slots):
        slots = _distinct(slots)
    kinds = {module: _kind_of(group, framework.names)
             for module, group in groups.items()}
    found = {}
    for kind in (_Linear, _BatchNorm):
        found.update(_match_kind(
            [slot for slot in slots if isinstance(slot, kind)],
            [module for module in groups if kinds[module] is kind],
            framework.separator))
    for module, slot in found.items():
        if slot is not None:
            _log.info("%s gets the weights of %s", label(slot.layer), module)
    modules = {slot: module for module, slot in found.items()}
    return [_pair(slot, groups.get(modules.get(slot), {})) for slot in slots
            ] + [_pair(None, groups[module]) for module in groups
                 if found[module] is None]


def _groups(framework, weights, caller):
    """Weights by the layers that they belong to."""
    if not isinstance(weights, collections.abc.Mapping):
        raise TypeError("%s: expected a %s, got %s. %s" % (
            caller, framework.what, reprlib.repr(weights), framework.how))
    groups = collections.OrderedDict()
    for key, value in framework.flat(weights).items():
        if not isinstance(key, str):
            raise TypeError("%s: expected a %s, with names of weights, got "
                            "the name %r. %s" % (caller, framework.what, key,
                                                 framework.how))
        module, name = framework.split(key)
        if name not in framework.ignored:
            groups.setdefault(module, {})[name] = key, as_numbers(key, value)
    return groups


def _kind_of(group, names):
    """What kind of layer a group of weights is for."""
    if all(name.isdigit() for name in group):
        flat = all(value.ndim < 2 for _, value in group.values())
        return _BatchNorm if flat else _Linear
    only_norms = {names[role] for role in ("gamma", "beta", "mean", "var")}
    only_norms -= {names["W"], names["b"]}
    return _Linear if only_norms.isdisjoint(group) else _BatchNorm


def _match_kind(slots, modules, separator):
    """For each module, the layer that it is for, or None."""
    found = collections.OrderedDict.fromkeys(modules)
    for slot in slots:
        module = _named_like(slot.layer.name, modules, separator)
        others = [other for other in slots
                  if other.layer.name == slot.layer.name]
        if module is not None and len(others) == 1:
            found[module] = slot
    taken = [slot for slot in found.values() if slot is not None]
    free = iter([slot for slot in slots if slot not in taken and
                 not (taken and slot.layer.name is not None)])
    for module in modules:
        if found[module] is None:
            found[module] = next(free, None)
    return found


def _named_like(name, modules, separator):
    """The module that has a layer's name, if there is one and only one."""
    if name is None or name in modules:
        return name
    same = [module for module in modules if module.endswith(separator + name)]
    return same[0] if len(same) == 1 else None


def _distinct(slots):
    """The first of those that share all parameters."""
    found = collections.OrderedDict()
    for slot in slots:
        found.setdefault(_params(slot), slot)
    return list(found.values())


def _pair(slot, group):
    roles = {} if slot is None else {
        name: role for role, name in slot.names.items()}
    if slot is not None and all(name.isdigit() for name in group):
        # Only the layer tells what an unnamed one may be.
        roles = {str(number): role for number, role
                 in enumerate(slot.in_order(len(group)))}
    return _Pair(slot, {roles[name]: found for name, found in group.items()
                        if name in roles},
                 [found for name, found in group.items() if name not in roles])


def _check(pairs, optional, framework, caller):
    """Raise a ValueError unless all weights fit."""
    rows = []
    for slot, weights, others in pairs:
        expected = slot.weights() if slot else {}
        for role in expected if slot else ():
            rows.append(_row(slot, role, weights.get(role), expected[role]))
        may_be = optional.get(slot, {})
        for role in weights:
            if role not in expected:
                rows.append(_row(slot, role, weights[role], may_be.get(role)))
        rows += [Row(described(*found), "", False) for found in others]
    check_rows(caller, framework.what, rows)


def _row(slot, role, found, expected):
    theirs = "" if found is None else described(*found)
    ours = "" if expected is None else "%s, %s: %s" % (
        label(slot.layer), role, expected.shape)
    fits = found is not None and expected is not None and slot.fits(
        role, found[1].shape, expected.shape)
    return Row(theirs, ours, fits)
