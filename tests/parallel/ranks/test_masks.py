"""Masks and virtual batches of which each rank has a part."""

from bnlasagne import (
    BatchNormLayer,
    GradientAccumulator,
    average_gradients,
    batch_norm,
    update_population_statistics,
)

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.common import tensor
from helpers.layers import averages
from helpers.masks import lengths_mask
from helpers.ranks import COMM, EMPTY, UNEVEN, assert_alike, messages, mine
from lasagne.layers import (
    DenseLayer,
    InputLayer,
    get_all_param_values,
    get_all_params,
    get_output,
    set_all_param_values,
)
from lasagne.nonlinearities import rectify, tanh
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("float64", "quick")

SIZES = pytest.mark.parametrize("sizes", [UNEVEN, EMPTY],
                                ids=["uneven", "one is empty"])
PY = theano.Mode("py", "fast_compile")


def masked_step(comm, x, mask, dy, **kwargs):
    """Output, gradients, and the averages after it."""
    layer = BatchNormLayer((None, None, 3), axes=(0, 1), comm=comm,
                           mask_input=(None, None), **kwargs)
    inputs = [tensor(x), tensor(mask), tensor(dy)]
    output = layer.get_output_for(inputs[:2])
    gradients = theano.grad(None, [inputs[0], layer.gamma, layer.beta],
                            known_grads={output: inputs[2]})
    found = theano.function(inputs, [output, *gradients], mode=PY)(
        x, mask, dy)
    return found + averages(layer)


@SIZES
@pytest.mark.parametrize("kwargs", [
    {}, {"nonlinearity": rectify}, {"r_max": 1.5, "d_max": 0.5}],
    ids=["plain", "rectified", "renormalized"])
def test_masks(rng, expressions, sizes, kwargs):
    """As one process with all of the batch."""
    total, own = mine(sizes)
    x, dy = rng.normal(1, 2, (2, total, 5, 3))
    # The first rank may have nothing that counts.
    mask = lengths_mask(rng.randint(0, 6, total), 5)
    mask[:sizes[0]] = 0
    mask[-1, :2] = COMM.size > 1
    x[mask == 0] = dy[mask == 0] = np.nan
    y, dx, *params, mean, std = masked_step(COMM, x[own], mask[own], dy[own],
                                            **kwargs)
    assert_alike(mean, std)
    found = [y, dx, *(sum(COMM.allgather(param)) for param in params), mean,
             std]
    expected = masked_step(None, x, mask, dy, **kwargs)
    expected[:2] = [each[own] for each in expected[:2]]
    for one, other in zip(found, expected):
        assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_nothing_counts_on_any_rank(rng, expressions):
    x = np.full((4, 5, 3), np.nan)
    found = masked_step(COMM, x, np.zeros((4, 5)), x, beta=3)
    for output, value in zip(found, (0, 0, 0, 0, 0, 1)):
        assert_array_equal(output, np.full_like(output, value))


@SIZES
@pytest.mark.parametrize("kwargs", [{}, {"r_max": 1.5, "d_max": 0.5}],
                         ids=["plain", "renormalized"])
@pytest.mark.parametrize("use", [False, True])
def test_virtual_batches(rng, expressions, sizes, kwargs, use):
    """The averages follow those of all ranks, in the order of the ranks."""
    _, own = mine(sizes)
    x, dy = rng.normal(1, 2, (2, sum(sizes), 3))
    layers = [BatchNormLayer((None, 3), virtual_batch_size=2, comm=comm,
                             alpha=0.3, **kwargs) for comm in (COMM, None)]
    variable, gradient = tensor(x), tensor(dy)
    functions = []
    for layer, update in zip(layers, (True, False)):
        output = layer.get_output_for(variable, batch_norm_use_averages=use,
                                      batch_norm_update_averages=update)
        functions.append(theano.function([variable, gradient], [
            output, theano.grad(None, variable, known_grads={
                output: gradient})], mode=PY))
    for one, other in zip(*(function(x[own], dy[own])
                            for function in functions)):
        assert_allclose(one, other)
    other = BatchNormLayer((None, 3), virtual_batch_size=2, alpha=0.3)
    follow = theano.function([variable], other.get_output_for(variable))
    for part in COMM.allgather(x[own]):
        follow(part)
    assert_alike(*averages(layers[0]))
    for one, two in zip(averages(layers[0]), averages(other)):
        assert_allclose(one, two)
    # Where no average moves, there is nothing to exchange.
    layer, = layers[:1]
    still = theano.function([variable], layer.get_output_for(
        variable, batch_norm_update_averages=False), mode=PY)
    assert messages(still) == []


