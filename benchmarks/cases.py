"""List the shapes to measure, and draw the random arrays of a shape."""

from typing import NamedTuple

import numpy as np

# Weight of the batch in every peer's running averages.
ALPHA = 0.1


class Case(NamedTuple):
    """A shape, and the axes to normalize over.

    `kind` is dense, convolutional, or sequence, which has its channels last.
    """

    name: str
    kind: str
    shape: tuple
    axes: tuple


class Data(NamedTuple):
    """Arrays of a case.

    The batch and the gradient that reaches it are of the case's shape; the
    parameters and the statistics for inference of size 1 along the axes.
    """

    x: np.ndarray
    dy: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def _case(kind, *shape):
    axes = {"dense": (0,), "convolutional": (0, 2, 3), "sequence": (0, 1, 2)}
    return Case("x".join(map(str, shape)), kind, shape, axes[kind])


# The seven shapes of most goals.
SEVEN = [
    _case("dense", 128, 512),
    _case("dense", 1024, 2048),
    _case("convolutional", 32, 64, 56, 56),
    _case("convolutional", 64, 128, 28, 28),
    _case("convolutional", 128, 256, 8, 8),
    _case("convolutional", 32, 1, 224, 224),
    _case("sequence", 32, 56, 56, 64),
]
# Calls of functions count as much as the work.
SMALL = [
    _case("dense", 32, 64),
    _case("convolutional", 16, 32, 14, 14),
]
CASES = SEVEN + SMALL
# For --quick.
QUICK_CASES = [_case("dense", 8, 16), _case("convolutional", 4, 3, 5, 5)]


def find(name):
    """Return the case of a name."""
    case, = (case for case in CASES + QUICK_CASES if case.name == name)
    return case


def random_data(case, seed=0):
    """Draw the arrays of a case, in single precision.

    Each channel has its own mean and scale.
    """
    rng = np.random.RandomState(seed)
    of_parameters = [1 if axis in case.axes else size
                     for axis, size in enumerate(case.shape)]
    mean, beta = rng.normal(size=[2] + of_parameters)
    std, gamma = rng.uniform(0.5, 2, size=[2] + of_parameters)
    x = (rng.normal(size=case.shape) * std + mean).astype("float32")
    dy = rng.normal(size=case.shape).astype("float32")
    return Data(x, dy, *(array.astype("float32") for array in (
        gamma, beta, mean, std ** 2)))
