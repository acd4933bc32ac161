"""The cost of training on several ranks, and of synchronized batch norm.

``python -m benchmarks.distributed`` starts ``mpiexec`` for each number of
ranks, and writes ``distributed.md``: step times, times of messages, and from
these a model of what hundreds of ranks would take.
"""

import argparse
import gc
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from functools import partial
from operator import truediv
from pathlib import Path

import numpy as np

from .report import _table
from .speed import (
    ENOUGH,
    ROOT,
    _cpu_clock,
    _used_by_others,
    environment,
    is_quiet,
)

# Seconds of a variant's turn in a round.
TURN = 0.15
GLOBAL_BATCH, RANK_BATCH = 128, 32
MESSAGE_BYTES = [8, 64, 512, 4096, 2 ** 15, 2 ** 18, 2 ** 21, 2 ** 23]
# Channels of the layers by which the work around a message is timed.
MERGED_CHANNELS = [16, 64, 256, 1024, 2048]

RANKS = [2, 8, 32, 128, 512]
# Statistics of so many examples count as good enough.
WANTED = 32

Line = namedtuple("Line", "alpha, beta")
Line.__doc__ = """What takes `alpha` seconds, and `beta` more for each byte."""

NETWORKS = {"convolutional": "convolutional (3 batch norms)",
            "dense": "dense (12 batch norms)"}
# Batch normalization's channels; values of all parameters.
OWN_CHANNELS = {"convolutional": [16, 32, 64], "dense": [256] * 12}
RESNET_CHANNELS = [64]
for _width, _blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
    RESNET_CHANNELS += [_width, _width, 4 * _width] * _blocks + [4 * _width]
RESNET_PARAMETERS = 25600000
# Of one image, forward and backward: 4.1 G multiplications and additions
# forward, twice as many backward, at a teraflop per second.
RESNET_IMAGE = 6 * 4.1e9 / 1e12
# Assumed, not measured.
LINKS = {"InfiniBand": Line(2e-6, 1 / 12.5e9),
         "10 Gbit Ethernet": Line(30e-6, 1 / 1.25e9)}


# The model

def fit(sizes, seconds):
    """A line through times, by least squares of the relative errors.

    Parameters
    ----------
    sizes : list of int
        In bytes.
    seconds : list of float

    Returns
    -------
    Line
    """
    seconds = np.array(seconds, float)
    matrix = np.stack([np.ones(len(sizes)), sizes], 1) / seconds[:, None]
    alpha, beta = np.linalg.lstsq(matrix, np.ones(len(sizes)), rcond=None)[0]
    return Line(float(alpha), float(beta))


def allreduce_seconds(size, ranks, link):
    """Of `size` bytes: recursive doubling or Rabenseifner's, the faster."""
    rounds = math.ceil(math.log2(ranks))
    return min(rounds * (link.alpha + size * link.beta),
               2 * rounds * link.alpha
               + 2 * size * link.beta * (ranks - 1) / ranks)


def agreement_seconds(ranks, link):
    """The gathering of 16 bytes of each rank, once per function call."""
    rounds = math.ceil(math.log2(ranks))
    return rounds * link.alpha + 16 * (ranks - 1) * link.beta


def synchronization_seconds(channels, ranks, link, work):
    """What synchronizing batch normalization adds to a step.

    Parameters
    ----------
    channels : list of int
        Of each layer.
    ranks : int
    link : Line
    work : Line
        What a rank itself does about a layer's message forward.

    Returns
    -------
    float
    """
    if ranks == 1:
        return 0.
    return sum(
        allreduce_seconds(8 + 16 * c, ranks, link) + work.alpha
        + work.beta * (8 + 16 * c) + allreduce_seconds(16 * c, ranks, link)
        for c in channels)


def exchange_seconds(parameters, ranks, link):
    """The agreement and the gradients, in single precision."""
    return agreement_seconds(ranks, link) + allreduce_seconds(
        4 + 4 * parameters, ranks, link)


def images_for(share, cost, image):
    """Images per rank, of which a fixed cost is such a share of the work."""
    return max(1, math.ceil(cost / (share * image)))


