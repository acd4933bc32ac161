"""Name the instruction sets to measure, and restrict programs to one."""

import functools
import os
import subprocess
from typing import NamedTuple

import theano


class InstructionSet(NamedTuple):
    """What restricts each library to an instruction set.

    `flags` are the compiler's; `aten`, `onednn` and `mkl` the values of
    PyTorch's, oneDNN's and MKL's environment variables. A machine has the set
    if its compiler defines `macro`. ONNX Runtime cannot be restricted.
    """

    label: str
    flags: str = ""
    aten: str = ""
    onednn: str = ""
    mkl: str = ""
    macro: str = "__SSE2__"


# From the widest to the narrowest.
SETS = {
    "native": InstructionSet("native"),
    "avx2": InstructionSet(
        "AVX2", "-march=native -mno-avx512f", "avx2", "AVX2", "AVX2",
        "__AVX2__"),
    # Most processors with AVX alone have no fused multiplication and addition.
    # PyTorch has no code for AVX alone; nor has oneDNN for SSE2 alone.
    "avx": InstructionSet(
        "AVX", "-march=native -mno-avx512f -mno-avx2 -mno-fma", "default",
        "AVX", "AVX", "__AVX__"),
    "sse2": InstructionSet(
        "SSE2", "-march=x86-64 -mtune=native", "default", "SSE41", "SSE4_2"),
}
# Wider than the sets above that have a name.
WIDE = "__AVX512F__"


@functools.lru_cache(maxsize=None)
def _macros():
    """List what the compiler defines for this machine."""
    found = subprocess.run(
        [theano.config.cxx, "-march=native", "-dM", "-E", "-x", "c++",
         os.devnull], check=True, stdout=subprocess.PIPE,
        universal_newlines=True)
    return [line.split()[1] for line in found.stdout.splitlines()]


def is_wide(name):
    """Tell whether a set has the vectors of AVX-512."""
    return name == "native" and WIDE in _macros()


def available():
    """List the sets of this machine, without one that is native to it."""
    names = [name for name, found in SETS.items() if found.macro in _macros()]
    if not is_wide("native") and "avx2" in names:
        names.remove("avx2")
    return names


def restricted(env, name):
    """Return an environment in which programs use one instruction set."""
    chosen = SETS[name]
    if not chosen.flags:
        return env
    flags = env.get("THEANO_FLAGS", "") + ",gcc.cxxflags=" + chosen.flags
    return dict(env, THEANO_FLAGS=flags.lstrip(","),
                ATEN_CPU_CAPABILITY=chosen.aten,
                ONEDNN_MAX_CPU_ISA=chosen.onednn,
                MKL_ENABLE_INSTRUCTIONS=chosen.mkl)
