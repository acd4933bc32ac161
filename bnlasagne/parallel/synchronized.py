"""Batch normalization by the statistics of all ranks' batches together.

Each rank has a part of the batch. What it finds in the pass over its part that
statistics take is put together with what the others find, in one message; then
it makes the pass that normalizes. In the gradient it is likewise:

====================  ==================  =========================
pass over the part    message             pass over the part
====================  ==================  =========================
`FindMoments`         `MergeMoments`      `NormalizeByMoments`
`FindGradientSums`    `AllReduce`         `GradientByMoments`
====================  ==================  =========================

The gradients with respect to gamma and beta are those by this rank's part, as
those of all other parameters are.

Moments are vectors; see :class:`bnlasagne.parallel.collectives.MergeMoments`.
"""

import numpy as np
import theano
import theano.tensor as T

from ..graphs.flags import own_expressions
from ..kernels import dispatch, expressions, ops
from .collectives import AllReduce, MergeMoments

__all__ = [
    "normalize_batch",
    "statistics",
]


@own_expressions(test_values=True)
def statistics(x, axes, channel, name):
    """Statistics of a batch of which each rank has a part.

    Parameters
    ----------
    x : Theano variable
        This rank's part.
    axes : tuple of int
        The axes to take them over.
    channel : Channel
        To the other ranks.
    name : str
        What is normalized, for messages.

    Returns
    -------
    mean, std, count : Theano variables
        Alike on all ranks. `mean` and `std` are of the shape of `x`, but of
        size 1 along the axes; `count`, a scalar, is the number of values that
        they are taken over.
    """
    moments = _moments(x, axes, channel, name, dispatch.are_usable(x))
    return _of_moments(moments, x, axes)


@own_expressions(test_values=True)
def normalize_batch(x, gamma, beta, epsilon, axes, channel, name,
                    rectify=False, correct=None):
    """Normalize a part of a batch by the statistics of all of it.

    Parameters
    ----------
    x, axes, channel, name
        See :func:`statistics`.
    gamma, beta : Theano variables or None
        Scale and shift.
    epsilon : float or scalar Theano variable
        Added to the standard deviation.
    rectify : bool
        Whether values below zero are replaced by zero.
    correct : callable or None
        See :func:`bnlasagne.kernels.dispatch.normalize_batch`.

    Returns
    -------
    output : Theano variable
        Of the shape of `x`.
    mean, std, count : Theano variables
        See :func:`statistics`.
    """
    moments = _moments(x, axes, channel, name,
                       dispatch.are_usable(x, gamma, beta))
    mean, std, count = _of_moments(moments, x, axes)
    if correct is not None:
        gamma, beta = correct(mean, std, gamma, beta)
    fused = dispatch.are_usable(x, gamma, beta)
    normalize = _fused if fused else _plain
    output = normalize(x, moments, gamma, beta, epsilon, axes, rectify)
    return output, mean, std, count


def _moments(x, axes, channel, name, fused):
    """Moments of all ranks' parts together."""
    if fused:
        order, _ = ops.in_blocks(x.ndim, axes)
        op = FindMoments(*ops.parameter_axes(x.ndim, axes))
        moments = op(ops.shuffled(x, order))
    else:
        moments = _plain_moments(x, axes)
    return MergeMoments(channel, "the moments of " + name)(moments)


def _of_moments(moments, x, axes):
    """Mean and standard deviation like `x`, and the count."""
    mean, variance = _in_shape(moments, x, axes)
    return (T.cast(mean, x.dtype),
            T.cast(expressions.safe_sqrt(variance), x.dtype),
            T.cast(moments[0], "int64"))


def _in_shape(moments, x, axes):
    """Mean and variance, of double precision."""
    shape = [1 if axis in axes else x.shape[axis] for axis in range(x.ndim)]
    pattern = [axis in axes or x.broadcastable[axis]
               for axis in range(x.ndim)]
    channels = (moments.shape[0] - 1) // 2
    mean, m2 = (
        T.patternbroadcast(part.reshape(shape, x.ndim), pattern)
        for part in (moments[1:1 + channels], moments[1 + channels:]))
    return mean, m2 / moments[0]


# As plain expressions

def _plain_moments(x, axes):
    x = expressions.cast(x, "float64")
    deviation, mean, _ = expressions.standardization(x, axes)
    count = T.prod([T.cast(x.shape[axis], "float64") for axis in axes])
    return T.concatenate([T.shape_padleft(count), T.flatten(mean),
                          T.flatten(T.sqr(deviation).sum(axes))])


def _plain(x, moments, gamma, beta, epsilon, axes, rectify):
    gamma, beta = dispatch.aligned(x, axes, gamma, beta)
    mean, variance = _in_shape(moments, x, axes)
    near = T.cast(mean, x.dtype)
    # What rounded the mean is not small against the standard deviation where
    # the mean is large.
    deviation = x - near - T.cast(mean - near, x.dtype)
    std = T.cast(expressions.safe_sqrt(variance), x.dtype)
    output = expressions.scale_and_shift(deviation, std, gamma, beta, epsilon)
    return T.nnet.relu(output) if rectify else output


