"""Batch normalization as fused Ops for the CPU.

:func:`normalize_batch` and :func:`normalize` compute what their namesakes in
:mod:`bnlasagne.kernels.expressions` do, at the speed of memory. Which of
the two a layer is built from is decided in :mod:`bnlasagne.kernels.dispatch`.

Each Op has the C++ code of ``kernels.h``, for machines with a compiler, and a
NumPy version, for those without. Gradients of gradients are those of the
plain expressions.
"""

import contextlib
import hashlib
import os
import re
from collections import OrderedDict

import numpy as np
import theano
import theano.tensor as T
from theano.gof import ParamsType
from theano.tensor.opt import in2out

from ..graphs.flags import own_expressions
from . import compilers, expressions

__all__ = [
    "BatchNormalize",
    "BatchNormalizeGrad",
    "FusedOp",
    "MoveAverage",
    "Normalize",
    "double",
    "filled",
    "in_blocks",
    "normalize",
    "normalize_batch",
    "parameter_axes",
    "shuffled",
    "without_warnings",
]


def normalize_batch(x, gamma, beta, epsilon, axes, rectify=False):
    """Normalize a batch by its own statistics.

    See :func:`bnlasagne.kernels.expressions.normalize_batch`. With `rectify`,
    values
    below zero are replaced by zero.
    """
    order, inverse = in_blocks(x.ndim, axes)
    x, gamma, beta = (shuffled(variable, order) for variable in (
        x, filled(gamma, 1, x, axes), filled(beta, 0, x, axes)))
    op = BatchNormalize(*parameter_axes(x.ndim, axes), rectify)
    outputs = op(x, gamma, beta, epsilon)[:3]
    return tuple(shuffled(output, inverse) for output in outputs)


def normalize(x, mean, std, gamma, beta, epsilon, axes, rectify=False):
    """Normalize a batch by the given statistics.

    See :func:`bnlasagne.kernels.expressions.normalize`. With `rectify`, values
    below
    zero are replaced by zero.
    """
    order, inverse = in_blocks(x.ndim, axes)
    mean, std, gamma, beta = (
        filled(param, value, x, axes) for param, value
        in ((mean, 0), (std, 1), (gamma, 1), (beta, 0)))
    x, mean, std, gamma, beta = (
        shuffled(variable, order) for variable in (x, mean, std, gamma, beta))
    op = Normalize(*parameter_axes(x.ndim, axes), rectify)
    return shuffled(op(x, mean, std, gamma, beta, epsilon), inverse)


def filled(parameter, value, x, axes):
    """The parameter, or an array of one value where it is None.

    So is a parameter that is declared to have one value for all channels.
    """
    if parameter is None:
        parameter = T.constant(np.full((1,) * x.ndim, value, x.dtype))
    elif all(axis in axes or not broadcastable or x.broadcastable[axis]
             for axis, broadcastable in enumerate(parameter.broadcastable)):
        return parameter
    shape = [1 if axis in axes else x.shape[axis] for axis in range(x.ndim)]
    return T.alloc(parameter, *shape)


# The kernels see an array as [M][C][S], with the axes of the parameters in one
# block, C. Other axes are brought into this order first.

def in_blocks(ndim, axes):
    """An order of the axes with those of parameters in one block.

    Returns
    -------
    order, inverse : tuple of int
        For `dimshuffle`, there and back.
    """
    others = [axis for axis in range(ndim) if axis not in axes]
    if not others or others[-1] - others[0] + 1 == len(others):
        order = tuple(range(ndim))
    else:
        order = tuple(axes) + tuple(others)
    return order, tuple(int(axis) for axis in np.argsort(order))


def parameter_axes(ndim, axes):
    """First axis of the parameters, in order, and the one after the last."""
    others = [axis for axis in range(ndim) if axis not in axes]
    if not others:
        # One channel, and all its values lie one after the other.
        return 0, 0
    if others[-1] - others[0] + 1 == len(others):
        return others[0], others[-1] + 1
    return ndim - len(others), ndim


def shuffled(variable, order):
    if order == tuple(range(len(order))):
        return variable
    return variable.dimshuffle(*order)


@own_expressions(test_values=True)
def double(scalar):
    """A number or scalar variable in double precision, whatever floatX is."""
    if not isinstance(scalar, theano.Variable):
        return T.constant(np.asarray(scalar, "float64"))
    return T.cast(scalar, "float64")


