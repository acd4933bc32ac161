"""Find out what the C++ compiler can do with the kernels.

Compilers differ in the flags that they know, and users add flags of their own.
:func:`arguments` tries a program of the kernels with the flags that suit them
best, then with fewer. What the compiler took is kept in Theano's compile
directory, so that other processes need not try. If the compiler takes nothing,
the Ops are computed by NumPy.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings

import theano
from theano.gof import compilelock
from theano.gof.cmodule import GCC_compiler
from theano.gof.utils import MethodNotDefined

__all__ = ["arguments", "or_numpy", "require", "unsafe_arguments"]

# C++11 is enough for the kernels, and the default of many compilers is newer.
_STANDARD = "-std=gnu++11"
_OTHER_STANDARDS = ("", "-std=gnu++14", "-std=c++11", "-std=gnu++0x")
_OPENMP = "-fopenmp"
_FLAGS = (
    "-O3",
    # GCC warns that vectors longer than the machine has are passed in another
    # way; between functions of one file it does not matter.
    "-Wno-psabi",
    # What nothing here looks at, and no result depends on, but would keep the
    # compiler from vectorizing square roots and choices.
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

# The file in Theano's compile directory.
_KEPT = "bnlasagne_compilers.json"

_found = {}
_warned = set()


def let_clang_compile_theano():
    """Let clang++ take the code of Theano's own Ops.

    In the standards of today, a size in a list of int is an error for it.
    """
    flag = "-Wno-c++11-narrowing"
    flags = theano.config.gcc.cxxflags.split()
    if "clang" in os.path.basename(theano.config.cxx) and flag not in flags:
        theano.config.gcc.cxxflags = " ".join(flags + [flag])


let_clang_compile_theano()


def unsafe_arguments():
    """The user's flags that the kernels must not be compiled with.

    Returns
    -------
    list of str
        As the user spells them, for `c_no_compile_args`.
    """
    return [flag for flag in theano.config.gcc.cxxflags.split()
            if _UNSAFE.fullmatch(flag) and flag != _STANDARD]


def arguments(program):
    """The flags to compile the kernels with.

    Parameters
    ----------
    program : str
        Source code of a library with all of the kernels.

    Returns
    -------
    list of str or None
        None if the compiler takes the kernels with no flags.
    """
    cxx = theano.config.cxx
    setting = cxx, theano.config.gcc.cxxflags, program
    if setting not in _found:
        _found[setting] = _kept_or_tried(*setting)
    flags, error = _found[setting]
    if flags is None:
        _warn("the C++ compiler %s cannot compile the kernels of batch "
              "normalization, which NumPy computes instead, several times "
              "slower. Set Theano's flag cxx to another compiler. Its "
              "message: %s" % (cxx, error))
    elif _OPENMP not in flags and _cores() > 1:
        _warn("the C++ compiler %s has no OpenMP, so that batch normalization "
              "is computed by one thread." % cxx)
    return flags


def require(program):
    """Raise what makes Theano use NumPy if the compiler is of no use."""
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
        setting = theano.config.cxx, theano.config.gcc.cxxflags, program
        _found[setting] = None, _first_error(text)
        require(program)


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
    """Flags, or None; and the last error of the compiler."""
    key = _key(cxx, cxxflags, program)
    flags, error = _kept(key), None
    if flags is None:
        user = [flag for flag in GCC_compiler.compile_args()
                if not _UNSAFE.fullmatch(flag)]
        flags, error = _try(user, program)
        if flags is not None:
            _keep(key, flags)
    return flags, error


def _try(user, program):
    """The first flags that the compiler takes, and its last error."""
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
    """Compile a shared library; returns the error, or None."""
    # Quickly: that is a matter of whether, not of how well.
    taken = flags + user + ["-O0", "-shared", "-w"]
    done, _, error = GCC_compiler.try_compile_tmp(
        program, tmp_prefix="bnlasagne_", flags=taken,
        output=True, comp_args=False)
    if done:
        return None
    if isinstance(error, bytes):
        error = error.decode("utf-8", "replace")
    return _first_error(error or "")


def _first_error(text):
    """The line of a compiler's output that says what is wrong."""
    lines = [line.strip() for line in text.replace(". ", "\n").splitlines()]
    errors = [line for line in lines if "error" in line.lower()]
    return ((errors or lines or ["none"])[0])[:300]


# What is kept

def _key(cxx, cxxflags, program):
    """What the result of a trial depends on."""
    path = shutil.which(cxx) or cxx
    try:
        status = os.stat(path)
        identity = [path, status.st_size, status.st_mtime]
    except OSError:
        identity = [path]
    text = json.dumps([GCC_compiler.version_str(), identity, cxxflags,
                       _STANDARD, _OTHER_STANDARDS, _FLAGS, program])
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _kept(key):
    try:
        with open(_path(), encoding="utf-8") as file:
            flags = json.load(file)[key]
        return flags if isinstance(flags, list) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(key, flags):
    # A compile directory that cannot be written to costs a trial, no more.
    try:
        with open(_path(), encoding="utf-8") as file:
            table = json.load(file)
    except (OSError, ValueError):
        table = {}
    if not isinstance(table, dict):
        table = {}
    temporary = "%s.%d" % (_path(), os.getpid())
    with contextlib.suppress(OSError):
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(dict(table, **{key: flags}), file)
        os.replace(temporary, _path())


def _path():
    return os.path.join(theano.config.compiledir, _KEPT)
