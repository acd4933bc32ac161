"""Find population statistics of data of which each rank has a part."""

from bnlasagne import (
    BatchNormLayer,
    RanksDisagree,
    batch_norm,
    update_population_statistics,
)

import lasagne
import numpy as np
import pytest
from helpers.ranks import COMM, assert_alike, several
from lasagne.layers import DenseLayer, InputLayer
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("float64", "quick")


def build(comm=None):
    """Two layers on top of each other, the same on all ranks."""
    lasagne.random.set_rng(np.random.RandomState(3))
    network = batch_norm(DenseLayer(InputLayer((None, 4)), 6), comm=comm,
                         name="lower")
    return batch_norm(DenseLayer(network, 3), comm=comm, name="upper")


def stored(network):
    return [param.get_value() for param in lasagne.layers.get_all_params(
        network, batch_norm_stat=True)]


@pytest.fixture
def chunks(rng):
    """The training set, in batches of unequal sizes."""
    data = rng.normal(50, 2, (41, 4)) * rng.uniform(1, 9, 4)
    return np.split(data, [1, 8, 20, 21, 33])


def shard(chunks, comm, first=0):
    return [chunk for number, chunk in enumerate(chunks)
            if (number + first) % comm.size == comm.rank]


@pytest.mark.parametrize("method, keep", [
    ("layerwise", None),
    pytest.param("layerwise", "memory", marks=several),
    pytest.param("layerwise", "folder", marks=several),
    pytest.param("one_pass", None, marks=several),
])
def test_bits_are_those_of_one_process(chunks, method, keep, tmp_path):
    serial = build()
    update_population_statistics(serial, chunks, method=method, ddof=1)
    if keep == "folder":
        keep = str(tmp_path)
    for first in range(2):
        network = build()
        found = update_population_statistics(
            network, shard(chunks, COMM, first), method=method, ddof=1,
            keep=keep, comm=COMM)
        for one, other in zip(stored(network), stored(serial)):
            assert_array_equal(one, other)
        assert [moments.count for moments in found.values()] == [41, 41]
        assert_alike(*stored(network))


def test_against_the_whole_set(chunks):
    network = build()
    update_population_statistics(network, shard(chunks, COMM), comm=COMM)
    data = np.concatenate(chunks)
    layers = lasagne.layers.get_all_layers(network)
    for layer in layers:
        if isinstance(layer, BatchNormLayer):
            x = lasagne.layers.get_output(
                layer.input_layer, data, deterministic=True).eval()
            assert_allclose(layer.mean.get_value()[0], x.mean(0), rtol=1e-12)
            assert_allclose(layer.std.get_value()[0], x.std(0), rtol=1e-11)


@several
def test_synchronized_layers(chunks):
    network = build(COMM)
    update_population_statistics(network, shard(chunks, COMM), comm=COMM)
    serial = build()
    update_population_statistics(serial, chunks)
    for one, other in zip(stored(network), stored(serial)):
        assert_array_equal(one, other)


@several
def test_one_pass_of_synchronized_layers(chunks):
    """By each rank's batches, of which there need not be equally many."""
    network, serial = build(COMM), build()
    update_population_statistics(
        network, chunks if COMM.rank == 0 else [], method="one_pass",
        comm=COMM)
    update_population_statistics(serial, chunks, method="one_pass")
    for one, other in zip(stored(network), stored(serial)):
        assert_array_equal(one, other)


@several
def test_all_data_on_one_rank(chunks):
    network, serial = build(), build()
    owner = COMM.size - 1
    update_population_statistics(
        network, chunks if COMM.rank == owner else [], comm=COMM)
    update_population_statistics(serial, chunks)
    for one, other in zip(stored(network), stored(serial)):
        assert_array_equal(one, other)


def test_data_on_no_rank():
    network = build()
    before = stored(network)
    with pytest.raises(ValueError, match="there is no data"):
        update_population_statistics(network, [], comm=COMM)
    assert all(map(np.array_equal, stored(network), before))


def fails_in_pass(number, error):
    """Batches whose iterator fails in one of the passes."""
    passes = []

    def batches():
        passes.append(1)
        yield np.ones((2, 4))
        if len(passes) == number:
            raise error
        yield np.zeros((3, 4))
    return batches


@several
@pytest.mark.parametrize("number, error, kind", [
    (1, ValueError("no such digit"), ValueError),
    (2, KeyboardInterrupt(), (KeyboardInterrupt, RuntimeError)),
])
def test_an_error_of_one_rank_is_one_of_all(number, error, kind):
    network = build()
    before = stored(network)
    guilty = COMM.size - 1
    batches = fails_in_pass(number if COMM.rank == guilty else 0, error)
    with pytest.raises(kind) as raised:
        update_population_statistics(network, batches, comm=COMM)
    if COMM.rank != guilty:
        assert "On rank %d" % guilty in str(raised.value)
    assert all(map(np.array_equal, stored(network), before))
    # And they go on together.
    update_population_statistics(network, fails_in_pass(0, None), comm=COMM)


@several
def test_a_wrong_argument_on_one_rank(chunks):
    network = build()
    with pytest.raises(ValueError, match="keep must be"):
        update_population_statistics(
            network, chunks, comm=COMM,
            keep="nowhere" if COMM.rank == 0 else None)


@several
def test_different_networks_are_refused(chunks):
    network = build()
    if COMM.rank == 0:
        network = batch_norm(DenseLayer(network, 2), name="third")
    before = stored(network)
    with pytest.raises(RanksDisagree, match="rank [01]: .*third"):
        update_population_statistics(network, chunks, comm=COMM)
    assert all(map(np.array_equal, stored(network), before))


def test_no_communicator():
    with pytest.raises(TypeError, match="comm must be None or a communicator"):
        update_population_statistics(build(), [np.ones((2, 4))], comm="world")
