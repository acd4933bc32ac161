"""Figure 1(a) of Ioffe & Szegedy (2015): digits with and without batch norm.

Trains 784-100-100-100-10 twice, side by side, on MNIST: sigmoid hidden
layers, batches of 60, plain gradient descent. The two networks start from
the same weights and see the same batches; only one has its hidden layers
wrapped by ``batch_norm()``. Prints the test accuracy of both as they learn,
and saves the two curves as a picture. The figure in the paper ran for longer::

    python examples/mnist.py
    python examples/mnist.py --steps 50000

Then asks what a network should be tested with. Trains the one with batch norm
in batches of 4, 16 and 60, and prints its test accuracy with the running
averages of training, and with the statistics of all training digits, found in
one pass over them or layer by layer. Of the network trained in batches of 4,
saves a picture of how far the running averages were from the statistics found
layer by layer. To skip this step::

    python examples/mnist.py --statistics-steps 0

Without a C++ compiler, where a step takes about a second, it makes few steps
by default, and skips the comparison of statistics.

Ctrl-C stops the training early and still saves the curves.

S. Ioffe and C. Szegedy: Batch normalization: accelerating deep network
training by reducing internal covariate shift. ICML 2015, section 4.1.
"""

import argparse
import os
import sys
from collections import namedtuple

import options  # isort: skip  # First: it has Ctrl-C end in one line.

# First: repairs imports.
from bnlasagne import (  # isort: skip
    batch_norm,
    plot_statistics,
    update_population_statistics,
)

import digits
import lasagne
import numpy as np
import theano
import theano.tensor as T
from matplotlib.figure import Figure
from tqdm import tqdm

# The default alpha=0.5 tests with little more than the statistics of the last
# batch, and those of 60 digits are noisy. Averaged over the steps 7,000 to
# 50,000 of two seeds, the test accuracy was 0.9739 with 0.5 and 0.9750 with
# 0.1. Far less is too slow at first: 0.63 with 0.01 after 100 steps, not 0.83.
ALPHA = 0.1

# The fewer digits in a batch, the further are its statistics from those of
# all digits: running averages follow them, and one pass normalizes by them.
STATISTICS_BATCH_SIZES = 4, 16, 60
PICTURED_BATCH_SIZE = 4

# Statistics found layer by layer are the same in chunks of any size: this one
# is large enough to be fast, and takes little memory.
CHUNK_SIZE = 5000

Network = namedtuple("Network", "output train test")
Network.__doc__ = """A network's output layer, and its two functions."""


def build_network(x, normalize, seed):
    """Build 784-100-100-100-10.

    Parameters
    ----------
    x : Theano tensor4
        Images, shape (batch, 1, 28, 28).
    normalize : bool
        Whether to wrap the hidden layers by ``batch_norm()``.
    seed : int
        Of the weights. They do not depend on `normalize`, because the layers
        of batch norm start from constants.

    Returns
    -------
    lasagne.layers.Layer
        The output layer, shape (batch, 10).
    """
    lasagne.random.set_rng(np.random.RandomState(seed))
    weights = lasagne.init.Normal(0.1)
    network = lasagne.layers.InputLayer((None, 1, 28, 28), x)
    for number in 1, 2, 3:
        network = lasagne.layers.DenseLayer(
            network,
            100,
            W=weights,
            nonlinearity=lasagne.nonlinearities.sigmoid,
            name=f"hidden{number}",
        )
        if normalize:
            network = batch_norm(network, alpha=ALPHA)
    return lasagne.layers.DenseLayer(
        network, 10, W=weights, nonlinearity=lasagne.nonlinearities.softmax
    )


def compile_network(normalize, learning_rate, seed):
    """Compile the functions that train and test a network.

    Parameters
    ----------
    normalize : bool
        Whether the hidden layers are batch-normalized.
    learning_rate : float
    seed : int
        Of the weights.

    Returns
    -------
    Network
        Both functions take images and labels: `train` makes a step, `test`
        returns the accuracy, from 0 to 1.
    """
    x, y = T.tensor4("x"), T.ivector("y")
    network = build_network(x, normalize, seed)

    prediction = lasagne.layers.get_output(network)
    loss = lasagne.objectives.categorical_crossentropy(prediction, y).mean()
    params = lasagne.layers.get_all_params(network, trainable=True)
    updates = lasagne.updates.sgd(loss, params, learning_rate)
    # The running averages are not among the updates: they update themselves.
    train = theano.function([x, y], updates=updates)

    prediction = lasagne.layers.get_output(network, deterministic=True)
    accuracy = T.mean(T.eq(T.argmax(prediction, axis=1), y))
    return Network(network, train, theano.function([x, y], accuracy))


