"""The fused Ops, in C++ and in NumPy, against the oracle."""

import functools
import os
import subprocess
import sys
import threading

from bnlasagne import BatchNormLayer, plain_expressions
from bnlasagne.kernels import dispatch, expressions, ops
from bnlasagne.kernels.batch import Batch
from bnlasagne.kernels.blocks import Layout

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import batches, reference
from helpers.batches import LINKERS, MODES, draw, expected_train
from helpers.common import TOLERANCE, needs_compiler, param, tensor
from helpers.thunks import call, laid_out
from numpy.testing import assert_allclose, assert_array_equal

# Along rows and across columns; in few and in many units of work; with and
# without what is left of vectors, groups of rows, strips and tiles; nothing at
# all.
SHAPES_AND_AXES = [
    ((7,), (0,)),
    ((5, 3), (0,)),
    ((5, 1), (0,)),
    ((1, 3), (0,)),
    ((0, 3), (0,)),
    ((4, 0), (0,)),
    ((3, 2, 0), (0, 2)),
    ((2, 3), (1,)),
    ((2, 300), (1,)),
    ((515, 70), (0,)),
    ((20, 7000), (0,)),
    ((700, 300), (0,)),
    ((40000, 5), (0,)),
    ((4, 3, 2), (0, 1, 2)),
    ((2, 300, 400), (0, 1, 2)),
    ((9, 3, 5, 7), (0, 2, 3)),
    ((6, 9, 8, 8), (0, 2, 3)),
    ((3, 5, 17, 19), (0, 2, 3)),
    ((2, 2, 300, 301), (0, 2, 3)),
    ((2, 5, 90, 61), (0, 2, 3)),
    ((7, 5, 35, 37), (0, 2, 3)),
    ((70, 2, 36, 36), (0, 2, 3)),
    ((9, 50, 10, 13), (0, 2, 3)),
    ((300, 3, 20, 20), (0, 2, 3)),
    ((15, 410, 5, 5), (0, 2, 3)),
    ((4, 3, 2, 5), (0, 1, 2)),
    ((4, 3, 2, 5), (0, 3)),
    ((4, 3, 2, 5), (1, 3)),
    ((2, 3, 2, 2, 3), (0, 2, 4)),
]
@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=LINKERS)
def mode(request):
    return MODES[request.param]


train = functools.partial(batches.train, ops.normalize_batch)


@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("shape, axes", SHAPES_AND_AXES)
def test_training(rng, shape, axes, dtype, rectify, mode):
    arguments = draw(rng, shape, axes, dtype)
    x, gamma, beta, dy = arguments
    actual = train(x, gamma, beta, axes, dy, mode, rectify=rectify)
    expected = expected_train(x, gamma, beta, axes, dy,
                              actual[0] > 0 if rectify else None)
    # Sums over many values, of which single precision rounds each.
    scale = 1 + np.sqrt(np.prod([shape[axis] for axis in axes]))
    for one, other, factor in zip(actual, expected, (1, 1, 1, 1, scale,
                                                     scale)):
        assert one.dtype == dtype
        assert one.shape == other.shape
        tolerance = TOLERANCE[dtype]["rtol"]
        assert_allclose(one, other, rtol=tolerance, atol=tolerance * factor)


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("shape, axes", SHAPES_AND_AXES)
def test_inference(rng, shape, axes, dtype, rectify, mode):
    x, gamma, beta, _ = draw(rng, shape, axes, dtype)
    mean, std = rng.normal(size=gamma.shape), rng.uniform(size=gamma.shape)
    variable = tensor(x)
    y = ops.normalize(Batch(variable, axes), *(
        param(value.astype(dtype), axes) for value
        in (mean, std, gamma, beta)), 0.01, rectify)
    actual = theano.function([variable], y, mode=mode)(x)
    expected = reference.normalize(x, mean, std, gamma, beta)
    assert actual.dtype == dtype
    assert_allclose(actual, np.maximum(expected, 0) if rectify else expected,
                    **TOLERANCE[dtype])