# As fused Ops

def _fused(x, moments, gamma, beta, epsilon, axes, rectify):
    order, inverse = ops.in_blocks(x.ndim, axes)
    x, gamma, beta = (ops.shuffled(variable, order) for variable in (
        x, ops.filled(gamma, 1, x, axes), ops.filled(beta, 0, x, axes)))
    op = NormalizeByMoments(*ops.parameter_axes(x.ndim, axes), rectify)
    return ops.shuffled(op(x, gamma, beta, epsilon, moments), inverse)


class FindMoments(ops.FusedOp):
    """Moments of a rank's part of a batch.

    Its gradient is in that of :class:`NormalizeByMoments`.
    """

    inputs = ["x"]
    outputs = ["moments"]

    def make_node(self, x):
        return theano.Apply(self, self.check_inputs(x, []), [T.dvector()])

    def infer_shape(self, node, shapes):
        return [(1 + 2 * T.prod(shapes[0][self.first:self.end], dtype="int64"),
                 )]

    def connection_pattern(self, node):
        return [[False]]

    def L_op(self, inputs, outputs, output_gradients):
        return [theano.gradient.DisconnectedType()()]

    @ops.without_warnings
    def perform(self, x):
        axes = self.axes(x.ndim)
        count = np.prod([x.shape[axis] for axis in axes])
        mean = x.sum(axes, dtype=np.float64, keepdims=True) / count
        deviation = x - mean
        mean = mean + deviation.sum(axes, keepdims=True) / count
        m2 = np.square(x - mean).sum(axes)
        return np.concatenate([[count], mean.ravel(), m2.ravel()]),

    code = """
        const int first = {params}->first, end = {params}->end;
        Array x(in_order({x}));
        if (!x) {fail}
        const Shape shape = shape_of(x, first, end);
        const npy_intp size = 1 + 2 * shape.C;
        if (!prepare(&{moments}, 1, &size, NPY_FLOAT64)) {fail}
        find_moments(shape, values<{T}>(x), values<double>({moments}));
    """


class _ByMoments(ops.FusedOp):
    """What the Ops have in common that are given the moments."""

    inputs = ["x", "gamma", "beta", "epsilon", "moments"]

    def _checked(self, x, gamma, beta, epsilon, moments):
        return self.check_inputs(x, [gamma, beta]) + [
            ops.double(epsilon), T.as_tensor_variable(moments)]

    @staticmethod
    def _statistics(moments, shape, epsilon):
        """Count, mean, standard deviation, and its inverse with epsilon."""
        count, mean, m2 = moments[0], *moments[1:].reshape((2,) + shape)
        std = np.sqrt(m2 / count)
        return count, mean, std, 1 / (std + epsilon)

    def _gradient_reaching(self, deviation, gamma, beta, inverse, dy):
        if not self.rectify:
            return dy
        return np.where(deviation * (gamma * inverse) + beta > 0, dy, 0)

    # What all of their C++ codes begin with.
    _begin = """
        const int first = {params}->first, end = {params}->end;
        Array x(in_order({x})), gamma(in_order({gamma}));
        Array beta(in_order({beta})), moments(in_order({moments}));
        if (!x || !gamma || !beta || !moments
            || !is_parameter(gamma, "gamma", x, first, end)
            || !is_parameter(beta, "beta", x, first, end)) {fail}
        const Shape shape = shape_of(x, first, end);
        if (!is_size(moments, "the moments", 1 + 2 * shape.C)) {fail}
    """
    _begin_gradient = _begin + """
        Array dy(in_order({dy}));
        if (!dy || !is_like(dy, "the output's gradient", x)) {fail}
    """


class NormalizeByMoments(_ByMoments):
    """Normalize a rank's part by the moments of the whole batch.

    The moments depend on the batch; what goes through them is in the gradient
    with respect to the batch.
    """

    outputs = ["y"]

    def make_node(self, x, gamma, beta, epsilon, moments):
        inputs = self._checked(x, gamma, beta, epsilon, moments)
        return theano.Apply(self, inputs, [inputs[0].type()])

    def infer_shape(self, node, shapes):
        return shapes[:1]

    def connection_pattern(self, node):
        return [[True]] * 4 + [[False]]

    @own_expressions(test_values=True)
    def L_op(self, inputs, outputs, output_gradients):
        x, moments = inputs[0], inputs[4]
        dy = output_gradients[0].astype(x.dtype)
        merge = moments.owner.op
        arguments = self.first, self.end, self.rectify
        sums, dgamma, dbeta = FindGradientSums(*arguments)(*inputs + [dy])
        what = "the sums for the gradient of " + merge.what
        sums = AllReduce(merge.channel, what)(sums)
        dx = GradientByMoments(*arguments)(*inputs + [dy, sums])
        return [dx, dgamma, dbeta, theano.gradient.grad_not_implemented(
            self, 3, inputs[3], "epsilon is taken to be a constant"),
            theano.gradient.DisconnectedType()()]

    @ops.without_warnings
    def perform(self, x, gamma, beta, epsilon, moments):
        _, mean, _, inverse = self._statistics(moments, gamma.shape, epsilon)
        y = (x - mean) * (gamma * inverse) + beta
        return (np.where(y < 0, 0, y) if self.rectify else y),

    code = _ByMoments._begin + """
        if (!prepare_like(&{y}, x)) {fail}
        ({params}->rectify ? forward_by<{T}, true> : forward_by<{T}, false>)(
            shape, values<{T}>(x), values<{T}>(gamma), values<{T}>(beta),
            *values<double>({epsilon}), values<double>(moments),
            values<{T}>({y}));
    """


