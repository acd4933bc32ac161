"""The layers of a network, and copies of networks."""

import collections
import copy
import types

import lasagne
import theano
from theano.sandbox.rng_mrg import MRG_RandomStreams
from theano.tensor.shared_randomstreams import RandomStreams

__all__ = [
    "all_layers",
    "checked_layers",
    "copy_network",
    "inputs_of",
    "layers_in",
    "replace_layer",
]

_CONTAINERS = (list, tuple, set, dict, collections.OrderedDict)


def checked_layers(network, caller):
    """The output layers of a network.

    Parameters
    ----------
    network : Layer or list of Layer
    caller : str
        Who asks, for messages.

    Returns
    -------
    list of Layer

    Raises
    ------
    TypeError
        If `network` is something else.
    """
    layers = network if isinstance(network, (list, tuple)) else [network]
    for layer in layers:
        if not isinstance(layer, lasagne.layers.Layer):
            raise TypeError("%s: network must be a Layer or a list of them, "
                            "got %r." % (caller, layer))
    return list(layers)


def all_layers(layers, treat_as_input=()):
    """All layers of a network, and those within them.

    Parameters
    ----------
    layers : list of Layer
        The output layers.
    treat_as_input : list of Layer
        Layers to stop at: neither these nor what is below them is included.

    Returns
    -------
    list of Layer
        In the order of :func:`lasagne.layers.get_all_layers`; then those that
        these hold as attributes without taking their input from them, such as
        a ``CustomRecurrentLayer``, and so on.
    """
    # A dict keeps the order, and finds its members quickly.
    seen, stack = {}, collections.deque(
        layer for layer in lasagne.layers.get_all_layers(
            list(layers), treat_as_input=list(treat_as_input))
        if layer not in treat_as_input)
    while stack:
        layer = stack.popleft()
        if layer not in seen:
            seen[layer] = True
            below = inputs_of(layer)
            for inner in layers_in(layer):
                if inner not in below:
                    stack.extend(lasagne.layers.get_all_layers(inner))
    return list(seen)


def inputs_of(layer):
    """The layers that a layer takes its inputs from.

    Returns
    -------
    list of Layer
        One for each input; without those that are no layers.
    """
    below = getattr(layer, "input_layers", None)
    if below is None:
        below = [getattr(layer, "input_layer", None)]
    return [each for each in below if each is not None]


def layers_in(layer):
    """The layers that a layer refers to other than as its inputs.

    Returns
    -------
    list of Layer
        One for each reference.
    """
    found = []
    for name, value in vars(layer).items():
        if name not in ("input_layer", "input_layers"):
            _map(value, lambda each: found.append(each)
                 if isinstance(each, lasagne.layers.Layer) else None)
    return found


def replace_layer(holder, old, new):
    """Have a layer refer to another in the place of one, as input or not."""
    for name, value in vars(holder).items():
        vars(holder)[name] = _map(
            value, lambda each: new if each is old else each)


def copy_network(layers):
    """Copy a network, with all parameters and layers within layers.

    Parameters
    ----------
    layers : list of Layer
        The output layers.

    Returns
    -------
    dict of Layer to Layer
        From the network's layers to their copies, in the order of
        :func:`all_layers`.

    Notes
    -----
    What layers share, their copies share as well: parameters, and parts of
    parameters that are expressions. Input layers are not copied, so that those
    who have them at hand can give both networks their inputs by them. What
    functions and objects other than layers refer to is not copied, either.
    """
    copier = _Copier()
    # Copying goes from inside to outside, which is another order.
    return collections.OrderedDict((layer, copier.copy(layer))
                                   for layer in all_layers(layers))


class _Copier(object):
    """Copies layers and shared variables, each once."""

    def __init__(self):
        self.layers = {}
        self._variables = {}
        self._streams = {}

    def copy(self, layer):
        if layer in self.layers:
            return self.layers[layer]
        # In their order: inputs first, however deep the network is.
        for below in lasagne.layers.get_all_layers(layer)[:-1]:
            self.copy(below)
        if isinstance(layer, lasagne.layers.InputLayer) and not layer.params:
            self.layers[layer] = layer
            return layer
        if layer in self.layers:  # One below refers to it.
            return self.layers[layer]
        new = self.layers[layer] = copy.copy(layer)
        for name, value in vars(layer).items():
            if name != "input_var":  # It may be shared, but is data.
                vars(new)[name] = _map(value, self._own)
        return new

    def _own(self, value):
        if isinstance(value, lasagne.layers.Layer):
            return self.copy(value)
        if isinstance(value, theano.compile.SharedVariable):
            return self._shared(value)
        if isinstance(value, theano.Variable):
            return self._expression(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self._own(value.__self__))
        if isinstance(value, (MRG_RandomStreams, RandomStreams)):
            # What was drawn already stays with the original.
            if value not in self._streams:
                self._streams[value] = copy.deepcopy(
                    value, {id(value.state_updates): []})
            return self._streams[value]
        return value

    def _shared(self, variable):
        if variable not in self._variables:
            new = type(variable)(
                name=variable.name, type=variable.type, strict=True,
                value=variable.get_value(return_internal_type=True))
            new.tag = copy.copy(variable.tag)
            self._variables[variable] = new
            # After the last line: it may be made of the variable itself.
            update = getattr(variable, "default_update", None)
            if update is not None:
                new.default_update = self._own(update)
        return self._variables[variable]

    def _expression(self, variable):
        if variable not in self._variables:
            replace = {source: self._shared(source) for source
                       in theano.gof.graph.inputs([variable])
                       if isinstance(source, theano.compile.SharedVariable)}
            self._variables[variable] = theano.clone(
                variable, replace, share_inputs=True) if replace else variable
        return self._variables[variable]


def _map(value, function):
    """Apply a function to a value, or to what is in a container."""
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(_map(each, function) for each in value)
    # Only to the plain types: what others are made of is not known.
    if type(value) not in _CONTAINERS:
        return function(value)
    if isinstance(value, dict):
        return type(value)((_map(key, function), _map(each, function))
                           for key, each in value.items())
    return type(value)(_map(each, function) for each in value)
