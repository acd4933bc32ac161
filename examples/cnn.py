"""Train a small convolutional network on handwritten digits, with batch norm.

It has two blocks of convolution and pooling, a dense layer and a softmax. All
layers with weights except the last are wrapped by ``batch_norm()``. Prints the
training loss and the test accuracy of each epoch; compare::

    python examples/cnn.py
    python examples/cnn.py --no-batch-norm
"""

import argparse
import sys
import time

import options  # isort: skip  # First: it has Ctrl-C end in one line.

# First: repairs imports.
from bnlasagne import batch_norm, keep_freed_memory  # isort: skip

import digits
import lasagne
import numpy as np
import theano
import theano.tensor as T
from lasagne.layers import (
    Conv2DLayer,
    DenseLayer,
    InputLayer,
    MaxPool2DLayer,
    get_all_params,
    get_output,
)
from tqdm import tqdm


def build_network(x, normalize):
    """Build the network of a tensor4 of images; return its output layer."""
    # The layers' own nonlinearity is rectify, and batch_norm() keeps it.
    wrap = batch_norm if normalize else (lambda layer: layer)
    network = InputLayer((None, 1, 28, 28), x)
    network = wrap(Conv2DLayer(network, 8, 5))    # 24 x 24
    network = MaxPool2DLayer(network, 2)          # 12 x 12
    network = wrap(Conv2DLayer(network, 16, 5))   # 8 x 8
    network = MaxPool2DLayer(network, 2)          # 4 x 4
    network = wrap(DenseLayer(network, 128))
    return DenseLayer(network, 10, nonlinearity=lasagne.nonlinearities.softmax)


def compile_network(normalize, learning_rate):
    """Build the network, and compile its functions."""
    x = T.tensor4("x")
    return compile_functions(x, build_network(x, normalize), learning_rate)


def compile_functions(x, network, learning_rate):
    """Compile functions of images and labels, to train and to test a network.

    `train` makes a step and returns the loss. `test` returns how many digits
    the network names right.
    """
    y = T.ivector("y")
    prediction = get_output(network)
    loss = lasagne.objectives.categorical_crossentropy(prediction, y).mean()
    params = get_all_params(network, trainable=True)
    updates = lasagne.updates.nesterov_momentum(loss, params, learning_rate)
    # The running averages are not among the updates: they move by themselves.
    train = theano.function([x, y], loss, updates=updates)

    prediction = get_output(network, deterministic=True)
    correct = T.sum(T.eq(T.argmax(prediction, axis=1), y))
    return train, theano.function([x, y], correct)


def batches(x, y, size):
    """Cut images and labels into batches; the last one may be smaller."""
    return [(x[start:start + size], y[start:start + size])
            for start in range(0, len(x), size)]


def train_epoch(train, data, args, epoch):
    """Train on all digits once, in an order of the epoch's own.

    Returns the mean loss of the steps, and the mean of their seconds.
    """
    rng = np.random.RandomState([args.seed, epoch])
    order = rng.permutation(len(data.x_train))
    steps = batches(data.x_train[order], data.y_train[order], args.batch_size)
    losses = []
    start = time.perf_counter()
    with tqdm(steps, desc=f"epoch {epoch}", unit=" steps", leave=False,
              disable=args.quiet) as bar:
        for x, y in bar:
            losses.append(float(train(x, y)))
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    return np.mean(losses), (time.perf_counter() - start) / len(losses)


def accuracy_of(test, data):
    """Test on all test digits, 500 at a time to save memory."""
    correct = sum(
        int(test(x, y)) for x, y in batches(data.x_test, data.y_test, 500)
    )
    return correct / len(data.x_test)


def parse_arguments():
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description="A small convolutional network on handwritten digits, "
        "with batch normalization.")
    parser.add_argument(
        "--epochs", type=options.at_least(1), default=1, metavar="N",
        help="pass over the training digits N times (default: %(default)s)")
    parser.add_argument(
        "--no-batch-norm", dest="batch_norm", action="store_false",
        help="train without batch normalization, for comparison")
    options.add_batch_size(parser, 100)
    options.add_learning_rate(parser, 0.05,
                              "gradient descent with momentum 0.9")
    options.add_seed(parser)
    options.add_data(parser)
    return parser.parse_args()


def main():
    """Train the network, and print loss and accuracy of each epoch."""
    args = parse_arguments()
    keep_freed_memory()
    data = digits.load_or_exit(args.data)
    lasagne.random.set_rng(np.random.RandomState(args.seed))
    options.announce_compiling(args.quiet)
    train, test = compile_network(args.batch_norm, args.learning_rate)
    print("epoch   training loss   test accuracy   time per step")
    for epoch in range(1, args.epochs + 1):
        loss, seconds = train_epoch(train, data, args, epoch)
        print(f"{epoch:5d}   {loss:13.4f}   {accuracy_of(test, data):13.4f}"
              f"   {1000 * seconds:10.1f} ms")


if __name__ == "__main__":
    sys.exit(main())
