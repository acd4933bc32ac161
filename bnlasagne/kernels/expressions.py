"""Build batch normalization from plain Theano expressions.

`x` is the batch, of a floating-point type, and `axes` a tuple of the axes that
are normalized over. Statistics and parameters are of size 1, and
broadcastable, along these. `std` is the biased standard deviation. `epsilon`,
a number or a scalar variable, is added to it. `gamma` and `beta` may be None.
"""

import functools

import numpy as np
import theano
import theano.tensor as T

from ..theano_tools.quiet_checks import quiet_checks
from .fallback import LEAST_VALUES

__all__ = [
    "batch_statistics",
    "cast",
    "constant_like",
    "find_moments",
    "in_shape",
    "move_average",
    "normalize",
    "normalize_batch",
    "normalize_by",
    "pattern",
    "pool",
    "safe_sqrt",
]


def normalize_batch(x, gamma, beta, epsilon, axes):
    """Normalize a batch by its own statistics; return these, too."""
    dtype = x.dtype
    deviation, mean, std = _standardization(_not_half(x), axes)
    output = _scale_and_shift(deviation, std, *map(_not_half, (gamma, beta)),
                              epsilon)
    return (_as_half(output, dtype, gamma, beta), _as_half(mean, dtype),
            _as_half(std, dtype))


def normalize(x, mean, std, gamma, beta, epsilon):
    """Normalize a batch by the given statistics."""
    inputs = x, mean, std, gamma, beta
    x, mean, *others = map(_not_half, inputs)
    return _as_half(_scale_and_shift(x - mean, *others, epsilon), *inputs)


def move_average(average, statistics, count, alpha):
    """Move a running average by the statistics of a batch.

    See :func:`bnlasagne.kernels.dispatch.move_average`.
    """
    statistic = statistics[0]
    alpha = T.cast(alpha, statistic.dtype)
    one = _uncached(1, statistic.dtype)
    # By itself, or what is not finite in the average would stay in it.
    moved = T.switch(T.eq(alpha, one), statistic,
                     (one - alpha) * average + alpha * statistic)
    usable = T.ge(count, _uncached(LEAST_VALUES, "int64"))
    for statistic in statistics:
        unusable = T.or_(T.isnan(statistic), T.isinf(statistic))
        usable = T.and_(usable, T.invert(T.any(unusable)))
    moved = T.switch(usable, moved, average).astype(average.dtype)
    return average.type.filter_variable(
        T.patternbroadcast(moved, average.broadcastable))


def _uncached(value, dtype):
    """Make a scalar constant that is not in Theano's cache.

    Theano lets no constant of its cache into the graph of a function.
    """
    return T.TensorConstant(T.TensorType(dtype, ()), np.asarray(value, dtype))


def batch_statistics(x, axes):
    """Take the mean and the biased standard deviation of a batch."""
    _, mean, std = _standardization(_not_half(x), axes)
    return _as_half(mean, x.dtype), _as_half(std, x.dtype)


def find_moments(x, axes):
    """Find the moments of a part of a batch, as a vector.

    See :func:`bnlasagne.kernels.dispatch.find_moments`.
    """
    x = cast(x, "float64")
    deviation, mean, _ = _standardization(x, axes)
    count = T.prod([T.cast(x.shape[axis], "float64") for axis in axes])
    return T.concatenate([T.shape_padleft(count), T.flatten(mean),
                          T.flatten(T.sqr(deviation).sum(axes))])


def in_shape(statistics, x, axes):
    """Read mean and standard deviation from a vector, in its precision.

    They are of the shape of `x`, but of size 1 along the axes.
    """
    shape = [1 if axis in axes else x.shape[axis] for axis in range(x.ndim)]
    both = T.patternbroadcast(statistics.reshape([2] + shape, 1 + x.ndim),
                              (False, *pattern(x, axes)))
    return both[0], both[1]


def pattern(x, axes):
    """Return which axes of statistics and parameters are broadcastable."""
    return tuple(axis in axes or broadcastable
                 for axis, broadcastable in enumerate(x.broadcastable))


def normalize_by(x, statistics, gamma, beta, epsilon, axes):
    """Normalize a part of a batch by the statistics of all of it.

    See :func:`bnlasagne.kernels.dispatch.normalize_by`.
    """
    mean, std = in_shape(statistics, x, axes)
    near = T.cast(mean, x.dtype)
    # What rounded the mean is not small against the standard deviation where
    # the mean is large.
    deviation = x - near - T.cast(mean - near, x.dtype)
    return _scale_and_shift(deviation, T.cast(std, x.dtype), gamma, beta,
                            epsilon)


@quiet_checks(test_values=True)
def pool(parts):
    """Pool the statistics of several batches, as if they were one.

    Takes, for each batch, the number of values per channel, their mean and
    their biased standard deviation; returns the same for all values, mean and
    standard deviation in double precision.
    """
    count = sum(part[0] for part in parts)
    # Of a batch without values, the statistics have no meaning.
    parts = [[T.switch(T.gt(part[0], 0), T.cast(value, "float64"), 0)
              for value in part] for part in parts]
    divisor = T.maximum(T.cast(count, "float64"), 1)
    mean = sum(n * mean for n, mean, _ in parts) / divisor
    deviations = [(n, std, part_mean - mean) for n, part_mean, std in parts]
    unit = _power_of_two(functools.reduce(T.maximum, [
        T.maximum(abs(std), abs(deviation))
        for _, std, deviation in deviations]))
    squares = sum(n * (T.sqr(std * unit) + T.sqr(deviation * unit))
                  for n, std, deviation in deviations)
    return count, mean, safe_sqrt(squares / divisor) / unit


