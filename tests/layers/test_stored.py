"""Setting parameters by vectors, and the expression inv_std."""

from bnlasagne import BatchNormLayer

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.layers import averages
from numpy.testing import assert_allclose, assert_array_equal


@pytest.mark.parametrize("shape", [(None, 3), (None, 3, 4, 5)])
def test_set_values(rng, shape):
    layer = BatchNormLayer(shape)
    values = dict(zip(("mean", "std", "beta", "gamma"), rng.rand(4, 3)))
    layer.set_values(**values)
    for name, value in values.items():
        param = getattr(layer, name).get_value()
        assert param.shape == layer.param_shape()
        assert_allclose(param.ravel(), value, rtol=1e-6)
    layer.set_values(beta=0.5, gamma=np.full(layer.param_shape(), 2))
    assert_array_equal(layer.beta.get_value().ravel(), [0.5] * 3)
    assert_array_equal(layer.gamma.get_value().ravel(), [2] * 3)


@pytest.mark.parametrize("values, error, message", [
    ({"gamma": np.ones(4)}, ValueError, "'bn'.*gamma.*shape"),
    ({"beta": np.ones(3)}, ValueError, "'bn'.*no parameter beta.*gamma"),
    ({"inv_std": 1}, ValueError, r"'bn'.*inv_std.*set_statistics\(\)"),
    ({"gamma": "a"}, TypeError, "'bn'.*gamma"),
])
def test_wrong_values_change_nothing(values, error, message):
    layer = BatchNormLayer((None, 3), beta=None, name="bn")
    with pytest.raises(error, match=message):
        layer.set_values(mean=np.ones(3), **values)
    assert_array_equal(averages(layer), [np.zeros((1, 3)), np.ones((1, 3))])


def test_value_of_inv_std(rng, floatX, quick):
    std = rng.uniform(0.1, 2, 3)
    layer = BatchNormLayer((None, 3), std=std, epsilon=0.25)
    assert layer.inv_std.name == "inv_std"
    expected = 1 / (std + 0.25)
    x = T.matrix()
    product = theano.function([x], x * layer.inv_std)(np.ones((1, 3), floatX))
    for value in (layer.inv_std.get_value(), layer.inv_std.eval(), product):
        assert value.dtype == floatX
        assert_allclose(value, [expected], rtol=1e-6)


def test_inv_std_as_an_argument(rng):
    std = rng.uniform(0.1, 2, 3)
    layer = BatchNormLayer((None, 3), inv_std=1 / (std + 0.25), epsilon=0.25)
    assert_allclose(layer.std.get_value()[0], std, rtol=1e-5)
    shared = BatchNormLayer((None, 3), inv_std=layer.inv_std, epsilon=0.25)
    assert shared.std is layer.std
    layer = BatchNormLayer((None, 3), inv_std=lasagne.init.Constant(2))
    assert_allclose(layer.std.get_value(), 0.49 * np.ones((1, 3)), rtol=1e-5)


def test_inv_std_cannot_be_set():
    layer = BatchNormLayer((None, 3))
    with pytest.raises(AttributeError, match=r"set_statistics\(mean, inv_st"):
        layer.inv_std = np.ones(3)
    with pytest.raises(AttributeError, match=r"set_lasagne_values\(\)"):
        layer.inv_std.set_value(np.ones(3))
