"""A short soak: neither steps nor compiled functions leave objects behind."""

import pytest
import theano
from helpers.soaking import cycles, steps
from theano.gof.vm import VM_Linker

PYTHON = VM_Linker(c_thunks=False)


@pytest.fixture(autouse=True)
def no_compiler():
    """Loops are in Python, too."""
    with theano.configparser.change_flags(cxx=""):
        yield


def assert_flat(memory):
    # So few steps are a warm-up for memory, so that only objects count. Other
    # threads of the process make a few; a graph has thousands, and an object
    # for each step would be 16.
    first, last = memory.samples[1], memory.samples[-1]
    assert last[-1] - first[-1] < 8


def test_steps(caplog):
    caplog.set_level("ERROR", "bnlasagne.folding")  # Logs are kept.
    memory, _ = steps(20, samples=10, linker=PYTHON, optimizer="fast_compile")
    assert_flat(memory)


def test_cycles():
    memory, _ = cycles(5, samples=5, linker=PYTHON, rare="fast_compile")
    assert_flat(memory)
