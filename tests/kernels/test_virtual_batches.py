"""Virtual batches in the fused Ops: each is what it is as a batch."""

import functools
import os
import subprocess
import sys

from bnlasagne.kernels import dispatch, expressions, ops
from bnlasagne.kernels.batch import Batch, n_virtual_batches
from bnlasagne.kernels.blocks import Layout

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import batches, reference
from helpers.batches import LINKERS, MODES, draw, expected_train
from helpers.common import needs_compiler, param, tensor
from numpy.testing import assert_allclose, assert_array_equal

# Shapes, axes, and sizes of virtual batches: with and without a rest; with one
# that is too small to be normalized by itself; of one example; of all of them,
# and more.
CASES = [
    ((7,), (0,), 3),
    ((7,), (0,), 2),
    ((6, 5), (0, 1), 2),
    ((9, 3), (0,), 4),
    ((0, 3), (0,), 4),
    ((1, 3), (0,), 1),
    ((6, 0), (0,), 2),
    ((6, 3, 0), (0, 2), 2),
    ((5, 3), (0,), 1),
    ((5, 3), (0,), 5),
    ((5, 3), (0,), 1 << 62),
    ((515, 70), (0,), 32),
    ((20, 2100), (0,), 8),
    ((20, 30, 40), (0, 1), 6),
    ((9, 3, 5, 7), (0, 2, 3), 1),
    ((9, 3, 5, 7), (0, 2, 3), 4),
    ((7, 5, 35, 37), (0, 2, 3), 3),
    ((12, 200, 300), (0, 1, 2), 5),
    ((4, 3, 2, 5), (0, 3), 2),
    ((5, 3, 2, 5), (0, 1, 2), 2),
]


def cut(examples, size, values):
    """The virtual batches, as the design has it: a list of slices."""
    starts = list(range(0, examples, size)) or [0]
    if len(starts) > 1 and (examples - starts[-1]) * max(values, 1) < 2:
        starts.pop()
    return [slice(one, other) for one, other
            in zip(starts, starts[1:] + [examples])]


def slices(shape, axes, size):
    return cut(shape[0], size, int(np.prod([shape[axis]
                                            for axis in axes[1:]])))


@pytest.mark.parametrize("examples", range(8))
@pytest.mark.parametrize("values", [1, 2])
def test_number(examples, values):
    for size in 1, 2, 3, 7, 8:
        if size * values > 1:
            assert n_virtual_batches(examples, size, values) == len(
                cut(examples, size, values))


@pytest.fixture(params=LINKERS)
def mode(request):
    return MODES[request.param]


train = functools.partial(batches.train_parts, ops.normalize_batch)


def train_each(x, gamma, beta, axes, dy, mode, mask, size):
    """The same by a call for each virtual batch."""
    found = []
    for part in slices(x.shape, axes, size):
        own = mask if mask is None or len(mask) == 1 else mask[part]
        found.append(train(x[part], gamma, beta, axes, dy[part], mode,
                           mask=own, rectify=True))
    *outputs, counts = zip(*found)
    joined = [np.concatenate(each) for each in outputs[:4]]
    return joined + [sum(each.astype("float64") for each in of_param)
                     for of_param in outputs[4:]] + [np.array(counts)]


@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape, axes, size", CASES)
def test_bits_of_separate_batches(rng, shape, axes, size, masked, mode):
    x, gamma, beta, dy = draw(rng, shape, axes, "float32")
    mask = None
    if masked:
        mask = rng.randint(2, size=[
            n if axis in axes else 1 for axis, n in enumerate(shape)])
        mask = mask.astype("int8")
    actual = train(x, gamma, beta, axes, dy, mode, mask=mask,
                   virtual_size=size, rectify=True)
    expected = train_each(x, gamma, beta, axes, dy, mode, mask, size)
    for i, (one, other) in enumerate(zip(actual, expected)):
        if i in (4, 5):
            # Sums over virtual batches, rounded once.
            assert_allclose(one, other, rtol=1e-6, atol=1e-6)
        else:
            assert one.dtype == other.dtype
            assert_array_equal(one, other)
    assert actual[-1].dtype == "int64"


@pytest.mark.parametrize("shape, axes, size", [
    ((64, 40), (0,), 16), ((9, 3, 5, 7), (0, 2, 3), 4)])
