"""List the layers of a network, and copy networks."""

import builtins
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

from ..graphs.next_values import next_value

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
_NO_REFERENCES = frozenset([type(None), bool, int, float, complex, str, bytes])
_STREAMS = (MRG_RandomStreams, RandomStreams)
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
    return [value for value in _leaves(_attributes(layer), _elements)
            if isinstance(value, lasagne.layers.Layer)]


def references_of(layer):
    """The same as :func:`layers_in`, and the references within functions.

    A function refers to the values that it closes over, to its defaults and to
    the global variables that it reads. The methods of a user's class are such
    functions.
    """
    return [value for value in _leaves(
        _attributes(layer) + list(_methods_of(layer).values()), _parts)
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
    values = _attributes(layer, ["params"]) + list(
        _methods_of(layer).values()) if names is None else [
            vars(layer)[name] for name in names if name in vars(layer)]
    return [value for value in _leaves(values, _parts)
            if isinstance(value, theano.Variable)]


def _attributes(layer, skip=()):
    """The values of a layer's attributes, other than its inputs."""
    return [value for name, value in vars(layer).items()
            if name not in ("input_layer", "input_layers", *skip)]


def _leaves(values, parts_of):
    """The values within values that have no parts, once for each reference."""
    seen, stack = {}, values[::-1]
    while stack:
        value = stack.pop()
        parts = parts_of(value)
        if parts is None:
            yield value
        elif id(value) not in seen:
            # It is kept in order that no other object gets its number.
            seen[id(value)] = value
            stack.extend(reversed(parts))


def _elements(value):
    """The values in a container, or a method's object; None for others."""
    # Only of the plain types: what others are made of is not known.
    if type(value) not in _CONTAINERS and not _is_named_tuple(value):
        return [value.__self__] if isinstance(value, types.MethodType) \
            else None
    elements = (each for item in value.items() for each in item) \
        if isinstance(value, dict) else value
    # Data may be among them, of many elements.
    return [each for each in elements if type(each) not in _NO_REFERENCES]


def _parts(value):
    """The same, and the values within functions and objects that are called.
    """
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.FunctionType):
        return [*map(_content, value.__closure__ or ()), value.__defaults__,
                value.__kwdefaults__, vars(value),
                *_globals_of(value).values()]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    return list(vars(value).values()) if _is_called_object(value) \
        else _elements(value)


def _is_named_tuple(value):
    return isinstance(value, tuple) and hasattr(value, "_make")


def _is_called_object(value):
    """Whether a value is an object that functions as a user's function."""
    return callable(value) and hasattr(value, "__dict__") and not isinstance(
        value, (type, lasagne.layers.Layer, theano.Variable)) and (
            not of_library(type(value)))


def replace_layer(holder, old, new):
    """Have a layer refer to another in the place of one, as input or not."""
    def replaced(value):
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, replaced(value.__self__))
        return new if value is old else value

    for name, value in vars(holder).items():
        vars(holder)[name] = _mapped(value, replaced)


