"""Processes that work together, over MPI.

It imports mpi4py only where the user asks for it; everywhere else, a
communicator that the user made is at hand.

What can go wrong with collective communication is that ranks do not meet: one
makes a step more than the others, or another function, or ends. Each would
wait for ever, or sum up what does not belong together. So before anything else
is sent, ranks tell each other what they are about to do (`Channel.agree`), and
at the end of the program, that it ends. Where that differs, all of them raise
an error that says how.
"""

import atexit
import contextlib
import functools
import hashlib
import os
import pickle
import sys
import time
import traceback
import warnings

import numpy as np

from ..compat import launched_rank

__all__ = [
    "Channel",
    "RanksDisagree",
    "channel_of",
    "channel_of_world",
    "world",
]


def _seconds(name, default):
    """A time that the user may set as an environment variable."""
    text = os.environ.get(name, str(default))
    try:
        return float(text)
    except ValueError:
        raise ValueError("The environment variable %s must be a number of "
                         "seconds, got %r." % (name, text)) from None


# Seconds of waiting for other ranks after which to say so; and to give up.
PATIENCE = 60
# The same for ranks that may be waiting for this one.
_SHORT_PATIENCE = 30
TIMEOUT = _seconds("BNLASAGNE_MPI_TIMEOUT", 1800)
# Seconds of waiting after which to leave the processor to others.
_SPIN = 0.01

_MISSING = (
    "Training on several machines needs mpi4py and an MPI library, but mpi4py "
    "cannot be imported (%s: %s). Install both:\n"
    "    %s -m pip install \"bnlasagne[mpi]\"")


class RanksDisagree(RuntimeError):
    """Ranks are about to do different things; raised on all of them."""


def world():
    """All processes that ``mpiexec`` started together.

    Returns
    -------
    mpi4py.MPI.Intracomm
        ``MPI.COMM_WORLD``. Its `rank` is this process's number, from 0, and
        its `size` the number of processes: 1 for a program that was started
        without ``mpiexec``.

    Raises
    ------
    ImportError
        If mpi4py is missing, or the MPI library that it needs.

    Examples
    --------
    >>> from bnlasagne import world
    >>> comm = world()
    >>> comm.rank, comm.size
    (0, 1)
    """
    try:
        from mpi4py import MPI
        comm = MPI.COMM_WORLD
    # Without a library, with that of another MPI, or built for another Python,
    # mpi4py raises errors of many types.
    except Exception as error:
        raise ImportError(_MISSING % (
            type(error).__name__, " ".join(str(error).split()),
            sys.executable), name="mpi4py") from error
    # So that no rank waits for one that ends before it has done anything.
    channel_of(comm, "world()")
    return comm


def channel_of(comm, caller):
    """The channel of a communicator; always the same one.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm or None
    caller : str
        For messages.

    Returns
    -------
    Channel or None
        None for None, and for one process alone.

    Raises
    ------
    TypeError
        If `comm` is something else.
    """
    if comm is None:
        return None
    # Whoever has a communicator has imported this.
    MPI = sys.modules.get("mpi4py.MPI")
    kind = getattr(MPI, "Intracomm", ())
    if not isinstance(comm, kind) or comm == MPI.COMM_NULL:
        raise TypeError(
            "%s: comm must be None or a communicator of mpi4py, such as "
            "bnlasagne.world(), got %r." % (caller, comm))
    if comm.size == 1:
        return None
    if not _keys:
        _keys.append(MPI.Comm.Create_keyval(delete_fn=_forget))
    channel = comm.Get_attr(_keys[0])
    if channel is None:
        channel = Channel(comm, caller)
        comm.Set_attr(_keys[0], channel)
        _end_together(channel)
    return channel


def channel_of_world():
    """Find the channel of a network that is loaded from a pickle.

    Returns
    -------
    Channel or None
        None for one process alone.

    Raises
    ------
    ImportError
        If mpi4py cannot be imported by one of several ranks.
    """
    try:
        comm = world()
    except ImportError as error:
        if launched_rank():
            raise
        # One process alone takes no other rank.
        warnings.warn(_LOADED_ALONE % error, stacklevel=2)
        return None
    return channel_of(comm, "pickle")


_LOADED_ALONE = (
    "A network is loaded that was built with comm=world(). In this process "
    "its layers normalize each batch by the statistics of that batch alone, "
    "as with one rank. %s")

# The key under which a communicator keeps its channel.
_keys = []


def _forget(comm, key, channel):
    """MPI calls it when the user frees a communicator."""
    atexit.unregister(channel.end)