# The Ops

def _read(name):
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cpp",
                        name)
    with open(path, encoding="utf-8") as source:
        return source.read()


def _source(*names):
    """Headers, one after the other; none has to be found by the compiler."""
    return re.sub('#include "[^"]*"', "", "".join(map(_read, names)))


_ARRAYS = _source("arrays.h")
_KERNELS = _source("vectors.h", "rows.h", "columns.h", "kernels.h")
_AVERAGES = _source("vectors.h", "averages.h")
# What the compiler is tried with: most of what the Ops call, in one width.
_TRIAL = _KERNELS + _source("averages.h") + """
namespace bnlasagne {
template void forward<float, true>(
    Shape, const float*, const float*, const float*, double, float*, float*,
    float*, double*);
template void backward<float, true>(
    Shape, const float*, const float*, const float*, const float*, double*,
    float*, float*, float*);
template void apply<float, true>(
    Shape, const float*, const float*, const float*, const float*,
    const float*, double, float*);
template void move_average<float>(
    const float*, const float*, double, Index, float*);
}
"""


class _CompiledOp(theano.Op):
    """An Op with C++ code."""

    source = _KERNELS
    # ``{x}`` stands for the C++ name of the input or output of that name.
    code = begin = ""
    inputs = outputs = []

    def c_support_code(self):
        return self.source + _ARRAYS

    def c_compile_args(self):
        return compilers.arguments(_TRIAL) or []

    def c_no_compile_args(self):
        return compilers.unsafe_arguments()

    def c_code_cache_version(self):
        text = self.c_support_code() + self.begin + self.code
        digest = hashlib.sha256(text.encode()).hexdigest()
        return (int(digest[:8], 16), 4)

    def make_c_thunk(self, *args, **kwargs):
        with compilers.or_numpy(_TRIAL):
            return super().make_c_thunk(*args, **kwargs)

    def c_code(self, node, name, inputs, outputs, sub):
        compilers.require(_TRIAL)
        code = self.begin + self.code
        names = dict(zip(self.inputs + self.outputs, inputs + outputs))
        for name, variable in names.items():
            code = code.replace("{" + name + "}", variable)
        for old, new in (("{params}", sub.get("params", "")),
                         ("{fail}", sub["fail"]),
                         ("{T}", "npy_" + node.inputs[0].dtype)):
            code = code.replace(old, new)
        return "{ using namespace bnlasagne; " + code + "}"