def build(comm):
    lasagne.random.set_rng(np.random.RandomState(3))
    x, target = T.matrix(), T.matrix()
    network = InputLayer((None, 4), x)
    for _ in range(2):
        network = batch_norm(DenseLayer(network, 5, nonlinearity=tanh),
                             virtual_batch_size=2, comm=comm)
    loss = lasagne.objectives.squared_error(get_output(network),
                                            target).mean()
    return network, [x, target], loss


@pytest.mark.parametrize("of_loss", [True, False])
def test_training_with_virtual_batches(rng, of_loss):
    """Whole virtual batches on each rank: as one process with all of them."""
    _, own = mine((4, 2, 6, 4))
    total = sum((4, 2, 6, 4)[:COMM.size])
    data = rng.normal(size=(total, 4)), rng.normal(size=(total, 5))
    found = []
    for comm in (None, COMM):
        network, inputs, loss = build(comm)
        params = get_all_params(network, trainable=True)
        gradients = theano.grad(loss, params)
        if comm is not None:
            gradients = average_gradients(
                loss if of_loss else gradients, params, COMM,
                inputs[0].shape[0])
        train = theano.function(
            inputs, [], updates=lasagne.updates.sgd(gradients, params, 0.1))
        part = slice(None) if comm is None else own
        for _ in range(2):
            train(*(array[part] for array in data))
        found.append(get_all_param_values(network))
    assert_alike(*found[1])
    for one, other in zip(*found):
        assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_accumulation_with_virtual_batches(rng):
    network, inputs, loss = build(COMM)
    params = get_all_params(network, trainable=True)
    before = get_all_param_values(network)
    x, y = rng.normal(size=(COMM.size, 2, 4, 4)), rng.normal(
        size=(COMM.size, 2, 4, 5))
    accumulator = GradientAccumulator(params, comm=COMM)
    accumulate = accumulator.function(inputs, loss)
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=0.1)
    for micro_batch in zip(x[COMM.rank], y[COMM.rank]):
        accumulate(*micro_batch)
    step()
    found = get_all_param_values(network)
    assert_alike(*found)
    network, inputs, loss = build(None)
    set_all_param_values(network, before)
    params = get_all_params(network, trainable=True)
    # For each micro-batch, the parts of all ranks come one after the other.
    whole = [np.concatenate(each.transpose(1, 0, 2, 3).reshape(
        2, -1, each.shape[-1])) for each in (x, y)]
    theano.function(inputs, [], updates=lasagne.updates.sgd(
        loss, params, 0.1))(*whole)
    for one, other in zip(found, get_all_param_values(network)):
        assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_accumulation_needs_the_communicator():
    network, inputs, loss = build(COMM)
    accumulator = GradientAccumulator(get_all_params(network, trainable=True))
    if COMM.size > 1:
        with pytest.raises(ValueError, match="Pass the same comm"):
            accumulator.function(inputs, loss)


def test_population_statistics_with_masks(rng):
    """Pooled over all ranks, those that have padding alone included."""
    layer = BatchNormLayer(
        InputLayer((None, None, 3)), axes=(0, 1),
        mask_input=InputLayer((None, None)))
    x = rng.normal(2, 3, (COMM.size, 2, 4, 5, 3))
    mask = rng.uniform(size=(COMM.size, 2, 4, 5)) < 0.5
    mask[0, 0] = False
    x[~mask] = np.nan
    update_population_statistics(
        layer, list(zip(x[COMM.rank], mask[COMM.rank].astype("float64"))),
        comm=COMM)
    values = x[mask]
    assert_alike(*averages(layer))
    for average, value in zip(averages(layer), (values.mean(0),
                                                values.std(0))):
        assert_allclose(average[0, 0], value)
