"""Build batch normalization from plain Theano expressions.

`batch` is a :class:`bnlasagne.kernels.batch.Batch`. Statistics and parameters
are of size 1, and broadcastable, along its axes; but the statistics of virtual
batches come one after the other along the first axis, and their counts are a
vector. `std` is the biased standard deviation. `epsilon`, a number or a scalar
variable, is added to it. `gamma` and `beta` may be None.
"""

import functools
import operator

import numpy as np
import theano
import theano.tensor as T
from theano.gof.graph import clone_get_equiv

from ..theano_tools.quiet_checks import quiet_checks
from .batch import LEAST_VALUES, split

__all__ = [
    "batch_statistics",
    "cast",
    "constant_like",
    "count",
    "find_moments",
    "in_shape",
    "move_average",
    "normalize",
    "normalize_batch",
    "normalize_by",
    "only_counted",
    "pattern",
    "pool",
    "safe_sqrt",
    "virtual_batch_of_each",
]


def normalize_batch(batch, gamma, beta, epsilon):
    """Normalize a batch by its own statistics.

    Returns the output, mean and standard deviation, and their count.
    """
    if batch.virtual_size:
        head, tail = split(batch)
        outputs = normalize_batch(
            head, *map(_for_head, (gamma, beta)), epsilon)
        return _joined(batch, outputs,
                       normalize_batch(tail, gamma, beta, epsilon))
    x, params = batch.x, (gamma, beta)
    deviation, mean, std = _standardization(batch)
    output = _scale_and_shift(deviation, std, *map(_not_half, params), epsilon)
    return (only_counted(_as_half(output, x.dtype, *params), batch),
            _as_half(mean, x.dtype), _as_half(std, x.dtype), count(batch))


def normalize(batch, mean, std, gamma, beta, epsilon):
    """Normalize a batch by the given statistics."""
    inputs = batch.x, mean, std, gamma, beta
    mean, *others = map(_not_half, inputs[1:])
    x = only_counted(_not_half(batch.x), batch)
    output = _scale_and_shift(x - mean, *others, epsilon)
    return only_counted(_as_half(output, *inputs), batch)


def move_average(average, statistics, count, alpha):
    """Move a running average by the statistics of a batch.

    See :func:`bnlasagne.kernels.dispatch.move_average`.
    """
    move = _move_by_several if count.ndim else _move
    moved = move(average, statistics, count,
                 T.cast(alpha, statistics[0].dtype))
    moved = average.type.filter_variable(T.patternbroadcast(
        moved.astype(average.dtype), average.broadcastable))
    # Theano lets no constant of its cache into the graph of a function.
    return clone_get_equiv([average, *statistics, count, alpha], [moved],
                           copy_inputs=False, copy_orphans=True)[moved]


def _move(average, statistics, count, alpha):
    statistic, one = statistics[0], constant_like(1, alpha)
    # By itself, or what is not finite in the average would stay in it.
    moved = T.switch(T.eq(alpha, one), statistic,
                     (one - alpha) * average + alpha * statistic)
    usable = T.ge(count, constant_like(LEAST_VALUES, count))
    for statistic in statistics:
        usable = T.and_(usable, T.all(_are_finite(statistic)))
    return T.switch(usable, moved, average)


def _move_by_several(average, statistics, counts, alpha):
    """Move an average by one virtual batch after the other."""
    statistic = statistics[0]
    zero, one = (constant_like(value, alpha) for value in (0, 1))
    usable = T.ge(counts, constant_like(LEAST_VALUES, counts))
    for each in statistics:
        # Of vectors, too, which have no second axis.
        each = T.shape_padright(each).flatten(2)
        usable = T.and_(usable, T.all(_are_finite(each), axis=1))
    # Each virtual batch that follows takes a factor off a weight.
    steps = T.cast(usable, alpha.dtype)
    later = T.cumsum(steps[::-1])[::-1] - steps
    weights = T.switch(usable, alpha * (one - alpha) ** later, zero)
    kept = (one - alpha) ** steps.sum()
    along = (0,) + ("x",) * (statistic.ndim - 1)
    statistic = T.switch(usable.dimshuffle(along), statistic, zero)
    moved = T.sum(weights.dimshuffle(along) * statistic, 0, keepdims=True)
    # By itself, or what is not finite in the average would stay in it.
    return T.switch(T.eq(kept, zero), moved, kept * average + moved)


