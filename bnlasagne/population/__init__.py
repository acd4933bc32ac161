"""Compute statistics over a data set."""