def group_size(images, ranks, wanted=WANTED):
    """Ranks in a group that has the wanted number of images together."""
    needed = max(1, math.ceil(wanted / images))
    return min(ranks, 2 ** math.ceil(math.log2(needed)))


# Measuring, on each rank

def _network(kind, comm):
    import bnlasagne

    import lasagne
    from lasagne.layers import Conv2DLayer, DenseLayer, InputLayer

    def normalized(layer):
        return bnlasagne.batch_norm(layer, comm=comm)

    lasagne.random.set_rng(np.random.RandomState(1))
    if kind == "dense":
        network = InputLayer((None, 256))
        for width in OWN_CHANNELS[kind]:
            network = normalized(DenseLayer(network, width))
    else:
        network = InputLayer((None, 3, 16, 16))
        for stride, filters in zip((1, 2, 2), OWN_CHANNELS[kind]):
            network = normalized(Conv2DLayer(
                network, filters, 3, stride=stride, pad="same"))
    return DenseLayer(network, 10, nonlinearity=lasagne.nonlinearities.softmax)


def _compile(kind, comm_of_layers, comm):
    """A step of training."""
    import bnlasagne

    import lasagne
    import theano
    import theano.tensor as T

    network = _network(kind, comm_of_layers)
    x = network.input_layer
    while hasattr(x, "input_layer"):
        x = x.input_layer
    x, target = x.input_var, T.ivector()
    output = lasagne.layers.get_output(network)
    loss = lasagne.objectives.categorical_crossentropy(output, target).mean()
    params = lasagne.layers.get_all_params(network, trainable=True)
    gradients = bnlasagne.average_gradients(loss, params, comm, x.shape[0])
    return theano.function(
        [x, target], updates=lasagne.updates.sgd(gradients, params, 0.01))


class _Clock:
    """Seconds and number of a channel's messages."""

    def __init__(self):
        self.seconds = {"agree": 0., "sum": 0.}
        self.calls = {"agree": 0, "sum": 0}

    def watch(self, cls):
        for name in self.seconds:
            setattr(cls, name, self._timed(getattr(cls, name), name))

    def _timed(self, method, name):
        def timed(*args):
            start = time.perf_counter()
            try:
                return method(*args)
            finally:
                self.seconds[name] += time.perf_counter() - start
                self.calls[name] += 1
        return timed


