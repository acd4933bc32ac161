"""Batches, and what kernels and the oracle make of them."""

import functools

from bnlasagne.kernels.batch import Batch

import numpy as np
import theano
import theano.tensor as T

from helpers import reference

# Not those of the other tests: the default, which the machine may not have.
LINKERS = ["cvm", "py"] if theano.config.cxx else ["py"]
# Few optimizations, as they make no difference to most tests.
MODES = {linker: theano.Mode(linker, "fast_compile") for linker in LINKERS}


def short_shape(shape, axes):
    """The shape of statistics and parameters."""
    return [1 if axis in axes else size for axis, size in enumerate(shape)]


def draw(rng, shape, axes, dtype):
    """A batch, gamma, beta, and a gradient."""
    short = short_shape(shape, axes)
    return [rng.normal(1.5, 2, shape).astype(dtype),
            rng.normal(size=short).astype(dtype),
            rng.normal(size=short).astype(dtype),
            rng.normal(size=shape).astype(dtype)]


def train(build, x, gamma, beta, axes, dy, mode=None, epsilon=0.01, **options):
    """Output, mean, standard deviation, and the gradients by x, gamma, beta.

    `build` is a function like `expressions.normalize_batch`; `options` are
    further arguments.
    """
    function = _trainer(build, x.dtype, x.ndim, axes, mode,
                        tuple(options.items()))
    return function(x, gamma, beta, dy, epsilon)[:-1]


def train_parts(build, x, gamma, beta, axes, dy, mode=None, mask=None,
                virtual_size=None, epsilon=0.01, **options):
    """The same of a batch with a mask or virtual batches; and their count."""
    pattern = None if mask is None else (
        mask.dtype.name, tuple(size == 1 for size in mask.shape))
    function = _trainer(build, x.dtype, x.ndim, axes, mode,
                        tuple(options.items()), pattern, virtual_size)
    masks = [] if mask is None else [mask]
    return function(x, gamma, beta, dy, epsilon, *masks)


@functools.lru_cache(maxsize=None)
def _trainer(build, dtype, ndim, axes, mode, options, mask=None,
             virtual_size=None):
    batch = T.TensorType(dtype, (False,) * ndim)
    like = T.TensorType(dtype, [axis in axes for axis in range(ndim)])
    x, gamma, beta, dy, epsilon = batch(), like(), like(), batch(), T.dscalar()
    masks = [] if mask is None else [T.TensorType(*mask)()]
    whole = Batch(x, axes, *masks or [None], virtual_size)
    *outputs, count = build(whole, gamma, beta, epsilon, **dict(options))
    gradients = theano.grad(None, [x, gamma, beta],
                            known_grads={outputs[0]: dy})
    return theano.function([x, gamma, beta, dy, epsilon] + masks,
                           outputs + gradients + [count], mode=mode)


def expected_train(x, gamma, beta, axes, dy, active=None, epsilon=0.01):
    """The same, by the oracle; `active` tells which values were above zero."""
    with np.errstate(all="ignore"):
        y = reference.normalize_batch(x, axes, gamma, beta, epsilon)
        statistics = reference.statistics(x, axes)
        if active is not None:
            y, dy = np.maximum(y, 0), np.where(active, dy, 0)
        gradients = reference.gradient_of_normalize_batch(
            x, dy, axes, gamma, epsilon)
    if x.size == 0:
        gradients = [np.zeros(value.shape) for value in gradients]
    return [y, *statistics, *gradients]