def _are_finite(values):
    return T.invert(T.or_(T.isnan(values), T.isinf(values)))


def batch_statistics(batch):
    """Take mean, biased standard deviation and count of a batch."""
    if batch.virtual_size:
        head, tail = split(batch)
        return _joined(batch, (None, *batch_statistics(head)),
                       (None, *batch_statistics(tail)))[1:]
    _, mean, std = _standardization(batch)
    dtype = batch.x.dtype
    return _as_half(mean, dtype), _as_half(std, dtype), count(batch)


def find_moments(batch):
    """Find the moments of a part of a batch, as a vector.

    See :func:`bnlasagne.kernels.dispatch.find_moments`.
    """
    batch = batch._replace(x=cast(batch.x, "float64"))
    deviation, mean, _ = _standardization(batch)
    return T.concatenate([
        T.shape_padleft(T.cast(count(batch), "float64")), T.flatten(mean),
        T.flatten(T.sqr(deviation).sum(batch.axes))])


def in_shape(statistics, batch):
    """Read mean and standard deviation from a vector, in its precision.

    They are of the shape of the batch, but of size 1 along its axes.
    """
    x = batch.x
    shape = [1 if axis in batch.axes else x.shape[axis]
             for axis in range(x.ndim)]
    both = T.patternbroadcast(statistics.reshape([2] + shape, 1 + x.ndim),
                              (False, *pattern(x, batch.axes)))
    return both[0], both[1]


def pattern(x, axes):
    """Return which axes of statistics and parameters are broadcastable."""
    return tuple(axis in axes or broadcastable
                 for axis, broadcastable in enumerate(x.broadcastable))


def normalize_by(batch, statistics, gamma, beta, epsilon):
    """Normalize a part of a batch by the statistics of all of it.

    See :func:`bnlasagne.kernels.dispatch.normalize_by`.
    """
    x = only_counted(batch.x, batch)
    mean, std = in_shape(statistics, batch)
    near = T.cast(mean, x.dtype)
    # What rounded the mean is not small against the standard deviation where
    # the mean is large.
    deviation = x - near - T.cast(mean - near, x.dtype)
    return only_counted(_scale_and_shift(
        deviation, T.cast(std, x.dtype), gamma, beta, epsilon), batch)


@quiet_checks(test_values=True)
def pool(parts):
    """Pool the statistics of several batches, as if they were one.

    Takes, for each batch, the number of values per channel, their mean and
    their biased standard deviation; returns the same for all values, mean and
    standard deviation in double precision. A batch may have virtual batches.
    """
    counts, means, deviations = (
        T.concatenate(each) for each in zip(*map(_stacked, parts)))
    shape = [-1] + [1] * (means.ndim - 1)
    n = T.cast(counts, "float64").reshape(shape, means.ndim)
    # Of a batch without values, the statistics have no meaning.
    means, deviations = (T.switch(T.gt(n, 0), each, 0)
                         for each in (means, deviations))
    divisor = T.maximum(n.sum(), 1)
    mean = (n * means).sum(0) / divisor
    distances = means - mean
    unit = _power_of_two(T.maximum(abs(deviations), abs(distances)).max(0))
    squares = (n * (T.sqr(deviations * unit) + T.sqr(distances * unit))).sum(0)
    return counts.sum(), mean, safe_sqrt(squares / divisor) / unit


