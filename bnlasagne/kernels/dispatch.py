"""Choose between the fused Ops and the plain Theano expressions.

This is the one place that decides which of the two batch normalization is
built from. The arguments are those of :mod:`bnlasagne.kernels.expressions`,
but the types of statistics and parameters need not say that sizes along the
axes are 1. With `rectify`, values below zero are replaced by zero.

Where the mask of a batch is zero, outputs and gradients are zero, whatever the
batch holds there.
"""

import theano
import theano.tensor as T

from ..theano_tools.switches import Switch
from . import expressions, ops

__all__ = [
    "are_usable",
    "batch_statistics",
    "find_moments",
    "move_average",
    "normalize",
    "normalize_batch",
    "normalize_by",
    "plain_expressions",
]

_plain = Switch("plain_expressions")


def plain_expressions():
    """Build batch normalization from plain Theano expressions.

    Within this context, outputs of layers are built without the fused Ops;
    for debugging, for comparisons, and for what only Theano's own Ops can do,
    such as :func:`theano.Rop`.

    Examples
    --------
    >>> from lasagne.layers import InputLayer, get_output
    >>> from bnlasagne import BatchNormLayer, plain_expressions
    >>> layer = BatchNormLayer(InputLayer((None, 3)))
    >>> with plain_expressions():
    ...     output = get_output(layer)
    """
    return _plain()


def are_usable(*variables):
    """Tell whether the fused Ops can be applied to variables, and may be.

    They can on the CPU, in single or double precision, all of it alike. None
    stands for a parameter that is missing.
    """
    present = [variable for variable in variables if variable is not None]
    return (not _plain.is_on
            and theano.config.device.startswith("cpu")
            and len({variable.dtype for variable in present}) == 1
            and all(isinstance(variable.type, T.TensorType)
                    and variable.dtype in ("float32", "float64")
                    for variable in present))


def batch_statistics(batch):
    """Find mean, biased standard deviation and number of values of a batch.

    The last one, a scalar, is that of the values of each mean. With virtual
    batches, it is a vector; and mean and standard deviation have those of all
    virtual batches along the first axis.
    """
    return _find_statistics(batch)[:3]


def _find_statistics(batch):
    """Find mean, standard deviation, count, and the first two as a vector.

    The vector is None if they are expressions.
    """
    if are_usable(batch.x):
        return ops.find_statistics(batch)[:4]
    return (*expressions.batch_statistics(batch), None)


def normalize_batch(batch, gamma, beta, epsilon, rectify=False,
                    correction=None):
    """Normalize a batch by its own statistics.

    `correction`, unless None, is called with the mean and the standard
    deviation, `gamma` and `beta`; it returns what to use in place of the
    latter two. Returns the output, then what :func:`batch_statistics` does.
    """
    if correction is not None:
        return _normalize_corrected(batch, gamma, beta, epsilon, rectify,
                                    correction)
    if are_usable(batch.x, gamma, beta):
        return ops.normalize_batch(batch, gamma, beta, epsilon, rectify)
    output, *found = expressions.normalize_batch(
        batch, *_aligned(batch, gamma, beta), epsilon)
    return (_rectified(output, rectify), *found)


def _normalize_corrected(batch, gamma, beta, epsilon, rectify, correction):
    if batch.virtual_size:
        # Each virtual batch has a scale and a shift of its own.
        output, *found = normalize_batch(batch, None, None, epsilon)
        own = expressions.virtual_batch_of_each(batch)
        gamma, beta = (param[own] for param in correction(
            *found[:2], gamma, beta))
        output = expressions.only_counted(output * gamma + beta, batch)
        return (_rectified(output, rectify), *found)
    *found, vector = _find_statistics(batch)
    gamma, beta = correction(*found[:2], gamma, beta)
    if vector is not None and are_usable(batch.x, gamma, beta):
        output = ops.normalize_by(ops.NormalizeBy, batch, vector, gamma, beta,
                                  epsilon, rectify)
    else:
        output = normalize_batch(batch, gamma, beta, epsilon, rectify)[0]
    return (output, *found)


def find_moments(batch, *params):
    """Find the moments of a part of a batch, as `Moments.to_vector` does.

    `params` are those that :func:`normalize_by` is going to be called with.
    Only in expressions has the vector gradients; see
    :class:`bnlasagne.kernels.ops.NormalizeBy`.
    """
    if are_usable(batch.x, *params):
        return ops.find_statistics(batch)[4]
    return expressions.find_moments(batch)


def normalize_by(op, batch, statistics, gamma, beta, epsilon, rectify=False):
    """Normalize a part of a batch by the statistics of all of it.

    `op` makes the fused Op; see :func:`bnlasagne.kernels.ops.normalize_by`.
    `statistics` is a vector of double precision: the means of all channels,
    then the standard deviations.
    """
    if are_usable(batch.x, gamma, beta):
        return ops.normalize_by(op, batch, statistics, gamma, beta, epsilon,
                                rectify)
    output = expressions.normalize_by(
        batch, statistics, *_aligned(batch, gamma, beta), epsilon)
    return _rectified(output, rectify)


def normalize(batch, mean, std, gamma, beta, epsilon, rectify=False):
    """Normalize a batch by the given statistics.

    It makes no difference whether it has virtual batches.
    """
    if are_usable(batch.x, mean, std, gamma, beta):
        return ops.normalize(batch, mean, std, gamma, beta, epsilon, rectify)
    output = expressions.normalize(
        batch, *_aligned(batch, mean, std, gamma, beta), epsilon)
    return _rectified(output, rectify)


def move_average(average, statistics, count, alpha, fused):
    """Move a running average by the statistics of a batch.

    The average follows the first one of `statistics`. It stays as it is if any
    of them is not finite, or if `count`, the number of values in each, is
    below two. `alpha`, a scalar of double precision, is the weight of the
    batch. If `count` is a vector, the average follows one virtual batch after
    the other, each with this weight.

    `fused` is what :func:`are_usable` told when the layer was applied: what a
    user builds then must not depend on when it is compiled.
    """
    if fused:
        return ops.MoveAverage(len(statistics))(
            average, alpha, count, *statistics)
    return expressions.move_average(average, statistics, count, alpha)


def _aligned(batch, *params):
    """Make parameters broadcastable where they must be; None stays None."""
    pattern = expressions.pattern(batch.x, batch.axes)
    return [None if param is None else T.patternbroadcast(param, pattern)
            for param in params]


def _rectified(output, rectify):
    return T.nnet.relu(output) if rectify else output
