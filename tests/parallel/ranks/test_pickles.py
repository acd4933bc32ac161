"""Pickles and copies of networks whose layers have a communicator."""

import copy
import pickle

from bnlasagne import BatchNormLayer, batch_norm

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.ranks import COMM, several
from lasagne.layers import DenseLayer, InputLayer, get_output
from numpy.testing import assert_allclose

pytestmark = pytest.mark.usefixtures("float64")
COPIES = pytest.mark.parametrize("copied", [
    copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["copy", "deepcopy", "pickle"])


@COPIES
def test_of_the_world(copied):
    """It is synchronized, as the original is."""
    x = T.matrix()
    layer = BatchNormLayer(InputLayer((None, 3)), comm=COMM)
    copied_layer = copied(layer)
    assert copied_layer.channel is layer.channel
    function = theano.function([x], get_output(copied_layer, x),
                               mode=theano.Mode("py", "fast_compile"))
    batch = np.random.RandomState(COMM.rank).normal(COMM.rank, 1, (4, 3))
    assert_allclose(sum(COMM.allgather(function(batch).sum(0))), 0, atol=1e-8)


@several
def test_of_a_group():
    group = COMM.Split(0)
    network = batch_norm(DenseLayer(InputLayer((None, 3)), 2, name="dense"),
                         comm=group)
    assert copy.deepcopy(network).channel is network.channel
    with pytest.raises(pickle.PicklingError, match=(
            r"BatchNormLayer 'dense_bn': .* %d of the job's %d ranks.*"
            r"save_network\(\)" % (group.size, COMM.size))):
        pickle.dumps(network)
    group.Free()


def test_of_a_group_of_one():
    """It communicates with nobody."""
    group = COMM.Split(COMM.rank)
    network = BatchNormLayer((None, 3), comm=group)
    assert pickle.loads(pickle.dumps(network)).channel is None
    group.Free()
