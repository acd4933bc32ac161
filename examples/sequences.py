"""Read lines of digits, of unequal length, with and without a mask.

Lines in a batch are padded to the length of the longest (see ``lines.py``),
and most of a batch is padding. Three networks learn to name the largest digit
of a line, side by side, from the same weights and the same batches. Each has
three convolutions along the line, with batch norm. They differ in what the
padding does:

1. it does not count: ``batch_norm(layer, mask_input=mask)``;
2. it counts in the statistics, and is set to zero after batch norm;
3. it counts as all columns do.

Prints the test accuracy of all three as they learn, and saves the curves as a
picture. In the end, it tests lines without any padding, and prints how many
of the answers change. In short lines, there is less padding::

    python examples/sequences.py
    python examples/sequences.py --longest 2

Ctrl-C stops the training early and still saves the curves.
"""

import argparse
import sys
from typing import Callable, NamedTuple

import options  # isort: skip  # First: it has Ctrl-C end in one line.

# First: repairs imports.
from bnlasagne import batch_norm, keep_freed_memory  # isort: skip

import digits
import lasagne
import numpy as np
import theano
import theano.tensor as T
from lasagne.layers import (
    Conv1DLayer,
    DenseLayer,
    GlobalPoolLayer,
    InputLayer,
    MergeLayer,
    get_all_params,
    get_output,
)
from lines import (
    HEIGHT,
    cut_out,
    of_equal_length,
    padded,
    padded_batches,
    write_lines,
)
from network import ALPHA, chunks_of, training_loss
from side_by_side import are_complete, plot_accuracies, train_side_by_side

MASKED, ZEROED, COUNTED = WAYS = (
    "padding does not count", "padding counts, then is zero", "padding counts")
BATCH_SIZE = 50
STYLES = dict(zip(WAYS, ("o-C0", "^-C2", "s-C1")))


class Network(NamedTuple):
    """The functions of a network, of lines and their mask.

    `train`, which takes labels as well, makes a step. `answer` returns the
    digit that the network names for each line.
    """

    train: Callable
    answer: Callable


class SetPaddingToZero(MergeLayer):
    """Set to zero what is padding, of a layer (batch, channels, columns)."""

    def get_output_shape_for(self, input_shapes):
        return input_shapes[0]

    def get_output_for(self, inputs, **kwargs):
        values, mask = inputs
        return values * mask.dimshuffle(0, "x", 1)


def build_network(x, mask, way, seed):
    """Build a network; return its output layer, of shape (batch, 10).

    `x` is a tensor3 of lines, (batch, 14, columns), and `mask` a matrix,
    (batch, columns). `way` is one of `WAYS`.
    """
    lasagne.random.set_rng(np.random.RandomState(seed))
    network = InputLayer((None, HEIGHT, None), x)
    l_mask = InputLayer((None, None), mask)
    for _ in range(3):
        network = Conv1DLayer(network, 32, 5, pad="same")
        network = batch_norm(network, alpha=ALPHA,
                             mask_input=l_mask if way == MASKED else None)
        if way == ZEROED:
            network = SetPaddingToZero([network, l_mask])
    # The rectifier leaves no value below zero. So where padding is zero, the
    # largest value of a line is that of a column of the line.
    network = GlobalPoolLayer(network, T.max)
    return DenseLayer(network, 10, nonlinearity=lasagne.nonlinearities.softmax)


def compile_network(way, args):
    """Build a network, and compile its functions."""
    x, mask, y = T.tensor3("x"), T.matrix("mask"), T.ivector("y")
    network = build_network(x, mask, way, args.seed)
    loss = training_loss(network, y)
    params = get_all_params(network, trainable=True)
    updates = lasagne.updates.adam(loss, params, args.learning_rate)
    # One of the networks does not know the mask.
    train = theano.function([x, mask, y], updates=updates,
                            on_unused_input="ignore")
    answer = get_output(network, deterministic=True).argmax(axis=1)
    return Network(train, theano.function([x, mask], answer,
                                          on_unused_input="ignore"))


