"""Fixtures for the mode in which functions are compiled."""

import pytest
import theano


@pytest.fixture
def quick(monkeypatch):
    """The test's functions are compiled without C, which takes seconds."""
    # Setting Theano's flag would not do: the default mode is made only once.
    monkeypatch.setattr(theano.compile.mode, "instantiated_default_mode",
                        theano.compile.mode.get_mode("FAST_COMPILE"))
