"""Give Theano what SciPy has removed, and import SciPy's parts late."""

import importlib
from types import ModuleType, SimpleNamespace

from .importing import view

__all__ = ["scipy_for_theano"]


def scipy_for_theano():
    """Return SciPy with parts that it imports when Theano first uses them.

    `scipy.stats` and `scipy.signal` take 0.3 s to import, and Theano uses them
    only without a compiler. What Theano takes from `scipy.signal` was renamed
    in SciPy 1.8. This goes with Theano 1.0.5.
    """
    scipy = importlib.import_module("scipy")
    stats = ModuleType("scipy.stats")
    stats.__getattr__ = lambda name: getattr(
        importlib.import_module("scipy.stats"), name)
    return view(scipy, stats=stats, signal=SimpleNamespace(
        sigtools=SimpleNamespace(_convolve2d=_convolve2d),
        signaltools=SimpleNamespace(
            _bvalfromboundary=lambda boundary: boundary,
            _valfrommode=lambda mode: mode,
            convolve=_convolve)))


def _convolve2d(image, kernel, flip, mode, boundary, fill):
    return _signal().convolve2d(image, kernel, mode, boundary, fill)


def _convolve(image, kernel, mode):
    return _signal().convolve(image, kernel, mode)


def _signal():
    return importlib.import_module("scipy.signal")
