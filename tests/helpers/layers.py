"""Apply a layer, and read what it stores."""

import numpy as np
import theano
from numpy.testing import assert_allclose

from helpers import reference
from helpers.common import tensor


def apply(layer, *batches, **flags):
    """Apply a layer to each batch by one function; return the outputs."""
    x = tensor(batches[0])
    function = theano.function([x], layer.get_output_for(x, **flags))
    return [function(batch) for batch in batches]


def averages(*layers):
    """The running averages of layers: mean and std of each."""
    return [param.get_value() for layer in layers
            for param in (layer.mean, layer.std)]


def params(*layers):
    """The values of all parameters of layers."""
    return [param.get_value() for layer in layers
            for param in layer.get_params()]


def expected_averages(layer, *batches, before=(0, 1)):
    """The running averages of a layer after batches, in NumPy."""
    found = [reference.statistics(batch, layer.axes) for batch in batches]
    return [reference.running_average(old, new, layer.alpha)
            for old, new in zip(before, zip(*found))]


def assert_followed(layer, *batches):
    """Check that the running averages followed batches, from 0 and 1."""
    before = [np.full(layer.param_shape(), start) for start in (0., 1.)]
    expected = expected_averages(layer, *batches, before=before) \
        if batches else before
    for found, value in zip(averages(layer), expected):
        assert_allclose(found, value)


# Flags of outputs, by batches and by averages, with updates and without.
FLAGS = [{}, {"deterministic": True}, {"batch_norm_update_averages": False},
         {"batch_norm_use_averages": True}]


def for_testing(x, layer):
    return layer.get_output_for(x, deterministic=True)
