"""Batch normalization for Lasagne."""

from . import compat  # isort: skip  # First: it makes the next imports work.

from .layer import BatchNormLayer, batch_norm
from .ops import plain_expressions

__all__ = [
    "BatchNormLayer",
    "batch_norm",
    "compat",
    "plain_expressions",
]

__version__ = "0.1.0"
