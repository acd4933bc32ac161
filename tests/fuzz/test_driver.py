"""Random batches for the kernels alone, against long double."""

import shutil
import sys

import pytest
from helpers.fuzzing import many
from hypothesis import given
from hypothesis import strategies as st
from sanitize import driver

# Batches that the driver makes of one seed.
EACH = 100


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("needs g++, on Linux")
    widths = list(filter(driver.runs_here, driver.WIDTHS))
    if not widths:
        pytest.skip("needs the vector registers of x86")
    return driver.build(tmp_path_factory.mktemp("driver"), widths[0])


@many(3)
@given(seed=st.integers(0, 2 ** 32 - 1))
def test_kernels_against_long_double(program, seed):
    text, failed = driver.run(program, seed, EACH)
    assert not failed, text