def _end_together(channel):
    """Have no rank wait for one that has ended."""
    atexit.register(channel.end)
    _watch_exit_status()
    hook = sys.excepthook
    is_interactive = hasattr(sys, "ps1") or sys.flags.interactive
    if not is_interactive and not isinstance(hook, _AbortingHook):
        sys.excepthook = _AbortingHook(hook)


# Whether ``python -m mpi4py`` is to end the job as soon as this program ends.
_is_ending_job = []


def _watch_exit_status():
    """Notice a ``sys.exit(1)``, which no exception hook is told of.

    A rank that ends so must not wait for others: it is to end them.
    """
    run = sys.modules.get("mpi4py.run")
    if run is None or hasattr(run.set_abort_status, "watched"):
        return
    watched = run.set_abort_status

    def set_abort_status(status):
        code = status.code if isinstance(status, SystemExit) else status
        if code is not None and code != 0:
            _is_ending_job.append(True)
        watched(status)
    set_abort_status.watched = watched
    run.set_abort_status = set_abort_status


class _AbortingHook(object):
    """Ends the whole job after the traceback of one rank's error.

    Otherwise the others would wait for it. ``python -m mpi4py`` does this for
    errors that end a program, and for those who call ``sys.exit(1)``; this one
    also for programs that were started without.
    """

    def __init__(self, hook):
        self._hook = hook

    def __call__(self, kind, error, trace):
        MPI = sys.modules["mpi4py.MPI"]
        try:
            _say("rank %d of %d raised an error, which ends the job:"
                 % (MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size))
            self._hook(kind, error, trace)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            _abort()


def _abort():
    """End the job, a moment after all that was printed."""
    # What has not come to mpiexec by then is lost.
    time.sleep(1)
    sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(1)


def _say(text):
    print("bnlasagne: " + text, file=sys.stderr, flush=True)


class Channel:
    """What ranks send each other.

    Use :func:`channel_of` to have one.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        Of more than one process.
    owner : str
        Who asked for it first, for messages.

    Attributes
    ----------
    rank, size : int
    pending : int
        Messages that are left of the function that this rank is in, or was in
        when an error ended it.
    """

    def __init__(self, comm, owner):
        self._comm = comm
        self._owner = owner
        self._own = None
        # Why nothing can be sent any more.
        self._broken = None
        self.pending = 0
        self.rank = comm.rank
        self.size = comm.size

    def __repr__(self):
        return "<Channel, rank %d of %d>" % (self.rank, self.size)

    # It stands for a connection: a copy is the same one.

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        world_ = sys.modules["mpi4py.MPI"].COMM_WORLD
        if self._comm != world_:
            raise pickle.PicklingError(_NOT_PICKLED % (
                self._owner, self.size, world_.size))
        return channel_of_world, ()

    # Meeting

    def agree(self, lines):
        """Go on only if all ranks are about to do the same.

        Parameters
        ----------
        lines : tuple of str
            What that is, step by step.

        Raises
        ------
        RanksDisagree
            On all ranks, if the lines differ. It names the first difference.
        """
        if self._broken:
            raise RanksDisagree(self._broken)
        if self._own is None:
            # Apart from what the user sends over the same communicator.
            own, request = self._comm.Idup()
            self._wait(request, lines)
            self._own = own
        mine = _digest(lines)
        all_ = np.empty((self.size, len(mine)), mine.dtype)
        self._wait(self._own.Iallgather(mine, all_), lines)
        if (all_ != all_[0]).any():
            self.pending = 0
            raise RanksDisagree(_difference(self._own.allgather(lines)))
        self.pending = 0

    @contextlib.contextmanager
    def together(self, *lines):
        """A block that all ranks finish, or none.

        Where one raises an error in it, all do: those without one of their own
        raise one of the same type, or of the nearest that is Python's own,
        which says on which rank it happened.
        """
        error = None
        try:
            yield
        except RanksDisagree:
            # All have it.
            raise
        except BaseException as raised:
            error = raised
        try:
            self.agree(lines)
        except RanksDisagree:
            if error is None:
                raise
            # Of two errors, this rank's own tells more.
            raise error from None
        found = self._own.allgather(
            None if error is None else _described(error))
        if error is not None:
            raise error
        for rank, (kind, text) in enumerate(item or (None, None)
                                            for item in found):
            if kind is not None:
                raise kind("On rank %d: %s" % (rank, text))

    def end(self):
        """Tell the others that this rank's program ends."""
        MPI = sys.modules["mpi4py.MPI"]
        if MPI.Is_finalized() or _is_ending_job:
            return
        try:
            self.agree((_THE_END,))
        except RanksDisagree as error:
            _say(str(error))
            # Others got the same error, and have a moment to say where.
            _abort()

    def _wait(self, request, lines):
        """Wait for a message; if an error ends that, nothing can follow it."""
        try:
            self._poll(request, lines)
        except BaseException as error:
            self._broken = str(error) or (
                "Rank %d of %d was interrupted while it waited for others, "
                "before: %s." % (self.rank, self.size, _short(lines)))
            # It is on its way still, so its memory must stay.
            self._unfinished = request
            raise

    def _poll(self, request, lines):
        start = time.monotonic()
        warned = False
        is_end = lines == (_THE_END,)
        while not request.Test():
            waited = time.monotonic() - start
            if waited < _SPIN:
                # With more ranks than processors, let others come.
                _yield_processor()
                continue
            time.sleep(0.0002)
            if waited > _SHORT_PATIENCE and self.pending:
                _say("rank %d of %d has left a function by an error in the "
                     "middle, and gone on; the others wait for what it would "
                     "have sent. This ends the job." % (self.rank, self.size))
                _abort()
            # At the end, others may still have a lot to do.
            if waited > TIMEOUT and not is_end:
                raise RanksDisagree(
                    "Rank %d of %d has waited %.0f seconds for others that do "
                    "not come, before: %s. Do all ranks call this, and have "
                    "all of them built their layers with comm? (To wait "
                    "longer, set the environment variable "
                    "BNLASAGNE_MPI_TIMEOUT.)"
                    % (self.rank, self.size, waited, _short(lines)))
            if waited > PATIENCE and not warned:
                warned = True
                _say("rank %d of %d has waited %d seconds for the others%s" % (
                    self.rank, self.size, PATIENCE, ", to end with them."
                    if is_end else " before: %s. Do all ranks call this?"
                    % _short(lines)))

    # Sending; to be called in the same order on all ranks, after they agreed

    def sum(self, array):
        """The sum of the ranks' arrays, of one shape and type."""
        total = np.empty_like(array)
        self._own.Allreduce(array, total)
        return total

    def sum_objects(self, value):
        """The sum of Python objects."""
        return self._own.allreduce(value)

    def broadcast(self, array, root):
        """Overwrite an array with that of one rank."""
        self._own.Bcast(array, root)


