"""Compile a C++ file of this folder, and load it."""

import ctypes
import functools
import os
import subprocess
import tempfile
from pathlib import Path

import theano

FLAGS = ["-std=gnu++14", "-O3", "-march=native", "-fopenmp", "-shared",
         "-fPIC"]
HERE = Path(__file__).resolve().parent


@functools.lru_cache(maxsize=None)
def library(name, *flags):
    """Compile with Theano's flags, which name the instruction set.

    Its functions take as many threads as OMP_NUM_THREADS.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, name + ".so")
        subprocess.run(
            [theano.config.cxx, *FLAGS, *theano.config.gcc.cxxflags.split(),
             str(HERE / (name + ".cpp")), "-o", path, *flags], check=True)
        return ctypes.CDLL(path)


def address(array):
    """Return where an array lies, as an argument of a function in C."""
    return ctypes.c_void_p(array.ctypes.data)
