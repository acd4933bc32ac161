"""Data near the ends of its type's range, where squares overflow or underflow.

The expected values come from the same data in another unit: a power of two,
which rounds nothing.
"""

from bnlasagne.kernels import expressions, ops
from bnlasagne.kernels.batch import Batch

import numpy as np
import pytest
import theano
from helpers import reference
from helpers.batches import LINKERS, MODES, short_shape, train
from helpers.common import param, tensor
from numpy.testing import assert_allclose

# Powers of two next to 1e±25, 1e±37, 1e±153 and 1e-160.
POWERS = [("float32", power) for power in (-120, -83, 83, 123)] + [
    ("float64", power) for power in (-900, -531, 508, 900)]
# Along rows and across columns, the latter of several neighbours as well; in
# few and in many pieces.
SHAPES_AND_AXES = [
    ((40, 8), (0,)),
    ((6, 3, 5, 7), (0, 2, 3)),
    ((3, 2, 33, 32), (0, 2, 3)),
    ((40000, 5), (0,)),
    ((2, 2, 300, 301), (0, 2, 3)),
]
SHORT = SHAPES_AND_AXES[:3]
PY = {optimizer: theano.Mode("py", optimizer)
      for optimizer in ("fast_compile", "fast_run")}
TOLERANCE = {"float32": 2e-5, "float64": 1e-11}


class Case:
    """A batch of which the oracle sees `x`, and the code `x` times `unit`.

    Epsilon has the batch's unit: it is neither all of the divisor nor nothing.
    """

    def __init__(self, rng, shape, axes, dtype, power, mean=0.5):
        short = short_shape(shape, axes)
        self.dtype, self.axes, self.power = dtype, axes, power
        self.x = rng.normal(mean, 1, shape).astype(dtype).astype("float64")
        self.gamma, self.beta = rng.normal(size=[2] + short).astype(dtype)
        self.dy = rng.normal(size=shape).astype(dtype)
        self.data = self.in_unit(self.x)
        assert np.all(np.isfinite(self.data))

    def in_unit(self, values, times=1):
        """Values of the oracle in the unit of the batch, or a power of it."""
        return np.ldexp(values, times * self.power).astype(self.dtype)

    @property
    def epsilon(self):
        return np.ldexp(0.01, self.power)

    def arguments(self):
        return self.data, self.gamma, self.beta, self.axes, self.dy

    def variables(self):
        return [tensor(self.data), param(self.gamma, self.axes),
                param(self.beta, self.axes)]

    def close(self, actual, expected, times=0):
        """Compare, up to the rounding of sums over all values."""
        tolerance = TOLERANCE[self.dtype]
        assert actual.dtype == self.dtype
        actual = np.ldexp(actual.astype("float64"), -times * self.power)
        assert_allclose(actual, expected, rtol=tolerance,
                        atol=tolerance * np.abs(expected).max())

    def check_training(self, outputs):
        y, mean, std, dx, dgamma, dbeta = outputs
        self.close(y, reference.normalize_batch(
            self.x, self.axes, self.gamma, self.beta))
        expected_mean, expected_std = reference.statistics(self.x, self.axes)
        self.close(mean, expected_mean, 1)
        self.close(std, expected_std, 1)
        expected = reference.gradient_of_normalize_batch(
            self.x, self.dy, self.axes, self.gamma)
        for one, other, times in zip((dx, dgamma, dbeta), expected,
                                     (-1, 0, 0)):
            self.close(one, other, times)


@pytest.mark.parametrize("linker", LINKERS)
@pytest.mark.parametrize("dtype, power", POWERS)
@pytest.mark.parametrize("shape, axes", SHAPES_AND_AXES)
def test_training(rng, shape, axes, dtype, power, linker):
    case = Case(rng, shape, axes, dtype, power)
    case.check_training(train(
        ops.normalize_batch, *case.arguments(), MODES[linker], case.epsilon))


@pytest.mark.parametrize("dtype, power", POWERS)
@pytest.mark.parametrize("mode", ["fast_compile", "fast_run"])
def test_plain_expressions(rng, dtype, power, mode):
    case = Case(rng, (40, 3, 7), (0, 2), dtype, power)
    case.check_training(train(
        expressions.normalize_batch, *case.arguments(), PY[mode],
        case.epsilon))


