"""The example sequences.py, and the lines that it reads."""

import re

import numpy as np
import pytest
import theano
from lasagne.layers import get_all_params, get_output
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from theano import tensor as T


@pytest.fixture
def lines(example):
    return example("lines")


@pytest.fixture
def glyphs():
    """Digits of shape (14, columns), each of its own ink and width."""
    return [np.full((14, 1 + number), number, "float32")
            for number in range(10)]


# --- lines -----------------------------------------------------------------

def test_digits_lose_their_margins(lines):
    image = np.zeros((1, 1, 28, 28), "float32")
    image[0, 0, 4:6, 6:8] = 1
    image[0, 0, 20, 11] = 1
    [found] = lines.cut_out(image)
    expected = np.zeros((14, 3), "float32")
    expected[2, 0], expected[10, 2] = 1, 0.25
    assert_array_equal(found, expected)


def test_a_digit_without_ink_is_a_space(lines):
    [found] = lines.cut_out(np.zeros((1, 1, 28, 28), "float32"))
    assert_array_equal(found, np.zeros((14, 14)))


def test_lines_hold_digits(lines, glyphs):
    written, labels = lines.write_lines(glyphs, np.arange(10), 500, 12, seed=1)
    counts = []
    for line, label in zip(written, labels):
        top = line[0]
        assert_array_equal(line, np.broadcast_to(top, line.shape))
        assert top.max() == label and line.dtype == "float32"
        # After each digit, there is a column of paper; and a 0 is paper, too.
        zeros = (np.sum(top == 0) - np.sum(np.diff(top) < 0)) // 2
        counts.append(zeros + np.sum(np.diff(top) < 0))
    assert labels.dtype == "int32"
    assert min(counts) == 1 and 8 <= max(counts) <= 12
    assert 0.55 < np.mean(np.array(counts) == 1) < 0.75
    again, _ = lines.write_lines(glyphs, np.arange(10), 500, 12, seed=1)
    assert_array_equal(again[7], written[7])


def test_padding(lines, glyphs):
    x, mask = lines.padded([glyphs[3], glyphs[1], glyphs[5]])
    assert x.shape == (3, 14, 6) and x.dtype == mask.dtype == "float32"
    assert_array_equal(mask, [[1, 1, 1, 1, 0, 0],
                              [1, 1, 0, 0, 0, 0],
                              [1, 1, 1, 1, 1, 1]])
    assert_array_equal(x[:, 13], mask * [[3], [1], [5]])


def test_padded_batches(lines, glyphs):
    stream = lines.padded_batches(glyphs, np.arange(10), 4, seed=2)
    seen = set()
    for _ in range(2):
        x, mask, y = next(stream)
        assert_array_equal(mask.sum(axis=1), y + 1)
        assert_array_equal(x[:, 0, 0], y)
        seen.update(y)
    assert len(seen) == 8


def test_lines_of_equal_length(lines, glyphs):
    found = lines.of_equal_length([glyphs[i] for i in (3, 1, 3, 0)])
    assert [group.tolist() for group in found] == [[3], [1], [0, 2]]


@pytest.fixture
def python_only(quick, monkeypatch):
    """Compiling convolutions takes minutes. Without a compiler, they work."""
    monkeypatch.setattr(theano.config, "cxx", "")


@pytest.fixture
def few_digits(arrays, tmp_path):
    """A function that makes a file of so many digits."""
    def make(number):
        path = tmp_path / "few.npz"
        np.savez(str(path), **{name: array[:number]
                               for name, array in arrays.items()})
        return path
    return make


# --- the program -----------------------------------------------------------

def test_sequences(example, few_digits, tmp_path, capsys, monkeypatch,
                   python_only):
    path = tmp_path / "a.png"
    sequences = example("sequences", "--data", few_digits(30), "--steps", 1,
                        "--longest", 3, "--quiet", "--output", path)
    monkeypatch.setattr(sequences, "BATCH_SIZE", 4)
    assert sequences.main() == 0
    with Image.open(str(path)) as image:
        assert image.format == "PNG"
    *_, row, changes, saved = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r" +1" + r"   [01]\.\d{4}" * 3, row)
    assert re.fullmatch(r"Without padding, the answers to 0, 0 and \d+ of 15 "
                        "lines change.", changes)
    assert saved == f"Saved the curves as {path}."


@pytest.mark.parametrize("testing", [False, True])
@pytest.mark.parametrize("way", range(3))
def test_what_the_padding_does(example, rng, python_only, way, testing):
    """Whether outputs depend on how many columns of padding there are."""
    sequences = example("sequences")
    x, mask = T.tensor3(), T.matrix()
    network = sequences.build_network(x, mask, sequences.WAYS[way], seed=1)
    for param in get_all_params(network, trainable=True, regularizable=True):
        if param.name == "beta":  # or it is zero, and so is what padding gives
            param.set_value(param.get_value() + 1)
    output = theano.function(
        [x, mask], get_output(network, deterministic=testing),
        on_unused_input="ignore")
    marks = (np.arange(6) < [[2], [6], [3], [4]]).astype(x.dtype)
    images = (rng.uniform(size=(4, 14, 6)) * marks[:, np.newaxis]).astype(
        x.dtype)
    found = [output(images, marks)]
    images, marks = (np.pad(each, [(0, 0)] * (each.ndim - 1) + [(0, 9)],
                            mode="constant") for each in (images, marks))
    found.append(output(images, marks))
    if way == 0 or way == 1 and testing:
        assert_allclose(*found, rtol=1e-4)
    else:
        assert abs(found[1] - found[0]).max() > 1e-3


def test_too_few_digits_for_a_batch(example, few_digits):
    with pytest.raises(SystemExit, match="size is 100, but there are 99"):
        example("sequences", "--data", few_digits(99)).main()
