"""Run each program in a process of its own, and let the programs take turns.

What restricts a library to an instruction set, and how malloc works, is
settled when a process starts. So for each such setting there is one process,
which imports the libraries. For each program it forks a process, whose memory
holds nothing but this program's. That one makes the program, and then waits
for its turns. All obey the process that measures.
"""

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from .speed import ROOT, turn

# In the process that measures

class Failure(Exception):
    """A program ended with an error, which it printed."""


class Setting:
    """A process that starts programs with one environment."""

    def __init__(self, peers, env):
        self._process, self._connection = start("workers", env, peers=peers)
        self.peers = peers

    def start(self, **job):
        """Start a program; return it when it is ready for its turns."""
        try:
            self._connection.send(job)
            handle = reduction.recv_handle(self._connection)
            program = RemoteProgram(Connection(handle))
            program.ask("ready")
        except (EOFError, ConnectionError):
            raise Failure(f"{job['peer']}: the process ended with the error "
                          "above") from None
        return program

    def close(self):
        """End the process."""
        self._connection.close()
        self._process.wait()


def start(module, env, **options):
    """Run a module of this package; return the process and a connection.

    Its argument is a JSON object: the options, and ``descriptor``, the other
    end of the connection.
    """
    here, there = multiprocessing.Pipe()
    options["descriptor"] = there.fileno()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks." + module, json.dumps(options)],
        cwd=str(ROOT), env=env, pass_fds=[there.fileno()])
    there.close()
    return process, here


class RemoteProgram:
    """A program that another process runs."""

    def __init__(self, connection):
        self._connection = connection

    def ask(self, question):
        """Send a question; return the answer."""
        self._connection.send(question)
        return self._connection.recv()

    def turn(self):
        """Have a turn; return the seconds of each call."""
        return self.ask("turn")

    def clock(self):
        """Return the CPU seconds that the process has used."""
        return self.ask("clock")

    def close(self):
        """End the process."""
        self._connection.close()


def save(folder, arrays):
    """Save a dict of arrays, without memory for copies."""
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(str(folder / (name + ".npy")), array)


def load(folder):
    """Load what :func:`save` saved."""
    return {path.stem: np.load(str(path)) for path in folder.glob("*.npy")}


# In the others

def _fork_on_demand(peers, descriptor):
    from .peers import PEERS

    connection = Connection(descriptor)
    for peer in peers:
        PEERS[peer].load()
    gc.disable()  # A collection would land in anyone's turn.
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        here, there = multiprocessing.Pipe()
        # OpenMP does not survive a fork; this process never uses it.
        process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(there, [connection, here]), kwargs=job,
            daemon=True)
        process.start()
        reduction.send_handle(connection, here.fileno(), process.pid)
        here.close()
        there.close()


def _serve(connection, others, **job):
    from bnlasagne.kernels.ops import FusedOp

    for other in others:
        other.close()
    # Threads start in this process: its parent has none that a fork could
    # lose.
    FusedOp.home = os.getpid()
    serve(connection, lambda: _make(**job))


def serve(connection, make):
    """Make a program, and obey a `RemoteProgram` at the other end."""
    try:
        call = make()
        answers = {"ready": lambda: True, "turn": lambda: turn(call),
                   "clock": time.process_time}
        while True:
            connection.send(answers[connection.recv()]())
    except (EOFError, ConnectionError):
        return
    except Exception:
        traceback.print_exc()


def _make(peer, case, training, rectify, data, results):
    """Make a program from the arrays in a folder, and save its results."""
    from .cases import Data, find
    from .peers import PEERS

    program = PEERS[peer].build(
        find(case), Data(**load(Path(data))), rectify, training)
    if program.results is not None:
        save(Path(results), program.results())
    return program.call


if __name__ == "__main__":
    _fork_on_demand(**json.loads(sys.argv[1]))
