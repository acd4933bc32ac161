"""Watch a rank from another process, and say how it ended.

A rank that is killed can say nothing itself, and ``mpiexec`` ends the other
ranks before they find out. So each rank starts this file as a program, which
outlives it by a moment. It imports nothing but Python's own modules.

The watcher has a session of its own, so that ``mpiexec`` does not end it. It
names its rank only if that ended by itself, before the other ranks of this
machine. Those that ``mpiexec`` ends, it ends as process groups. A canary, a
process in the group of the rank, tells the watcher of that: it does nothing
but end with the group, which it does faster than the rank.
"""

import contextlib
import os
import select
import signal
import struct
import sys
import time

try:
    import fcntl
except ImportError:
    # On Windows, there are no watchers.
    fcntl = None

__all__ = ["DOING", "DONE", "ENDED", "NAME", "RECORD", "SAID", "SIZE",
           "describe", "find_missing", "main", "text_of"]

# What a rank does, in memory that it shares with its watcher: a status, the
# number of its calls in which all ranks take part, the seconds after which the
# watcher says that it waits, and a text. After it, lines on the other ranks.
RECORD = struct.Struct("<Bqd495s")
DOING, DONE, ENDED, SAID = range(4)
SIZE, NAME = 1 << 16, "bnlasagne-notes"
# Seconds between two looks at a rank.
_TICK = 1
# How many of the ranks that are waited for are described.
_MOST = 4
# Places in /proc/PID/stat, counted from after the name of the program.
_STATE, _PARENT, _EXIT_CODE = 0, 1, 49
# States of a process that has ended; the first if its parent knows.
_DEAD, _STOPPED = ("", "Z", "X"), ("T", "t")
# Of Linux's pidfd.h.
_PIDFD_GET_INFO, _PIDFD_INFO_EXIT = 0xC040FF0B, 8


def text_of(record):
    """Return what a rank does or has done."""
    text = RECORD.unpack(record[:RECORD.size])[3]
    return text.rstrip(b"\0").decode("utf-8", "replace")


def describe(record):
    """Describe what a rank last did, and whether it has finished that."""
    return text_of(record) + " (not finished)" * (record[0] == DOING)


def find_missing(memory):
    """Describe the ranks of this machine that a rank waits for.

    They have not come to its call, or were stopped in it. `memory` is that of
    the rank that waits.
    """
    number = RECORD.unpack(memory[:RECORD.size])[1]
    lines = memory[RECORD.size:].rstrip(b"\0").decode().splitlines()
    found = []
    for rank, pid, descriptor in (map(int, line.split()) for line in lines):
        record = _record_of(pid, descriptor)
        if not record:
            continue
        behind = number - RECORD.unpack(record)[1]
        is_stopped = _is_stopped(pid)
        if behind > 0 or behind == 0 and is_stopped:
            found.append(f"rank {rank} (process {pid}, "
                         f"{'stopped, ' * is_stopped}last did: "
                         f"{describe(record)})")
    if len(found) > _MOST:
        found[_MOST:] = [f"{len(found) - _MOST} more ranks"]
    return ", ".join(found) or "the other ranks"


def _record_of(pid, descriptor):
    """Read what another rank does; None if that is out of reach."""
    path = f"/proc/{pid}/fd/{descriptor}"
    with contextlib.suppress(OSError):
        # In another container, the process may be any other.
        if NAME in os.readlink(path):
            with open(path, "rb") as file:
                return file.read(RECORD.size)
    return None


