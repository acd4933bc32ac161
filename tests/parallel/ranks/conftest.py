"""Several processes run these tests together, and one of them tells."""

import io
import os
import sys
import tempfile

import pytest

try:
    from mpi4py import MPI
except Exception:  # of many types, without a library
    MPI = None

if MPI is not None and MPI.COMM_WORLD.size > 1:
    # Pytest removes folders that earlier runs of it left, which processes
    # that do so at the same time would take from each other.
    _folder = tempfile.TemporaryDirectory(prefix="rank")
    os.environ["PYTEST_DEBUG_TEMPROOT"] = _folder.name

_unseen = io.StringIO()


def _is_silent():
    return MPI is not None and MPI.COMM_WORLD.rank > 0


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    """Keep what ranks other than the first have to tell."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if _is_silent() and reporter is not None:
        reporter._tw._file = _unseen


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """If something failed, it may have failed on this rank only."""
    text = _unseen.getvalue()
    if " failed" in text or " error" in text:
        print("On rank %d:\n%s" % (MPI.COMM_WORLD.rank, text),
              file=sys.stderr, flush=True)
