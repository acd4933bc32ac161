"""Choose between the fused Ops and the plain Theano expressions.

This is the one place that decides which of the two batch normalization is
built from. The arguments are those of :mod:`bnlasagne.kernels.expressions`,
but the types of statistics and parameters need not say that sizes along the
axes are 1. With `rectify`, values below zero are replaced by zero.
"""

import functools
import operator

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


def batch_statistics(x, axes):
    """Find mean, biased standard deviation and number of values of a batch.

    The last one, a scalar, is that of the values of each mean.
    """
    return (*_find_statistics(x, axes)[:2], _count(x, axes))


def _find_statistics(x, axes):
    """Find mean, standard deviation, and both as a vector.

    The vector is None if they are expressions.
    """
    if are_usable(x):
        return ops.find_statistics(x, axes)[:3]
    return (*expressions.batch_statistics(x, axes), None)


def normalize_batch(x, gamma, beta, epsilon, axes, rectify=False,
                    correction=None):
    """Normalize a batch by its own statistics.

    `correction`, unless None, is called with the mean and the standard
    deviation, `gamma` and `beta`; it returns what to use in place of the
    latter two. Returns the output, then what :func:`batch_statistics` does.
    """
    statistics = None
    if correction is not None:
        mean, std, statistics = _find_statistics(x, axes)
        gamma, beta = correction(mean, std, gamma, beta)
    if not are_usable(x, gamma, beta):
        output, mean, std = expressions.normalize_batch(
            x, *_aligned(x, axes, gamma, beta), epsilon, axes)
        output = _rectified(output, rectify)
    elif statistics is None:
        output, mean, std = ops.normalize_batch(
            x, gamma, beta, epsilon, axes, rectify)
    else:
        output = ops.normalize_by(ops.NormalizeBy, x, statistics, gamma, beta,
                                  epsilon, axes, rectify)
    return output, mean, std, _count(x, axes)


def find_moments(x, axes, *params):
    """Find the moments of a part of a batch, as `Moments.to_vector` does.

    `params` are those that :func:`normalize_by` is going to be called with.
    Only in expressions has the vector gradients; see
    :class:`bnlasagne.kernels.ops.NormalizeBy`.
    """
    if are_usable(x, *params):
        return ops.find_statistics(x, axes)[3]
    return expressions.find_moments(x, axes)


def normalize_by(op, x, statistics, gamma, beta, epsilon, axes, rectify=False):
    """Normalize a part of a batch by the statistics of all of it.

    `op` makes the fused Op; see :func:`bnlasagne.kernels.ops.normalize_by`.
    `statistics` is a vector of double precision: the means of all channels,
    then the standard deviations.
    """
    if are_usable(x, gamma, beta):
        return ops.normalize_by(op, x, statistics, gamma, beta, epsilon, axes,
                                rectify)
    output = expressions.normalize_by(
        x, statistics, *_aligned(x, axes, gamma, beta), epsilon, axes)
    return _rectified(output, rectify)


def normalize(x, mean, std, gamma, beta, epsilon, axes, rectify=False):
    """Normalize a batch by the given statistics."""
    if are_usable(x, mean, std, gamma, beta):
        return ops.normalize(x, mean, std, gamma, beta, epsilon, axes, rectify)
    output = expressions.normalize(
        x, *_aligned(x, axes, mean, std, gamma, beta), epsilon)
    return _rectified(output, rectify)


def move_average(average, statistics, count, alpha, fused):
    """Move a running average by the statistics of a batch.

    The average follows the first one of `statistics`. It stays as it is if any
    of them is not finite, or if `count`, the number of values in each, is
    below two. `alpha`, a scalar of double precision, is the weight of the
    batch.

    `fused` is what :func:`are_usable` told when the layer was applied: what a
    user builds then must not depend on when it is compiled.
    """
    if fused:
        return ops.MoveAverage(len(statistics))(
            average, alpha, count, *statistics)
    return expressions.move_average(average, statistics, count, alpha)


def _aligned(x, axes, *params):
    """Make parameters broadcastable where they must be; None stays None."""
    pattern = expressions.pattern(x, axes)
    return [None if param is None else T.patternbroadcast(param, pattern)
            for param in params]


def _count(x, axes):
    return functools.reduce(operator.mul, (x.shape[axis] for axis in axes))


def _rectified(output, rectify):
    return T.nnet.relu(output) if rectify else output
