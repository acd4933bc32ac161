"""Build the driver of the kernels, and run it."""

import re
import subprocess
from pathlib import Path

from bnlasagne.kernels import compiled

__all__ = ["FLAGS", "WIDTHS", "build", "run", "runs_here"]

FOLDER = Path(__file__).resolve().parent

# Few optimizations: that takes half the time to compile.
FLAGS = ["-std=gnu++11", "-O1", "-g1", "-Wno-psabi", "-fno-math-errno",
         "-fno-trapping-math"]
# Registers that the compiler may use, by their bytes.
WIDTHS = {
    64: ["-march=native"],
    32: ["-mavx2", "-mfma"],
    16: ["-mno-avx"],
}


def runs_here(width):
    """Tell whether this machine has registers of so many bytes."""
    found = subprocess.run(
        ["g++", "-march=native", "-dM", "-E", "-x", "c++", "/dev/null"],
        stdout=subprocess.PIPE, universal_newlines=True).stdout
    needed = {64: "__AVX512F__", 32: "__AVX2__", 16: "__SSE2__"}[width]
    return re.search(rf"\b{needed}\b", found) is not None


def source():
    """Join the kernels and the driver in one text."""
    return compiled.TRIAL + (FOLDER / "driver.cpp").read_text("utf-8")


def build(folder, width, sanitizers=()):
    """Compile the driver in a folder, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "-".join([str(width), *sanitizers])
    text, program = folder / f"{name}.cpp", folder / name
    text.write_text(source(), "utf-8")
    flags = [*FLAGS, *WIDTHS[width]]
    if sanitizers:
        flags += ["-fsanitize=" + ",".join(sanitizers),
                  "-fno-sanitize-recover=all"]
    if "thread" not in sanitizers:
        _compile(*flags, "-fopenmp", text, "-o", program)
        return program
    parts = [folder / f"{name}.o", folder / f"{name}-threads.o"]
    _compile(*flags, "-fopenmp", "-c", text, "-o", parts[0])
    _compile(*flags, "-c", FOLDER / "threads.cpp", "-o", parts[1])
    # Not with -fopenmp, which links GCC's own threads.
    _compile(*flags, *parts, "-pthread", "-o", program)
    return program


def _compile(*arguments):
    subprocess.run(["g++", *map(str, arguments)], check=True)


def run(program, seed, cases, threads=4, first=0):
    """Run cases; return what the driver has printed, and whether it failed.

    It is ended by a signal, such as 11, if it reads beyond an array's end.
    """
    done = subprocess.run(
        [str(program), *map(str, (seed, first, cases, threads))],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        universal_newlines=True)
    text = f"{done.stdout}Exit status: {done.returncode}"
    return text, done.returncode != 0
