"""Masks in the fused Ops, in C++ and in NumPy, against the oracle."""

from bnlasagne.kernels import dispatch, expressions, ops
from bnlasagne.kernels.batch import Batch
from bnlasagne.kernels.blocks import Layout

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import batches, reference
from helpers.batches import LINKERS, MODES, draw, short_shape
from helpers.common import TOLERANCE, param, tensor
from numpy.testing import assert_allclose, assert_array_equal

# Shapes, axes, and axes along which the mask varies. Along rows and across
# columns; in few and in many units of work; nothing at all.
CASES = [
    ((7,), (0,), (0,)),
    ((5, 3), (0,), (0,)),
    ((0, 3), (0,), (0,)),
    ((4, 0), (0,), (0,)),
    ((3, 2, 0), (0, 2), (0, 2)),
    ((2, 3), (1,), (1,)),
    ((2, 300), (1,), (1,)),
    ((515, 70), (0,), (0,)),
    ((20, 2100), (0,), (0,)),
    ((40000, 5), (0,), (0,)),
    ((30, 50, 70), (0, 1), (0, 1)),
    ((4, 3, 2), (0, 1, 2), (1,)),
    ((2, 300, 400), (0, 1, 2), (0, 2)),
    ((9, 3, 5, 7), (0, 2, 3), (0,)),
    ((9, 3, 5, 7), (0, 2, 3), (2, 3)),
    ((7, 5, 35, 37), (0, 2, 3), (0,)),
    ((7, 5, 35, 37), (0, 2, 3), (0, 3)),
    ((2, 2, 90, 91), (0, 2, 3), (0, 2, 3)),
    ((2, 2, 90, 91), (0, 2, 3), (2,)),
    ((90, 2, 1000), (0, 2), (0, 2)),
    ((15, 410, 5, 5), (0, 2, 3), (0,)),
    ((4, 3, 2, 5), (0, 1, 2), (0, 1, 2)),
    ((4, 3, 2, 5), (1, 3), (3,)),
    ((2, 3, 2, 2, 3), (0, 2, 4), (0, 4)),
]
FILLS = "random", "ends", "all", "none", "single"


def fill(rng, kind, shape, varying):
    """A mask that varies along some axes."""
    shape = [size if axis in varying else 1 for axis, size in enumerate(shape)]
    mask = np.zeros(shape, bool)
    if kind == "random":
        mask = rng.uniform(size=shape) < 0.6
    elif kind == "ends":
        # Lengths along the last axis.
        places = np.arange(shape[varying[-1]]).reshape(
            [-1] + [1] * (len(shape) - 1 - varying[-1]))
        lengths = rng.randint(0, places.size + 1, np.delete(
            shape, np.arange(varying[-1], len(shape))))
        mask |= places < lengths.reshape(lengths.shape + (1,) * (
            len(shape) - varying[-1]))
    elif kind == "all":
        mask |= True
    elif kind == "single" and mask.size:
        mask.ravel()[-1] = True
    return mask


def spoil(array, mask, *values):
    """Write values into an array wherever it does not count."""
    outside = ~np.broadcast_to(mask, array.shape)
    array[outside] = np.resize(values, outside.sum())


def train(*arguments, mask=None, **options):
    """All masks are of one type, so that less is compiled."""
    if mask is not None and mask.dtype == bool:
        mask = mask.astype("int8")
    return batches.train_parts(ops.normalize_batch, *arguments, mask=mask,
                               **options)


def expected_train(x, gamma, beta, axes, dy, mask, active=None):
    with np.errstate(all="ignore"):
        y = reference.normalize_masked(x, axes, mask, gamma, beta)
        if active is not None:
            y, dy = np.maximum(y, 0), np.where(active, dy, 0)
        return [y, *reference.masked_statistics(x, axes, mask),
                *reference.gradient_of_normalize_masked(
                    x, dy, axes, mask, gamma)]


@pytest.fixture(params=LINKERS)
def mode(request):
    return MODES[request.param]


@pytest.mark.parametrize("counted", [0, 1])
def test_mask_of_one_value_for_all(rng, counted):
    """Of its type, it varies along no axis."""
    x, mask = rng.normal(size=(4, 3)), np.full((1, 1), counted, "int8")
    variable = T.TensorType("int8", (True, True))()
    y = ops.normalize_batch(
        Batch(T.constant(x), (0, 1), variable), None, None, 0.01)[0]
    found = theano.function([variable], y, mode=MODES["py"])(mask)
    assert_allclose(found, reference.normalize_masked(
        x, (0, 1), mask, np.ones((1, 1)), np.zeros((1, 1))))


