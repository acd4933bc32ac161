"""Copies of networks."""

from collections import namedtuple
from copy import deepcopy
from functools import lru_cache, partial

from bnlasagne import BatchNormLayer, batch_norm
from bnlasagne.networks.copy import copy_network
from bnlasagne.networks.walk import all_layers

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.common import later
from helpers.networks import recurrent
from lasagne.layers import (
    ConcatLayer,
    DenseLayer,
    DropoutLayer,
    InputLayer,
    Layer,
    get_all_layers,
    get_all_params,
    get_output,
)
from numpy.testing import assert_array_equal
from theano.gof.graph import ancestors, inputs, io_toposort
from theano.sandbox.rng_mrg import MRG_RandomStreams
from theano.tensor.shared_randomstreams import RandomStreams

pytestmark = pytest.mark.usefixtures("float64", "quick")


def values(layers):
    return [param.get_value() for param in get_all_params(layers)]


def fill(layers, value):
    for param in get_all_params(layers):
        param.set_value(np.full_like(param.get_value(), value))


# --- copies ----------------------------------------------------------------

def test_copies_in_order(x):
    first = DenseLayer(x, 4, name="first")
    network = ConcatLayer([first, DenseLayer(first, 3), x])
    copies = copy_network([network, first])
    assert list(copies) == all_layers([network, first])
    assert list(copies.values()) == all_layers(
        [copies[network], copies[first]])
    assert set(copies) & set(copies.values()) == {x}
    for layer, copy in copies.items():
        assert type(copy) is type(layer)
        assert copy.name == layer.name
        assert copy.output_shape == layer.output_shape
    assert copies[network].input_layers == [
        copies[layer] for layer in network.input_layers]
    assert copies[network].input_layers is not network.input_layers


def test_parameters_are_independent(x):
    network = batch_norm(DenseLayer(x, 4))
    network.more = {"list": [1]}
    copy = copy_network([network])[network]
    before = values(copy)
    for param in get_all_params(network):
        # As functions may do it, in place.
        param.get_value(borrow=True)[...] = 1
    for value, now in zip(before, values(copy)):
        assert_array_equal(now, value)
    fill(network, 2)
    for value, now in zip(before, values(copy)):
        assert_array_equal(now, value)
    fill(copy, 3)
    for value in values(network):
        assert np.all(value == 2)
    layer = network.input_layer
    copy.input_layer.params[copy.input_layer.W].add("new")
    assert layer.params == {layer.W: {"trainable", "regularizable"}}
    copy.more["list"].append(2)
    assert network.more == {"list": [1]}


def test_parameters_are_alike(x):
    W = theano.shared(np.ones((4, 1)), "w", broadcastable=(False, True))
    W.tag.test_value = np.zeros((4, 1))
    network = DenseLayer(x, 1, W=W, b=None)
    network.params[W].add("own")
    copy = copy_network([network])[network]
    assert copy.W is not W and copy.b is None
    assert type(copy.W) is type(W) and copy.W.type == W.type
    assert copy.W.name == "w"
    assert copy.W.tag.test_value is W.tag.test_value
    assert copy.params == {copy.W: {"trainable", "regularizable", "own"}}
    copy.W.tag.new = True
    assert not hasattr(W.tag, "new")


def test_order_of_parameters(x):
    network = batch_norm(DenseLayer(x, 4, name="fc"))
    copy = copy_network([network])[network]
    assert [param.name for param in get_all_params(copy)] == [
        param.name for param in get_all_params(network)]


def test_shared_parameters_stay_shared(x):
    first = DenseLayer(x, 4)
    second = DenseLayer(first, 4, W=first.W)
    norm = BatchNormLayer(second, alpha=theano.shared(0.5))
    norm.also = [first.W, norm.alpha]
    copies = copy_network([norm])
    assert copies[first].W is copies[second].W is copies[norm].also[0]
    assert copies[first].W is not first.W
    assert copies[first].b is not copies[second].b
    assert copies[norm].alpha is copies[norm].also[1] is not norm.alpha


