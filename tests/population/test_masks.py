"""Population statistics of sequences: padding is no data."""

from bnlasagne import BatchNormLayer, batch_norm, update_population_statistics

import lasagne
import numpy as np
import pytest
from helpers.masks import lengths_mask
from lasagne.layers import (
    InputLayer,
    LSTMLayer,
    NINLayer,
    SliceLayer,
    get_output,
)
from lasagne.nonlinearities import tanh
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("float64", "quick")


@pytest.fixture
def sequences(rng):
    """Sequences of shape (channels, time), without padding."""
    return [rng.normal(1, 2, (3, length))
            for length in (6, 2, 5, 1, 9, 6, 1, 3)]


def padded(sequences, time=9):
    x = np.full((len(sequences), 3, time), np.nan)
    for row, sequence in zip(x, sequences):
        row[:, :sequence.shape[1]] = sequence
    return x, lengths_mask([sequence.shape[1] for sequence in sequences], time)


def build():
    lasagne.random.set_rng(np.random.RandomState(3))
    l_x, l_mask = InputLayer((None, 3, None)), InputLayer((None, None))
    network = l_x
    for units in (4, 5):
        network = batch_norm(NINLayer(network, units, nonlinearity=tanh),
                             mask_input=l_mask)
    return network, l_x, l_mask


@pytest.mark.parametrize("keep", [None, "memory"])
@pytest.mark.parametrize("cut", [[8], [1, 3, 4], [2, 2, 2, 2]], ids=str)
def test_layerwise(sequences, cut, keep):
    """Cut and padded in any way, they are those of all values that count."""
    network, *inputs = build()
    batches, start = [], 0
    for size in cut:
        batch = sequences[start:start + size]
        batches.append(padded(batch, max(each.shape[1] for each in batch)))
        start += size
    # One with padding alone.
    batches.append((np.full((2, 3, 4), np.nan), np.zeros((2, 4))))
    found = update_population_statistics(network, batches, keep=keep)
    assert [moments.count for moments in found.values()] == [33, 33]
    values = np.concatenate([each.T for each in sequences])
    for layer in found:
        # The parameters of a layer below tell what the next one gets.
        values = values @ layer.input_layer.W.get_value()
        mean, std = values.mean(0), values.std(0)
        assert_allclose(layer.mean.get_value().ravel(), mean)
        assert_allclose(layer.std.get_value().ravel(), std)
        values = np.tanh((values - mean) / (std + 0.01))
    # One by one, without padding, they give the same as in a batch.
    x, mask = padded(sequences)
    together = get_output(network, dict(zip(inputs, (x, mask))),
                          deterministic=True).eval()
    for row, sequence in zip(together, sequences):
        length = sequence.shape[1]
        alone = get_output(network, dict(zip(inputs, (
            sequence[np.newaxis], np.ones((1, length))))),
            deterministic=True).eval()
        assert_allclose(row[:, :length], alone[0])
        assert_array_equal(row[:, length:], 0)


def test_one_pass(sequences):
    network, *_ = build()
    found = update_population_statistics(
        network, [padded(sequences)], method="one_pass")
    exact, *_ = build()
    update_population_statistics(exact, [padded(sequences)])
    for layer, other in zip(found, update_population_statistics(
            exact, [padded(sequences)])):
        assert_allclose(layer.mean.get_value(), other.mean.get_value())
        assert_allclose(layer.std.get_value(), other.std.get_value())


def test_dict_of_batches(sequences):
    network, l_x, l_mask = build()
    x, mask = padded(sequences)
    found = update_population_statistics(network, [{l_x: x, l_mask: mask}])
    assert next(iter(found.values())).count == 33


def test_above_a_recurrent_layer(sequences):
    l_x, l_mask = InputLayer((None, None, 3)), InputLayer((None, None))
    first = BatchNormLayer(l_x, axes=(0, 1), mask_input=l_mask)
    last = SliceLayer(LSTMLayer(first, 4, mask_input=l_mask), -1, 1)
    network = BatchNormLayer(last)
    x, mask = padded(sequences)
    found = update_population_statistics(
        network, [(x.transpose(0, 2, 1), mask)])
    assert [each.count for each in found.values()] == [33, 8]
    assert np.isfinite(network.mean.get_value()).all()


def test_padding_alone():
    network, *_ = build()
    with pytest.raises(ValueError, match="there is no data"):
        update_population_statistics(
            network, [(np.ones((2, 3, 4)), np.zeros((2, 4)))])


def test_mask_of_another_size():
    network, *_ = build()
    with pytest.raises(ValueError, match="batch 0 does not go through the "
                       "network up to BatchNormLayer"):
        update_population_statistics(
            network, [(np.ones((2, 3, 5)), np.ones((2, 4)))])
