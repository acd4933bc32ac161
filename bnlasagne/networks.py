"""List the layers of a network, and copy networks."""

import collections
import copy
import dis
import functools
import types

import lasagne
import theano
from theano.gof.graph import ancestors, inputs, io_toposort
from theano.sandbox.rng_mrg import MRG_RandomStreams
from theano.tensor.shared_randomstreams import RandomStreams

__all__ = [
    "all_layers",
    "checked_layers",
    "copy_network",
    "inputs_of",
    "layers_in",
    "of_library",
    "references_of",
    "replace_layer",
    "variables_of",
]

_CONTAINERS = (list, tuple, set, dict, collections.OrderedDict)
# Packages whose functions and objects refer to no network.
_LIBRARIES = ("lasagne", "theano", "numpy", "bnlasagne")


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
    """All layers of a network, and the layers within them.

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
    return _with_inner(
        (layer for layer in lasagne.layers.get_all_layers(
            list(layers), treat_as_input=list(treat_as_input))
         if layer not in treat_as_input), layers_in)


def _all_referred(layers):
    """The same, and then the layers that only functions refer to."""
    return _with_inner(all_layers(layers), references_of)


def _with_inner(layers, inner_of):
    # A dict keeps the order, and finds its members quickly.
    seen, stack = {}, collections.deque(layers)
    while stack:
        layer = stack.popleft()
        if layer not in seen:
            seen[layer] = True
            below = inputs_of(layer)
            for inner in inner_of(layer):
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
        One for each reference. References from within functions are left out.
    """
    return [value for value in _leaves(layer, _Mapping)
            if isinstance(value, lasagne.layers.Layer)]


def references_of(layer):
    """The same as :func:`layers_in`, and the references within functions.

    A function refers to the values that it closes over, to its defaults and to
    the global variables that it reads. The methods of a user's class are such
    functions.
    """
    return [value for value in _leaves(layer, _DeepMapping)
            if isinstance(value, lasagne.layers.Layer)]


def variables_of(layer, names=None):
    """The Theano variables that a layer refers to, within functions as well.

    Parameters
    ----------
    layer : Layer
    names : list of str or None
        Attributes to look at. By default, all but `params`, as a parameter
        may be registered without being used; and the layer's methods.
    """
    return [value for value in _leaves(layer, _DeepMapping, names, ["params"])
            if isinstance(value, theano.Variable)]


def _leaves(layer, kind, names=None, skip=()):
    """What a layer refers to, other than its inputs."""
    found = []

    def add(value):
        found.append(value)
        return value

    mapping = kind(add)
    for name, value in vars(layer).items():
        if name not in ("input_layer", "input_layers", *skip) and (
                names is None or name in names):
            mapping(value)
    if kind is _DeepMapping and names is None:
        mapping(_methods_of(layer))
    return found


