"""Give Theano what NumPy has removed."""

import contextlib
import functools
import importlib
import warnings
from types import SimpleNamespace

from .importing import view

__all__ = ["is_numpy_2", "keeps_lowest_bits", "numpy_for_theano"]


def numpy_for_theano():
    """Return NumPy with what Theano 1.0.5 uses of older versions.

    For Theano alone. Some of the names are NumPy's again, with another meaning
    (`numpy.bool`), and other packages ask which of them exist.
    """
    # Here, so that the start-up hook does not wait for it.
    numpy = importlib.import_module("numpy")
    # NumPy 2 warns of the old name.
    core = "numpy._core" if is_numpy_2(numpy) else "numpy.core"
    return view(numpy, bool=bool, complex=complex, product=numpy.prod,
                core=importlib.import_module(core),
                distutils=_distutils(numpy),
                linalg=view(numpy.linalg, linalg=numpy.linalg),
                array=_wrapping(numpy, numpy.array),
                asarray=_wrapping(numpy, numpy.asarray),
                **{name: make(numpy) for name, make in _REMOVED.items()
                   if not hasattr(numpy, name)})


def is_numpy_2(numpy):
    """Tell whether this is NumPy 2 or later."""
    return int(numpy.__version__.split(".")[0]) >= 2


def _wrapping(numpy, make):
    """Let `make` keep the lowest bits of integers that do not fit the type.

    NumPy 2 refuses Python's integers, but converts its own.
    """
    if keeps_lowest_bits(numpy):
        return make

    @functools.wraps(make)
    def array(value, dtype=None, *arguments, **keywords):
        kind = "" if dtype is None else numpy.dtype(dtype).kind
        if kind in ("i", "u") and getattr(value, "dtype", "O") == "O":
            for wide in {"i": ["int64"], "u": ["int64", "uint64"]}[kind]:
                with contextlib.suppress(OverflowError):
                    value = numpy.asarray(value, wide)
        return make(value, dtype, *arguments, **keywords)

    return array


def keeps_lowest_bits(numpy):
    """Tell whether this is NumPy before 1.24, which has given warnings since.

    Since 2.0, integers that do not fit are errors, and Python's numbers take
    the type of others in an expression.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return numpy.int8(300) == 44
        except (DeprecationWarning, OverflowError):
            return False


class _Casts:
    """Cast an array by `cast[dtype](array)`."""

    def __init__(self, numpy):
        self._numpy = numpy

    def __getitem__(self, dtype):
        return lambda value: self._numpy.asarray(value).astype(dtype)


# Gone since NumPy 2.
_REMOVED = {
    "ComplexWarning": lambda numpy: numpy.exceptions.ComplexWarning,
    # In the place of an axis, it means all axes. It is NPY_RAVEL_AXIS in C.
    "MAXDIMS": lambda numpy: int(numpy.iinfo(numpy.intc).min),
    "cast": _Casts,
    "sctype2char": lambda numpy: lambda dtype: numpy.dtype(dtype).char,
}


def _distutils(numpy):
    """Return what Theano uses of `numpy.distutils`, gone with Python 3.12.

    Theano looks there for the BLAS that NumPy was built with. NumPy says so up
    to 1.21; its wheels since then have one that cannot be linked.
    """
    configuration = importlib.import_module("numpy.__config__")
    return SimpleNamespace(
        __config__=SimpleNamespace(
            blas_opt_info=getattr(configuration, "blas_opt_info", {})),
        misc_util=SimpleNamespace(
            get_numpy_include_dirs=lambda: [numpy.get_include()]))