def _step_times(comm, rounds):
    """Of all networks, batches and variants, in turns."""
    from bnlasagne.parallel.channel import Channel

    clock = _Clock()
    clock.watch(Channel)
    calls, rows = {}, []
    for kind in NETWORKS:
        variants = {"sync": _compile(kind, comm, comm),
                    "local": _compile(kind, None, comm)}
        graphs = [[str(node.op) for node in step.maker.fgraph.toposort()]
                  for step in variants.values()]
        rng = np.random.RandomState(comm.rank)
        for size in sorted({GLOBAL_BATCH // comm.size, RANK_BATCH}):
            shape = (256,) if kind == "dense" else (3, 16, 16)
            x = rng.normal(size=(size,) + shape).astype("float32")
            y = rng.randint(0, 10, size).astype("int32")
            rows.append({
                "network": kind, "batch": size, "same": graphs[0] == graphs[1],
                "sync": [], "local": [], "messages": {},
                "share": {"sync": [], "local": []}})
            for name, step in variants.items():
                calls[len(rows) - 1, name] = partial(step, x, y)
    counts = {}
    for key, call in sorted(calls.items()):
        call()
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        counts[key] = comm.bcast(min(200, max(3, int(TURN / seconds))))
    others, order = [], random.Random(0)
    for _ in range(rounds):
        before = _cpu_clock()
        for index, name in order.sample(sorted(calls), len(calls)):
            _turn(comm, clock, calls[index, name], counts[index, name],
                  rows[index], name)
        after = _cpu_clock()
        if before is not None:
            # The processor time of all ranks is not that of other jobs.
            before, after = (reading[:2] + (comm.allreduce(reading[2]),)
                             for reading in (before, after))
        others.append(_used_by_others(before, after))
    return {"rows": rows, "others": others}


def _turn(comm, clock, call, count, row, name):
    comm.Barrier()
    call()
    communicated, number = sum(clock.seconds.values()), clock.calls["sum"]
    start, times = time.perf_counter(), []
    for _ in range(count):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    total = time.perf_counter() - start
    share = (sum(clock.seconds.values()) - communicated) / total
    row["messages"][name] = (clock.calls["sum"] - number) // count
    row[name].append(statistics.median(times))
    row["share"][name].append(comm.allreduce(share) / comm.size)


def _message_times(comm, rounds):
    """Of an agreement, and of sums by size; the fastest of each round."""
    from bnlasagne.parallel.channel import channel_of

    channel = channel_of(comm, "benchmarks")
    calls = {"agree": lambda: channel.agree(("a benchmark",))}
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


class _Alone:
    """A channel without others, to time what is done around a message."""

    @staticmethod
    def merge(vector, function):
        return function(vector, vector)


def _work_times(rounds):
    from bnlasagne.parallel.collectives import MergeMoments

    op, found = MergeMoments(_Alone(), "moments"), {}
    for channels in MERGED_CHANNELS:
        moments = np.random.RandomState(0).uniform(1, 2, 1 + 2 * channels)
        times = []
        for _ in range(50 * rounds):
            start = time.perf_counter()
            op._exchange(moments)
            times.append(time.perf_counter() - start)
        found[str(8 + 16 * channels)] = statistics.median(times)
    return found


def _measure_here(rounds, path):
    from bnlasagne import world

    comm = world()
    gc.disable()
    # Before the steps, whose clock would be within.
    messages = _message_times(comm, rounds) if comm.size > 1 else None
    work = _work_times(rounds) if comm.size == 1 else None
    found = dict(_step_times(comm, rounds), messages=messages, work=work)
    if comm.rank == 0:
        Path(path).write_text(json.dumps(found))


def measure(ranks, rounds):
    """What one number of ranks takes; see `_measure_here`."""
    beside = Path(sys.executable).parent / "mpiexec"
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        sys.exit("There is no mpiexec: pip install '.[mpi]'")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "result.json")
        subprocess.run(
            [mpiexec, "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m",
             "benchmarks.distributed", "--rounds", str(rounds),
             "--measure-here", path],
            cwd=str(ROOT), env=dict(environment(1), PYTHONWARNINGS="ignore"),
            check=True)
        return json.loads(Path(path).read_text())


# The report

HEAD = """\
# The cost of several ranks

Made by `{command}`, which writes all of this page,
in three minutes. When to leave batch normalization local is said
[at the end](#the-rule).

{machine}
Each number of ranks is one run of {rounds} rounds (of 1, 2 and 4 ranks, other
jobs left the processor alone in {quiet} of them), one thread per rank. In a
round all variants have a turn, in random order, and a turn's time is that of
its median step. Given are medians over rounds; ratios are taken within a
round. **There are {cores} cores: more ranks than that share them,** and what
they then take says nothing about that many machines.{warning}

## Steps

Forward, backward and update, by `average_gradients()`; batch normalization is
either synchronized (`comm=comm`) or local. The convolutional network has 16,
32 and 64 filters of 3x3 on 16x16 images, the dense one 12 layers of 256. The
batch is {global_batch} for all ranks together (strong scaling), or
{rank_batch} per rank (weak scaling). Communication is what `Channel.agree` and
`Channel.sum` take, on average over the ranks, waiting for the slowest rank
included.
"""

BUSY = """

**Other jobs were running in nearly all rounds of 1 or 2 ranks, so that ranks
waited for a processor as much as for each other: of the times below, take none
for settled, and measure again on an idle machine.**"""

ONE_RANK = """\
With one rank a layer with `comm` compiles to {same} graph as one without
(sync / local, median of all rounds: {ratio:.3f}), and nothing is sent. With
several, a step has one agreement, one message with all gradients, and two more
for each synchronized layer.
"""

MESSAGES = """\
## Messages

Microseconds, between processes of this machine (shared memory), of an
agreement and of sums of double precision: on the slowest rank, the fastest
call of a round, as others tell how busy the processor was.
"""

FIT = """\
Least squares of the relative errors, on the sums of 2 ranks: α = {alpha:.1f}
µs, β = {beta:.3f} ns per byte ({rate:.1f} GB/s), the addition included; the
largest relative error of the line is {error:.0f} %. What a rank itself does
with NumPy around a layer's message forward was timed without a message:
{work:.0f} µs + {slope:.1f} ns per byte.
"""

MODEL = """\
## A model for hundreds of ranks

A layer with C channels sends (1 + 2C) · 8 bytes forward and 2C · 8 backward,
one message each. (One more forward where a mean exceeds 32 standard deviations
in some channel; not counted.) An all-reduce of n bytes on P ranks takes the
lesser of log₂P (α + nβ) (recursive doubling) and 2 log₂P α + 2nβ (P − 1) / P
(Rabenseifner), an agreement log₂P α + 16 (P − 1) β. The work around messages,
above, is added per layer. Nothing overlaps. Every message also waits for the
slowest rank: **the model has no such waiting, and is a lower bound.** If the
time between two messages varies from rank to rank with a standard deviation σ,
that adds about √(2 ln P) σ to each: 2.0 σ for 8 ranks, 3.5 σ for 512.

- shared memory: α and β as measured, beyond one machine only for comparison;
- InfiniBand, assumed: α = 2 µs, 12.5 GB/s;
- 10 Gbit Ethernet, assumed: α = 30 µs, 1.25 GB/s.

ResNet-50: 53 layers, 26,560 channels, 25.6 M parameters; an image takes
{resnet:.1f} ms (assumed: a teraflop per second). "own": the convolutional
network above; an image takes {own:.2f} ms (measured). The columns "sync" are
the milliseconds that synchronization adds to a step; "share" is that of a step
of {wanted} images per rank, t + sync + rest; "rest" is the agreement and the
gradients, which local batch normalization needs as well.
"""

CHECK = """\
Against the measurement on 2 ranks, {rank_batch} images each, in milliseconds.
What communication takes beyond the model is waiting, for the other rank and,
on a busy machine, for the processor.
"""

CHOICE = """\
## When to leave batch normalization local

Synchronization buys better statistics: of n values per channel, the mean is
wrong by about 1/√n standard deviations and the standard deviation by a
relative 1/√(2n). That is a matter of the images per rank alone. It costs
a time that does not depend on the batch. Images per rank above which that time
is less than 5 % of the computation, and below which it is more than 50 %:
"""

GROUPS = """\
Below, n counts images, the worst case (pixels of an image are values too, but
correlated). Groups of G ranks have {wanted} images together; in percent of the
computation, what synchronization costs within a group, and with all 512 ranks:
"""

RULE = """\
## The rule

- {wanted} images per rank or more: local. The statistics are good to 18 % of a
  standard deviation and 12.5 % of its size, more ranks would make them better
  only by root, and each layer would wait twice for the slowest of all ranks.
- Fewer: synchronize in groups of G ranks, G · images ≥ {wanted}, neighbours on
  one machine if possible: `group = comm.Split(comm.rank // G)`, `comm=group`
  for the layers, `comm` for `average_gradients()`. The groups' running
  averages differ: average them, or take one's, before inference.
- All ranks, if a step must be that of one process with the whole batch.
- Many ranks and small layers are bound by latency: a layer's cost is then
  2 log₂P α and its work, whatever its size; more bandwidth does not help.
- Where latency is low, cost alone is no reason: for ResNet-50 on 512 ranks, by
  InfiniBand, the model has it below 5 % from {images} images per rank. What
  speaks against all ranks there is the waiting, which only a trial shows.
"""


def markdown(found, command, machine):
    """The report.

    Parameters
    ----------
    found : dict
        For each number of ranks, as str, what `measure` returned.
    command : str
    machine : list of (name, value)

    Returns
    -------
    str
    """
    rounds = len(found["1"]["others"])
    quiet = [sum(map(is_quiet, run["others"])) for run in found.values()]
    one = found["1"]["rows"]
    ratio = statistics.median(
        sync / local for row in one
        for sync, local in zip(row["sync"], row["local"]))
    measured, labels = _measured(found)
    link = measured["shared memory"]
    messages = found["2"]["messages"]
    work = _work(found)
    sizes = [int(name) for name in messages if name != "agree"]
    errors = [abs((link.alpha + size * link.beta)
                  / statistics.median(messages[str(size)]) - 1)
              for size in sizes]
    return "\n".join([
        HEAD.format(
            command=command, rounds=rounds, cores=os.cpu_count(),
            warning=BUSY if min(quiet[:2]) < ENOUGH else "",
            quiet=", ".join(map(str, quiet)), global_batch=GLOBAL_BATCH,
            rank_batch=RANK_BATCH,
            machine=_table(["machine", ""], machine)),
        _steps_table(found),
        ONE_RANK.format(
            same="the same" if all(row["same"] for row in one)
            else "**another**", ratio=ratio),
        MESSAGES, _messages_table(found),
        FIT.format(alpha=1e6 * link.alpha, beta=1e9 * link.beta,
                   rate=1e-9 / link.beta, error=100 * max(errors),
                   work=1e6 * work.alpha, slope=1e9 * work.beta),
        MODEL.format(resnet=1e3 * RESNET_IMAGE, own=1e3 * labels["own"][2],
                     wanted=WANTED),
        _model_table(measured, labels, work),
        CHECK.format(rank_batch=RANK_BATCH), _check_table(found, link, work),
        CHOICE, _choice_table(measured, labels, work),
        GROUPS.format(wanted=WANTED), _groups_table(measured, labels, work),
        RULE.format(wanted=WANTED, images=images_for(
            0.05, synchronization_seconds(
                RESNET_CHANNELS, RANKS[-1], LINKS["InfiniBand"], work),
            RESNET_IMAGE))])


def _measured(found):
    """The links, and of each network the channels, parameters and time."""
    messages = found["2"]["messages"]
    sizes = [int(name) for name in messages if name != "agree"]
    links = {"shared memory": fit(sizes, [
        statistics.median(messages[str(size)]) for size in sizes])}
    links.update(LINKS)
    row = _row(found, "1", "convolutional", RANK_BATCH)
    # Filters of 3x3, gamma, beta; and the last layer.
    parameters = 9 * (3 * 16 + 16 * 32 + 32 * 64) + 2 * 112 + 10 * 1025
    return links, {
        "ResNet-50": (RESNET_CHANNELS, RESNET_PARAMETERS, RESNET_IMAGE),
        "own": (OWN_CHANNELS["convolutional"], parameters,
                statistics.median(row["local"]) / RANK_BATCH)}


def _work(found):
    work = found["1"]["work"]
    return fit([int(size) for size in work], list(work.values()))


def _row(found, ranks, kind, batch):
    row, = (row for row in found[ranks]["rows"]
            if row["network"] == kind and row["batch"] == batch)
    return row


def _ratio(row):
    return statistics.median(map(truediv, row["sync"], row["local"]))


def _steps_table(found):
    table = []
    for kind, label in NETWORKS.items():
        for scaling in ("strong", "weak"):
            for ranks in found:
                batch = (GLOBAL_BATCH // int(ranks) if scaling == "strong"
                         else RANK_BATCH)
                row = _row(found, ranks, kind, batch)
                table.append([label, scaling, ranks, batch] + [
                    "%.2f" % (1e3 * statistics.median(row[name]))
                    for name in ("local", "sync")] + ["%.2f" % _ratio(row)] + [
                    "%d" % row["messages"][name]
                    for name in ("local", "sync")] + [
                    "%.0f %%" % (100 * statistics.median(row["share"][name]))
                    for name in ("local", "sync")])
    return _table(
        ["network", "scaling", "ranks", "images per rank", "local, ms",
         "sync, ms", "sync / local", "messages, local", "sync",
         "communication, local", "sync"], table)


def _messages_table(found):
    several = [ranks for ranks in found if found[ranks]["messages"]]
    names = list(found[several[0]]["messages"])
    return _table(
        ["ranks", "agreement"] + [
            "%d B" % int(name) if int(name) < 1024 else
            "%d KiB" % (int(name) // 1024) for name in names[1:]], [
            [ranks] + ["%.1f" % (1e6 * statistics.median(
                found[ranks]["messages"][name])) for name in names]
            for ranks in several])


def _model_table(links, networks, work):
    rows = []
    for network, (channels, parameters, image) in networks.items():
        for link in links:
            row = [network, link]
            for ranks in RANKS:
                sync = synchronization_seconds(
                    channels, ranks, links[link], work)
                rest = exchange_seconds(parameters, ranks, links[link])
                row.append("%.2f (%.0f %%) + %.2f" % (
                    1e3 * sync, 100 * sync / (
                        WANTED * image + sync + rest), 1e3 * rest))
            rows.append(row)
    return _table(["network", "link"] + [
        "%s%d" % ("sync (share) + rest, P = " if ranks == RANKS[0] else
                  "", ranks) for ranks in RANKS], rows)


def _check_table(found, link, work):
    table = []
    for kind, label in NETWORKS.items():
        row = _row(found, "2", kind, RANK_BATCH)
        share = row["share"]
        model = synchronization_seconds(OWN_CHANNELS[kind], 2, link, work)
        step = statistics.median(
            sync - local for sync, local in zip(row["sync"], row["local"]))
        communication = statistics.median(
            sync * in_sync - local * in_local
            for sync, in_sync, local, in_local in zip(
                row["sync"], share["sync"], row["local"], share["local"]))
        table.append([label] + ["%.2f" % (1e3 * seconds) for seconds in (
            model, communication, step)])
    return _table(["network", "model", "communication, sync − local",
                   "step, sync − local"], table)


def _choice_table(links, networks, work):
    rows = []
    for network, (channels, _, image) in networks.items():
        for link in links:
            costs = [synchronization_seconds(channels, ranks, links[link],
                                             work) for ranks in RANKS]
            rows.append([network, link] + [
                "%d, %d" % (images_for(0.05, cost, image),
                            images_for(0.5, cost, image)) for cost in costs])
    return _table(["network", "link"] + [
        "%s%d" % ("5 %, 50 %; P = " if ranks == RANKS[0] else "", ranks)
        for ranks in RANKS], rows)


def _groups_table(links, networks, work):
    chosen = [(network, link) for network in networks for link in LINKS]
    rows = []
    for images in (1, 2, 4, 8, 16, 32):
        group = group_size(images, RANKS[-1])
        row = [images, "%.2f, %.2f" % (images ** -0.5, (2 * images) ** -0.5),
               group]
        for network, link in chosen:
            channels, _, image = networks[network]
            row.append(", ".join("%.1f" % (
                100 * synchronization_seconds(
                    channels, ranks, links[link], work) / (images * image))
                for ranks in (group, RANKS[-1])))
        rows.append(row)
    return _table(["images per rank", "errors of mean, std", "G"] + [
        "%s, %s: G, 512" % pair for pair in chosen], rows)


def main(arguments=None):
    """Measure, and write distributed.md."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distributed",
        description="Measure training on 1, 2 and 4 ranks.")
    add = parser.add_argument
    add("--rounds", type=int, default=11, metavar="N",
        help="rounds to measure (default: %(default)s)")
    add("--ranks", type=int, nargs="+", default=[1, 2, 4], metavar="N",
        choices=[1, 2, 4], help="1 and 2 are needed (default: 1 2 4)")
    add("--output", type=Path, default=ROOT / "benchmarks", metavar="FOLDER",
        help="for the report (default: benchmarks)")
    add("--measure-here", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.rounds < 1 or not {1, 2} <= set(args.ranks):
        parser.error("expected 1 round or more, and 1 and 2 among the ranks")
    if args.measure_here:
        _measure_here(args.rounds, args.measure_here)
        return
    from .__main__ import describe_machine

    machine = describe_machine()
    found = {str(ranks): measure(ranks, args.rounds)
             for ranks in sorted(args.ranks)}
    command = "python -m benchmarks.distributed" + "".join(
        " " + option for option in sys.argv[1:])
    text = markdown(found, command, machine)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "distributed.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
