"""Check that a peer computes what NumPy does in double precision.

Peers add epsilon in different places, and store different statistics. Each is
compared with what its own convention gives; what is left is rounding.
"""

from typing import Callable, NamedTuple, Optional

import numpy as np

from .cases import ALPHA

# Largest error, relative to the largest value of an array. Rounding stays near
# 1e-6; an epsilon in the wrong place, and averages that are not updated, are
# far above.
TOLERANCE = 2e-5
# oneDNN sums up a channel in single precision: at 1.6 million values, its
# results are off by 5e-4.
SINGLE_SUMS = 1e-3
# Where an output is this near zero, rounding may decide what the rectifier
# does to the gradient. Above the errors of oneDNN.
UNDECIDED = 1e-2


class Convention(NamedTuple):
    """Where a peer adds epsilon, and what it stores.

    `within`: epsilon is added to the variance, under the root, rather than to
    the standard deviation. `stored`: the statistic whose average is kept,
    "std", "inv_std" or "variance"; the last is taken to be the unbiased one,
    for testing wants the population's.
    """

    epsilon: float
    within: bool
    stored: str


OURS = Convention(0.01, within=False, stored="std")
LASAGNE = Convention(1e-4, within=True, stored="inv_std")
THEANO = Convention(1e-4, within=True, stored="variance")
# Of oneDNN and ONNX as well.
TORCH = Convention(1e-5, within=True, stored="variance")
CONVENTIONS = [OURS, LASAGNE, THEANO, TORCH]


class Program(NamedTuple):
    """What is timed, and what it takes to check it.

    `call` does the work. `results` does it too, for the first time, and
    returns NumPy arrays: those of `TRAINING`, or y alone. The limit, which
    computes nothing, has only a `call`.
    """

    call: Callable
    results: Optional[Callable] = None


# Gradients, output, and running averages after a step.
TRAINING = ["dx", "dgamma", "dbeta", "y", "mean", "spread"]


class Disagreement(Exception):
    """A peer computes something else."""


def without_undecided(data, case):
    """Return data on which no rounding decides what a rectifier lets through.

    Peers round differently. A single output just below zero with one, and
    just above with another, changes the gradients by more than all other
    rounding. No gradient reaches these outputs here; one in 100 is near.
    """
    x, _, gamma, beta = _doubles(data)[:4]
    mean, variance = _statistics(x, case.axes)
    is_decided = np.all([
        abs(_normalized(convention, x, mean, variance, gamma, beta))
        > UNDECIDED for convention in CONVENTIONS], axis=0)
    return data._replace(dy=data.dy * is_decided)


def stored_statistic(convention, variance):
    """Return what a peer stores for a variance, for inference to read."""
    if convention.stored == "variance":
        return variance
    if convention.stored == "std":
        return np.sqrt(variance)
    return 1 / _divisor(convention, variance)


def expected(convention, case, data, rectify, training):
    """Compute a dict of what a peer's results should be."""
    if training:
        return _training_step(convention, case, data, rectify)
    return _inference(convention, data, rectify)


def check(label, wanted, found, tolerance=TOLERANCE):
    """Raise a `Disagreement` with a `label` if an array is off."""
    for name, array in wanted.items():
        values = np.asarray(found[name], "float64").reshape(array.shape)
        error = np.abs(values - array).max() / np.abs(array).max()
        if not error <= tolerance:
            raise Disagreement(
                f"{label}: {name} is off by {error:.2g} of its largest value, "
                f"more than {tolerance:.2g}.")


def _doubles(data):
    return [array.astype("float64") for array in data]


def _statistics(x, axes):
    return x.mean(axes, keepdims=True), x.var(axes, keepdims=True)


def _divisor(convention, variance):
    if convention.within:
        return np.sqrt(variance + convention.epsilon)
    return np.sqrt(variance) + convention.epsilon


def _normalized(convention, x, mean, variance, gamma, beta):
    return (x - mean) / _divisor(convention, variance) * gamma + beta


def _inference(convention, data, rectify):
    x, _, gamma, beta, mean, variance = _doubles(data)
    y = _normalized(convention, x, mean, variance, gamma, beta)
    return {"y": np.maximum(y, 0) if rectify else y}


def _training_step(convention, case, data, rectify):
    x, dy, gamma, beta = _doubles(data)[:4]
    axes, count = case.axes, data.x.size // data.gamma.size
    mean, variance = _statistics(x, axes)
    deviation, divisor = x - mean, _divisor(convention, variance)
    y = _normalized(convention, x, mean, variance, gamma, beta)
    g = np.where(y > 0, dy, 0) if rectify else dy
    dgamma = (g * deviation).sum(axes, keepdims=True) / divisor
    dbeta = g.sum(axes, keepdims=True)
    # The divisor's derivative by the variance, as twice its inverse.
    twice = divisor if convention.within else np.sqrt(variance)
    dx = gamma / divisor * (
        g - dbeta / count - deviation * dgamma / (count * twice))
    if convention.stored == "variance":
        variance = variance * count / (count - 1)
    spread = stored_statistic(convention, variance)
    return {
        "dx": dx, "dgamma": dgamma, "dbeta": dbeta,
        "y": np.maximum(y, 0) if rectify else y,
        # From 0 and 1.
        "mean": ALPHA * mean, "spread": 1 - ALPHA + ALPHA * spread,
    }
