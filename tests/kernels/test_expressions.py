"""Outputs and gradients of the expressions, against the oracle."""

import functools

from bnlasagne.kernels import expressions
from bnlasagne.kernels.batch import Batch

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import batches, reference
from helpers.batches import draw, expected_train
from helpers.common import TOLERANCE, param
from numpy.testing import assert_allclose

SHAPES_AND_AXES = [
    ((7,), (0,)),
    ((5, 3), (0,)),
    ((5, 1), (0,)),
    ((2, 3), (1,)),
    ((4, 3, 2), (0, 2)),
    ((4, 3, 2), (0, 1, 2)),
    ((4, 3, 2, 5), (0, 2, 3)),
    ((4, 3, 2, 5), (0, 1, 2)),
    ((4, 3, 2, 5), (1, 3)),
    ((2, 3, 2, 2, 3), (0, 2, 3, 4)),
]


train = functools.partial(batches.train, expressions.normalize_batch)


@pytest.mark.parametrize("shape, axes", SHAPES_AND_AXES)
def test_training(rng, shape, axes, floatX, quick):
    x, gamma, beta, dy = draw(rng, shape, axes, floatX)
    for actual, expected in zip(train(x, gamma, beta, axes, dy),
                                expected_train(x, gamma, beta, axes, dy)):
        assert actual.dtype == floatX
        assert actual.shape == expected.shape
        assert_allclose(actual, expected, **TOLERANCE[floatX])


def test_gradient_against_finite_differences_in_c(rng, float64):
    axes = (0, 2)
    x, gamma, beta, dy = draw(rng, (4, 3, 2), axes, "float64")
    gradients = train(x, gamma, beta, axes, dy, "FAST_RUN")[3:]
    arguments = [x, gamma, beta]
    for position, gradient in enumerate(gradients):
        def weighted_sum(value, position=position):
            changed = list(arguments)
            changed[position] = value
            x, gamma, beta = changed
            return np.sum(
                dy * reference.normalize_batch(x, axes, gamma, beta))
        numeric = reference.finite_differences(
            weighted_sum, arguments[position])
        assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-8)


def test_second_order_gradient(rng, float64, quick):
    x, gamma, beta, dy = draw(rng, (4, 3), (0,), "float64")
    variable = T.matrix()
    output = expressions.normalize_batch(
        Batch(variable, (0,)), param(gamma, (0,)), param(beta, (0,)), 0.01)[0]
    first = theano.grad((dy * output).sum(), variable)
    penalty = T.sqr(first).sum()
    second = theano.function([variable], theano.grad(penalty, variable))(x)

    def expected_penalty(x):
        dx = reference.gradient_of_normalize_batch(x, dy, (0,), gamma)[0]
        return np.square(dx).sum()

    numeric = reference.finite_differences(expected_penalty, x)
    assert_allclose(second, numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mean", [1e4, -1e4])
def test_large_mean(rng, mean, mode):
    x = rng.normal(mean, 1, (512, 4)).astype("float32")
    one, zero = np.ones((1, 4), "float32"), np.zeros((1, 4), "float32")
    y, _, std = train(x, one, zero, (0,), x, mode)[:3]
    assert_allclose(std, reference.statistics(x, (0,))[1], rtol=1e-5)
    assert_allclose(y, reference.normalize_batch(x, (0,)), atol=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_constant_channel_has_finite_gradient(rng, order, floatX, mode):
    x = rng.normal(size=(6, 2)).astype(floatX)
    x[:, 1] = 3
    dy = rng.normal(size=x.shape).astype(floatX)
    one, zero = np.ones((1, 2), floatX), np.zeros((1, 2), floatX)
    variable = T.matrix(dtype=floatX)
    y = expressions.normalize_batch(
        Batch(variable, (0,)), param(one, (0,)), param(zero, (0,)), 0.01)[0]
    gradient = theano.grad((dy * y).sum(), variable)
    if order == 2:
        gradient = theano.grad(T.sqr(gradient).sum(), variable)
    actual = theano.function([variable], gradient, mode=mode)(x)
    assert np.all(np.isfinite(actual))
    if order == 1:
        expected = reference.gradient_of_normalize_batch(x, dy, (0,))[0]
        assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_not_a_number_stays_in_its_channel(rng, quick):
    x = rng.normal(size=(4, 2)).astype("float32")
    x[1, 0] = np.nan
    one, zero = np.ones((1, 2), "float32"), np.zeros((1, 2), "float32")
    for value in train(x, one, zero, (0,), x)[:3]:
        assert np.all(np.isnan(value[:, 0]))
        assert np.all(np.isfinite(value[:, 1]))


def test_without_gamma_and_beta(rng, float64, quick):
    x = rng.normal(size=(5, 3))
    variable = T.matrix()
    batch = Batch(variable, (0,))
    trained = expressions.normalize_batch(batch, None, None, 0.5)[0]
    tested = expressions.normalize(
        batch, T.constant(1.), T.constant(2.), None, None, 0.5)
    y, z = theano.function([variable], [trained, tested])(x)
    assert_allclose(y, reference.normalize_batch(x, (0,), epsilon=0.5))
    assert_allclose(z, (x - 1) / 2.5)
