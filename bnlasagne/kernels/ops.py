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
from .batch import Batch, n_virtual_batches
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
    op = BatchNormalize(blocks.layout, rectify)
    outputs = op(blocks.x(), *blocks.params(gamma, beta), epsilon,
                 *blocks.mask())
    return (*map(blocks.back, outputs[:3]), _count(batch, outputs[4:]))


def normalize(batch, mean, std, gamma, beta, epsilon, rectify=False):
    """Normalize a batch by the given statistics."""
    blocks = Blocks(batch._replace(virtual_size=None))
    op = Normalize(blocks.layout, rectify)
    return blocks.back(op(
        blocks.x(), blocks.param(mean, 0), blocks.param(std, 1),
        *blocks.params(gamma, beta), epsilon, *blocks.mask()))


def find_statistics(batch):
    """Find the statistics of a batch by :class:`BatchStatistics`.

    Returns mean, standard deviation, their count, both as a vector, and the
    moments as a vector.
    """
    blocks = Blocks(batch)
    mean, std, *vectors = BatchStatistics(blocks.layout)(
        blocks.x(), *blocks.mask())
    return (blocks.back(mean), blocks.back(std), _count(batch, vectors[2:]),
            *vectors[:2])


def _count(batch, counts):
    """Return the count; `counts` holds an Op's output of it, if it has one."""
    if not counts:
        return batch.size()
    return counts[0] if batch.virtual_size else counts[0][0]


def normalize_by(op, batch, statistics, gamma, beta, epsilon, rectify=False):
    """Normalize a batch by its own statistics, which are known already.

    `op` makes the Op from `layout` and `rectify`, as :class:`NormalizeBy`
    does. `statistics` is the vector of :class:`BatchStatistics`. The batch has
    no virtual batches.
    """
    blocks = Blocks(batch)
    op = op(blocks.layout, rectify)
    return blocks.back(op(blocks.x(), *blocks.params(gamma, beta), epsilon,
                          statistics, *blocks.mask()))


@quiet_checks(test_values=True)
def double(scalar):
    """Return a scalar in double precision, whatever floatX is."""
    if not isinstance(scalar, theano.Variable):
        return T.constant(np.asarray(scalar, "float64"))
    return T.cast(scalar, "float64")


# Inputs and outputs of these names are like the batch. Those in neither of the
# two are parameters, or statistics of the batch's own type.
_BATCHES = "x", "y", "dx", "dy"
# Vectors of double precision: for each virtual batch, two numbers for each
# channel, and so many more.
_VECTORS = {"statistics": 0, "sums": 1, "moments": 1}
# Outputs of virtual batches, one after the other along the first axis.
_STATISTICS = "mean", "std"
# Of neither.
_OTHERS = "epsilon", "mask", "counts"
# In messages.
_LABELS = {"dy": "the output's gradient", "statistics": "the statistics",
           "sums": "the sums", "mask": "the mask"}


