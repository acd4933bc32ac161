"""What several tests of arrays need."""

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T

# What only Lasagne's development version has.
LATER = hasattr(lasagne.layers, "BatchNormLayer")
later = pytest.mark.skipif(
    not LATER, reason="needs Lasagne's development version")
needs_compiler = pytest.mark.skipif(
    not theano.config.cxx, reason="needs a C++ compiler")
quick = pytest.mark.usefixtures("quick")

TOLERANCE = {"float32": {"rtol": 2e-5, "atol": 2e-5},
             "float64": {"rtol": 1e-11, "atol": 1e-11}}


def tensor(value):
    """A variable for an array, of which no axis is broadcastable."""
    return T.TensorType(value.dtype, (False,) * np.ndim(value))()


def param(value, axes):
    """A shared variable that is broadcastable along the axes."""
    return theano.shared(
        value, broadcastable=[axis in axes for axis in range(value.ndim)])
