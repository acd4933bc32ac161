"""That ranks meet in one order, and what happens where they would not."""

from bnlasagne import (
    BatchNormLayer,
    RanksDisagree,
    average_gradients,
    plain_expressions,
)
from bnlasagne.parallel.collectives import AllReduce, Average, MergeMoments

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.ranks import COMM, messages, several
from lasagne.layers import DenseLayer, InputLayer, get_all_params, get_output
from numpy.testing import assert_allclose
from theano.compile.builders import OpFromGraph
from theano.ifelse import ifelse

pytestmark = pytest.mark.usefixtures("float64")
PY = theano.Mode("py", "fast_compile")


@pytest.fixture
def batch(rng):
    return rng.normal(COMM.rank, 1, (4, 3))


def check_that_ranks_go_on(batch):
    """After an error, a function that is right works."""
    x = T.matrix()
    y = BatchNormLayer((None, 3), comm=COMM).get_output_for(x)
    found = theano.function([x], y, mode=PY)(batch)
    assert_allclose(sum(COMM.allgather(found.sum(0))), 0, atol=1e-10)


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


def test_one_layer_applied_to_the_same_twice(batch):
    """Theano merges what is the same, and so the messages."""
    x = T.matrix()
    layer = BatchNormLayer((None, 3), comm=COMM)
    function = theano.function(
        [x], [layer.get_output_for(x), 2 * layer.get_output_for(x)], mode=PY)
    assert len(messages(function)) == (COMM.size > 1)
    one, two = function(batch)
    assert_allclose(2 * one, two)


@several
def test_branches_built_in_different_orders(mode, batch):
    x = T.matrix()
    branches = {}
    for name in ("one", "two") if COMM.rank % 2 else ("two", "one"):
        branches[name] = BatchNormLayer((None, 3), name=name,
                                        comm=COMM).get_output_for(x)
    function = theano.function([x], branches["one"] + branches["two"],
                               mode=mode)
    for _ in range(2):
        with pytest.raises(RanksDisagree, match=(
                r"First difference, item 1:\n.*rank \d.*'(one|two)'.*\n"
                r".*rank \d.*'(one|two)'")) as raised:
            function(batch)
        # Without what Theano says of the node.
        text = str(raised.value).split("\nApply node")[0]
        texts = COMM.allgather(text)
        assert texts == texts[:1] * COMM.size
    check_that_ranks_go_on(batch)


@several
def test_different_numbers_of_channels(batch):
    x = T.matrix()
    channels = 4 if COMM.rank == COMM.size - 1 else 3
    layer = BatchNormLayer((None, channels), comm=COMM)
    before = layer.mean.get_value()
    function = theano.function([x], layer.get_output_for(x), mode=PY)
    with pytest.raises(RanksDisagree, match="of (3|4) channels"):
        function(np.ones((2, channels)))
    assert_allclose(layer.mean.get_value(), before)
    check_that_ranks_go_on(batch)


@several
def test_different_numbers_of_layers(batch):
    x = T.matrix()
    y = x
    for number in range(2 if COMM.rank else 3):
        y = BatchNormLayer((None, 3), comm=COMM,
                           name=str(number)).get_output_for(y)
    function = theano.function([x], y, mode=PY)
    with pytest.raises(RanksDisagree, match="(?s)First difference, item 3:.*"
                                            "nothing more"):
        function(batch)
    check_that_ranks_go_on(batch)


@several
def test_different_functions(batch):
    """One trains while the others only look at the output."""
    x = T.matrix()
    layer = BatchNormLayer((None, 3), comm=COMM)
    y = layer.get_output_for(x)
    functions = [theano.function([x], outputs, mode=PY) for outputs in (
        y, theano.grad((y ** 3).sum(), x))]
    for function in functions:
        function(batch)
    before = layer.mean.get_value()
    with pytest.raises(RanksDisagree, match="First difference"):
        functions[COMM.rank == 0](batch)
    assert_allclose(layer.mean.get_value(), before, rtol=0)
    check_that_ranks_go_on(batch)


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
def test_where_no_order_can_be_given(build, batch):
    x = T.matrix()
    layer = BatchNormLayer((None, 3), comm=COMM, name="hidden")
    with pytest.raises(ValueError, match="'hidden'.*inside of .*without comm"):
        # Scans compile what is in them.
        theano.function([x], build(layer, x), mode=PY)
    # Without, it is fine.
    theano.function([x], build(BatchNormLayer((None, 3)), x), mode=PY)
    check_that_ranks_go_on(batch)


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
    check_that_ranks_go_on(batch)
