"""Peak memory of one training step, in sizes of its input."""

from .speed import answer, environment, run_module

PEERS = ["ours", "gist", "torch"]
# Large, so that what lies around does not count.
SHAPE = (128, 64, 56, 56)


def measure(peers, shape=SHAPE):
    """Measure peers, each in a process of its own.

    Parameters
    ----------
    peers : list of str
    shape : tuple of int
        Of a convolutional layer.

    Returns
    -------
    dict of str to float
        What a step takes at its peak beyond x, dy and the parameters, as a
        multiple of the size of x; y and dx are two of it.
    """
    # With glibc's own way of giving memory back.
    env = environment(1, keep_freed=False)
    return {peer: run_module("memory", {"peer": peer, "shape": shape}, env)
            for peer in PEERS if peer in peers}


def _peak(peer, shape):
    import resource
    import sys

    from .cases import Case, random_data
    from .peers import PEERS as KNOWN

    case = Case("memory", "convolutional", tuple(shape), (0, 2, 3))
    # Drawing random numbers takes double precision and would be the peak.
    small = random_data(case._replace(shape=(2,) + case.shape[1:]))
    data = small._replace(**{
        name: getattr(small, name).repeat(shape[0] // 2, axis=0)
        for name in ("x", "dy")})
    program = KNOWN[peer].build(case, data, False, True)
    before = resident()
    program.call()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return (peak - before) / data.x.nbytes


def resident():
    """Bytes of this process in memory now."""
    import os
    import resource

    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # Not Linux: the peak so far, in bytes on macOS.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    answer(_peak)
