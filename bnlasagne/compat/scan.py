"""Let the C code of ``theano.scan`` compile on current Pythons."""

import contextlib
import re
import sys
from pathlib import Path

__all__ = ["compile_scan_extension"]

_failures = []


@contextlib.contextmanager
def compile_scan_extension():
    """Translate the loop that Cython 0.28 wrote as C code, for its compiler.

    Python 3.11 and NumPy 2 have hidden what it uses of them. Where it cannot
    be compiled nevertheless, loops run in Python. This goes with Theano 1.0.5.
    """
    cmodule = sys.modules["theano.gof.cmodule"]
    numpy_2 = int(cmodule.numpy.__version__.split(".")[0]) >= 2
    if sys.version_info < (3, 11) and not numpy_2:
        yield
        return
    if _failures:  # Theano would try again for each loop.
        raise ImportError(str(_failures[0]))
    compiler = cmodule.GCC_compiler
    compile_str = compiler.compile_str

    def compile_translation(name, code, *arguments, **keywords):
        return compile_str(name, _translate(code, numpy_2), *arguments,
                           **keywords)

    compiler.compile_str = staticmethod(compile_translation)
    try:
        yield
    except ImportError:  # There is no compiler.
        raise
    except Exception as error:
        _failures.append(error)
        raise ImportError(str(error)) from error
    finally:
        compiler.compile_str = staticmethod(compile_str)


def _translate(code, numpy_2):
    # The branch for PyPy adds a traceback without fields that are private.
    code = re.sub(r"#if CYTHON_COMPILING_IN_PYPY(\s+PyObject \*tmp_type,)",
                  r"#if 1\1", code)
    if numpy_2:
        code = re.sub(
            r"(__pyx_v_\w+)->(subarray|fields|names)\b",
            lambda match: f"PyDataType_{match[2].upper()}({match[1]})", code)
    header = Path(__file__).with_name("scan_perform.h").read_text("utf-8")
    return f"{header}#line 1\n{code}"
