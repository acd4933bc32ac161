"""Train for a moment on some ranks, and note each phase in a file.

With the argument ``cold``, compile a small function only, and call it. The
environment variables KILL_WAY, KILL_RANK, KILL_PHASE and KILL_SECONDS have one
rank end itself, so many seconds after a phase began. KILL_PATIENCE are seconds
after which a rank says that it waits.
"""

import hashlib
import os
import signal
import sys
import time

import bnlasagne
from bnlasagne.parallel import waiting

import lasagne
import numpy as np
import theano
import theano.tensor as T
from lasagne.layers import DenseLayer, InputLayer, get_all_params, get_output

COMM = bnlasagne.world()
waiting.PATIENCE = float(os.environ.get("KILL_PATIENCE", waiting.PATIENCE))
SEED, STEPS = 1, 8
RNG = np.random.RandomState(SEED)
DATA = RNG.normal(size=(600, 20)).astype(theano.config.floatX)
LABELS = (DATA.sum(axis=1) > 0).astype("int32")
# This rank's parts of the batches.
BATCHES = [(DATA[i + COMM.rank:i + 100:COMM.size],
            LABELS[i + COMM.rank:i + 100:COMM.size])
           for i in range(0, 600, 100)]


def enter(phase):
    """Note that a phase begins; a moment later, this rank may end itself."""
    with open(f"rank{COMM.rank}.txt", "a") as file:
        file.write(f"{phase} {time.time()} {os.getpid()}\n")
    if (os.environ.get("KILL_RANK"), os.environ.get("KILL_PHASE")) == (
            str(COMM.rank), phase):
        signal.signal(signal.SIGALRM, WAYS[os.environ["KILL_WAY"]])
        # Again, should the first come where Python ignores errors.
        signal.setitimer(signal.ITIMER_REAL,
                         float(os.environ["KILL_SECONDS"]) + 1e-4, 4)


def raise_error(number, frame):
    if frame.f_code.co_name == "operate":
        # mpi4py would end the job. A rank's own faults are elsewhere.
        signal.setitimer(signal.ITIMER_REAL, 1e-3, 4)
    else:
        raise ValueError("a fault of this rank")


def exit_at_once(*_):
    os._exit(7)


WAYS = {"error": raise_error, "exit": exit_at_once}


def build(n_layers):
    lasagne.random.set_rng(np.random.RandomState(SEED))
    network = InputLayer((None, 20))
    for number in range(n_layers):
        network = bnlasagne.batch_norm(
            DenseLayer(network, 30, name=f"dense{number}"), comm=COMM)
    return DenseLayer(network, 2, nonlinearity=lasagne.nonlinearities.softmax)


def compile_functions(network):
    """Return functions that train, that accumulate, and that make a step."""
    params = get_all_params(network, trainable=True)
    bnlasagne.broadcast_params(network, COMM)
    x, y = T.matrix("x"), T.ivector("y")
    loss = lasagne.objectives.categorical_crossentropy(
        get_output(network, x), y).mean()
    gradients = bnlasagne.average_gradients(loss, params, COMM, x.shape[0])
    train = theano.function(
        [x, y], loss, updates=lasagne.updates.adam(gradients, params),
        name="train")
    accumulator = bnlasagne.GradientAccumulator(params, comm=COMM)
    return (train, accumulator.function([x, y], loss),
            accumulator.step_function(lasagne.updates.adam))


def keep_bits(arrays):
    with open(f"rank{COMM.rank}.bits", "w") as file:
        file.write(hashlib.sha256(b"".join(
            array.tobytes() for array in arrays)).hexdigest())


def main():
    enter("compile")
    network = build(2)
    train, accumulate, step = compile_functions(network)
    enter("train")
    for number in range(STEPS):
        train(*BATCHES[number % len(BATCHES)])
    enter("accumulate")
    for _ in range(2):
        for batch in BATCHES[:3]:
            accumulate(*batch)
        step()
    enter("population")
    bnlasagne.update_population_statistics(
        network, [batch for batch, _ in BATCHES], comm=COMM)
    keep_bits(param.get_value() for param in get_all_params(network))
    enter("end")


def cold():
    enter("cold")
    x = T.matrix("x")
    layer = bnlasagne.BatchNormLayer(InputLayer((None, 20)), comm=COMM)
    function = theano.function([x], T.tanh(get_output(layer, x)).sum(axis=0),
                               name="cold")
    keep_bits([function(BATCHES[0][0])])


if __name__ == "__main__":
    cold() if sys.argv[1:] == ["cold"] else main()
