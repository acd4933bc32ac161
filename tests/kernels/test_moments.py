"""Moments of parts are those of the whole."""

import pickle
from fractions import Fraction
from functools import reduce

from bnlasagne import Moments

import numpy as np
import pytest
import theano.tensor as T
from helpers import reference
from helpers.splits import cuts_of
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

AXES = [(0,), (0, 2), (2,), (0, 1, 2)]


def merged(values, cuts, axes=(0,)):
    """Moments of the parts between some cuts, merged."""
    return reduce(Moments.merge, [
        Moments.of(part, axes) for part in np.split(values, cuts)])


def uneven(size):
    """Cuts into parts of 1, 2, 3, ... rows."""
    return [cut for cut in np.cumsum(np.arange(1, size)) if cut < size]


def cuts(kind, size):
    return uneven(size) if kind == "uneven" else [
        size * number // kind for number in range(1, kind)]


def assert_moments(moments, values, axes=(0,), rtol=1e-13):
    mean, std = reference.statistics(values, axes)
    assert moments.count == values.size // mean.size
    assert_allclose(moments.mean, mean, rtol)
    assert_allclose(moments.std(), std, rtol)
    assert_allclose(moments.variance(), std ** 2, rtol)
    assert_allclose(moments.m2, moments.count * std ** 2, rtol)
    assert moments.mean.dtype == moments.m2.dtype == "float64"


def test_by_hand():
    moments = Moments.of([[1, 5], [3, 5]], (0,))
    assert moments.count == 2
    assert_array_equal(moments.mean, [[2, 5]])
    assert_array_equal(moments.m2, [[2, 0]])
    assert_array_equal(moments.variance(), [[1, 0]])
    assert repr(moments).startswith("Moments(count=2, mean=array([[2., 5.]])")


@given(cuts_of(200))
@example(uneven(200))
@example(list(range(200)))
def test_parts_make_the_whole(cuts):
    values = np.random.RandomState(1502).normal(3, 2, (200, 4))
    # A drift, so that parts differ, and a channel without any variance.
    values += np.linspace(0, 50, 200)[:, None]
    values[:, 3] = 7
    moments = merged(values, cuts)
    assert_moments(moments, values)
    assert_array_equal(moments.m2[:, 3], 0)


@pytest.mark.parametrize("kind", [1, 2, 3, 64, 999, "uneven"])
@pytest.mark.parametrize("offset", [1e4, 1e5, 1e6])
def test_mean_far_above_the_deviation(rng, offset, kind):
    values = rng.normal(offset, 1, (999, 3)).astype("float32")
    assert_moments(merged(values, cuts(kind, 999)), values, rtol=1e-10)


@pytest.mark.parametrize("offset", [1e9, -1e12])
def test_mean_at_the_limit_of_double_precision(rng, offset):
    # Exact: all values are multiples of 1/256.
    small = np.round(rng.normal(0, 256, (4096, 1))) / 256
    expected = reference.statistics(small, (0,))[1]
    moments = merged(small + offset, cuts("uneven", 4096))
    assert_allclose(moments.std(), expected, 1e-5)


def test_mean_is_right_to_the_last_digit(rng):
    small = np.round(rng.normal(0, 256, (4096, 3))) / 256
    moments = Moments.of(small + 1e12, (0,))
    assert_allclose(moments.mean - 1e12, small.mean(0, keepdims=True),
                    rtol=0, atol=np.spacing(1e12))


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "bool"])
def test_other_types(rng, dtype):
    values = rng.randint(0, 100, (300, 2)).astype(dtype)
    assert_moments(merged(values, [100]), values.astype("float64"))


def test_float16_does_not_overflow():
    values = np.full((100, 1), 60000, "float16")
    values[::2] *= -1
    assert_moments(Moments.of(values, (0,)), values.astype("float64"))


@pytest.mark.parametrize("axes", AXES)
def test_axes(rng, axes):
    values = rng.normal(size=(5, 3, 4))
    assert_moments(Moments.of(values, axes), values, axes)
    if 0 in axes:
        assert_moments(merged(values, [1, 3], axes), values, axes)


@pytest.mark.parametrize("axes", [(0,), (0, 2), (0, 1, 2)])
def test_empty_parts(rng, axes):
    values = rng.normal(5, 1, (6, 3, 4))
    moments, empty = (Moments.of(part, axes) for part in (values, values[:0]))
    assert empty.mean.shape == empty.m2.shape == moments.mean.shape
    assert empty.count == 0
    for both in (moments.merge(empty), empty.merge(moments)):
        assert_moments(both, values, axes)
    assert empty.merge(empty).count == 0
    assert empty.is_finite()


def test_merge_changes_neither(rng):
    values = rng.normal(size=(7, 2))
    parts = [Moments.of(part, (0,)) for part in (values[:3], values[3:])]
    parts[0].merge(parts[1])
    assert_moments(parts[0], values[:3])
    assert_moments(parts[1], values[3:])


def test_ddof(rng):
    values = rng.normal(size=(7, 2))
    moments = merged(values, [3])
    for ddof in (0, 1, 2):
        expected = values.var(0, ddof=ddof, keepdims=True)
        assert_allclose(moments.variance(ddof), expected)
        assert_allclose(moments.std(ddof), np.sqrt(expected))


