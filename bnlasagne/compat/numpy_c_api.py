"""Let the C++ code of Theano compile with NumPy 2."""

import functools
import hashlib
from pathlib import Path

__all__ = ["speak_numpy_2"]


def speak_numpy_2(cmodule):
    """Put what NumPy 2 removed from its C API before each compiled module.

    A macro that names the version of it becomes a part of the compiler's flags
    and so of the key under which Theano keeps a module. This goes with Theano
    1.0.5.
    """
    compiler = cmodule.GCC_compiler
    if int(cmodule.numpy.__version__.split(".")[0]) < 2:
        return
    header = Path(__file__).with_name("numpy_2.h").read_text("utf-8")
    version = hashlib.sha256(header.encode("utf-8")).hexdigest()[:16]
    compile_args, compile_str = compiler.compile_args, compiler.compile_str

    @functools.wraps(compile_args)
    def with_version(*arguments, **keywords):
        return [*compile_args(*arguments, **keywords),
                f"-DBNLASAGNE_NUMPY_2=0x{version}"]

    @functools.wraps(compile_str)
    def with_header(module_name, src_code, *arguments, **keywords):
        return compile_str(module_name, f"{header}#line 1\n{src_code}",
                           *arguments, **keywords)

    compiler.compile_args = staticmethod(with_version)
    compiler.compile_str = staticmethod(with_header)
