"""Fixtures for networks to fold."""

import pytest
from lasagne.layers import InputLayer


@pytest.fixture
def x():
    return InputLayer((None, 5))
