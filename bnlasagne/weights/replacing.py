"""Write a file completely, and then put it in the place of another."""

import contextlib
import errno
import os
import shutil
import tempfile

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(file, caller):
    """Yield a stream for the new content of a file.

    After the block, the file has this content, once it is on the disk. After
    any error, it has the old content, or is missing as before. So it is never
    a piece, even if the process is killed, the disk is full or the power fails
    in between; and of several writers, one is the last. Names in errors are
    those of the file. If the process is killed, a folder whose name starts
    with that of the caller may stay behind.
    """
    path = os.path.realpath(file)
    _check_regular(file, path, caller)
    parent = os.path.dirname(path)
    try:
        # On the same disk, so that it can take the place in one step.
        with tempfile.TemporaryDirectory(dir=parent,
                                         prefix=f"{caller}-") as folder:
            complete = os.path.join(folder, "complete")
            with open(complete, "wb") as stream:
                yield stream
                with contextlib.suppress(FileNotFoundError):
                    shutil.copymode(path, complete)
                stream.flush()
                # Else, the new name may be on the disk before the content.
                os.fsync(stream.fileno())
            os.replace(complete, path)
            _sync_folder(parent)
    except OSError as error:
        if error.errno is None:
            raise
        # It names the temporary file.
        raise type(error)(error.errno, error.strerror, path) from error


def _check_regular(file, path, caller):
    if os.path.isdir(file):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    # A link that is left in a real path is a loop.
    exists = os.path.exists(file) or os.path.lexists(path)
    if exists and not os.path.isfile(file):
        raise OSError(errno.EINVAL, f"{caller}(): this is no regular file, "
                      "and is not replaced. Open it in mode 'wb' and pass the "
                      "file object", path)


def _sync_folder(folder):
    """Have the disk know the new name now, where a folder can be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
