"""Time functions whose theano.scan runs in C and in Python, in turns.

``OMP_NUM_THREADS=1 python -m benchmarks.loops`` prints how many times as long
a call takes with Python's loop: median and quartiles.
"""

import contextlib
import sys
import time
from unittest import mock

import bnlasagne  # isort: skip  # noqa: F401  # First: it repairs imports.

import lasagne
import numpy as np
import theano
import theano.tensor as T
from lasagne import layers
from theano import scan_module

from . import networks

CALLS = 200
EXTENSION = "theano.scan_module.scan_perform_ext"


def main():
    """Measure a running sum, and training steps of two LSTMs."""
    theano.config.floatX = "float32"
    _compare("running sum of 1,000 numbers", _running_sum,
             np.ones(1000, "float32"))
    rng = np.random.RandomState(0)
    _compare("LSTM of 32 units, 20 iterations, batch of 16", _small_lstm,
             rng.normal(size=(16, 20, 32)).astype("float32"))
    _compare("LSTM of 128 units, 30 iterations, batch of 32",
             lambda: networks.compile_step("lstm", "without"),
             *networks.random_batch("lstm"))


def _compare(label, compiled, *arguments):
    functions = [compiled()]
    with _python_loops():
        functions.append(compiled())
    for function in functions:
        function(*arguments)
    seconds = [[_seconds(function, arguments) for function in functions]
               for _ in range(CALLS)]
    fast, slow = np.transpose(seconds)
    low, middle, high = np.percentile(slow / fast, [25, 50, 75])
    print(f"{label}: {1e3 * np.median(fast):.2f} ms in C, "
          f"{1e3 * np.median(slow):.2f} ms in Python: {middle:.2f} times "
          f"({low:.2f} to {high:.2f})")


@contextlib.contextmanager
def _python_loops():
    """Keep Theano from importing its loop in C."""
    with mock.patch.dict(sys.modules, {EXTENSION: None}), \
            mock.patch.object(scan_module, "scan_perform_ext", create=True):
        del scan_module.scan_perform_ext
        yield


def _seconds(function, arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def _running_sum():
    x = T.vector()
    sums, _ = theano.scan(lambda value, so_far: so_far + value, x,
                          T.zeros((), "float32"))
    return theano.function([x], sums)


def _small_lstm():
    x = T.tensor3()
    network = layers.LSTMLayer(layers.InputLayer((None, 20, 32), x), 32)
    loss = layers.get_output(network)[:, -1].mean()
    updates = lasagne.updates.momentum(
        loss, layers.get_all_params(network, trainable=True), 0.01)
    return theano.function([x], loss, updates=updates)


if __name__ == "__main__":
    main()