class _Gradient(_ByMoments):
    """A part of the gradient of :class:`NormalizeByMoments`."""

    def L_op(self, inputs, outputs, output_gradients):
        why = ("synchronized batch normalization has gradients of gradients "
               "only within bnlasagne.plain_expressions()")
        return [theano.gradient.grad_not_implemented(self, i, variable, why)
                for i, variable in enumerate(inputs)]


class FindGradientSums(_Gradient):
    """What the gradient wants to know of a rank's part.

    Outputs: for each channel, the sum of the gradient that reaches the
    normalized values, then that of its product with their deviations, as a
    vector; and the gradients with respect to gamma and beta.
    """

    inputs = _ByMoments.inputs + ["dy"]
    outputs = ["sums", "dgamma", "dbeta"]

    def make_node(self, x, gamma, beta, epsilon, moments, dy):
        inputs = self._checked(x, gamma, beta, epsilon, moments)
        return theano.Apply(
            self, inputs + [T.as_tensor_variable(dy)],
            [T.dvector()] + [variable.type() for variable in inputs[1:3]])

    def infer_shape(self, node, shapes):
        return [(shapes[4][0] - 1,)] + shapes[1:3]

    @ops.without_warnings
    def perform(self, x, gamma, beta, epsilon, moments, dy):
        axes = self.axes(x.ndim)
        _, mean, _, inverse = self._statistics(moments, gamma.shape, epsilon)
        # From the mean as the kernels round it, which is alike on all ranks.
        near = mean.astype(x.dtype).astype(np.float64)
        g = self._gradient_reaching(x - mean, gamma, beta, inverse, dy)
        sums = g.sum(axes, dtype=np.float64, keepdims=True)
        products = (g * (x - near)).sum(axes, keepdims=True)
        dgamma = (products - (mean - near) * sums) * inverse
        if x.size == 0:
            dgamma = np.zeros(gamma.shape)
        return np.concatenate([sums.ravel(), products.ravel()]), dgamma, sums

    code = _ByMoments._begin_gradient + """
        const npy_intp size = 2 * shape.C;
        if (!prepare(&{sums}, 1, &size, NPY_FLOAT64)
            || !prepare_like(&{dgamma}, gamma)
            || !prepare_like(&{dbeta}, beta)) {fail}
        ({params}->rectify ? find_gradient_sums<{T}, true>
                           : find_gradient_sums<{T}, false>)(
            shape, values<{T}>(x), values<{T}>(gamma), values<{T}>(beta),
            *values<double>({epsilon}), values<{T}>(dy),
            values<double>(moments), values<double>({sums}),
            values<{T}>({dgamma}), values<{T}>({dbeta}));
    """


class GradientByMoments(_Gradient):
    """The gradient with respect to a rank's part.

    Its last input are the sums of all ranks; the gradient with respect to the
    output is overwritten by the in-place variant.
    """

    inputs = _ByMoments.inputs + ["dy", "sums"]
    outputs = ["dx"]
    overwrites = 5

    def make_node(self, x, gamma, beta, epsilon, moments, dy, sums):
        inputs = self._checked(x, gamma, beta, epsilon, moments)
        inputs += [T.as_tensor_variable(dy), T.as_tensor_variable(sums)]
        return theano.Apply(self, inputs, [inputs[0].type()])

    def infer_shape(self, node, shapes):
        return shapes[:1]

    @ops.without_warnings
    def perform(self, x, gamma, beta, epsilon, moments, dy, sums):
        count, mean, std, inverse = self._statistics(
            moments, gamma.shape, epsilon)
        near = mean.astype(x.dtype).astype(np.float64)
        total, products = sums.reshape((2,) + gamma.shape)
        products = products - (mean - near) * total
        deviation = x - mean
        g = self._gradient_reaching(deviation, gamma, beta, inverse, dy)
        direction = np.where(std == 0, 0, products * inverse / (count * std))
        return gamma * inverse * (
            g - total / count - deviation * direction),

    code = _ByMoments._begin_gradient + """
        Array sums(in_order({sums}));
        if (!sums || !is_size(sums, "the sums", 2 * shape.C)
            || !({params}->inplace ? prepare_over(&{dx}, dy)
                                   : prepare_like(&{dx}, x))) {fail}
        ({params}->rectify ? backward_by<{T}, true> : backward_by<{T}, false>)(
            shape, values<{T}>(x), values<{T}>(gamma), values<{T}>(beta),
            *values<double>({epsilon}), values<{T}>(dy),
            values<double>(moments), values<double>(sums),
            values<{T}>({dx}));
    """
