"""Run the examples' programs, mostly in this process, on made-up digits."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import namedtuple

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


def test_mnist(example, npz, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mnist = example("mnist", "--data", npz, "--steps", 120, "--batch-size", 20,
                    "--statistics-steps", 100)
    assert mnist.main() == 0
    output, errors = capsys.readouterr()
    rows = table(output)
    assert [row.step for row in rows] == [100, 120]
    assert rows[-1].with_ > 0.9
    assert "without batch norm   with batch norm" in output
    assert "\nSaved the curves as mnist.png.\n" in output
    assert_shows_two_curves(tmp_path / "mnist.png")
    assert "120/120" in errors and "steps/s" in errors
    rows = table_of_statistics(output)
    assert list(rows) == [4, 16, 60]
    assert min(rows[60]) > 0.9
    assert "Here the running averages " in output
    assert output.endswith("Saved the statistics for batches of 4 as "
                           "mnist_statistics.png.\n")
    assert_shows(tmp_path / "mnist_statistics.png", (153, 153, 153))
    assert "batches of 60" in errors


@contextlib.contextmanager
def started(folder, *arguments):
    """A process that runs mnist.py, and ends with the block."""
    with subprocess.Popen(
            [sys.executable, str(EXAMPLES / "mnist.py"), *map(str, arguments)],
            cwd=str(folder), env=environment(), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, universal_newlines=True,
            # Where the tests run in the background, SIGINT may be ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


not_on_windows = pytest.mark.skipif(
    os.name == "nt", reason="Ctrl-C is not a signal there")


@not_on_windows
def test_mnist_quiet_and_interrupted(npz, tmp_path):
    with started(tmp_path, "--data", npz, "--steps", 1000000, "--batch-size",
                 20, "--quiet", "--output", "a.png") as process:
        before = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        after, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "steps/s" not in errors
    assert table("".join(before))[0].step == 100
    [steps] = re.findall(r"Interrupted at step (\d+)\.", after)
    assert int(steps) >= 100
    assert_shows_two_curves(tmp_path / "a.png")


@not_on_windows
def test_interrupted_while_compiling(npz, tmp_path):
    with started(tmp_path, "--data", npz) as process:
        first = ""
        while not first.startswith(("Compiling; about a minute the first",
                                    "Without a C++ compiler")):
            first = process.stderr.readline()
            assert first, "no word about compiling"
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
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
    conclusion = example("compare_statistics").conclusion_from(rows)
    assert says in conclusion
    assert max(map(len, conclusion.splitlines())) < 80


@needs_compiler  # as do Theano's convolutions
def test_cnn(example, npz, capsys):
    example("cnn", "--data", npz, "--epochs", 2, "--batch-size", 20).main()
    output, errors = capsys.readouterr()
    head, *rows = output.splitlines()
    assert head == "epoch   training loss   test accuracy   time per step"
    pattern = r" +(\d) +(\d\.\d{4}) +([01]\.\d{4}) +\d+\.\d ms"
    rows = [re.fullmatch(pattern, row).groups() for row in rows]
    assert [row[0] for row in rows] == ["1", "2"]
    assert float(rows[1][1]) < float(rows[0][1])
    assert float(rows[1][2]) > 0.9
    assert "epoch 2" in errors


@needs_compiler
def test_deploy(example, npz, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example("deploy", "--data", npz, "--epochs", 2, "--rounds", 1,
            "--quiet").main()
    _, _, *rows = capsys.readouterr().out.splitlines()
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


@pytest.mark.parametrize("name", ["mnist", "cnn", "deploy", "gan",
                                  "accumulate", "sequences"])
def test_data_that_cannot_be_used(example, name):
    with pytest.raises(SystemExit) as caught:
        example(name, "--data", "nowhere").main()
    assert caught.value.code == (
        f"{name}.py: error: nowhere: there is no such file")


# --- parts of the programs -------------------------------------------------

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
    with np.load(str(npz)) as arrays:
        np.savez(str(npz), **{name: array[:59]
                              for name, array in arrays.items()})
    sizes = module.batch_sizes(module.parse_arguments())
    if exits:
        with pytest.raises(SystemExit, match="60, but there are 59 digits"):
            digits.load_or_exit(npz, sizes)
    else:
        digits.load_or_exit(npz, sizes)


def test_mnist_statistics_are_those_of_all_digits(
        example, digits, npz, quick):
    mnist = example("mnist", "--quiet", "--statistics-steps", "3")
    comparison = example("compare_statistics")
    data, args = digits.load(str(npz)), mnist.parse_arguments()
    network = mnist.compile_network(True, args)
    comparison.train_in_batches_of(4, network, data, args)
    layers = [layer for layer in get_all_layers(network.output)
              if isinstance(layer, BatchNormLayer)]
    averages = [layer.std.get_value() for layer in layers]
    row, found = comparison.test_statistics(network, 4, data, args)
    assert len(row) == 3
    assert [layer.name for layer in found] == [
        "hidden1_bn", "hidden2_bn", "hidden3_bn"]
    assert [moments.count for moments in found.values()] == [300] * 3
    for layer, average in zip(layers, averages):
        assert_array_equal(found.replaced[layer][1], average)


def test_mnist_statistics_interrupted(example, capsys):
    args = example("mnist", "--quiet").parse_arguments()

    def interrupt():
        raise KeyboardInterrupt

    compare = example("compare_statistics").compare_statistics
    assert compare(interrupt, None, args) is False
    assert capsys.readouterr().out.endswith("\nInterrupted.\n")


@pytest.mark.parametrize("output, expected", [
    ("a.png", "a_statistics.png"), ("a.b/c.PNG", "a.b/c_statistics.PNG")])
def test_mnist_statistics_path(example, output, expected):
    assert example("compare_statistics").statistics_path(output) == expected


def test_networks_start_alike(example):
    build_network = example("network").build_network
    weights = []
    for normalize in False, True:
        network = build_network(T.tensor4(), 3, normalize)
        weights.append([param.get_value() for param in get_all_params(network)
                        if param.name.split(".")[-1] == "W"])
    assert [w.shape for w in weights[0]] == [
        (784, 100), (100, 100), (100, 100), (100, 10)]
    for without, with_ in zip(*weights):
        assert_array_equal(without, with_)


@pytest.mark.parametrize("name", ["network", "cnn"])
@pytest.mark.parametrize("normalize, expected", [(True, 3), (False, 0)])
def test_layers_that_are_normalized(example, name, normalize, expected):
    arguments = {"network": {"seed": 1}, "cnn": {}}[name]
    network = example(name).build_network(T.tensor4(), normalize=normalize,
                                          **arguments)
    layers = get_all_layers(network)
    normalized = [isinstance(layer, BatchNormLayer) for layer in layers]
    assert sum(normalized) == expected
    assert network.output_shape == (None, 10)


def test_batches(example, arrays):
    batches = example("network").batches
    x, y = np.arange(50), arrays["y_test"]
    stream = batches(x, y, 20, seed=4)
    again = batches(x, y, 20, seed=4)
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
def test_steps_to_test(example, steps, expected):
    assert example("network").steps_to_test(steps) == expected


@needs_compiler  # for 700 steps take minutes without
def test_batch_norm_learns_real_digits_sooner(example, real_digits, capsys,
                                              tmp_path):
    example("mnist", "--steps", 700, "--statistics-steps", 0, "--quiet",
            "--output", tmp_path / "mnist.png").main()
    rows = table(capsys.readouterr().out)
    assert [row.step for row in rows] == [100, 200, 300, 500, 700]
    assert all(row.with_ > row.without for row in rows)
    assert all(row.with_ > 0.85 for row in rows if row.step >= 500)
