"""Keep Theano from starting MPI in programs that do not want it."""

import contextlib
import importlib
import os
import sys

__all__ = ["hidden_mpi4py", "launched_rank"]

# How launchers of MPI programs tell a process its rank: MPICH and those that
# go back to it, Open MPI, and all that follow PMIx.
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")


def launched_rank():
    """Return the rank of this process, as text; empty without ``mpiexec``."""
    return next(filter(None, map(os.environ.get, _RANKS)), "")


@contextlib.contextmanager
def hidden_mpi4py():
    """Have Theano's import of mpi4py fail as if there were none.

    Importing ``mpi4py.MPI`` starts MPI, may hang, or raises errors that Theano
    does not expect. Only programs that ``mpiexec`` started, or that imported
    it before, want it.
    """
    if "mpi4py.MPI" in sys.modules or (launched_rank() and _can_start_mpi()):
        yield
        return
    # The package itself may fail, too.
    name = "mpi4py.MPI" if "mpi4py" in sys.modules else "mpi4py"
    sys.modules[name] = None
    try:
        yield
    finally:
        # Whoever asks for it gets mpi4py, or its own error.
        sys.modules.pop(name, None)


def _can_start_mpi():
    """Start MPI if possible; tell whether it is."""
    try:
        importlib.import_module("mpi4py.MPI")
    except Exception:
        # Without an MPI library, or with another than mpi4py was made for:
        # ImportError, RuntimeError, OSError, AttributeError.
        return False
    return True
