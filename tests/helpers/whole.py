"""Build a small network with every feature, and functions that train it."""

from bnlasagne import (
    BatchNormLayer,
    CumulativeAverage,
    GradientAccumulator,
    batch_norm,
)

import lasagne
import numpy as np
import theano
import theano.tensor as T
from lasagne.layers import (
    ConcatLayer,
    Conv2DLayer,
    CustomRecurrentLayer,
    DenseLayer,
    InputLayer,
    SliceLayer,
    get_all_param_values,
    get_all_params,
    get_output,
)

__all__ = ["Whole", "draw_batch"]


class Whole:
    """A network of images and sequences, whose images are seen twice.

    Convolutions with virtual batches, a dense layer with renormalization and
    equally weighted averages that is applied twice, sequences with a mask, and
    a loop with batch normalization in each iteration.

    Attributes
    ----------
    layer : lasagne.layers.Layer
        The output layer.
    inputs : list of theano.Variable
        Images, sequences, their mask, and labels.
    loss : theano.Variable
        The loss in training.
    """

    def __init__(self, seed=0):
        lasagne.random.set_rng(np.random.RandomState(seed))
        images = InputLayer((None, 2, 6, 6), name="images")
        seen = batch_norm(Conv2DLayer(images, 4, 3, name="conv"),
                          virtual_batch_size=4)
        seen = batch_norm(DenseLayer(seen, 6, name="fc"), r_max=3, d_max=5,
                          alpha=CumulativeAverage())
        sequences, mask = (InputLayer((None, 5, 3), name="sequences"),
                           InputLayer((None, 5), name="mask"))
        heard = BatchNormLayer(sequences, axes=(0, 1), mask_input=mask,
                               name="heard")
        heard = SliceLayer(self._loop(heard, mask), -1, axis=1)
        self.layer = DenseLayer(ConcatLayer([seen, heard]), 3, name="out",
                                nonlinearity=lasagne.nonlinearities.softmax)
        self.inputs = [images.input_var, sequences.input_var, mask.input_var,
                       T.ivector("labels")]
        flipped = {images: images.input_var[:, :, ::-1]}
        self.loss = sum(
            lasagne.objectives.categorical_crossentropy(
                get_output(self.layer, inputs), self.inputs[-1]).mean()
            for inputs in (None, flipped))

    @staticmethod
    def _loop(incoming, mask):
        step_in = batch_norm(DenseLayer(InputLayer((None, 3)), 4, name="in"))
        step = DenseLayer(InputLayer((None, 4)), 4, name="step")
        return CustomRecurrentLayer(incoming, step_in, step, mask_input=mask)

    def values(self):
        return get_all_param_values(self.layer)

    def trainer(self, **options):
        """Compile a function that makes a step, and returns the loss."""
        trainable = get_all_params(self.layer, trainable=True)
        return theano.function(
            self.inputs, self.loss, updates=lasagne.updates.momentum(
                self.loss, trainable, 0.01), **options)

    def tester(self, **options):
        """Compile a function for the output in testing."""
        return theano.function(
            self.inputs[:3], get_output(self.layer, deterministic=True),
            **options)

    def accumulator(self, **options):
        """Compile functions that add a micro-batch, and that make a step."""
        accumulator = GradientAccumulator(
            get_all_params(self.layer, trainable=True))
        return (accumulator.function(self.inputs, self.loss, **options),
                accumulator.step_function(
                    lasagne.updates.sgd, learning_rate=0.01, **options))


def draw_batch(rng, n=8):
    """Draw images, sequences of unequal length, their mask, and labels."""
    floatX = theano.config.floatX
    lengths = rng.randint(1, 6, n)
    return (rng.normal(size=(n, 2, 6, 6)).astype(floatX),
            rng.normal(size=(n, 5, 3)).astype(floatX),
            (np.arange(5) < lengths[:, None]).astype(floatX),
            rng.randint(0, 3, n).astype("int32"))
