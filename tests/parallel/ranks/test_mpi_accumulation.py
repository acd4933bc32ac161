"""Accumulate gradients of micro-batches on several ranks."""

from bnlasagne import BatchNormLayer, GradientAccumulator, batch_norm

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.ranks import COMM, assert_alike, several
from lasagne.layers import DenseLayer, InputLayer, get_all_params, get_output
from numpy.testing import assert_allclose

pytestmark = pytest.mark.usefixtures("float64", "quick")


def build(comm):
    lasagne.random.set_rng(np.random.RandomState(3))
    x, target = T.matrix(), T.matrix()
    network = InputLayer((None, 4), x)
    for _ in range(2):
        network = batch_norm(DenseLayer(network, 5), comm=comm)
    loss = lasagne.objectives.squared_error(get_output(network),
                                            target).mean()
    return network, [x, target], loss


def values(network):
    return [param.get_value() for param in get_all_params(network)]


# The sizes of each rank's part of three micro-batches; the first ranks' ones.
SIZES = [[3, 5, 2, 4], [2, 4, 6, 1], [4, 0, 3, 2]]


def parts(rng, comm):
    """For each micro-batch, all of it, and this rank's part."""
    for sizes in SIZES:
        ends = np.cumsum(sizes[:comm.size])
        x, target = rng.normal(size=(ends[-1], 4)), rng.normal(
            size=(ends[-1], 5))
        mine = slice(ends[comm.rank] - sizes[comm.rank], ends[comm.rank])
        yield (x, target), (x[mine], target[mine])


def test_synchronized(rng):
    """As one process that has all ranks' parts in each micro-batch."""
    steps, networks = [], []
    for own in (None, COMM):
        network, inputs, loss = build(own)
        accumulator = GradientAccumulator(
            get_all_params(network, trainable=True), comm=own)
        steps.append((accumulator.function(inputs, loss),
                      accumulator.step_function(lasagne.updates.momentum,
                                                learning_rate=0.1)))
        networks.append(network)
    for _ in range(2):
        for whole, part in parts(rng, COMM):
            steps[0][0](*whole)
            steps[1][0](*part)
        for _, step in steps:
            step()
    for one, other in zip(*map(values, networks)):
        assert_allclose(one, other, rtol=1e-11, atol=1e-12)


@several
def test_unsynchronized(rng):
    """Each rank's micro-batches are micro-batches of the step."""
    networks = []
    ranks = list(range(COMM.size))
    batches = list(parts(rng, COMM))
    everyone = COMM.allgather([part for _, part in batches])
    for mine, own in ((ranks, None), ([COMM.rank], COMM)):
        network, inputs, loss = build(None)
        accumulator = GradientAccumulator(
            get_all_params(network, trainable=True), comm=own)
        accumulate = accumulator.function(inputs, loss)
        step = accumulator.step_function(lasagne.updates.sgd,
                                         learning_rate=0.1)
        for rank in mine:
            for part in everyone[rank]:
                accumulate(*part)
        step()
        networks.append(network)
    for one, other in zip(*(get_all_params(network, trainable=True)
                            for network in networks)):
        assert_allclose(one.get_value(), other.get_value(), rtol=1e-11,
                        atol=1e-12)


def test_a_term_without_micro_batches(rng):
    """It counts as zero, on several ranks as on one."""
    w, other = theano.shared(np.zeros(3)), theano.shared(np.ones(2))
    x, y = T.matrix(), T.matrix()
    accumulator = GradientAccumulator([w, other], comm=COMM)
    accumulate = accumulator.function([x], T.mean(T.dot(x, w)))
    accumulator.function([y], T.mean(T.dot(y, other)))
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=1)
    data = rng.normal(size=(3, 3))
    if COMM.rank == 0:
        accumulate(data)
    step()
    assert_allclose(w.get_value(), -data.mean(0), rtol=1e-12)
    assert_allclose(other.get_value(), 1)
    # Now there is nothing at all, which leaves all as it is.
    with pytest.raises(ValueError, match="there is no micro-batch"):
        step()
    assert_allclose(w.get_value(), -data.mean(0), rtol=1e-12)


@several
def test_a_micro_batch_of_size_0_counts_for_nothing(rng):
    """Its rows are there, such as for padding, but do not count."""
    layer = BatchNormLayer((None, 3), alpha=1)
    x, size = T.matrix(), T.scalar()
    accumulator = GradientAccumulator([layer.gamma, layer.beta], comm=COMM)
    accumulate = accumulator.function(
        [x, size], T.sum(layer.get_output_for(x)), size=size)
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=1)
    data = rng.normal(size=(5, 3))
    accumulate(data, 5)
    accumulate(data + 100, 0)
    step()
    assert_allclose(layer.mean.get_value()[0], data.mean(0), rtol=1e-12)


@several
def test_ranks_without_micro_batches(rng):
    network, inputs, loss = build(None)
    accumulator = GradientAccumulator(
        get_all_params(network, trainable=True), comm=COMM)
    accumulate = accumulator.function(inputs, loss)
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=0.1)
    with pytest.raises(ValueError, match="there is no micro-batch"):
        step()
    before = values(network)
    if COMM.rank == 0:
        accumulate(rng.normal(size=(3, 4)), rng.normal(size=(3, 5)))
    step()
    weights = get_all_params(network, trainable=True)[0].get_value()
    assert not np.array_equal(weights, before[0])
    assert_alike(weights)


@several
def test_synchronized_layers_take_a_communicator():
    network, inputs, loss = build(COMM)
    params = get_all_params(network, trainable=True)
    with pytest.raises(ValueError, match="Pass the same comm"):
        GradientAccumulator(params).function(inputs, loss)
    with pytest.raises(ValueError, match="has a communicator"):
        GradientAccumulator(params, comm=COMM).exact_function(inputs, loss)


def test_weights_by_size_without_batch_normalization(rng):
    """The gradient of a mean over all ranks' examples."""
    w = theano.shared(np.zeros(3), "w")
    x = T.matrix()
    accumulator = GradientAccumulator([w], comm=COMM)
    accumulate = accumulator.function([x], T.mean(T.dot(x, w)))
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=1)
    data = rng.normal(size=(10, 3))
    mine = np.split(data, [1, 4, 8])[COMM.rank]
    accumulate(mine)
    step()
    seen = np.concatenate(COMM.allgather(mine))
    assert_allclose(w.get_value(), -seen.mean(0), rtol=1e-12)
