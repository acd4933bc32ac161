"""Use a network for long, and measure the memory of the process."""

import ctypes
import gc
import io
import os
import pickle

from bnlasagne import (
    fold_batch_norm,
    load_network,
    save_network,
    update_population_statistics,
)

import numpy as np
import theano

from helpers.digests import Digest
from helpers.whole import Whole, draw_batch

__all__ = ["LIMITS", "Memory", "cycles", "steps"]

# The most that may be added by one step, and by one cycle: bytes, and objects
# that Python's collector knows. A cycle makes some ten thousand of these.
LIMITS = {"steps": (20, 0.001), "cycles": (4096, 1)}
LINKER = "cvm" if theano.config.cxx else "vm"


class Memory:
    """What the process keeps, measured now and then."""

    def __init__(self):
        self.samples = []

    def measure(self, at):
        for _ in range(2):
            gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)
        self.samples.append((at, resident(), len(gc.get_objects())))
        print("After {:,}: {:,} bytes, {:,} objects".format(*self.samples[-1]),
              flush=True)

    def slopes(self):
        """Fit growth per step or cycle, without the first third: warm-up."""
        times, *values = np.transpose(self.samples[len(self.samples) // 3:])
        return [np.polyfit(times - times[0], value, 1)[0] for value in values]

    def judged(self, limits):
        """Say how much each kind of memory grows, and whether too much."""
        first, last = (self.samples[at] for at in (
            len(self.samples) // 3, -1))
        for i, (slope, limit) in enumerate(zip(self.slopes(), limits)):
            what = ("bytes of memory", "objects")[i]
            grows = bool(slope > limit)
            yield (f"{first[i + 1]:,} {what} at {first[0]:,}, "
                   f"{last[i + 1]:,} at {last[0]:,}: {slope:+.4f} each"
                   + f", MORE THAN {limit}" * grows), grows


def resident():
    """Read how much memory of the process is in use; 0 except on Linux."""
    if not os.path.exists("/proc/self/statm"):
        return 0
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def steps(times, seed=0, samples=20, linker=LINKER, optimizer="fast_run"):
    """Train for some steps; return the memory, and the digest of all values.

    Every tenth step is made of micro-batches. At each sample, population
    statistics are computed, and the network is folded, saved, loaded and
    pickled.
    """
    rng, digest, memory = np.random.RandomState(seed), Digest(), Memory()
    network = Whole(seed)
    mode = theano.Mode(linker, optimizer)
    train, (accumulate, step) = (network.trainer(mode=mode),
                                 network.accumulator(mode=mode))
    batches = [draw_batch(rng, n) for n in (8, 5, 12, 2)]
    every = max(times // samples, 1)
    for i in range(times):
        batch = batches[rng.randint(len(batches))]
        if i % 10 == 9:
            digest.add(accumulate(*batch), accumulate(*batches[0]))
            step()
        else:
            digest.add(train(*batch))
        if i % every == every - 1:
            use(network, batches, digest)
            memory.measure(i + 1)
    digest.add(*network.values())
    return memory, digest


def use(network, batches, digest):
    """Compute population statistics; fold, save, load and pickle."""
    parts = [batch[:3] for batch in batches]
    update_population_statistics(network.layer, parts)
    save_network(fold_batch_norm(network.layer), io.BytesIO())
    file = io.BytesIO()
    save_network(network.layer, file)
    file.seek(0)
    load_network(network.layer, file)
    digest.add(*network.values())
    other = pickle.loads(pickle.dumps(network.layer))
    assert other.output_shape == network.layer.output_shape


def cycles(times, seed=0, samples=20, linker=LINKER, rare="fast_run"):
    """Compile, run and drop a network; return the memory and the digest.

    One time in 50, Theano makes the optimizations `rare`. All times with the
    same ones must compute the same bits.
    """
    memory, seen = Memory(), {}
    batch = draw_batch(np.random.RandomState(seed))
    every = max(times // samples, 1)
    for i in range(times):
        optimizer = rare if i % 50 == 0 else "fast_compile"
        found = once(seed, theano.Mode(linker, optimizer), batch)
        assert seen.setdefault(optimizer, found) == found, f"{i}: other bits"
        if i % every == every - 1:
            memory.measure(i + 1)
    return memory, " ".join(map(seen.get, sorted(seen)))


def once(seed, mode, batch):
    """Compile a network's functions and call them; return the digest."""
    digest, network = Digest(), Whole(seed)
    train, test = network.trainer(mode=mode), network.tester(mode=mode)
    for _ in range(2):
        digest.add(train(*batch), test(*batch[:3]))
    digest.add(*network.values())
    return str(digest)
