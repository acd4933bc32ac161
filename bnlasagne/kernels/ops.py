"""Compute batch normalization by fused Ops for the CPU.

:func:`normalize_batch` and :func:`normalize` compute what their namesakes in
:mod:`bnlasagne.kernels.expressions` do, at the speed of memory.
:mod:`bnlasagne.kernels.dispatch` decides which of the two a layer is built
from, and explains `rectify`.

Each Op has a kernel in ``kernels.h``, for machines with a compiler, and a
NumPy version in :mod:`bnlasagne.kernels.fallback`, for those without.
Gradients of gradients are those of the plain expressions.
"""

import contextlib
import os
from collections import OrderedDict

import numpy as np
import theano
import theano.tensor as T
from theano.gof import ParamsType
from theano.gradient import DisconnectedType, grad_not_implemented
from theano.tensor.opt import in2out

from ..theano_tools.quiet_checks import quiet_checks
from . import expressions, fallback
from .batch import LEAST_VALUES, Batch
from .blocks import Blocks
from .compiled import AVERAGES, CompiledOp

__all__ = [
    "BatchNormalize",
    "BatchNormalizeGrad",
    "BatchStatistics",
    "FusedOp",
    "MoveAverage",
    "Normalize",
    "NormalizeBy",
    "double",
    "find_statistics",
    "normalize",
    "normalize_batch",
    "normalize_by",
]


def normalize_batch(batch, gamma, beta, epsilon, rectify=False):
    """Normalize a batch by its own statistics; return these, too.

    Returns the output, mean, standard deviation and their count.
    """
    blocks = Blocks(batch)
    op = BatchNormalize(blocks.first, blocks.end, rectify)
    outputs = op(blocks.x(), *blocks.params(gamma, beta), epsilon)
    return (*map(blocks.back, outputs[:3]), batch.size())


def normalize(batch, mean, std, gamma, beta, epsilon, rectify=False):
    """Normalize a batch by the given statistics."""
    blocks = Blocks(batch)
    op = Normalize(blocks.first, blocks.end, rectify)
    return blocks.back(op(
        blocks.x(), blocks.param(mean, 0), blocks.param(std, 1),
        *blocks.params(gamma, beta), epsilon))


def find_statistics(batch):
    """Find the statistics of a batch by :class:`BatchStatistics`.

    Returns mean, standard deviation, their count, both as a vector, and the
    moments as a vector.
    """
    blocks = Blocks(batch)
    mean, std, *vectors = BatchStatistics(blocks.first, blocks.end)(
        blocks.x())
    return (blocks.back(mean), blocks.back(std), batch.size(), *vectors)


def normalize_by(op, batch, statistics, gamma, beta, epsilon, rectify=False):
    """Normalize a batch by its own statistics, which are known already.

    `op` makes the Op from `first`, `end` and `rectify`, as
    :class:`NormalizeBy` does. `statistics` is the vector of
    :class:`BatchStatistics`.
    """
    blocks = Blocks(batch)
    op = op(blocks.first, blocks.end, rectify)
    return blocks.back(op(blocks.x(), *blocks.params(gamma, beta), epsilon,
                          statistics))


@quiet_checks(test_values=True)
def double(scalar):
    """Return a scalar in double precision, whatever floatX is."""
    if not isinstance(scalar, theano.Variable):
        return T.constant(np.asarray(scalar, "float64"))
    return T.cast(scalar, "float64")


# Inputs and outputs of these names are like the batch. Those in neither of the
# two are parameters, or statistics of the batch's own type.
_BATCHES = "x", "y", "dx", "dy"
# Vectors of double precision: two numbers for each channel, and so many more.
_VECTORS = {"statistics": 0, "sums": 1, "moments": 1}
# In messages.
_LABELS = {"dy": "the output's gradient", "statistics": "the statistics",
           "sums": "the sums"}


