"""Give back what NumPy has removed and Theano needs."""

import contextlib
import importlib
import warnings

__all__ = ["blas_opt_info"]


@contextlib.contextmanager
def blas_opt_info():
    """Have `numpy.distutils.__config__.blas_opt_info`, gone since NumPy 1.22.

    Theano reads it to find a BLAS.
    """
    with warnings.catch_warnings():
        # NumPy >= 1.23 says that numpy.distutils ends with Python 3.12.
        warnings.simplefilter("ignore", DeprecationWarning)
        config = importlib.import_module("numpy.distutils.__config__")
    if not hasattr(config, "blas_opt_info"):
        # Empty, because NumPy's own BLAS is not one to link against: Theano
        # then looks for the system's.
        config.blas_opt_info = {}
    yield
