"""Compare statistics that a network can be tested with.

``mnist.py`` does this at its end: it trains with batch norm in batches of 4,
16 and 60, and prints the test accuracy with the running averages, and with
the statistics of all training digits, from one pass or layer by layer.
"""

import os

from bnlasagne import plot_statistics, update_population_statistics

import numpy as np
from network import CHUNK_SIZE, batches, chunks_of
from tqdm import tqdm

# The fewer digits in a batch, the further are its statistics from those of
# all digits: running averages follow them, and one pass normalizes by them.
BATCH_SIZES = 4, 16, 60
PICTURED_BATCH_SIZE = 4


def compare_statistics(build, data, args):
    """Print the table; return False if the user interrupted it.

    `build` returns a new network with batch norm, of :class:`mnist.Network`.
    """
    print(f"Test accuracy with batch norm, {args.statistics_steps} steps, by "
          "the statistics in testing")
    print("  batch size   running averages   one pass   layer by layer")
    path = statistics_path(args.output)
    rows = []
    try:
        for size in BATCH_SIZES:
            network = build()
            train_in_batches_of(size, network, data, args)
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


def train_in_batches_of(size, network, data, args):
    """Train a network for the comparison."""
    stream = batches(data.x_train, data.y_train, size, args.seed)
    # The bar would stand between the rows of the table, so it vanishes.
    for _ in tqdm(range(args.statistics_steps), f"batches of {size}",
                  unit=" steps", leave=False, disable=args.quiet):
        network.train(*next(stream))


def test_statistics(network, size, data, args):
    """Test a network, trained in batches of `size`, with three statistics.

    Returns the accuracies with running averages, one pass and layer by layer,
    and the statistics found layer by layer.
    """
    def progress(chunks):
        return tqdm(chunks, "statistics", unit=" chunks", leave=False,
                    disable=args.quiet)

    running = network.accuracy(data)
    # First those that replace the running averages and are compared with them.
    found = update_population_statistics(
        network.output, chunks_of(data.x_train, CHUNK_SIZE),
        progress=progress)
    layerwise = network.accuracy(data)
    # In one pass, layers normalize as they did in training.
    update_population_statistics(
        network.output, chunks_of(data.x_train, size), method="one_pass",
        progress=progress)
    return [running, network.accuracy(data), layerwise], found


def conclusion_from(rows):
    """Say what the rows of the table mean for the user's own network."""
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


def statistics_path(output):
    """Name the picture of statistics after that of the curves."""
    root, extension = os.path.splitext(output)
    return root + "_statistics" + extension
