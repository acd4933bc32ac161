"""Train on several ranks as on one rank with the whole batch."""

from bnlasagne import (
    BatchNormLayer,
    RanksDisagree,
    average_gradients,
    batch_norm,
    broadcast_params,
)

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.ranks import (
    COMM,
    EMPTY,
    EVEN,
    PY,
    UNEVEN,
    assert_alike,
    mine,
    several,
)
from lasagne.layers import (
    DenseLayer,
    ElemwiseSumLayer,
    GlobalPoolLayer,
    InputLayer,
    NINLayer,
    NonlinearityLayer,
    get_all_params,
    get_output,
)
from lasagne.nonlinearities import rectify, softmax, tanh
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("float64")


def dense(x, comm):
    network = InputLayer((None, 4), x)
    for nonlinearity in (rectify, tanh):
        network = batch_norm(DenseLayer(network, 5, nonlinearity=nonlinearity),
                             comm=comm)
    return network


def residual(x, comm):
    network = batch_norm(DenseLayer(InputLayer((None, 4), x), 5), comm=comm)
    for _ in range(2):
        branch = BatchNormLayer(network, nonlinearity=rectify, comm=comm)
        branch = batch_norm(DenseLayer(branch, 5, nonlinearity=tanh),
                            comm=comm)
        network = ElemwiseSumLayer([network, branch])
    return NonlinearityLayer(network, tanh)


def pooled(x, comm):
    network = BatchNormLayer(InputLayer((None, 3, 2, 2), x), comm=comm,
                             nonlinearity=tanh)
    network = batch_norm(NINLayer(network, 4), comm=comm)
    return GlobalPoolLayer(network)


def without(x, comm):
    return DenseLayer(InputLayer((None, 4), x), 5, nonlinearity=tanh)


def build(body, comm):
    """A classifier with the same weights on all ranks."""
    lasagne.random.set_rng(np.random.RandomState(5))
    x = T.tensor4() if body is pooled else T.matrix()
    target = T.ivector()
    network = DenseLayer(body(x, comm), 3, nonlinearity=softmax)
    output = get_output(network)
    loss = lasagne.objectives.categorical_crossentropy(output, target).mean()
    loss = loss + 1e-2 * lasagne.regularization.regularize_network_params(
        network, lasagne.regularization.l2)
    accuracy = T.eq(output.argmax(1), target).mean()
    return network, x, target, loss, accuracy


def trainer(body, comm, update, route="loss"):
    """A function for one step, and the network's parameters."""
    network, x, target, loss, accuracy = build(body, comm)
    params = get_all_params(network, trainable=True)
    outputs = [loss, accuracy]
    given = theano.grad(loss, params) if (
        comm is None or route == "gradients") else loss
    if comm is not None:
        given, outputs = average_gradients(given, params, comm, x.shape[0],
                                           outputs=outputs)
    step = theano.function([x, target], outputs,
                           updates=update(given, params), mode=PY)
    return step, get_all_params(network)


def batches(rng, body, all_sizes):
    """Batches of all ranks, and this rank's parts of them."""
    for sizes in all_sizes:
        total, part = mine(sizes)
        x = rng.normal(1, 2, (total,) + (
            (3, 2, 2) if body is pooled else (4,)))
        target = rng.randint(3, size=total).astype("int32")
        yield (x, target), (x[part], target[part])


def check_training(rng, body, update, all_sizes, route="loss"):
    step, params = trainer(body, COMM, update, route)
    whole_step, whole_params = trainer(body, None, update)
    before = [param.get_value() for param in params]
    for whole, part in batches(rng, body, all_sizes):
        found = step(*part)
        assert_alike(*found)
        assert_allclose(found, whole_step(*whole), rtol=1e-9)
        for param, other in zip(params, whole_params):
            assert_allclose(param.get_value(), other.get_value(), rtol=1e-7,
                            atol=1e-9)
        assert_alike(*(param.get_value() for param in params))
    for param, value in zip(params, before):
        assert not np.array_equal(param.get_value(), value), param


def sgd(gradients, params):
    return lasagne.updates.sgd(gradients, params, 0.1)


def momentum(gradients, params):
    return lasagne.updates.momentum(gradients, params, 0.1)


def adam(gradients, params):
    # Its division by roots of gradients would make much of roundings.
    return lasagne.updates.adam(gradients, params, 0.01, epsilon=1e-3)


@pytest.mark.parametrize("body, update", [
    (dense, sgd),
    pytest.param(dense, adam, marks=several),
    pytest.param(residual, momentum, marks=several),
    pytest.param(pooled, adam, marks=several),
])
def test_by_the_loss(rng, body, update):
    # Lasagne's GlobalPoolLayer cannot reshape what is empty.
    second = EVEN if body is pooled else EMPTY
    check_training(rng, body, update, [UNEVEN, second, UNEVEN[::-1]])


@several
@pytest.mark.parametrize("body", [dense, pooled])
def test_by_gradients_of_even_parts(rng, body):
    check_training(rng, body, momentum, [EVEN] * 3, "gradients")


def test_by_gradients_of_uneven_parts(rng):
    """Without synchronized layers, they can be weighted afterwards."""
    check_training(rng, without, sgd, [UNEVEN, EMPTY], "gradients")


@several
# In one of them, a rank has a part of mean size.
@pytest.mark.parametrize("sizes", [(3, 5, 2, 7), (3, 5, 4, 4)])
def test_by_gradients_of_uneven_parts_synchronized(rng, sizes):
    step, params = trainer(dense, COMM, sgd, "gradients")
    (_, part), = batches(rng, dense, [sizes])
    before = [param.get_value() for param in params]
    raised = False
    try:
        step(*part)
    except ValueError as error:
        raised = "pass the loss in the place of gradients" in str(error)
    assert all(COMM.allgather(raised))
    for param, value in zip(params, before):
        assert_array_equal(param.get_value(), value)


