"""Fixtures for the tests of the examples."""

import numpy as np
import pytest
from helpers.examples import make_images


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.RandomState(1)
    y_train = rng.permutation(np.arange(300) % 10).astype("uint8")
    y_test = rng.permutation(np.arange(50) % 10).astype("uint8")
    return {"x_train": make_images(y_train, rng), "y_train": y_train,
            "x_test": make_images(y_test, rng), "y_test": y_test}


@pytest.fixture
def npz(arrays, tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(str(path), **arrays)
    return path
