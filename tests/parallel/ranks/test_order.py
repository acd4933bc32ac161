"""Check that ranks meet in one order, or not at all."""

from bnlasagne import BatchNormLayer, average_gradients, plain_expressions
from bnlasagne.parallel.collectives import AllReduce, Average, MergeMoments

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.ranks import COMM, PY, assert_ranks_go_on, messages, several
from lasagne.layers import DenseLayer, InputLayer, get_all_params, get_output
from numpy.testing import assert_allclose
from theano.compile.builders import OpFromGraph
from theano.ifelse import ifelse

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def batch(rng):
    return rng.normal(COMM.rank, 1, (4, 3))


@several
@pytest.mark.parametrize("fused", [True, False])
def test_schedule(mode, batch, fused):
    """One message per layer forward, one backward, and one for the rest."""
    x = T.matrix()
    network = InputLayer((None, 3), x)
    for name, size in (("lower", 5), ("upper", 2)):
        network = BatchNormLayer(DenseLayer(network, size), comm=COMM,
                                 name=name)
    params = get_all_params(network, trainable=True)
    if fused:
        loss = (get_output(network) ** 3).mean()
    else:
        with plain_expressions():
            loss = (get_output(network) ** 3).mean()
    gradients, (loss,) = average_gradients(loss, params, COMM, x.shape[0],
                                           outputs=[loss])
    function = theano.function(
        [x], loss, updates=lasagne.updates.sgd(gradients, params, 0.1),
        mode=mode)
    nodes = messages(function)
    assert all(node.op.ordered for node in nodes)
    assert [type(node.op) for node in nodes] == [
        MergeMoments, MergeMoments, AllReduce, AllReduce, Average]
    names = [node.op.what for node in nodes]
    for name, layer in zip(names, ["lower", "upper", "upper", "lower"]):
        assert "BatchNormLayer '%s'" % layer in name
    assert ["gradient of " in name for name in names[:4]] == [
        False, False, True, True]
    assert np.isfinite(function(batch))


@several
@pytest.mark.parametrize("reverse", [False, True])
def test_order_is_that_of_creation(mode, batch, reverse):
    """Whatever the order is in which a function returns what it computes."""
    x = T.matrix()
    names = ["layer %d" % number for number in range(6)]
    outputs = [BatchNormLayer((None, 3), comm=COMM, name=name, alpha=1)
               .get_output_for(x * (1 + number)).sum()
               for number, name in enumerate(names)]
    function = theano.function([x], outputs[::-1] if reverse else outputs,
                               mode=mode)
    nodes = messages(function)
    assert len(nodes) == len(names)
    for node, name in zip(nodes, names):
        assert "'%s'" % name in node.op.what
    function(batch)


@several
def test_order_where_the_older_needs_the_newer(mode, batch):
    x, u = T.matrices("xu")
    older, newer = (BatchNormLayer((None, 3), comm=COMM, name=name)
                    .get_output_for(variable)
                    for name, variable in (("older", u), ("newer", x)))
    function = theano.function([x], older, givens={u: 2 * newer}, mode=mode)
    first, second = messages(function)
    assert "'newer'" in first.op.what and "'older'" in second.op.what
    assert np.isfinite(function(batch)).all()


def test_one_layer_applied_to_the_same_twice(batch):
    """Theano merges what is the same, and so the messages."""
    x = T.matrix()
    layer = BatchNormLayer((None, 3), comm=COMM)
    function = theano.function(
        [x], [layer.get_output_for(x), 2 * layer.get_output_for(x)], mode=PY)
    assert len(messages(function)) == (COMM.size > 1)
    one, two = function(batch)
    assert_allclose(2 * one, two)


def in_scan(layer, x):
    return theano.scan(lambda row: apply(layer, row.dimshuffle("x", 0)),
                       sequences=[x])[0]


def in_branch(layer, x):
    return ifelse(T.gt(x.sum(), 0), apply(layer, x), x)


def in_other_branch(layer, x):
    return ifelse(T.gt(x.sum(), 0), x, 2 * apply(layer, x))


def in_graph(layer, x):
    inner = T.matrix()
    return OpFromGraph([inner], [apply(layer, inner)])(x)


def in_graph_in_scan(layer, x):
    return theano.scan(lambda row: in_graph(layer, row.dimshuffle("x", 0)),
                       sequences=[x])[0]


def apply(layer, x):
    return layer.get_output_for(x, batch_norm_update_averages=False)


@several
@pytest.mark.parametrize("build", [in_scan, in_branch, in_other_branch,
                                   in_graph, in_graph_in_scan])
def test_where_no_order_can_be_given(build):
    x = T.matrix()
    layer = BatchNormLayer((None, 3), comm=COMM, name="hidden")
    with pytest.raises(ValueError, match="'hidden'.*inside of .*without comm"):
        # Scans compile what is in them.
        theano.function([x], build(layer, x), mode=PY)
    # Without, it is fine.
    theano.function([x], build(BatchNormLayer((None, 3)), x), mode=PY)
    assert_ranks_go_on()


@several
def test_condition_of_a_branch(batch):
    """It is computed in any case."""
    x = T.matrix()
    y = BatchNormLayer((None, 3), comm=COMM).get_output_for(x)
    function = theano.function([x], ifelse(T.gt(y.sum(), 1e9), x, 2 * x),
                               mode=PY)
    assert_allclose(function(batch), 2 * batch)


@several
def test_without_optimizations(batch):
    x = T.matrix()
    y = BatchNormLayer((None, 3), comm=COMM).get_output_for(x)
    function = theano.function([x], y, mode=theano.Mode("py", None))
    with pytest.raises(RuntimeError, match="compiled without optimizations"):
        function(batch)
    assert_ranks_go_on()