class OwnInputLayer(InputLayer):
    pass


@pytest.mark.parametrize("kind", [InputLayer, OwnInputLayer])
@pytest.mark.parametrize("shared", [False, True])
def test_inputs_stay(kind, shared):
    variable = theano.shared(np.ones((2, 4))) if shared else T.matrix()
    layer = kind((2, 4), variable)
    network = DenseLayer(layer, 3)
    copies = copy_network([network])
    assert copies[layer] is layer and layer.input_var is variable
    assert copies[network].input_layer is layer


def test_inputs_with_parameters_are_copied():
    layer = OwnInputLayer((2, 4), theano.shared(np.ones((2, 4))))
    layer.offset = layer.add_param(np.ones(4), (4,), "offset")
    copies = copy_network([DenseLayer(layer, 3)])
    assert copies[layer] is not layer
    assert copies[layer].offset is not layer.offset
    assert copies[layer].input_var is layer.input_var


def test_order_of_copies(x):
    """That of all_layers(), although what is within comes first."""
    holder = DenseLayer(x, 3)
    holder.within = DenseLayer(InputLayer((None, 4)), 3)
    network = DenseLayer(holder, 3)
    assert list(copy_network([network])) == all_layers([network])


Pair = namedtuple("Pair", "first, second")


def test_named_tuples(x):
    holder = DenseLayer(x, 3)
    holder.pair = Pair(x, DenseLayer(x, 4))
    copies = copy_network([holder])
    pair = copies[holder].pair
    assert isinstance(pair, Pair) and pair.first is x
    assert pair.second is copies[holder.pair.second] is not holder.pair.second


@later
def test_expressions(x):
    w, b = theano.shared(np.ones((3, 4)), "w"), theano.shared(np.ones(3), "b")
    first = DenseLayer(x, 3, W=T.exp(w.T), b=T.sqr(b))
    second = DenseLayer(first, 4, W=w, b=T.dot(w.T, b))
    copies = copy_network([second])
    sources = get_all_params(copies[second])
    assert [source.name for source in sources] == ["w", "b"]
    assert not {w, b} & set(sources)
    assert copies[second].W is sources[0]
    assert list(copies[first].params) == [copies[first].W, copies[first].b]
    outputs = [theano.function([x.input_var], get_output(layer))
               for layer in (second, copies[second])]
    ones = np.ones((1, 4))
    assert_array_equal(outputs[0](ones), outputs[1](ones))
    fill(second, 2)
    assert np.all(outputs[0](ones) != outputs[1](ones))
    fill(copies[second], 2)
    assert_array_equal(outputs[0](ones), outputs[1](ones))


@later
def test_expressions_of_inputs(x):
    bias, w = T.vector(), theano.shared(np.ones((4, 3)))
    network = DenseLayer(x, 3, W=w * x.input_var.sum(), b=bias)
    copy = copy_network([network])[network]
    assert copy.b is bias
    function = theano.function([x.input_var, bias], get_output(copy))
    assert_array_equal(function(np.ones((1, 4)), np.arange(3)),
                       16 + np.arange(3)[None])


def test_what_functions_update(x):
    W = theano.shared(np.ones((4, 3)))
    step = theano.shared(np.float64(1))
    W.default_update = W + step
    network = DenseLayer(x, 3, W=W)
    network.step = step
    copy = copy_network([network])[network]
    function = theano.function([x.input_var], get_output(copy))
    assert_array_equal(function(np.ones((1, 4))), np.full((1, 3), 4))
    copy.step.set_value(np.array(2.0))
    assert_array_equal(function(np.ones((1, 4))), np.full((1, 3), 8))
    assert_array_equal(function(np.ones((1, 4))), np.full((1, 3), 16))
    assert_array_equal(W.get_value(), np.ones((4, 3)))