class FusedOp(_CompiledOp):
    """What the Ops that normalize have in common.

    Parameters
    ----------
    first, end : int
        First axis of the parameters, and the one after the last. All others
        are normalized over.
    rectify : bool
        Whether values below zero are replaced by zero.
    inplace : bool
        Whether the output overwrites an input. Not to be used in graphs that
        users build; an optimization takes care of it.
    """

    __props__ = ("first", "end", "rectify", "inplace")
    # The C++ code gets them when it is called, so that it is the same for all
    # layers, and compiled once.
    params_type = ParamsType(
        first=theano.scalar.int64, end=theano.scalar.int64,
        rectify=theano.scalar.bool, inplace=theano.scalar.bool,
        home=theano.scalar.int64)
    overwrites = None
    # Those that follow the batch among the inputs.
    n_params = 2
    # The kernels start no threads in other processes, which are its forks.
    home = os.getpid()
    begin = "home = {params}->home;"

    def __init__(self, first, end, rectify=False, inplace=False):
        self.first = int(first)
        self.end = int(end)
        self.rectify = bool(rectify)
        self.inplace = bool(inplace)
        if inplace:
            self.destroy_map = {0: [self.overwrites]}

    def axes(self, ndim):
        """The axes to normalize over."""
        return tuple(axis for axis in range(ndim)
                     if not self.first <= axis < self.end)

    def check_inputs(self, x, params):
        """The inputs, checked.

        Parameters need not be declared broadcastable along the axes. That
        their sizes there are 1 is found out when the Op is called.
        """
        x = T.as_tensor_variable(x)
        if x.dtype not in ("float32", "float64"):
            raise TypeError("%s: the input must be float32 or float64, got "
                            "%s." % (type(self).__name__, x.dtype))
        params = list(map(T.as_tensor_variable, params))
        for param in params:
            if param.dtype != x.dtype or param.ndim != x.ndim:
                raise TypeError(
                    "%s: the statistics and parameters must have the input's "
                    "type and number of dimensions, %s and %d, got %s and %d."
                    % (type(self).__name__, x.dtype, x.ndim, param.dtype,
                       param.ndim))
        return [x] + params

    def check_shapes(self, x, *rest):
        """Compare the parameters' sizes with the input's, as C++ does."""
        for param in rest[:self.n_params]:
            for axis, size in enumerate(param.shape):
                wanted = x.shape[axis] if self.first <= axis < self.end else 1
                if size != wanted:
                    raise ValueError(
                        "batch normalization: a statistic or parameter must "
                        "be of size %d along axis %d, to go with its input, "
                        "but is of size %d" % (wanted, axis, size))

    def pattern(self, x):
        """Which axes of a parameter are broadcastable."""
        axes = self.axes(x.ndim)
        return tuple(axis in axes or x.broadcastable[axis]
                     for axis in range(x.ndim))

    def R_op(self, inputs, eval_points):
        raise NotImplementedError(
            "theano.Rop does not know the fused Ops of batch normalization. "
            "Build the output within bnlasagne.plain_expressions().")

    def _expression(self, inputs):
        """What the Op computes, as a plain expression.

        Of parameters that are broadcastable along the axes.
        """
        raise NotImplementedError

    def _plain_gradient(self, inputs, output_gradients):
        """Gradients of the plain expression.

        The inputs may depend on each other; as arguments they do not.
        """
        arguments = [_argument_like(variable) for variable in inputs]
        end, pattern = 1 + self.n_params, self.pattern(inputs[0])
        aligned = arguments[:1] + [
            T.patternbroadcast(param, pattern)
            for param in arguments[1:end]] + arguments[end:]
        known = OrderedDict(
            (expression,
             T.patternbroadcast(gradient, expression.broadcastable))
            for expression, gradient
            in zip(self._expression(aligned), output_gradients)
            if not isinstance(gradient.type, theano.gradient.DisconnectedType))
        gradients = theano.grad(
            None, arguments, known_grads=known, disconnected_inputs="ignore")
        return theano.clone(gradients, replace=dict(zip(arguments, inputs)))


def _argument_like(variable):
    """A new variable, with the test value of another if that has one."""
    argument = variable.type()
    if theano.config.compute_test_value != "off":
        with contextlib.suppress(AttributeError):
            argument.tag.test_value = theano.gof.op.get_test_value(variable)
    return argument


def without_warnings(function):
    """Call a NumPy version of an Op without warnings of its arithmetic."""
    def perform(self, node, inputs, output_storage, params=None):
        if isinstance(self, FusedOp):
            self.check_shapes(*inputs)
        with np.errstate(all="ignore"):
            outputs = function(self, *inputs)
        for storage, output, variable in zip(output_storage, outputs,
                                             node.outputs):
            storage[0] = np.asarray(output, dtype=variable.dtype)
    return perform


def _unit_of(sizes):
    """Powers of two, of double precision, that bring sizes to about 1."""
    # Not to the ends of the range: what they multiply may be there, too.
    powers = np.clip(np.frexp(sizes)[1].astype(int), -700, 700)
    return np.ldexp(1., np.where(np.isfinite(sizes), -powers, 0))