_NOT_PICKLED = (
    "%s: a network with this comm cannot be pickled. Its communicator, with "
    "%d of the job's %d ranks, is not world() itself, and ends with the job. "
    "Save the network's values with save_network(), and load them with "
    "load_network() into a network that is built with a communicator of the "
    "new job. Or build it with comm=world(), which can be pickled.")

_THE_END = "the end of the program"
# Where there is one: sleeping takes a hundred times as long, even for no time.
_yield_processor = getattr(os, "sched_yield", lambda: time.sleep(0))


@functools.lru_cache(maxsize=256)
def _digest(lines):
    """Sixteen bytes that stand for some lines."""
    text = "\n".join(lines).encode()
    return np.frombuffer(hashlib.sha256(text).digest()[:16], np.uint8)


def _short(lines):
    return lines[0] if lines else "nothing"


def _difference(by_rank):
    """What to tell of the lines of all ranks."""
    # The largest number of ranks that are of one mind is likely to be right.
    usual = max(by_rank, key=by_rank.count)
    other = next(rank for rank, lines in enumerate(by_rank) if lines != usual)
    first = by_rank.index(usual)
    pairs = list(zip(usual, by_rank[other]))
    place = next((i for i, (one, two) in enumerate(pairs) if one != two),
                 len(pairs))
    one, two = (lines[place] if place < len(lines) else "nothing more"
                for lines in (usual, by_rank[other]))
    # Where one rank leaves a step out, the step after it tells little.
    if two in usual and one not in by_rank[other]:
        two = "not this, but " + two
    elif one in by_rank[other] and two not in usual:
        one = "not this, but " + one
    return (
        "The ranks disagree on what to do next, so none of them does it. "
        "First difference, step %d:\n"
        "  rank %d: %s\n  rank %d: %s\n"
        "All ranks must build the same network, and call the same functions "
        "equally often and in the same order."
        % (place + 1, first, one, other, two))


def _described(error):
    """An error as a pair of a type and a text, to send it."""
    kind = next((kind for kind in type(error).__mro__ if kind in _SENDABLE),
                RuntimeError)
    if kind is type(error):
        return kind, str(error)
    return kind, "".join(
        traceback.format_exception_only(type(error), error)).strip()


# Those that are made of a text alone.
_SENDABLE = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError,
    IndexError, KeyError, LookupError, MemoryError, NotImplementedError,
    OSError, OverflowError, RuntimeError, TypeError, ValueError,
    ZeroDivisionError)