class FusedOp(CompiledOp):
    """An Op of batch normalization, with a kernel in C++.

    The names of inputs and outputs say what they are, and what has to be
    checked. The batch, `x`, is the first one. Subclasses with gradients of
    gradients have `_expression(inputs)`, which builds the outputs as plain
    expressions of inputs that are broadcastable along the axes.

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
    # layers, and compiled once. `rectify` is in the code: with kernels for
    # both, compiling would take twice as long.
    params_type = ParamsType(
        first=theano.scalar.int64, end=theano.scalar.int64,
        inplace=theano.scalar.bool, home=theano.scalar.int64)
    # The C++ function, called with the shape, the inputs and the outputs.
    kernel = ""
    # Position of the input that the first output may overwrite.
    overwrites = None
    # The kernels start no threads in other processes, which are its forks.
    home = os.getpid()

    def __init__(self, first, end, rectify=False, inplace=False):
        self.first = int(first)
        self.end = int(end)
        self.rectify = bool(rectify)
        self.inplace = bool(inplace)
        if inplace:
            self.destroy_map = {0: [self.overwrites]}

    def axes(self, ndim):
        """Return the axes that are normalized over."""
        return tuple(axis for axis in range(ndim)
                     if not self.first <= axis < self.end)

    def params(self):
        """Return the names of statistics and parameters among the inputs."""
        return [name for name in self.inputs
                if name not in (*_BATCHES, *_VECTORS, "epsilon")]

    @quiet_checks(test_values=True)
    def make_node(self, *inputs):
        inputs = [double(variable) if name == "epsilon"
                  else T.as_tensor_variable(variable)
                  for name, variable in zip(self.inputs, inputs)]
        self._check_types(inputs)
        return theano.Apply(self, inputs, [
            self._type(name, inputs)() for name in self.outputs])

    def _check_types(self, inputs):
        """Check the types of the inputs.

        Parameters need not be declared broadcastable along the axes: their
        sizes are compared when the Op is called.
        """
        x, name = inputs[0], type(self).__name__
        if x.dtype not in ("float32", "float64"):
            raise TypeError(f"{name}: the input must be float32 or float64, "
                            f"got {x.dtype}.")
        wanted = dict.fromkeys([*_BATCHES, *self.params()], (x.dtype, x.ndim))
        wanted.update(dict.fromkeys(_VECTORS, ("float64", 1)))
        for each, variable in zip(self.inputs, inputs):
            found = variable.dtype, variable.ndim
            if each != "epsilon" and found != wanted[each]:
                raise TypeError(
                    f"{name}: {each} must be {wanted[each][0]} with "
                    f"{wanted[each][1]} dimensions, to go with the input, but "
                    f"is {found[0]} with {found[1]}.")

    def _type(self, name, inputs):
        x = inputs[0]
        if name in _BATCHES:
            return x.type
        if name in _VECTORS:
            return T.dvector
        gradient_of = dict(zip(self.inputs, inputs)).get(name[1:])
        return (T.TensorType(x.dtype, self._pattern(x)) if gradient_of is None
                else gradient_of.type)

    def infer_shape(self, node, shapes):
        x = shapes[0]
        param = [x[axis] if self.first <= axis < self.end else 1
                 for axis in range(len(x))]
        channels = T.prod(x[self.first:self.end], dtype="int64")
        return [x if name in _BATCHES
                else (2 * channels + _VECTORS[name],) if name in _VECTORS
                else param for name in self.outputs]

    def _batch(self, x):
        return Batch(x, self.axes(x.ndim))

    def _pattern(self, x):
        return expressions.pattern(x, self.axes(x.ndim))

    # The code

    @property
    def code(self):
        """Check the inputs, prepare the outputs and call the kernel."""
        arrays = [name for name in self.inputs if name != "epsilon"]
        parts = ["home = {params}->home;",
                 "const int first = {params}->first, end = {params}->end;"]
        parts += ["Array %s(in_order({%s})); if (!%s) {fail}" % (
            name, name, name) for name in arrays]
        parts.append("const Shape shape = shape_of(x, first, end);")
        parts += ["if (!%s) {fail}" % condition for condition in [
            *map(self._check, arrays[1:]), *map(self._prepare, self.outputs)]]
        arguments = ", ".join(["shape"] + [
            self._argument(name) for name in self.inputs + self.outputs])
        return "\n".join(parts) + self._call().replace("...", arguments)

    def _call(self):
        return "%s<{T}, %s>(...);" % (
            self.kernel, "true" if self.rectify else "false")

    @staticmethod
    def _check(name):
        """Compare an input's shape with the batch's."""
        if name in _BATCHES:
            return 'is_like(%s, "%s", x)' % (name, _LABELS[name])
        if name in _VECTORS:
            return 'is_size(%s, "%s", 2 * shape.C + %d)' % (
                name, _LABELS[name], _VECTORS[name])
        return 'is_parameter(%s, "%s", x, first, end)' % (name, name)

    def _prepare(self, name):
        """Make an output an array of the right shape."""
        if name in _VECTORS:
            return "prepare_vector(&{%s}, 2 * shape.C + %d)" % (
                name, _VECTORS[name])
        if name not in _BATCHES:
            return "prepare_statistic(&{%s}, x, first, end)" % name
        new = "prepare_like(&{%s}, x)" % name
        if self.overwrites is None:
            return new
        return "({params}->inplace ? prepare_over(&{%s}, %s) : %s)" % (
            name, self.inputs[self.overwrites], new)

    def _argument(self, name):
        if name == "epsilon":
            return "*values<double>({epsilon})"
        return "values<%s>(%s)" % (
            "double" if name in _VECTORS else "{T}",
            name if name in self.inputs else "{%s}" % name)

    # Without the code

    def perform(self, node, inputs, output_storage, params=None):
        self._check_shapes(dict(zip(self.inputs, inputs)))
        super().perform(node, inputs, output_storage, params)

    def _check_shapes(self, inputs):
        """Compare the inputs' sizes with the batch's, as C++ does."""
        shape = inputs["x"].shape
        param = [size if self.first <= axis < self.end else 1
                 for axis, size in enumerate(shape)]
        for name in [*self.params(), *{"dy"}.intersection(inputs)]:
            sizes = zip(inputs[name].shape, shape if name == "dy" else param)
            for axis, (found, wanted) in enumerate(sizes):
                if found != wanted:
                    raise ValueError(
                        f"batch normalization: {_LABELS.get(name, name)} must "
                        f"be of size {wanted} along axis {axis}, to go with "
                        f"its input, but is of size {found}")

    # Gradients

    def R_op(self, inputs, eval_points):
        raise NotImplementedError(
            "theano.Rop does not know the fused Ops of batch normalization. "
            "Build the output within bnlasagne.plain_expressions().")

    def _plain_gradient(self, inputs, output_gradients):
        """Build the gradients of the plain expression.

        The inputs may depend on each other; as arguments they do not.
        """
        arguments = [_argument_like(variable) for variable in inputs]
        pattern, params = self._pattern(inputs[0]), self.params()
        aligned = [
            T.patternbroadcast(each, pattern) if name in params else each
            for name, each in zip(self.inputs, arguments)]
        known = OrderedDict(  # as Theano wants it
            (output, T.patternbroadcast(gradient, output.broadcastable))
            for output, gradient
            in zip(self._expression(aligned), output_gradients)
            if not _is_disconnected(gradient))
        gradients = theano.grad(
            None, arguments, known_grads=known, disconnected_inputs="ignore")
        return theano.clone(gradients, replace=dict(zip(arguments, inputs)))


def _argument_like(variable):
    """Return a new variable, with the test value of another if it has one."""
    argument = variable.type()
    if theano.config.compute_test_value != "off":
        with contextlib.suppress(AttributeError):
            argument.tag.test_value = theano.gof.op.get_test_value(variable)
    return argument


def _is_disconnected(gradient):
    return isinstance(gradient.type, DisconnectedType)


def _joined(*arrays):
    """Join all numbers of some arrays into a vector."""
    return np.concatenate([np.ravel(array) for array in arrays])


class _OfStatistics(FusedOp):
    """An Op whose outputs include the statistics of the batch."""

    def _gradient_of_statistics(self, x, statistics, gradients):
        """Return gradients through the mean and the standard deviation."""
        (mean, std), (dmean, dstd), terms = statistics, gradients, []
        count = T.cast(T.prod([x.shape[axis] for axis in self.axes(x.ndim)]),
                       x.dtype)
        if not _is_disconnected(dmean):
            terms.append(dmean)
        if not _is_disconnected(dstd):
            zero, one = (expressions.constant_like(i, x) for i in (0, 1))
            is_zero = T.eq(std, zero)
            terms.append(dstd * T.switch(
                is_zero, zero, (x - mean) / T.switch(is_zero, one, std)))
        return [term / count for term in terms]


class BatchNormalize(_OfStatistics):
    """Normalize a batch by its own statistics.

    Inputs: the batch, gamma, beta, epsilon. Outputs: the normalized batch,
    mean, standard deviation, and both as a vector of double precision: the
    means of all channels, then the standard deviations.
    """

    inputs = ["x", "gamma", "beta", "epsilon"]
    outputs = ["y", "mean", "std", "statistics"]
    kernel = "forward"

    def connection_pattern(self, node):
        return [[True, True, True, True], [True, False, False, False],
                [True, False, False, False], [True, False, False, True]]

    @quiet_checks(test_values=True)
    def L_op(self, inputs, outputs, output_gradients):
        x = inputs[0]
        _, mean, std, statistics = outputs
        dy, *others, _ = output_gradients
        if _is_disconnected(dy):
            gradients = [x.zeros_like(), dy, dy, dy]
        else:
            gradients = _gradients_of_normalized(self, inputs, dy, statistics)
        gradients[0] = sum(self._gradient_of_statistics(
            x, (mean, std), others), gradients[0])
        return gradients

    def compute(self, x, gamma, beta, epsilon):
        mean, std = fallback.statistics(x, self.axes(x.ndim))
        y = fallback.Standardized(x, mean, std, epsilon).normalized(
            gamma, beta, self.rectify)
        return y, mean, std, _joined(mean, std)


class BatchStatistics(_OfStatistics):
    """Find the statistics of a batch.

    Outputs: mean, standard deviation, both as a vector of double precision, as
    :class:`BatchNormalize` has it, and the moments as a vector: the number of
    values per channel, the means, and the sums of squared deviations. Only the
    first two have gradients.
    """

    inputs = ["x"]
    outputs = ["mean", "std", "statistics", "moments"]
    kernel = "find_statistics"

    def _call(self):
        return "find_statistics<{T}>(...);"

    def connection_pattern(self, node):
        return [[True, True, False, False]]

    @quiet_checks(test_values=True)
    def L_op(self, inputs, outputs, output_gradients):
        terms = self._gradient_of_statistics(
            inputs[0], outputs[:2], output_gradients[:2])
        return [sum(terms, inputs[0].zeros_like())]

    def compute(self, x):
        mean, std = fallback.statistics(x, self.axes(x.ndim))
        count = x.size // max(mean.size, 1)
        return (mean, std, _joined(mean, std),
                _joined(count, mean, count * np.square(std)))


class NormalizeBy(FusedOp):
    """Normalize a batch by its own statistics, which are known already.

    Inputs: those of :class:`BatchNormalize`, and the statistics as a vector.
    These depend on the batch; what goes through them is in the gradient with
    respect to the batch.
    """

    inputs = ["x", "gamma", "beta", "epsilon", "statistics"]
    outputs = ["y"]
    kernel = "forward_by"

    def connection_pattern(self, node):
        return [[True]] * 4 + [[False]]

    @quiet_checks(test_values=True)
    def L_op(self, inputs, outputs, output_gradients):
        *inputs, statistics = inputs
        return [*_gradients_of_normalized(self, inputs, output_gradients[0],
                                          statistics), DisconnectedType()()]

    def compute(self, x, gamma, beta, epsilon, statistics):
        mean, std = statistics.reshape((2,) + gamma.shape)
        return fallback.Standardized(x, mean, std, epsilon).normalized(
            gamma, beta, self.rectify),


def _gradients_of_normalized(op, inputs, dy, statistics):
    """Build gradients with respect to the batch, gamma, beta, epsilon."""
    op = BatchNormalizeGrad(op.first, op.end, op.rectify)
    gradients = op(*inputs, T.cast(dy, inputs[0].dtype), statistics)
    return [*gradients, grad_not_implemented(
        op, 3, inputs[3], "epsilon is taken to be a constant")]


class BatchNormalizeGrad(FusedOp):
    """Compute the gradient of :class:`BatchNormalize`.

    Inputs: those of `BatchNormalize`, the gradient with respect to its first
    output, which the in-place variant overwrites, and its last output.
    Outputs: the gradients with respect to the batch, gamma and beta.
    """

    inputs = ["x", "gamma", "beta", "epsilon", "dy", "statistics"]
    outputs = ["dx", "dgamma", "dbeta"]
    kernel = "backward"
    overwrites = 4

    def _expression(self, inputs):
        x, gamma, beta, epsilon, dy, _ = inputs
        y = expressions.normalize_batch(
            self._batch(x), gamma, beta, T.cast(epsilon, x.dtype))[0]
        if self.rectify:
            zero = expressions.constant_like(0, x)
            dy = T.switch(T.gt(y, zero), dy, zero)
        return theano.grad(None, [x, gamma, beta], known_grads={y: dy},
                           disconnected_inputs="ignore")

    def connection_pattern(self, node):
        # The statistics are those of the batch: what depends on them is in
        # the gradient with respect to the batch.
        return [[True] * 3] * 3 + [[False] * 3, [True] * 3, [False] * 3]

    @quiet_checks(test_values=True)
    def L_op(self, inputs, outputs, output_gradients):
        gradients = self._plain_gradient(inputs, output_gradients)
        for position in (3, 5):
            gradients[position] = DisconnectedType()()
        return gradients

    def standardized(self, x, gamma, beta, epsilon, dy, statistics):
        """Return the batch, and the gradient that reaches its values."""
        batch = fallback.Standardized(
            x, *statistics.reshape((2,) + gamma.shape), epsilon)
        return batch, batch.reaching(dy, gamma, beta) if self.rectify else dy

    def compute(self, x, gamma, *others):
        batch, dy = self.standardized(x, gamma, *others)
        sums, products = batch.gradient_sums(dy, self.axes(x.ndim))
        count = x.size / max(gamma.size, 1)
        return (batch.gradient(gamma, dy, count, sums, products),
                batch.by_gamma(products), sums)


class Normalize(FusedOp):
    """Normalize a batch by the given statistics.

    Inputs: the batch, which the in-place variant overwrites, mean, standard
    deviation, gamma, beta, epsilon. Output: the normalized batch.
    """

    inputs = ["x", "mean", "std", "gamma", "beta", "epsilon"]
    outputs = ["y"]
    kernel = "apply"
    overwrites = 0

    def _expression(self, inputs):
        x, *params, epsilon = inputs
        y = expressions.normalize(self._batch(x), *params,
                                  T.cast(epsilon, x.dtype))
        zero = expressions.constant_like(0, y)
        return [T.switch(T.lt(y, zero), zero, y) if self.rectify else y]

    @quiet_checks(test_values=True)
    def L_op(self, inputs, outputs, output_gradients):
        return self._plain_gradient(inputs, output_gradients)

    def compute(self, x, mean, std, gamma, beta, epsilon):
        return fallback.Standardized(x, mean, std, epsilon).normalized(
            gamma, beta, self.rectify),


class MoveAverage(CompiledOp):
    """Move a running average by a batch.

    Inputs: the average, the weight of the batch, the number of its values, and
    `n_statistics` statistics; see
    :func:`bnlasagne.kernels.dispatch.move_average`.
    """

    __props__ = ("n_statistics",)
    source = AVERAGES
    outputs = ["moved"]

    def __init__(self, n_statistics):
        self.n_statistics = n_statistics

    @property
    def inputs(self):
        return ["average", "alpha", "count", *self._statistics()]

    def _statistics(self):
        return [f"statistic{i}" for i in range(self.n_statistics)]

    def make_node(self, average, alpha, count, *statistics):
        like = [(statistic.dtype, statistic.ndim) for statistic in statistics]
        if (alpha.dtype, count.dtype) != ("float64", "int64") or (
                like != [(average.dtype, average.ndim)] * self.n_statistics):
            raise TypeError(
                "MoveAverage: alpha must be float64, the count int64, and the "
                f"{self.n_statistics} statistics like the average, "
                f"{average.dtype} with {average.ndim} dimensions.")
        return theano.Apply(self, [average, alpha, count, *statistics],
                            [average.type()])

    def infer_shape(self, node, shapes):
        return shapes[:1]

    def compute(self, average, alpha, count, *statistics):
        return fallback.move_average(average, alpha, count, statistics),

    @property
    def code(self):
        checked = "".join("""
        Array NAME(in_order({NAME}));
        if (!NAME || !is_like(NAME, "a batch's statistic", average)) {fail}
        usable = usable && all_finite(values<{T}>(NAME), size);
        """.replace("NAME", name) for name in self._statistics())
        return """
        Array average(in_order({average}));
        if (!average || !prepare_like(&{moved}, average)) {fail}
        const npy_intp size = PyArray_SIZE(average);
        bool usable = *values<npy_int64>({count}) >= LEAST_VALUES;
        """.replace("LEAST_VALUES", str(LEAST_VALUES)) + checked + """
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
