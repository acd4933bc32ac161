"""Digits on several processes: each step's batch is shared out among them.

Trains the network of ``mnist.py``, with batch norm, on as many processes as
``mpiexec`` starts, the ranks; on as many machines, too::

    mpiexec -n 2 python -m mpi4py examples/mnist_mpi.py

(``python -m mpi4py`` ends all of them where one ends with an error.) Each rank
computes with one part of the batch. What the ranks exchange are the sums that
batch norm's statistics are made of, and the gradients: all make the step that
one process would make with the whole batch. In the end, they find the
statistics of all training digits together, each from its own share of these,
and test the network, again each with its share.

Then rank 0 makes the first steps once more, alone and with whole batches, and
compares: if that leads to other weights than the ranks came to together, the
program ends with an error.

Where ranks share a machine, each should keep to one core: set OMP_NUM_THREADS
to 1. A network this small is no faster on two cores than on one.
"""

import argparse
import sys
from collections import namedtuple

import options  # isort: skip  # First: it has Ctrl-C end in one line.

# First: repairs imports.
from bnlasagne import (  # isort: skip
    average_gradients,
    batch_norm,
    broadcast_params,
    update_population_statistics,
    world,
)

import digits
import lasagne
import numpy as np
import theano
import theano.tensor as T
from mnist import ALPHA, CHUNK_SIZE, batches, chunks_of, steps_to_test
from tqdm import tqdm

# After so many steps, the ranks must have come to what one process comes to.
# Rounding errors grow with every step.
CHECK_STEPS = 20
TOLERANCE = 1e-4

Network = namedtuple("Network", "output train count_right")
Network.__doc__ = """A network's output layer, and its two functions."""


def build_network(x, seed, comm):
    """Build 784-100-100-100-10, with batch norm.

    Parameters
    ----------
    x : Theano tensor4
        This rank's images, shape (its part of the batch, 1, 28, 28).
    seed : int
        Of the weights.
    comm : mpi4py communicator or None
        The ranks that share each batch; None for one process alone.

    Returns
    -------
    lasagne.layers.Layer
        The output layer, with 10 units.
    """
    lasagne.random.set_rng(np.random.RandomState(seed))
    weights = lasagne.init.Normal(0.1)
    network = lasagne.layers.InputLayer((None, 1, 28, 28), x)
    for number in 1, 2, 3:
        network = batch_norm(lasagne.layers.DenseLayer(
            network, 100, W=weights, name=f"hidden{number}",
            nonlinearity=lasagne.nonlinearities.sigmoid,
        ), alpha=ALPHA, comm=comm)
    return lasagne.layers.DenseLayer(
        network, 10, W=weights, nonlinearity=lasagne.nonlinearities.softmax)


def compile_network(learning_rate, seed, comm):
    """Compile the functions that train and test a network.

    Parameters
    ----------
    learning_rate : float
    seed : int
        Of the weights.
    comm : mpi4py communicator or None
        See `build_network`.

    Returns
    -------
    Network
        Both functions take this rank's images and labels. `train` makes a
        step, together with the other ranks, and returns the loss of the whole
        batch; `count_right` returns how many of this rank's images the network
        names right.
    """
    x, y = T.tensor4("x"), T.ivector("y")
    network = build_network(x, seed, comm)

    prediction = lasagne.layers.get_output(network)
    loss = lasagne.objectives.categorical_crossentropy(prediction, y).mean()
    params = lasagne.layers.get_all_params(network, trainable=True)
    if comm is None:
        gradients = theano.grad(loss, params)
    else:
        gradients, [loss] = average_gradients(
            loss, params, comm, size=x.shape[0], outputs=[loss])
    updates = lasagne.updates.sgd(gradients, params, learning_rate)
    train = theano.function([x, y], loss, updates=updates)

    prediction = lasagne.layers.get_output(network, deterministic=True)
    right = T.sum(T.eq(T.argmax(prediction, axis=1), y))
    return Network(network, train, theano.function([x, y], right))


def part_of(batch, comm):
    """This rank's part of a batch; parts differ in size by one at most."""
    return [np.array_split(array, comm.size)[comm.rank] for array in batch]


def share_of(array, comm):
    """This rank's share of all digits: every so many'th, from its own."""
    return array[comm.rank::comm.size]


def values_of(network):
    """All parameters of a network, running averages included."""
    return lasagne.layers.get_all_param_values(network.output)


def accuracy(network, data, comm):
    """Test a network on all test digits, each rank on its share."""
    right = network.count_right(share_of(data.x_test, comm),
                                share_of(data.y_test, comm))
    return comm.allreduce(int(right)) / len(data.x_test)


