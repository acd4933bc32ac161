"""Keep answers in Theano's compile directory, for the processes to come."""

import contextlib
import hashlib
import importlib
import json
import os
from pathlib import Path

__all__ = ["answers", "digest", "keep"]

# As many as a file holds; the oldest go. Questions change with the compiler,
# its flags and what they concern, so that most answers are out of date.
_MOST = 64


def digest(*values):
    """Return the digest of all that an answer depends on."""
    return hashlib.sha256(json.dumps(values).encode("utf-8")).hexdigest()


def answers(name):
    """Read all answers of a file, by their digests; none if that fails."""
    try:
        table = json.loads(_path(name).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def keep(name, key, answer):
    """Add an answer to a file, which another file replaces in one step."""
    path = _path(name)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    # A compile directory that cannot be written to costs a question, no more.
    # So does a file that a power cut has damaged.
    with contextlib.suppress(OSError):
        table = {**answers(name), key: answer}
        newest = dict(list(table.items())[-_MOST:])
        try:
            temporary.write_text(json.dumps(newest), "utf-8")
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _path(name):
    config = importlib.import_module("theano").config
    return Path(config.compiledir, f"bnlasagne_{name}.json")