def test_layers_within_layers():
    x = InputLayer((None, 3, 4))
    network, step_in, step = recurrent(x)
    copies = copy_network([network])
    assert list(copies) == all_layers([network])
    copy = copies[network]
    assert copy.input_to_hidden is copies[step_in]
    assert copy.hidden_to_hidden is copies[step]
    assert all_layers([copy]) == list(copies.values())
    assert not set(get_all_params(copy)) & set(get_all_params(network))
    assert len(get_all_params(copy)) == len(get_all_params(network))


def test_layers_that_refer_to_each_other(x):
    below = DenseLayer(x, 4)
    above = DenseLayer(below, 4)
    below.above = above
    holder = DenseLayer(InputLayer((None, 4)), 4)
    holder.held = above
    copies = copy_network([holder])
    assert copies[holder].held is copies[above]
    assert copies[above].input_layer is copies[below]
    assert copies[below].above is copies[above]


def test_bound_methods(x):
    def own(self, input, **kwargs):
        return self.b + 0 * input

    network = DenseLayer(x, 4)
    network.get_output_for = own.__get__(network)
    network.nonlinearity = lasagne.nonlinearities.LeakyRectify(0.5).__call__
    copy = copy_network([network])[network]
    assert copy.get_output_for.__self__ is copy
    assert copy.nonlinearity.__self__ is network.nonlinearity.__self__
    fill(copy, 7)
    output = theano.function([x.input_var], get_output(copy))
    assert np.all(output(np.ones((1, 4))) == 7)


# --- functions -------------------------------------------------------------

everywhere = None


def of_closure(layer):
    def inner():
        return layer.b
    return lambda: inner()


def of_default(layer):
    return lambda layers=(layer,), *, more={"a": layer}: (
        layers[0].b + 0 * more["a"].b)


def of_global(layer):
    global everywhere
    everywhere = {"here": [layer]}
    return lambda: helper()


def helper():
    # A copied function has the names of Python, too.
    return list(everywhere["here"])[0].b


def of_global_method(layer):
    """A method of a library's class."""
    global method
    method = layer.get_params
    return lambda: method()[1]


def of_partial(layer):
    return partial(lambda b, factor: factor * b, layer.b, factor=1)


def of_method(layer):
    return Returns(layer).get


def of_object(layer):
    return Returns(layer)


def of_itself(layer):
    """It refers to the layer in its second call only."""
    def twice(count=1):
        return again(count - 1) if count else layer.b

    def again(count):
        return twice(count)
    return twice


def of_list_with_itself(layer):
    functions = [lambda: functions[1](), lambda: layer.b]
    return functions[0]


def of_parameter(layer):
    b = layer.b
    return lambda: b


class Returns:
    def __init__(self, layer):
        self.layer = layer

    def get(self):
        return self.layer.b

    __call__ = get


@pytest.mark.parametrize("make", [
    of_closure, of_default, of_global, of_global_method, of_itself,
    of_list_with_itself, of_partial, of_method, of_object, of_parameter])
def test_functions_get_copies(x, make):
    layer, network = DenseLayer(x, 4), Layer(x)
    network.function = make(layer)
    if make in (of_partial, of_parameter):
        network.layer = layer
    copies = copy_network([network])
    # Both are evaluated with what functions find when they are called.
    for original, expected in [(True, layer.b), (False, copies[layer].b)]:
        function = (network if original else copies[network]).function
        assert [each for each in inputs([function()]) if isinstance(
            each, theano.compile.SharedVariable)] == [expected]


def test_layers_that_share_a_function(x):
    """It refers to one of the layers that has it."""
    first, second = Layer(x), Layer(x)
    first.function = second.function = lambda: second
    copies = copy_network([first])
    assert copies[first].function is copies[second].function
    assert copies[first].function() is copies[second] is not second


def test_methods_get_copies(x):
    layer = DenseLayer(x, 4)

    class Adds(Layer):
        def get_output_for(self, input, **kwargs):
            return input + super().get_output_shape_for(
                (1,))[0] + layer.b

    network = Adds(layer)
    copies = copy_network([network])
    copy = copies[network]
    assert type(copy) is Adds and vars(network).keys() < vars(copy).keys()
    sources = inputs([copy.get_output_for(x.input_var)])
    assert copies[layer].b in sources and layer.b not in sources


