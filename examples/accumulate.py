"""Compare a batch, the same in micro-batches, and small batches.

Trains the network of ``mnist.py`` from the same weights on the same digits,
60 of them for each step, in several ways:

1. in batches of 60;
2. in 6 micro-batches of 10, exactly: ``GradientAccumulator.exact_function()``;
3. in 6 micro-batches of 10: ``GradientAccumulator.function()``;
4. in plain batches of 10, each the first of the six, without accumulation.

Prints the test accuracies. Saves a picture of them, and of the running
standard deviations that each network is tested with. The exact ones coincide
with those of the batch of 60. Those of the accumulated micro-batches stay
close. Those of batches of 10 differ::

    python examples/accumulate.py
    python examples/accumulate.py --steps 3000

Ctrl-C stops the training early and still saves the picture.
"""

import argparse
import sys
from typing import Callable, NamedTuple

import options  # isort: skip  # First: it has Ctrl-C end in one line.

# First: repairs imports.
from bnlasagne import GradientAccumulator, keep_freed_memory  # isort: skip

import digits
import lasagne
import numpy as np
import theano
import theano.tensor as T
from matplotlib.figure import Figure
from network import (
    are_right,
    batches,
    build_network,
    chunks_of,
    training_loss,
)
from side_by_side import are_complete, train_side_by_side

BATCH_SIZE, MICRO_BATCH_SIZE = 60, 10


class Way(NamedTuple):
    """A way to train: its functions, and its running averages."""

    label: str
    style: str
    train: Callable
    test: Callable
    averages: list


def prepare(label, style, make_step, args):
    """Build a network and compile its functions.

    `make_step` returns a function that makes a step of a batch.
    """
    x, y = T.tensor4("x"), T.ivector("y")
    network = build_network(x, args.seed)
    loss = training_loss(network, y)
    params = lasagne.layers.get_all_params(network, trainable=True)
    accuracy = are_right(network, y).mean()
    averages = lasagne.layers.get_all_params(network, batch_norm_stat=True)
    return Way(label, style, make_step([x, y], loss, params, args),
               theano.function([x, y], accuracy), averages)


def plain_step(inputs, loss, params, args):
    """Compile a step of the whole batch."""
    return theano.function(inputs, updates=lasagne.updates.sgd(
        loss, params, args.learning_rate))


def step_of_first_part(inputs, loss, params, args):
    """Compile a step of the first micro-batch only."""
    step = plain_step(inputs, loss, params, args)
    return lambda *batch: step(*parts_of(batch)[0])


def accumulated_step(inputs, loss, params, args):
    """Compile a step of all micro-batches."""
    accumulator = GradientAccumulator(params)
    accumulate = accumulator.function(inputs, loss)
    step = accumulator.step_function(
        lasagne.updates.sgd, learning_rate=args.learning_rate)

    def train(*batch):
        for part in parts_of(batch):
            accumulate(*part)
        step()
    return train


def exact_step(inputs, loss, params, args):
    """Compile a step of all micro-batches, as if they were one batch."""
    accumulator = GradientAccumulator(params)
    accumulate = accumulator.exact_function(inputs, loss)
    step = accumulator.step_function(
        lasagne.updates.sgd, learning_rate=args.learning_rate)

    def train(*batch):
        accumulate(parts_of(batch))
        step()
    return train


WAYS = [
    (f"a batch of {BATCH_SIZE}", "C0-", plain_step),
    ("6 micro-batches of 10, exact", "k:", exact_step),
    ("6 micro-batches of 10, accumulated", "C1-", accumulated_step),
    ("a batch of 10", "C2-", step_of_first_part),
]


def parts_of(batch):
    """Cut images and labels into micro-batches."""
    return list(zip(*(chunks_of(array, MICRO_BATCH_SIZE) for array in batch)))


def compare(ways, data, args):
    """Train all ways side by side, and print test accuracies.

    Returns rows of steps made; for each way, the test accuracy; and for each
    way, the running standard deviations of the first and the last layer, mean
    over the channels. There are fewer rows if the user interrupted it.
    """
    stream = batches(data.x_train, data.y_train, BATCH_SIZE, args.seed)
    for number, way in enumerate(ways, 1):
        print(f"  ({number}) {way.label}")
    print("  steps" + "".join(f"      ({number})"
                              for number in range(1, len(ways) + 1)))
    return train_side_by_side([way.train for way in ways], stream,
                              lambda step: measure(step, ways, data), args)


def measure(step, ways, data):
    """Test all ways; return a row to plot and a row of the table."""
    accuracies = [float(way.test(data.x_test, data.y_test)) for way in ways]
    # Mean and standard deviation alternate, layer by layer.
    stds = [np.array([way.averages[index].get_value().mean()
                      for index in (1, -1)]) for way in ways]
    line = "".join(f"   {accuracy:.4f}" for accuracy in accuracies)
    return (step, accuracies, stds), f"{step:7d}{line}"


def plot(rows, ways, path):
    """Save accuracies and standard deviations as a PNG file."""
    figure = Figure(figsize=(13, 4.5))  # without pyplot: needs no display
    panels = figure.subplots(1, 3)
    steps = [row[0] for row in rows]
    titles = ["Test accuracy", "Running std, first layer",
              "Running std, last layer"]
    for index, way in enumerate(ways):
        curves = [[row[1][index] for row in rows]] + [
            [row[2][index][layer] for row in rows] for layer in (0, 1)]
        for axes, curve in zip(panels, curves):
            axes.plot(steps, curve, way.style, marker=".", label=way.label)
    for axes, title in zip(panels, titles):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.3)
        axes.set_title(title)
        axes.set_xlabel("training steps")
    for axes in panels[1:]:
        axes.set_ylabel("mean over channels")
    panels[0].legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def parse_arguments():
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description="Compare a batch of 60 digits, the same in micro-batches, "
        "and batches of 10, all with batch normalization.")
    options.add_steps(parser, 500)
    options.add_learning_rate(parser, 0.1, "gradient descent")
    options.add_seed(parser)
    options.add_data(parser)
    options.add_output(parser, "accumulate.png",
                       "the curves as this PNG file")
    return parser.parse_args()


def main():
    """Train in all ways, and save the picture."""
    args = parse_arguments()
    keep_freed_memory()
    data = digits.load_or_exit(args.data, {"the batch size": BATCH_SIZE})
    options.announce_compiling(args.quiet)
    ways = [prepare(*way, args) for way in WAYS]
    rows = compare(ways, data, args)
    if rows:
        plot(rows, ways, args.output)
        print(f"Saved the curves as {args.output}.")
    return 0 if are_complete(rows, args) else options.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