class BatchNormalize(FusedOp):
    """Normalize a batch by its own statistics.

    Inputs: the batch, gamma, beta, epsilon. Outputs: the normalized batch,
    mean, standard deviation, and what the gradient wants to know of them in
    double precision.
    """

    inputs = ["x", "gamma", "beta", "epsilon"]
    outputs = ["y", "mean", "std", "statistics"]

    @own_expressions(test_values=True)
    def make_node(self, x, gamma, beta, epsilon):
        inputs = self.check_inputs(x, [gamma, beta])
        x = inputs[0]
        inputs.append(double(epsilon))
        statistic = T.TensorType(x.dtype, self.pattern(x))
        return theano.Apply(
            self, inputs, [x.type(), statistic(), statistic(), T.dmatrix()])

    def infer_shape(self, node, shapes):
        x, gamma = shapes[:2]
        channels = T.prod(gamma) if gamma else 1
        return [x, gamma, gamma, (3, channels)]

    def connection_pattern(self, node):
        return [[True, True, True, True], [True, False, False, False],
                [True, False, False, False], [True, False, False, True]]

    @own_expressions(test_values=True)
    def L_op(self, inputs, outputs, output_gradients):
        x, gamma, beta, epsilon = inputs
        _, mean, std, statistics = outputs
        dy, dmean, dstd, _ = output_gradients
        if isinstance(dy.type, theano.gradient.DisconnectedType):
            dx = x.zeros_like()
            dgamma = dbeta = depsilon = dy
        else:
            op = BatchNormalizeGrad(self.first, self.end, self.rectify)
            dx, dgamma, dbeta = op(x, gamma, beta, epsilon,
                                   T.cast(dy, x.dtype), statistics)
            depsilon = theano.gradient.grad_not_implemented(
                self, 3, epsilon, "epsilon is taken to be a constant")
        count = T.prod([x.shape[axis] for axis in self.axes(x.ndim)])
        count = T.cast(count, x.dtype)
        if not isinstance(dmean.type, theano.gradient.DisconnectedType):
            dx = dx + dmean / count
        if not isinstance(dstd.type, theano.gradient.DisconnectedType):
            zero, one = (expressions.constant_like(value, x)
                         for value in (0, 1))
            is_zero = T.eq(std, zero)
            direction = T.switch(
                is_zero, zero, (x - mean) / T.switch(is_zero, one, std))
            dx = dx + dstd * direction / count
        return [dx, dgamma, dbeta, depsilon]

    @without_warnings
    def perform(self, x, gamma, beta, epsilon):
        axes = self.axes(x.ndim)
        count = np.prod([x.shape[axis] for axis in axes])
        unit = _unit_of(np.abs(x).max(axes, initial=0, keepdims=True))
        mean = (x * unit).sum(axes, keepdims=True) / count
        deviation = x * unit - mean
        std = np.sqrt(np.square(deviation).sum(axes, keepdims=True) / count)
        mean, std = mean / unit, std / unit
        inverse = 1 / (std + epsilon)
        y = deviation * (gamma * (inverse / unit)) + beta
        if self.rectify:
            y = np.where(y < 0, 0, y)
        return y, mean, std, [
            statistic.ravel() for statistic in (mean, std, inverse)]

    code = """
        const int first = {params}->first, end = {params}->end;
        Array x(in_order({x})), gamma(in_order({gamma}));
        Array beta(in_order({beta}));
        if (!x || !gamma || !beta
            || !is_parameter(gamma, "gamma", x, first, end)
            || !is_parameter(beta, "beta", x, first, end)) {fail}
        const Shape shape = shape_of(x, first, end);
        const npy_intp table[2] = {3, shape.C};
        if (!prepare_like(&{y}, x) || !prepare_like(&{mean}, gamma)
            || !prepare_like(&{std}, gamma)
            || !prepare(&{statistics}, 2, table, NPY_FLOAT64)) {fail}
        ({params}->rectify ? forward<{T}, true> : forward<{T}, false>)(
            shape, values<{T}>(x), values<{T}>(gamma), values<{T}>(beta),
            *values<double>({epsilon}), values<{T}>({y}),
            values<{T}>({mean}), values<{T}>({std}),
            values<double>({statistics}));
    """