@pytest.mark.parametrize("dtype, rectify", [
    ("float32", True), ("float64", False)])
@pytest.mark.parametrize("shape, axes, varying", CASES)
def test_training(rng, shape, axes, varying, dtype, rectify, mode):
    arguments = draw(rng, shape, axes, dtype)
    for kind in FILLS:
        mask = fill(rng, kind, shape, varying)
        x, gamma, beta, dy = map(np.copy, arguments)
        spoil(x, mask, np.nan, np.inf, -np.inf)
        spoil(dy, mask, np.inf, np.nan)
        *actual, count = train(x, gamma, beta, axes, dy, mode,
                               mask=mask, rectify=rectify)
        expected = expected_train(x, gamma, beta, axes, dy, mask,
                                  actual[0] > 0 if rectify else None)
        counts = np.broadcast_to(mask, [
            size if axis in axes else 1 for axis, size in enumerate(shape)])
        assert count == counts.sum()
        assert count.dtype == "int64" and count.ndim == 0
        # Sums over many values, of which single precision rounds each.
        scale = 1 + np.sqrt(count)
        tolerance = TOLERANCE[dtype]["rtol"]
        for one, other, factor in zip(actual, expected, (
                1, 1, 1, 1, scale, scale)):
            assert one.dtype == dtype
            assert one.shape == other.shape
            assert_allclose(one, other, tolerance, tolerance * factor,
                            err_msg=kind)
        for one in actual[0], actual[3]:
            assert not np.any(one[~np.broadcast_to(mask, shape)])


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("shape, axes, varying", CASES)
def test_inference(rng, shape, axes, varying, rectify, mode):
    x, gamma, beta, _ = draw(rng, shape, axes, "float32")
    mean, std = rng.normal(size=gamma.shape), rng.uniform(size=gamma.shape)
    variable, params = tensor(x), [
        param(value.astype("float32"), axes)
        for value in (mean, std, gamma, beta)]
    # In C, half precision is a type of its own.
    mask_ = T.TensorType("float16", [
        axis not in varying for axis in range(x.ndim)])()
    function = theano.function([variable, mask_], ops.normalize(
        Batch(variable, axes, mask_, 2), *params, 0.01, rectify), mode=mode)
    expected = reference.normalize(x, mean, std, gamma, beta)
    expected = np.maximum(expected, 0) if rectify else expected
    for kind in FILLS:
        mask = fill(rng, kind, shape, varying)
        spoilt = x.copy()
        spoil(spoilt, mask, np.nan, np.inf)
        actual = function(spoilt, np.where(mask, np.nan, 0).astype("float16"))
        assert_allclose(actual, np.where(mask, expected, 0), err_msg=kind,
                        **TOLERANCE["float32"])


@pytest.mark.parametrize("dtype", [
    "bool", "int8", "uint16", "int64", "float16", "float32", "complex64"])
def test_types_of_masks(rng, dtype):
    """NaN counts, as all that is not zero."""
    x, gamma, beta, dy = draw(rng, (6, 3), (0,), "float32")
    mask = np.array([[2], [0], [1], [3], [0], [5]]).astype(dtype)
    if dtype[0] in "fc":
        mask[2:4, 0] = 0.25, np.nan
    actual = train(x, gamma, beta, (0,), dy, MODES["py"], mask=mask)
    assert actual[-1] == 4
    for one, other in zip(actual, expected_train(
            x, gamma, beta, (0,), dy, mask)):
        assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape, axes, varying", [
    ((400, 32), (0,), (0,)), ((8, 3, 32, 32), (0, 2, 3), (0, 2, 3)),
    ((2, 2, 5000), (0, 2), (2,))])
@pytest.mark.parametrize("offset, scale", [
    (1e4, 1), (-1e6, 1), (0, 1e-30), (0, 1e25)])
