"""Time training steps of whole networks, with batch norm and without.

All ways of one network take turns, each in a process of its own, on the same
random batch, with gradient descent with momentum. Memory is malloc's affair,
as it is for users; some ways also call ``bnlasagne.keep_freed_memory()``.
"""

import functools
import gc
import importlib.util
import random
import statistics
import sys
import time
from multiprocessing.connection import Connection
from typing import Callable, NamedTuple

import bnlasagne  # isort: skip  # First: it repairs imports.

import lasagne
import numpy as np
import theano
import theano.tensor as T
from lasagne import layers
from lasagne.nonlinearities import rectify

from . import torch_networks
from .layers import WAYS
from .speed import answer, environment, rounds_in_turns
from .workers import RemoteProgram, serve, start

LABELS = {
    "without": "no batch norm", "ours": "bnlasagne", "gist": "gist's graph",
    "lasagne": "later Lasagne's graph",
    "torch-without": "PyTorch eager, no batch norm",
    "torch": "PyTorch eager",
}
# These are also measured with memory that is kept.
KEPT = ["without", "ours"]
CLASSES = 10
RATE, MOMENTUM = 0.01, 0.9


def measure(names, threads, rounds):
    """Measure networks.

    Returns
    -------
    dict
        For the name of each network: ``seconds``, for each way the median of
        each round, and ``others``, as in
        :func:`benchmarks.speed.rounds_in_turns`. With kept memory, the name of
        a way ends in ``-kept``.
    """
    has_torch = importlib.util.find_spec("torch") is not None
    ways = [way for way in LABELS
            if has_torch or not way.startswith("torch")]
    return {name: _measure(name, ways, threads, rounds) for name in names}


def _measure(name, ways, threads, rounds):
    env, programs = environment(threads, keep_freed=False), {}
    # One after the other: Theano's compile directory is locked.
    for way in [*ways, *(way + "-kept" for way in KEPT)]:
        _, connection = start("networks", env, name=name, way=way,
                              threads=threads)
        programs[way] = RemoteProgram(connection)
        programs[way].ask("ready")
        print(f"{name}: {way} is ready", file=sys.stderr)
    times, others = rounds_in_turns(
        {way: program.turn for way, program in programs.items()},
        lambda: time.process_time() + sum(
            program.clock() for program in programs.values()),
        rounds, random.Random(0))
    for program in programs.values():
        program.close()
    return {"others": others, "seconds": {
        way: [statistics.median(turn) for turn in turns]
        for way, turns in times.items()}}


def _cnn(x, wrap, stack):
    """Build the network of ``examples/cnn.py``."""
    network = layers.InputLayer((None, 1, 28, 28), x)
    network = wrap(layers.Conv2DLayer(network, 8, 5))
    network = layers.MaxPool2DLayer(network, 2)
    network = wrap(layers.Conv2DLayer(network, 16, 5))
    network = layers.MaxPool2DLayer(network, 2)
    return wrap(layers.DenseLayer(network, 128))


def _resnet(x, wrap, stack):
    """Build the ResNet-20 of He et al. (2016), with projections."""
    def conv(network, width, size, stride, nonlinearity):
        return wrap(layers.Conv2DLayer(
            network, width, size, stride, pad="same",
            W=lasagne.init.HeNormal("relu"), nonlinearity=nonlinearity))

    network = layers.InputLayer((None, 3, 32, 32), x)
    network = conv(network, 16, 3, 1, rectify)
    for width in (16, 32, 64):
        for block in range(3):
            stride = 2 if block == 0 and width > 16 else 1
            through = conv(network, width, 3, stride, rectify)
            through = conv(through, width, 3, 1, None)
            if stride > 1:
                network = conv(network, width, 1, stride, None)
            network = layers.NonlinearityLayer(
                layers.ElemwiseSumLayer([network, through]), rectify)
    return layers.GlobalPoolLayer(network)


def _lstm(x, wrap, stack):
    """Build an LSTM with its input normalized over examples and steps."""
    network = layers.InputLayer((None, 30, 64), x)
    network = layers.LSTMLayer(
        stack(network, axes=(0, 1)), 128, peepholes=False)
    return layers.SliceLayer(network, -1, 1)


class Network(NamedTuple):
    """A network up to its last layer, and the shape of its batch.

    `build` takes an input variable and one of
    :data:`benchmarks.layers.WAYS`.
    """

    label: str
    build: Callable
    shape: tuple


NETWORKS = {
    "cnn": Network("examples/cnn.py, batch of 100", _cnn, (100, 1, 28, 28)),
    "resnet": Network("ResNet-20, batch of 32", _resnet, (32, 3, 32, 32)),
    "lstm": Network("LSTM, batch of 32", _lstm, (32, 30, 64)),
}


def random_batch(name):
    """Draw a batch and its labels."""
    rng = np.random.RandomState(0)
    x = rng.normal(size=NETWORKS[name].shape).astype("float32")
    return x, rng.randint(0, CLASSES, len(x)).astype("int32")


def built(name, x, way):
    """Build a network of a variable; return its last layer."""
    return lasagne.layers.DenseLayer(
        NETWORKS[name].build(x, *WAYS[way]), CLASSES,
        nonlinearity=lasagne.nonlinearities.softmax)


def compile_step(name, way, **kwargs):
    """Compile a training step of a network in Lasagne.

    `kwargs` go to :func:`theano.function`.
    """
    network = NETWORKS[name]
    x = T.TensorType("float32", (False,) * len(network.shape))("x")
    y = T.ivector("y")
    last = built(name, x, way)
    loss = lasagne.objectives.categorical_crossentropy(
        lasagne.layers.get_output(last), y).mean()
    updates = lasagne.updates.momentum(
        loss, lasagne.layers.get_all_params(last, trainable=True), RATE,
        MOMENTUM)
    return theano.function([x, y], loss, updates=updates, **kwargs)


def _step(name, way, threads):
    """Return a function that makes a step, after its first ones."""
    way, kept, _ = way.partition("-kept")
    if kept:
        bnlasagne.keep_freed_memory()
    batch = random_batch(name)
    if way.startswith("torch"):
        import torch
        torch.set_num_threads(threads)
        step = torch_networks.step(name, way == "torch", batch, RATE, MOMENTUM)
    else:
        step = functools.partial(compile_step(name, way), *batch)
    for _ in range(3):
        step()
    gc.collect()
    gc.disable()  # A collection would land in anyone's turn.
    return step


def _serve(name, way, threads, descriptor):
    serve(Connection(descriptor),
          functools.partial(_step, name, way, threads))


if __name__ == "__main__":
    answer(_serve)
