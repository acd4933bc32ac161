"""Applications of layers are found in a graph by their markers."""

from bnlasagne.averages.applications import applications_in

import pytest
import theano
import theano.tensor as T
from helpers.layers import FLAGS, for_testing


def found_in(*outputs):
    return [(each.layer, each.input) for each in applications_in(outputs)]


@pytest.mark.parametrize("flags", FLAGS)
def test_found_in_order_of_application(layer, flags):
    x, y = T.matrices("xy")
    first = layer.get_output_for(x, **flags)
    second = layer.get_output_for(T.tanh(y), **flags)
    third = layer.get_output_for(first, **flags)
    found = applications_in([T.exp(second), third])
    assert [each.layer for each in found] == [layer] * 3
    assert [each.input for each in found] == [
        x, second.owner.inputs[1], first]


@pytest.mark.parametrize("flags", FLAGS)
def test_frozen_layers_are_found(layer, flags):
    layer.frozen = True
    x = T.matrix()
    assert found_in(layer.get_output_for(x, **flags)) == [(layer, x)]


def test_shapes_and_what_is_not_used_do_not_count(layer):
    x = T.matrix()
    output = for_testing(x, layer)
    assert found_in(2 * output.shape, T.zeros_like(output), x) == []


def test_gradients_and_copies_count_once(layer):
    x = T.matrix()
    output = layer.get_output_for(x)
    gradient = T.grad(T.sqr(output).sum(), x)
    assert found_in(output, gradient, theano.clone(output)) == [(layer, x)]
    y = T.matrix()
    clone = theano.clone(output, replace={x: y})
    assert found_in(output, clone) == [(layer, x), (layer, y)]


def test_found_in_branches_once(layer):
    x = T.matrix()
    output = theano.ifelse.ifelse(T.gt(x.sum(), 0), for_testing(x, layer), x)
    assert found_in(output) == [(layer, x)]


def test_found_in_loops(layer):
    x = T.tensor3("x")
    fixed = T.matrix("fixed")

    def step(each):
        inner, _ = theano.scan(lambda row: row * for_testing(2 * fixed, layer),
                               [each])
        return for_testing(each, layer) + inner.sum()

    outputs, _ = theano.scan(step, [x])
    roots = [theano.gof.graph.inputs([each])
             for _, each in found_in(outputs)]
    # What is the same in each iteration is given from outside.
    assert sorted(fixed in each for each in roots) == [False, True]
    assert not any(x in each for each in roots)
