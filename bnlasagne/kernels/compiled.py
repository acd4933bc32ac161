"""Compile Ops from the package's C++ sources, or compute them in NumPy."""

import hashlib
import re
from pathlib import Path

import numpy as np
import theano

from . import compilers
from .batch import LEAST_VALUES

__all__ = ["AVERAGES", "KERNELS", "TRIAL", "CompiledOp"]


def _source(*names):
    """Join headers, so that the compiler has to find none."""
    folder = Path(__file__).resolve().parent / "cpp"
    text = "".join((folder / name).read_text("utf-8") for name in names)
    return re.sub('#include "[^"]*"', "", text)


_CONSTANTS = f"""
namespace bnlasagne {{ const int LEAST_VALUES = {LEAST_VALUES}; }}
"""
_ARRAYS = _source("arrays.h")
KERNELS = _CONSTANTS + _source(
    "vectors.h", "batches.h", "rows.h", "columns.h", "kernels.h")
AVERAGES = _CONSTANTS + _source("vectors.h", "batches.h", "averages.h")
# What the compiler is tried with: most of what the Ops call, in one width.
TRIAL = KERNELS + _source("averages.h") + """
namespace bnlasagne {
template void forward<float, true, false>(
    const Batch&, const float*, const float*, const float*, double, float*,
    float*, float*, double*, std::int64_t*);
template void backward<float, true, false>(
    const Batch&, const float*, const float*, const float*, double,
    const float*, double*, float*, float*, float*);
template void apply<float, true, false>(
    const Batch&, const float*, const float*, const float*, const float*,
    const float*, double, float*);
template void move_average<float>(
    const float*, const std::int64_t*, Index, const float* const*, int, double,
    Index, float*);
}
"""


class CompiledOp(theano.Op):
    """An Op with C++ code, and a NumPy version of it, `compute(*inputs)`.

    `inputs` and `outputs` are names. In `code`, which needs the sources
    `source`, ``{x}`` stands for the C++ name of the input or output of that
    name, ``{T}`` for the type of the first input's numbers, ``{fail}`` for
    what is done after an error, and ``{params}`` for the Op's parameters.
    """

    source = KERNELS
    code = ""
    inputs = outputs = []

    def perform(self, node, inputs, output_storage, params=None):
        with np.errstate(all="ignore"):
            outputs = self.compute(*inputs)
        for storage, output, variable in zip(output_storage, outputs,
                                             node.outputs):
            storage[0] = np.asarray(output, dtype=variable.dtype)

    def c_support_code(self):
        return self.source + _ARRAYS

    def c_compile_args(self):
        return compilers.arguments(TRIAL) or []

    def c_no_compile_args(self):
        return compilers.unsafe_arguments()

    def c_code_cache_version(self):
        text = self.c_support_code() + self.code
        digest = hashlib.sha256(text.encode()).hexdigest()
        return (int(digest[:8], 16), 4)

    def make_c_thunk(self, *args, **kwargs):
        with compilers.or_numpy(TRIAL):
            return super().make_c_thunk(*args, **kwargs)

    def c_code(self, node, name, inputs, outputs, sub):
        compilers.require(TRIAL)
        names = dict(zip(self.inputs + self.outputs, inputs + outputs),
                     params=sub.get("params", ""), fail=sub["fail"],
                     T="npy_" + node.inputs[0].dtype)
        code = self.code
        for old, new in names.items():
            code = code.replace("{" + old + "}", new)
        return "{ using namespace bnlasagne; " + code + "}"