def train(network, data, args, comm):
    """Train a network on all ranks; print the loss and the test accuracy.

    Parameters
    ----------
    network : Network
    data : digits.Digits
        All of them, alike on all ranks.
    args : argparse.Namespace
        The command line.
    comm : mpi4py communicator

    Returns
    -------
    list of array
        The parameters after `CHECK_STEPS` steps, or the last.
    """
    # All ranks draw the same batches, by the same seed.
    stream = batches(data.x_train, data.y_train, args.batch_size, args.seed)
    stops = set(steps_to_test(args.steps))
    with tqdm(total=args.steps, unit=" steps",
              disable=args.quiet or comm.rank > 0) as bar:
        for step in range(1, args.steps + 1):
            loss = network.train(*part_of(next(stream), comm))
            bar.update()
            if step == min(args.steps, CHECK_STEPS):
                checked = values_of(network)
            if step in stops:
                # Not on rank 0 only: testing takes all ranks.
                right = accuracy(network, data, comm)
                if comm.rank == 0:
                    bar.write(f"{step:7d}   {float(loss):13.4f}   "
                              f"{right:13.4f}")
    return checked


def check(found, data, args):
    """Make the first steps in one process, and compare; for rank 0 alone.

    Nothing in here may take other ranks: they are not there.

    Parameters
    ----------
    found : list of list of array
        The parameters that each rank came to.
    data : digits.Digits
    args : argparse.Namespace
        The command line.
    """
    steps = min(args.steps, CHECK_STEPS)
    network = compile_network(args.learning_rate, args.seed, None)
    stream = batches(data.x_train, data.y_train, args.batch_size, args.seed)
    for _ in range(steps):
        network.train(*next(stream))
    # Not by Python's max(), which may overlook NaN.
    difference = np.max([
        np.abs(value - expected).max() / np.abs(expected).max()
        for values in found
        for value, expected in zip(values, values_of(network))])
    if not difference <= TOLERANCE:
        sys.exit(f"mnist_mpi.py: error: after {steps} steps, the parameters "
                 "are not those of one process with whole batches: they "
                 f"differ by {difference:.1e} of the largest")
    print(f"After {steps} steps, it matches one process with whole batches: "
          f"parameters differ by {difference:.1e} of the largest at most.")


def on_rank_0(comm, function, *arguments):
    """Call a function on rank 0 only, where all ranks wait for its result.

    If it exits, so do all ranks. Any other error ends the job.
    """
    result = code = None
    if comm.rank == 0:
        try:
            result = function(*arguments)
        except SystemExit as error:
            code = error.code or 0
            if isinstance(code, str):
                # Now, for when another rank has ended it may be too late.
                print(code, file=sys.stderr, flush=True)
                code = 1
    result, code = comm.bcast((result, code))
    if code is not None:
        sys.exit(code)
    return result


def load(args, n_ranks):
    """Load the digits, and check that there are enough for a batch."""
    try:
        data = digits.load(args.data)
    except digits.DataError as error:
        sys.exit(f"mnist_mpi.py: error: {error}")
    if args.batch_size > len(data.x_train):
        sys.exit(f"mnist_mpi.py: error: --batch-size is {args.batch_size}, "
                 f"but there are {len(data.x_train)} digits to train on")
    if args.batch_size < n_ranks:
        sys.exit(f"mnist_mpi.py: error: --batch-size is {args.batch_size}, "
                 f"but each of {n_ranks} processes is to have a digit")
    return data


def parse_arguments():
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description="Train a network with batch normalization on digits, on "
        "several processes: mpiexec -n 2 python -m mpi4py %(prog)s")
    parser.add_argument(
        "--steps", type=options.at_least(1), default=1000, metavar="N",
        help="train for N steps (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=options.BATCH_SIZE, default=60, metavar="N",
        help="digits in a batch, of all processes together "
        "(default: %(default)s)")
    options.add_learning_rate(parser, 0.1, "gradient descent")
    options.add_seed(parser)
    options.add_data(parser)
    return parser.parse_args()


def main():
    """Train, find the statistics, test, and compare with one process."""
    try:
        comm = world()
    except ImportError as error:
        sys.exit(f"mnist_mpi.py: error: {error}")
    # Also what it prints if it is wrong, and files that are to be fetched.
    args = on_rank_0(comm, parse_arguments)
    data = on_rank_0(comm, load, args, comm.size)
    if comm.rank == 0:
        print(f"{comm.size} processes" if comm.size > 1 else
              "1 process; start it with mpiexec -n 2 python -m mpi4py "
              "examples/mnist_mpi.py")
        options.announce_compiling(args.quiet)
        print("  steps   training loss   test accuracy", flush=True)

    # Ranks may start from different weights: those of rank 0 are everyone's.
    seed = (args.seed + comm.rank) % 2 ** 32
    network = compile_network(args.learning_rate, seed, comm)
    broadcast_params(network.output, comm)
    checked = train(network, data, args, comm)

    update_population_statistics(
        network.output, chunks_of(share_of(data.x_train, comm), CHUNK_SIZE),
        comm=comm)
    right = accuracy(network, data, comm)
    if comm.rank == 0:
        print("Test accuracy with the statistics of all training digits: "
              f"{right:.4f}", flush=True)
    if comm.size > 1:
        on_rank_0(comm, check, comm.gather(checked), data, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