def test_large_means_and_extreme_scales(
        rng, shape, axes, varying, offset, scale, mode):
    x, gamma, beta, dy = draw(rng, shape, axes, "float32")
    x = (rng.normal(size=shape) * scale + offset).astype("float32")
    mask = fill(rng, "random", shape, varying)
    # Nothing counts for longer than the sample that others are compared with.
    if shape[-1] > 1000:
        mask[..., :1000] = False
    spoil(x, mask, 0, np.nan)
    y, mean, std, dx, *_ = train(x, gamma, beta, axes, dy, mode, mask=mask)
    expected = expected_train(x, gamma, beta, axes, dy, mask)
    assert_allclose(mean, expected[1], rtol=1e-4, atol=1e-6 * scale)
    assert_allclose(std, expected[2], rtol=1e-5, atol=1e-20)
    assert_allclose(y, expected[0], rtol=1e-4, atol=1e-5)
    assert_allclose(dx, expected[3], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape, axes, varying", [
    ((100352, 2), (0,), (0,)), ((2, 2, 224, 224), (0, 2, 3), (0, 3))])
def test_outlier_at_the_start(rng, shape, axes, varying, mode):
    x, gamma, beta, dy = draw(rng, shape, axes, "float32")
    x = (rng.normal(size=shape) + 1e4).astype("float32")
    mask = fill(rng, "random", shape, varying)
    mask.ravel()[0] = True
    x[(0,) * x.ndim] = 1e7
    std = train(x, gamma, beta, axes, dy, mode, mask=mask)[2]
    assert_allclose(std, reference.masked_statistics(x, axes, mask)[1],
                    rtol=1e-5)


@pytest.mark.parametrize("shape, axes", [
    ((50, 20), (0,)), ((40, 30, 20), (0, 1)), ((4, 3, 20, 20), (0, 2, 3))])
def test_bits_of_rows_that_count(rng, shape, axes, mode):
    """They are those of a batch with nothing else in it."""
    x, gamma, beta, dy = draw(rng, shape, axes, "float32")
    mask = fill(rng, "random", shape, (0,))
    kept = mask.ravel()
    alone = train(x[kept], gamma, beta, axes, dy[kept], mode, rectify=True)
    *outputs, count = train(x, gamma, beta, axes, dy, mode, rectify=True,
                            mask=mask)
    assert count == alone.pop()
    for i in 0, 3:
        outputs[i] = outputs[i][kept]
    for one, other in zip(outputs, alone):
        assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_arrays_that_are_not_in_order(rng, mode):
    axes = (0, 2)
    x, gamma, beta, dy = draw(rng, (12, 5, 40), axes, "float32")
    mask = fill(rng, "random", (24, 1, 40), (0, 2)).astype("int8")
    mask = mask[::2, :, ::-1]
    before = mask.copy()
    actual = train(x[:, ::-1], gamma, beta, axes, dy, mode, mask=mask)
    for one, other in zip(actual, expected_train(
            x[:, ::-1], gamma, beta, axes, dy, mask)):
        assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert_array_equal(mask, before)


def test_not_declared_broadcastable(rng, mode):
    """Sizes of 1 that a mask does not declare are no error."""
    x, gamma, beta, dy = draw(rng, (4, 5, 3), (0, 1), "float64")
    mask_, variable = T.TensorType("int8", (False, False, True))(), tensor(x)
    y = ops.normalize_batch(Batch(variable, (0, 1), mask_), None, None, 0.01)
    function = theano.function([variable, mask_], y[0], mode=mode)
    mask = np.ones((1, 5, 1), "int8")
    mask[0, 2:4] = 0
    assert_allclose(function(x, mask),
                    reference.normalize_masked(x, (0, 1), mask))


@pytest.mark.parametrize("shape, message", [
    ((5, 1), "the mask must be of size 6 along axis 0"),
    ((6, 3), "the mask must be of size 1 along axis 1")])
def test_masks_that_do_not_fit(rng, mode, shape, message):
    x, mask = T.matrix(dtype="float64"), T.bmatrix()
    y = ops.BatchNormalize(Layout(1, 2, True))(
        x, *(T.ones((1, 3), "float64"),) * 2, 0.01, mask)[0]
    function = theano.function([x, mask], y, mode=mode)
    with pytest.raises(ValueError, match=message):
        function(np.ones((6, 3)), np.ones(shape, "int8"))


def test_mask_of_other_dimensions():
    with pytest.raises(TypeError, match="mask must be int8 with 2 dim"):
        ops.BatchStatistics(Layout(1, 2, True))(T.dmatrix(), T.bvector())


# Gradients

def compare_builds(outputs_of, arguments, given, mode=None):
    """Compare what is built from the Ops with what expressions build."""
    found = [theano.function(arguments, outputs_of(build),
                             mode=mode or MODES["py"])(*given)
             for build in (ops, expressions)]
    for fused, plain in zip(*found):
        assert np.all(np.isfinite(fused))
        assert_allclose(fused, plain, rtol=1e-9, atol=1e-9)


