"""Fixtures for networks to walk and to copy."""

import pytest
from lasagne.layers import InputLayer


@pytest.fixture
def x():
    return InputLayer((None, 4))
