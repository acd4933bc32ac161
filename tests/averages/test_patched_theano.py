"""Theano's functions take a running average for all of its aliases."""

import pickle

from bnlasagne import BatchNormLayer

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.layers import assert_followed
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("float64")


# Without default updates

def test_no_default_updates(layer, batches, mode):
    x = T.matrix()
    outputs = [layer.get_output_for(x), layer.get_output_for(2 * x),
               layer.get_output_for(x, deterministic=True)]
    actual = theano.function([x], outputs, mode=mode,
                             no_default_updates=True)(batches[0])
    assert_allclose(actual[0], reference.normalize_batch(batches[0], (0,)))
    assert_followed(layer)


def test_no_default_update_of_one_average(layer, batches, mode):
    x = T.matrix()
    function = theano.function([x], layer.get_output_for(x), mode=mode,
                               no_default_updates=[layer.mean])
    function(batches[0])
    assert_array_equal(layer.mean.get_value(), np.zeros((1, 3)))
    assert_allclose(layer.std.get_value(), reference.running_average(
        1, [reference.statistics(batches[0], (0,))[1]], 0.25))


# Pickles and copies

def test_compiled_function_pickles(layer, batches, mode):
    x, y = T.matrices(2)
    outputs = [layer.get_output_for(x), layer.get_output_for(y), layer.mean]
    function = theano.function([x, y], outputs, mode=mode)
    copy = pickle.loads(pickle.dumps(function, -1))
    # Its own copy of the averages follows, and is what it returns.
    copy(*batches[:2])
    assert_followed(layer)
    returned = copy(*batches[:2])[2]
    function(*batches[:2])
    assert_followed(layer, *batches[:2])
    assert_allclose(returned, layer.mean.get_value())


def test_network_and_function_pickle_together(layer, batches, quick):
    x = T.matrix()
    function = theano.function([x], layer.get_output_for(x))
    layer, function = pickle.loads(pickle.dumps((layer, function), -1))
    function(batches[0])
    assert_followed(layer, batches[0])


def test_copy_of_a_function(layer, batches, mode):
    x = T.matrix()
    function = theano.function([x], layer.get_output_for(x), mode=mode)
    function.copy()(batches[0])
    assert_followed(layer, batches[0])
    function.copy(delete_updates=True)(batches[1])
    assert_followed(layer, batches[0])


@pytest.mark.parametrize("tested", [False, True])
def test_copy_with_other_averages(layer, batches, mode, tested):
    x = T.matrix()
    outputs = [layer.get_output_for(x)] + [
        layer.get_output_for(x, deterministic=True)] * tested
    function = theano.function([x], outputs, mode=mode)
    other = BatchNormLayer((None, 3), alpha=0.25)
    copy = function.copy(swap={layer.mean: other.mean, layer.std: other.std})
    copy(batches[0])
    assert_followed(layer)
    assert_followed(other, batches[0])
    if tested:
        mean, std = other.mean.get_value(), other.std.get_value()
        assert_allclose(copy(batches[1])[1],
                        reference.normalize(batches[1], mean, std))
    function(batches[2])
    assert_followed(layer, batches[2])
