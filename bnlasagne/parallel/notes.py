"""Note what this rank does, for a watcher that outlives it."""

import contextlib
import math
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from .watcher import (
    DOING,
    DONE,
    ENDED,
    NAME,
    RECORD,
    SAID,
    SIZE,
    describe,
    find_missing,
)

__all__ = ["address", "begin", "begin_call", "doing", "done", "end", "last",
           "missing", "said", "set_addresses", "start"]


_WATCHER = Path(__file__).with_name("watcher.py")


class _Memory:
    """The memory that the watcher reads; until it starts, nobody does."""

    file = None
    buffer = bytearray(SIZE)
    # How many calls in which all ranks take part have begun.
    number = 0
    # What this rank does in the blocks around what it does now.
    blocks = []


def start(name):
    """Start a watcher, once. `name` is that of this rank, for messages.

    Where it cannot be started, nobody says how this rank ends.
    """
    if _Memory.file is not None or os.name != "posix" or not sys.executable:
        return
    _Memory.file = _open()
    buffer = mmap.mmap(_Memory.file, SIZE)
    buffer[:] = bytes(_Memory.buffer)
    _Memory.buffer = buffer
    # The other end closes with this process, and with nothing else.
    end_, _ = os.pipe()
    inherited = end_, _Memory.file
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # Without any connection to mpiexec, which waits for these to close.
        subprocess.run(
            [sys.executable, "-I", "-S", str(_WATCHER), name,
             str(os.getpid()), *map(str, inherited)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            pass_fds=inherited, timeout=60)
    os.close(end_)


def _open():
    """Open a file without a name."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(NAME)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, SIZE)
    return descriptor


def begin(text, patience=math.inf):
    """Note that this rank begins something; `text` is encoded.

    If it takes longer than `patience`, in seconds, the watcher says so.
    """
    RECORD.pack_into(_Memory.buffer, 0, DOING, _Memory.number, patience, text)


def begin_call(text, patience=math.inf):
    """Note that this rank begins a call in which all ranks take part."""
    _Memory.number += 1
    begin(text, patience)


def done():
    """Note that this rank has done what it began."""
    _Memory.buffer[0] = DONE


@contextlib.contextmanager
def doing(text):
    """Note that this rank does something in a block."""
    _Memory.blocks.append(text.encode())
    begin(_Memory.blocks[-1])
    try:
        yield
    finally:
        block = _Memory.blocks.pop()
    # After an error, the note stays.
    begin(_Memory.blocks[-1] if _Memory.blocks else block)
    if not _Memory.blocks:
        done()


def end():
    """Note that the program has come to its end."""
    _Memory.buffer[0] = ENDED


def said():
    """Note that this rank has said itself why it ends."""
    _Memory.buffer[0] = SAID


def last():
    """Describe what this rank last did."""
    return describe(_Memory.buffer)


begin(b"the start of the program")
done()


# Other ranks

def address():
    """Return the machine, and where on it others find these notes."""
    return socket.gethostname(), os.getpid(), _Memory.file


def set_addresses(addresses):
    """Keep the addresses of all ranks, in their order."""
    here = socket.gethostname()
    lines = "\n".join(f"{rank} {pid} {file}" for rank, (host, pid, file)
                      in enumerate(addresses) if host == here and file)
    text = lines.encode()[:SIZE - RECORD.size]
    _Memory.buffer[RECORD.size:RECORD.size + len(text)] = text


def missing():
    """Describe the ranks that have not come to the current call."""
    return find_missing(_Memory.buffer)
