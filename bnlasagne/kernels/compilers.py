"""Find the flags with which the C++ compiler can compile the kernels.

Compilers differ in the flags that they know, and users add flags of their own.
:func:`arguments` tries a program of the kernels with the best flags, then with
fewer. Flags that work are kept in Theano's compile directory, so that other
processes need not try. If no flags work, NumPy computes the Ops.
"""

import contextlib
import os
import re
import shutil
import warnings

import theano
from theano.gof import compilelock
from theano.gof.cmodule import GCC_compiler
from theano.gof.utils import MethodNotDefined

from ..compat.kept import answers, digest, keep

__all__ = ["arguments", "or_numpy", "require", "unsafe_arguments"]

# C++11 is enough for the kernels, and the default of many compilers is newer.
_STANDARD = "-std=gnu++11"
_OTHER_STANDARDS = ("", "-std=gnu++14", "-std=c++11", "-std=gnu++0x")
_OPENMP = "-fopenmp"
_FLAGS = (
    "-O3",
    # Theano's "-g" adds a third to the time that compiling the kernels takes.
    "-g0",
    # GCC warns that vectors longer than the machine has are passed in another
    # way; between functions of one file it does not matter.
    "-Wno-psabi",
    # Nothing here looks at errno or at traps, and no result depends on them.
    # But they keep the compiler from vectorizing square roots and choices.
    "-fno-math-errno", "-fno-trapping-math",
    _OPENMP,
)

# The user's flags that would change results, or how the kernels are read.
_UNSAFE = re.compile("|".join([
    # Sums in another order, no NaN, no denormals, numbers in another format.
    "-Ofast", "-ffast-math", "-funsafe-math-optimizations",
    "-fassociative-math", "-freciprocal-math", "-ffinite-math-only",
    "-fno-honor-.*", "-fno-signed-zeros", "-fapprox-func", "-mrecip.*",
    "-ffp-model=.*", "-fdenormal-fp-math.*", "-mdaz-ftz",
    "-fsingle-precision-constant",
    # Threads that the kernels do not know of.
    "-fopenmp=.*", "-ftree-parallelize-loops=.*", "-floop-parallelize-all",
    # Another language, and warnings as errors.
    "--?std=.*", "-ansi", "-Werror.*", "-pedantic-errors",
]))

# Of Theano's compile directory.
_FILE = "compilers"

_found = {}
_warned = set()


def unsafe_arguments():
    """List the user's flags that the kernels must not be compiled with."""
    return [flag for flag in theano.config.gcc.cxxflags.split()
            if _UNSAFE.fullmatch(flag) and flag != _STANDARD]


def arguments(program):
    """Find the flags to compile the kernels with, or None.

    None if the compiler refuses them whatever the flags. `program` is the
    source code of a library with all of the kernels.
    """
    setting = _setting(program)
    if setting not in _found:
        _found[setting] = _kept_or_tried(*setting)
    flags, error = _found[setting]
    if flags is None:
        _warn(f"the C++ compiler {setting[0]} cannot compile the kernels of "
              "batch normalization, which NumPy computes instead, several "
              "times slower. Set Theano's flag cxx to another compiler. Its "
              f"message: {error}")
    elif _OPENMP not in flags and _cores() > 1:
        _warn(f"the C++ compiler {setting[0]} has no OpenMP, so that batch "
              "normalization is computed by one thread.")
    return flags


def require(program):
    """Have Theano use NumPy if the compiler cannot compile the kernels."""
    if arguments(program) is None:
        raise MethodNotDefined("c_code")


@contextlib.contextmanager
def or_numpy(program):
    """Compile the code of an Op; have NumPy compute it if that fails."""
    require(program)
    locks = _locks()
    try:
        yield
    except Exception as error:
        text = str(error.args[0]) if error.args else ""
        if not text.startswith("Compilation failed"):
            raise
        # Theano keeps its compile directory locked after an error.
        while _locks() > locks:
            compilelock.release_lock()
        # The compiler took the trial, but not this.
        _found[_setting(program)] = None, _first_error(text)
        require(program)


def _setting(program):
    """Return what the flags depend on, within one process."""
    return theano.config.cxx, theano.config.gcc.cxxflags, program


def _locks():
    return getattr(compilelock.get_lock, "n_lock", 0)


def _warn(text):
    if text not in _warned:
        _warned.add(text)
        warnings.warn("bnlasagne: " + text, RuntimeWarning, stacklevel=3)


def _cores():
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return int(threads) if threads.isdigit() else os.cpu_count() or 1


# Trials

def _kept_or_tried(cxx, cxxflags, program):
    """Return flags, or None; and the last error of the compiler."""
    key = _key(cxx, cxxflags, program)
    flags, error = answers(_FILE).get(key), None
    if not isinstance(flags, list):
        user = [flag for flag in GCC_compiler.compile_args()
                if not _UNSAFE.fullmatch(flag)]
        flags, error = _try(user, program)
        if flags is not None:
            keep(_FILE, key, flags)
    return flags, error


def _try(user, program):
    """Find the first flags that the compiler takes, and its last error."""
    flags = [_STANDARD] + list(_FLAGS)
    error = _compile(program, flags, user)
    if error is None:
        return flags, None
    known = [flag for flag in _FLAGS
             if _compile("int nothing;\n", [flag], user) is None]
    for standard in (_STANDARD,) + _OTHER_STANDARDS:
        flags = ([standard] if standard else []) + known
        error = _compile(program, flags, user)
        if error is None:
            return flags, None
    return None, error


def _compile(program, flags, user):
    """Compile a shared library; return the error, or None."""
    # Without optimizations: the question is whether it compiles.
    taken = flags + user + ["-O0", "-shared", "-w"]
    done, _, error = GCC_compiler.try_compile_tmp(
        program, tmp_prefix="bnlasagne_", flags=taken,
        output=True, comp_args=False)
    if done:
        return None
    # The compiler's own error, or that it cannot be started.
    if isinstance(error, bytes):
        error = error.decode("utf-8", "replace")
    return _first_error(error or "")


def _first_error(text):
    """Find the line of a compiler's output that says what is wrong."""
    lines = [line.strip() for line in text.replace(". ", "\n").splitlines()]
    errors = [line for line in lines if "error" in line.lower()]
    return ((errors or lines or ["none"])[0])[:300]


def _key(cxx, cxxflags, program):
    """Return a digest of all that the result of a trial depends on."""
    identity = [shutil.which(cxx) or cxx]
    with contextlib.suppress(OSError):
        status = os.stat(identity[0])
        identity += [status.st_size, status.st_mtime]
    return digest(GCC_compiler.version_str(), identity, cxxflags,
                  _STANDARD, _OTHER_STANDARDS, _FLAGS, program)
