"""Build networks that are not plain stacks of layers."""

from bnlasagne import BatchNormLayer, batch_norm

import lasagne
import numpy as np
import theano.tensor as T
from lasagne.layers import (
    CustomRecurrentLayer,
    DenseLayer,
    InputLayer,
    ReshapeLayer,
)


def recurrent(x):
    step_in, step = (batch_norm(DenseLayer(InputLayer((None, 4)), 4))
                     for _ in range(2))
    return CustomRecurrentLayer(x, step_in, step), step_in, step


def sized(variable):
    """Two normalized layers, the second of them sized by the input."""
    lasagne.random.set_rng(np.random.RandomState(1))
    l_in = InputLayer((None, None, 4), variable)
    n, t, _ = l_in.input_var.shape
    first = batch_norm(DenseLayer(ReshapeLayer(l_in, (-1, 4)), 3,
                                  nonlinearity=T.tanh))
    second = BatchNormLayer(ReshapeLayer(first, (n, t, 3)), axes=(0, 1))
    return l_in, first, second
