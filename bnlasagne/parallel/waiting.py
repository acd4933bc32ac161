"""Wait for the other ranks, and act if that takes long."""

import os
import time

__all__ = ["PATIENCE", "SHORT_PATIENCE", "TIMEOUT", "wait"]


def _seconds(name, default):
    """Read a time that the user may set as an environment variable."""
    text = os.environ.get(name, str(default))
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"The environment variable {name} must be a number of seconds, "
            f"got {text!r}.") from None


# Seconds of waiting after which a rank says so, and after which it gives up.
PATIENCE = 60
TIMEOUT = _seconds("BNLASAGNE_MPI_TIMEOUT", 1800)
# Seconds after which a rank that the others wait for ends the job.
SHORT_PATIENCE = 30
# Seconds for which a rank tests a message again at once, and between two tests
# after that.
_SPIN, _PAUSE = 0.01, 0.0002
# Sleeping takes a hundred times as long, even for no time.
_yield_processor = getattr(os, "sched_yield", lambda: time.sleep(0))


def wait(request, stages):
    """Wait until a message has come.

    `stages` are pairs of a time and a function: after so many seconds, the
    function is called once, with the seconds waited so far. It may raise an
    error, which ends the waiting.
    """
    stages = sorted(stages, key=lambda stage: stage[0])
    start = time.monotonic()
    while not request.Test():
        waited = time.monotonic() - start
        if waited < _SPIN:
            # There may be more ranks than processors.
            _yield_processor()
            continue
        time.sleep(_PAUSE)
        while stages and waited > stages[0][0]:
            _, act = stages.pop(0)
            act(waited)