@pytest.mark.parametrize("view", [
    lambda x: x[::2], lambda x: x[:, ::-1], lambda x: x[:, :, 1:-1],
    lambda x: x.transpose(2, 1, 0), lambda x: x.astype(x.dtype, order="F"),
], ids=["every other", "reversed", "inner", "transposed", "Fortran"])
def test_arrays_that_are_not_in_order(rng, view, dtype, mode):
    axes = (0, 2)
    x, gamma, beta, dy = draw(rng, (12, 5, 40), axes, dtype)
    x, dy = view(x), view(dy)
    before = x.copy(), dy.copy()
    actual = train(x, gamma, beta, axes, dy, mode)
    for one, other in zip(actual,
                          expected_train(x, gamma, beta, axes, dy)):
        assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert_array_equal(x, before[0])
    assert_array_equal(dy, before[1])


@pytest.mark.parametrize("offset", [1e4, -1e6])
@pytest.mark.parametrize("shape, axes", [
    ((4096, 32), (0,)), ((8, 3, 32, 32), (0, 2, 3)), ((4, 9, 8, 8), (0, 2, 3)),
])
def test_large_mean(rng, shape, axes, offset, mode):
    x, gamma, beta, dy = draw(rng, shape, axes, "float32")
    x = (rng.normal(size=shape) + offset).astype("float32")
    y, mean, std, dx, _, _ = train(x, gamma, beta, axes, dy, mode)
    expected = expected_train(x, gamma, beta, axes, dy)
    assert_allclose(mean, expected[1], rtol=1e-7)
    assert_allclose(std, expected[2], rtol=1e-6)
    assert_allclose(y, expected[0], rtol=1e-5, atol=1e-5)
    assert_allclose(dx, expected[3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape, axes", [
    ((3000, 100), (0,)), ((60000, 2, 3), (0, 2)), ((70, 2, 36, 36), (0, 2, 3)),
])
def test_drift(rng, shape, axes, mode):
    """Means that differ from piece to piece."""
    x, gamma, beta, dy = draw(rng, shape, axes, "float64")
    x += np.linspace(0, 1000, len(x)).reshape([-1] + [1] * (x.ndim - 1))
    actual = train(x, gamma, beta, axes, dy, mode)
    for one, other in zip(actual, expected_train(x, gamma, beta, axes, dy)):
        assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape, axes", [
    ((100352, 2), (0,)), ((2, 2, 224, 224), (0, 2, 3))])
def test_outlier_at_the_start(rng, shape, axes, mode):
    x, gamma, beta, dy = draw(rng, shape, axes, "float32")
    x = (rng.normal(size=shape) + 1e4).astype("float32")
    x[(0,) * x.ndim] = 1e7
    std = train(x, gamma, beta, axes, dy, mode)[2]
    assert_allclose(std, reference.statistics(x, axes)[1], rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e25, 1e37])
@pytest.mark.parametrize("shape, axes", [
    ((700, 5), (0,)), ((4, 3, 20, 20), (0, 2, 3))])
def test_extreme_values(rng, shape, axes, scale, mode):
    x, gamma, beta, dy = draw(rng, shape, axes, "float32")
    x = (rng.normal(size=shape) * scale).astype("float32")
    y, mean, std = train(x, gamma, beta, axes, dy, mode)[:3]
    expected = expected_train(x, gamma, beta, axes, dy)
    assert_allclose(y, expected[0], rtol=1e-4, atol=1e-5)
    assert_allclose(mean, expected[1], rtol=1e-4, atol=1e-6 * scale)
    assert_allclose(std, expected[2], rtol=1e-5, atol=1e-20)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape, axes", [
    ((50, 20), (0,)), ((4, 3, 20, 20), (0, 2, 3))])
def test_what_is_not_finite_stays_in_its_channel(
        rng, shape, axes, value, mode):
    x, gamma, beta, dy = draw(rng, shape, axes, "float32")
    x[(1, 1) + (0,) * (x.ndim - 2)] = value
    actual = train(x, gamma, beta, axes, dy, mode, rectify=True)
    for output in actual:
        clean = np.delete(output, 1, axis=1)
        assert np.all(np.isfinite(clean))
    assert np.all(np.isnan(actual[0][:, 1]))
    assert not np.any(np.isfinite(actual[2][:, 1]))


