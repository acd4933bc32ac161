"""List the layers of a network, and what a layer refers to."""

import collections
import types

import lasagne
import theano

from .parts import Replacement, of_library, values_in

__all__ = [
    "all_layers", "attributes_of", "checked_layers", "inputs_of", "layers_in",
    "methods_of", "references_of", "referred_layers", "replace_layer",
    "shared_in", "variables_in", "variables_of",
]


def checked_layers(network, caller):
    """List the layers that a user gave to `caller`, or raise a TypeError."""
    layers = network if isinstance(network, (list, tuple)) else [network]
    for layer in layers:
        if not isinstance(layer, lasagne.layers.Layer):
            raise TypeError(f"{caller}: network must be a Layer or a list of "
                            f"them, got {layer!r}.")
    return list(layers)


def all_layers(layers, treat_as_input=()):
    """List all layers of a network, and the layers within them.

    They come in the order of :func:`lasagne.layers.get_all_layers`; then the
    layers that these hold as attributes without taking their input from them,
    such as in a ``CustomRecurrentLayer``, and so on. The layers in
    `treat_as_input`, and the layers below them, are left out.
    """
    found = lasagne.layers.get_all_layers(
        list(layers), treat_as_input=list(treat_as_input))
    return _with_inner((layer for layer in found
                        if layer not in treat_as_input), layers_in)


def referred_layers(layers):
    """List all layers, and then the layers that only functions refer to."""
    return _with_inner(all_layers(layers), references_of)


def _with_inner(layers, inner_of):
    # A dict keeps the order, and finds its members quickly.
    seen, queue = {}, collections.deque(layers)
    while queue:
        layer = queue.popleft()
        if layer not in seen:
            seen[layer] = True
            below = inputs_of(layer)
            for inner in inner_of(layer):
                if inner not in below:
                    queue.extend(lasagne.layers.get_all_layers(inner))
    return list(seen)


def inputs_of(layer):
    """List the layers among a layer's inputs, once for each input."""
    below = getattr(layer, "input_layers", None)
    if below is None:
        below = [getattr(layer, "input_layer", None)]
    return [each for each in below if each is not None]


def layers_in(layer):
    """List the layers that a layer refers to other than as its inputs.

    Once for each reference, without those from within functions.
    """
    return _instances(lasagne.layers.Layer,
                      values_in(attributes_of(layer), False))


def references_of(layer):
    """List references as :func:`layers_in`, and those from functions.

    The methods of a user's class are such functions.
    """
    return _instances(lasagne.layers.Layer, values_in(
        attributes_of(layer) + list(methods_of(layer).values())))


def variables_of(layer):
    """List the Theano variables that a layer and its functions refer to."""
    # Without `params`: a parameter may be registered without being used.
    return variables_in(attributes_of(layer, ["params"]) +
                        list(methods_of(layer).values()))


def variables_in(values):
    """List the Theano variables within values, in functions as well."""
    return _instances(theano.Variable, values_in(values))


def shared_in(*values):
    """List the shared variables in expressions; skip other values."""
    return [source for source in theano.gof.graph.inputs(
        [value for value in values if isinstance(value, theano.Variable)])
        if isinstance(source, theano.compile.SharedVariable)]


def _instances(kind, found):
    return [value for value, _ in found if isinstance(value, kind)]


def attributes_of(layer, skip=()):
    """List the values of a layer's attributes, other than its inputs."""
    return [value for name, value in vars(layer).items()
            if name not in ("input_layer", "input_layers", *skip)]


def methods_of(layer):
    """List the methods that a layer has of the user's classes, by name."""
    kind = type(layer)
    return {name: value for base in kind.__mro__ if not of_library(base)
            for name, value in vars(base).items()
            if isinstance(value, types.FunctionType)
            and not name.startswith("__") and name not in vars(layer)
            and getattr(kind, name, None) is value}


def replace_layer(holder, old, new):
    """Have a layer refer to another in the place of one, as input or not."""
    replaced = Replacement(lambda value: new if value is old else value)
    for name, value in vars(holder).items():
        vars(holder)[name] = replaced(value)
