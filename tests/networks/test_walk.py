"""The layers of a network, in order, and those within others."""

from bnlasagne.networks.walk import all_layers, replace_layer

from helpers.networks import recurrent
from lasagne.layers import (
    DenseLayer,
    ElemwiseSumLayer,
    InputLayer,
    Layer,
    get_all_layers,
)


def test_all_layers(x):
    first, second = DenseLayer(x, 4), DenseLayer(x, 4)
    network = ElemwiseSumLayer([first, second])
    assert all_layers([network]) == get_all_layers(network)
    assert all_layers([second, first]) == [x, second, first]
    assert all_layers([network], treat_as_input=[first]) == [
        x, second, network]
    assert all_layers([]) == []
    # Another name for what is below.
    first.also = x
    assert all_layers([first], treat_as_input=[x]) == [first]


def test_all_layers_within_layers():
    network, step_in, step = recurrent(InputLayer((None, 3, 4)))
    outer = DenseLayer(network, 2)
    found = all_layers([outer])
    assert found[:3] == get_all_layers(outer)
    assert found[3:] == get_all_layers(step_in) + get_all_layers(step)


def test_all_layers_of_those_in_containers(x):
    inner = [DenseLayer(x, 2) for _ in range(4)]
    network = Layer(x)
    network.a, network.b = {"key": [inner[0]]}, (inner[1], {inner[2]: 0})
    inner[2].held = inner[3]
    # In a circle, too.
    inner[3].held = network
    assert all_layers([network]) == [x, network] + inner


def test_replace_layer(x):
    old, new, other = (DenseLayer(x, 4) for _ in range(3))
    holder = ElemwiseSumLayer([old, other, old])
    holder.single, holder.several = old, {"them": (other, [old])}
    replace_layer(holder, old, new)
    assert holder.input_layers == [new, other, new]
    assert holder.single is new
    assert holder.several == {"them": (other, [new])}
    above = DenseLayer(old, 3)
    params = dict(above.params)
    replace_layer(above, old, new)
    assert above.input_layer is new and above.params == params
    assert above.input_shape == (None, 4)
