"""Take values apart, and build others of the same kind from other parts.

Containers, bound methods, functions and objects that are called as functions
have parts. Other values are leaves, such as layers and Theano variables.
"""

import builtins
import collections
import copy
import dis
import functools
import types

import lasagne
import theano

__all__ = ["Replacement", "of_library", "values_in"]

# Only the plain types: what others are made of is not known.
_CONTAINERS = (list, tuple, set, dict, collections.OrderedDict)
# Data refers to nothing, and containers may have many elements of it.
_DATA = frozenset([type(None), bool, int, float, complex, str, bytes])
# Packages whose functions and objects refer to no network.
_LIBRARIES = ("lasagne", "theano", "numpy", "bnlasagne")


def of_library(thing):
    """Tell whether a function, class or object is of a known package."""
    module = getattr(thing, "__module__", None) or ""
    return module.split(".")[0] in _LIBRARIES


def values_in(values, within_functions=True):
    """List values and the values within them, each with its parts.

    A leaf, whose parts are None, is listed once for each reference; other
    values once. A function's parts are the values that it closes over, its
    defaults and attributes, and the global variables that it reads. Data, such
    as numbers, is left out.
    """
    seen, stack = {}, values[::-1]
    while stack:
        value = stack.pop()
        parts = None if _is_function(value) and not within_functions \
            else _parts_of(value)
        if parts is None:
            yield value, None
        elif id(value) not in seen:
            # It is kept in order that no other object gets its id().
            seen[id(value)] = value
            yield value, parts
            stack.extend(reversed(parts))


class Replacement:
    """Build values in which others take the place of some leaves.

    `of_leaf` is a function from a leaf to the value that takes its place: the
    leaf itself, if it stays. A value in which nothing is replaced stays the
    same object. The new values share what the old ones share.
    """

    def __init__(self, of_leaf):
        self._of_leaf = of_leaf
        # By the id() of the old value: it, so that it stays, and the new one.
        self._made = {}

    def __call__(self, value, new_containers=False):
        """Replace leaves within a value; also, if asked, all containers.

        Containers that only functions refer to stay if nothing in them
        changes.
        """
        changing = self._changing(value, new_containers)

        def changes(value):
            return id(value) in changing

        def new(value):
            if not changes(value):
                return value
            if id(value) not in self._made:
                result = self._of_leaf(value) if _parts_of(value) is None \
                    else _started(value, new, changes)
                # Its parts may refer to it, and have made it meanwhile.
                if id(value) not in self._made:
                    self._made[id(value)] = value, result
                    _finish(value, result, new)
            return self._made[id(value)][1]

        return new(value)

    def _changing(self, value, new_containers):
        """Find the id() of each value within a value that is replaced."""
        within = list(values_in([value]))
        found = {id(each) for each, parts in within
                 if parts is None and self._of_leaf(each) is not each}
        if new_containers:
            found.update(id(each) for each, _ in values_in([value], False)
                         if _is_container(each))
        more = True
        while more:
            more = {id(each) for each, parts in within if id(each) not in found
                    and not found.isdisjoint(map(id, parts or ()))}
            found |= more
        return found


def _is_container(value):
    return type(value) in _CONTAINERS or _is_named_tuple(value)


def _is_named_tuple(value):
    return isinstance(value, tuple) and hasattr(value, "_make")


def _is_function(value):
    """Tell whether a value is a user's function, or an object used as one."""
    return callable(value) and hasattr(value, "__dict__") and not isinstance(
        value, (type, types.MethodType, lasagne.layers.Layer, theano.Variable)
    ) and not of_library(type(value))


def _parts_of(value):
    """List the parts of a value but for data; return None for a leaf."""
    if isinstance(value, types.MethodType):
        parts = value.__func__, value.__self__
    elif isinstance(value, types.FunctionType):
        parts = (value.__closure__, value.__defaults__, value.__kwdefaults__,
                 vars(value), *_globals_of(value).values())
    elif isinstance(value, types.CellType):
        parts = [_content(value)]
    elif isinstance(value, functools.partial):
        parts = value.func, value.args, value.keywords
    elif _is_function(value):
        parts = vars(value).values()
    elif not _is_container(value):
        return None
    elif isinstance(value, dict):
        parts = (each for item in value.items() for each in item)
    else:
        parts = value
    return [part for part in parts if type(part) not in _DATA]


def _started(value, new, changes):
    """Make a value of the same kind: empty, if it may be part of itself."""
    if isinstance(value, types.MethodType):
        return types.MethodType(new(value.__func__), new(value.__self__))
    if isinstance(value, types.FunctionType):
        return _started_function(value, new, changes)
    if isinstance(value, functools.partial):
        return type(value)(new(value.func), *new(value.args),
                           **new(value.keywords))
    if _is_function(value):
        return copy.copy(value)
    if _is_named_tuple(value):
        return value._make(map(new, value))
    if isinstance(value, (tuple, set)):
        return type(value)(map(new, value))
    return type(value)()  # A list, a dict or a cell.


def _finish(value, result, new):
    """Put the new parts into a value from :func:`_started`."""
    if isinstance(value, types.FunctionType):
        _finish_function(value, result, new)
    elif isinstance(value, dict):
        result.update((new(key), new(each)) for key, each in value.items())
    elif isinstance(value, list):
        result.extend(map(new, value))
    elif isinstance(value, types.CellType):
        result.cell_contents = new(value.cell_contents)
    # Some objects have no copies, such as a cache.
    elif _is_function(value) and result is not value:
        vars(result).update((name, new(each))
                            for name, each in vars(value).items())


def _started_function(function, new, changes):
    names = function.__globals__
    if any(map(changes, _globals_of(function).values())):
        names = {name: names[name] for name in _names(function.__code__)
                 if name in names}
        names["__name__"] = function.__module__
        # Before Python 3.10, functions have no others.
        names["__builtins__"] = builtins
    # Of the cells, those in which nothing changes stay common to both.
    return types.FunctionType(function.__code__, names, function.__name__,
                              None, new(function.__closure__))


def _finish_function(function, result, new):
    if result.__globals__ is not function.__globals__:
        result.__globals__.update(
            (name, new(each)) for name, each in _globals_of(function).items())
    result.__defaults__ = new(function.__defaults__)
    result.__kwdefaults__ = new(function.__kwdefaults__)
    vars(result).update(new(vars(function)))
    result.__qualname__ = function.__qualname__
    result.__doc__ = function.__doc__


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # Nothing is in it yet.
        return None


def _globals_of(function):
    """Map the names of global variables that a function reads to values."""
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
    """Find the names of global variables that code reads, in all functions."""
    found = {instruction.argval for instruction in dis.get_instructions(code)
             if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return found.union(*(_names(each) for each in code.co_consts
                         if isinstance(each, types.CodeType)))
