"""Compute statistics over a data set."""

from .population import PopulationStatistics

# Pickles of earlier versions find it here.
__all__ = ["PopulationStatistics"]
