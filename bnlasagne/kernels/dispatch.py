"""Choose between the fused Ops and the plain Theano expressions.

This is the one place that decides which of the two batch normalization is
built from. The statistics and parameters that it takes are those of layers:
their types need not say that sizes along the axes are 1, and `gamma` and
`beta` may be None.
"""

import functools
import operator

import theano
import theano.tensor as T

from ..theano_tools.switches import Switch
from . import expressions, ops

__all__ = [
    "aligned",
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

    Parameters
    ----------
    *variables : Theano variables or None
        The input, its statistics and parameters.

    Returns
    -------
    bool
        True on the CPU, in single or double precision, all of it alike, but
        not within :func:`plain_expressions`.
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

    Parameters
    ----------
    x : Theano variable
        The batch, of a floating-point type.
    axes : tuple of int
        The axes to take them over.

    Returns
    -------
    mean, std : Theano variables
        Of the shape of `x`, but of size 1 along the axes.
    count : Theano variable
        Number of values that each of them is taken over; a scalar.
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

    Parameters
    ----------
    x, gamma, beta, epsilon, axes
        See :func:`bnlasagne.kernels.expressions.normalize_batch`.
    rectify : bool
        Whether values below zero are replaced by zero.
    correction : callable or None
        Called with the mean and the standard deviation of the batch, `gamma`
        and `beta`, it returns what to use in place of the latter two.

    Returns
    -------
    output : Theano variable
        Of the shape of `x`.
    mean, std, count : Theano variables
        See :func:`batch_statistics`.
    """
    statistics = None
    if correction is not None:
        mean, std, statistics = _find_statistics(x, axes)
        gamma, beta = correction(mean, std, gamma, beta)
    if not are_usable(x, gamma, beta):
        output, mean, std = expressions.normalize_batch(
            x, *aligned(x, axes, gamma, beta), epsilon, axes)
        output = _rectified(output, rectify)
    elif statistics is None:
        output, mean, std = ops.normalize_batch(
            x, gamma, beta, epsilon, axes, rectify)
    else:
        output = ops.normalize_by(ops.NormalizeBy, x, statistics, gamma, beta,
                                  epsilon, axes, rectify)
    return output, mean, std, _count(x, axes)


def find_moments(x, axes, *params):
    """Find the moments of a part of a batch.

    Parameters
    ----------
    x : Theano variable
        The part, of a floating-point type.
    axes : tuple of int
        The axes to take them over.
    *params : Theano variables or None
        What :func:`normalize_by` is going to be called with.

    Returns
    -------
    Theano variable
        A vector; see :meth:`bnlasagne.Moments.to_vector`. In expressions, it
        has gradients; see :class:`bnlasagne.kernels.ops.NormalizeBy`.
    """
    if are_usable(x, *params):
        return ops.find_statistics(x, axes)[3]
    return expressions.find_moments(x, axes)


def normalize_by(op, x, statistics, gamma, beta, epsilon, axes, rectify=False):
    """Normalize a part of a batch by the statistics of all of it.

    Parameters
    ----------
    op : callable
        Makes the fused Op; see :func:`bnlasagne.kernels.ops.normalize_by`.
    statistics : Theano variable
        A vector of double precision: the means of all channels, then the
        standard deviations.
    x, gamma, beta, epsilon, axes, rectify
        See :func:`normalize_batch`.

    Returns
    -------
    Theano variable
        Of the shape of `x`.
    """
    if are_usable(x, gamma, beta):
        return ops.normalize_by(op, x, statistics, gamma, beta, epsilon, axes,
                                rectify)
    output = expressions.normalize_by(
        x, statistics, *aligned(x, axes, gamma, beta), epsilon, axes)
    return _rectified(output, rectify)


def normalize(x, mean, std, gamma, beta, epsilon, axes, rectify=False):
    """Normalize a batch by the given statistics.

    See :func:`bnlasagne.kernels.expressions.normalize`. With `rectify`, values
    below zero are replaced by zero.
    """
    if are_usable(x, mean, std, gamma, beta):
        return ops.normalize(x, mean, std, gamma, beta, epsilon, axes, rectify)
    output = expressions.normalize(
        x, *aligned(x, axes, mean, std, gamma, beta), epsilon)
    return _rectified(output, rectify)


def move_average(average, statistics, count, alpha, fused):
    """Move a running average by the statistics of a batch.

    Parameters
    ----------
    average : Theano variable
        The running average before.
    statistics : list of Theano variables
        Of the batch, the one that the average follows first. If any of them is
        not finite, the average stays as it is.
    count : Theano variable
        Number of values in each statistic; a scalar. Of fewer than two, the
        average stays as it is, too.
    alpha : Theano variable
        Weight of the batch; a scalar of double precision.
    fused : bool
        Whether to use the fused Op, as :func:`are_usable` told when the layer
        was applied. What a user builds then must not depend on when it is
        compiled.

    Returns
    -------
    Theano variable
        The running average after, of the type of `average`.
    """
    if fused:
        return ops.MoveAverage(len(statistics))(
            average, alpha, count, *statistics)
    return expressions.move_average(average, statistics, count, alpha)


def aligned(x, axes, *params):
    """Make parameters broadcastable where they must be; None stays None."""
    pattern = [axis in axes or x.broadcastable[axis]
               for axis in range(x.ndim)]
    return [None if param is None else T.patternbroadcast(param, pattern)
            for param in params]


def _count(x, axes):
    return functools.reduce(operator.mul, (x.shape[axis] for axis in axes))


def _rectified(output, rectify):
    return T.nnet.relu(output) if rectify else output