@pytest.mark.parametrize("value", [0, 3, 0.1, 1.7, 1e6])
@pytest.mark.parametrize("shape, axes", [
    ((37, 20), (0,)), ((237, 6), (0,)), ((28, 5, 9), (0, 2))])
def test_constant_channel(rng, value, shape, axes, dtype, mode):
    x, gamma, beta, dy = draw(rng, shape, axes, dtype)
    x[:, 2] = value
    actual = train(x, gamma, beta, axes, dy, mode)
    for one, other in zip(actual, expected_train(x, gamma, beta, axes, dy)):
        assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    # NumPy's mean may round.
    least = 0 if mode is MODES.get("cvm") else 1e-15 * abs(value)
    assert_allclose(actual[2][0, 2], 0, atol=least)


def test_without_gamma_and_beta(rng, dtype, mode):
    x = rng.normal(size=(5, 3)).astype(dtype)
    variable = tensor(x)
    batch = Batch(variable, (0,))
    outputs = [ops.normalize_batch(batch, None, None, 0.5)[0],
               ops.normalize(batch, T.zeros((1, 3), dtype),
                             T.ones((1, 3), dtype), None, None, 0.5)]
    trained, tested = theano.function([variable], outputs, mode=mode)(x)
    assert_allclose(trained, reference.normalize_batch(x, (0,), epsilon=0.5),
                    **TOLERANCE[dtype])
    assert_allclose(tested, x / 1.5, **TOLERANCE[dtype])