@several
@pytest.mark.parametrize("route", ["loss", "gradients"])
def test_no_rank_has_an_example(rng, route):
    step, params = trainer(without, COMM, sgd, route)
    (_, part), = batches(rng, without, [(0,) * 4])
    before = [param.get_value() for param in params]
    with pytest.raises(ValueError, match="no examples"):
        step(*part)
    for param, value in zip(params, before):
        assert_array_equal(param.get_value(), value)


@pytest.mark.parametrize("size", [1, 2.5, np.int64(3), T.constant(1)])
def test_equal_sizes(size):
    w = theano.shared(np.array([1., 2.]), "w")
    loss = ((COMM.rank + 1) * w ** 2).sum()
    gradient, = average_gradients(loss, [w], COMM, size)
    mean = (COMM.size + 1) / 2
    assert_allclose(theano.function([], gradient, mode=PY)(),
                    [2 * mean, 4 * mean], rtol=1e-12)


def test_types_of_averages():
    w = theano.shared(np.ones(2, "float32"), "w")
    v = theano.shared(np.full((1, 2), 2.), "v")
    loss = (w ** 2).sum() + (v ** 2).sum()
    gradients, outputs = average_gradients(
        loss, [w, v], COMM, COMM.rank + 1,
        outputs=[T.constant(COMM.rank)])
    found = theano.function([], gradients + outputs, mode=PY)()
    assert found[0].dtype == "float32"
    assert_allclose(found[0], [2, 2], rtol=1e-6)
    assert_allclose(found[1], [[4, 4]], rtol=1e-12)
    ranks = np.arange(COMM.size)
    assert_allclose(found[2], np.average(ranks, weights=ranks + 1))
    assert average_gradients(loss, [w], COMM, 1, outputs=[])[1] == []


# broadcast_params()

def different(rank):
    """A network with weights and averages of this rank's own."""
    lasagne.random.set_rng(np.random.RandomState(rank))
    network = batch_norm(DenseLayer(InputLayer((None, 4)), 5))
    for param in network.get_params():
        param.set_value(param.get_value() + rank)
    return network


def values_of(network):
    return [param.get_value() for param in get_all_params(network)]


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("root", [0, COMM.size - 1])
def test_broadcast(root, as_list):
    network = different(COMM.rank)
    broadcast_params([network, network] if as_list else network, COMM, root)
    assert_alike(*values_of(network))
    for one, other in zip(values_of(network), values_of(different(root))):
        assert_array_equal(one, other)


def test_broadcast_of_several_types(rng):
    network = different(COMM.rank)
    values = [np.full((2, 3), COMM.rank + 0.1, "float32"),
              np.array(COMM.rank, "int64"), np.zeros((0, 2)),
              np.asfortranarray(rng.normal(size=(2, 4)) + COMM.rank),
              np.array([COMM.rank == 0, True])]
    variables = [theano.shared(value) for value in values]
    broadcast_params(variables[:2] + [network] + variables[2:], COMM)
    first = COMM.bcast(values, 0)
    for variable, value in zip(variables, first):
        assert variable.get_value().dtype == value.dtype
        assert_array_equal(variable.get_value(), value)
    for one, other in zip(values_of(network), values_of(different(0))):
        assert_array_equal(one, other)


@several
@pytest.mark.parametrize("value", [
    np.zeros((3, 2)), np.zeros((2, 3), "float32"), np.zeros((2, 4))])
def test_broadcast_of_what_differs(value):
    network = different(COMM.rank)
    before = values_of(network)
    odd = theano.shared(value if COMM.rank == COMM.size - 1
                        else np.ones((2, 3)), "odd")
    with pytest.raises(RanksDisagree, match="number 5, odd, of shape"):
        broadcast_params([network, odd], COMM)
    for one, other in zip(values_of(network), before):
        assert_array_equal(one, other)
    # And then together.
    broadcast_params(network, COMM)
    assert_alike(*values_of(network))


@several
def test_broadcast_from_different_ranks():
    network = different(COMM.rank)
    before = values_of(network)
    with pytest.raises(RanksDisagree, match="from rank 0"):
        broadcast_params(network, COMM, root=min(COMM.rank, 1))
    for one, other in zip(values_of(network), before):
        assert_array_equal(one, other)


@several
def test_types_do_not_depend_on_values(floatX):
    """An output that is too large for single precision, on one rank."""
    w = theano.shared(np.ones(3, "float32"))
    mean = T.dscalar()
    gradients, [average] = average_gradients(
        [2 * w], [w], COMM, 1, outputs=[mean])
    function = theano.function([mean], gradients + [average], mode=PY)
    gradient, found = function(1e300 if COMM.rank == 0 else 0)
    assert gradient.dtype == "float32" and found.dtype == "float64"
    assert_allclose(gradient, 2)
    assert_allclose(found, 1e300 / COMM.size)
    assert_allclose(function(0.1)[1], 0.1, rtol=1e-15)


@several
def test_outputs_that_differ_are_refused():
    w = theano.shared(np.ones(3))
    outputs = [w.sum()] * (2 if COMM.rank == 0 else 1)
    function = theano.function([], average_gradients(
        w.sum(), [w], COMM, 1, outputs=outputs)[0], mode=PY)
    with pytest.raises(RanksDisagree, match="First difference"):
        function()