class FusedOp(CompiledOp):
    """An Op of batch normalization, with a kernel in C++.

    The names of inputs and outputs say what they are, and what has to be
    checked. The batch, `x`, is the first one. Subclasses with gradients of
    gradients have `_expression(inputs)`, which builds the outputs as plain
    expressions of inputs that are broadcastable along the axes.

    Parameters
    ----------
    layout : bnlasagne.kernels.blocks.Layout
    rectify : bool
        Whether values below zero are replaced by zero.
    inplace : bool
        Whether the output overwrites an input. Not to be used in graphs that
        users build; an optimization takes care of it.
    """

    __props__ = ("layout", "rectify", "inplace")
    # The C++ code gets them when it is called, so that it is the same for all
    # layers, and compiled once. `rectify` and the mask are in the code: with
    # kernels for both, compiling would take twice as long.
    params_type = ParamsType(
        first=theano.scalar.int64, end=theano.scalar.int64,
        virtual_size=theano.scalar.int64, inplace=theano.scalar.bool,
        home=theano.scalar.int64)
    # The C++ function, called with the batch, the inputs and the outputs.
    kernel = ""
    # Inputs and outputs, without the mask and the counts.
    takes = gives = ()
    # Whether there is an output of counts, if the shape does not tell them.
    counts = False
    # For each of the inputs, with which outputs it is connected; None for all.
    connections = None
    # Position of the input that the first output may overwrite.
    overwrites = None
    # The kernels start no threads in other processes, which are its forks.
    home = os.getpid()
    # The mask may be of half precision.
    _f16_ok = True

    def __init__(self, layout, rectify=False, inplace=False):
        self.layout = layout
        self.first, self.end, self.masked, self.virtual_size = layout
        self.rectify = bool(rectify)
        self.inplace = bool(inplace)
        if inplace:
            self.destroy_map = {0: [self.overwrites]}

    @property
    def inputs(self):
        return [*self.takes, *["mask"] * self.masked]

    @property
    def outputs(self):
        has_counts = self.counts and (self.masked or self.virtual_size > 0)
        return [*self.gives, *["counts"] * has_counts]

    def axes(self, ndim):
        """Return the axes that are normalized over."""
        return tuple(axis for axis in range(ndim)
                     if not self.first <= axis < self.end)

    def params(self):
        """Return the names of statistics and parameters among the inputs."""
        return [name for name in self.inputs
                if name not in (*_BATCHES, *_VECTORS, *_OTHERS)]

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
            if each == "mask":
                wanted[each] = variable.dtype, x.ndim
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
        if name == "counts":
            return T.lvector
        if name in _STATISTICS:
            pattern = list(self._pattern(x))
            if self.virtual_size:
                pattern[0] = False
            return T.TensorType(x.dtype, pattern)
        return dict(zip(self.inputs, inputs))[name[1:]].type

    def infer_shape(self, node, shapes):
        x, number = shapes[0], 1
        if self.virtual_size:
            number = n_virtual_batches(
                x[0], self.virtual_size, T.prod(
                    [x[axis] for axis in self.axes(len(x))[1:]],
                    dtype="int64"), T.maximum)
        channels = T.prod(x[self.first:self.end], dtype="int64")
        return [self._shape(name, x, number, channels)
                for name in self.outputs]

    def _shape(self, name, x, number, channels):
        """Return the shape of an output, from the shape of the batch."""
        if name in _BATCHES:
            return x
        if name in _VECTORS:
            return number * (2 * channels + _VECTORS[name]),
        if name == "counts":
            return number,
        shape = [x[axis] if self.first <= axis < self.end else 1
                 for axis in range(len(x))]
        if self.virtual_size and name in _STATISTICS:
            shape[0] = number
        return shape

    def _batch(self, inputs):
        """Describe the batch among inputs of the Op."""
        x = inputs[0]
        return Batch(x, self.axes(x.ndim),
                     inputs[-1] if self.masked else None,
                     self.virtual_size or None)

    def _pattern(self, x):
        return expressions.pattern(x, self.axes(x.ndim))

    # The code

    @property
    def code(self):
        """Check the inputs, prepare the outputs and call the kernel."""
        arrays = [name for name in self.inputs if name not in _OTHERS]
        parts = ["home = {params}->home;",
                 "const int first = {params}->first, end = {params}->end;"]
        parts += ["Array %s(in_order({%s})); if (!%s) {fail}" % (
            name, name, name) for name in arrays]
        if self.masked:
            parts.append("Array mask(truth({mask}, x, first, end)); "
                         "if (!mask) {fail}")
        parts.append("const Batch batch = batch_of(x, %s, first, end, "
                     "{params}->virtual_size);" % (
                         "mask" if self.masked else "NULL"))
        parts += ["if (!%s) {fail}" % condition for condition in [
            *map(self._check, arrays[1:]), *map(self._prepare, self.outputs)]]
        names = [*self.takes, *self.gives, *["counts"] * self.counts]
        arguments = ", ".join(["batch", *map(self._argument, names)])
        return "\n".join(parts) + self._call().replace("...", arguments)

    def _call(self):
        options = [str(option).lower()
                   for option in (self.rectify, self.masked)]
        return "%s<{T}, %s>(...);" % (self.kernel, ", ".join(options))

    @staticmethod
    def _check(name):
        """Compare an input's shape with the batch's."""
        if name in _BATCHES:
            return 'is_like(%s, "%s", x)' % (name, _LABELS[name])
        if name in _VECTORS:
            return 'is_size(%s, "%s", %s)' % (
                name, _LABELS[name], _size(name))
        return 'is_parameter(%s, "%s", x, first, end)' % (name, name)

    def _prepare(self, name):
        """Make an output an array of the right shape."""
        if name in _VECTORS:
            return "prepare_vector(&{%s}, %s, NPY_FLOAT64)" % (
                name, _size(name))
        if name == "counts":
            return "prepare_vector(&{counts}, batch.number, NPY_INT64)"
        if name not in _BATCHES:
            return "prepare_statistic(&{%s}, x, first, end, %s)" % (
                name, "batch.number" if name in _STATISTICS else "1")
        new = "prepare_like(&{%s}, x)" % name
        if self.overwrites is None:
            return new
        return "({params}->inplace ? prepare_over(&{%s}, %s) : %s)" % (
            name, self.inputs[self.overwrites], new)

    def _argument(self, name):
        if name == "epsilon":
            return "*values<double>({epsilon})"
        if name == "counts":
            return ("values<npy_int64>({counts})" if name in self.outputs
                    else "NULL")
        return "values<%s>(%s)" % (
            "double" if name in _VECTORS else "{T}",
            name if name in self.inputs else "{%s}" % name)

    # Without the code

    def perform(self, node, inputs, output_storage, params=None):
        self._check_shapes(dict(zip(self.inputs, inputs)))
        if self.masked:
            mask = inputs[-1].astype(bool)
            inputs = [*(fallback.only_counted(value, mask)
                        if name in _BATCHES else value
                        for name, value in zip(self.takes, inputs)), mask]
        super().perform(node, inputs, output_storage, params)

    def virtual_batches(self, x, mask, *others):
        """List the values of each virtual batch, its mask, and others."""
        slices = fallback.virtual_batches(
            x, self.axes(x.ndim), self.virtual_size)
        if mask is not None and self.virtual_size:
            mask = np.broadcast_to(mask, (len(x), *mask.shape[1:]))
        return [[None if each is None else each[own]
                 for each in (x, mask, *others)] for own in slices]

    def _check_shapes(self, inputs):
        """Compare the inputs' sizes with the batch's, as C++ does."""
        shape = inputs["x"].shape
        param = [size if self.first <= axis < self.end else 1
                 for axis, size in enumerate(shape)]
        mask = [1 if self.first <= axis < self.end else size
                for axis, size in enumerate(shape)]
        wanted = {"dy": shape, "mask": mask}
        for name in [*self.params(), *wanted.keys() & inputs.keys()]:
            sizes = zip(inputs[name].shape, wanted.get(name, param))
            for axis, (found, size) in enumerate(sizes):
                if found != size and not (name == "mask" and found == 1):
                    raise _mismatch(_LABELS.get(name, name), axis, size, found)

    # Gradients

    def connection_pattern(self, node):
        pattern = self.connections or [
            [True] * len(self.gives) for _ in self.takes]
        none = [[False] * len(self.gives)] * self.masked
        return [row + [False] * (len(self.outputs) - len(self.gives))
                for row in pattern + none]

    def R_op(self, inputs, eval_points):
        raise NotImplementedError(
            "theano.Rop does not know the fused Ops of batch normalization. "
            "Build the output within bnlasagne.plain_expressions().")

    def _plain_gradient(self, inputs, output_gradients):
        """Build the gradients of the plain expression.

        The inputs may depend on each other; as arguments they do not. The mask
        has no gradient.
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
            None, arguments[:len(self.takes)], known_grads=known,
            disconnected_inputs="ignore")
        gradients = theano.clone(gradients,
                                 replace=dict(zip(arguments, inputs)))
        return gradients + self._gradient_of_mask()

    def _gradient_of_mask(self):
        return [DisconnectedType()()] * self.masked


def _mismatch(name, axis, wanted, found):
    """Return the error about an array that is of another size."""
    return ValueError(
        f"batch normalization: {name} must be of size {wanted} along axis "
        f"{axis}, to go with its input, but is of size {found}")


def _size(name):
    """Return C++ code for the size of a vector."""
    size = "2 * batch.shape.C + %d" % _VECTORS[name]
    return "batch.number * (%s)" % size


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

    counts = True

    def _gradient_of_statistics(self, inputs, outputs, gradients):
        """Return gradients through the mean and the standard deviation."""
        batch, of_each = self._batch(inputs), [*outputs, *gradients]
        count = T.maximum(expressions.count(batch), 1)
        if self.virtual_size:
            own = expressions.virtual_batch_of_each(batch)
            of_each = [each if _is_disconnected(each) else each[own]
                       for each in of_each]
            count = count[own].dimshuffle(0, *["x"] * (batch.x.ndim - 1))
        mean, std, dmean, dstd = of_each
        terms, x = [], expressions.only_counted(batch.x, batch)
        if not _is_disconnected(dmean):
            terms.append(dmean)
        if not _is_disconnected(dstd):
            zero, one = (expressions.constant_like(i, x) for i in (0, 1))
            is_zero = T.eq(std, zero)
            terms.append(dstd * T.switch(
                is_zero, zero, (x - mean) / T.switch(is_zero, one, std)))
        return [expressions.only_counted(term / T.cast(count, x.dtype), batch)
                for term in terms]


class BatchNormalize(_OfStatistics):
    """Normalize a batch by its own statistics.

    Inputs: the batch, gamma, beta, epsilon. Outputs: the normalized batch,
    mean, standard deviation, and both as a vector of double precision: the
    means of all channels, then the standard deviations. With a mask or virtual
    batches, the last output are their counts.
    """

    takes = ["x", "gamma", "beta", "epsilon"]
    gives = ["y", "mean", "std", "statistics"]
    kernel = "forward"
    connections = [[True, True, True, True], [True, False, False, False],
                   [True, False, False, False], [True, False, False, True]]

    @quiet_checks(test_values=True)
    def L_op(self, inputs, outputs, output_gradients):
        dy = output_gradients[0]
        if _is_disconnected(dy):
            gradients = [inputs[0].zeros_like(), dy, dy, dy,
                         *self._gradient_of_mask()]
        else:
            gradients = _gradients_of_normalized(
                self, {**dict(zip(self.inputs, inputs)),
                       "statistics": outputs[3]}, dy)
        gradients[0] = sum(self._gradient_of_statistics(
            inputs, outputs[1:3], output_gradients[1:3]), gradients[0])
        return gradients

    def compute(self, x, gamma, beta, epsilon, mask=None):
        found = []
        for values, counted in self.virtual_batches(x, mask):
            mean, std, count = fallback.statistics(
                values, self.axes(x.ndim), counted)
            y = fallback.Standardized(values, mean, std, epsilon, counted)
            found.append((y.normalized(gamma, beta, self.rectify), mean, std,
                          _joined(mean, std), [count]))
        return map(np.concatenate, zip(*found))


class BatchStatistics(_OfStatistics):
    """Find the statistics of a batch.

    Outputs: mean, standard deviation, both as a vector of double precision, as
    :class:`BatchNormalize` has it, and the moments as a vector: the number of
    values per channel, the means, and the sums of squared deviations. Only the
    first two have gradients. Counts are those of :class:`BatchNormalize`.
    """

    takes = ["x"]
    gives = ["mean", "std", "statistics", "moments"]
    kernel = "find_statistics"
    connections = [[True, True, False, False]]

    def _call(self):
        return "find_statistics<{T}, %s>(...);" % str(self.masked).lower()

    @quiet_checks(test_values=True)
    def L_op(self, inputs, outputs, output_gradients):
        terms = self._gradient_of_statistics(
            inputs, outputs[:2], output_gradients[:2])
        return [sum(terms, inputs[0].zeros_like()), *self._gradient_of_mask()]

    def compute(self, x, mask=None):
        found = []
        for values, counted in self.virtual_batches(x, mask):
            mean, std, count = fallback.statistics(
                values, self.axes(x.ndim), counted)
            found.append((mean, std, _joined(mean, std), _joined(
                count, mean, count * np.square(std)), [count]))
        return map(np.concatenate, zip(*found))


class NormalizeBy(FusedOp):
    """Normalize a batch by its own statistics, which are known already.

    Inputs: those of :class:`BatchNormalize`, and the statistics as a vector.
    These depend on the batch; what goes through them is in the gradient with
    respect to the batch.
    """

    takes = ["x", "gamma", "beta", "epsilon", "statistics"]
    gives = ["y"]
    kernel = "forward_by"
    connections = [[True]] * 4 + [[False]]

    @quiet_checks(test_values=True)
    def L_op(self, inputs, outputs, output_gradients):
        gradients = _gradients_of_normalized(
            self, dict(zip(self.inputs, inputs)), output_gradients[0])
        gradients.insert(4, DisconnectedType()())
        return gradients

    def compute(self, x, gamma, beta, epsilon, statistics, mask=None):
        mean, std = statistics.reshape((2,) + gamma.shape)
        return fallback.Standardized(x, mean, std, epsilon, mask).normalized(
            gamma, beta, self.rectify),


def _gradients_of_normalized(op, inputs, dy):
    """Build gradients by the batch, gamma, beta, epsilon and the mask.

    The inputs of the Op and the statistics have their names.
    """
    why = "epsilon is taken to be a constant"
    of_epsilon = grad_not_implemented(op, 3, inputs["epsilon"], why)
    gradient = BatchNormalizeGrad(op.layout, op.rectify)
    inputs = {**inputs, "dy": T.cast(dy, inputs["x"].dtype)}
    return [*gradient(*(inputs[name] for name in gradient.inputs)),
            of_epsilon, *op._gradient_of_mask()]


class BatchNormalizeGrad(FusedOp):
    """Compute the gradient of :class:`BatchNormalize`.

    Inputs: those of `BatchNormalize`, the gradient with respect to its first
    output, which the in-place variant overwrites, and its last output.
    Outputs: the gradients with respect to the batch, gamma and beta.
    """

    takes = ["x", "gamma", "beta", "epsilon", "dy", "statistics"]
    gives = ["dx", "dgamma", "dbeta"]
    kernel = "backward"
    # The statistics are those of the batch: what depends on them is in the
    # gradient with respect to the batch.
    connections = [[True] * 3] * 3 + [[False] * 3, [True] * 3, [False] * 3]
    overwrites = 4

    def _expression(self, inputs):
        x, gamma, beta, epsilon, dy = inputs[:5]
        y = expressions.normalize_batch(
            self._batch(inputs), gamma, beta, T.cast(epsilon, x.dtype))[0]
        if self.rectify:
            zero = expressions.constant_like(0, x)
            dy = T.switch(T.gt(y, zero), dy, zero)
        return theano.grad(None, [x, gamma, beta], known_grads={y: dy},
                           disconnected_inputs="ignore")

    @quiet_checks(test_values=True)
    def L_op(self, inputs, outputs, output_gradients):
        gradients = self._plain_gradient(inputs, output_gradients)
        for position in (3, 5):
            gradients[position] = DisconnectedType()()
        return gradients

    def standardized(self, x, gamma, beta, epsilon, dy, statistics, mask=None):
        """Return the batch, and the gradient that reaches its values."""
        batch = fallback.Standardized(
            x, *statistics.reshape((2,) + gamma.shape), epsilon, mask)
        return batch, batch.reaching(dy, gamma, beta) if self.rectify else dy

    def compute(self, x, gamma, beta, epsilon, dy, statistics, mask=None):
        axes, found = self.axes(x.ndim), []
        batches = self.virtual_batches(x, mask, dy)
        vectors = statistics.reshape(len(batches), 2 * gamma.size)
        for (values, counted, reaching), vector in zip(batches, vectors):
            batch, reaching = self.standardized(
                values, gamma, beta, epsilon, reaching, vector, counted)
            sums, products = batch.gradient_sums(reaching, axes)
            count = fallback.count(values, axes, counted)
            found.append((
                batch.gradient(gamma, reaching, count, sums, products),
                batch.by_gamma(products), sums))
        dx, *of_params = zip(*found)
        return [np.concatenate(dx), *(sum(each) for each in of_params)]


class Normalize(FusedOp):
    """Normalize a batch by the given statistics.

    Inputs: the batch, which the in-place variant overwrites, mean, standard
    deviation, gamma, beta, epsilon. Output: the normalized batch.
    """

    takes = ["x", "mean", "std", "gamma", "beta", "epsilon"]
    gives = ["y"]
    kernel = "apply"
    overwrites = 0

    def _expression(self, inputs):
        x, *params, epsilon = inputs[:6]
        y = expressions.normalize(self._batch(inputs), *params,
                                  T.cast(epsilon, x.dtype))
        zero = expressions.constant_like(0, y)
        return [T.switch(T.lt(y, zero), zero, y) if self.rectify else y]

    @quiet_checks(test_values=True)
    def L_op(self, inputs, outputs, output_gradients):
        return self._plain_gradient(inputs, output_gradients)

    def compute(self, x, mean, std, gamma, beta, epsilon, mask=None):
        return fallback.Standardized(x, mean, std, epsilon, mask).normalized(
            gamma, beta, self.rectify),


class MoveAverage(CompiledOp):
    """Move a running average by a batch.

    Inputs: the average, the weight of the batch, the number of its values, and
    `n_statistics` statistics; see
    :func:`bnlasagne.kernels.dispatch.move_average`. If the number of values is
    a vector, statistics are those of virtual batches along the first axis.
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
        wanted = [(average.dtype, average.ndim)] * self.n_statistics
        if like != wanted or count.ndim > 1 or (
                alpha.dtype, count.dtype) != ("float64", "int64"):
            raise TypeError(
                "MoveAverage: alpha must be float64, the count an int64 "
                "scalar or vector, and the "
                f"{self.n_statistics} statistics like the average, "
                f"{average.dtype} with {average.ndim} dimensions.")
        return theano.Apply(self, [average, alpha, count, *statistics],
                            [average.type()])

    def infer_shape(self, node, shapes):
        return shapes[:1]

    def compute(self, average, alpha, count, *statistics):
        wanted = [size * (1 if axis else np.size(count))
                  for axis, size in enumerate(average.shape)]
        for statistic in statistics:
            for axis, sizes in enumerate(zip(wanted, statistic.shape)):
                if sizes[0] != sizes[1]:
                    raise _mismatch("a batch's statistic", axis, *sizes)
        return fallback.move_average(average, alpha, count, statistics),

    @property
    def code(self):
        names = self._statistics()
        checked = "".join("""
        Array NAME(in_order({NAME}));
        if (!NAME || !is_statistic(NAME, average, batches)) {fail}
        """.replace("NAME", name) for name in names)
        arrays = ", ".join("values<{T}>(%s)" % name for name in names)
        return """
        Array average(in_order({average})), counts(in_order({count}));
        if (!average || !counts || !prepare_like(&{moved}, average)) {fail}
        const npy_intp batches = PyArray_SIZE(counts);
        """ + checked + """
        const {T}* const statistics[] = {ARRAYS};
        move_average(values<{T}>(average), values<npy_int64>(counts), batches,
                     statistics, N, *values<double>({alpha}),
                     PyArray_SIZE(average), values<{T}>({moved}));
        """.replace("ARRAYS", arrays).replace("N,", "%d," % len(names))


@theano.gof.local_optimizer([FusedOp], inplace=True)
def _local_inplace(node):
    """Let outputs overwrite an input that nothing else needs."""
    op = node.op
    if not isinstance(op, FusedOp) or op.overwrites is None or op.inplace:
        return False
    inplace = type(op)(op.layout, op.rectify, inplace=True)
    return inplace(*node.inputs, return_list=True)


# Where Theano makes its own Ops in-place.
theano.compile.optdb.register(
    "bnlasagne_inplace", in2out(_local_inplace), 75, "fast_run", "inplace")
