"""Fold batch normalization into the linear layer beside it, for inference."""
