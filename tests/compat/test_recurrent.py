"""Flags of get_output() reach the layers in the loops of recurrent layers."""

from bnlasagne import batch_norm  # isort: skip

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from lasagne.layers import (
    CustomRecurrentLayer,
    DenseLayer,
    DropoutLayer,
    InputLayer,
    get_all_params,
    get_output,
)
from numpy.testing import assert_allclose, assert_array_equal

EPSILON = 0.01
BATCH, STEPS, FEATURES, UNITS = 5, 4, 2, 3

pytestmark = pytest.mark.usefixtures("quick", "float64")

# Lasagne's ways to compute: the loop as theano.scan or unrolled, the layers
# between input and hidden state before the loop or in it.
ways = pytest.mark.parametrize("unroll, precompute", [
    (False, True), (False, False), (True, True), (True, False)])


class Problem:
    """A recurrent layer with batch norm from the input and in the loop."""

    def __init__(self, rng, unroll=False, precompute=True, dropout=0):
        self.x = T.tensor3()
        self.layers = []
        self.data = rng.normal(size=(BATCH, STEPS, FEATURES))
        to_hidden = self._dense(rng, InputLayer((None, FEATURES)))
        # Lasagne's dropout needs to know the batch size in a loop.
        hidden = self._dense(rng, InputLayer((BATCH, UNITS)))
        if dropout:
            hidden = DropoutLayer(hidden, dropout)
        self.network = CustomRecurrentLayer(
            InputLayer((BATCH, STEPS, FEATURES), self.x), to_hidden, hidden,
            unroll_scan=unroll, precompute_input=precompute)

    def _dense(self, rng, below):
        weights = rng.normal(size=(below.shape[1], UNITS))
        layer = batch_norm(DenseLayer(below, UNITS, W=weights))
        for param in layer.get_params():
            param.set_value(rng.uniform(0.5, 2, (1, UNITS)))
        self.layers.append(layer)
        return layer

    def averages(self):
        return [param.get_value() for param in
                get_all_params(self.network, batch_norm_stat=True)]

    def call(self, **flags):
        """The output on the data, and whether each average moved."""
        output = theano.function([self.x], get_output(self.network, **flags))
        before = self.averages()
        found = output(self.data)
        return found, [bool(np.any(one != two)) for one, two in
                       zip(before, self.averages())]

    def expected(self):
        """The output by the stored averages, in NumPy."""
        hidden = np.zeros((BATCH, UNITS))
        outputs = []
        for step in range(STEPS):
            hidden = np.maximum(0, sum(
                self._normalized(layer, value) for layer, value in
                zip(self.layers, (self.data[:, step], hidden))))
            outputs.append(hidden)
        return np.stack(outputs, axis=1)

    @staticmethod
    def _normalized(layer, value):
        mean, std, beta, gamma = (param.get_value()
                                  for param in layer.get_params())
        dense = value.dot(layer.input_layer.W.get_value())
        return np.maximum(0, (dense - mean) * gamma / (std + EPSILON) + beta)


@ways
def test_test_outputs_are_by_stored_averages(rng, unroll, precompute):
    problem = Problem(rng, unroll, precompute)
    expected = problem.expected()
    found, moved = problem.call(deterministic=True)
    assert_allclose(found, expected, rtol=1e-10)
    assert moved == [False] * 4


@ways
def test_training_moves_averages(rng, unroll, precompute):
    problem = Problem(rng, unroll, precompute)
    by_averages = problem.expected()
    found, moved = problem.call()
    assert np.abs(found - by_averages).max() > 0.1
    assert moved == [True] * 4


@ways
def test_flags_of_batch_normalization(rng, unroll, precompute):
    problem = Problem(rng, unroll, precompute)
    by_averages = problem.expected()
    found, moved = problem.call(batch_norm_update_averages=False)
    assert np.abs(found - by_averages).max() > 0.1
    assert moved == [False] * 4
    found, moved = problem.call(batch_norm_use_averages=True)
    assert_allclose(found, by_averages, rtol=1e-10)
    assert moved == [True] * 4


@pytest.mark.parametrize("unroll", [False, True])
def test_dropout_in_a_loop(rng, unroll):
    problem = Problem(rng, unroll, dropout=0.5)
    expected = problem.expected()
    assert_allclose(problem.call(deterministic=True)[0], expected, rtol=1e-10)
    dropped, _ = problem.call(batch_norm_use_averages=True)
    assert np.abs(dropped - expected).max() > 0.1


def test_gradient_of_a_test_output(rng):
    problem = Problem(rng, precompute=False)
    params = get_all_params(problem.network, trainable=True)
    output = get_output(problem.network, deterministic=True)
    found = theano.function([problem.x], theano.grad(
        T.sqr(output).sum(), params))(problem.data)
    for param, gradient in zip(params, found):
        value, step = param.get_value(), 1e-6
        direction = rng.normal(size=value.shape)
        sums = []
        for sign in 1, -1:
            param.set_value(value + sign * step * direction)
            sums.append(np.square(problem.expected()).sum())
        param.set_value(value)
        assert_allclose((sums[0] - sums[1]) / (2 * step),
                        (gradient * direction).sum(), rtol=1e-5)


def test_layers_that_extend_it_get_flags(rng):
    class Doubled(CustomRecurrentLayer):
        def get_output_for(self, inputs, **kwargs):
            return 2 * super().get_output_for(inputs, **kwargs)

    problem = Problem(rng)
    problem.network.__class__ = Doubled
    found, _ = problem.call(deterministic=True)
    assert_allclose(found, 2 * problem.expected(), rtol=1e-10)


def test_an_output_within_an_output_has_flags_of_its_own(rng):
    inner, outer = Problem(rng), Problem(rng)

    def add_inner(hidden):
        return T.nnet.relu(hidden) + 0 * get_output(inner.network).sum()

    outer.network.nonlinearity = add_inner
    outer.network.unroll_scan = True
    output = get_output(outer.network, deterministic=True)
    before = outer.averages(), inner.averages()
    found = theano.function([outer.x, inner.x], output)(
        outer.data, inner.data)
    assert_allclose(found, outer.expected(), rtol=1e-10)
    assert_array_equal(outer.averages(), before[0])
    assert np.all(np.array(inner.averages()) != before[1])


def test_what_the_layer_computes_is_lasagnes(rng):
    # Masks, other directions and initial states are the layer's own business.
    problem = Problem(rng)
    mask = InputLayer((BATCH, STEPS))
    start = rng.uniform(size=(1, UNITS))
    network = CustomRecurrentLayer(
        problem.network.input_layers[0], problem.network.input_to_hidden,
        problem.network.hidden_to_hidden, mask_input=mask, backwards=True,
        hid_init=start, nonlinearity=lasagne.nonlinearities.linear)
    lengths = np.arange(BATCH) % STEPS + 1
    found = theano.function(
        [problem.x, mask.input_var],
        get_output(network, deterministic=True))(
            problem.data, np.arange(STEPS) < lengths[:, None])
    for data, length, one in zip(problem.data, lengths, found):
        hidden = start
        for step in reversed(range(length)):
            hidden = sum(problem._normalized(layer, value) for layer, value
                         in zip(problem.layers, (data[None, step], hidden)))
            assert_allclose(one[None, step], hidden, rtol=1e-10)
