"""Switch how expressions are built, within a ``with`` statement."""

import contextlib
import contextvars

__all__ = ["Switch"]


class Switch:
    """Be on within ``with switch():``, for this thread; may be nested."""

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
