"""Compute batch normalization: expressions, NumPy, C++."""
