"""Repair Theano where it is older than the machine that it runs on."""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import re
import sys
import types
import warnings

from .mpi4py import launched_rank

__all__ = [
    "forget_failed_import",
    "let_clang_compile",
    "link_without_libpython",
    "max_pool_2d",
    "own_compile_directory",
    "provide_downsample",
    "without_blas_warning",
    "without_deprecation_warnings",
    "words_for_a_missing_header",
]

_DOWNSAMPLE = "theano.tensor.signal.downsample"
# Theano's own.
_COMPILEDIR_FORMAT = (
    "compiledir_%(short_platform)s-%(processor)s-%(python_version)s-"
    "%(python_bitwidth)s")


def forget_failed_import():
    """Let Theano be imported afresh after an import that failed.

    Python drops a package whose import failed, but keeps its submodules, and
    on those Theano fails again. In a notebook the first failure is often what
    makes people import bnlasagne.
    """
    if "theano" not in sys.modules:
        for name in list(sys.modules):
            if name.startswith("theano."):
                del sys.modules[name]


@contextlib.contextmanager
def words_for_a_missing_header():
    """Name the package that brings Python.h, where the compiler misses it."""
    try:
        yield
    except Exception as error:
        # Theano hands on the compiler's complaint as a bare Exception.
        if "Python.h" not in str(error):
            raise
        raise ImportError(
            "Theano found a C++ compiler, but not the header Python.h of "
            "this Python. Install it (on Debian and Ubuntu: apt-get install "
            f"python{sys.version_info[0]}.{sys.version_info[1]}-dev), or set "
            "the environment variable THEANO_FLAGS=cxx= to do without a "
            "compiler, slowly.") from error


@contextlib.contextmanager
def own_compile_directory():
    """Give each MPI process its own compile directory, unless the user did.

    Theano locks the directory while it compiles, and each process would wait
    for all others, again and again. It reads its flags while it is imported.
    """
    rank = launched_rank()
    before = os.environ.get("THEANO_FLAGS")
    if not rank.isdigit() or _is_format_set():
        yield
        return
    # Of flags that are given twice, the last one counts: the user's.
    os.environ["THEANO_FLAGS"] = (
        f"compiledir_format={_COMPILEDIR_FORMAT}-rank{rank},{before or ''}")
    try:
        yield
    finally:
        if before is None:
            del os.environ["THEANO_FLAGS"]
        else:
            os.environ["THEANO_FLAGS"] = before


def _is_format_set():
    """Tell whether a configuration file of Theano's names the directory."""
    paths = os.environ.get("THEANORC", "~/.theanorc").split(os.pathsep)
    for path in map(os.path.expanduser, paths):
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                if re.search(r"^\s*compiledir_format\b", file.read(), re.M):
                    return True
    return False


@contextlib.contextmanager
def without_deprecation_warnings():
    """Keep to itself what Theano and Lasagne use that is deprecated."""
    for package in ("theano", "lasagne"):
        for category in (DeprecationWarning, PendingDeprecationWarning):
            warnings.filterwarnings(
                "ignore", category=category, module=package + r"(\.|$)")
    yield


@contextlib.contextmanager
def without_blas_warning():
    """Keep Theano from saying at each start that it uses NumPy's BLAS."""
    def is_other(record):
        return "Using NumPy C-API based implementation" not in record.msg

    logger = logging.getLogger("theano.tensor.blas")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def provide_downsample(theano):
    """Have the module `downsample`, which Lasagne 0.1 imports.

    Theano 0.9 removed it. This goes with Lasagne 0.1.
    """
    signal = importlib.import_module("theano.tensor.signal")
    if (hasattr(signal, "downsample") or _DOWNSAMPLE in sys.modules
            or importlib.util.find_spec(_DOWNSAMPLE)):
        return
    module = types.ModuleType(
        _DOWNSAMPLE, "What Lasagne 0.1 uses of a module that Theano 0.9 "
        "removed; provided by bnlasagne.")
    module.__spec__ = importlib.machinery.ModuleSpec(_DOWNSAMPLE, None)
    module.max_pool_2d = max_pool_2d
    sys.modules[_DOWNSAMPLE] = signal.downsample = module


def max_pool_2d(input, ds, ignore_border=None, st=None, padding=(0, 0),
                mode="max"):
    """Pool over the two trailing axes, as ``downsample.max_pool_2d`` did.

    The arguments are those of Theano 0.8. Today's ``pool_2d`` gets them under
    today's names, because it warns about the old ones.
    """
    from theano.tensor.signal import pool

    return pool.pool_2d(input, ws=ds, ignore_border=ignore_border, stride=st,
                        pad=padding, mode=mode)


def let_clang_compile(cmodule):
    """Let clang++ compile Theano's own Ops.

    By its newer standards, a size in a list of int is an error.
    """
    config, flag = cmodule.config, "-Wno-c++11-narrowing"
    flags = config.gcc.cxxflags.split()
    if "clang" in os.path.basename(config.cxx) and flag not in flags:
        config.gcc.cxxflags = " ".join([*flags, flag])


def link_without_libpython(cmodule):
    """Link what Theano compiles as Python itself links extension modules.

    Python has the symbols that they need. Its library is missing beside a
    Python that was built without, or lies elsewhere than the Python says after
    it was moved; the static one must not be linked at all. Theano knows this
    of macOS. Windows and Cygwin do need the library.
    """
    if sys.platform.startswith("linux"):
        cmodule.std_libs = list
