"""Fixtures for the mode in which functions are compiled."""

import contextlib

import pytest
import theano


@contextlib.contextmanager
def default_mode(mode):
    """Compile functions in a mode, unless they ask for another."""
    with pytest.MonkeyPatch.context() as patch:
        # Setting Theano's flag would not do: the default mode is made once.
        patch.setattr(theano.compile.mode, "instantiated_default_mode",
                      theano.compile.mode.get_mode(mode))
        yield


@pytest.fixture
def quick():
    """The test's functions are compiled without C, which takes seconds."""
    with default_mode("FAST_COMPILE"):
        yield