def _standardization(x, axes):
    """Return the deviation from the mean, mean and standard deviation."""
    size = _largest(theano.gradient.disconnected_grad(x), axes)
    # Units in which sums do not overflow, and squares do not underflow either.
    # Gradients are multiplied by a unit after they are divided by it: so they
    # are no further from 1 than they have to be.
    unit = _power_of_two(size, np.finfo(x.dtype).maxexp - 32)
    mean = (x * unit).mean(axes, keepdims=True) / unit
    # Where the mean is large, what rounds it off is not small against the
    # standard deviation: take it from the deviations. Their mean is zero by
    # definition, so it has no gradient.
    rounding = theano.gradient.disconnected_grad(
        ((x - mean) * unit).mean(axes, keepdims=True) / unit)
    deviation = x - mean - rounding
    unit = _power_of_two(size)
    variance = T.sqr(deviation * unit).mean(axes, keepdims=True)
    return deviation, mean + rounding, safe_sqrt(variance) / unit


class _Maximum(theano.scalar.basic.Maximum):
    """The larger one of two numbers that are not negative."""

    # So an empty batch has a maximum, without a C++ compiler, too.
    identity = 0


class _Largest(T.elemwise.CAReduce):
    """A maximum that counts as a constant for `theano.Rop`, too."""

    def R_op(self, inputs, eval_points):
        return [None]


def _largest(x, axes):
    """Find the largest absolute value along some axes."""
    maximum = _Largest(
        _Maximum(theano.scalar.upcast_out, name="maximum"), list(axes))
    return T.makeKeepDims(x, maximum(abs(x)), list(axes))


def safe_sqrt(variance):
    """Take a square root whose gradient at zero is zero, not infinite."""
    zero, one = constant_like(0, variance), constant_like(1, variance)
    # A constant for theano.Rop, which takes comparisons for functions.
    is_zero = theano.gradient.disconnected_grad(T.eq(variance, zero))
    return T.switch(is_zero, zero, T.sqrt(T.switch(is_zero, one, variance)))


def _scale_and_shift(deviation, std, gamma, beta, epsilon):
    """Divide by the standard deviation, with epsilon; scale and shift."""
    divisor = std + T.cast(epsilon, std.dtype)
    # Gradients divide by its square.
    unit = _power_of_two(divisor, np.finfo(std.dtype).maxexp // 4)
    factor = T.inv(divisor * unit)
    if gamma is not None:
        factor = gamma * factor
    output = deviation * unit * factor
    return output if beta is None else output + beta


def _power_of_two(sizes, free=0):
    """Find powers of two that bring sizes to about 1; 1 where a size is 0.

    Multiplying by them rounds nothing. They count as constants in gradients.
    Sizes may keep `free` powers of two, up and down.
    """
    sizes = abs(theano.gradient.disconnected_grad(sizes))
    zero, one = constant_like(0, sizes), constant_like(1, sizes)
    most = np.finfo(sizes.dtype).maxexp - 2
    power = T.floor(T.log2(T.switch(T.gt(sizes, zero), sizes, one)))
    power = _clipped(power, most)
    if free:
        power -= _clipped(power, free)
    return theano.gradient.disconnected_grad(T.exp2(-power))


def _clipped(power, most):
    return T.clip(power, constant_like(-most, power),
                  constant_like(most, power))


def constant_like(value, variable):
    """Make a number of a variable's type, whatever Theano's `cast_policy`."""
    return T.constant(np.asarray(value, variable.dtype))


# Other types

class _GradientOfOwnType(theano.Op):
    """Identity whose gradient is of the input's type.

    That of Theano's cast is of the type that was cast to.
    """

    __props__ = ()
    # No C code, so the empty __props__ costs no compilation.
    view_map = {0: [0]}

    def make_node(self, x):
        return theano.Apply(self, [x], [x.type()])

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = inputs[0]

    def infer_shape(self, node, shapes):
        return shapes

    def grad(self, inputs, output_gradients):
        return [T.cast(output_gradients[0], inputs[0].dtype)]

    def R_op(self, inputs, eval_points):
        return eval_points


_gradient_of_own_type = _GradientOfOwnType()
T.opt.register_canonicalize(
    theano.gof.OpRemove(_gradient_of_own_type), "fast_compile", "fast_run",
    name="bnlasagne_remove_gradient_of_own_type")


def cast(variable, dtype):
    """Cast like Theano; gradients have the type of the variable."""
    return T.cast(_gradient_of_own_type(variable), dtype)


# Statistics of half precision overflow soon: they are computed in single.

def _not_half(variable):
    if variable is None or variable.dtype != "float16":
        return variable
    return cast(variable, "float32")


def _as_half(result, *inputs):
    """Return the result, in half precision if all inputs are."""
    dtypes = {getattr(each, "dtype", each) for each in inputs} - {None}
    return T.cast(result, "float16") if dtypes == {"float16"} else result
