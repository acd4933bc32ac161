"""Let Theano link the OpenBLAS in SciPy's wheel if it finds no other BLAS.

Without a BLAS, Theano calls NumPy's through Python objects. SciPy's OpenBLAS
is in the process anyway, because Theano imports `scipy.linalg`. NumPy's own
cannot be linked: it takes integers of 64 bits.

The flags hold the path of the library, whose name holds a digest of its
content, and Theano compiles anew for other flags. So nothing compiled calls
another library than the one of now. This goes with Theano 1.0.5.
"""

import functools
import glob
import importlib.util
import os
import sys

__all__ = ["link_blas_of_scipy"]

# What Theano's Ops call. Since 1.13, SciPy's library has a prefix before each.
_FUNCTIONS = (
    *(precision + name + "_" for precision in "sd"
      for name in ("axpy", "dot", "gemm", "gemv", "ger")),
    "openblas_get_num_threads", "openblas_set_num_threads",
)
# The old kind of path also leads the library itself to what lies beside it.
_RPATH = "--disable-new-dtags,-rpath"
# With a factor of zero, a product must not depend on what its memory held. A
# library for integers of 64 bits would read each with its neighbour. The
# results are those of a matrix with the columns (1, 2) and (3, 4).
_TRIAL = """
#include <math.h>
extern "C" {
int openblas_get_num_threads(void);
void openblas_set_num_threads(int);
}
#define TRIAL(real, axpy, dot, gemm, gemv, ger) \\
extern "C" { \\
void axpy(int*, real*, real*, int*, real*, int*); \\
real dot(int*, real*, int*, real*, int*); \\
void gemm(char*, char*, int*, int*, int*, real*, real*, int*, real*, int*, \\
          real*, real*, int*); \\
void gemv(char*, int*, int*, real*, real*, int*, real*, int*, real*, real*, \\
          int*); \\
void ger(int*, int*, real*, real*, int*, real*, int*, real*, int*); \\
} \\
bool gemm##works() { \\
    int two[] = {2, -1}, one[] = {1, -1}; \\
    real A[] = {1, 2, 3, 4}, x[] = {1, 2}, y[] = {3, 4}, zero = 0, unit = 1; \\
    real C[] = {NAN, NAN, NAN, NAN}, v[] = {NAN, NAN}, w[] = {NAN, NAN}; \\
    char N[] = "N", T[] = "T"; \\
    gemm(N, T, two, two, two, &unit, A, two, A, two, &zero, C, two); \\
    gemv(N, two, two, &unit, A, two, x, one, &zero, v, one); \\
    gemv(T, two, two, &unit, A, two, x, one, &zero, w, one); \\
    bool right = C[0] == 10 && C[1] == 14 && C[2] == 14 && C[3] == 20 \\
        && v[0] == 7 && v[1] == 10 && w[0] == 5 && w[1] == 11 \\
        && dot(two, x, one, y, one) == 11; \\
    ger(two, two, &unit, x, one, y, one, A, two); \\
    axpy(two, &unit, x, one, y, one); \\
    return right && A[0] == 4 && A[1] == 8 && A[2] == 7 && A[3] == 12 \\
        && y[0] == 4 && y[1] == 6; \\
}
TRIAL(float, saxpy_, sdot_, sgemm_, sgemv_, sger_)
TRIAL(double, daxpy_, ddot_, dgemm_, dgemv_, dger_)
int main() {
    openblas_set_num_threads(1);
    return !(sgemm_works() && dgemm_works()
             && openblas_get_num_threads() == 1);
}
"""


def link_blas_of_scipy(configdefaults):
    """Have Theano try SciPy's library after all others.

    Theano does not look for a BLAS if `blas.ldflags` is set.
    """
    ask = configdefaults.try_blas_flag
    if not sys.platform.startswith("linux"):
        return

    @functools.wraps(ask)
    def try_blas_flag(flags):
        found = ask(flags)
        # These are what Theano tries last.
        if found or flags != ["-lblas"]:
            return found
        return next(filter(_works, map(_flags, _libraries())), "")

    configdefaults.try_blas_flag = try_blas_flag


def _libraries():
    """List the libraries that SciPy's wheel brings, if it is one."""
    spec = importlib.util.find_spec("scipy")
    packages = spec and spec.submodule_search_locations or []
    # Beside the package, or in it, as in older wheels.
    folders = [folder for package in packages for folder in (
        os.path.join(os.path.dirname(package), "scipy.libs"),
        os.path.join(package, ".libs"))]
    return sorted(path for folder in folders for path in glob.glob(
        os.path.join(glob.escape(folder), "lib*openblas*.so")))


def _flags(library):
    """Write the flags that link a library, without a prefix of its names."""
    folder, file = os.path.split(library)
    name = file[len("lib"):-len(".so")]
    flags = [f"-L{folder}", f"-l{name}", f"-Wl,{_RPATH},{folder}"]
    if name.startswith("scipy_"):
        flags += [f"-D{function}=scipy_{function}" for function in _FUNCTIONS]
    return " ".join(flags)


def _works(flags):
    """Tell whether a program linked by the flags computes rightly."""
    from theano.gof.cmodule import GCC_compiler

    tried = GCC_compiler.try_compile_tmp(
        _TRIAL, tmp_prefix="try_blas_", flags=flags.split(), try_run=True)
    return bool(tried) and all(tried)