def batches(x, y, size, seed):
    """Shuffle and cut digits, forever.

    Parameters
    ----------
    x, y : arrays
        Images and their labels.
    size : int
        Digits in a batch. Those left over in an epoch are left out of it.
    seed : int

    Yields
    ------
    x, y : arrays, `size` digits each
    """
    rng = np.random.RandomState(seed)
    while True:
        order = rng.permutation(len(x))
        for start in range(0, len(x) - size + 1, size):
            chosen = order[start:start + size]
            yield x[chosen], y[chosen]


def steps_to_test(steps):
    """Choose the steps to test after: dense at first, then ever further apart.

    Parameters
    ----------
    steps : int
        Steps in all.

    Returns
    -------
    list of int
        100, 200, 300, 500, 700, 1000, 2000, ... and `steps`.
    """
    powers = range(2, len(str(steps)))
    chosen = [i * 10 ** power for power in powers for i in (1, 2, 3, 5, 7)]
    return [step for step in chosen if step < steps] + [steps]


def compare(data, args):
    """Train both networks, printing and collecting their test accuracies.

    Parameters
    ----------
    data : digits.Digits
    args : argparse.Namespace
        The command line.

    Returns
    -------
    list of (int, float, float)
        Steps made, accuracy without and with batch norm. Ends early where
        the user interrupted the training.
    """
    options.announce_compiling(args.quiet)
    if not (args.quiet or options.has_compiler()):
        print(f"{args.steps} steps take about {args.steps // 60 + 1} minutes.",
              file=sys.stderr)
    networks = [compile_network(normalize, args.learning_rate, args.seed)
                for normalize in (False, True)]
    stream = batches(data.x_train, data.y_train, args.batch_size, args.seed)
    stops = set(steps_to_test(args.steps))
    rows = []
    print("  steps   without batch norm   with batch norm")
    with tqdm(total=args.steps, unit=" steps", disable=args.quiet) as bar:
        try:
            for step in range(1, args.steps + 1):
                batch = next(stream)
                for network in networks:
                    network.train(*batch)
                bar.update()
                if step in stops:
                    rows.append((step, *(accuracy(network, data)
                                         for network in networks)))
                    bar.write("{:7d}   {:18.4f}   {:15.4f}".format(*rows[-1]))
        except KeyboardInterrupt:
            bar.write(f"Interrupted after {bar.n} steps.")
    return rows


def accuracy(network, data):
    """Test a network on all of the test digits."""
    return float(network.test(data.x_test, data.y_test))


def plot(rows, path, caption):
    """Save the two curves as a PNG file.

    Parameters
    ----------
    rows : list of (int, float, float)
        From `compare`.
    path : str
        Where to save.
    caption : str
        What was trained, and on what.
    """
    figure = Figure(figsize=(8, 5))  # without pyplot: needs no display
    axes = figure.subplots()
    steps = [row[0] for row in rows]
    for column, label, style in [(2, "with batch norm", "o-C0"),
                                 (1, "without batch norm", "s-C1")]:
        curve = [row[column] for row in rows]
        axes.plot(steps, curve, style, markersize=4,
                  label=f"{label} (in the end {curve[-1]:.3f})")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_yticks(np.linspace(0, 1, 11))
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    axes.set_title("Batch normalization: test accuracy while training")
    axes.set_xlabel("training steps")
    axes.set_ylabel("test accuracy")
    figure.text(0.5, 0.01, caption, ha="center", va="bottom", fontsize=8,
                color="0.35")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=150)


def compare_statistics(data, args):
    """Print test accuracies by the statistics that networks are tested with.

    Parameters
    ----------
    data : digits.Digits
    args : argparse.Namespace
        The command line.

    Returns
    -------
    bool
        False where the user interrupted it.
    """
    print(f"Test accuracy with batch norm, {args.statistics_steps} steps, by "
          "the statistics in testing")
    print("  batch size   running averages   one pass   layer by layer")
    path = statistics_path(args.output)
    rows = []
    try:
        for size in STATISTICS_BATCH_SIZES:
            network = train_in_batches_of(size, data, args)
            row, found = test_statistics(network, size, data, args)
            print("{:12d}   {:16.4f}   {:8.4f}   {:14.4f}".format(size, *row))
            rows.append(row)
            if size == PICTURED_BATCH_SIZE:
                plot_statistics(found).savefig(path, dpi=150)
    except KeyboardInterrupt:
        print("Interrupted.")
        return False
    print(conclusion_from(rows))
    print(f"Saved the statistics for batches of {PICTURED_BATCH_SIZE} as "
          f"{path}.")
    return True


