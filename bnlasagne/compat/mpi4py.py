"""Keep Theano from starting MPI in programs that do not want it."""

import importlib
import os
import sys

__all__ = ["launched_rank", "mpi4py_for_theano"]

# How launchers of MPI programs tell a process its rank: MPICH and those that
# go back to it, Open MPI, and all that follow PMIx.
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")


def launched_rank():
    """Return the rank of this process, as text; empty without ``mpiexec``."""
    return next(filter(None, map(os.environ.get, _RANKS)), "")


def mpi4py_for_theano():
    """Return mpi4py, or have Theano's import of it fail as if there were none.

    Importing ``mpi4py.MPI`` starts MPI, may hang, or raises errors that Theano
    does not expect. Only programs that ``mpiexec`` started, or that imported
    it before, want it.
    """
    if "mpi4py.MPI" in sys.modules or (launched_rank() and _can_start_mpi()):
        return importlib.import_module("mpi4py")
    raise ImportError("mpiexec did not start this program.", name="mpi4py")


def _can_start_mpi():
    """Start MPI if possible; tell whether it is."""
    try:
        importlib.import_module("mpi4py.MPI")
    except Exception:
        # Without an MPI library, or with another than mpi4py was made for:
        # ImportError, RuntimeError, OSError, AttributeError.
        return False
    return True