def test_functions_of_nothing_else_stay(x):
    def double(x, factor=2):
        return factor * T.dot(x, numbers) * np.float64(1)

    numbers = np.ones((4, 4))
    network = DenseLayer(x, 4, nonlinearity=double)
    network.others = [
        partial(double, factor=3), lasagne.nonlinearities.rectify, np.sqrt,
        T.sqr, Layer, Returns(None)]
    network.recursive = lambda: network and network.recursive
    copy = copy_network([network])[network]
    assert copy.nonlinearity is double
    assert copy.others == network.others
    assert copy.recursive is not network.recursive
    assert copy.recursive.__closure__[0].cell_contents is copy


control = theano.shared(np.float64(1), "control")


def scaled_by_control(x):
    return x * control


@pytest.mark.parametrize("make", [
    lambda: scaled_by_control, lambda: partial(T.mul, control),
    lambda: Returns(control).get, lambda: Returns(control)])
def test_variables_of_functions_stay(x, make):
    """They are no parameters: users set them for both networks."""
    network = DenseLayer(x, 4, nonlinearity=make())
    assert copy_network([network])[network].nonlinearity \
        is network.nonlinearity


@pytest.mark.parametrize("add", [
    lambda layer, slope: layer.params.update({slope: set()}),
    lambda layer, slope: setattr(layer, "slope", slope)])
def test_variables_of_functions_and_layers_are_copied(x, add):
    slope = theano.shared(np.float64(1))
    network = DenseLayer(x, 4, nonlinearity=lambda: slope)
    add(network, slope)
    copy = copy_network([network])[network].nonlinearity()
    assert copy is not slope and copy.get_value() == 1


def test_streams_of_functions_stay(x):
    streams = MRG_RandomStreams(1)
    network = DenseLayer(
        x, 4, nonlinearity=lambda x: x * streams.uniform(x.shape))
    assert copy_network([network])[network].nonlinearity \
        is network.nonlinearity


def test_objects_without_copies_stay(x):
    """What looks like a function may be the only one of its kind."""
    layer, network = DenseLayer(x, 4), Layer(x)
    network.function = lru_cache(None)(lambda: layer.b)
    before = dict(vars(network.function))
    assert copy_network([network])[network].function is network.function
    assert vars(network.function) == before


def test_variables_that_functions_change_stay_common(x):
    count = 0

    def counts():
        nonlocal count
        count += 1
        return network.b

    network = DenseLayer(x, 4)
    network.function = counts
    copy = copy_network([network])[network]
    assert copy.function() is copy.b and network.function() is network.b
    assert count == 2


def test_functions_that_share_a_variable(x):
    layer = DenseLayer(x, 4)

    def change(new):
        nonlocal layer
        layer = new

    network = Layer(x)
    network.functions = [lambda: layer]
    network.change = change
    copies = copy_network([network])
    copy, copied = copies[network], copies[layer]
    copy.change("other")
    assert copy.functions[0]() == "other"
    assert network.functions[0]() is layer is not copied


def test_functions_of_variables_without_values(x):
    """As while a class or a module is still being made."""
    def function():
        return layer, missing

    layer, network = DenseLayer(x, 4), Layer(x)
    network.function = function
    copy = copy_network([network])[network].function
    with pytest.raises(NameError, match="missing"):
        copy()
    missing = 1
    assert copy()[0] is not layer and copy()[1] == 1


def test_containers_with_themselves(x):
    network = DenseLayer(x, 4)
    network.circle = [network]
    network.circle.append(network.circle)
    copy = copy_network([network])[network]
    assert copy.circle[0] is copy and copy.circle[1] is copy.circle


def test_functions_that_use_inputs_stay(x):
    network = Layer(DenseLayer(x, 4))
    network.function = lambda output: output + x.input_var
    assert copy_network([network])[network].function is network.function


# --- variables -------------------------------------------------------------

