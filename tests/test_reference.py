"""The oracle and the gradient check are right, and can fail."""

from bnlasagne import BatchNormLayer, batch_norm

import lasagne
import numpy as np
import pytest
from helpers import full_batch
from helpers.reference import (
    add_bias,
    convolve,
    correlate,
    dense,
    finite_differences,
    flipped,
    gradient_of_normalize_batch,
    locally_connected,
    normalize_batch,
    running_average,
    statistics,
    transposed,
)
from lasagne.layers import (
    DenseLayer,
    ElemwiseSumLayer,
    GlobalPoolLayer,
    InputLayer,
    NINLayer,
)
from lasagne.nonlinearities import sigmoid, tanh
from numpy.testing import assert_allclose

AXES = (0, 2)


@pytest.fixture
def problem(rng):
    x = rng.normal(3, 2, (4, 3, 2))
    return x, rng.normal(size=x.shape), rng.normal(size=(1, 3, 1))


def test_statistics_by_hand():
    mean, std = statistics([[1.0, 5.0], [3.0, 5.0]], (0,))
    assert_allclose(mean, [[2, 5]])
    assert_allclose(std, [[1, 0]])


def test_running_average_by_hand():
    assert running_average(1.0, [3.0, 5.0], alpha=0.5) == 3.5


@pytest.mark.parametrize("wrong", [1, 1.0005])
def test_gradient_of_x(problem, wrong):
    x, dy, gamma = problem
    dx = gradient_of_normalize_batch(x, dy, AXES, gamma)[0] * wrong

    def weighted_sum(x):
        return np.sum(dy * normalize_batch(x, AXES, gamma))

    numeric = finite_differences(weighted_sum, x)
    agree = np.allclose(dx, numeric, rtol=1e-4, atol=1e-8)
    assert agree == (wrong == 1)


def test_gradient_of_gamma_and_beta(problem):
    x, dy, gamma = problem
    _, dgamma, dbeta = gradient_of_normalize_batch(x, dy, AXES, gamma)
    zero = np.zeros(gamma.shape)
    assert_allclose(dgamma, finite_differences(
        lambda gamma: np.sum(dy * normalize_batch(x, AXES, gamma)), gamma),
        rtol=1e-6)
    assert_allclose(dbeta, finite_differences(
        lambda beta: np.sum(dy * normalize_batch(x, AXES, gamma, beta)),
        zero), rtol=1e-6)


def test_dense_by_hand():
    W = [[1, 0], [2, 1], [0, 3], [1, 1]]
    x = np.arange(1, 9).reshape(2, 2, 2)
    expected = [[1 + 4 + 4, 2 + 9 + 4], [5 + 12 + 8, 6 + 21 + 8]]
    assert_allclose(dense(x, W), expected)
    assert_allclose(dense(x, W[:2], leading=2),
                    [[[1 + 4, 2], [3 + 8, 4]], [[5 + 12, 6], [7 + 16, 8]]])


@pytest.mark.parametrize("options, expected", [
    ({}, [1 + 20, 2 + 30, 3 + 40, 4 + 50]),
    ({"stride": 2}, [1 + 20, 3 + 40]),
    ({"pad": 1}, [10, 1 + 20, 2 + 30, 3 + 40, 4 + 50, 5]),
    ({"pad": 1, "stride": 3}, [10, 3 + 40]),
    ({"dilation": 3}, [1 + 40, 2 + 50]),
    ({"dilation": 2, "stride": 2}, [1 + 30, 3 + 50]),
])
def test_correlate_by_hand(options, expected):
    x, W = np.reshape([1, 2, 3, 4, 5], (1, 1, 5)), [[[1, 10]]]
    assert_allclose(correlate(x, W, **options), [[expected]])
    assert_allclose(convolve(x, [[[10, 1]]], **options), [[expected]])


def test_correlate_channels_by_hand():
    x = np.reshape([1, 2, 3, 4], (1, 4, 1))
    W = np.reshape([1, 10, 100, 1000], (2, 2, 1))
    assert_allclose(correlate(x, W, groups=2)[0, :, 0], [1 + 20, 300 + 4000])
    assert_allclose(correlate(x[:, :2], W)[0, :, 0], [1 + 20, 100 + 2000])


def test_correlate_images_by_hand():
    x = np.arange(1, 7).reshape(1, 1, 2, 3)
    W = np.reshape([1, 10, 100, 1000], (1, 1, 2, 2))
    assert_allclose(correlate(x, W), [[[[5421, 6532]]]])
    assert_allclose(convolve(x, W), [[[[1245, 2356]]]])
    assert_allclose(correlate(x, W, stride=(1, 2)), [[[[5421]]]])
    assert_allclose(correlate(x, W, pad=(1, 0))[0, 0, 0], [2100, 3200])
    assert_allclose(correlate(x[..., None], W[..., None])[0, 0, 0],
                    [[5421], [6532]])


