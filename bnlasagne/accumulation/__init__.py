"""Accumulate gradients over micro-batches."""
