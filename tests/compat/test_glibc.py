"""Freed memory stays in the process, where malloc is that of glibc."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import bnlasagne
from bnlasagne.compat import glibc

import pytest

SOURCE = Path(glibc.__file__)
# Page faults of the second of two calls, which make and free 64 MiB and 2 MiB,
# in a process that imports nothing else.
COUNT = """
import resource, runpy, sys
import numpy as np
answer = runpy.run_path(sys.argv[1])["keep_freed_memory"]() \\
    if sys.argv[2] == "keep" else None
def call():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(size, "uint8") for size in (2 ** 26, 2 ** 21, 2 ** 21)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(answer, call(), call())
"""


def faults(keep, code=COUNT, **variables):
    """Return the function's answer, and the page faults of each call."""
    names = [name for name in os.environ
             if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]
    clean = {name: value for name, value in os.environ.items()
             if name not in names}
    output = subprocess.run(
        [sys.executable, "-c", code, str(SOURCE), keep],
        env=dict(clean, **variables), stdout=subprocess.PIPE, check=True,
        universal_newlines=True, timeout=300).stdout
    answer, first, second = output.split()
    return answer, int(first), int(second)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc",
                    reason="malloc is not that of glibc")
def test_no_page_faults_again():
    answer, first, again = faults("keep")
    assert answer == "True"
    # Huge pages, of 2 MiB, may come in the first call.
    assert first > 30 and again < 5
    # The tester is right: otherwise they come again.
    assert faults("no")[2] > 30


# Page faults of the third of three calls, which make and free two arrays of
# 8 MiB, as a training step of one layer does.
COUNT_TWO = """
import resource, runpy, sys
import numpy as np
functions = runpy.run_path(sys.argv[1])
if sys.argv[2] == "raise":
    functions["raise_malloc_thresholds"](None)
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(2 ** 23, "uint8") for _ in range(2)]
    del arrays
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(None, 0, after - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc",
                    reason="malloc is not that of glibc")
def test_two_arrays_of_a_size_stay(monkeypatch):
    # Pages of 4 KiB, so that each array is many.
    monkeypatch.setenv("NUMPY_MADVISE_HUGEPAGE", "0")
    assert faults("raise", COUNT_TWO)[2] < 100
    assert faults("no", COUNT_TWO)[2] > 500  # The tester is right.


@pytest.mark.parametrize("variables", [
    {"MALLOC_TRIM_THRESHOLD_": "131072"},
    {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"},
])
def test_users_settings_win(variables):
    answer, _, again = faults("keep", **variables)
    assert answer == "False" and again > 30


def library(result):
    calls = []

    class Library:
        def __init__(self, name):
            pass

        if result is not None:
            def mallopt(self, option, value):
                calls.append((option, value))
                return result
    return Library, calls


@pytest.mark.parametrize("result, answer", [(None, False), (0, False),
                                            (1, True)])
def test_other_systems(monkeypatch, result, answer):
    for name in [*os.environ]:
        if name.startswith(("MALLOC_", "GLIBC_TUNABLES")):
            monkeypatch.delenv(name)
    replacement, calls = library(result)
    monkeypatch.setattr(ctypes, "CDLL", replacement)
    assert bnlasagne.keep_freed_memory() is answer
    assert len(calls) == {None: 0, 0: 1, 1: 2}[result]


def test_windows(monkeypatch):
    def fail(name):
        raise TypeError("bad argument type for built-in operation")
    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert bnlasagne.keep_freed_memory() is False