def _is_stopped(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        return _state_in(file.read())[0] in _STOPPED
    return False


def _state_in(stat):
    """Find the state of a process, a letter, and its exit code."""
    fields = stat.rpartition(b")")[2].split()
    return fields[_STATE].decode(), int(fields[_EXIT_CODE])


class _Process:
    """Look at a process that need not be a child of this one."""

    def __init__(self, pid):
        self._pid = pid
        self._stat = self.descriptor = None
        # They are missing on other systems, the second on Linux before 5.3 and
        # on Python 3.8.
        with contextlib.suppress(OSError, AttributeError):
            self._stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
            self.descriptor = os.pidfd_open(pid)

    def look(self):
        """Return its state, a letter, and its exit code; None if unknown.

        The state is empty if the process is gone.
        """
        try:
            if self._stat is None:
                os.kill(self._pid, 0)
                return "R", None
            stat = os.pread(self._stat, 4096, 0)
        except OSError:
            return "", None
        return _state_in(stat)

    def exit_code(self):
        """Wait for its end; return the exit code, None if unknown."""
        pause = 0.0005
        while True:
            # It is there some time before the process is gone.
            state, code = self.look()
            if not state:
                return self._code_of_gone()
            if state in _DEAD or code and state not in _STOPPED:
                return code
            time.sleep(pause)
            pause = min(2 * pause, _TICK)

    def _code_of_gone(self):
        """Return the exit code that Linux 6.15 and later keep."""
        info = bytearray(64)
        struct.pack_into("<Q", info, 0, _PIDFD_INFO_EXIT)
        try:
            fcntl.ioctl(self.descriptor, _PIDFD_GET_INFO, info)
        except (OSError, TypeError):
            # On other systems, there is nothing to ask.
            return None
        found, = struct.unpack_from("<Q", info)
        if not found & _PIDFD_INFO_EXIT:
            return None
        return struct.unpack_from("<i", info, 60)[0]


def _siblings(pid):
    """List the other processes that have the parent of a process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[_PARENT])
        children = []
        for thread in os.listdir(f"/proc/{parent}/task"):
            with open(f"/proc/{parent}/task/{thread}/children") as file:
                children += map(int, file.read().split())
    except OSError:
        return []
    return [_Process(child) for child in children if child != pid]


class _Ends:
    """Wait for the ends of processes, in the order in which they come.

    Each has a descriptor that can be read as soon as the process has ended.
    """

    def __init__(self, descriptors):
        self._left = list(descriptors)
        # It keeps the order. Others do not.
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        if self._epoll:
            for descriptor in self._left:
                self._epoll.register(descriptor, select.EPOLLIN)

    def next(self):
        """Return the next descriptor, None if there is none for a while."""
        if self._epoll:
            ready = [ended for ended, _ in self._epoll.poll(_TICK, 1)]
        else:
            ready, _, _ = select.select(self._left, [], [], _TICK)
        for descriptor in ready[:1]:
            self._left.remove(descriptor)
            if self._epoll:
                self._epoll.unregister(descriptor)
            return descriptor
        return None


class _Watcher:
    """Watch the process `pid`, by the name of its rank, for messages."""

    def __init__(self, name, pid, memory):
        # The module socket would take as long as all the others.
        self._name = f"{name} (process {pid} on {os.uname().nodename})"
        self._pid, self._memory = pid, memory
        self._process = _Process(pid)
        self._seen, self._since = None, 0

    def watch(self, pipe, canary):
        """Wait for the end of the process; tell whether it ended by itself.

        That is before its canary, and before a process with the same parent
        failed. Both arguments are pipes of which the other end closes with a
        process. A child that the rank leaves behind may hold its end open.
        """
        siblings = {sibling.descriptor: sibling
                    for sibling in _siblings(self._pid) if sibling.descriptor}
        ends = _Ends([pipe, canary, *siblings])
        is_first = True
        while True:
            ended = ends.next()
            if ended == pipe or (ended is None
                                 and self._process.look()[0] in _DEAD):
                return is_first
            if ended is None:
                self._say_if_it_waits(self._record())
            elif ended == canary or siblings[ended].exit_code() != 0:
                is_first = False

    def _record(self):
        return os.pread(self._memory, RECORD.size, 0)

    def _say_if_it_waits(self, record):
        status, _, patience, _ = RECORD.unpack(record)
        if record != self._seen:
            self._seen, self._since = record, time.monotonic()
            return
        waited = time.monotonic() - self._since
        if status == DOING and waited > patience:
            ranks = find_missing(os.pread(self._memory, SIZE, 0))
            say(f"{self._name} has waited {waited:.0f} seconds for {ranks}, "
                f"in: {text_of(record)}.")
            self._since = float("inf")

    def end(self):
        """Say how the process has ended; tell whether it has failed."""
        code = self._process.exit_code()
        record = self._record()
        status = RECORD.unpack(record)[0]
        if status == ENDED and not code:
            return False
        if status != SAID:
            say(f"{self._name} {_way(code)}. It last did: {describe(record)}.")
        return True


def _way(code):
    """Describe how a process has ended, by the status for its parent."""
    if code is None:
        return "was ended, or ended itself"
    number, status = code & 127, code >> 8
    if not number:
        return (f"ended with exit status {status}, before the end of its "
                "program")
    try:
        name = f" ({signal.Signals(number).name})"
    except ValueError:
        name = ""
    return f"was ended by signal {number}{name}"


def say(text):
    """Write a line to the standard error stream, unless that is closed."""
    with contextlib.suppress(OSError):
        os.write(2, f"bnlasagne: {text}\n".encode())


def main(name, *numbers):
    """Watch a rank in a process that nobody waits for."""
    pid, pipe, memory = map(int, numbers)
    # An interrupt of the whole group ends the canary without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    leads = os.getpgid(0) == pid
    canary, *ends = _start_canary(pipe)
    if os.fork():
        return
    os.setsid()
    for descriptor in ends:
        os.close(descriptor)
    watcher = _Watcher(name, pid, memory)
    # Then, others name a rank, and end the processes of this one.
    if watcher.watch(pipe, canary) and watcher.end() and leads and (
            not select.select([canary], [], [], 0)[0]):
        # What the rank has left behind, such as a compiler. While the canary
        # lives, its group is no other one.
        os.killpg(pid, signal.SIGKILL)


def _start_canary(pipe):
    """Start a process that ends with its group, or after the watcher.

    Returns a pipe of which the other end closes with the canary, and two ends
    of pipes that the watcher is to close.
    """
    canary, breath = os.pipe()
    air, watcher = os.pipe()
    if os.fork():
        return canary, breath, air
    for descriptor in canary, watcher, pipe:
        os.close(descriptor)
    os.read(air, 1)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
