"""Fixtures for all tests."""

import contextlib
import os
import signal

# Theano locks its compile directory: each worker of pytest-xdist has its own.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["THEANO_FLAGS"] = ",".join(filter(None, [
        "compiledir_format=compiledir_%(short_platform)s-%(processor)s-"
        "%(python_version)s-%(python_bitwidth)s-"
        + os.environ["PYTEST_XDIST_WORKER"], os.environ.get("THEANO_FLAGS")]))
    # Threads of the kernels that wait leave the cores to the other workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import bnlasagne  # isort: skip  # First: it repairs the stack.

import hypothesis
import numpy as np
import pytest
import theano
from helpers.fuzzing import register_profiles
from helpers.jobs import why_not
from helpers.modes import quick  # noqa: F401

# Shells have what they start in the background ignore Ctrl-C, and so would all
# processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in each run, on a busy machine, too.
register_profiles()
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
