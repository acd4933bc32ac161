"""Run the examples of the pages."""

import bnlasagne  # isort: skip  # noqa: F401  # First: it repairs the stack.

import pytest
from helpers.modes import quick  # noqa: F401

# Sphinx runs the first; the second draws.
collect_ignore = ["conf.py", "pictures"]


@pytest.fixture(autouse=True)
def _quickly(quick):  # noqa: F811
    """Spare the pages the compilation of C, which takes seconds."""