def test_data_is_not_copied():
    """Neither the input, nor the data that it is a slice of."""
    data = theano.shared(np.ones((6, 4)))
    layer = InputLayer((None, 4), data[:3])
    network = DenseLayer(layer, 4)
    network.sizes = [layer.input_var.shape[0], data.shape[0] + network.b[0]]
    copy = copy_network([network])[network]
    assert copy.sizes[0] is network.sizes[0]
    assert set(inputs(copy.sizes)) & {data, network.b} == {data}


def test_parameters_that_inputs_depend_on():
    layer = DenseLayer(InputLayer((None, 4)), 4)
    network = DenseLayer(InputLayer((4, 4), 2 * layer.W), 4, W=layer.W)
    copy = copy_network([network])[network]
    assert copy.W is not layer.W
    assert copy.input_layer is network.input_layer


def test_expressions_share_their_parts(x):
    network = DenseLayer(x, 4)
    part = T.exp(network.W)
    network.parts = [part, part.sum(), part + network.W]
    copy = copy_network([network])[network]
    assert copy.parts[0] in ancestors([copy.parts[1]])
    assert copy.parts[0] in ancestors([copy.parts[2]])
    assert not {part, network.W} & set(ancestors(copy.parts))


@pytest.mark.parametrize("copied", [
    lambda layer: copy_network([layer])[layer], deepcopy])
def test_applications_within_attributes(copied):
    """A copied application moves the averages of the copy."""
    x = InputLayer((None, 4), theano.shared(np.ones((2, 4))))
    layer = BatchNormLayer(x)
    layer.alpha = layer.also = theano.shared(0.25)
    network = Layer(layer)
    network.output = get_output(layer)
    copy = copied(network)
    before = values(network)
    alias, = {each for each in inputs([copy.output])
              if getattr(each.tag, "average", None) is copy.input_layer.mean}
    assert alias.container is copy.input_layer.mean.container
    assert copy.input_layer.also is copy.input_layer.alpha
    assert {node.op.layer for node in io_toposort([], [copy.output])
            if hasattr(node.op, "layer")} == {copy.input_layer}
    theano.function([], copy.output)()
    assert_array_equal(copy.input_layer.mean.get_value(), np.full((1, 4), .25))
    for value, now in zip(before, values(network)):
        assert_array_equal(now, value)


# --- random numbers --------------------------------------------------------

def masks(layer, count=2):
    """What dropout does, one time after the other."""
    x = T.ones((1, 50))
    return np.array(theano.function(
        [], [layer.get_output_for(x) for _ in range(count)])())


@pytest.mark.parametrize("streams", [MRG_RandomStreams, RandomStreams])
def test_random_streams_stay(streams):
    def layer():
        layer = DropoutLayer(InputLayer((1, 50)))
        layer._srng = streams(1)
        return layer

    expected = masks(layer())
    original = layer()
    copy = copy_network([original])[original]
    # Both go on from where they were, on their own.
    assert_array_equal(masks(copy), expected)
    assert_array_equal(masks(original), expected)
    later = copy_network([original])[original]
    assert len(original._srng.state_updates) == len(expected)
    assert not later._srng.state_updates
    assert np.any(masks(later) != expected)
    assert_array_equal(masks(original), masks(copy))


def test_shared_random_streams_stay_shared(x):
    first = DropoutLayer(x)
    second = DropoutLayer(first)
    first._srng = second._srng = MRG_RandomStreams(1)
    copies = copy_network([second])
    assert copies[first]._srng is copies[second]._srng is not first._srng


# --- depth -----------------------------------------------------------------

def test_deep_network(x):
    network = x
    for _ in range(250):
        network = batch_norm(DenseLayer(network, 4))
    copies = copy_network([network])
    assert len(copies) == len(get_all_layers(copies[network])) == 501


def test_deep_network_within_a_layer(x):
    inner = x
    for _ in range(500):
        inner = Layer(inner)
    network = Layer(InputLayer((None, 4)))
    network.inner = inner
    copies = copy_network([network])
    assert len(all_layers([copies[network]])) == 503
    assert copies[network].inner is copies[inner]