def _mapped(value, function):
    """A value, or in its place a container of values, after a function."""
    if _is_named_tuple(value):
        return value._make(_mapped(each, function) for each in value)
    if type(value) not in _CONTAINERS:
        return function(value)
    if isinstance(value, dict):
        return type(value)((_mapped(key, function), _mapped(each, function))
                           for key, each in value.items())
    return type(value)(_mapped(each, function) for each in value)


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
    copied. Shared variables and random streams that no layer has among its
    parameters or attributes stay the same: a function reads them, and users
    set them, for both networks.
    """
    return _Copier().copy(_all_referred(layers))


class _Copier(object):
    """Copy layers and shared variables, each once."""

    def __init__(self):
        self._layers = {}
        self._variables = {}
        self._containers = {}
        self._streams = {}
        self._owned = set()
        # Functions, and what they refer to, by id: the original and the copy.
        self._made = {}

    def copy(self, layers):
        """Copies of layers, of which each may refer to each."""
        params = {source for layer in layers
                  for source in inputs(list(layer.params))}
        new = [layer for layer in layers if layer not in self._layers]
        self._owned |= _owned_by(new)
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
                vars(new)[name] = _mapped(value, self._attribute)
        for name, function in _methods_of(layer).items():
            own = self._attribute(function)
            if own is not function:
                vars(new)[name] = types.MethodType(own, new)

    def _keep(self, input_var, params):
        """Have the copy refer to an input variable, not to a copy of it."""
        self._variables[input_var] = input_var
        for source in ancestors([input_var]):
            # Data, as well: the input may be a slice of a shared variable.
            if source.owner is None and source not in params:
                self._variables[source] = source

    def _attribute(self, value):
        """The copy of a value; itself, if nothing within it is copied."""
        return self._copied(value, self._changing(value))

    def _changing(self, value):
        """The values within a value, itself included, that are copied.

        Returns
        -------
        dict
            By their ids.
        """
        users, leaves, seen, stack = {}, [], {}, [value]
        while stack:
            each = stack.pop()
            if id(each) in seen:
                continue
            seen[id(each)] = each
            parts = _parts(each)
            for part in parts or ():
                users.setdefault(id(part), []).append(each)
                stack.append(part)
            if parts is None and self._leaf(each) is not each:
                leaves.append(each)
        changing = {id(leaf): leaf for leaf in leaves}
        while leaves:
            for user in users.get(id(leaves.pop()), ()):
                if id(user) not in changing:
                    changing[id(user)] = user
                    leaves.append(user)
        return changing

    def _copied(self, value, changing):
        if id(value) not in changing:
            return value
        if id(value) in self._made:
            return self._made[id(value)][1]

        def own(value):
            return self._copied(value, changing)

        def made(new):
            # Before what refers to the value is copied, in turn.
            self._made[id(value)] = value, new
            return new

        if isinstance(value, types.FunctionType):
            return self._function(value, own, changing)
        if isinstance(value, types.MethodType):
            return types.MethodType(*map(own, _parts(value)))
        if isinstance(value, functools.partial):
            function, args, keywords = map(own, _parts(value))
            return type(value)(function, *args, **keywords)
        if _is_called_object(value):
            new = made(copy.copy(value))
            if new is value:  # Such as a cache: it has no copies.
                return value
            vars(new).update((name, own(each))
                             for name, each in vars(value).items())
        elif _is_named_tuple(value):
            return value._make(map(own, value))
        elif isinstance(value, dict):
            new = made(type(value)())
            new.update((own(key), own(each)) for key, each in value.items())
        elif isinstance(value, list):
            new = made([])
            new.extend(map(own, value))
        elif isinstance(value, (tuple, set)):
            return type(value)(map(own, value))
        else:
            return self._leaf(value)
        return new

    def _function(self, function, own, changing):
        cells = function.__closure__ or ()
        # A cell in which nothing changes stays common to both functions.
        new_cells = tuple(types.CellType() if id(_content(cell)) in changing
                          else cell for cell in cells)
        names, read = function.__globals__, _globals_of(function)
        if any(id(each) in changing for each in read.values()):
            names = {name: names[name] for name in _names(function.__code__)
                     if name in names}
            names["__name__"] = function.__module__
            # Before Python 3.10, functions have no others.
            names["__builtins__"] = builtins
        new = types.FunctionType(function.__code__, names, function.__name__,
                                 None, new_cells)
        # Before what it refers to is copied: it may refer to itself.
        self._made[id(function)] = function, new
        for cell, new_cell in zip(cells, new_cells):
            if new_cell is not cell:
                new_cell.cell_contents = own(_content(cell))
        if names is not function.__globals__:
            names.update((name, own(each)) for name, each in read.items())
        new.__defaults__ = own(function.__defaults__)
        new.__kwdefaults__ = own(function.__kwdefaults__)
        new.__dict__.update(own(vars(function)))
        new.__qualname__ = function.__qualname__
        new.__doc__ = function.__doc__
        return new

    def _leaf(self, value):
        if isinstance(value, lasagne.layers.Layer):
            return self._layer(value)
        if isinstance(value, theano.Variable):
            return self._variable(value)
        if isinstance(value, _STREAMS) and value in self._owned:
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
        if variable.container not in self._owned:
            return self._variables.setdefault(variable, variable)
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


def _owned_by(layers):
    """The random streams of layers, and the memory of shared variables.

    Those are the parameters and attributes of the layers, and what Theano
    updates them from; not what only functions refer to.
    """
    found, seen, stack = set(), set(), []
    for layer in layers:
        if not _stays(layer):
            held = list(_leaves(_attributes(layer, ["input_var"]), _elements))
            found.update(each for each in held if isinstance(each, _STREAMS))
            stack += [each for each in held
                      if isinstance(each, theano.Variable)]
    while stack:
        for source in inputs([stack.pop()]):
            if source not in seen and isinstance(
                    source, theano.compile.SharedVariable):
                seen.add(source)
                found.add(source.container)
                update = next_value(source)
                stack += [] if update is None else [update]
    return found


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
            if not isinstance(value, types.FunctionType)
            or value.__globals__ is names}


def _names(code):
    """The global variables that code reads, functions within included."""
    found = {instruction.argval for instruction in dis.get_instructions(code)
             if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return found.union(*(_names(each) for each in code.co_consts
                         if isinstance(each, types.CodeType)))
