"""One batch, the same in micro-batches, and small batches: what they train.

Trains the network of ``mnist.py`` from the same weights on the same digits,
60 of them for each step, in several ways:

1. in batches of 60;
2. in 6 micro-batches of 10, accumulated: ``GradientAccumulator.function()``;
3. likewise, but exactly: ``GradientAccumulator.exact_function()``;
4. in plain batches of 10, each the first of the six, without accumulation.

Prints the test accuracies, and saves a picture of them and of the running
standard deviations, which are what each network is tested with: the exact ones
coincide with those of the batch of 60, those of the accumulated micro-batches
stay close, and those of batches of 10 go their own way::

    python examples/accumulate.py
    python examples/accumulate.py --steps 3000

Ctrl-C stops the training early and still saves the picture.
"""

import argparse
import sys
from collections import namedtuple

import options  # isort: skip  # First: it has Ctrl-C end in one line.

# First: repairs imports.
from bnlasagne import GradientAccumulator  # isort: skip

import digits
import lasagne
import numpy as np
import theano
import theano.tensor as T
from matplotlib.figure import Figure
from mnist import batches, build_network, steps_to_test
from tqdm import tqdm

BATCH_SIZE, MICRO_BATCH_SIZE = 60, 10

Way = namedtuple("Way", "label style train test averages")
Way.__doc__ = """A way to train: its functions, and its running averages."""


def prepare(label, style, make_step, args):
    """Build a network and compile its functions.

    Parameters
    ----------
    label, style : str
        For the picture.
    make_step : callable
        Takes the inputs, the loss, the parameters and the learning rate, and
        returns a function that makes a step of a batch.
    args : argparse.Namespace
        The command line.

    Returns
    -------
    Way
    """
    x, y = T.tensor4("x"), T.ivector("y")
    network = build_network(x, True, args.seed)
    prediction = lasagne.layers.get_output(network)
    loss = lasagne.objectives.categorical_crossentropy(prediction, y).mean()
    params = lasagne.layers.get_all_params(network, trainable=True)
    prediction = lasagne.layers.get_output(network, deterministic=True)
    accuracy = T.mean(T.eq(T.argmax(prediction, axis=1), y))
    averages = lasagne.layers.get_all_params(network, batch_norm_stat=True)
    return Way(label, style, make_step([x, y], loss, params, args),
               theano.function([x, y], accuracy), averages)


def plain_step(inputs, loss, params, args):
    """A step of a batch as it is."""
    return theano.function(inputs, updates=lasagne.updates.sgd(
        loss, params, args.learning_rate))


def step_of_first_part(inputs, loss, params, args):
    """A step of the first micro-batch only."""
    step = plain_step(inputs, loss, params, args)
    return lambda *batch: step(*parts_of(batch)[0])


def accumulated_step(inputs, loss, params, args):
    """A step of all micro-batches."""
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
    """A step of all micro-batches, as if they were one batch."""
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
    """Cut a batch into micro-batches."""
    x, y = batch
    return [(x[start:start + MICRO_BATCH_SIZE],
             y[start:start + MICRO_BATCH_SIZE])
            for start in range(0, len(x), MICRO_BATCH_SIZE)]


def compare(ways, data, args):
    """Train all ways side by side.

    Parameters
    ----------
    ways : list of Way
    data : digits.Digits
    args : argparse.Namespace
        The command line.

    Returns
    -------
    list of (int, list of float, list of array)
        Steps made; for each way, the test accuracy, and the running standard
        deviations of the first and the last layer, mean over the channels.
        Ends early where the user interrupted it.
    """
    stream = batches(data.x_train, data.y_train, BATCH_SIZE, args.seed)
    stops = set(steps_to_test(args.steps))
    rows = []
    for number, way in enumerate(ways, 1):
        print(f"  ({number}) {way.label}")
    print("  steps" + "".join(f"      ({number})"
                              for number in range(1, len(ways) + 1)))
    with tqdm(total=args.steps, unit=" steps", disable=args.quiet) as bar:
        try:
            for step in range(1, args.steps + 1):
                batch = next(stream)
                for way in ways:
                    way.train(*batch)
                bar.update()
                if step in stops:
                    rows.append((step, *measure(ways, data)))
                    bar.write(f"{step:7d}" + "".join(
                        f"   {accuracy:.4f}" for accuracy in rows[-1][1]))
        except KeyboardInterrupt:
            bar.write(f"Interrupted after {bar.n} steps.")
    return rows


def measure(ways, data):
    """Test accuracies and running standard deviations of all ways."""
    accuracies = [float(way.test(data.x_test, data.y_test)) for way in ways]
    # Mean and standard deviation alternate, layer by layer.
    stds = [np.array([way.averages[index].get_value().mean()
                      for index in (1, -1)]) for way in ways]
    return accuracies, stds


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
    parser.add_argument(
        "--steps", type=options.at_least(1), default=500, metavar="N",
        help="train for N steps (default: %(default)s)")
    options.add_learning_rate(parser, 0.1, "gradient descent")
    options.add_seed(parser)
    options.add_data(parser)
    options.add_output(parser, "accumulate.png",
                       "the curves as this PNG file")
    return parser.parse_args()


def main():
    """Train in all ways, and save the picture."""
    args = parse_arguments()
    try:
        data = digits.load(args.data)
    except digits.DataError as error:
        sys.exit(f"accumulate.py: error: {error}")
    if len(data.x_train) < BATCH_SIZE:
        sys.exit(f"accumulate.py: error: a batch has {BATCH_SIZE} digits, but "
                 f"there are {len(data.x_train)} digits to train on")
    options.announce_compiling(args.quiet)
    ways = [prepare(*way, args) for way in WAYS]
    rows = compare(ways, data, args)
    if rows:
        plot(rows, ways, args.output)
        print(f"Saved the curves as {args.output}.")
    # 130 is what a shell reports for a program that Ctrl-C ended.
    return 0 if len(rows) == len(steps_to_test(args.steps)) else 130


if __name__ == "__main__":
    sys.exit(main())