@pytest.mark.parametrize("rectify", [False, True])
def test_gradients_of_gradients(rng, rectify):
    """They are those of the plain expression."""
    axes = (0,)
    x, gamma, beta, dy = draw(rng, (5, 3), axes, "float64")
    variable = tensor(x)
    params = [param(gamma, axes), param(beta, axes)]
    batch = Batch(variable, axes)
    plain = expressions.normalize_batch(batch, *params, 0.01)[0]
    found = []
    for y in (ops.normalize_batch(batch, *params, 0.01, rectify)[0],
              T.nnet.relu(plain) if rectify else plain):
        first = theano.grad((dy * y ** 2).sum(), variable)
        penalty = (T.sqr(first) * dy).sum()
        found.append(theano.function(
            [variable], theano.grad(penalty, [variable] + params),
            mode=MODES["py"])(x))
    for fused, plain in zip(*found):
        assert_allclose(fused, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tested", [False, True])
def test_second_derivatives_by_several_parameters(rng, tested):
    """A Hessian-vector product, against differences of gradients."""
    x, gamma, beta, _ = draw(rng, (7, 3), (0,), "float64")
    vectors = rng.normal(size=(2, 1, 3))
    variable = tensor(x)
    params = [param(gamma, (0,)), param(beta, (0,))]
    batch = Batch(variable, (0,))
    if tested:
        stored = param(gamma - 1, (0,)), param(gamma ** 2, (0,))
        y = ops.normalize(batch, *stored, *params, 0.01)
    else:
        y = ops.normalize_batch(batch, *params, 0.01)[0]
    gradients = theano.grad(T.exp(T.tanh(y)).sum(), params)
    product = theano.grad(sum((gradient * vector).sum() for gradient, vector
                              in zip(gradients, vectors)), params)
    actual = theano.function([variable], product, mode=MODES["py"])(x)
    first = theano.function([variable], gradients, mode=MODES["py"])
    found = []
    for step in (1e-5, -1e-5):
        for each, value, vector in zip(params, (gamma, beta), vectors):
            each.set_value(value + step * vector)
        found.append(first(x))
    for one, above, below in zip(actual, *found):
        assert_allclose(one, (above - below) / 2e-5, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("flags", [
    {"warn_float64": "raise"}, {"compute_test_value": "raise"},
    {"int_division": "raise"}, {"cast_policy": "numpy+floatX"},
    {"on_shape_error": "raise"}], ids=str)
@pytest.mark.parametrize("plain", [False, True])
def test_strict_flags_of_theano(rng, flags, plain):
    """Training, testing and second derivatives, all in single precision."""
    x, gamma, beta, _ = draw(rng, (7, 3), (0,), "float32")
    # Test values are computed in C where there is a compiler, Op by Op.
    with theano.configparser.change_flags(floatX="float32", cxx="", **flags):
        before = {name: getattr(theano.config, name) for name in flags}
        variable = T.matrix()
        variable.tag.test_value = x
        params = [param(gamma, (0,)), param(beta, (0,))]
        build = expressions if plain else ops
        batch = Batch(variable, (0,))
        y, mean, std, _ = build.normalize_batch(batch, *params, 0.01)
        z = build.normalize(batch, mean, std, *params, 0.01)
        first = theano.grad(T.sqr(y).sum() + T.tanh(z).sum(), params)
        second = theano.grad(sum(T.sqr(each).sum() for each in first), params)
        outputs = theano.function([variable], [y, z] + first + second,
                                  mode=MODES["py"])(x)
        assert {name: getattr(theano.config, name) for name in flags} == before
    assert {output.dtype.name for output in outputs} == {"float32"}
    for output in outputs[:2]:
        assert_allclose(output, reference.normalize_batch(
            x, (0,), gamma, beta), **TOLERANCE["float32"])


def test_gradient_of_the_statistics(rng):
    x, gamma, beta, dy = draw(rng, (6, 3), (0,), "float64")
    x[:, 1] = 2
    variable = tensor(x)
    weights = rng.normal(size=(2, 1, 3))
    batch = Batch(variable, (0,))
    arguments = batch, param(gamma, (0,)), param(beta, (0,)), 0.01
    found = []
    for _, mean, std in (
            ops.normalize_batch(*arguments)[:3],
            (None, *ops.find_statistics(batch)[:2]),
            expressions.normalize_batch(*arguments)[:3]):
        cost = (weights[0] * mean + weights[1] * std).sum()
        found.append(theano.function(
            [variable], theano.grad(cost, variable), mode=MODES["py"])(x))
    for one in found[:2]:
        assert_allclose(one, found[2], rtol=1e-10, atol=1e-12)


def test_gradient_through_stored_statistics(rng):
    x, gamma, beta, dy = draw(rng, (6, 3), (0,), "float64")
    variables = [tensor(x)] + [param(value, (0,)) for value in (
        beta + 1, np.abs(gamma) + 1, gamma, beta)]
    batch = Batch(variables[0], (0,))
    fused = ops.normalize(batch, *variables[1:], 0.01, True)
    plain = T.nnet.relu(expressions.normalize(batch, *variables[1:], 0.01))
    gradients = [theano.grad((dy * y ** 2).sum(), variables)
                 for y in (fused, plain)]
    values = theano.function(variables[:1], gradients[0] + gradients[1],
                             mode=MODES["py"])(x)
    for one, other in zip(values[:5], values[5:]):
        assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wrong, message", [
    ({"gamma": (1, 4)}, "gamma must be of size 3 along axis 1"),
    ({"beta": (2, 3)}, "beta must be of size 1 along axis 0"),
    ({"dy": (5, 3)}, "gradient must be of size 6 along axis 0"),
])
def test_shapes_that_do_not_fit(rng, mode, wrong, message):
    x = rng.normal(size=(6, 3))
    shapes = {"gamma": (1, 3), "beta": (1, 3), "dy": (6, 3)}
    shapes.update(wrong)
    gamma, beta = T.matrices("fc_bn.gamma", "fc_bn.beta")
    variable, dy = T.matrices(2)
    # Not declared broadcastable; Theano would find out before the Op does.
    op = ops.BatchNormalize(Layout(1, 2))
    for each in (gamma, beta):
        each.type = T.TensorType(each.dtype, (True, False))
    y = op(variable, gamma, beta, 0.01)[0]
    outputs = theano.grad(None, [variable], known_grads={y: dy})
    function = theano.function([variable, gamma, beta, dy], [y] + outputs,
                               mode=mode)
    function.trust_input = True
    with pytest.raises(ValueError, match=message):
        function(x, *(np.ones(shapes[name]) for name in (
            "gamma", "beta", "dy")))


