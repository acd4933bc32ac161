"""Exchange values between ranks in nodes of a Theano graph.

All ranks must compute these nodes in one order: see
:mod:`bnlasagne.parallel.order`.
"""

import copy
import itertools

import numpy as np
import theano
import theano.tensor as T
from theano.gof.graph import ancestors
from theano.tensor.basic import ShapeError

from ..kernels.moments import Moments

__all__ = [
    "AllReduce",
    "Average",
    "Collective",
    "JoinLists",
    "MergeMoments",
    "is_exchanged",
    "is_synchronized",
]

_numbers = itertools.count(1)


class Collective(theano.Op):
    """An Op in which all ranks take part.

    `what` is exchanged, for messages. `ordered` tells whether the last input
    and the last output are tokens. Subclasses have `_exchange(*inputs)`, which
    computes the values of the outputs.
    """

    __props__ = ("channel", "what", "ordered")
    # Each input from this one on has an output like it.
    first = 0
    # Whether gradients of the ranks meet in it.
    has_gradients = True

    def __init__(self, channel, what, ordered=False):
        self.channel = channel
        self.what = what
        self.ordered = ordered
        # Not among the props, so that Theano merges nodes that do the same.
        self.number = next(_numbers)

    def __str__(self):
        return f"{type(self).__name__}{{{self.what}}}"

    def in_order(self):
        """Return the same Op, with tokens."""
        op = copy.copy(self)
        op.ordered = True
        return op

    def make_node(self, *inputs):
        tokens = list(inputs[-1:]) if self.ordered else []
        values = [T.as_tensor_variable(variable)
                  for variable in inputs[:len(inputs) - len(tokens)]]
        outputs = [variable.type() for variable in values[self.first:]]
        return theano.Apply(self, values + tokens, outputs + [
            theano.gof.generic() for _ in tokens])

    def perform(self, node, inputs, output_storage):
        if not self.ordered:
            raise RuntimeError(
                f"The ranks cannot exchange {self.what} for Theano's test "
                "values, nor in a function that was compiled without "
                "optimizations: only these give it a place in the order of "
                "messages. Compile it with mode='FAST_RUN' or 'FAST_COMPILE', "
                "and leave compute_test_value='off'.")
        values = self._exchange(*inputs[:-1])
        for storage, value, variable in zip(output_storage, values,
                                            node.outputs):
            storage[0] = np.asarray(value, variable.dtype)
        output_storage[-1][0] = True

    def describe(self, node):
        """Describe what a node without tokens exchanges, in a line."""
        return self.what

    def do_constant_folding(self, node):
        # Constants are folded while a rank compiles, on its own.
        return False

    def infer_shape(self, node, shapes):
        # A token has the shape None.
        return shapes[self.first:]


class AllReduce(Collective):
    """Add up the arrays of all ranks."""

    def _exchange(self, array):
        return [self.channel.sum(np.ascontiguousarray(array))]

    def grad(self, inputs, output_gradients):
        # The array of one rank counts in the losses of all ranks.
        return [AllReduce(self.channel, "the gradient of " + self.what)(
            output_gradients[0])]


class MergeMoments(Collective):
    """Merge the moments of all ranks' batches.

    They are vectors; see :meth:`bnlasagne.Moments.to_vector`.
    """

    def _exchange(self, vector):
        if not vector[0]:
            # Without any values, the mean is not a number.
            vector = np.zeros_like(vector)
        return [self.channel.merge(vector, merge)]

    def L_op(self, inputs, outputs, output_gradients):
        what = "the gradient of " + self.what
        gradient = Moments.from_vector(
            AllReduce(self.channel, what)(output_gradients[0]))
        part, whole = map(Moments.from_vector, (inputs[0], outputs[0]))
        deviation = T.switch(T.gt(part.count, 0), part.mean - whole.mean, 0)
        by_mean = (part.count / T.maximum(whole.count, 1) * gradient.mean
                   + 2 * part.count * deviation * gradient.m2)
        return [T.concatenate([T.zeros((1,)), by_mean, gradient.m2])]


