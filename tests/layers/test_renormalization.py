"""Batch renormalization: the options r_max and d_max."""

import contextlib

from bnlasagne import BatchNormLayer, plain_expressions
from bnlasagne.kernels.ops import FusedOp

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.layers import averages, expected_averages
from lasagne.nonlinearities import rectify
from numpy.testing import assert_allclose, assert_array_equal

EPSILON = 0.01


pytestmark = pytest.mark.usefixtures("expressions")


@pytest.fixture
def stored(rng):
    return rng.normal(1, 1, (1, 3)), rng.uniform(0.5, 2, (1, 3))


@pytest.fixture
def params(rng):
    return rng.uniform(0.5, 2, (1, 3)), rng.normal(size=(1, 3))


def corrections(batch, stored, r_max, d_max, axes=(0,)):
    """r and d of the paper's algorithm 1, in this library's convention."""
    mean, std = reference.statistics(batch, axes)
    stored_mean, stored_std = stored
    r = np.clip((std + EPSILON) / (stored_std + EPSILON), 1 / r_max, r_max)
    d = np.clip((mean - stored_mean) / (stored_std + EPSILON), -d_max, d_max)
    return r, d


def expected(batch, r, d, gamma=1, beta=0, axes=(0,)):
    return (reference.normalize_batch(batch, axes) * r + d) * gamma + beta


def make(stored, params=(1, 0), **kwargs):
    return BatchNormLayer((None, 3), mean=stored[0], std=stored[1],
                          gamma=params[0], beta=params[1], **kwargs)


@pytest.mark.parametrize("r_max, d_max, floatX, mode", [
    (1.1, 0.2, "float32", "FAST_COMPILE"),
    (3, 5, "float64", "FAST_RUN without C"),
    (1, 0.5, "float64", "FAST_COMPILE"),
    (1.5, 0, "float32", "FAST_RUN without C"),
], indirect=["floatX", "mode"])
def test_output(rng, floatX, mode, stored, params, r_max, d_max):
    batch = rng.normal(2, 2, (10, 3)).astype(floatX)
    layer = make(stored, params, r_max=r_max, d_max=d_max,
                 nonlinearity=rectify)
    x = T.matrix()
    actual = theano.function([x], layer.get_output_for(x), mode=mode)(batch)
    assert actual.dtype == floatX
    r, d = corrections(batch, stored, r_max, d_max)
    assert_allclose(actual, np.maximum(expected(batch, r, d, *params), 0),
                    rtol=2e-4, atol=2e-5)


def test_without_limits_it_is_as_in_testing(rng, float64, quick, stored,
                                            params):
    layer = make(stored, params, r_max=1e6, d_max=1e6)
    x = T.matrix()
    outputs = [layer.get_output_for(x, deterministic=deterministic)
               for deterministic in (False, True)]
    training, testing = theano.function([x], outputs)(
        rng.normal(size=(10, 3)))
    assert_allclose(training, testing, rtol=1e-9, atol=1e-12)


def test_limits_of_one_and_zero_are_batch_norm(rng, float64, mode, stored):
    batch = rng.normal(size=(10, 3))
    x = T.matrix()
    layers = [make(stored), make(stored, r_max=1, d_max=0),
              make(stored, r_max=theano.shared(1.), d_max=theano.shared(0.))]
    functions = [theano.function([x], layer.get_output_for(x), mode=mode)
                 for layer in layers]
    plain, fixed, scheduled = (function(batch) for function in functions)
    assert_array_equal(fixed, plain)
    assert_allclose(scheduled, plain, rtol=1e-12, atol=1e-12)
    ops = [sorted(str(node.op) for node in function.maker.fgraph.apply_nodes)
           for function in functions]
    assert ops[0] == ops[1]


