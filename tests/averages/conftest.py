"""Fixtures for the tests of running averages."""

from bnlasagne import BatchNormLayer

import pytest
from helpers.modes import mode_fixture

mode = mode_fixture(("FAST_COMPILE", "fused"), ("FAST_RUN without C", "plain"))


@pytest.fixture
def layer():
    return BatchNormLayer((None, 3), alpha=0.25, name="bn")


@pytest.fixture
def batches(rng):
    return [rng.normal(place, place, (place + 3, 3)) for place in (1, 2, 3)]
