"""The same seed gives the same bits, however often and wherever it runs."""

import ctypes
import os
import subprocess

import numpy as np
import pytest
import theano
from helpers import kernel_bits
from helpers.common import needs_compiler
from helpers.digests import Digest
from helpers.programs import ROOT, run_python, succeed
from helpers.whole import Whole, draw_batch
from theano.gof.cmodule import GCC_compiler
from theano.gof.vm import VM_Linker

# Starts of digests, by bytes of a register. Columns have a lane each.
RECORD = {
    64: {"rows": "4ef5aae1fd74fe7c", "columns": "64609b95cf003b9b"},
    32: {"rows": "d1f58b1106f7d6de", "columns": "64609b95cf003b9b"},
    16: {"rows": "94462080d3cc3f0f", "columns": "64609b95cf003b9b"},
}
BUILDS = {"rows": "float32", "columns": "float64"}


def register():
    """Ask the compiler for the length of the vectors in the kernels."""
    macros = subprocess.run(
        [theano.config.cxx, *GCC_compiler.compile_args(), "-dM", "-E", "-x",
         "c++", "-"], input="", check=True, stdout=subprocess.PIPE,
        universal_newlines=True).stdout
    return 64 if "__AVX512F__" in macros else 32 if "__AVX__" in macros else 16


def set_threads(number):
    """Set the number of OpenMP's threads, or tell that there is no OpenMP."""
    for name in "libgomp.so.1", "libomp.so.5", "libomp.so":
        try:
            library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            continue
        library.omp_set_num_threads(number)
        return True
    return False


def train(name, **options):
    """Train with kernels as they are written, and return the digest.

    Compilers fuse a product and a sum where they like, which saves a rounding,
    and other compilers or flags do elsewhere. Here they do nowhere.
    """
    flags = theano.config.gcc.cxxflags + " -O1 -ffp-contract=off"
    with theano.configparser.change_flags(
            **{"floatX": BUILDS[name], "gcc.cxxflags": flags}), \
            kernel_bits.only_kernels_in_c(**options) as mode:
        return kernel_bits.digest_of_training(
            getattr(kernel_bits, name), mode)


@needs_compiler
@pytest.mark.parametrize("name", BUILDS)
def test_bits_on_record(name):
    assert train(name)[:16] == RECORD[register()][name]


@needs_compiler
@pytest.mark.parametrize("name", BUILDS)
def test_threads_and_memory(name):
    """Neither the number of threads, nor memory that is kept, matters."""
    found = {train(name, allow_gc=True)}
    for threads in 1, 2, 3, 4:
        if set_threads(threads):
            found.add(train(name))
    set_threads(os.cpu_count())
    assert len(found) == 1


# Loops, too.
@theano.configparser.change_flags(cxx="")
def digest_of_whole(functions, **options):
    """Compile functions of a network in this order; train, and test it."""
    mode = theano.Mode(VM_Linker(c_thunks=False, **options), "fast_compile")
    network, digest = Whole(seed=3), Digest()
    functions = {name: getattr(network, name)(mode=mode) for name in functions}
    batches = [draw_batch(np.random.RandomState(n), n) for n in (8, 5, 12)]
    accumulate, step = functions["accumulator"]
    for batch in batches:
        digest.add(functions["trainer"](*batch), accumulate(*batch),
                   accumulate(*batches[0]))
        step()
        digest.add(functions["tester"](*batch[:3]))
    digest.add(*network.values())
    return str(digest)


ELSEWHERE = """
import sys
sys.path.insert(0, "tests")
import bnlasagne
from test_determinism import digest_of_whole
print(digest_of_whole(["accumulator", "tester", "trainer"], allow_gc=True))
"""


def test_processes_and_orders():
    """Another process compiles in another order; its hashes differ, too."""
    here = digest_of_whole(["trainer", "tester", "accumulator"])
    out = succeed(run_python(
        ELSEWHERE, ROOT, PYTHONHASHSEED="7", OMP_NUM_THREADS="1"))
    assert out.split()[-1] == here
