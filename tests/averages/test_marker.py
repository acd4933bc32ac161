"""What applications leave in a graph, and that it costs nothing there."""

import pickle

from bnlasagne import BatchNormLayer, plain_expressions
from bnlasagne.averages.applications import applications_in
from bnlasagne.networks.outputs import have_equal_graphs

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from lasagne.layers import InputLayer, get_output
from numpy.testing import assert_allclose

pytestmark = pytest.mark.usefixtures("float64", "quick")

FLAGS = [{}, {"deterministic": True}, {"batch_norm_update_averages": False},
         {"batch_norm_use_averages": True}]


@pytest.fixture
def layer():
    return BatchNormLayer(InputLayer((None, 3)), name="bn")


@pytest.fixture
def batch(rng):
    return rng.normal(2, 3, (5, 3))


def for_testing(x, layer):
    return layer.get_output_for(x, deterministic=True)


def found_in(*outputs):
    return [(each.layer, each.input) for each in applications_in(outputs)]


def ops(function):
    return {type(node.op).__name__
            for node in function.maker.fgraph.apply_nodes}


# Finding applications

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


def test_prints_its_layer(layer):
    printed = theano.printing.debugprint(
        for_testing(T.matrix(), layer), file="str")
    assert "Marker{BatchNormLayer 'bn'}" in printed


# At no cost, and in no one's way

@pytest.mark.parametrize("flags", FLAGS)
def test_functions_are_as_without_markers(layer, batch, mode, flags):
    x = T.matrix()
    function = theano.function([x], layer.get_output_for(x, **flags),
                               mode=mode)
    assert "Marker" not in ops(function)
    function(batch)


def test_testing_in_graphs_of_other_ops(layer, batch):
    x = T.matrix()
    expected = reference.normalize(batch, 0, 1)
    for inline in False, True:
        op = theano.OpFromGraph([x], [for_testing(x, layer)], inline=inline)
        function = theano.function([x], op(x) + T.grad(op(x).sum(), x) * 0)
        assert "Marker" not in ops(function)
        assert_allclose(function(batch), expected)
    branch = theano.ifelse.ifelse(T.gt(x.sum(), 1e9), x, for_testing(x, layer))
    assert_allclose(theano.function([x], branch)(batch), expected)
    loop, _ = theano.scan(
        lambda row: for_testing(row.dimshuffle("x", 0), layer)[0], [x])
    assert_allclose(theano.function([x], loop)(batch), expected)


def test_testing_without_a_function_of_the_users(layer, batch):
    x = T.matrix()
    assert_allclose(for_testing(x, layer).eval({x: batch}),
                    reference.normalize(batch, 0, 1))
    y = T.matrix()
    clone = theano.clone(for_testing(x, layer), replace={x: 2 * y})
    assert_allclose(clone.eval({y: batch}),
                    reference.normalize(2 * batch, 0, 1))


def test_testing_forward(layer, batch):
    x, v = T.matrices("xv")
    with plain_expressions():
        derivative = T.Rop(for_testing(x, layer), x, v)
    assert_allclose(derivative.eval({x: batch, v: batch}), batch / 1.01)


def test_gradients_for_testing_are_not_marked(layer):
    x = T.matrix()
    gradient = T.grad(for_testing(x, layer).sum(), x)
    assert not found_in(gradient)


def test_pickles_of_graphs_for_testing_leave_the_layer_out(batch):
    x = T.matrix()
    layer = BatchNormLayer(InputLayer((None, 3), x))
    layer.hook = lambda: None  # which cannot be pickled
    output = get_output(layer, deterministic=True)
    x, output = pickle.loads(pickle.dumps((x, output), -1))
    expected = reference.normalize(batch, 0, 1)
    assert_allclose(output.eval({x: batch}), expected)
    function = theano.function([x], output)
    assert_allclose(pickle.loads(pickle.dumps(function, -1))(batch), expected)


# Comparing graphs

class Other(BatchNormLayer):
    factor = 1

    def get_output_for(self, input, **kwargs):
        if self.factor != 1:
            input = self.factor * input
        return super().get_output_for(input, **kwargs)


def test_graphs_for_testing_are_compared_by_what_they_compute(layer):
    other = Other(layer.input_layer, mean=layer.mean, std=layer.std,
                  beta=layer.beta, gamma=layer.gamma)
    assert have_equal_graphs(layer, other)
    other.factor = 2
    assert not have_equal_graphs(layer, other)
    other.factor, other.mean = 1, theano.shared(np.zeros((1, 3)))
    assert not have_equal_graphs(layer, other)
    other.mean = layer.mean
    other.nonlinearity = lasagne.nonlinearities.tanh
    assert not have_equal_graphs(layer, other)
