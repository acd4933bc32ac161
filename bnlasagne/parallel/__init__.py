"""Train on many ranks."""

# Theano's optimizations are registered there.
from . import order  # noqa: F401