@pytest.fixture
def masked(rng):
    """A batch, its mask and weights; padding is not a number."""
    x, gamma, beta, dy = draw(rng, (5, 3), (0,), "float64")
    mask = np.array([[1], [0], [1], [1], [0]], "int8")
    spoil(x, mask != 0, np.nan)
    variable, mask_ = tensor(x), T.bcol()
    params = [param(gamma, (0,)), param(beta, (0,))]
    return Batch(variable, (0,), mask_), params, dy, [x, mask]


def test_gradients_of_gradients(masked):
    batch, params, dy, given = masked

    def outputs(build):
        y = build.normalize_batch(batch, *params, 0.01)[0]
        first = theano.grad((dy * y ** 2).sum(), batch.x)
        penalty = (T.sqr(first) * dy).sum()
        return theano.grad(penalty, [batch.x, *params])

    compare_builds(outputs, [batch.x, batch.mask], given)


def test_gradients_through_stored_statistics(masked):
    batch, params, dy, given = masked
    stored = params[0] - 1, params[0] ** 2

    def outputs(build):
        y = build.normalize(batch, *stored, *params, 0.01)
        return theano.grad((dy * y ** 2).sum(), [batch.x, *params])

    compare_builds(outputs, [batch.x, batch.mask], given)


def test_gradients_of_statistics(masked, rng):
    batch, params, _, given = masked
    weights = rng.normal(size=(2, 1, 3))

    def outputs(build):
        taken = (build.find_statistics(batch)[:2] if build is ops
                 else build.batch_statistics(batch)[:2])
        both = build.normalize_batch(batch, *params, 0.01)[1:3]
        costs = [(weights[0] * mean + weights[1] * T.sqr(std)).sum()
                 for mean, std in (taken, both)]
        first = [theano.grad(cost, batch.x) for cost in costs]
        return first + [theano.grad(T.sqr(each).sum(), batch.x)
                        for each in first]

    compare_builds(outputs, [batch.x, batch.mask], given)


def test_normalizing_by_statistics_of_its_own(rng, mode):
    """Renormalization takes the statistics first, then normalizes."""
    x, gamma, beta, dy = draw(rng, (6, 4, 50), (0, 2), "float64")
    mask = fill(rng, "random", x.shape, (0, 2)).astype("int8")
    spoil(x, mask != 0, np.nan)

    def build(batch, gamma, beta, epsilon):
        return dispatch.normalize_batch(
            batch, gamma, beta, epsilon, correction=lambda *each: each[2:])

    actual = batches.train_parts(build, x, gamma, beta, (0, 2), dy, mode,
                                 mask=mask)
    expected = expected_train(x, gamma, beta, (0, 2), dy, mask)
    for one, other in zip(actual, expected):
        assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", FILLS)
def test_moments(rng, kind, mode):
    x = rng.normal(size=(6, 4, 50))
    mask = fill(rng, kind, x.shape, (0, 2))
    spoil(x, mask, np.nan)
    variable, mask_ = tensor(x), T.TensorType("int8", (False, True, False))()
    found = ops.find_statistics(Batch(variable, (0, 2), mask_))
    *_, vector, moments = theano.function(
        [variable, mask_], found, mode=mode)(x, mask.astype("int8"))
    mean, std = map(np.ravel, reference.masked_statistics(x, (0, 2), mask))
    assert_allclose(vector, [*mean, *std], rtol=1e-12, atol=1e-12)
    n = mask.sum()
    assert_allclose(moments, [n, *mean, *(n * std ** 2)], rtol=1e-12,
                    atol=1e-12)


def test_shapes_are_known_without_the_values(rng):
    x, mask = T.dmatrix(), T.bcol()
    batch = Batch(x, (0,), mask)
    outputs = ops.BatchNormalize(Layout(1, 2, True))(
        x, *(T.ones((1, 3), "float64"),) * 2, 0.01, mask)
    shapes = [output.shape for output in outputs]
    function = theano.function([x, mask], shapes, on_unused_input="ignore",
                               mode=theano.Mode("py", "fast_run"))
    assert not any(isinstance(node.op, ops.FusedOp)
                   for node in function.maker.fgraph.toposort())
    found = function(np.ones((5, 3)), np.ones((5, 1), "int8"))
    assert [tuple(shape) for shape in found] == [
        (5, 3), (1, 3), (1, 3), (6,), (1,)]
    assert short_shape((5, 3), batch.axes) == [1, 3]
