"""What PyTorch has of its own: tensors, counts, checkpoints."""

import pickle
import sys
import types

from bnlasagne import (
    BatchNormLayer,
    batch_norm,
    get_torch_state_dict,
    set_torch_state_dict,
)

import numpy as np
import pytest
from helpers.weights import TORCH, named_dense, named_norm, refused
from lasagne.layers import DenseLayer, InputLayer
from numpy.testing import assert_allclose, assert_array_equal


@pytest.fixture
def matrix():
    return InputLayer((None, 4))


def test_counts_do_not_matter(rng, float64, matrix):
    layer = BatchNormLayer(matrix)
    weights = {**named_norm("0", TORCH, rng, 4),
               "0.num_batches_tracked": np.array(77), "n_averaged": 5}
    set_torch_state_dict(layer, weights)
    assert_array_equal(layer.gamma.get_value()[0], weights["0.weight"])
    found = get_torch_state_dict(layer, like=weights)
    assert found["0.num_batches_tracked"] == 77
    assert list(found) == list(weights)


class Tensor:
    """What NumPy makes no array of, as of PyTorch's tensors.

    One to be trained, on a GPU, or of the type bfloat16.
    """

    def __init__(self, value, *obstacles):
        self.value, self.obstacles = value, obstacles

    def __array__(self, dtype=None):
        if self.obstacles:
            raise TypeError(f"cannot convert {self.obstacles}")
        return np.asarray(self.value, dtype)

    def without(self, obstacle):
        return Tensor(self.value, *[each for each in self.obstacles
                                    if each != obstacle])

    def detach(self):
        return self.without("requires_grad")

    def cpu(self):
        if "requires_grad" in self.obstacles:
            raise RuntimeError
        return self.without("cuda")

    def float(self):
        return self.without("bfloat16")


@pytest.mark.parametrize("obstacles", [
    [], ["requires_grad"], ["cuda"], ["bfloat16"],
    ["requires_grad", "cuda", "bfloat16"]], ids=" ".join)
def test_tensors(rng, float64, matrix, obstacles):
    layer = batch_norm(DenseLayer(matrix, 5, name="fc"), name="n")
    weights = {**named_dense("fc", TORCH, rng.normal(size=(5, 4))),
               **named_norm("n", TORCH, rng, 5)}
    tensors = {key: Tensor(value, *obstacles)
               for key, value in weights.items()}
    set_torch_state_dict(layer, tensors)
    for found in (get_torch_state_dict(layer),
                  get_torch_state_dict(layer, like=tensors)):
        for key, value in weights.items():
            assert_allclose(found[key], value)
    tensors["fc.weight"] = Tensor(weights["fc.weight"], "sparse")
    with refused(layer, r"_dict\(\): fc.weight must be an array of numbers: "
                        "cannot convert", TypeError):
        set_torch_state_dict(layer, tensors)


def test_what_numpy_can_make_arrays_of(float64):
    class Arrayed:
        def __array__(self, *args):
            return np.asarray(np.eye(3), *args)

    layer = DenseLayer(InputLayer((None, 3)), 3, name="a")
    weights = {"a.weight": Arrayed(), "a.bias": [1, 2, 3]}
    set_torch_state_dict(layer, weights)
    assert_array_equal(layer.W.get_value(), np.eye(3))
    assert_array_equal(layer.b.get_value(), [1, 2, 3])
    assert_array_equal(get_torch_state_dict(layer, like=weights)["a.bias"],
                       [1, 2, 3])


def test_files_need_only_numpy():
    """They are read where this package is not installed."""
    found = get_torch_state_dict(DenseLayer((None, 4), 3, name="fc"))
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        stored = pickle.dumps(found, protocol)
        assert b"bnlasagne" not in stored
        assert np.array_equal(pickle.loads(stored)["fc.weight"],
                              found["fc.weight"])


def test_functions_of_torch_get_tensors(monkeypatch):
    array = get_torch_state_dict(
        DenseLayer((None, 4), 3, name="fc"))["fc.bias"]

    def tensor(value):
        assert type(value) is np.ndarray
        return "tensor", value.tolist()

    def function(*args, **kwargs):
        return args, kwargs

    monkeypatch.setitem(sys.modules, "torch",
                        types.SimpleNamespace(from_numpy=tensor))
    found = ("tensor", [0, 0, 0])
    assert array.__torch_function__(
        function, (), (array, 3), {"out": array, "dim": 1}) == (
        (found, 3), {"out": found, "dim": 1})
    assert array.__torch_function__(function, ()) == ((), {})


# --- checkpoints ------------------------------------------------------------

class Module:
    """What has weights, and other things that are trained with it."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state


A_STATE = {"fc.weight": np.ones((5, 4)), "fc.bias": np.ones(5)}
ADAM = {"state": {0: {"step": np.array(3), "exp_avg": np.ones((5, 4))}},
        "param_groups": [{"lr": 0.1, "params": [0]}]}


@pytest.mark.parametrize("checkpoint, paths", [
    ({"epoch": 3, "state_dict": A_STATE, "optimizer": ADAM}, "['state_dict']"),
    ({"model": A_STATE, "optimizer": ADAM}, "['model']"),
    ({"state_dict": A_STATE}, "['state_dict']"),
    ({"epoch": 3, "global_step": 5, "pytorch-lightning_version": "2.1",
      "state_dict": A_STATE, "loops": {"fit_loop": {"state_dict": {}}},
      "callbacks": {}, "optimizer_states": [ADAM], "lr_schedulers": []},
     "['state_dict']"),
    ({"net": {"model": A_STATE}}, "['net']['model']"),
    ({"model": A_STATE, "ema": A_STATE}, "['model'] or checkpoint['ema']"),
    ({"model": Module(A_STATE), "optimizer": Module(ADAM)},
     "['model'].state_dict()"),
    ({"optimizer": ADAM}, None),
])
def test_checkpoint(matrix, checkpoint, paths):
    layer = DenseLayer(matrix, 5, name="fc")
    pass_this = "one of its parts that has the weights" if paths is None \
        else "checkpoint" + paths
    for function in (set_torch_state_dict, get_torch_state_dict):
        with refused(layer, error=TypeError) as caught:
            function(layer, checkpoint)
        text = str(caught.value)
        assert text.startswith(
            "%s(): expected a state_dict, got a checkpoint with the keys ['%s'"
            % (function.__name__, list(checkpoint)[0]))
        assert text.endswith(f"]. Pass {pass_this}.")


class OfNoType:
    """What PyTorch's tensors do of which NumPy has no type."""

    def __array__(self, dtype=None):
        raise RuntimeError("no such type")


@pytest.mark.parametrize("weights, expected", [
    (Module(A_STATE), r"expected a state_dict, got <.*Pass module.state_dict"),
    ([1], r"expected a state_dict, got \[1\]. Pass module.state_dict\(\)\."),
    (None, "expected a state_dict, got None"),
    ({3: np.ones(2)}, "expected a state_dict, with names of weights, got the "
                      "name 3"),
    ({"fc.weight": OfNoType()},
     "fc.weight must be an array of numbers: no such type"),
])
def test_what_is_no_state_dict(matrix, weights, expected):
    layer = DenseLayer(matrix, 5, name="fc")
    with refused(layer, r"^set_torch_state_dict\(\): " + expected, TypeError):
        set_torch_state_dict(layer, weights)