def replace_layer(holder, old, new):
    """Have a layer refer to another in the place of one, as input or not."""
    mapping = _Mapping(lambda each: new if each is old else each)
    for name, value in vars(holder).items():
        vars(holder)[name] = mapping(value)


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
        :func:`all_layers`; then from layers that only functions refer to.

    Notes
    -----
    The copies of two layers share what the two layers share: parameters, and
    parts of parameters that are expressions. The copy shares its input layers
    with the original, so that ``get_output(copy, {l_in: x})`` works for both.
    A function that refers to layers or parameters of the network is copied,
    too; so is an object that can be called. What other objects refer to is not
    copied.
    """
    return _Copier().copy(_all_referred(layers))


class _Copier(object):
    """Copy layers and shared variables, each once."""

    def __init__(self):
        self._layers = {}
        self._variables = {}
        self._containers = {}
        self._streams = {}
        self._mapping = _DeepMapping(self._own)

    def copy(self, layers):
        """Copies of layers, of which each may refer to each."""
        params = {source for layer in layers
                  for source in inputs(list(layer.params))}
        new = [layer for layer in layers if layer not in self._layers]
        for layer in new:
            if _stays(layer):
                self._layers[layer] = layer
                self._keep(layer.input_var, params)
            else:
                self._layers[layer] = copy.copy(layer)
        for layer in new:
            if self._layers[layer] is not layer:
                self._fill(layer, self._layers[layer])
        return collections.OrderedDict((layer, self._layers[layer])
                                       for layer in layers)

    def _fill(self, layer, new):
        for name, value in vars(layer).items():
            if name != "input_var":  # It may be shared, but is data.
                vars(new)[name] = self._mapping(value)
        for name, function in _methods_of(layer).items():
            own = self._mapping(function)
            if own is not function:
                vars(new)[name] = types.MethodType(own, new)

    def _keep(self, input_var, params):
        """Have the copy refer to an input variable, not to a copy of it."""
        self._variables[input_var] = input_var
        for source in ancestors([input_var]):
            # Data, as well: the input may be a slice of a shared variable.
            if source.owner is None and source not in params:
                self._variables[source] = source

    def _own(self, value):
        if isinstance(value, lasagne.layers.Layer):
            return self._layer(value)
        if isinstance(value, theano.Variable):
            return self._variable(value)
        if isinstance(value, (MRG_RandomStreams, RandomStreams)):
            # What was drawn already stays with the original.
            if value not in self._streams:
                self._streams[value] = copy.deepcopy(
                    value, {id(value.state_updates): []})
            return self._streams[value]
        return value

    def _layer(self, layer):
        # An Op may name a layer that the network has not.
        if layer not in self._layers:
            self.copy(_all_referred([layer]))
        return self._layers[layer]

    def _variable(self, variable):
        """The copy of a variable; itself, if nothing in it is copied."""
        if variable in self._variables:
            return self._variables[variable]
        if isinstance(variable, theano.compile.SharedVariable):
            return self._shared(variable)
        # Starts from what is known, so that parts that several expressions
        # share are shared by their copies.
        for node in io_toposort(list(self._variables), [variable]):
            sources = list(map(self._source, node.inputs))
            op = self._op(node.op)
            new = node
            if op is not node.op or any(
                    source is not old
                    for source, old in zip(sources, node.inputs)):
                new = node.clone_with_new_inputs(sources)
                new.op = op
            for old, output in zip(node.outputs, new.outputs):
                self._variables.setdefault(old, output)
        return self._variables.get(variable, variable)

    def _source(self, variable):
        if isinstance(variable, theano.compile.SharedVariable):
            return self._shared(variable)
        return self._variables.get(variable, variable)

    def _op(self, op):
        """An Op, of the copies of the layers that it names."""
        own = {name: value for name, value in vars(op).items()
               if isinstance(value, lasagne.layers.Layer)}
        if own:
            op = copy.copy(op)
            vars(op).update((name, self._layer(layer))
                            for name, layer in own.items())
        return op

    def _shared(self, variable):
        if variable not in self._variables:
            known = self._containers.get(variable.container)
            if known is None:
                new = type(variable)(
                    name=variable.name, type=variable.type, strict=True,
                    value=variable.get_value(return_internal_type=True))
                self._containers[variable.container] = new
            else:
                # An alias, such as the clone of a running average that an
                # application has: one memory for both.
                new = known.clone()
                new.name = variable.name
            self._variables[variable] = new
            new.tag = copy.copy(variable.tag)
            for name, value in vars(variable.tag).items():
                if isinstance(value, theano.Variable):
                    setattr(new.tag, name, self._variable(value))
            # After the copy is known: it may be made of the variable itself.
            update = getattr(variable, "default_update", None)
            if update is not None:
                new.default_update = self._variable(update)
        return self._variables[variable]


def _methods_of(layer):
    """The functions of classes that are the user's, by name."""
    kind = type(layer)
    return {name: value for base in kind.__mro__ if not of_library(base)
            for name, value in vars(base).items()
            if isinstance(value, types.FunctionType)
            and not name.startswith("__") and name not in vars(layer)
            and getattr(kind, name, None) is value}


def _stays(layer):
    """Whether the copy of a network has the layer itself."""
    return isinstance(layer, lasagne.layers.InputLayer) and not layer.params


class _Mapping(object):
    """Apply a function to a value, or to what is in a container.

    Parameters
    ----------
    function : callable
    """

    def __init__(self, function):
        self._function = function

    def __call__(self, value):
        if isinstance(value, tuple) and hasattr(value, "_make"):
            return value._make(map(self, value))
        # Only to the plain types: what others are made of is not known.
        if type(value) not in _CONTAINERS:
            return self._single(value)
        if isinstance(value, dict):
            return type(value)((self(key), self(each))
                               for key, each in value.items())
        return type(value)(map(self, value))

    def _single(self, value):
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self(value.__self__))
        return self._function(value)