@pytest.mark.parametrize("linker", LINKERS)
@pytest.mark.parametrize("dtype, power", POWERS)
@pytest.mark.parametrize("shape, axes", SHORT)
def test_inference(rng, shape, axes, dtype, power, linker):
    """With gradients, which are those of the plain expression."""
    case = Case(rng, shape, axes, dtype, power)
    mean, std = reference.statistics(case.x, axes)
    x, gamma, beta = case.variables()
    stored = [param(case.in_unit(value), axes) for value in (mean, std)]
    dy = tensor(case.dy)
    y = ops.normalize(Batch(x, axes), *stored, gamma, beta, case.epsilon)
    gradients = theano.grad(None, [x] + stored + [gamma],
                            known_grads={y: dy})
    y = theano.function([x], y, mode=MODES[linker])(case.data)
    dx, dmean, dstd, dgamma = theano.function(
        [x, dy], gradients, mode=MODES["py"])(case.data, case.dy)
    case.close(y, reference.normalize(case.x, mean, std, case.gamma,
                                      case.beta))
    deviation, divisor = case.x - mean, std + 0.01
    reaching = case.dy * case.gamma / divisor
    case.close(dx, reaching, -1)
    case.close(dmean, -reaching.sum(axes, keepdims=True), -1)
    case.close(dstd, -(reaching * deviation / divisor).sum(
        axes, keepdims=True), -1)
    case.close(dgamma, (case.dy * deviation / divisor).sum(
        axes, keepdims=True))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype, power", POWERS)
def test_gradient_of_the_statistics(rng, dtype, power, fused):
    axes = (0,)
    case = Case(rng, (40, 3), axes, dtype, power)
    x, *params = case.variables()
    build = (ops if fused else expressions).normalize_batch
    _, mean, std, _ = build(Batch(x, axes), *params, case.epsilon)
    weights = rng.normal(size=(2, 1, 3)).astype(dtype)
    gradient = theano.grad((weights[0] * mean + weights[1] * std).sum(), x)
    actual = theano.function([x], gradient, mode=theano.Mode(
        "py", "fast_compile"))(case.data)
    expected_mean, expected_std = reference.statistics(case.x, axes)
    case.close(actual, (
        weights[0] + weights[1] * (case.x - expected_mean) / expected_std)
        / len(case.x))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("value", [3e38, 1e25, 1e-25, 2e-38, 0])
def test_constant_channel(rng, value, fused):
    """Its output is beta, and its gradient is not through its statistics."""
    x, dy = rng.normal(size=(2, 50, 3)).astype("float32")
    x[:, 1] = value
    one, zero = np.ones((1, 3), "float32"), np.full((1, 3), 7, "float32")
    variables = tensor(x), param(one, (0,)), param(zero, (0,))
    build = (ops if fused else expressions).normalize_batch
    y, mean, std, _ = build(Batch(variables[0], (0,)), *variables[1:], 0.01)
    gradient = theano.grad(None, variables[0], known_grads={
        y: theano.tensor.constant(dy)})
    y, mean, std, dx = theano.function(
        variables[:1], [y, mean, std, gradient],
        mode=MODES[LINKERS[0] if fused else "py"])(x)
    assert_allclose(y[:, 1], 7)
    assert_allclose(mean[0, 1], x[0, 1], rtol=1e-6)
    assert std[0, 1] == 0
    assert_allclose(dx[:, 1], 100 * (dy - dy.mean(0))[:, 1], rtol=1e-4,
                    atol=1e-4)


def test_half_precision(rng, quick):
    """Squares of its deviations overflow above 256, sums soon as well."""
    x = rng.normal(2000, 600, (500, 3)).astype("float16")
    gamma, beta, dy = (rng.normal(size=size).astype("float16")
                       for size in ((1, 3), (1, 3), x.shape))
    variables = tensor(x), param(gamma, (0,)), param(beta, (0,))
    batch = Batch(variables[0], (0,))
    outputs = expressions.normalize_batch(batch, *variables[1:], 0.01)[:3]
    tested = expressions.normalize(
        batch, *outputs[1:], *variables[1:], 0.01)
    gradient = theano.grad(None, variables[0], known_grads={
        outputs[0]: theano.tensor.constant(dy)})
    y, mean, std, z, dx = theano.function(
        variables[:1], list(outputs) + [tested, gradient])(x)
    assert {each.dtype.name for each in (y, mean, std, z, dx)} == {"float16"}
    expected = reference.normalize_batch(x, (0,), gamma, beta)
    assert_allclose(y, expected, rtol=2e-3, atol=2e-3)
    assert_allclose(z, expected, rtol=2e-3, atol=5e-3)
    for one, other in zip((mean, std), reference.statistics(x, (0,))):
        assert_allclose(one, other, rtol=1e-3)
    assert_allclose(
        dx, reference.gradient_of_normalize_batch(x, dy, (0,), gamma)[0],
        rtol=5e-3, atol=1e-5)


@pytest.mark.parametrize("power", [-531, 508])
def test_pooled_statistics(rng, power, quick):
    parts = [np.ldexp(rng.normal(mean, 1, (size, 3)), power)
             for mean, size in ((0, 5), (3, 8))]
    values = [[np.asarray(len(part))] + [
        np.ldexp(statistic, power) for statistic
        in reference.statistics(np.ldexp(part, -power), 0)] for part in parts]
    batches = [list(map(tensor, batch)) for batch in values]
    count, mean, std = theano.function(
        sum(batches, []), expressions.pool(batches))(*sum(values, []))
    assert count == 13
    expected = reference.statistics(np.ldexp(np.concatenate(parts), -power), 0)
    for one, other in zip((mean, std), expected):
        assert_allclose(np.ldexp(one, -power), other, rtol=1e-12)