@needs_compiler
@pytest.mark.parametrize("size", [5, 7, 0])
def test_vector_that_does_not_fit(rng, size):
    """In C++, where nothing else would notice."""
    x, one = rng.normal(size=(6, 3)), np.ones((1, 3))
    with pytest.raises(ValueError, match=(
            "the statistics must be of size 6 along axis 0, .* size "
            f"{size}")):
        call(ops.BatchNormalizeGrad(Layout(1, 2)),
             [x, one, one, 0.01, x, np.ones(size)], "c")


@pytest.mark.parametrize("inputs, message", [
    ([T.lmatrix()], "must be float32 or float64, got int64"),
    ([T.fmatrix(), T.drow(), T.frow(), 0.01],
     "gamma must be float32 with 2 dimensions, .* is float64 with 2"),
    ([T.fmatrix(), T.frow(), T.fvector(), 0.01],
     "beta must be float32 with 2 dimensions, .* is float32 with 1"),
])
def test_types_that_do_not_fit(inputs, message):
    op = ops.BatchNormalize if len(inputs) > 1 else ops.BatchStatistics
    with pytest.raises(TypeError, match=message):
        op(Layout(1, 2))(*inputs)


# Running averages

def moved(average, alpha, count, *statistics, mode=None):
    average_, alpha_, count_ = tensor(average), T.dscalar(), T.lscalar()
    statistics_ = [tensor(statistic) for statistic in statistics]
    output = ops.MoveAverage(len(statistics))(
        average_, alpha_, count_, *statistics_)
    inputs = [average_, alpha_, count_] + statistics_
    return theano.function(inputs, output, mode=mode)(
        average, alpha, count, *statistics)


def test_move_average(rng, dtype, mode):
    average, mean, std = rng.normal(size=(3, 1, 50, 1)).astype(dtype)
    actual = moved(average, 0.3, 2, mean, std, mode=mode)
    assert actual.dtype == dtype
    assert_allclose(actual, 0.7 * average + 0.3 * mean, **TOLERANCE[dtype])


@pytest.mark.parametrize("count, spoilt, value", [
    (1, None, None), (0, None, None), (5, 0, np.inf), (5, 0, np.nan),
    (5, 1, -np.inf), (5, 1, np.nan)])
def test_move_average_of_an_unusable_batch(
        rng, dtype, mode, count, spoilt, value):
    average, *statistics = rng.normal(size=(3, 1, 50)).astype(dtype)
    if spoilt is not None:
        statistics[spoilt][0, 37] = value
    actual = moved(average, 0.3, count, *statistics, mode=mode)
    assert_array_equal(actual, average)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_move_average_by_all_of_the_weight(rng, dtype, mode, value):
    """The batch replaces the average, whatever that was."""
    average, mean, std = rng.normal(size=(3, 1, 50)).astype(dtype)
    average[0, 3] = value
    actual = moved(average, 1, 5, mean, std, mode=mode)
    assert_array_equal(actual, mean)
    assert np.isnan(moved(average, 0.5, 5, mean, std, mode=mode)[0, 3]) == (
        np.isnan(value))


@pytest.mark.parametrize("alpha", [0.3, 1])
@pytest.mark.parametrize("sizes", [(50, 49), (1, 3)])
def test_move_average_of_another_size(rng, mode, sizes, alpha):
    average, (mean, std) = (rng.normal(size=(n, 1, size)) for n, size
                            in zip((1, 2), sizes))
    message = ("a batch's statistic must be of size %d along axis 1, to go "
               "with its input, but is of size %d" % sizes)
    with pytest.raises(ValueError, match=message):
        moved(average[0], alpha, 5, mean, std, mode=mode)


@pytest.mark.parametrize("inputs", [
    (T.frow(), T.dscalar(), T.lscalar(), T.drow()),
    (T.frow(), T.dscalar(), T.lscalar(), T.fvector()),
    (T.frow(), T.fscalar(), T.lscalar(), T.frow()),
    (T.frow(), T.dscalar(), T.iscalar(), T.frow()),
])
def test_move_average_of_other_types(inputs):
    with pytest.raises(TypeError, match="MoveAverage"):
        ops.MoveAverage(1)(*inputs)


