"""Programs that the tests start under mpiexec, each with a time limit."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
# Seconds after which a job hangs: minutes, as the machine may be busy.
LIMIT = 300
# How launchers tell processes that they are ranks, as these tests may be.
LAUNCHERS = ("PMI_", "PMIX_", "OMPI_", "HYDI_", "HYDRA_", "MPIEXEC_", "MPIR_",
             "MPI_LOCAL", "PRTE_", "SLURM_")


def why_not():
    """What is missing, if something is."""
    try:
        from mpi4py import MPI  # noqa: F401
    except Exception as error:  # of many types, without a library
        return str(error)
    return None if MPIEXEC else "mpiexec is missing"


def unlaunched(variables):
    """The environment of a process that is no rank yet."""
    return {key: value for key, value in variables.items()
            if not key.startswith(LAUNCHERS)}


def finish(command, folder, variables, limit=LIMIT):
    """Run a command to its end, or fail after some seconds."""
    command = list(map(str, command))
    with subprocess.Popen(
            command, cwd=str(folder), env=variables, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, universal_newlines=True) as process:
        try:
            output, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            # Ranks are not in this group, but do not outlive mpiexec.
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            pytest.fail("hangs after %d seconds:\n%s\n%s"
                        % (limit, output, errors))
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(
        command, process.returncode, output, errors)
