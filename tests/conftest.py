"""Fixtures for all tests."""

import contextlib

import bnlasagne  # isort: skip  # First: it repairs the stack.

import hypothesis
import numpy as np
import pytest
import theano
from helpers.jobs import why_not
from helpers.modes import quick  # noqa: F401

# The same examples in each run, on a busy machine, too.
hypothesis.settings.register_profile(
    "bnlasagne", derandomize=True, deadline=None, database=None,
    max_examples=30)
hypothesis.settings.load_profile("bnlasagne")


@pytest.fixture
def rng():
    return np.random.RandomState(1502)


@pytest.fixture(params=["float32", "float64"])
def floatX(request):
    """The test runs in both widths of Theano's default float."""
    with theano.configparser.change_flags(floatX=request.param):
        yield request.param


@pytest.fixture
def float64():
    """The test runs in double precision."""
    with theano.configparser.change_flags(floatX="float64"):
        yield


@pytest.fixture(params=["FAST_COMPILE", "FAST_RUN without C"])
def mode(request):
    """The test runs with few and with all of Theano's optimizations."""
    if request.param == "FAST_COMPILE":
        return request.param
    return theano.Mode("py", "fast_run")


@pytest.fixture(params=["fused", "plain"])
def expressions(request):
    """The test runs with the fused Ops and with plain expressions."""
    with contextlib.nullcontext() if request.param == "fused" \
            else bnlasagne.plain_expressions():
        yield request.param


@pytest.fixture(scope="module")
def needs_mpi():
    missing = why_not()
    if missing:
        pytest.skip('several processes need mpi4py; install the extra: '
                    'pip install "bnlasagne[mpi]" (%s)' % missing)
