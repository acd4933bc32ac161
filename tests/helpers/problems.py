"""Networks to train on data that comes in micro-batches."""

from bnlasagne import GradientAccumulator

import lasagne
import numpy as np
import theano.tensor as T
from lasagne.layers import get_all_params, get_output

from helpers import full_batch

RATE = 0.1


class Problem:
    """A network, its mean squared error on some data, and its state.

    Parameters
    ----------
    build : callable
        Returns the network; 3 numbers come out of it.
    flags : dict or None
        For :func:`lasagne.layers.get_output`.
    """

    def __init__(self, build, flags=None, floatX="float64", size=14):
        lasagne.random.set_rng(np.random.RandomState(5))
        self.network = build()
        shape = lasagne.layers.get_all_layers(self.network)[0].shape
        self.x = T.TensorType(floatX, (False,) * len(shape))("x")
        self.y = T.matrix("y")
        self.inputs = [self.x, self.y]
        self.output = get_output(self.network, self.x, **flags or {})
        self.loss = T.sqr(self.output - self.y).mean()
        self.params = get_all_params(self.network, trainable=True)
        self.averages = get_all_params(self.network, batch_norm_stat=True)
        rng = np.random.RandomState(6)
        self.data = (rng.normal(1, 2, (size,) + shape[1:]).astype(floatX),
                     rng.normal(size=(size, 3)).astype(floatX))
        self._start = self.values()

    def parts(self, *ends):
        """Micro-batches up to these ends."""
        return [tuple(array[start:end] for array in self.data)
                for start, end in zip((0,) + ends[:-1], ends)]

    def cut(self, cuts):
        """All data, cut into micro-batches."""
        return self.parts(*cuts, len(self.data[0]))

    def values(self):
        return [param.get_value() for param in get_all_params(self.network)]

    def restart(self):
        lasagne.layers.set_all_param_values(self.network, self._start)

    def exact(self, **kwargs):
        """An accumulator, its exact function and its step function."""
        accumulator = GradientAccumulator(self.params, **kwargs)
        accumulate = accumulator.exact_function(
            self.inputs, self.loss, outputs=self.output)
        return accumulator, accumulate, accumulator.step_function(
            lasagne.updates.sgd, learning_rate=RATE)

    def full_batch(self, by_batch=True, moves=True):
        """The loss, output and values of a step on all data, in NumPy."""
        full = full_batch.Pass(self.network, self.data[0], by_batch)
        loss, dy = full_batch.squared_error(full.output, self.data[1])
        gradients = full.gradients(dy)
        after = {param: param.get_value() - RATE * gradients[param]
                 for param in self.params}
        if moves:
            after.update(full.averages())
        return loss, full.output, [
            after.get(param, param.get_value())
            for param in get_all_params(self.network)]
