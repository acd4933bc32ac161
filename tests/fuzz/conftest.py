"""Count the cases of each random test."""

import pytest
from helpers import fuzzing


@pytest.fixture(autouse=True)
def count(request):
    """Tell the report how many cases the test has run."""
    before = fuzzing.counter["cases"]
    yield
    request.node.user_properties.append(
        ("cases", fuzzing.counter["cases"] - before))
