"""Measure steps and messages on several ranks.

`measure` starts this module under ``mpiexec``.
"""

import gc
import random
import shutil
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from .speed import _cpu_clock, _used_by_others, answer, environment, run_module

# Calls of a variant in its turn in a round.
CALLS = 15
GLOBAL_BATCH, RANK_BATCH = 128, 32
# Channels of the batch normalization of each network.
CHANNELS = {"convolutional": [16, 32, 64], "dense": [256] * 12}
MESSAGE_BYTES = [8, 64, 512, 4096, 2 ** 15, 2 ** 18, 2 ** 21, 2 ** 23]
# Channels of the layers whose moments are merged.
MERGED_CHANNELS = [16, 64, 256, 1024, 2048]


def measure(ranks, rounds):
    """Measure on a number of ranks.

    Returns
    -------
    dict
        ``rows``: for each network and size of a batch, what `_step_times`
        returns; ``others``: for each round, the cores that other jobs used;
        ``messages``: for each message, the seconds in each round; and
        ``merge``: for each number of bytes, the seconds of one merge.
    """
    beside = Path(sys.executable).parent / "mpiexec"
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        sys.exit("There is no mpiexec: pip install '.[mpi]'")
    return run_module(
        "ranks", {"rounds": rounds},
        dict(environment(1), PYTHONWARNINGS="ignore"),
        launcher=[mpiexec, "-n", str(ranks)])


def _measure_here(rounds):
    from bnlasagne import world

    comm = world()
    gc.disable()
    messages = _message_times(comm, rounds) if comm.size > 1 else None
    found = dict(_step_times(comm, rounds), messages=messages,
                 merge=_merge_times(rounds))
    return found if comm.rank == 0 else None


# Steps

def _compile(kind, comm_of_layers, comm):
    """Compile a step of training."""
    from bnlasagne import average_gradients, batch_norm

    import lasagne
    import theano
    import theano.tensor as T
    from lasagne.layers import Conv2DLayer, DenseLayer, InputLayer

    lasagne.random.set_rng(np.random.RandomState(1))
    x = T.matrix() if kind == "dense" else T.tensor4()
    network = InputLayer((None, 256) if kind == "dense"
                         else (None, 3, 16, 16), x)
    for number, size in enumerate(CHANNELS[kind]):
        network = batch_norm(
            DenseLayer(network, size) if kind == "dense" else Conv2DLayer(
                network, size, 3, stride=1 + (number > 0), pad="same"),
            comm=comm_of_layers)
    network = DenseLayer(network, 10,
                         nonlinearity=lasagne.nonlinearities.softmax)
    target = T.ivector()
    loss = lasagne.objectives.categorical_crossentropy(
        lasagne.layers.get_output(network), target).mean()
    params = lasagne.layers.get_all_params(network, trainable=True)
    gradients = average_gradients(loss, params, comm, x.shape[0])
    return theano.function(
        [x, target], updates=lasagne.updates.sgd(gradients, params, 0.01))


def _step_times(comm, rounds):
    """Time all networks, sizes and variants, in turns."""
    from bnlasagne.parallel.collectives import Collective

    rows, turns = [], []
    for kind in CHANNELS:
        steps = {"sync": _compile(kind, comm, comm),
                 "local": _compile(kind, None, comm)}
        nodes = {name: step.maker.fgraph.toposort()
                 for name, step in steps.items()}
        for size in sorted({GLOBAL_BATCH // comm.size, RANK_BATCH}):
            rows.append({
                "network": kind, "batch": size, "sync": [], "local": [],
                "same": str(nodes["sync"]) == str(nodes["local"]),
                "messages": {name: sum(
                    isinstance(node.op, Collective) for node in nodes[name])
                    for name in steps}})
            batch = _batch(comm, kind, size)
            turns += [(rows[-1][name], partial(step, *batch))
                      for name, step in steps.items()]
    others, order = [], random.Random(0)
    for _ in range(rounds):
        before = _cpu_clock()
        for times, call in order.sample(turns, len(turns)):
            times.append(_turn(comm, call))
        after = _cpu_clock()
        if before is not None:
            # The processor time of all ranks is not that of other jobs.
            before, after = (reading[:2] + (comm.allreduce(reading[2]),)
                             for reading in (before, after))
        others.append(_used_by_others(before, after))
    return {"rows": rows, "others": others}


def _batch(comm, kind, size):
    rng = np.random.RandomState(comm.rank)
    shape = (256,) if kind == "dense" else (3, 16, 16)
    return (rng.normal(size=(size,) + shape).astype("float32"),
            rng.randint(0, 10, size).astype("int32"))


def _turn(comm, call):
    """Give the median of the seconds of several calls."""
    comm.Barrier()
    call()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# Messages

def _message_times(comm, rounds):
    """Time an agreement, and sums by size; the fastest of each round."""
    from bnlasagne.parallel.channel import channel_of

    channel = channel_of(comm, "benchmarks")
    calls = {"agree": partial(channel.agree, ("a benchmark",))}
    for size in MESSAGE_BYTES:
        calls[str(size)] = partial(channel.sum, np.ones(size // 8))
    found = {name: [] for name in calls}
    calls["agree"]()
    for _ in range(rounds):
        for name, call in calls.items():
            large = name != "agree" and int(name) > 2 ** 16
            times = np.empty(5 if large else 100)
            for number in range(times.size):
                comm.Barrier()
                start = time.perf_counter()
                call()
                times[number] = time.perf_counter() - start
            # A rank that leaves the barrier late finds the others' messages.
            found[name].append(np.max(comm.allgather(times), 0).min())
    return found


def _merge_times(rounds):
    """Time the merge of two vectors of moments, without a message."""
    from bnlasagne.parallel.collectives import merge

    found = {}
    for channels in MERGED_CHANNELS:
        vector = np.random.RandomState(0).uniform(1, 2, 1 + 2 * channels)
        times = []
        for _ in range(50 * rounds):
            start = time.perf_counter()
            merge(vector, vector)
            times.append(time.perf_counter() - start)
        found[str(vector.nbytes)] = statistics.median(times)
    return found


if __name__ == "__main__":
    answer(_measure_here)