def compare(networks, data, args):
    """Train the networks; print and return their test accuracies.

    Returns rows of steps made, then the accuracy of each network; fewer rows
    if the user interrupted the training.
    """
    lines, labels = lines_from(data.x_train, data.y_train, args)
    stream = padded_batches(lines, labels, BATCH_SIZE, args.seed)
    test_lines, test_labels = lines_from(data.x_test, data.y_test, args)

    def measure(step):
        row = (step, *(np.mean(answers(network, test_lines) == test_labels)
                       for network in networks))
        return row, "{:7d}   {:.4f}   {:.4f}   {:.4f}".format(*row)

    print(f"{share_of_padding(test_lines):.0%} of the test batches is padding")
    for number, way in enumerate(WAYS, 1):
        print(f"  ({number}) {way}")
    print("  steps      (1)      (2)      (3)")
    rows = train_side_by_side([network.train for network in networks], stream,
                              measure, args)
    if are_complete(rows, args):
        changes = [(answers(network, test_lines)
                    != answers_without_padding(network, test_lines)).sum()
                   for network in networks]
        print("Without padding, the answers to {}, {} and {} of {} lines "
              "change.".format(*changes, len(test_lines)))
    return rows


def lines_from(images, labels, args):
    """Write half as many lines as there are digits, with their labels."""
    return write_lines(cut_out(images), labels, len(labels) // 2,
                       args.longest, args.seed)


def share_of_padding(lines):
    """Tell which share of batches is padding, from 0 to 1."""
    masks = [padded(part)[1] for part in chunks_of(lines, BATCH_SIZE)]
    return 1 - sum(mask.sum() for mask in masks) / sum(
        mask.size for mask in masks)


def answers(network, lines):
    """Let a network read lines, in batches as large as those in training."""
    return np.concatenate([network.answer(*padded(part))
                           for part in chunks_of(lines, BATCH_SIZE)])


def answers_without_padding(network, lines):
    """Let a network read lines, each batch of lines of equal length."""
    found = np.empty(len(lines), "int64")
    for chosen in of_equal_length(lines):
        found[chosen] = network.answer(*padded([lines[i] for i in chosen]))
    return found


def caption_of(args):
    """Say what the curves were measured on."""
    data = args.data or "MNIST (LeCun, Cortes and Burges)"
    return (f"Three convolutions, batches of {BATCH_SIZE}, Adam, learning "
            f"rate {args.learning_rate:g}, seed {args.seed}.\nData: lines "
            f"of 1 to {args.longest} digits, padded, of {data}.")


def parse_arguments():
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description="Read lines of digits, of unequal length, with batch "
        "normalization that knows the padding and that does not.")
    options.add_steps(parser, 1000)
    parser.add_argument(
        "--longest", type=options.at_least(1), default=12, metavar="N",
        help="digits in the longest lines (default: %(default)s)")
    options.add_learning_rate(parser, 0.003, "Adam")
    options.add_seed(parser, "the weights, the lines and the batches")
    options.add_data(parser)
    options.add_output(parser, "sequences.png", "the curves as this PNG file")
    return parser.parse_args()


def main():
    """Train the networks, print their accuracies and save the picture."""
    args = parse_arguments()
    keep_freed_memory()
    # There are half as many lines as digits.
    data = digits.load_or_exit(args.data,
                               {"twice the batch size": 2 * BATCH_SIZE})
    options.announce_compiling(args.quiet)
    rows = compare([compile_network(way, args) for way in WAYS], data, args)
    if rows:
        figure = plot_accuracies(
            rows, STYLES, "The largest digit of a line: test accuracy while "
            "training", caption_of(args))
        figure.savefig(args.output, dpi=150)
        print(f"Saved the curves as {args.output}.")
    return 0 if are_complete(rows, args) else options.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
