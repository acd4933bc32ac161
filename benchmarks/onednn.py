"""Run oneDNN's own batch normalization, in any of its memory layouts.

It is in the wheels `onednn-cpu-gomp` and `onednn-devel-cpu-gomp`.
"""

import ctypes
import sysconfig
from pathlib import Path

import numpy as np

from .compiled import address, library

LAYOUTS = ["nchw", "nhwc", "nChw8c", "nChw16c"]
ROOT = Path(sysconfig.get_path("data"))


def is_installed():
    """Tell whether both wheels are there."""
    return (ROOT / "include" / "dnnl.hpp").exists()


def load():
    """Compile the driver, or find it compiled."""
    folder = ROOT / "lib"
    made = library("onednn", f"-I{ROOT / 'include'}", f"-L{folder}",
                   f"-Wl,-rpath,{folder}", "-ldnnl")
    made.make.restype = ctypes.c_void_p
    return made


class Primitive:
    """The primitives of a case, with memory for all that they compute.

    `data` has its channels on the second axis; in memory, they may lie
    elsewhere.
    """

    def __init__(self, data, layout, rectify, training, epsilon, alpha):
        self._library, dims = load(), data.x.ndim
        sizes = ctypes.c_long * dims
        strides = [step // data.x.itemsize for step in data.x.strides]
        handle = self._library.make(
            dims, sizes(*data.x.shape), sizes(*strides),
            LAYOUTS.index(layout), training, rectify,
            ctypes.c_float(epsilon), ctypes.c_float(alpha), _pointers(data))
        if handle is None:
            raise RuntimeError(f"oneDNN has no primitive for {layout}")
        self._handle = ctypes.c_void_p(handle)
        # With the strides of x.
        y, dx = np.empty_like(data.x), np.empty_like(data.x)
        self._results = [y, dx, *(np.empty(data.x.shape[1], "float32")
                                  for _ in range(4))]

    def call(self):
        """Run a training step, or inference."""
        self._library.run(self._handle)

    def results(self):
        """Copy y, dx, dgamma, dbeta, the running mean and variance."""
        self._library.read(self._handle, _pointers(self._results))
        return self._results


def _pointers(arrays):
    return (ctypes.c_void_p * len(arrays))(*map(address, arrays))
