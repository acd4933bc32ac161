"""Which cases the random tests run."""

import os
import subprocess
import sys

import pytest

CODE = """
from helpers import fuzzing
from hypothesis import settings

fuzzing.register_profiles()
settings.load_profile("%s")
print(fuzzing.is_quick())
"""


@pytest.mark.parametrize("profile, is_quick", [
    ("fuzz", "False"), ("bnlasagne", "True")])
def test_profiles_on_a_ci_system(profile, is_quick):
    """Hypothesis has other defaults there."""
    helpers = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = subprocess.run(
        [sys.executable, "-c", CODE % profile], stdout=subprocess.PIPE,
        universal_newlines=True, check=True,
        env={**os.environ, "CI": "true", "PYTHONPATH": helpers})
    assert found.stdout.strip() == is_quick
