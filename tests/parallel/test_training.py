"""Check the arguments of distributed training, on one rank."""

from bnlasagne import average_gradients, broadcast_params

import pytest
import theano
import theano.tensor as T
from helpers.ranks import MPI

COMM = MPI.COMM_SELF


@pytest.mark.parametrize("change, error, match", [
    ({"loss_or_grads": T.vector()}, ValueError, "loss must be a scalar"),
    ({"loss_or_grads": []}, ValueError, "0 gradients for 1 parameters"),
    ({"loss_or_grads": 1}, TypeError, "must be a loss or a list"),
    ({"loss_or_grads": [1]}, TypeError, "gradients must be Theano variables"),
    ({"params": []}, ValueError, "params is empty"),
    ({"params": [T.scalar()]}, TypeError, "params must be a list of shared"),
    ({"comm": None}, TypeError, "comm must be a communicator"),
    ({"size": "many"}, TypeError, "size must be a number or a scalar"),
    ({"comm": 2}, TypeError, "comm must be None or a communicator"),
    ({"size": T.vector()}, ValueError, "size must be a scalar"),
    ({"outputs": [T.vector()]}, ValueError, "outputs must be scalars"),
    ({"outputs": [1]}, TypeError, "outputs must be Theano variables"),
])
def test_wrong_arguments(change, error, match):
    w = theano.shared(1., "w")
    arguments = dict(
        {"loss_or_grads": w ** 2, "params": [w], "comm": COMM, "size": 1},
        **change)
    with pytest.raises(error, match=r"average_gradients\(\): .*" + match):
        average_gradients(**arguments)


@pytest.mark.parametrize("root, error, match", [
    (-1, ValueError, "root must be from 0 to 0, got -1"),
    (1, ValueError, "root must be from 0 to 0, got 1"),
    (0.5, TypeError, "root must be the number of a rank"),
])
def test_broadcast_from_no_rank(root, error, match):
    with pytest.raises(error, match=match):
        broadcast_params([], COMM, root)


@pytest.mark.parametrize("params, comm, match", [
    ([1], COMM, "expected a Layer"), ("w", COMM, "expected a Layer"),
    ([], None, "comm must be a communicator"),
    ([], MPI, "comm must be None or a communicator"),
])
def test_broadcast_with_wrong_arguments(params, comm, match):
    with pytest.raises(TypeError, match=r"broadcast_params\(\): .*" + match):
        broadcast_params(params, comm)
