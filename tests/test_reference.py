"""The oracle and the gradient check are right, and can fail."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from reference import (
    finite_differences,
    gradient_of_normalize_batch,
    normalize_batch,
    running_average,
    statistics,
)

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