# Optimizations, and what a layer is built from

def op_types(function):
    """What a function computes, without what only declares a shape."""
    return [type(node.op) for node in function.maker.fgraph.toposort()
            if not isinstance(node.op, theano.compile.ops.Rebroadcast)]


def inplace_ops(function):
    return [node.op for node in function.maker.fgraph.toposort()
            if isinstance(node.op, (ops.BatchNormalizeGrad, ops.Normalize))
            and node.op.inplace]


@pytest.mark.parametrize("linker", LINKERS)
def test_in_place_where_nothing_else_needs_the_input(rng, linker):
    layer = BatchNormLayer((None, 3), beta=rng.normal(size=3))
    x = T.matrix()
    y = T.exp(layer.get_output_for(2 * x))
    z = layer.get_output_for(2 * x, deterministic=True)
    mode = theano.Mode(linker, "fast_run")
    train = theano.function([x], theano.grad(y.sum(), x), mode=mode)
    test = theano.function([x], z, mode=mode)
    data = rng.normal(size=(5, 3)).astype(theano.config.floatX)
    before = data.copy()
    assert len(inplace_ops(train)) == len(inplace_ops(test)) == 1
    beta = layer.beta.get_value()
    assert_allclose(test(data), reference.normalize(2 * data, 0, 1, 1, beta),
                    rtol=1e-5)
    y = np.exp(reference.normalize_batch(2 * data, (0,), 1, beta))
    dx = reference.gradient_of_normalize_batch(2 * data, y, (0,))[0]
    assert_allclose(train(data), 2 * dx, rtol=1e-4, atol=1e-5)
    assert_array_equal(data, before)


@needs_compiler
@pytest.mark.parametrize("layout", ["in order", "every other"])
@pytest.mark.parametrize("name", [
    "BatchNormalize", "BatchNormalizeGrad", "in place", "MoveAverage"])
def test_no_reference_is_left(rng, name, layout):
    """Neither to inputs nor to what lay in the place of an output."""
    x, dy = rng.normal(size=(2, 5, 3))
    one, epsilon, statistics = np.ones((1, 3)), np.array(0.01), np.ones(6)
    op, inputs = {
        "BatchNormalize": (ops.BatchNormalize(Layout(1, 2)),
                           [x, one, one, epsilon]),
        "BatchNormalizeGrad": (ops.BatchNormalizeGrad(Layout(1, 2)),
                               [x, one, one, epsilon, dy, statistics]),
        "in place": (ops.Normalize(Layout(1, 2), inplace=True),
                     [x, one, one, one, one, epsilon]),
        "MoveAverage": (ops.MoveAverage(2), [
            one, np.array(0.5), np.array(5), one, one]),
    }[name]
    arrays = [laid_out(array.copy(), layout) for array in inputs]
    inputs = list(arrays)

    def leftover(array):
        arrays.append(np.zeros(np.add(array.shape, 1)))
        return arrays[-1]

    call(op, inputs, "c", leftover)
    assert len(arrays) > len(inputs)
    del inputs
    # In the list, in the loop and as an argument.
    assert {sys.getrefcount(array) for array in arrays} == {3}


def test_never_over_what_the_user_passed(rng):
    layer = BatchNormLayer((None, 3))
    x = T.matrix()
    function = theano.function(
        [x], layer.get_output_for(x, deterministic=True), mode="FAST_RUN")
    assert not inplace_ops(function)


@pytest.mark.parametrize("nonlinearity, fused", [
    (None, True), (lasagne.nonlinearities.rectify, True),
    (lasagne.nonlinearities.tanh, False)])
@pytest.mark.parametrize("deterministic", [False, True])
def test_one_op_per_layer(nonlinearity, fused, deterministic):
    layer = BatchNormLayer((None, 3), nonlinearity=nonlinearity)
    x = T.matrix()
    output = layer.get_output_for(x, deterministic=deterministic,
                                  batch_norm_update_averages=False)
    kinds = op_types(theano.function([x], output))
    expected = ops.Normalize if deterministic else ops.BatchNormalize
    assert expected in kinds
    assert (len(kinds) == 1) == fused


