"""The example of gradient accumulation, on digits made up."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

# Some are fixtures, which pytest finds by name.
from test_examples import (  # noqa: F401
    EXAMPLES,
    arrays,
    assert_shows,
    digits,
    environment,
    example,
    npz,
    run_example,
    succeed,
)

COLOURS = (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)


@pytest.fixture
def accumulate(example):  # noqa: F811
    return example("accumulate", "--quiet", "--steps", "3", "--seed", "2")


@pytest.fixture
def batch(rng):
    return (rng.normal(size=(60, 1, 28, 28)).astype("float32"),
            (np.arange(60) % 10).astype("int32"))


def table(output):
    """The rows that the example printed, as lists of eight numbers."""
    rows = re.findall(r"^ +(\d+)" + r" +([01]\.\d{4})" * 4
                      + r" +(\d\S*)" * 3 + "$", output, re.M)
    return [list(map(float, row)) for row in rows]


def check_picture(path):
    # The first curve is pale and lies below the others.
    assert_shows(path, *COLOURS[1:])


def test_run(npz, tmp_path):  # noqa: F811
    process = run_example("accumulate.py", "--data", npz, "--steps", 40,
                          cwd=tmp_path)
    output = succeed(process)
    rows = table(output)
    assert [row[0] for row in rows] == [10, 20, 30, 40]
    for _, full, _, exact, _, means, same, small in rows:
        # To rounding in single precision, by which one of 50 digits may fall.
        assert abs(full - exact) < 0.021
        assert same < 1e-4 < means < small < 10
    assert rows[-1][1] > 0.9
    assert len(re.search(r"^ms/step(( +\d+\.\d)+)$", output, re.M)
               .group(1).split()) == 4
    assert output.endswith("\nSaved the picture as accumulate.png.\n")
    check_picture(tmp_path / "accumulate.png")
    assert "40/40" in process.stderr and "steps/s" in process.stderr


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is not a signal there")
def test_quiet_and_interrupted(npz, tmp_path):  # noqa: F811
    with subprocess.Popen(
            [sys.executable, str(EXAMPLES / "accumulate.py"), "--data",
             str(npz), "--steps", "1000000", "--quiet", "--output", "a.png"],
            cwd=str(tmp_path), env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            universal_newlines=True,
            # Where the tests run in the background, SIGINT may be ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            before = [process.stdout.readline() for _ in range(4)]
            process.send_signal(signal.SIGINT)
            after, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert "steps/s" not in errors
    assert table("".join(before))[0][0] == 10
    assert re.search(r"Interrupted after \d+ steps\.\nms/step", after)
    check_picture(tmp_path / "a.png")


@pytest.mark.parametrize("arguments, message", [
    ("--steps 0", "--steps: expected 1 or more"),
    ("--steps many", "--steps: invalid int value"),
    ("--seed -1", "--seed: expected 0"),
    ("--seed 4294967296", "--seed: expected 0"),
    ("--output a.pdf", "--output: expected a name"),
    ("--output nowhere/a.png", "--output: expected a folder"),
    ("more", "unrecognized arguments"),
])
def test_bad_arguments(example, capsys, arguments, message):  # noqa: F811
    module = example("accumulate", *arguments.split())
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_data_that_cannot_be_used(example):  # noqa: F811
    module = example("accumulate", "--data", "nowhere")
    with pytest.raises(SystemExit, match="^accumulate.py: error: nowhere: "
                       "there is no such file or folder$"):
        module.main()


def test_few_data(example, digits, npz, monkeypatch):  # noqa: F811
    module = example("accumulate")
    data = digits.load(str(npz))
    data = data._replace(x_train=data.x_train[:59], y_train=data.y_train[:59])
    monkeypatch.setattr(digits, "load", lambda _: data)
    with pytest.raises(SystemExit, match="60 digits, but there are 59 digits"):
        module.main()


def test_micro_batches(accumulate):
    x, y = np.arange(60), np.arange(60, 120)
    parts = accumulate.micro_batches(x, y)
    assert [len(part) for pair in parts for part in pair] == [10] * 12
    for whole, cut in zip((x, y), zip(*parts)):
        assert_array_equal(np.concatenate(cut), whole)


@pytest.mark.parametrize("steps, expected", [
    (1, [1]),
    (10, [10]),
    (35, [10, 20, 30, 35]),
    (150, [10, 20, 30, 50, 70, 100, 150]),
])
def test_steps_to_test(accumulate, steps, expected):
    assert accumulate.steps_to_test(steps) == expected


def test_networks(accumulate, batch, float64, quick):
    lasagne_params = accumulate.lasagne.layers.get_all_param_values
    networks = accumulate.compile_networks(seed=2)
    starts = [lasagne_params(network.output) for network in networks]
    for start in starts[1:]:
        for value, expected in zip(start, starts[0]):
            assert_array_equal(value, expected)
    for _ in range(2):
        assert len(accumulate.timed_steps(networks, batch)) == 4
    full, means, exact, small = (
        lasagne_params(network.output) for network in networks)
    # hidden1.W, mean and std: the last is no different after one step alone.
    moved = [np.abs(value - expected).max()
             for value, expected in zip(full, starts[0])]
    assert min(moved) > 1e-5
    for value, expected in zip(exact, full):
        assert_allclose(value, expected, rtol=1e-9, atol=1e-12)
    for other in means, small:
        assert not np.allclose(other[0], full[0], rtol=0, atol=1e-7)
    accuracies = [network.test(*batch) for network in networks]
    assert accuracies[2] == accuracies[0]


def test_accumulated_averages(accumulate, batch, float64, quick):
    """After a step, those of the first layer are the full batch's."""
    full, means, _, small = networks = accumulate.compile_networks(seed=2)
    accumulate.timed_steps(networks, batch)
    first, accumulated, few = (
        accumulate.running_stds(network.output)
        for network in (full, means, small))
    assert len(first) == 300
    assert_allclose(accumulated[:100], first[:100], rtol=1e-12)
    assert not np.allclose(accumulated[100:], first[100:], rtol=1e-5)
    assert not np.allclose(few[:100], first[:100], rtol=1e-5)


def test_batches_of_10_are_the_first_of_60(
        accumulate, batch, float64, quick):
    small = accumulate.compile_networks(seed=2)[3]
    plain = accumulate.mnist.compile_network(True, 0.1, 2)
    small.train(*batch)
    plain.train(*(array[:10] for array in batch))
    for value, expected in zip(*map(
            accumulate.lasagne.layers.get_all_param_values,
            (small.output, plain.output))):
        assert_array_equal(value, expected)


def test_distances(accumulate, monkeypatch):
    stds = {"a": [1., 2.], "b": [1.1, 2.], "c": [1., 2.], "d": [0.5, 4.]}
    monkeypatch.setattr(accumulate, "running_stds",
                        lambda name: np.array(stds[name]))
    networks = [accumulate.mnist.Network(name, None, lambda x, y: 0.5)
                for name in stds]
    data = accumulate.digits.Digits(*[None] * 4)
    row = accumulate.results(networks, 7, data)
    assert row.step == 7 and row.accuracies == [0.5] * 4
    assert_allclose(row.distances, [0, 0.05, 0, 0.75])
    # Without any distance, nothing is left to draw on a logarithmic scale.
    same = row._replace(distances=[0.] * 4)
    assert accumulate.as_text(same).endswith("        0" * 3)


def test_picture_without_any_distance(accumulate, tmp_path):
    rows = [accumulate.Row(1, [0.1, 0.2, 0.3, 0.4], [0., 0.1, 0., 0.2])]
    accumulate.plot(rows, str(tmp_path / "a.png"), "caption")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
