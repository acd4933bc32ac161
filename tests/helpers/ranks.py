"""One problem for all ranks, each of which has a part of it."""

from bnlasagne import BatchNormLayer
from bnlasagne.parallel.collectives import Collective

import numpy as np
import pytest
import theano
import theano.tensor as T

try:
    from mpi4py import MPI
except Exception as error:  # of many types, without a library
    pytest.skip('distributed training needs mpi4py; install the extra: '
                'pip install "bnlasagne[mpi]" (%s)' % error,
                allow_module_level=True)

COMM = MPI.COMM_WORLD
PY = theano.Mode("py", "fast_compile")

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


def error_on_all(function, *arguments):
    """Call a function; return the text of the error that all ranks raise.

    Without what Theano says of the node. None if no rank raises an error.
    """
    text = None
    try:
        function(*arguments)
    except Exception as error:
        text = str(error).split("\nApply node")[0]
    texts = COMM.allgather(text)
    assert texts == texts[:1] * COMM.size
    return text


def disagreement(function, *arguments):
    """Assert that all ranks raise the same `RanksDisagree`, and go on."""
    text = error_on_all(function, *arguments)
    assert text is not None and "The ranks disagree" in text, text
    assert "First difference, item " in text
    assert_ranks_go_on()
    return text


def assert_ranks_go_on():
    """Assert that a function that all ranks call works."""
    x = T.matrix()
    y = BatchNormLayer((None, 3), comm=COMM).get_output_for(x)
    batch = np.random.RandomState(COMM.rank).normal(COMM.rank, 1, (4, 3))
    found = theano.function([x], y, mode=PY, allow_input_downcast=True)(batch)
    np.testing.assert_allclose(sum(COMM.allgather(found.sum(0))), 0, atol=1e-4)
