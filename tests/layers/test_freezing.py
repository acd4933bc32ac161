"""Freezing and unfreezing layers, those of subclasses included."""

import itertools
import pickle
import warnings

from bnlasagne import (
    BatchNormLayer,
    batch_norm,
    freeze_batch_norm,
    unfreeze_batch_norm,
    update_population_statistics,
)

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.layers import averages
from helpers.subclasses import ByBatch, Scaled, Unchanged
from lasagne.layers import (
    CustomRecurrentLayer,
    DenseLayer,
    InputLayer,
    get_all_params,
    get_output,
)
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("float64", "quick")


@pytest.fixture
def layers():
    first = BatchNormLayer(InputLayer((None, 3)), mean=2, std=3)
    return first, BatchNormLayer(first, mean=-1, std=0.5)


def test_flags_have_no_say(rng, layers):
    x, (first, _) = T.matrix(), layers
    freeze_batch_norm(first)
    outputs = [first.get_output_for(x, *flags) for flags in itertools.product(
        [False, True], [None, False, True], [None, False, True, "explicit"])]
    batch = rng.normal(size=(5, 3))
    for output in theano.function([x], outputs)(batch):
        assert_allclose(output, reference.normalize(batch, 2, 3))
    assert_array_equal(averages(first), [np.full((1, 3), 2),
                                         np.full((1, 3), 3)])


def run(network, batch, **flags):
    x = T.matrix()
    return theano.function([x], get_output(network, x, **flags))(batch)


def test_the_rest_goes_on(rng, layers):
    batch = rng.normal(size=(5, 3))
    first, second = layers
    freeze_batch_norm(first)
    output = run(second, batch)
    frozen = reference.normalize(batch, 2, 3)
    assert_allclose(output, reference.normalize_batch(frozen, (0,)))
    mean = reference.statistics(frozen, (0,))[0]
    assert_allclose(averages(second)[0], -0.5 + 0.5 * mean)


def test_unfreeze(rng, layers):
    batch = rng.normal(size=(5, 3))
    freeze_batch_norm(layers[1])
    unfreeze_batch_norm(layers[1])
    assert_allclose(run(layers[0], batch),
                    reference.normalize_batch(batch, (0,)))


def test_context(layers):
    first, second = layers
    with pytest.raises(KeyError), freeze_batch_norm(second):
        assert first.frozen and second.frozen
        with unfreeze_batch_norm(first):
            assert not first.frozen
        assert first.frozen
        raise KeyError
    assert not first.frozen and not second.frozen
    freeze_batch_norm(first)
    with freeze_batch_norm(second, params=True):
        pass
    assert first.frozen and not second.frozen
    assert len(get_all_params(second, trainable=True)) == 4


def test_functions_from_before_stay(rng, layers):
    x = T.matrix()
    function = theano.function([x], get_output(layers[0], x))
    freeze_batch_norm(layers[0])
    before = averages(layers[0])[0]
    function(rng.normal(size=(5, 3)))
    assert np.all(averages(layers[0])[0] != before)


def test_parameters(layers):
    first, second = layers
    second.params[second.gamma].remove("trainable")
    freeze_batch_norm(second, params=True)
    freeze_batch_norm(second, params=True)
    assert not get_all_params(second, trainable=True)
    assert get_all_params(second, regularizable=True) == [
        first.beta, second.beta]
    unfreeze_batch_norm(second)
    assert get_all_params(second, trainable=True) == [
        first.beta, first.gamma, second.beta]


def test_parameter_that_was_removed_meanwhile_stays_removed(layers):
    first = layers[0]
    with freeze_batch_norm(first, params=True):
        del first.params[first.beta]
    assert first.get_params(trainable=True) == [first.gamma]


def test_part_of_a_network(layers):
    first, second = layers
    freeze_batch_norm(second, treat_as_input=[first])
    assert (first.frozen, second.frozen) == (False, True)
    unfreeze_batch_norm([second])
    freeze_batch_norm([first])
    assert (first.frozen, second.frozen) == (True, False)