class BatchNormalizeGrad(FusedOp):
    """Gradient of :class:`BatchNormalize`.

    Inputs: those of `BatchNormalize`, the gradient with respect to its first
    output, which the in-place variant overwrites, and its last output.
    Outputs: the gradients with respect to the batch, gamma and beta.
    """

    inputs = ["x", "gamma", "beta", "epsilon", "dy", "statistics"]
    outputs = ["dx", "dgamma", "dbeta"]
    overwrites = 4

    @own_expressions(test_values=True)
    def make_node(self, x, gamma, beta, epsilon, dy, statistics):
        inputs = self.check_inputs(x, [gamma, beta])
        inputs += [epsilon, T.as_tensor_variable(dy), statistics]
        if dy.dtype != x.dtype or dy.ndim != x.ndim:
            raise TypeError("%s: the output's gradient must be like the "
                            "input." % type(self).__name__)
        return theano.Apply(
            self, inputs, [variable.type() for variable in inputs[:3]])

    def infer_shape(self, node, shapes):
        return shapes[:3]

    def _expression(self, inputs):
        x, gamma, beta, epsilon, dy, _ = inputs
        y, _, _ = expressions.normalize_batch(
            x, gamma, beta, T.cast(epsilon, x.dtype), self.axes(x.ndim))
        if self.rectify:
            zero = expressions.constant_like(0, x)
            dy = T.switch(T.gt(y, zero), dy, zero)
        return theano.grad(None, [x, gamma, beta],
                           known_grads=OrderedDict([(y, dy)]),
                           disconnected_inputs="ignore")

    def connection_pattern(self, node):
        # The statistics are those of the batch: what depends on them is in
        # the gradient with respect to the batch.
        return [[True] * 3] * 3 + [[False] * 3, [True] * 3, [False] * 3]

    @own_expressions(test_values=True)
    def L_op(self, inputs, outputs, output_gradients):
        gradients = self._plain_gradient(inputs, output_gradients)
        disconnected = theano.gradient.DisconnectedType()
        for position in (3, 5):
            gradients[position] = disconnected()
        return gradients

    @without_warnings
    def perform(self, x, gamma, beta, epsilon, dy, statistics):
        axes = self.axes(x.ndim)
        mean, std, inverse = (
            statistic.reshape(gamma.shape) for statistic in statistics)
        if x.size == 0:
            inverse = np.zeros(gamma.shape)
        unit = _unit_of(np.maximum(std, 1e-30 * np.abs(mean)))
        deviation = x * unit - mean * unit
        if self.rectify:
            dy = np.where(deviation * (gamma * (inverse / unit)) + beta > 0,
                          dy, 0)
        count = np.prod([x.shape[axis] for axis in axes])
        dbeta = dy.sum(axes, dtype=np.float64, keepdims=True)
        dgamma = (dy * deviation).sum(axes, keepdims=True) * (inverse / unit)
        direction = np.where(std == 0, 0, dgamma / count / (std * unit))
        dx = gamma * inverse * (dy - dbeta / count - deviation * direction)
        return dx, dgamma, dbeta

    code = """
        const int first = {params}->first, end = {params}->end;
        Array x(in_order({x})), gamma(in_order({gamma}));
        Array beta(in_order({beta})), dy(in_order({dy}));
        Array statistics(in_order({statistics}));
        if (!x || !gamma || !beta || !dy || !statistics
            || !is_like(dy, "the output's gradient", x)
            || !({params}->inplace ? prepare_over(&{dx}, dy)
                                   : prepare_like(&{dx}, x))
            || !prepare_like(&{dgamma}, gamma)
            || !prepare_like(&{dbeta}, beta)) {fail}
        ({params}->rectify ? backward<{T}, true> : backward<{T}, false>)(
            shape_of(x, first, end), values<{T}>(x), values<{T}>(gamma),
            values<{T}>(beta), values<{T}>(dy),
            values<double>(statistics), values<{T}>({dx}),
            values<{T}>({dgamma}), values<{T}>({dbeta}));
    """