def _stacked(part):
    """Give the batches of a part an axis of their own, the first."""
    count, *statistics = part
    if not count.ndim:
        return [T.shape_padleft(T.cast(value, dtype)) for value, dtype
                in zip(part, ("int64", "float64", "float64"))]
    return [count, *(T.cast(value, "float64").dimshuffle(
        0, "x", *range(1, value.ndim)) for value in statistics)]


# Masks and virtual batches

def count(batch):
    """Count the values that each statistic is taken over."""
    if batch.virtual_size:
        head, tail = split(batch)
        return T.concatenate([_count_of_heads(head),
                              T.shape_padleft(count(tail))])
    # The mask is the same for all channels.
    return batch.size() if batch.mask is None else _counts(batch).flatten()[0]


def _count_of_heads(head):
    """Count the values of virtual batches that are one batch."""
    n = head.x.shape[0]
    if head.mask is None or head.mask.broadcastable[0]:
        return T.alloc(count(head), n)
    return _counts(head).flatten()


def _counts(batch):
    """Count the values that the mask counts, for each channel that differs."""
    mask = batch.counted()
    others = [batch.x.shape[axis] for axis in batch.axes
              if mask.broadcastable[axis]]
    return functools.reduce(operator.mul, others, T.sum(
        T.cast(mask, "int64"), batch.axes, keepdims=True))


def only_counted(values, batch):
    """Replace values at positions that do not count by zero."""
    mask = batch.counted()
    return values if mask is None else T.switch(
        mask, values, constant_like(0, values))


def virtual_batch_of_each(batch):
    """Number the virtual batches, and tell that of each example."""
    last = batch.n_virtual_batches() - 1
    return T.minimum(T.arange(batch.x.shape[0]) // batch.virtual_size, last)


def _for_head(param):
    """Give a parameter an axis for virtual batches."""
    return None if param is None else param.dimshuffle(
        "x", *range(param.ndim))


def _joined(batch, head, tail):
    """Join what was found for the parts of :func:`split`."""
    output = None
    if head[0] is not None:
        x, (output, *_) = batch.x, head
        # Not -1: it could be anything where another size is 0.
        shape = output.shape[0] * output.shape[1], *(
            x.shape[axis] for axis in range(1, x.ndim))
        output = T.concatenate([output.reshape(shape, x.ndim), tail[0]])
        output = T.patternbroadcast(output, x.broadcastable)
    statistics = [
        T.concatenate([one.dimshuffle(0, *range(2, one.ndim)), other])
        for one, other in zip(head[1:3], tail[1:3])]
    return output, *statistics, count(batch)


def _standardization(batch):
    """Return the deviation from the mean, mean and standard deviation."""
    axes, x = batch.axes, only_counted(_not_half(batch.x), batch)
    size = _largest(theano.gradient.disconnected_grad(x), axes)
    # Units in which sums do not overflow, and squares do not underflow either.
    # Gradients are multiplied by a unit after they are divided by it: so they
    # are no further from 1 than they have to be.
    unit = _power_of_two(size, np.finfo(x.dtype).maxexp - 32)
    mean = _mean(x * unit, batch) / unit
    # Where the mean is large, what rounds it off is not small against the
    # standard deviation: take it from the deviations. Their mean is zero by
    # definition, so it has no gradient.
    rounding = theano.gradient.disconnected_grad(
        _mean(only_counted((x - mean) * unit, batch), batch) / unit)
    deviation = only_counted(x - mean - rounding, batch)
    unit = _power_of_two(size)
    variance = _mean(T.sqr(deviation * unit), batch)
    return deviation, mean + rounding, safe_sqrt(variance) / unit


def _mean(values, batch):
    """Take the mean of values, which are zero where they do not count."""
    if batch.mask is None:
        return values.mean(batch.axes, keepdims=True)
    counts = T.maximum(_counts(batch), 1)
    return values.sum(batch.axes, keepdims=True) / T.cast(counts, values.dtype)


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