def test_layers_within_layers():
    step = batch_norm(DenseLayer(InputLayer((None, 4)), 4))
    network = CustomRecurrentLayer(
        InputLayer((None, 5, 3)), DenseLayer(InputLayer((None, 3)), 4), step)
    freeze_batch_norm(network)
    assert step.frozen


def test_population_statistics_leave_frozen_layers(rng, layers):
    batch = rng.normal(size=(50, 3))
    first, second = layers
    freeze_batch_norm(first)
    found = update_population_statistics(second, [batch[:20], batch[20:]])
    assert list(found) == [second]
    assert_array_equal(averages(first)[0], np.full((1, 3), 2))
    assert_allclose(averages(second), reference.statistics(
        reference.normalize(batch, 2, 3), (0,)))
    freeze_batch_norm(second)
    with pytest.raises(ValueError, match="all of them are frozen"):
        update_population_statistics(second, [batch])


def test_pickle(layers):
    freeze_batch_norm(layers[1], params=True)
    network = pickle.loads(pickle.dumps(layers[1]))
    assert network.frozen and network.input_layer.frozen
    unfreeze_batch_norm(network)
    assert len(get_all_params(network, trainable=True)) == 4


class OfExamples(BatchNormLayer):
    """Normalizes each example, in a way of its own."""

    def get_output_for(self, input, **kwargs):
        return (input - input.mean(1, keepdims=True)) / input.std(
            1, keepdims=True)


class Raises(BatchNormLayer):
    def get_output_for(self, input, deterministic=False, **kwargs):
        if not deterministic:
            raise KeyError("what")
        return super().get_output_for(input, deterministic=True)


@pytest.mark.parametrize("kind", [Unchanged, Scaled])
def test_subclasses(rng, kind):
    batch = rng.normal(size=(5, 3))
    layer = kind(InputLayer((None, 3)), mean=2, std=3)
    expected = run(layer, batch, deterministic=True)
    freeze_batch_norm(layer)
    assert layer.frozen
    assert_array_equal(run(layer, batch), expected)
    assert_array_equal(averages(layer)[0], np.full((1, 3), 2))


@pytest.mark.parametrize("kind", [ByBatch, OfExamples, Raises])
def test_subclasses_that_cannot_be_frozen(rng, layers, kind):
    batch = rng.normal(size=(5, 3))
    other = kind(layers[1], name="own")
    expected = run(other, batch, deterministic=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        freeze_batch_norm(other, params=True)
    assert any("%s 'own' cannot be frozen" % kind.__name__
               in str(warning.message) for warning in caught)
    assert not other.frozen and layers[0].frozen and layers[1].frozen
    assert get_all_params(other, trainable=True) == [other.beta, other.gamma]
    assert_allclose(run(other, batch, deterministic=True), expected)
    unfreeze_batch_norm(other)
    with pytest.raises(ValueError, match="no other batch normalization layer"):
        freeze_batch_norm(other, treat_as_input=layers)


@pytest.mark.parametrize("method", ["layerwise", "one_pass"])
def test_population_statistics_of_subclasses(rng, method):
    """Those that use their statistics get them; the others stay."""
    batch = rng.normal(size=(50, 3))
    unchanged = Unchanged(InputLayer((None, 3)))
    by_batch = ByBatch(unchanged)
    scaled = Scaled(by_batch)
    found = update_population_statistics(scaled, [batch], method=method)
    assert list(found) == [unchanged, scaled]
    assert_allclose(averages(unchanged), reference.statistics(batch, (0,)))
    normed = reference.normalize_batch(batch, (0,))
    assert_allclose(averages(scaled), reference.statistics(
        reference.normalize_batch(normed, (0,)), (0,)), atol=1e-15)
    assert np.all(averages(by_batch)[1] == 1)
    with pytest.raises(ValueError, match="do not use stored statistics"):
        update_population_statistics(ByBatch(InputLayer((None, 3))), [batch])


@pytest.mark.parametrize("function", [freeze_batch_norm, unfreeze_batch_norm])
def test_wrong_arguments(function):
    with pytest.raises(TypeError, match="network must be a Layer"):
        function("network")
    with pytest.raises(ValueError, match="no batch normalization layer"):
        function(InputLayer((None, 3)))
