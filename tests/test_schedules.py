"""Weights of the batches in running averages."""

from bnlasagne import BatchNormLayer, CumulativeAverage

import numpy as np
import pytest
import theano
import theano.tensor as T
from lasagne.layers import InputLayer, get_output
from numpy.testing import assert_allclose

pytestmark = pytest.mark.usefixtures("quick")


def averages(layer):
    return [layer.mean.get_value()[0], layer.std.get_value()[0]]


def plain_average(batches):
    return [np.mean([function(batch, axis=0) for batch in batches], axis=0)
            for function in (np.mean, np.std)]


def test_all_batches_weigh_the_same(rng, floatX):
    average = CumulativeAverage()
    x = T.matrix()
    first = BatchNormLayer(InputLayer((None, 3), x), alpha=average.alpha)
    second = BatchNormLayer(first, alpha=average.alpha)
    function = theano.function([x], get_output(second))
    batches = rng.normal(2, 3, (9, 5, 3)).astype(floatX)
    for number, batch in enumerate(batches, 1):
        assert_allclose(average.alpha.get_value(), 1 / number, rtol=1e-6)
        function(batch)
        assert_allclose(averages(first), plain_average(batches[:number]),
                        rtol=1e-5)
    average.reset()
    for batch in batches[4:6]:
        function(batch)
    assert_allclose(averages(first), plain_average(batches[4:6]), rtol=1e-5)


def test_functions_that_update_nothing_do_not_count(rng, floatX):
    average = CumulativeAverage()
    x = T.matrix()
    layer = BatchNormLayer(InputLayer((None, 3), x), alpha=average.alpha)
    function = theano.function([x], get_output(layer, deterministic=True))
    function(rng.normal(size=(4, 3)).astype(floatX))
    assert average.alpha.get_value() == 1


def test_many_batches(floatX):
    """The weight is right where single precision no longer counts."""
    average = CumulativeAverage()
    average.count = 2 ** 25 - 1
    function = theano.function([], average.alpha)
    for _ in range(3):
        function()
    assert average.count == 2 ** 25 + 2
    assert average.alpha.dtype == floatX
    assert_allclose(average.alpha.get_value(), 1 / (2 ** 25 + 3), rtol=2e-7)
