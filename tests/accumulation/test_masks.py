"""Micro-batches with padding: only the values that a mask counts weigh."""

from bnlasagne import (
    BatchNormLayer,
    GradientAccumulator,
    batch_norm,
    plain_expressions,
)

import lasagne
import numpy as np
import pytest
import theano.tensor as T
from helpers import full_batch
from helpers.common import quick
from helpers.masks import Unpadded, lengths_mask
from lasagne.layers import (
    DenseLayer,
    InputLayer,
    NINLayer,
    get_all_layers,
    get_all_params,
    get_output,
)
from lasagne.nonlinearities import linear, tanh
from numpy.testing import assert_allclose

pytestmark = [quick, pytest.mark.usefixtures("float64")]

RATE = 0.1
LENGTHS = [6, 2, 5, 0, 1, 6, 0, 3]
TIME = 6


def build(incoming, kind, **kwargs):
    """Two normalized layers; convolutions of size 1 are dense layers."""
    lasagne.random.set_rng(np.random.RandomState(5))
    network = incoming
    for units in (5, 4):
        network = batch_norm(kind(network, units, nonlinearity=tanh),
                             gamma=lasagne.init.Uniform((0.5, 1.5)), **kwargs)
    return kind(network, 3, b=None, nonlinearity=linear)


class Padded:
    """A network on padded sequences, and the same without padding."""

    def __init__(self):
        self.x, self.y, self.mask = T.tensor3(), T.tensor3(), T.matrix()
        mask = InputLayer((None, TIME), self.mask)
        self.network = build(InputLayer((None, 3, TIME), self.x), NINLayer,
                             mask_input=mask)
        self.size = self.mask.sum()
        error = T.sqr(get_output(self.network) - self.y).mean(1)
        self.loss = (T.switch(self.mask, error, 0)).sum() / T.maximum(
            self.size, 1)
        self.params = get_all_params(self.network, trainable=True)
        self.inputs = [self.x, self.mask, self.y]
        rng = np.random.RandomState(6)
        x, y = rng.normal(1, 2, (2, len(LENGTHS), 3, TIME))
        mask = lengths_mask(LENGTHS, TIME).astype("float64")
        self.unpadded = Unpadded(mask, x.shape, (0, 2))
        x[np.broadcast_to(mask[:, np.newaxis] == 0, x.shape)] = 1e6
        self.data = x, mask, y

    def micro_batches(self, *ends):
        return [tuple(array[start:end] for array in self.data)
                for start, end in zip((0,) + ends, ends + (len(LENGTHS),))]

    def values(self):
        return [param.get_value() for param in get_all_params(self.network)]

    def twin(self):
        """A network of dense layers with the same parameters."""
        network = build(InputLayer((None, 3)), DenseLayer)
        lasagne.layers.set_all_param_values(network, [
            value.reshape(param.get_value().shape) for value, param
            in zip(self.values(), get_all_params(network))])
        return network

    def accumulator(self):
        return GradientAccumulator(self.params)


def step_of(network, x, y):
    """The loss, and all values after a step, in NumPy."""
    full = full_batch.Pass(network, x)
    loss, dy = full_batch.squared_error(full.output, y)
    gradients, after = full.gradients(dy), full.averages()
    for param in get_all_params(network, trainable=True):
        after[param] = param.get_value() - RATE * gradients[param]
    return loss, [after[param] for param in get_all_params(network)]


@pytest.mark.parametrize("ends", [(), (1, 3, 4), (4, 6, 7), (3,)], ids=str)
def test_exact_function(expressions, ends):
    """It is a step on all values that count, without padding."""
    problem = Padded()
    accumulator = problem.accumulator()
    accumulate = accumulator.exact_function(
        problem.inputs, problem.loss, problem.size)
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=RATE)
    x, _, y = problem.data
    loss, expected = step_of(problem.twin(), problem.unpadded.take(x),
                             problem.unpadded.take(y))
    assert_allclose(accumulate(problem.micro_batches(*ends)), loss)
    assert accumulator.size == sum(LENGTHS)
    step()
    for one, other in zip(problem.values(), expected):
        assert_allclose(one.ravel(), other.ravel(), rtol=1e-9, atol=1e-10)


def test_function(expressions):
    """Gradients weigh as many values as count; the averages are of all."""
    problem = Padded()
    accumulator = problem.accumulator()
    accumulate = accumulator.function(problem.inputs, problem.loss,
                                      problem.size)
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=RATE)
    twin, parts, first = problem.twin(), [], []
    for x, mask, y in problem.micro_batches(1, 3, 4, 6):
        accumulate(x, mask, y)
        unpadded = Unpadded(mask, x.shape, (0, 2))
        x, y = unpadded.take(x), unpadded.take(y)
        if len(x):
            parts.append((len(x), full_batch.gradients_of_error(twin, x, y)))
            first.append(full_batch.Pass(twin, x).inputs[_norms(twin)[0]])
    step()
    total = sum(size for size, _ in parts)
    for own, param in zip(problem.params,
                          get_all_params(twin, trainable=True)):
        gradient = sum(size * found[param] for size, found in parts) / total
        assert_allclose(own.get_value().ravel(), (
            param.get_value() - RATE * gradient).ravel(), atol=1e-12)
    bn, values = _norms(problem.network)[0], np.concatenate(first)
    assert_allclose(bn.mean.get_value().ravel(), values.mean(0) / 2)
    assert_allclose(bn.std.get_value().ravel(), (1 + values.std(0)) / 2)


def _norms(network):
    return [layer for layer in get_all_layers(network)
            if isinstance(layer, BatchNormLayer)]


def test_gradients_of_padding_are_zero():
    """Of the exact function, too, whatever the padding holds."""
    problem = Padded()
    x, mask, y = problem.data
    found = []
    for filler in (0, 1e30):
        x[np.broadcast_to(mask[:, np.newaxis] == 0, x.shape)] = filler
        with plain_expressions():
            accumulator = problem.accumulator()
            accumulate = accumulator.exact_function(
                problem.inputs, problem.loss, problem.size)
            accumulate(problem.micro_batches(3))
        found.append([total.get_value() for term
                      in accumulator._terms.values()
                      for total in term.state()])
    for one, other in zip(*found):
        assert_allclose(one, other, rtol=1e-12)
