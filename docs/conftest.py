"""Run the pages' examples without C, whose compilation takes seconds."""

import pytest
import theano


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(theano.compile.mode, "instantiated_default_mode",
                        theano.compile.mode.get_mode("FAST_COMPILE"))
