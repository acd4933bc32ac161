"""Let the C++ code of Theano compile with NumPy 2."""

import functools
import hashlib
from pathlib import Path

from .numpy import is_numpy_2

__all__ = ["increment_rows", "speak_numpy_2"]


def speak_numpy_2(cmodule):
    """Put what NumPy 2 removed from its C API before each compiled module.

    A macro that names the version of it becomes a part of the compiler's flags
    and so of the key under which Theano keeps a module. This goes with Theano
    1.0.5.
    """
    compiler = cmodule.GCC_compiler
    compile_args, compile_str = compiler.compile_args, compiler.compile_str
    if not is_numpy_2(cmodule.numpy):
        return
    header, version = _code_and_version("numpy_2.h")

    @functools.wraps(compile_args)
    def with_version(*arguments, **keywords):
        return [*compile_args(*arguments, **keywords),
                f"-DBNLASAGNE_NUMPY_2={version}"]

    @functools.wraps(compile_str)
    def with_header(module_name, src_code, *arguments, **keywords):
        # `ConvOp` includes it, and needs nothing of it.
        src_code = src_code.replace("#include <numpy/noprefix.h>", "")
        return compile_str(module_name, f"{header}#line 1\n{src_code}",
                           *arguments, **keywords)

    compiler.compile_args = staticmethod(with_version)
    compiler.compile_str = staticmethod(with_header)


def increment_rows(subtensor):
    """Add to rows, or set them, as of an embedding, by code of our own.

    Theano's walks the indices by an iterator that NumPy 2 no longer shows, and
    takes 20 times as long. This goes with Theano 1.0.5.
    """
    code, version = _code_and_version("increment.h")
    subtensor.inc_code = lambda: code
    subtensor.AdvancedIncSubtensor1.c_code_cache_version = (
        lambda self: (int(version, 16),))


def _code_and_version(name):
    """Return the text of a file of this folder, and a number for the text."""
    code = Path(__file__).with_name(name).read_text("utf-8")
    return code, f"0x{hashlib.sha256(code.encode('utf-8')).hexdigest()[:16]}"