def conclusion_from(rows):
    """Say what the table of statistics means for the user's own network.

    Parameters
    ----------
    rows : list of list of float
        Accuracies with running averages, one pass, layer by layer.

    Returns
    -------
    str
    """
    running, *others = np.mean(rows, axis=0)
    if running >= max(others):
        found = """\
Here the running averages win: they are averages of the statistics that
normalized in training. Test with them. The statistics of all digits have"""
    else:
        found = """\
Here the running averages do not win: they follow the last batches. Test with
the statistics of all digits. These have"""
    return found + """
uses of their own: they depend neither on alpha nor on the last batches, and
they repair averages that have drifted (see update_population_statistics())."""


def train_in_batches_of(size, data, args):
    """Train a network with batch norm for the comparison of statistics."""
    network = compile_network(True, args.learning_rate, args.seed)
    stream = batches(data.x_train, data.y_train, size, args.seed)
    # Its bar would stand between the rows of the table, and so vanishes.
    for _ in tqdm(range(args.statistics_steps), f"batches of {size}",
                  unit=" steps", leave=False, disable=args.quiet):
        network.train(*next(stream))
    return network


def test_statistics(network, size, data, args):
    """Test a network with its running averages, and with what replaces them.

    Parameters
    ----------
    network : Network
        In the end, it has the statistics of one pass.
    size : int
        Digits in the batches that it was trained in.
    data : digits.Digits
    args : argparse.Namespace
        The command line.

    Returns
    -------
    accuracies : list of float
        With running averages, one pass, layer by layer.
    found : PopulationStatistics
        Found layer by layer, in place of the running averages.
    """
    def progress(chunks):
        return tqdm(chunks, "statistics", unit=" chunks", leave=False,
                    disable=args.quiet)

    running = accuracy(network, data)
    # First the ones that are to be compared with the averages they replace.
    found = update_population_statistics(
        network.output, chunks_of(data.x_train, CHUNK_SIZE),
        progress=progress)
    layerwise = accuracy(network, data)
    # In one pass, layers normalize as they did in training.
    update_population_statistics(
        network.output, chunks_of(data.x_train, size), method="one_pass",
        progress=progress)
    return [running, accuracy(network, data), layerwise], found


def chunks_of(x, size):
    """Cut all of an array, in order; the last chunk may be smaller."""
    return [x[start:start + size] for start in range(0, len(x), size)]


def statistics_path(output):
    """Where the picture of statistics goes, next to that of the curves."""
    root, extension = os.path.splitext(output)
    return root + "_statistics" + extension


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
    parser.add_argument(
        "--steps", type=options.at_least(1), metavar="N",
        default=5000 if options.has_compiler() else 300,
        help="train for N steps (default: %(default)s; the paper: 50000)")
    parser.add_argument(
        "--statistics-steps", type=options.at_least(0), metavar="N",
        default=3000 if options.has_compiler() else 0,
        help="then train for N steps with each of three batch sizes, to "
        "compare statistics to test with; 0 skips this (default: "
        "%(default)s)")
    parser.add_argument(
        "--batch-size", type=options.BATCH_SIZE, default=60, metavar="N",
        help="digits in a batch (default: %(default)s)")
    options.add_learning_rate(parser, 0.1, "gradient descent")
    options.add_seed(parser)
    options.add_data(parser)
    options.add_output(
        parser, "mnist.png", "the curves as this PNG file, and the statistics "
        "beside it, as FILE with _statistics before .png")
    return parser.parse_args()


def main():
    """Train networks, print their accuracies and save the pictures."""
    args = parse_arguments()
    try:
        data = digits.load(args.data)
    except digits.DataError as error:
        sys.exit(f"mnist.py: error: {error}")
    check_enough(data, args)
    rows = compare(data, args)
    if rows:
        plot(rows, args.output, caption_of(args))
        print(f"Saved the curves as {args.output}.")
    complete = len(rows) == len(steps_to_test(args.steps))
    if complete and args.statistics_steps:
        complete = compare_statistics(data, args)
    # 130 is what a shell reports for a program that Ctrl-C ended.
    return 0 if complete else 130


def check_enough(data, args):
    """Exit if there are fewer digits to train on than a batch has."""
    sizes = {"--batch-size": args.batch_size}
    if args.statistics_steps:
        sizes["with --statistics-steps, a batch size"] = max(
            STATISTICS_BATCH_SIZES)
    for what, size in sizes.items():
        if size > len(data.x_train):
            sys.exit(f"mnist.py: error: {what} is {size}, but there are "
                     f"{len(data.x_train)} digits to train on")


if __name__ == "__main__":
    sys.exit(main())