@pytest.mark.parametrize("count, ddof", [(0, 0), (1, 1), (2, 2), (1, 2)])
def test_too_few_values(count, ddof):
    moments = Moments.of(np.ones((count, 2)), (0,))
    for function in (moments.variance, moments.std):
        with pytest.raises(ValueError, match="ddof=%d .* got %d"
                           % (ddof, count)):
            function(ddof)


def test_one_value_has_no_variance():
    assert_array_equal(Moments.of([[5.0, 6.0]], (0,)).variance(), [[0, 0]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_not_finite(rng, value, dtype):
    values = rng.normal(size=(6, 3)).astype(dtype)
    finite = Moments.of(values, (0,))
    assert finite.is_finite()
    values[2, 1] = value
    moments = Moments.of(values, (0,))
    assert not moments.is_finite()
    assert not finite.merge(moments).is_finite()
    assert_array_equal(np.isfinite(moments.mean), [[True, False, True]])


def test_squares_too_large():
    assert not Moments.of([[1e200], [-1e200]], (0,)).is_finite()


def test_merge_of_means_too_far_apart():
    """As in one part."""
    parts = [Moments.of([[value]], (0,)) for value in (1e200, -1e200)]
    assert not parts[0].merge(parts[1]).is_finite()


# As messages between ranks

@pytest.mark.parametrize("axes", [(0,), (0, 2)])
def test_vectors(rng, axes):
    moments = Moments.of(rng.normal(size=(5, 3, 4)), axes)
    vector = moments.to_vector()
    assert vector.dtype == "float64"
    assert len(vector) == 1 + 2 * moments.mean.size
    found = Moments.from_vector(vector)
    assert found.count == moments.count
    assert_array_equal(found.mean, moments.mean.ravel())
    assert_array_equal(found.m2, moments.m2.ravel())


def test_vectors_of_theano(rng):
    vector = T.dvector()
    found = Moments.from_vector(vector)
    value = Moments.of(rng.normal(size=(5, 3)), (0,)).to_vector()
    for expression, expected in zip(
            (found.count, found.mean, found.m2),
            (value[0], value[1:4], value[4:])):
        assert_array_equal(expression.eval({vector: value}), expected)


# Added up without rounding

def pooled(parts):
    return Moments.from_exact_sums(sum(part.exact_sums() for part in parts))


def in_fractions(parts):
    """Mean and sum of squared deviations, of one channel."""
    n = sum(part.count for part in parts)
    means = [Fraction(part.mean.item()) for part in parts]
    mean = sum(part.count * value for part, value in zip(parts, means)) / n
    m2 = sum(Fraction(part.m2.item()) + part.count * (value - mean) ** 2
             for part, value in zip(parts, means))
    return float(mean), float(m2)


@pytest.mark.parametrize("offset, scale", [
    (0, 1), (1e9, 1e-3), (1e140, 1e130), (-1e-300, 1e-310), (5e-324, 0)])
def test_exact_sums_are_rounded_once(rng, offset, scale):
    values = offset + scale * rng.normal(size=(40, 1))
    parts = [Moments.of(part, (0,)) for part in np.split(values, [1, 8, 30])]
    found = pooled(parts)
    assert found.count == 40
    assert found.mean.dtype == found.m2.dtype == "float64"
    assert (found.mean.item(), found.m2.item()) == in_fractions(parts)


@given(arrays("float64", st.tuples(st.integers(1, 12), st.just(2)),
              elements=st.floats(-1e150, 1e150)), st.data())
def test_exact_sums_depend_neither_on_order_nor_on_grouping(values, data):
    parts = [Moments.of(part, (0,))
             for part in np.split(values, data.draw(cuts_of(len(values))))]
    expected = pooled(parts)
    parts = data.draw(st.permutations(parts))
    cut, = data.draw(cuts_of(len(parts), parts=2))
    ranks = [sum((part.exact_sums() for part in own),
                 Moments.empty((1, 2)).exact_sums())
             for own in (parts[:cut], parts[cut:])]
    # As they travel from process to process.
    ranks[0] = pickle.loads(pickle.dumps(ranks[0]))
    found = Moments.from_exact_sums(ranks[1] + ranks[0])
    assert found.count == expected.count == len(values)
    assert_array_equal(found.mean, expected.mean)
    assert_array_equal(found.m2, expected.m2)


def test_exact_sums_are_the_whole(rng):
    values = 1e6 + rng.normal(size=(60, 3)) * [1e-2, 1, 1e6]
    parts = [Moments.of(part, (0,)) for part in np.split(values, uneven(60))]
    assert_moments(pooled(parts), values, rtol=1e-9)


def test_exact_sums_of_nothing():
    nothing = Moments.of(np.zeros((0, 2)), (0,))
    assert pooled([nothing]).count == 0
    assert pooled([nothing]).mean.shape == (1, 2)
    part = Moments.of(np.array([[1., 2.], [3., 5.]]), (0,))
    both = pooled([nothing, part, Moments(0, np.full((1, 2), np.nan), None)])
    assert_array_equal(both.mean, part.mean)
    assert_array_equal(both.m2, part.m2)


def test_exact_sums_that_are_too_large():
    parts = [Moments(1, np.array([value]), np.zeros(1))
             for value in (1.5e308, -1.5e308)]
    assert not pooled(parts).is_finite()
    assert pooled(parts[:1]).is_finite()
