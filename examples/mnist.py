"""Train on digits with and without batch norm, and compare test accuracies.

This is figure 1(a) of Ioffe & Szegedy (2015). It trains 784-100-100-100-10
twice, side by side, on MNIST: sigmoid hidden layers, batches of 60, plain
gradient descent. The two networks start from the same weights and see the
same batches. Only one has its hidden layers wrapped by ``batch_norm()``.
Prints the test accuracy of both as they learn, and saves the two curves as a
picture. The figure in the paper ran for longer::

    python examples/mnist.py
    python examples/mnist.py --steps 50000

Then it compares statistics to test with: running averages, or statistics of
all training digits (see ``compare_statistics.py``). It saves a picture of how
far the running averages of batches of 4 were from the statistics of all
digits. To skip this part::

    python examples/mnist.py --statistics-steps 0

Without a C++ compiler, where a step takes about a second, it makes few steps
by default, and skips the second part.

Ctrl-C stops the training early and still saves the curves.

S. Ioffe and C. Szegedy: Batch normalization: accelerating deep network
training by reducing internal covariate shift. ICML 2015, section 4.1.
"""

import argparse
import sys
from typing import Callable, NamedTuple

import options  # isort: skip  # First: it has Ctrl-C end in one line.

from bnlasagne import keep_freed_memory  # isort: skip  # First: repairs.

import digits
import lasagne
import numpy as np
import theano
import theano.tensor as T
from compare_statistics import BATCH_SIZES, compare_statistics
from network import are_right, batches, build_network, training_loss
from side_by_side import are_complete, plot_accuracies, train_side_by_side


class Network(NamedTuple):
    """The output layer of a network, and its functions of images and labels.

    `train` makes a step, and `test` returns the accuracy, from 0 to 1.
    """

    output: lasagne.layers.Layer
    train: Callable
    test: Callable

    def accuracy(self, data):
        """Test on all test digits."""
        return float(self.test(data.x_test, data.y_test))


def compile_network(normalize, args):
    """Build a network, and compile the functions that train and test it."""
    x, y = T.tensor4("x"), T.ivector("y")
    network = build_network(x, args.seed, normalize)
    loss = training_loss(network, y)
    params = lasagne.layers.get_all_params(network, trainable=True)
    updates = lasagne.updates.sgd(loss, params, args.learning_rate)
    # The running averages are not among the updates: they move by themselves.
    train = theano.function([x, y], updates=updates)
    test = theano.function([x, y], are_right(network, y).mean())
    return Network(network, train, test)


def compare(data, args):
    """Train both networks; print and return their test accuracies.

    Returns rows of steps made, accuracy without and accuracy with batch norm;
    fewer rows if the user interrupted the training.
    """
    options.announce_compiling(args.quiet)
    if not (args.quiet or options.has_compiler()):
        print(f"{args.steps} steps take about {args.steps // 60 + 1} minutes.",
              file=sys.stderr)
    networks = [compile_network(normalize, args)
                for normalize in (False, True)]
    stream = batches(data.x_train, data.y_train, args.batch_size, args.seed)

    def measure(step):
        row = (step, *(network.accuracy(data) for network in networks))
        return row, "{:7d}   {:18.4f}   {:15.4f}".format(*row)

    print("  steps   without batch norm   with batch norm")
    return train_side_by_side([network.train for network in networks], stream,
                              measure, args)


def plot(rows, path, caption):
    """Save the two curves as a PNG file."""
    figure = plot_accuracies(
        rows, {"without batch norm": "s-C1", "with batch norm": "o-C0"},
        "Batch normalization: test accuracy while training", caption)
    figure.axes[0].set_yticks(np.linspace(0, 1, 11))
    figure.axes[0].set_ylim(0, 1)
    figure.savefig(path, dpi=150)


def caption_of(args):
    """Say what the curves were measured on."""
    data = args.data or "MNIST (LeCun, Cortes and Burges)"
    return (f"784-100-100-100-10, sigmoid, batches of {args.batch_size}, "
            f"learning rate {args.learning_rate:g}, seed {args.seed}. "
            f"Data: {data}.\nAfter figure 1(a) of Ioffe & Szegedy (2015).")


def parse_arguments():
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description="Test accuracy on handwritten digits with and without "
        "batch normalization, after figure 1(a) of Ioffe & Szegedy (2015).")
    options.add_steps(parser, 5000 if options.has_compiler() else 300,
                      "; the paper: 50000")
    parser.add_argument(
        "--statistics-steps", type=options.at_least(0), metavar="N",
        default=3000 if options.has_compiler() else 0,
        help="then train for N steps with each of three batch sizes, to "
        "compare statistics to test with; 0 skips this (default: "
        "%(default)s)")
    options.add_batch_size(parser, 60)
    options.add_learning_rate(parser, 0.1, "gradient descent")
    options.add_seed(parser)
    options.add_data(parser)
    options.add_output(
        parser, "mnist.png", "the curves as this PNG file, and the statistics "
        "beside it, as FILE with _statistics before .png")
    return parser.parse_args()


def batch_sizes(args):
    """List the sizes of batches, by what the message calls them."""
    sizes = {"--batch-size": args.batch_size}
    if args.statistics_steps:
        sizes["with --statistics-steps, a batch size"] = max(BATCH_SIZES)
    return sizes


def main():
    """Train networks, print their accuracies and save the pictures."""
    args = parse_arguments()
    keep_freed_memory()
    data = digits.load_or_exit(args.data, batch_sizes(args))
    rows = compare(data, args)
    if rows:
        plot(rows, args.output, caption_of(args))
        print(f"Saved the curves as {args.output}.")
    complete = are_complete(rows, args)
    if complete and args.statistics_steps:
        complete = compare_statistics(
            lambda: compile_network(True, args), data, args)
    return 0 if complete else options.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
