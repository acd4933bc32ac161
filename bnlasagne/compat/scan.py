"""Compile the C loop of theano.scan for this Python and NumPy."""

import contextlib
import functools
import importlib
import sys
import warnings
from pathlib import Path

# Not `from . import`: see __init__.py.
from .kept import answers, digest, keep
from .numpy import is_numpy_2

__all__ = ["compile_scan_extension"]

_FILE = "scan"
# Less of the second saves half of the time that compiling takes.
_FLAGS = ("-fwrapv", "-fno-strict-aliasing", "-O1", "-g0")


@contextlib.contextmanager
def compile_scan_extension():
    """Have a loop in C for Theano, or an ImportError, so that it uses Python.

    Python 3.11 and NumPy 2 changed what Theano's C code uses. Theano falls
    back on Python if the extension cannot be imported, but not if the compiler
    fails on it. This goes with Theano 1.0.5.
    """
    cmodule = importlib.import_module("theano.gof.cmodule")
    if sys.version_info >= (3, 11) or is_numpy_2(cmodule.numpy):
        with warnings.catch_warnings():
            # Of its age, and that NumPy's types have grown behind what it
            # uses of them. As errors, they would count as a failure.
            warnings.simplefilter("ignore")
            loop = cmodule.config.cxx and _loop(
                cmodule, cmodule.numpy.__version__)
        if not loop:
            raise ImportError("theano.scan has no loop in C: Python runs it.")
        # Theano's module looks here before it compiles.
        package = sys.modules[loop.__name__.rpartition(".")[0]]
        package._version = loop.get_version()
        sys.modules["scan_perform"] = package
        sys.modules["scan_perform.scan_perform"] = loop
    yield


@functools.lru_cache(maxsize=None)
def _loop(cmodule, numpy):
    """Compile the loop, or load it; return None if that fails.

    A failure is kept, too, so that other processes do not try again.
    """
    source = _source()
    flags = [*_FLAGS, *cmodule.GCC_compiler.compile_args()]
    key = digest(source, flags, sys.version, numpy, cmodule.config.cxx,
                 cmodule.GCC_compiler.version_str())
    if key in answers(_FILE):
        return None
    folder = Path(cmodule.config.compiledir, "scan_perform", f"for_{key[:16]}")
    try:
        return _found(cmodule, folder) or _compiled(
            cmodule, source, flags, folder)
    except Exception as error:
        keep(_FILE, key, str(error)[:300])
        return None


def _source():
    """Return Theano's C code, after what it needs on this machine."""
    package = importlib.import_module("theano.scan_module")
    code = Path(package.__file__).with_name("c_code") / "scan_perform.c"
    header = Path(__file__).with_name("scan_perform.h")
    return (f"{header.read_text('utf-8')}#line 1\n"
            f"{code.read_text('utf-8')}")


def _found(cmodule, folder):
    """Load what another process has compiled, unless it is damaged."""
    try:
        return _loaded(cmodule, folder)
    except ImportError:
        # Such as by a power cut. It is compiled again.
        (folder / "__init__.py").unlink()
        return None


def _loaded(cmodule, folder):
    """Load what was compiled, or return None."""
    # The file that is written last.
    if not (folder / "__init__.py").exists():
        return None
    name = f"scan_perform.{cmodule.get_lib_extension()}"
    return cmodule.dlimport(str(folder / name))


def _compiled(cmodule, source, flags, folder):
    """Compile the loop, and load it."""
    # Theano's function for modules prints what it cannot compile.
    include = [f"-I{path}" for path in cmodule.std_include_dirs()]
    done, _, error = cmodule.GCC_compiler.try_compile_tmp(
        source, tmp_prefix="scan_perform_", comp_args=False, output=True,
        flags=[*flags, *include, "-fsyntax-only"])
    if not done:
        raise ImportError(f"The C++ compiler refuses the loop: {error}")
    lock = importlib.import_module("theano.gof.compilelock")
    lock.get_lock()
    try:
        # Another process may have compiled it.
        if not (folder / "__init__.py").exists():
            folder.mkdir(parents=True, exist_ok=True)
            cmodule.GCC_compiler.compile_str(
                "scan_perform", source, location=str(folder), preargs=flags,
                py_module=False, hide_symbols=False)
            (folder / "__init__.py").touch()
    finally:
        lock.release_lock()
    return _loaded(cmodule, folder)
