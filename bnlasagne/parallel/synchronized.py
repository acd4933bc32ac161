"""Normalize by the statistics of a batch of which each rank has a part.

Each rank has a part of the batch. It makes one pass over its part, merges what
it found with what the other ranks found, and makes a second pass. The gradient
takes two passes as well:

====================  ==================  =========================
first pass            message             second pass
====================  ==================  =========================
`BatchStatistics`     `MergeMoments`      `NormalizePart`
`FindGradientSums`    `AllReduce`         `GradientBySums`
====================  ==================  =========================

A rank has the gradients with respect to gamma and beta by its own part, as it
has those of all other parameters.

Virtual batches are each on one rank, and take no messages. Only their
statistics do, where they move running averages.
"""

import functools

import numpy as np
import theano.tensor as T
from theano.gradient import DisconnectedType, grad_not_implemented

from ..kernels import dispatch, expressions, fallback, ops
from ..kernels.moments import Moments
from ..theano_tools.quiet_checks import quiet_checks
from .collectives import AllReduce, JoinLists, MergeMoments

__all__ = ["normalize_batch", "statistics"]


@quiet_checks(test_values=True)
def statistics(batch, channel, name):
    """Find the statistics of a batch of which each rank has a part.

    `batch` is this rank's part; all of the batch if `channel` is None. `name`
    is what is normalized, for messages. Returns mean, standard deviation and
    number of values, as :func:`bnlasagne.kernels.dispatch.batch_statistics`
    does, alike on all ranks.
    """
    if channel is None or batch.virtual_size:
        return _of_virtual_batches(
            dispatch.batch_statistics(batch), channel, name)
    moments = dispatch.find_moments(batch)
    return _of_all_ranks(moments, batch, channel, name)[1:]


@quiet_checks(test_values=True)
def normalize_batch(batch, gamma, beta, epsilon, rectify, correction, channel,
                    name):
    """Normalize a part of a batch by the statistics of all of it.

    See :func:`bnlasagne.kernels.dispatch.normalize_batch`, and
    :func:`statistics` for `channel` and `name`.
    """
    if channel is None or batch.virtual_size:
        output, *found = dispatch.normalize_batch(
            batch, gamma, beta, epsilon, rectify, correction)
        return (output, *_of_virtual_batches(found, channel, name))
    moments = dispatch.find_moments(batch, gamma, beta)
    vector, *found = _of_all_ranks(moments, batch, channel, name)
    if correction is not None:
        gamma, beta = correction(*found[:2], gamma, beta)
    op = functools.partial(NormalizePart, channel=channel,
                           what=_MOMENTS_OF + name)
    output = dispatch.normalize_by(op, batch, vector, gamma, beta, epsilon,
                                   rectify)
    return (output, *found)


_MOMENTS_OF = "the moments of "


def _of_virtual_batches(found, channel, name):
    """Return the statistics of all ranks' virtual batches, rank after rank.

    Each rank normalizes by its own; running averages follow all of them.
    Without a channel, there are no others.
    """
    if channel is None:
        return found
    return JoinLists(channel, "the statistics of the virtual batches of "
                     + name)(*found, return_list=True)


def _of_all_ranks(moments, batch, channel, name):
    """Return statistics as a vector, mean, standard deviation and count."""
    moments = Moments.from_vector(
        MergeMoments(channel, _MOMENTS_OF + name)(moments))
    # Positions that count there may be none.
    std = expressions.safe_sqrt(moments.m2 / T.maximum(moments.count, 1))
    vector = T.concatenate([moments.mean, std])
    mean, std = expressions.in_shape(T.cast(vector, batch.x.dtype), batch)
    return vector, mean, std, T.cast(moments.count, "int64")


class NormalizePart(ops.NormalizeBy):
    """Normalize a rank's part by the statistics of the whole batch.

    `what` is what its gradient is of, for messages.
    """

    __props__ = ops.NormalizeBy.__props__ + ("channel", "what")

    def __init__(self, layout, rectify, channel, what):
        super().__init__(layout, rectify)
        self.channel = channel
        self.what = what

    @quiet_checks(test_values=True)
    def L_op(self, inputs, outputs, output_gradients):
        names = dict(zip(self.inputs, inputs))
        names["dy"] = T.cast(output_gradients[0], inputs[0].dtype)

        def apply(op):
            op = op(self.layout, self.rectify)
            return op(*(names[name] for name in op.inputs))

        sums, dgamma, dbeta = apply(FindGradientSums)
        what = "the sums for the gradient of " + self.what
        names["sums"] = AllReduce(self.channel, what)(sums)
        dx = apply(GradientBySums)
        return [dx, dgamma, dbeta, grad_not_implemented(
            self, 3, inputs[3], "epsilon is taken to be a constant"),
            *(DisconnectedType()() for _ in inputs[4:])]


class _Gradient(ops.FusedOp):
    """A part of the gradient of :class:`NormalizePart`."""

    takes = ops.BatchNormalizeGrad.takes
    standardized = ops.BatchNormalizeGrad.standardized

    def L_op(self, inputs, outputs, output_gradients):
        why = ("synchronized batch normalization has gradients of gradients "
               "only within bnlasagne.plain_expressions()")
        gradients = [grad_not_implemented(self, i, variable, why)
                     for i, variable in enumerate(inputs)]
        return gradients[:len(self.takes)] + self._gradient_of_mask()


class FindGradientSums(_Gradient):
    """Find what the gradient wants to know of a rank's part.

    Outputs: a vector with the number of values per channel, for each channel
    the sum of the gradient that reaches the normalized values, and then that
    of its product with their deviations; and the gradients with respect to
    gamma and beta.
    """

    gives = ["sums", "dgamma", "dbeta"]
    kernel = "find_gradient_sums"

    def compute(self, x, gamma, *others):
        batch, dy = self.standardized(x, gamma, *others)
        axes = self.axes(x.ndim)
        sums, products = batch.gradient_sums(dy, axes)
        count = fallback.count(x, axes, batch.mask)
        vector = np.concatenate([[count], sums.ravel(),
                                 (products / batch.unit).ravel()])
        return vector, batch.by_gamma(products), sums


class GradientBySums(_Gradient):
    """Compute the gradient with respect to a rank's part.

    Its last input are the sums of all ranks; the gradient with respect to the
    output is overwritten by the in-place variant.
    """

    takes = [*_Gradient.takes, "sums"]
    gives = ["dx"]
    kernel = "backward_by"
    overwrites = 4

    def compute(self, x, gamma, *others):
        sums = others[4]
        batch, dy = self.standardized(x, gamma, *others[:4], *others[5:])
        total, products = sums[1:].reshape((2,) + gamma.shape)
        return batch.gradient(gamma, dy, sums[0], total,
                              products * batch.unit),
