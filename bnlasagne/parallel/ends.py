"""End a job if one of its ranks ends with an error or an exit status.

The other ranks would wait for it forever. ``python -m mpi4py`` ends the job in
these cases; here the same is done for programs that are started without it.
"""

import os
import signal
import sys
import threading
import time

from . import notes

__all__ = ["abort", "is_ending", "say", "uninterrupted", "watch"]

# Whether ``python -m mpi4py`` ends the job as soon as this program ends.
_statuses = []
# Code of functions within which no interrupt is raised.
_uninterrupted = set()


def watch():
    """Notice errors, exit statuses and signals that end this program."""
    world = sys.modules["mpi4py.MPI"].COMM_WORLD
    notes.start(f"Rank {world.rank} of {world.size}")
    _watch_exit_status()
    _watch_interrupts()
    hook = sys.excepthook
    is_interactive = hasattr(sys, "ps1") or sys.flags.interactive
    if not is_interactive and not hasattr(hook, "aborts"):
        sys.excepthook = _aborting(hook)


def is_ending():
    """Tell whether this rank ends the job by its exit status, such as 1."""
    return bool(_statuses)


def abort():
    """End the job with all of its ranks, after the reason was said."""
    notes.said()
    # mpiexec loses the output that has not reached it by then.
    time.sleep(1)
    sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(1)


def say(text):
    """Print a line to the standard error stream."""
    # In one piece, or lines of several ranks would mix.
    sys.stderr.write(f"bnlasagne: {text}\n")
    sys.stderr.flush()


def _watch_exit_status():
    """Notice a ``sys.exit(1)``, which does not call the exception hook."""
    run = sys.modules.get("mpi4py.run")
    if run is None or hasattr(run.set_abort_status, "watched"):
        return
    watched = run.set_abort_status

    def set_abort_status(status):
        code = status.code if isinstance(status, SystemExit) else status
        if code is not None and code != 0:
            _statuses.append(code)
        watched(status)
    set_abort_status.watched = watched
    run.set_abort_status = set_abort_status


def uninterrupted(function):
    """Have Ctrl-C raise its error after a function that MPI calls.

    Within, mpi4py would end the job before anyone could say why.
    """
    _uninterrupted.add(function.__code__)
    return function


def _watch_interrupts():
    """Take the place of Python's own handler of interrupts."""
    if threading.current_thread() is threading.main_thread() and (
            signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number, frame):
    above = frame
    while above is not None:
        if above.f_code in _uninterrupted:
            # Again, a moment later, and not to the thread of the timer.
            again = threading.Timer(0.01, os.kill, [os.getpid(), number])
            again.daemon = True
            again.start()
            return
        above = above.f_back
    signal.default_int_handler(number, frame)


def _aborting(hook):
    """Make an exception hook that ends the job after the traceback."""
    def end_job(kind, error, trace):
        world = sys.modules["mpi4py.MPI"].COMM_WORLD
        try:
            say(f"Rank {world.rank} of {world.size} raised an error, which "
                f"ends the job. It last did: {notes.last()}.")
            hook(kind, error, trace)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            abort()
    end_job.aborts = True
    return end_job
