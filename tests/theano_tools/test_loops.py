"""Read the graphs that nodes have within them."""

from bnlasagne.theano_tools.loops import all_nodes, inner_graph

import pytest
import theano
import theano.tensor as T
from theano.ifelse import ifelse


@pytest.fixture
def x():
    return T.vector("x")


def loop(x, step):
    return theano.scan(step, [x], non_sequences=[x])[0]


def names_in(outputs):
    return {str(node.op) for node in all_nodes(outputs)}


@pytest.mark.parametrize("within", [
    lambda x: loop(x, lambda each, whole: T.tanh(each) * whole),
    lambda x: loop(x, lambda each, whole: loop(
        whole, lambda _, again: T.tanh(again))),
    lambda x: theano.OpFromGraph([x], [T.tanh(x)])(x),
    lambda x: ifelse(T.gt(x[0], 0), T.tanh(x), x)],
    ids=["loop", "loop in a loop", "graph as an Op", "condition"])
def test_all_nodes(x, within):
    assert "Elemwise{tanh,no_inplace}" in names_in([2 * within(x)])


def test_no_graph_within(x):
    assert inner_graph(T.tanh(x).owner) is None


def test_what_stands_for_inputs_of_a_loop(x):
    outputs, _ = theano.scan(
        lambda each, state, whole: each + state + whole[0], [x],
        [x[0]], [x])
    node = next(node for node in all_nodes([outputs])
                if inner_graph(node) is not None)
    inner = inner_graph(node)
    assert list(inner.constants.values()) == [x]
    # The number of iterations, the sequence, the state, and the constant.
    assert [variable is None for variable in inner.inputs] == [
        True, False, True, False]


def test_what_stands_for_inputs_of_a_graph_as_an_op(x):
    factor = theano.shared(2.)
    node = theano.OpFromGraph([x], [factor * x])(x).owner
    inner = inner_graph(node)
    assert list(inner.constants.values()) == [x, factor]
    assert list(inner.constants) == inner.inputs