class JoinLists(Collective):
    """Join the arrays of all ranks along the first axis, rank after rank."""

    has_gradients = False

    def _exchange(self, *arrays):
        return [np.concatenate(parts) for parts
                in zip(*self.channel.gather(arrays))]

    def infer_shape(self, node, shapes):
        # How long the lists of other ranks are is not known.
        raise ShapeError()

    def grad(self, inputs, output_gradients):
        return [theano.gradient.grad_not_implemented(self, i, variable)
                for i, variable in enumerate(inputs)]


def merge(lower, upper):
    """Merge two vectors of moments."""
    return Moments.from_vector(lower).merge(
        Moments.from_vector(upper)).to_vector()


class Average(Collective):
    """Average arrays over the ranks, weighted, all in one message.

    Inputs: the weight of this rank, and arrays, of which the first
    `n_weighted` are multiplied by it already. A rank of weight 0 counts for
    nothing, whatever its arrays hold. With `only_even`, weights that differ
    are an error.
    """

    __props__ = Collective.__props__ + ("n_weighted", "only_even")
    first = 1

    def __init__(self, channel, what, n_weighted, only_even):
        super().__init__(channel, what)
        self.n_weighted = n_weighted
        self.only_even = only_even

    def _exchange(self, weight, *arrays):
        size = self.channel.size
        total = self.channel.sum(self._message(float(weight), arrays))
        weights = total[:size].astype(np.float64)
        self._check(weights)
        total[size:] /= weights.sum()
        ends = size + np.cumsum([array.size for array in arrays])
        return [average.reshape(array.shape) for average, array in zip(
            np.split(total, [size, *ends])[1:], arrays)]

    def _message(self, weight, arrays):
        """Pack a place for the weight of each rank, and the arrays."""
        # By the types alone: by values, it would depend on the rank.
        dtype = np.result_type(np.float32, *[array.dtype for array in arrays])
        weights = np.zeros(self.channel.size, dtype)
        weights[self.channel.rank] = weight
        parts = [weights]
        for number, array in enumerate(map(np.ravel, arrays)):
            if not weight:
                array = np.zeros_like(array)
            elif number >= self.n_weighted:
                array = array * weight
            parts.append(array)
        return np.concatenate(parts)

    def _check(self, weights):
        if not weights.sum() > 0:
            raise ValueError(
                f"The ranks cannot average {self.what}: there are no examples "
                f"on any rank, the sizes add up to {weights.sum()}.")
        if self.only_even and (weights != weights[0]).any():
            sizes = ", ".join(f"{weight:g}" for weight in weights)
            raise ValueError(
                "average_gradients(): the ranks' parts of the batch differ in "
                f"size ({sizes}), and the network's batch normalization is "
                "synchronized. Then the gradient on one rank depends on the "
                "losses of the other ranks, which must be weighted "
                "beforehand: pass the loss in the place of gradients.")

    def describe(self, node):
        kinds = [f"{variable.dtype} of {variable.ndim} dimensions"
                 for variable in node.outputs]
        batches = "even batches" if self.only_even else "weighted"
        return f"{self.what} ({batches}): {', '.join(kinds)}"

    def grad(self, inputs, output_gradients):
        return [theano.gradient.grad_not_implemented(self, i, variable)
                for i, variable in enumerate(inputs)]


def is_exchanged(variables):
    """Tell whether ranks exchange anything to compute variables."""
    return any(_exchanged_in(variables))


def is_synchronized(variables):
    """Tell whether gradients of variables depend on those of other ranks."""
    return any(op.has_gradients for op in _exchanged_in(variables))


def _exchanged_in(variables):
    return (variable.owner.op for variable in ancestors(variables)
            if variable.owner and isinstance(variable.owner.op, Collective))
