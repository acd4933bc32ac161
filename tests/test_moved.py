"""Pickles of earlier versions name modules that are elsewhere now."""

import pickle

import bnlasagne

import pytest


@pytest.mark.parametrize("module, name", [
    ("communication", "RanksDisagree"),
    ("communication", "channel_of_world"),
    ("conventions", "Statistics"),
    ("folding", "Folding"),
    ("folding", "fold_batch_norm"),
    ("layer", "BatchNormLayer"),
    ("layer", "batch_norm"),
    ("moments", "Moments"),
    ("population", "PopulationStatistics"),
    ("schedules", "CumulativeAverage"),
])
def test_what_old_pickles_name_is_found(module, name):
    found = pickle.loads(f"cbnlasagne.{module}\n{name}\n.".encode())
    assert found.__name__ == name
    assert getattr(bnlasagne, name, found) is found