def test_flipped_by_hand():
    W = np.arange(4).reshape(1, 1, 2, 2)
    assert_allclose(flipped(W), [[[[3, 2], [1, 0]]]])


def test_transposed_by_hand():
    x, W = np.reshape([1, 2, 3], (1, 1, 3)), [[[1, 10, 100]]]
    assert_allclose(transposed(x, W), [[[1, 12, 123, 230, 300]]])
    assert_allclose(transposed(x, W, stride=2),
                    [[[1, 10, 102, 20, 203, 30, 300]]])
    assert_allclose(transposed(x, W, stride=2, crop=1),
                    [[[10, 102, 20, 203, 30]]])


@pytest.mark.parametrize("stride", [1, (2, 1)])
@pytest.mark.parametrize("pad", [0, (1, 0)])
def test_transposed_is_adjoint(rng, stride, pad):
    x, W = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(2, 3, 3, 2))
    y = correlate(x, W, stride, pad)
    other = rng.normal(size=y.shape)
    assert_allclose(np.sum(y * other),
                    np.sum(x * transposed(other, W, stride, pad)))


def test_locally_connected_by_hand():
    x = np.reshape([1, 2, 3], (1, 1, 1, 3))
    # The filters at the three positions, one per column.
    W = np.reshape([[9, 2, 3], [1, 1, 1], [5, 6, 9]], (1, 1, 1, 3, 1, 3))
    assert_allclose(locally_connected(x, W),
                    [[[[1 + 5 * 2, 2 * 1 + 2 + 6 * 3, 3 * 2 + 3]]]])


def test_locally_connected_as_correlate(rng):
    x, W = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 3, 1))
    everywhere = np.tile(W[..., None, None], (4, 5))
    assert_allclose(locally_connected(x, everywhere),
                    correlate(x, W, pad=(1, 0)))


def test_add_bias_by_hand():
    y = np.zeros((1, 2, 3))
    assert_allclose(add_bias(y, [1, 2]), [[[1, 1, 1], [2, 2, 2]]])
    assert_allclose(add_bias(y, [1, 2, 3], channel=2),
                    [[[1, 2, 3], [1, 2, 3]]])
    untied = [[1, 2, 3], [4, 5, 6]]
    assert_allclose(add_bias(y, untied), [untied])


def branches():
    """A network with all kinds of layers that the full batch's pass knows."""
    lasagne.random.set_rng(np.random.RandomState(1))
    below = batch_norm(NINLayer(InputLayer((None, 2, 2, 3)), 3,
                                nonlinearity=tanh))
    sides = [batch_norm(NINLayer(below, 2, nonlinearity=tanh),
                        gamma=lasagne.init.Uniform((0.5, 2))),
             batch_norm(NINLayer(below, 2, nonlinearity=None), beta=None)]
    network = BatchNormLayer(GlobalPoolLayer(ElemwiseSumLayer(sides)))
    return DenseLayer(network, 3, nonlinearity=sigmoid)


@pytest.mark.parametrize("wrong", [1, 1.0005])
@pytest.mark.parametrize("by_batch", [True, False])
def test_gradients_of_a_network(rng, float64, by_batch, wrong):
    network = branches()
    assert len(lasagne.layers.get_all_params(network, trainable=True)) == 12
    assert are_gradients(network, rng.normal(size=(5, 2, 2, 3)), rng.normal(
        size=(5, 3)), wrong, by_batch=by_batch) == {wrong == 1}


@pytest.mark.parametrize("wrong", [1, 1.0005])
def test_gradients_of_parts_with_masks(rng, float64, wrong):
    x, mask = InputLayer((None, 3)), InputLayer((None,))
    network = batch_norm(DenseLayer(x, 3, nonlinearity=tanh), mask_input=mask)
    network = batch_norm(DenseLayer(network, 3, nonlinearity=tanh))
    network = DenseLayer(network, 3, nonlinearity=sigmoid)
    arrays = {x: rng.normal(size=(7, 3)), mask: np.array([1, 1, 0, 1, 1, 0,
                                                          1])}
    assert are_gradients(
        network, arrays, rng.normal(size=(7, 3)), wrong,
        parts_of=lambda layer: np.split(np.arange(7), [4])) == {wrong == 1}


def are_gradients(network, x, y, factor, **options):
    """The answers whether gradients, times a factor, are those of the loss."""
    def loss_with(param, value):
        before = param.get_value()
        param.set_value(value)
        output = full_batch.Pass(network, x, **options).output
        param.set_value(before)
        return full_batch.squared_error(output, y)[0]

    full = full_batch.Pass(network, x, **options)
    gradients = full.gradients(full_batch.squared_error(full.output, y)[1])
    # Steps of 1e-5 leave 1e-10 of the loss.
    return {np.allclose(gradients[param] * factor, finite_differences(
        lambda value, param=param: loss_with(param, value),
        param.get_value()), rtol=1e-4, atol=1e-9)
        for param in lasagne.layers.get_all_params(network, trainable=True)}
