"""Micro-batches of whole virtual batches: as the full batch, in all modes."""

from bnlasagne import GradientAccumulator, batch_norm

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.common import quick
from lasagne.layers import (
    DenseLayer,
    InputLayer,
    get_all_param_values,
    get_all_params,
    get_output,
    set_all_param_values,
)
from lasagne.nonlinearities import linear, tanh
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = [quick, pytest.mark.usefixtures("float64")]

N = 22


def build(sizes):
    """A layer with virtual batches on one without, or the other way round."""
    lasagne.random.set_rng(np.random.RandomState(5))
    x, y = T.matrices(2)
    network = InputLayer((None, 4), x)
    for size in sizes:
        network = batch_norm(DenseLayer(network, 5, nonlinearity=tanh),
                             virtual_batch_size=size, alpha=0.3)
    network = DenseLayer(network, 3, nonlinearity=linear)
    return network, [x, y], T.sqr(get_output(network) - y).mean()


@pytest.fixture
def data(rng):
    return rng.normal(1, 2, (N, 4)), rng.normal(size=(N, 3))


def micro_batches(data, *ends):
    return [tuple(array[start:end] for array in data)
            for start, end in zip((0,) + ends, ends + (N,))]


def trained(network, inputs, loss, data):
    """The loss, and all values after a step on the full batch."""
    before = get_all_param_values(network)
    params = get_all_params(network, trainable=True)
    found = theano.function(inputs, loss, updates=lasagne.updates.sgd(
        loss, params, 0.1))(*data)
    after = get_all_param_values(network)
    set_all_param_values(network, before)
    return found, after


@pytest.mark.parametrize("ends", [(), (4, 12), (8, 16, 20)], ids=str)
@pytest.mark.parametrize("sizes", [(4, 4), (4, None), (None, 4)], ids=str)
def test_exact_function(expressions, data, sizes, ends):
    network, inputs, loss = build(sizes)
    accumulator = GradientAccumulator(get_all_params(network, trainable=True))
    accumulate = accumulator.exact_function(inputs, loss)
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=0.1)
    expected_loss, expected = trained(network, inputs, loss, data)
    for _ in range(2):
        before = get_all_param_values(network)
        assert_allclose(accumulate(micro_batches(data, *ends)), expected_loss)
        for one, other in zip(get_all_param_values(network), before):
            assert_array_equal(one, other)
        accumulator.reset()
    accumulate(micro_batches(data, *ends))
    step()
    for one, other in zip(get_all_param_values(network), expected):
        assert_allclose(one, other, rtol=1e-9, atol=1e-10)


def test_function(expressions, data):
    """Where all layers have virtual batches, nothing couples the rest."""
    network, inputs, loss = build((4, 2))
    accumulator = GradientAccumulator(get_all_params(network, trainable=True))
    accumulate = accumulator.function(inputs, loss)
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=0.1)
    for _ in range(2):
        _, expected = trained(network, inputs, loss, data)
        for micro_batch in micro_batches(data, 4, 12, 20):
            accumulate(*micro_batch)
        step()
        for one, other in zip(get_all_param_values(network), expected):
            assert_allclose(one, other, rtol=1e-9, atol=1e-10)


def test_empty_micro_batches(data):
    network, inputs, loss = build((4,))
    accumulator = GradientAccumulator(get_all_params(network, trainable=True))
    accumulate = accumulator.function(inputs, loss)
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=0.1)
    _, expected = trained(network, inputs, loss, data)
    for micro_batch in micro_batches(data, 0, 12, 12):
        accumulate(*micro_batch)
    step()
    for one, other in zip(get_all_param_values(network), expected):
        assert_allclose(one, other, rtol=1e-9, atol=1e-10)


def test_combine(data):
    """A layer that is applied twice pools, unless told to chain."""
    network, (x, y), loss = build((4,))
    both = loss + T.sqr(get_output(network, 2 * x)).mean()
    params = get_all_params(network, trainable=True)
    found = {}
    for combine in ("chain", "pool"):
        before = get_all_param_values(network)
        accumulator = GradientAccumulator(params, combine=combine)
        accumulate = accumulator.function([x, y], both)
        step = accumulator.step_function(lasagne.updates.sgd,
                                         learning_rate=0.)
        for micro_batch in micro_batches(data, 8):
            accumulate(*micro_batch)
        step()
        found[combine] = get_all_params(network)[1].get_value()
        set_all_param_values(network, before)
    values = get_output(
        lasagne.layers.get_all_layers(network)[1], x).eval({x: data[0]})
    mean = 0
    for part in np.split(values, range(4, N, 4)):
        mean = 0.7 * mean + 0.3 * part.mean(0)
    for part in np.split(2 * values, range(4, N, 4)):
        mean = 0.7 * mean + 0.3 * part.mean(0)
    assert_allclose(found["chain"][0], mean)
    assert_allclose(found["pool"][0], 0.3 * 1.5 * values.mean(0))