def test_schedule(rng, float64, quick, stored):
    batch = rng.normal(2, 2, (10, 3))
    r_max, d_max = theano.shared(1.), theano.shared(0.)
    layer = make(stored, r_max=r_max, d_max=d_max)
    x = T.matrix()
    function = theano.function([x], layer.get_output_for(
        x, batch_norm_update_averages=False))
    for limits in [(1, 0), (1.2, 0.3), (9, 9)]:
        r_max.set_value(limits[0])
        d_max.set_value(limits[1])
        r, d = corrections(batch, stored, *limits)
        assert_allclose(function(batch), expected(batch, r, d), rtol=1e-10,
                        atol=1e-10)


def test_gradient_takes_corrections_to_be_constants(
        rng, float64, quick, stored, params):
    batch, weights = rng.normal(2, 2, (2, 6, 3))
    layer = make(stored, params, r_max=1.2, d_max=0.4)
    x = T.matrix()
    loss = (layer.get_output_for(x) * weights).sum()
    actual = theano.function([x], T.grad(loss, [x, layer.gamma, layer.beta]))(
        batch)
    r, d = corrections(batch, stored, 1.2, 0.4)
    point = (batch, *params)
    for index, gradient in enumerate(actual):
        def oracle(value, index=index):
            x, gamma, beta = (value if i == index else each
                              for i, each in enumerate(point))
            return (expected(x, r, d, gamma, beta) * weights).sum()
        assert_allclose(gradient, reference.finite_differences(
            oracle, point[index]), rtol=1e-6, atol=1e-6)


def test_averages_are_those_of_the_batch(rng, float64, mode, stored):
    batch = rng.normal(2, 2, (10, 3))
    layer = make(stored, r_max=2, d_max=1, alpha=0.25)
    x = T.matrix()
    theano.function([x], layer.get_output_for(x), mode=mode)(batch)
    assert_allclose(averages(layer),
                    expected_averages(layer, batch, before=stored))


def kinds(function):
    return [type(node.op).__name__ for node in function.maker.fgraph.toposort()
            if isinstance(node.op, FusedOp)]


@pytest.mark.parametrize("renormalized, names", [
    (True, ["BatchStatistics", "NormalizeBy", "BatchNormalizeGrad"]),
    (False, ["BatchStatistics", "Normalize"])])
def test_one_pass_for_the_statistics(quick, expressions, renormalized, names):
    """With stored averages that are used and updated, too."""
    layer = BatchNormLayer((None, 3), r_max=2 if renormalized else 1)
    x = T.matrix()
    y = layer.get_output_for(x, batch_norm_use_averages=not renormalized,
                             batch_norm_update_averages=True)
    outputs = [y, T.grad(T.sqr(y).sum(), x)] if renormalized else y
    found = kinds(theano.function([x], outputs))
    assert sorted(found) == (sorted(names) if expressions == "fused" else [])


def test_second_derivatives(rng, float64, quick, stored, params):
    batch, weights = rng.normal(2, 2, (2, 6, 3))
    x, found = T.matrix(), []
    for context in (contextlib.nullcontext, plain_expressions):
        with context():
            y = make(stored, params, r_max=1.2, d_max=0.4).get_output_for(x)
        first = T.grad((weights * T.tanh(y)).sum(), x)
        found.append(theano.function(
            [x], T.grad(T.sqr(first).sum(), x))(batch))
    assert_allclose(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("left_out", ["gamma", "beta"])
def test_convolutional_without_a_parameter(rng, float64, quick, left_out):
    batch = rng.normal(2, 2, (4, 3, 2, 5))
    layer = BatchNormLayer((None, 3, 2, 5), r_max=1.5, d_max=0.5,
                           **{left_out: None})
    x = T.tensor4()
    actual = theano.function([x], layer.get_output_for(x))(batch)
    axes = (0, 2, 3)
    r, d = corrections(batch, (0, 1), 1.5, 0.5, axes)
    assert_allclose(actual, expected(batch, r, d, axes=axes), rtol=1e-10,
                    atol=1e-10)
