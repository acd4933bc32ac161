"""Note which function Theano compiles, and know its name."""

import functools
import importlib

from .notes import doing

__all__ = ["function_name"]

_names = []


def function_name():
    """Name the function that is being compiled, for messages."""
    name = _names[-1] if _names else None
    return f"function {name!r}" if name else "a function without a name"


def _noted(compile):
    """Have a function of Theano's that compiles another note its name."""
    @functools.wraps(compile)
    def noted(*args, name=None, **kwargs):
        _names.append(name)
        try:
            with doing(f"compiling {function_name()}"):
                return compile(*args, name=name, **kwargs)
        finally:
            _names.pop()
    return noted


# Theano has a function of the same name in the module's place.
pfunc = importlib.import_module("theano.compile.pfunc")
pfunc.orig_function = _noted(pfunc.orig_function)
