"""What an application leaves in a graph, which costs nothing there."""

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
from helpers.layers import FLAGS, for_testing
from lasagne.layers import InputLayer, get_output
from numpy.testing import assert_allclose

pytestmark = pytest.mark.usefixtures("float64", "quick")

@pytest.fixture
def layer():
    return BatchNormLayer(InputLayer((None, 3)), name="bn")


@pytest.fixture
def batch(rng):
    return rng.normal(2, 3, (5, 3))


def ops(function):
    return {type(node.op).__name__
            for node in function.maker.fgraph.apply_nodes}


def test_prints_its_layer(layer):
    printed = theano.printing.debugprint(
        for_testing(T.matrix(), layer), file="str")
    assert "Marker{BatchNormLayer 'bn'}" in printed


# At no cost, and in no one's way

@pytest.mark.parametrize("deterministic", [False, True])
def test_printed_expressions_are_as_without_markers(layer, deterministic):
    output = get_output(layer, T.matrix("it"), deterministic=deterministic)
    assert theano.printing.pp(output).count("it") == 1


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
    assert applications_in([gradient]) == []


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
