"""Networks that refer to the variables of their input layers."""

from bnlasagne import (
    BatchNormLayer,
    batch_norm,
    fold_batch_norm,
    update_population_statistics,
)

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.common import later, needs_compiler
from helpers.networks import sized
from lasagne.layers import (
    ConcatLayer,
    DenseLayer,
    InputLayer,
    Layer,
    get_output,
)
from numpy.testing import assert_allclose

pytestmark = pytest.mark.usefixtures("float64", "quick")


@pytest.fixture
def batches(rng):
    """Two batches of sequences, of unequal numbers and lengths."""
    return [rng.normal(2, 3, (5, 7, 4)), rng.normal(2, 3, (2, 3, 4))]


def stored(layer):
    return [average.get_value().ravel()
            for average in (layer.mean, layer.std)]


def assert_measured(layer, values):
    """The layer has the statistics of rows of values."""
    for found, expected in zip(stored(layer),
                               reference.statistics(values, (0,))):
        assert_allclose(found, expected.ravel(), rtol=1e-9)


VARIABLES = {
    "its own": lambda: None,
    "the user's": T.tensor3,
    "an expression": lambda: T.matrix().dimshuffle(0, "x", 1),
    "a shared variable": lambda: theano.shared(np.ones((2, 2, 4))),
}
each_variable = pytest.mark.parametrize("variable", VARIABLES.values(),
                                        ids=list(VARIABLES))


@each_variable
@pytest.mark.parametrize("keep", [None, "memory"])
def test_population_statistics(batches, variable, keep):
    variable = variable()
    if variable is not None and variable.broadcastable[1]:
        batches = [batch[:, :1] for batch in batches]
    _, first, second = sized(variable)
    found = update_population_statistics(second, batches, keep=keep)
    count = sum(batch[..., 0].size for batch in batches)
    assert [found[layer].count for layer in (first, second)] == [count] * 2
    rows = np.concatenate([batch.reshape(-1, 4) for batch in batches])
    z = rows.dot(first.input_layer.W.get_value())
    assert_measured(first, z)
    assert_measured(second, np.tanh(reference.normalize_batch(z, (0,))))


def test_one_pass(batches):
    _, first, second = sized(None)
    update_population_statistics(second, batches, method="one_pass")
    rows = [batch.reshape(-1, 4).dot(first.input_layer.W.get_value())
            for batch in batches]
    assert_measured(second, np.tanh(np.concatenate(
        [reference.normalize_batch(z, (0,)) for z in rows])))


class Closing(Layer):
    """Adds what a function closes over, as an ExpressionLayer may."""

    def __init__(self, incoming, function):
        super().__init__(incoming)
        self.function = function

    def get_output_for(self, input, **kwargs):
        return self.function(input)


def test_layer_that_closes_over_the_input(rng):
    data = rng.normal(size=(8, 4))
    l_in = InputLayer((None, 4))
    first = batch_norm(DenseLayer(l_in, 4, nonlinearity=None))
    second = BatchNormLayer(Closing(first, lambda y: y + l_in.input_var))
    update_population_statistics(second, [data[:5], data[5:]])
    z = reference.normalize_batch(
        data.dot(first.input_layer.W.get_value()), (0,))
    assert_measured(second, z + data)
    folded = fold_batch_norm(second)
    one, other = theano.function([l_in.input_var], [
        get_output(network, deterministic=True)
        for network in (second, folded)])(data)
    assert_allclose(one, other)


def test_input_layers_on_one_variable_get_their_own_data(rng):
    x = T.matrix()
    inputs = [InputLayer((None, 2), x) for _ in range(2)]
    layer = BatchNormLayer(ConcatLayer(inputs))
    arrays = rng.normal(size=(2, 6, 2))
    update_population_statistics(layer, [dict(zip(inputs, arrays))])
    assert_measured(layer, np.concatenate(arrays, axis=1))


def test_what_an_input_variable_is_made_of_is_not_at_hand():
    x = T.matrix("x")
    l_in = InputLayer((None, 4), 2 * x)
    layer = BatchNormLayer(Closing(l_in, lambda y: y + x), name="bn")
    with pytest.raises(ValueError, match="'bn'.* depends on x"):
        update_population_statistics(layer, [np.ones((5, 4))])


@later
@needs_compiler
def test_transposed_convolution_sized_by_the_input(rng, monkeypatch):
    # Theano's convolutions have C code only.
    monkeypatch.setattr(theano.compile.mode, "instantiated_default_mode", None)
    from lasagne.layers import Conv2DLayer, TransposedConv2DLayer
    l_in = InputLayer((None, 1, None, None))
    down = batch_norm(Conv2DLayer(l_in, 2, 3, stride=2))
    up = batch_norm(TransposedConv2DLayer(
        down, 2, 3, stride=2, output_size=l_in.input_var.shape[2:]))
    found = update_population_statistics(up, [rng.normal(size=(2, 1, 7, 7))])
    assert found[up].count == 2 * 7 * 7