def test_plain_expressions_on_request(rng, floatX):
    layer = BatchNormLayer((None, 3), gamma=rng.normal(size=3))
    x = T.matrix()
    with plain_expressions():
        plain = layer.get_output_for(x)
        with plain_expressions():
            pass
        tested = layer.get_output_for(x, deterministic=True)
    fused = layer.get_output_for(x)
    data = rng.normal(size=(6, 3)).astype(floatX)
    found = []
    for output, usable in ((plain, False), (tested, False), (fused, True)):
        function = theano.function([x], output, no_default_updates=True,
                                   mode=MODES["py"])
        kinds = op_types(function)
        assert (ops.BatchNormalize in kinds) == usable
        assert ops.Normalize not in kinds
        found.append(function(data))
    assert_allclose(found[0], found[2], **TOLERANCE[floatX])


def test_plain_expressions_end_with_an_error():
    variable = T.matrix()
    with pytest.raises(KeyError), plain_expressions():
        raise KeyError
    assert dispatch.are_usable(variable)


def test_plain_expressions_in_other_threads():
    variable, found = T.matrix(), []
    thread = threading.Thread(
        target=lambda: found.append(dispatch.are_usable(variable)))
    with plain_expressions():
        thread.start()
        thread.join()
        assert not dispatch.are_usable(variable)
    assert found == [True]


def test_half_precision_and_other_devices_use_plain_expressions():
    assert not dispatch.are_usable(T.TensorType("float16", (False,))())
    assert not dispatch.are_usable(T.fmatrix(), T.dmatrix())
    with theano.configparser.change_flags(compute_test_value="off"):
        assert dispatch.are_usable(T.fmatrix(), T.fmatrix())


THREADED = """
import sys
import bnlasagne
import numpy as np
import theano
import theano.tensor as T
from bnlasagne.kernels import ops
from bnlasagne.kernels.batch import Batch
from bnlasagne.kernels.blocks import Layout

results = []
rng = np.random.RandomState(0)
for shape, axes in [((1024, 700), (0,)), ((40000, 5), (0,)),
                    ((4, 64, 40, 40), (0, 2, 3)), ((64, 100, 8, 8), (0, 2, 3)),
                    ((4, 1, 200, 200), (0, 2, 3)), ((3, 300, 500), (0, 1))]:
    x = rng.normal(3, 2, shape).astype("float32")
    dy = rng.normal(size=shape).astype("float32")
    short = [1 if axis in axes else size for axis, size in enumerate(shape)]
    pattern = [axis in axes for axis in range(x.ndim)]
    gamma, beta = (theano.shared(rng.normal(size=short).astype("float32"),
                                 broadcastable=pattern) for _ in range(2))
    variables = [T.TensorType("float32", (False,) * x.ndim)() for _ in "xd"]
    batch = Batch(variables[0], axes)
    y, mean, std, _ = ops.normalize_batch(batch, gamma, beta, 0.01, True)
    z = ops.normalize(batch, gamma, T.sqr(beta), gamma, beta, 0.01)
    gradients = theano.grad(None, [variables[0], gamma, beta],
                            known_grads={y: variables[1]})
    results += theano.function(variables, [y, mean, std, z] + gradients)(x, dy)
np.savez(sys.argv[1], *results)
"""


@needs_compiler
def test_bits_do_not_depend_on_the_number_of_threads(tmp_path):
    found = []
    for threads in (1, 2, 3, 4):
        path = tmp_path / "{}.npz".format(threads)
        subprocess.run([sys.executable, "-c", THREADED, str(path)], check=True,
                       env=dict(os.environ, OMP_NUM_THREADS=str(threads)))
        with np.load(path) as results:
            found.append([results[name] for name in results.files])
    for others in found[1:]:
        for one, other in zip(found[0], others):
            assert one.tobytes() == other.tobytes()
