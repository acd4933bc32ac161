"""Send arrays and objects between the ranks of a communicator.

If ranks run different functions, each of them would wait forever, or add up
numbers that do not belong together. So ranks first compare what they are about
to do (`Channel.agree`), and at the end of the program, that it ends. If that
differs, all of them raise an error that names the first difference.

mpi4py is imported by `world` only: everywhere else, the user has a
communicator already.
"""

import atexit
import contextlib
import functools
import hashlib
import math
import pickle
import sys
import traceback
import warnings

import numpy as np

from ..compat import launched_rank
from . import ends, notes, waiting

__all__ = [
    "Channel",
    "RanksDisagree",
    "channel_of",
    "channel_of_world",
    "world",
]


class RanksDisagree(RuntimeError):
    """Ranks are about to do different things; raised on all of them."""


def world():
    """Return the communicator of all ranks that ``mpiexec`` started.

    Returns
    -------
    mpi4py.MPI.Intracomm
        ``MPI.COMM_WORLD``. Its `rank` is the number of this process, from 0,
        and its `size` the number of processes: 1 for a program that was
        started without ``mpiexec``.

    Raises
    ------
    ImportError
        If mpi4py or an MPI library is missing.

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
    # Without a library, with the library of another MPI, or built for another
    # Python, mpi4py raises errors of many types.
    except Exception as error:
        raise ImportError(
            "Training on several machines needs mpi4py and an MPI library, "
            f"but mpi4py cannot be imported ({type(error).__name__}: "
            f"{' '.join(str(error).split())}). Install both:\n"
            f'    {sys.executable} -m pip install "bnlasagne[mpi]"',
            name="mpi4py") from error
    # Even a rank that ends before it builds a layer must not be waited for.
    channel_of(comm, "world()")
    return comm


def channel_of(comm, caller):
    """Return the channel of a communicator, which has only one.

    None for None, and for a communicator of one rank. `caller` is for
    messages.
    """
    if comm is None:
        return None
    # Whoever has a communicator has imported this.
    MPI = sys.modules.get("mpi4py.MPI")
    if (not isinstance(comm, getattr(MPI, "Intracomm", ()))
            or comm == MPI.COMM_NULL):
        raise TypeError(
            f"{caller}: comm must be None or a communicator of mpi4py, such "
            f"as bnlasagne.world(), got {comm!r}.")
    if comm.size == 1:
        return None
    channel = comm.Get_attr(_key())
    if channel is None:
        channel = Channel(comm, caller)
        comm.Set_attr(_key(), channel)
        atexit.register(channel.end)
        ends.watch()
    return channel


@functools.lru_cache(maxsize=None)
def _key():
    """Return the key under which a communicator keeps its channel."""
    return sys.modules["mpi4py.MPI"].Comm.Create_keyval(
        # When the user frees the communicator.
        delete_fn=lambda comm, key, channel: atexit.unregister(channel.end))


def channel_of_world():
    """Find the channel of a network that is loaded from a pickle.

    None for one process alone, where mpi4py may be missing.
    """
    try:
        comm = world()
    except ImportError as error:
        if launched_rank():
            raise
        # One process alone needs no other rank.
        warnings.warn(
            "A network is loaded that was built with comm=world(). In this "
            "process its layers normalize each batch by the statistics of "
            f"that batch alone, as with one rank. {error}", stacklevel=2)
        return None
    return channel_of(comm, "pickle")


class Channel:
    """Compare, add up and broadcast over the ranks of a communicator.

    Use :func:`channel_of` to have one. `owner` is who asked for it first, for
    messages.
    """

    def __init__(self, comm, owner):
        self._comm = comm
        self._owner = owner
        self._own = None
        # Why nothing can be sent any more.
        self._broken = None
        # Descriptions of the messages that the current function of this rank
        # has still to send. If an error ends the function, some stay.
        self._pending = ()
        self._after = b""
        self.rank = comm.rank
        self.size = comm.size
        self._name = f"Rank {self.rank} of {self.size}"
        MPI = sys.modules["mpi4py.MPI"]
        # Of all ranks, each knows what the others do.
        self._has_all = MPI.Comm.Compare(comm, MPI.COMM_WORLD) in (
            MPI.IDENT, MPI.CONGRUENT)

    def __repr__(self):
        return f"<Channel, {self._name}>"

    # It stands for a connection, so a copy is the same one.

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        world_ = sys.modules["mpi4py.MPI"].COMM_WORLD
        if self._comm != world_:
            raise pickle.PicklingError(
                f"{self._owner}: a network with this comm cannot be pickled. "
                f"Its communicator, with {self.size} of the job's "
                f"{world_.size} ranks, is not world() itself, and ends with "
                "the job. Save the network's values with save_network(), and "
                "load them with load_network() into a network that is built "
                "with a communicator of the new job. Or build it with "
                "comm=world(), which can be pickled.")
        return channel_of_world, ()

    # Compare

    def agree(self, lines):
        """Go on only if all ranks are about to do the same.

        If `lines`, a tuple on what this rank is about to do, differ, all ranks
        raise `RanksDisagree`, which names the first difference.
        """
        if self._broken:
            raise RanksDisagree(self._broken)
        mine, note, self._after = _prepared(lines)
        self._begin(note)
        if self._own is None:
            self._open(lines)
        all_ = np.empty((self.size, len(mine)), mine.dtype)
        self._wait(self._own.Iallgather(mine, all_), lines)
        notes.done()
        self._pending = ()
        if (all_ != all_[0]).any():
            raise RanksDisagree(_difference(self._own.allgather(lines)))

    def _open(self, lines):
        """Have a communicator apart from what the user sends over it."""
        own, request = self._comm.Idup()
        self._wait(request, lines)
        self._own = own
        if self._has_all:
            notes.set_addresses(own.allgather(notes.address()))

    def _begin(self, note, patience=math.inf):
        """Note a call in which all ranks of this channel take part."""
        if self._has_all:
            notes.begin_call(note, patience)
        else:
            notes.begin(note)

    @contextlib.contextmanager
    def together(self, *lines):
        """Finish a block on all ranks, or raise an error on all of them.

        A rank on which the block raises an error keeps that error. The other
        ranks raise one of the same type, or of the nearest built-in type. It
        says on which rank the error happened.
        """
        error = None
        try:
            with notes.doing(lines[0]):
                yield
        except RanksDisagree:
            # All ranks have it.
            raise
        except BaseException as raised:
            error = raised
        try:
            self.agree(lines)
        except RanksDisagree:
            if error is None:
                raise
            # Of two errors, that of the block tells more.
            raise error from None
        errors = self._own.allgather(_described(error))
        if error is not None:
            raise error
        for rank, (kind, text) in enumerate(errors):
            if kind is not None:
                raise kind(f"On rank {rank}: {text}")

    def end(self):
        """Tell the other ranks that the program of this rank ends."""
        MPI = sys.modules["mpi4py.MPI"]
        if MPI.Is_finalized():
            notes.end()
            return
        if ends.is_ending():
            return
        try:
            self.agree((_THE_END,))
            notes.end()
        except RanksDisagree as error:
            ends.say(str(error))
            # The other ranks have a moment to print the same error.
            ends.abort()

    # Wait

    def _wait(self, request, lines):
        """Wait for a message; if an error ends that, the channel is broken."""
        try:
            waiting.wait(request, self._stages(lines))
        except BaseException as error:
            self._broken = str(error) or (
                f"{self._name} was interrupted while it waited for the other "
                f"ranks, before: {_short(lines)}.")
            # MPI may still write to its memory.
            self._unfinished = request
            raise

    def _stages(self, lines):
        """Return what to do if the other ranks do not come."""
        stages = [(waiting.PATIENCE, functools.partial(self._warn, lines))]
        if self._pending:
            stages.append((waiting.SHORT_PATIENCE, self._end_job))
        # At the end, the other ranks may still have a lot to do.
        if lines != (_THE_END,):
            stages.append((waiting.TIMEOUT,
                           functools.partial(self._give_up, lines)))
        return stages

    def _warn(self, lines, waited):
        ranks = notes.missing() if self._has_all else "the other ranks"
        ends.say(f"{self._name} has waited {waited:.0f} seconds for {ranks}, "
                 f"before: {_short(lines)}. Do all ranks come to this?")

    def _give_up(self, lines, waited):
        raise RanksDisagree(
            f"{self._name} has waited {waited:.0f} seconds for other ranks "
            f"that do not come, before: {_short(lines)}. Do all ranks call "
            "this, and have all of them built their layers with comm? (To "
            "wait longer, set the environment variable "
            "BNLASAGNE_MPI_TIMEOUT.)")

    def _end_job(self, waited):
        ends.say(f"{self._name} has left a function by an error in the "
                 "middle, and gone on; the other ranks wait for the messages "
                 "that were left. This ends the job.")
        ends.abort()

    # Send; all ranks call these in the same order, after they agreed

    def expect(self, messages):
        """Describe the messages that the ranks have agreed to send now."""
        self._pending = messages

    def _send(self, call, *arguments):
        """Send the next message, by a call that waits for the other ranks."""
        note, *self._pending = self._pending or [self._after]
        self._begin(note, waiting.PATIENCE)
        result = call(*arguments)
        notes.done()
        return result

    def sum(self, array):
        """Add up the arrays of all ranks, of one shape and type."""
        total = np.empty_like(array)
        self._send(self._own.Allreduce, array, total)
        return total

    def merge(self, vector, function):
        """Merge the vectors of all ranks, in the order of the ranks.

        They are of float64 and of one size; the result is the same in all
        bits. `function` merges two vectors, that of the lower ranks first. It
        must be defined at the top of a module, as MPI keeps it.
        """
        # One element for MPI, which may send an array in pieces.
        whole = sys.modules["mpi4py.MPI"].DOUBLE.Create_contiguous(vector.size)
        whole.Commit()
        try:
            merged = np.empty_like(vector)
            self._send(self._own.Allreduce, [vector, 1, whole],
                       [merged, 1, whole], _operation(function))
            return merged
        finally:
            whole.Free()

    def sum_objects(self, value):
        """Add up the Python objects of all ranks."""
        return self._send(self._own.allreduce, value)

    def gather(self, value):
        """List the Python objects of all ranks, in the order of the ranks."""
        return self._send(self._own.allgather, value)

    def broadcast(self, value, root):
        """Return the Python object of one rank."""
        return self._send(self._own.bcast, value, root)


_THE_END = "the end of the program"


@functools.lru_cache(maxsize=None)
def _operation(function):
    """Make an operation of MPI from a function that merges two vectors."""
    @ends.uninterrupted
    def operate(lower, upper, kind):
        merged = np.frombuffer(upper, np.float64)
        merged[:] = function(np.frombuffer(lower, np.float64), merged)
    return sys.modules["mpi4py.MPI"].Op.Create(operate, commute=False)


@functools.lru_cache(maxsize=256)
def _prepared(lines):
    """Return sixteen bytes that stand for some lines, and two notes.

    The notes are of the comparison of the lines, and of messages after it.
    """
    text = "\n".join(lines).encode()
    digest = np.frombuffer(hashlib.sha256(text).digest()[:16], np.uint8)
    what = _short(lines)
    return (digest, f"comparison of the ranks before: {what}".encode(),
            f"message of: {what}".encode())


def _short(lines):
    return lines[0] if lines else "nothing"


def _difference(by_rank):
    """Describe the first difference between the lines of the ranks."""
    # What most ranks do is likely to be right.
    usual = max(by_rank, key=by_rank.count)
    other = next(rank for rank, lines in enumerate(by_rank) if lines != usual)
    both = usual, by_rank[other]
    place = next((i for i, (one, two) in enumerate(zip(*both)) if one != two),
                 min(map(len, both)))
    one, two = (lines[place] if place < len(lines) else "nothing more"
                for lines in both)
    # Where one rank leaves an item out, the item after it tells little.
    if two in usual and one not in by_rank[other]:
        two = "not this, but " + two
    elif one in by_rank[other] and two not in usual:
        one = "not this, but " + one
    return (
        "The ranks disagree on what to do next, so none of them does it. "
        f"First difference, item {place + 1}:\n"
        f"  rank {by_rank.index(usual)}: {one}\n  rank {other}: {two}\n"
        "All ranks must build the same network, and call the same functions "
        "equally often and in the same order.")


def _described(error):
    """Describe an error by a type and a text, to send it; or None twice."""
    if error is None:
        return None, None
    kind = next((kind for kind in type(error).__mro__ if kind in _SENDABLE),
                RuntimeError)
    return kind, str(error) if kind is type(error) else "".join(
        traceback.format_exception_only(type(error), error)).strip()


# Errors that are made of a text alone.
_SENDABLE = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError,
    IndexError, KeyError, LookupError, MemoryError, NotImplementedError,
    OSError, OverflowError, RuntimeError, TypeError, ValueError,
    ZeroDivisionError)
