"""What several tests of arrays need."""

import numpy as np
import theano
import theano.tensor as T

TOLERANCE = {"float32": {"rtol": 2e-5, "atol": 2e-5},
             "float64": {"rtol": 1e-11, "atol": 1e-11}}


def tensor(value):
    """A variable for an array, of which no axis is broadcastable."""
    return T.TensorType(value.dtype, (False,) * np.ndim(value))()


def param(value, axes):
    """A shared variable that is broadcastable along the axes."""
    return theano.shared(
        value, broadcastable=[axis in axes for axis in range(value.ndim)])
