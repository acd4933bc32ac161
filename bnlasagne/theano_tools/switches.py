"""Switch how expressions are built, within a ``with`` statement."""

import contextlib
import contextvars

__all__ = ["Switch"]


class Switch:
    """Switch something on within ``with switch():``.

    Each thread has its own; ``with`` statements may be nested.

    Examples
    --------
    >>> from bnlasagne.theano_tools.switches import Switch
    >>> switch = Switch("an example")
    >>> with switch():
    ...     switch.is_on
    True
    >>> switch.is_on
    False
    """

    def __init__(self, name):
        self._on = contextvars.ContextVar(name, default=False)

    @contextlib.contextmanager
    def __call__(self):
        before = self._on.set(True)
        try:
            yield
        finally:
            self._on.reset(before)

    @property
    def is_on(self):
        return self._on.get()
