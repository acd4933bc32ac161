"""Keep Theano from importing those parts of SciPy that it may never use."""

import contextlib
import importlib
import sys
import types

__all__ = ["without_scipy_signal", "without_scipy_stats"]


@contextlib.contextmanager
def without_scipy_stats():
    """Leave the import of `scipy.stats`, 0.2 s, to its first use.

    Theano uses it as an attribute of SciPy, in one Op, and only without a
    compiler. This goes with Theano 1.0.5.
    """
    with _instead("scipy.stats", types.ModuleType("scipy.stats")):
        yield


@contextlib.contextmanager
def without_scipy_signal():
    """Let the import of `scipy.signal` fail at once, as it does in the end.

    What Theano takes from it was renamed in SciPy 1.8. This goes with Theano
    1.0.5.
    """
    with _instead("scipy.signal", None):
        yield


@contextlib.contextmanager
def _instead(name, module):
    """Put something in place of a part of SciPy that is not imported yet.

    Only where SciPy imports its parts at their first use, from 1.9 on: others
    may use the part with no import of their own.
    """
    scipy = importlib.import_module("scipy")
    if name in sys.modules or not hasattr(scipy, "__getattr__"):
        yield
        return
    sys.modules[name] = module
    try:
        yield
    finally:
        sys.modules.pop(name, None)
