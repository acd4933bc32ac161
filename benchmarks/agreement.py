"""Check that a peer computes what NumPy does in double precision.

Peers add epsilon in different places, and store different statistics. Each is
compared with what its own convention gives; what is left is rounding.
"""

from typing import NamedTuple

import numpy as np

from .cases import ALPHA

# Largest error, relative to the largest value of an array. Rounding stays near
# 1e-6; an epsilon in the wrong place, and averages that are not updated, are
# far above.
TOLERANCE = 2e-5
# Where an output is this near zero, rounding may decide what the rectifier
# does to the gradient.
UNDECIDED = 1e-4


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


class Disagreement(Exception):
    """A peer computes something else."""


def without_undecided(data, case, conventions):
    """Return data on which no rounding decides what a rectifier lets through.

    Peers round differently. A single output just below zero with one, and
    just above with another, changes the gradients by more than all other
    rounding. No gradient reaches these outputs here; one in 10,000 is near.
    """
    x, _, gamma, beta = _doubles(data)[:4]
    mean, variance = _statistics(x, case.axes)
    is_decided = np.all([
        abs(_normalized(convention, x, mean, variance, gamma, beta))
        > UNDECIDED for convention in conventions], axis=0)
    return data._replace(dy=data.dy * is_decided)


def stored_statistic(convention, variance):
    """Return what a peer stores for a variance, for inference to read."""
    if convention.stored == "variance":
        return variance
    if convention.stored == "std":
        return np.sqrt(variance)
    return 1 / _divisor(convention, variance)


def check(label, program, case, data, rectify, training):
    """Run a peer once, for the first time, and check all that it computed.

    It raises a `Disagreement` with the peer's `label` if an output or a
    running average is off.
    """
    expected = _training_step(program.convention, case, data, rectify) \
        if training else _inference(program.convention, data, rectify)
    found = dict(zip(("dx", "dgamma", "dbeta", "y") if training else ("y",),
                     program.outputs()))
    if training:
        found.update(zip(("mean", "spread"), program.averages()))
    for name, wanted in expected.items():
        _compare(label, name, found[name], wanted)


def _compare(label, name, found, wanted):
    found = np.asarray(found, "float64").reshape(wanted.shape)
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    if not error <= TOLERANCE:
        raise Disagreement(
            f"{label}: {name} is off by {error:.2g} of its largest value, "
            f"more than {TOLERANCE:.2g}.")


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
