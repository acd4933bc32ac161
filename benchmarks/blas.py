"""Time training steps with SciPy's BLAS and with NumPy's, in turns.

``OMP_NUM_THREADS=1 python -m benchmarks.blas`` prints how many times as long a
step takes with NumPy's, which Theano uses without a BLAS: median and
quartiles. With several threads, those of the two libraries would disturb each
other.
"""

import sys
import time

import bnlasagne  # isort: skip  # noqa: F401  # First: it repairs imports.

import numpy as np
import theano

from . import networks

STEPS = 100


def main(names):
    """Measure networks, with batch norm."""
    flags = theano.config.blas.ldflags
    if not flags:
        raise SystemExit("Theano has found no BLAS: nothing to compare.")
    theano.config.floatX = "float32"
    for name in names or networks.NETWORKS:
        batch = networks.random_batch(name)
        seconds = []
        steps = []
        for theano.config.blas.ldflags in (flags, ""):
            steps.append(networks.compile_step(name, "ours"))
            steps[-1](*batch)
        for _ in range(STEPS):
            seconds.append([_seconds(step, batch) for step in steps])
        scipy, numpy = np.transpose(seconds)
        low, middle, high = np.percentile(numpy / scipy, [25, 50, 75])
        print(f"{name}: {1e3 * np.median(scipy):.1f} ms with "
              f"{flags.split()[1]}, {1e3 * np.median(numpy):.1f} ms with "
              f"NumPy's: {middle:.2f} times ({low:.2f} to {high:.2f})")


def _seconds(step, batch):
    start = time.perf_counter()
    step(*batch)
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1:])
