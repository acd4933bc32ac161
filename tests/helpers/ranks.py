"""One problem for all ranks, each of which has a part of it."""

from bnlasagne.parallel.collectives import Collective

import numpy as np
import pytest

try:
    from mpi4py import MPI
except Exception as error:  # of many types, without a library
    pytest.skip('distributed training needs mpi4py; install the extra: '
                'pip install "bnlasagne[mpi]" (%s)' % error,
                allow_module_level=True)

COMM = MPI.COMM_WORLD

# How many examples the ranks have; of fewer ranks, the first ones.
EVEN = (4, 4, 4, 4)
UNEVEN = (3, 5, 2, 4)
# Rank 1 has none; nor has the only one another rank to share with.
EMPTY = (4, 0, 3, 5)

several = pytest.mark.skipif(COMM.size == 1, reason="takes several ranks")


def mine(sizes, comm=COMM):
    """The number of all ranks' examples, and a slice with this rank's."""
    ends = np.cumsum((0,) + sizes[:comm.size])
    return int(ends[-1]), slice(ends[comm.rank], ends[comm.rank + 1])


def assert_alike(*arrays, comm=COMM):
    """Assert that arrays are the same on all ranks, bit for bit."""
    everywhere = comm.allgather([np.asarray(array).tobytes()
                                 for array in arrays])
    assert everywhere == everywhere[:1] * comm.size


def messages(function):
    """The nodes of a compiled function that communicate, in order."""
    return [node for node in function.maker.fgraph.toposort()
            if isinstance(node.op, Collective)]
