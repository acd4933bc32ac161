"""Train on digits in several processes, which share each batch.

Trains the network of ``mnist.py``, with batch norm, in as many processes as
``mpiexec`` starts, the ranks; on several machines, too::

    mpiexec -n 2 python -m mpi4py examples/mnist_mpi.py

(``python -m mpi4py`` ends all ranks if one ends with an error.) Each rank
computes one part of the batch. The ranks exchange the moments of their parts
and the gradients, so they make the step that one process would make with the
whole batch. In the end, they compute the statistics of all training digits
together, each rank from its share of the digits. They also share the test.

Then rank 0 makes the first steps once more, alone and with whole batches. If
this leads to other weights, the program ends with an error.

If ranks share a machine, each should use one core: set OMP_NUM_THREADS to 1. A
network this small is no faster on two cores than on one.
"""

import argparse
import sys
from typing import Callable, NamedTuple

import options  # isort: skip  # First: it has Ctrl-C end in one line.

# First: repairs imports.
from bnlasagne import (  # isort: skip
    average_gradients,
    broadcast_params,
    keep_freed_memory,
    update_population_statistics,
    world,
)

import digits
import lasagne
import numpy as np
import theano
import theano.tensor as T
from network import (
    CHUNK_SIZE,
    are_right,
    batches,
    build_network,
    chunks_of,
    steps_to_test,
    training_loss,
)
from tqdm import tqdm

# After so many steps, the ranks must have the weights of one process.
# Rounding errors grow with every step.
CHECK_STEPS = 20
TOLERANCE = 1e-4


class Network(NamedTuple):
    """The output layer of a network, and functions of images and labels.

    They take those of this rank. `train` makes a step, together with the other
    ranks, and returns the loss of the whole batch. `count_right` returns how
    many of this rank's images the network names right.
    """

    output: lasagne.layers.Layer
    train: Callable
    count_right: Callable


def compile_network(learning_rate, seed, comm):
    """Build a network, and compile the functions that train and test it.

    `comm` are the ranks that share each batch; None for one process alone.
    """
    x, y = T.tensor4("x"), T.ivector("y")
    network = build_network(x, seed, comm=comm)
    loss = training_loss(network, y)
    params = lasagne.layers.get_all_params(network, trainable=True)
    if comm is None:
        gradients = theano.grad(loss, params)
    else:
        gradients, [loss] = average_gradients(
            loss, params, comm, size=x.shape[0], outputs=[loss])
    updates = lasagne.updates.sgd(gradients, params, learning_rate)
    train = theano.function([x, y], loss, updates=updates)

    right = theano.function([x, y], are_right(network, y).sum())
    return Network(network, train, right)


def part_of(batch, comm):
    """Take this rank's part of a batch; parts differ by one digit at most."""
    return [np.array_split(array, comm.size)[comm.rank] for array in batch]


def share_of(array, comm):
    """Take this rank's share of all digits."""
    return array[comm.rank::comm.size]


def values_of(network):
    """List all parameters of a network, running averages included."""
    return lasagne.layers.get_all_param_values(network.output)


def accuracy(network, data, comm):
    """Test a network on all test digits, each rank on its share."""
    right = network.count_right(share_of(data.x_test, comm),
                                share_of(data.y_test, comm))
    return comm.allreduce(int(right)) / len(data.x_test)


def train(network, data, args, comm):
    """Train a network on all ranks; print the loss and the test accuracy.

    Returns the parameters after `CHECK_STEPS` steps, or the last step.
    """
    # All ranks draw the same batches, by the same seed.
    stream = batches(data.x_train, data.y_train, args.batch_size, args.seed)
    stops = set(steps_to_test(args.steps))
    for step in tqdm(range(1, args.steps + 1), unit=" steps",
                     disable=args.quiet or comm.rank > 0):
        loss = network.train(*part_of(next(stream), comm))
        if step == min(args.steps, CHECK_STEPS):
            checked = values_of(network)
        if step in stops:
            # Not on rank 0 only: testing takes all ranks.
            right = accuracy(network, data, comm)
            if comm.rank == 0:
                options.say(f"{step:7d}   {float(loss):13.4f}   "
                            f"{right:13.4f}")
    return checked


def check(found, data, args):
    """Make the first steps in one process, and compare; on rank 0 alone.

    `found` are the parameters that each rank has come to. Nothing in here may
    send messages: the other ranks are not there.
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
    """Call a function on rank 0 only; all ranks wait for its result.

    If it exits, all ranks exit. Any other error ends the job.
    """
    result = code = None
    if comm.rank == 0:
        try:
            result = function(*arguments)
        except SystemExit as error:
            code = error.code or 0
            if isinstance(code, str):
                # Now: once another rank has ended, it may be too late.
                print(code, file=sys.stderr, flush=True)
                code = 1
    result, code = comm.bcast((result, code))
    if code is not None:
        sys.exit(code)
    return result


def load(args, n_ranks):
    """Load the digits, and check that there are enough for a batch."""
    data = digits.load_or_exit(args.data, {"--batch-size": args.batch_size})
    if args.batch_size < n_ranks:
        sys.exit(f"mnist_mpi.py: error: --batch-size is {args.batch_size}, "
                 f"but each of {n_ranks} processes is to have a digit")
    return data


def parse_arguments():
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description="Train a network with batch normalization on digits, on "
        "several processes: mpiexec -n 2 python -m mpi4py %(prog)s")
    options.add_steps(parser, 1000)
    options.add_batch_size(parser, 60, ", of all processes together")
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
    # On one rank only: messages are printed once, and files fetched once.
    args = on_rank_0(comm, parse_arguments)
    keep_freed_memory()
    data = on_rank_0(comm, load, args, comm.size)
    if comm.rank == 0:
        print(f"{comm.size} processes" if comm.size > 1 else
              "1 process; start it with mpiexec -n 2 python -m mpi4py "
              "examples/mnist_mpi.py")
        options.announce_compiling(args.quiet)
        print("  steps   training loss   test accuracy", flush=True)

    # Ranks may start from different weights: all take those of rank 0.
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