class Normalize(FusedOp):
    """Normalize a batch by the given statistics.

    Inputs: the batch, which the in-place variant overwrites, mean, standard
    deviation, gamma, beta, epsilon. Output: the normalized batch.
    """

    inputs = ["x", "mean", "std", "gamma", "beta", "epsilon"]
    outputs = ["y"]
    overwrites = 0
    n_params = 4

    @own_expressions(test_values=True)
    def make_node(self, x, mean, std, gamma, beta, epsilon):
        inputs = self.check_inputs(x, [mean, std, gamma, beta])
        inputs.append(double(epsilon))
        return theano.Apply(self, inputs, [inputs[0].type()])

    def infer_shape(self, node, shapes):
        return shapes[:1]

    def _expression(self, inputs):
        inputs = inputs[:5] + [T.cast(inputs[5], inputs[0].dtype)]
        y = expressions.normalize(*inputs)
        zero = expressions.constant_like(0, y)
        return [T.switch(T.lt(y, zero), zero, y) if self.rectify else y]

    @own_expressions(test_values=True)
    def L_op(self, inputs, outputs, output_gradients):
        return self._plain_gradient(inputs, output_gradients)

    @without_warnings
    def perform(self, x, mean, std, gamma, beta, epsilon):
        mean, std = (np.asarray(value, np.float64) for value in (mean, std))
        y = (x - mean) * (gamma / (std + epsilon)) + beta
        return (np.where(y < 0, 0, y) if self.rectify else y),

    code = """
        const int first = {params}->first, end = {params}->end;
        Array x(in_order({x})), mean(in_order({mean}));
        Array std(in_order({std})), gamma(in_order({gamma}));
        Array beta(in_order({beta}));
        if (!x || !mean || !std || !gamma || !beta
            || !is_parameter(mean, "mean", x, first, end)
            || !is_parameter(std, "std", x, first, end)
            || !is_parameter(gamma, "gamma", x, first, end)
            || !is_parameter(beta, "beta", x, first, end)
            || !({params}->inplace ? prepare_over(&{y}, x)
                                   : prepare_like(&{y}, x))) {fail}
        ({params}->rectify ? apply<{T}, true> : apply<{T}, false>)(
            shape_of(x, first, end), values<{T}>(x), values<{T}>(mean),
            values<{T}>(std), values<{T}>(gamma), values<{T}>(beta),
            *values<double>({epsilon}), values<{T}>({y}));
    """


class MoveAverage(_CompiledOp):
    """A running average after a batch.

    Inputs: the average, the weight of the batch, the number of its values, and
    its statistics, the one to average first, of the average's shape. The
    average stays as it is where there are fewer than two values, or where any
    of the statistics is not finite.

    Parameters
    ----------
    n_statistics : int
        Number of statistics.
    """

    __props__ = ("n_statistics",)
    source = _AVERAGES
    outputs = ["moved"]

    def __init__(self, n_statistics):
        self.n_statistics = n_statistics

    @property
    def inputs(self):
        return ["average", "alpha", "count"] + self._statistics()

    def _statistics(self):
        return ["statistic%d" % i for i in range(self.n_statistics)]

    def make_node(self, average, alpha, count, *statistics):
        like = [(statistic.dtype, statistic.ndim) for statistic in statistics]
        if (alpha.dtype, count.dtype) != ("float64", "int64") or (
                like != [(average.dtype, average.ndim)] * self.n_statistics):
            raise TypeError(
                "MoveAverage: alpha must be float64, the count int64, and the "
                "%d statistics like the average, %s with %d dimensions."
                % (self.n_statistics, average.dtype, average.ndim))
        return theano.Apply(self, [average, alpha, count] + list(statistics),
                            [average.type()])

    def infer_shape(self, node, shapes):
        return shapes[:1]

    @without_warnings
    def perform(self, average, alpha, count, *statistics):
        if count < 2 or not all(map(np.all, map(np.isfinite, statistics))):
            return average.copy(),
        if alpha == 1:
            return statistics[0].copy(),
        return (1 - alpha) * average + alpha * statistics[0],

    @property
    def code(self):
        checked = "".join("""
        Array {0}(in_order({{{0}}}));
        if (!{0} || !is_like({0}, "a batch's statistic", average)) {{fail}}
        usable = usable && all_finite(values<{{T}}>({0}), size);
        """.format(statistic) for statistic in self._statistics())
        return """
        Array average(in_order({average}));
        if (!average || !prepare_like(&{moved}, average)) {fail}
        const npy_intp size = PyArray_SIZE(average);
        bool usable = *values<npy_int64>({count}) >= 2;
        """ + checked + """
        move_average(values<{T}>(average),
                     usable ? values<{T}>(statistic0) : NULL,
                     *values<double>({alpha}), size, values<{T}>({moved}));
        """


@theano.gof.local_optimizer([FusedOp], inplace=True)
def _local_inplace(node):
    """Let outputs overwrite an input that nothing else needs."""
    op = node.op
    if not isinstance(op, FusedOp) or op.overwrites is None or op.inplace:
        return False
    inplace = type(op)(op.first, op.end, op.rectify, inplace=True)
    return inplace(*node.inputs, return_list=True)


# Where Theano makes its own Ops in-place.
theano.compile.optdb.register(
    "bnlasagne_inplace", in2out(_local_inplace), 75, "fast_run", "inplace")
