"""Measure the peak memory of a training step, in sizes of its input."""

import os
import resource
import sys

from .speed import answer, environment, run_module

PEERS = ["ours", "gist", "torch"]
# Large, so that what lies around does not count.
SHAPE = (128, 64, 56, 56)


def measure(peers, shape=SHAPE):
    """Measure peers, each in a process of its own.

    Returns, for each peer, what a step takes at its peak beyond x, dy and the
    parameters, as a multiple of the size of x; y and dx are two of it.
    """
    # With glibc's own way of giving memory back.
    env = environment(1, keep_freed=False)
    return {peer: run_module("memory", {"peer": peer, "shape": shape}, env)
            for peer in PEERS if peer in peers}


def _peak(peer, shape):
    from .cases import Case, random_data
    from .peers import PEERS as KNOWN

    case = Case("memory", "convolutional", tuple(shape), (0, 2, 3))
    # Drawing random numbers takes double precision and would be the peak.
    small = random_data(case._replace(shape=(2,) + case.shape[1:]))
    data = small._replace(**{
        name: getattr(small, name).repeat(shape[0] // 2, axis=0)
        for name in ("x", "dy")})
    program = KNOWN[peer].build(case, data, False, True)
    return peak_of(program.call) / data.x.nbytes


def peak_of(call):
    """Return the bytes that a first call adds to the process at its peak."""
    before = _resident()
    call()
    return max(0, _peak_so_far() - before)


def _peak_so_far():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _resident():
    """Return the bytes of this process that are in memory now."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # Not Linux: the peak so far.
        return _peak_so_far()


if __name__ == "__main__":
    answer(_peak)
