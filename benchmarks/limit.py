"""Run a loop in C++ with the memory traffic of batch normalization."""

import ctypes
import functools
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import theano

FLAGS = ["-std=gnu++14", "-O3", "-march=native", "-fopenmp", "-shared",
         "-fPIC"]
SOURCE = Path(__file__).resolve().parent / "limit.cpp"


@functools.lru_cache(maxsize=None)
def _library():
    """Compile the loops; they take as many threads as OMP_NUM_THREADS."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "limit.so")
        subprocess.run([theano.config.cxx, *FLAGS, str(SOURCE), "-o", path],
                       check=True)
        return ctypes.CDLL(path)


def training(data, times):
    """Return a function with the traffic of a training step.

    `times` is "once": forward, x is read and y written; backward, x and dy are
    read and dx written; or "twice": before each of the two, what it reads is
    read a first time, for the sums.
    """
    return _call("training_" + times, [data.x, data.dy],
                 [np.ones_like(data.x), np.ones_like(data.x)])


def inference(data):
    """Return a function with the traffic of inference: read x, write y."""
    return _call("inference", [data.x], [np.ones_like(data.x)])


def _call(name, inputs, outputs):
    function = getattr(_library(), name)
    function.restype = None
    arrays = inputs + outputs
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
    size = ctypes.c_long(arrays[0].size)

    def call(_keep_alive=arrays):
        function(*pointers, size)
    return call
