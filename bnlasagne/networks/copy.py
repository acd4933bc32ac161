"""Copy networks, with parameters and layers within layers."""

import copy
import types

import lasagne
import theano
from theano.gof.graph import ancestors, inputs, io_toposort
from theano.sandbox.rng_mrg import MRG_RandomStreams
from theano.tensor.shared_randomstreams import RandomStreams

from ..theano_tools.next_values import next_value
from .parts import Replacement, values_in
from .walk import attributes_of, methods_of, referred_layers

__all__ = ["copy_network"]

_STREAMS = (MRG_RandomStreams, RandomStreams)


def copy_network(layers):
    """Map the layers of a network to copies, given its output layers.

    The layers are in the order of :func:`referred_layers`. Their copies share
    what they share: parameters, and parts of parameters that are expressions.
    The copy shares its input layers with the original, so that
    ``get_output(copy, {l_in: x})`` works for both.

    A function that refers to layers or parameters of the network is copied as
    well, and so is an object that can be called. Layers and parameters that
    other objects refer to are not copied. Shared variables and random streams
    that no layer has among its parameters or attributes stay the same: a
    function reads them, and users set them, for both networks.
    """
    return _Copier().copy(referred_layers(layers))


class _Copier:
    """Copy layers, variables and random streams, each once."""

    def __init__(self):
        self._layers = {}
        self._variables = {}
        self._streams = {}
        # By the memory of the original: one of the copies that share memory.
        self._in_memory = {}
        self._owned = set()
        self._copied = Replacement(self._leaf)

    def copy(self, layers):
        """Copy layers, each of which may refer to any other."""
        new = [layer for layer in layers if layer not in self._layers]
        self._owned |= _owned_by(new)
        params = {source for layer in layers
                  for source in inputs(list(layer.params))}
        for layer in new:
            if _stays(layer):
                self._keep(layer.input_var, params)
            self._layers[layer] = layer if _stays(layer) else copy.copy(layer)
        for layer in new:
            if not _stays(layer):
                self._fill(layer, self._layers[layer])
        return {layer: self._layers[layer] for layer in layers}

    def _fill(self, layer, new):
        for name, value in vars(layer).items():
            if name != "input_var":  # It may be shared, but is data.
                vars(new)[name] = self._copied(value, new_containers=True)
        for name, function in methods_of(layer).items():
            own = self._copied(function)
            if own is not function:
                vars(new)[name] = types.MethodType(own, new)

    def _keep(self, input_var, params):
        """Have the copy refer to an input variable, not to a copy of it."""
        # Data, as well: the input may be a slice of a shared variable.
        kept = [source for source in ancestors([input_var])
                if source.owner is None and source not in params]
        self._variables.update((each, each) for each in [input_var, *kept])

    def _leaf(self, value):
        if isinstance(value, lasagne.layers.Layer):
            return self._layer(value)
        if isinstance(value, theano.Variable):
            return self._variable(value)
        if isinstance(value, _STREAMS) and value in self._owned:
            return self._stream(value)
        return value

    def _layer(self, layer):
        # An Op may name a layer that is not part of the network.
        if layer not in self._layers:
            self.copy(referred_layers([layer]))
        return self._layers[layer]

    def _stream(self, stream):
        if stream not in self._streams:
            # What was drawn already stays with the original.
            self._streams[stream] = copy.deepcopy(
                stream, {id(stream.state_updates): []})
        return self._streams[stream]

    def _variable(self, variable):
        """Return the copy of a variable; itself, if nothing is copied."""
        if variable in self._variables:
            return self._variables[variable]
        if isinstance(variable, theano.compile.SharedVariable):
            return self._shared(variable)
        if variable.owner is None:
            return variable
        # Starts from what is known, so that parts that several expressions
        # share are shared by their copies.
        for node in io_toposort(list(self._variables), [variable]):
            self._variables.update(zip(node.outputs, self._outputs(node)))
        return self._variables[variable]

    def _outputs(self, node):
        """Return the outputs of a copy of a node; its own, if none is made."""
        op, sources = self._op(node.op), list(map(self._variable, node.inputs))
        if op is node.op and sources == node.inputs:
            return node.outputs
        new = node.clone_with_new_inputs(sources)
        new.op = op
        return new.outputs

    def _op(self, op):
        """Copy an Op that names layers, with the copies of these."""
        own = {name: self._layer(value) for name, value in vars(op).items()
               if isinstance(value, lasagne.layers.Layer)}
        if own:
            op = copy.copy(op)
            vars(op).update(own)
        return op

    def _shared(self, variable):
        memory = variable.container
        if memory not in self._owned:
            return self._variables.setdefault(variable, variable)
        if memory in self._in_memory:
            # An alias, such as the clone of a running average that an
            # application has.
            new = self._in_memory[memory].clone()
            new.name = variable.name
        else:
            new = self._in_memory[memory] = type(variable)(
                name=variable.name, type=variable.type, strict=True,
                value=variable.get_value(return_internal_type=True))
        self._variables[variable] = new
        # Now that the copy is known: both may be made of the variable itself.
        new.tag = copy.copy(variable.tag)
        for name, value in vars(variable.tag).items():
            if isinstance(value, theano.Variable):
                setattr(new.tag, name, self._variable(value))
        update = getattr(variable, "default_update", None)
        if update is not None:
            new.default_update = self._variable(update)
        return new


def _owned_by(layers):
    """Find the random streams and the memory of variables that layers own.

    Layers own their parameters and attributes, and the variables that Theano
    updates these from; not what only functions refer to.
    """
    found, stack = set(), []
    for layer in layers:
        if not _stays(layer):
            held = [value for value, _ in values_in(
                attributes_of(layer, ["input_var"]), False)]
            found.update(each for each in held if isinstance(each, _STREAMS))
            stack += inputs([each for each in held
                             if isinstance(each, theano.Variable)])
    seen = set()
    while stack:
        source = stack.pop()
        if source not in seen and isinstance(
                source, theano.compile.SharedVariable):
            seen.add(source)
            found.add(source.container)
            update = next_value(source)
            stack += [] if update is None else inputs([update])
    return found


def _stays(layer):
    """Tell whether the copy of a network has the layer itself."""
    return isinstance(layer, lasagne.layers.InputLayer) and not layer.params