class _DeepMapping(_Mapping):
    """The same, within functions and objects that can be called.

    Functions and objects in which nothing changes stay the same objects.
    """

    def __init__(self, function):
        super(_DeepMapping, self).__init__(function)
        self._done = {}

    def _single(self, value):
        if isinstance(value, (lasagne.layers.Layer, theano.Variable)):
            return self._function(value)
        within = self._within(value)
        if within is None:
            return self._function(value)
        if id(value) not in self._done:
            # For now itself, should it refer to itself. It is kept in order
            # that no other object gets its number.
            self._done[id(value)] = value, value
            self._done[id(value)] = value, within(value)
        return self._done[id(value)][1]

    def _within(self, value):
        """What to do with a value that refers to others, or None."""
        if isinstance(value, types.MethodType):
            return self._method
        if isinstance(value, types.FunctionType):
            return self._copied_function
        if isinstance(value, functools.partial):
            return self._partial
        if callable(value) and not isinstance(value, type) and hasattr(
                value, "__dict__") and not of_library(type(value)):
            return self._object
        return None

    def _kept(self, value):
        """The mapped value; the value itself, where nothing is different."""
        new = self(value)
        return value if _same(new, value) else new

    def _method(self, method):
        old = [method.__func__, method.__self__]
        new = self._kept(old)
        return method if new is old else types.MethodType(*new)

    def _partial(self, partial):
        old = [partial.func, partial.args, partial.keywords]
        new = self._kept(old)
        return partial if new is old \
            else type(partial)(new[0], *new[1], **new[2])

    def _object(self, value):
        old = vars(value)
        new = {name: self._kept(each) for name, each in old.items()}
        if _same(new, old):
            return value
        changed = copy.copy(value)
        vars(changed).update(new)
        return changed

    def _copied_function(self, function):
        cells = function.__closure__ or ()
        old = {
            "cells": [_content(cell) for cell in cells],
            "defaults": function.__defaults__,
            "kwdefaults": function.__kwdefaults__,
            "vars": vars(function),
            "globals": _globals_of(function),
        }
        new = {name: self._kept(each) for name, each in old.items()}
        if _same(new, old):
            return function
        closure = tuple(cell if after is before else types.CellType(after)
                        for cell, before, after
                        in zip(cells, old["cells"], new["cells"]))
        names = function.__globals__
        if new["globals"] is not old["globals"]:
            names = {name: names[name] for name in _names(function.__code__)
                     if name in names}
            names.update(new["globals"])
            names["__name__"] = function.__module__
        changed = types.FunctionType(
            function.__code__, names, function.__name__, new["defaults"],
            closure)
        changed.__kwdefaults__ = new["kwdefaults"]
        changed.__dict__.update(new["vars"])
        changed.__qualname__ = function.__qualname__
        changed.__doc__ = function.__doc__
        return changed


def _same(new, old):
    """Whether a mapped value is made of the very same objects."""
    if new is old:
        return True
    if type(new) is not type(old) or not isinstance(old, _CONTAINERS):
        return False
    if isinstance(old, dict):
        new, old = ([each for item in value.items() for each in item]
                    for value in (new, old))
    elif isinstance(old, set):
        return {id(each) for each in new} == {id(each) for each in old}
    return len(new) == len(old) and all(map(_same, new, old))


def of_library(thing):
    """Whether a function, a class or an object comes from a known package."""
    module = getattr(thing, "__module__", None) or ""
    return module.split(".")[0] in _LIBRARIES


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # Nothing is in it yet.
        return None


def _globals_of(function):
    """What a function refers to by global variables of its module."""
    if of_library(function):
        return {}
    names = function.__globals__
    found = {name: names[name] for name in _names(function.__code__)
             if name in names}
    # Functions of other modules have nothing of this one's.
    return {name: value for name, value in found.items()
            if getattr(value, "__globals__", names) is names}


def _names(code):
    """The global variables that code reads, functions within included."""
    found = {instruction.argval for instruction in dis.get_instructions(code)
             if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return found.union(*(_names(each) for each in code.co_consts
                         if isinstance(each, types.CodeType)))