def test_training(rng, shape, axes, size, mode):
    x, gamma, beta, dy = draw(rng, shape, axes, "float32")
    actual = train(x, gamma, beta, axes, dy, mode, virtual_size=size,
                   rectify=True)
    parts = [expected_train(x[part], gamma, beta, axes, dy[part],
                            actual[0][part] > 0)
             for part in slices(shape, axes, size)]
    expected = [np.concatenate(each) for each in list(zip(*parts))[:4]]
    expected += [sum(each) for each in list(zip(*parts))[4:]]
    for one, other in zip(actual, expected):
        assert one.shape == other.shape
        assert_allclose(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_virtual_batch(rng, value, mode):
    x, gamma, beta, dy = draw(rng, (12, 20), (0,), "float32")
    x[5, 3] = value
    y, mean, std, dx, *_ = train(x, gamma, beta, (0,), dy, mode,
                                 virtual_size=4, rectify=True)
    for output in y, dx:
        assert np.all(np.isnan(output[4:8, 3]))
        output[4:8, 3] = 0
        assert np.all(np.isfinite(output))
    assert not np.isfinite(std[1, 3])
    std[1, 3] = 0
    assert np.all(np.isfinite(std))


# Gradients

@pytest.fixture
def cut_batch(rng):
    x, gamma, beta, dy = draw(rng, (7, 3), (0,), "float64")
    variable = tensor(x)
    mask = np.array([[1], [1], [0], [1], [1], [0], [1]], "int8")
    x[2], x[5] = np.nan, np.inf
    mask_ = T.bcol()
    params = [param(gamma, (0,)), param(beta, (0,))]
    return Batch(variable, (0,), mask_, 3), params, dy, [x, mask]


@pytest.mark.parametrize("rectify", [False, True])
def test_gradients_of_gradients(cut_batch, rectify):
    batch, params, dy, given = cut_batch
    plain = expressions.normalize_batch(batch, *params, 0.01)[0]
    found = []
    for y in (ops.normalize_batch(batch, *params, 0.01, rectify)[0],
              T.nnet.relu(plain) if rectify else plain):
        first = theano.grad((dy * y ** 2).sum(), batch.x)
        penalty = (T.sqr(first) * dy).sum()
        found.append(theano.function(
            [batch.x, batch.mask],
            theano.grad(penalty, [batch.x, *params]), mode=MODES["py"])(
                *given))
    for fused, plain in zip(*found):
        assert np.all(np.isfinite(fused))
        assert_allclose(fused, plain, rtol=1e-9, atol=1e-9)


def test_gradients_of_statistics(cut_batch, rng):
    """Those of a virtual batch reach its own examples."""
    batch, params, _, given = cut_batch
    weights = rng.normal(size=(2, 2, 3))
    found = []
    for _, mean, std, *_ in (
            ops.normalize_batch(batch, *params, 0.01),
            (None, *ops.find_statistics(batch)[:2]),
            expressions.normalize_batch(batch, *params, 0.01)):
        # There are two: the last example is too little for a third.
        cost = (weights[0] * mean + weights[1] * T.sqr(std)).sum()
        first = theano.grad(cost, batch.x)
        second = theano.grad(T.sqr(first).sum(), batch.x)
        found.append(theano.function(
            [batch.x, batch.mask], [first, second], mode=MODES["py"])(
                *given))
    for one in found[:2]:
        for fused, plain in zip(one, found[2]):
            assert_allclose(fused, plain, rtol=1e-9, atol=1e-9)


def test_renormalization(rng):
    """Each virtual batch has a scale and a shift of its own."""
    x, gamma, beta, dy = draw(rng, (9, 4, 5), (0, 2), "float64")

    def correction(mean, std, gamma, beta):
        return gamma * std, beta + mean

    def build(batch, gamma, beta, epsilon):
        return dispatch.normalize_batch(batch, gamma, beta, epsilon,
                                        correction=correction)

    actual = batches.train_parts(build, x, gamma, beta, (0, 2), dy,
                                 MODES["py"], virtual_size=4)
    expected = []
    for part in slices(x.shape, (0, 2), 4):
        mean, std = reference.statistics(x[part], (0, 2))
        expected.append(reference.normalize(
            x[part], mean, std, gamma * std, beta + mean))
    assert_allclose(actual[0], np.concatenate(expected), rtol=1e-9)


def test_shapes_are_known_without_the_values():
    x = T.dmatrix()
    for op, inputs, wanted in (
            (ops.BatchNormalize, [*(T.ones((1, 3), "float64"),) * 2, 0.01],
             [(8, 3), (2, 3), (2, 3), (12,), (2,)]),
            (ops.BatchStatistics, [], [(2, 3), (2, 3), (12,), (14,), (2,)])):
        outputs = op(Layout(1, 2, False, 4))(x, *inputs)
        function = theano.function([x], [each.shape for each in outputs],
                                   mode=theano.Mode("py", "fast_run"))
        assert not any(isinstance(node.op, ops.FusedOp)
                       for node in function.maker.fgraph.toposort())
        found = function(np.ones((8, 3)))
        assert [tuple(shape) for shape in found] == wanted


# Running averages

def moved(average, alpha, counts, *statistics, mode=None):
    average_, counts_ = tensor(average), T.TensorType(
        "int64", (False,) * np.ndim(counts))()
    statistics_ = [tensor(statistic) for statistic in statistics]
    inputs = [average_, counts_, *statistics_]
    output = ops.MoveAverage(len(statistics))(
        average_, T.constant(alpha, dtype="float64"), counts_, *statistics_)
    return theano.function(inputs, output, mode=mode)(
        average, np.asarray(counts), *statistics)


@pytest.mark.parametrize("alpha", [0.3, 1.])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_average_follows_one_after_the_other(rng, alpha, dtype, mode):
    average = rng.normal(size=(1, 5, 1)).astype(dtype)
    mean, std = rng.normal(size=(2, 6, 5, 1)).astype(dtype)
    mean[1, 2], std[3, 0] = np.nan, np.inf
    counts = [2, 9, 1, 9, 0, 9]
    actual = moved(average, alpha, counts, mean, std, mode=mode)
    expected = average
    for i, count in enumerate(counts):
        expected = moved(expected, alpha, count, mean[i:i + 1], std[i:i + 1],
                         mode=mode)
    assert_array_equal(actual, expected)
    by_hand = reference.running_average(average, mean[[0, 5]], alpha)
    assert_allclose(actual, by_hand, rtol=1e-5)


@needs_compiler
def test_average_of_statistics_that_do_not_fit(rng):
    average, mean = rng.normal(size=(1, 5)), rng.normal(size=(3, 5))
    with pytest.raises(ValueError, match="must be of size 2 along axis 0"):
        moved(average, 0.3, [5, 5], mean)


THREADED = """
import sys
import bnlasagne
import numpy as np
import theano
import theano.tensor as T
from bnlasagne.kernels import ops
from bnlasagne.kernels.batch import Batch

results = []
rng = np.random.RandomState(0)
for shape, axes, size, along in [
        ((1024, 700), (0,), 48, None), ((1024, 700), (0,), None, (0,)),
        ((1024, 700), (0,), 400, (0,)), ((40, 64, 40, 40), (0, 2, 3), 1, None),
        ((12, 64, 40, 40), (0, 2, 3), 6, (0, 3)),
        ((12, 200, 300), (0, 1, 2), 5, (0, 1, 2)),
        ((64, 100, 128), (0, 1), None, (0, 1)),
        ((64, 30, 200), (0, 2), None, (0, 2))]:
    x = rng.normal(3, 2, shape).astype("float32")
    dy = rng.normal(size=shape).astype("float32")
    short = [1 if axis in axes else n for axis, n in enumerate(shape)]
    pattern = [axis in axes for axis in range(x.ndim)]
    gamma, beta = (theano.shared(rng.normal(size=short).astype("float32"),
                                 broadcastable=pattern) for _ in range(2))
    variables = [T.TensorType("float32", (False,) * x.ndim)() for _ in "xd"]
    given, mask = [x, dy], None
    if along:
        mask = T.TensorType("int8", [
            axis not in along for axis in range(x.ndim)])()
        variables.append(mask)
        given.append(rng.randint(2, size=[
            n if axis in along else 1 for axis, n in enumerate(shape)],
            dtype="int8"))
    batch = Batch(variables[0], axes, mask, size)
    y, mean, std, _ = ops.normalize_batch(batch, gamma, beta, 0.01, True)
    z = ops.normalize(batch, gamma, T.sqr(beta), gamma, beta, 0.01, True)
    gradients = theano.grad(None, [variables[0], gamma, beta],
                            known_grads={y: variables[1]})
    function = theano.function(variables, [y, mean, std, z] + gradients)
    results += function(*given)
np.savez(sys.argv[1], *results)
"""


@needs_compiler
def test_bits_do_not_depend_on_the_number_of_threads(tmp_path):
    found = []
    for threads in (1, 2, 3):
        path = tmp_path / "{}.npz".format(threads)
        subprocess.run([sys.executable, "-c", THREADED, str(path)], check=True,
                       env=dict(os.environ, OMP_NUM_THREADS=str(threads)))
        with np.load(path) as results:
            found.append([results[name] for name in results.files])
    for others in found[1:]:
        for one, other in zip(found[0], others):
            assert one.tobytes() == other.tobytes()
