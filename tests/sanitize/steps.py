"""Train a small network for some steps, with all kinds of Ops.

    python steps.py STEPS
"""

import sys

from bnlasagne import BatchNormLayer, batch_norm

import lasagne
import numpy as np
import theano
import theano.tensor as T
from lasagne.layers import DenseLayer, InputLayer, get_output


def network(dtype):
    """Build a network with a mask, virtual batches and long and short rows."""
    x = T.TensorType(dtype, (False,) * 3)("x")
    mask = T.matrix("mask", dtype="int8")
    incoming = InputLayer((None, 3, 40), x)
    masked = BatchNormLayer(
        incoming, mask_input=InputLayer((None, 40), mask), axes=(0, 2))
    rectified = BatchNormLayer(
        masked, nonlinearity=lasagne.nonlinearities.rectify,
        virtual_batch_size=4)
    output = batch_norm(DenseLayer(rectified, 5), r_max=2, d_max=1)
    return x, mask, output


def main(steps):
    rng = np.random.RandomState(0)
    for dtype in ("float32", "float64"):
        with theano.configparser.change_flags(floatX=dtype):
            x, mask, output = network(dtype)
            loss = get_output(output).sum()
            params = lasagne.layers.get_all_params(output, trainable=True)
            train = theano.function(
                [x, mask], loss, updates=lasagne.updates.sgd(
                    loss, params, 0.01))
            test = theano.function(
                [x, mask], get_output(output, deterministic=True))
        for size in range(1, 1 + steps):
            batch = rng.normal(size=(size, 3, 40)).astype(dtype)
            lengths = rng.randint(0, 41, size)
            counts = np.arange(40) < lengths[:, None]
            train(batch, counts.astype("int8"))
            test(batch[:, :, ::-1], counts.astype("int8"))


if __name__ == "__main__":
    main(int(sys.argv[1]))
