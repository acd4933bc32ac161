"""Fold batch normalization into the linear layer beside it, for inference."""

from .fold import Folding, fold_batch_norm

__all__ = ["Folding", "fold_batch_norm"]
