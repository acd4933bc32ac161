"""The example mnist_mpi.py, under mpiexec and without, on made-up digits."""

import importlib
import re
import sys

import numpy as np
import pytest
from helpers.examples import EXAMPLES, environment
from helpers.jobs import MPIEXEC, finish, unlaunched


@pytest.fixture
def run(needs_mpi, tmp_path):
    """Runs the example on some ranks, or without mpiexec on None."""
    def run_ranks(ranks, *arguments):
        command = [sys.executable, "-m", "mpi4py",
                   str(EXAMPLES / "mnist_mpi.py"), *map(str, arguments)]
        if ranks is None:
            command[1:3] = []
        else:
            command[:0] = [MPIEXEC, "-n", str(ranks)]
        variables = unlaunched(environment())
        variables["THEANO_FLAGS"] += ",mode=FAST_COMPILE,cxx="
        variables["OMP_NUM_THREADS"] = "1"
        return finish(command, tmp_path, variables)
    return run_ranks


def rows(process):
    """Steps, training losses and test accuracies."""
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("training loss") == 1
    return [tuple(map(float, row)) for row in re.findall(
        r"^ +(\d+) +(\d+\.\d{4}) +([01]\.\d{4})$", process.stdout, re.M)]


def difference(process):
    """What it says about one process: how far off that is."""
    [found] = re.findall(r"^After \d+ steps, it matches one process .* "
                         r"differ by (\S+) of the largest at most\.$",
                         process.stdout, re.M)
    return float(found)


@pytest.fixture
def uneven(arrays, tmp_path):
    """Digits whose numbers are odd."""
    path = tmp_path / "uneven.npz"
    np.savez(str(path), **{key: array[1:] for key, array in arrays.items()})
    return path


@pytest.mark.jobs
def test_two_processes(run, uneven):
    arguments = ["--data", uneven, "--steps", 101, "--batch-size", 21]
    two = run(2, *arguments)
    found = rows(two)
    assert [row[0] for row in found] == [100, 101]
    assert found[-1][2] > 0.9
    assert two.stdout.startswith("2 processes\n")
    assert difference(two) <= 1e-4
    # One progress bar.
    assert two.stderr.count("| 0/101 ") == 1
    assert "101/101" in two.stderr
    [tested] = re.findall(r"^Test accuracy with .*: ([01]\.\d{4})$",
                          two.stdout, re.M)
    assert 0.9 < float(tested) <= 1

    one = run(None, *arguments, "--quiet")
    assert one.stdout.startswith("1 process; start it with mpiexec -n 2 ")
    assert "matches" not in one.stdout
    assert "steps/s" not in one.stderr
    np.testing.assert_allclose(rows(one), found, atol=2e-4)
    assert "of all training digits: %s\n" % tested in one.stdout


@pytest.mark.jobs
def test_parts_of_one_digit(run, uneven):
    process = run(3, "--data", uneven, "--steps", 2, "--batch-size", 3,
                  "--quiet")
    assert [row[0] for row in rows(process)] == [2]
    assert process.stdout.startswith("3 processes\n")
    assert difference(process) <= 1e-4


@pytest.mark.jobs
@pytest.mark.parametrize("arguments, code, message", [
    (["--steps", "many"], 2, "--steps: invalid int value"),
    (["--data", "nowhere"], 1, "nowhere: there is no such file"),
])
def test_wrong_arguments(run, arguments, code, message):
    """All ranks end, and one of them tells."""
    process = run(2, *arguments)
    assert process.returncode == code
    assert process.stderr.count("mnist_mpi.py: error: ") == 1
    assert process.stderr.count(message) == 1
    assert "Traceback" not in process.stderr
    assert "processes" not in process.stdout


# --- parts of the program --------------------------------------------------

@pytest.fixture
def example(monkeypatch):
    """A function that imports the example and gives it a command line."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def import_example(*arguments):
        monkeypatch.setattr(sys, "argv", ["mnist_mpi.py", *arguments])
        return importlib.import_module("mnist_mpi")
    return import_example


@pytest.mark.parametrize("arguments, message", [
    ("--batch-size 1", "--batch-size: expected 2 or more"),
    ("--steps 0", "--steps: expected 1 or more"),
    ("--learning-rate 0", "--learning-rate: expected a positive"),
    ("--learning-rate nan", "--learning-rate: expected a positive"),
    ("--seed -1", "--seed: expected 0"),
    ("--seed 4294967296", "--seed: expected 0"),
    ("more", "unrecognized arguments"),
])
def test_bad_arguments(example, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        example(*arguments.split()).parse_arguments()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("size, ranks, message", [
    (301, 2, "is 301, but there are 300 digits to train on"),
    (2, 3, "is 2, but each of 3 processes is to have a digit"),
])
def test_batch_size_that_does_not_do(example, npz, size, ranks, message):
    mnist_mpi = example("--batch-size", str(size), "--data", str(npz))
    with pytest.raises(SystemExit, match=message):
        mnist_mpi.load(mnist_mpi.parse_arguments(), ranks)


@pytest.mark.parametrize("rank, factor", [(0, 1.001), (1, 1.001), (1, np.nan)])
def test_check_finds_a_difference(
        example, npz, quick, capsys, rank, factor):
    mnist_mpi = example("--steps", "2", "--data", str(npz))
    args = mnist_mpi.parse_arguments()
    data = mnist_mpi.load(args, 2)
    network = mnist_mpi.compile_network(args.learning_rate, args.seed, None)
    stream = mnist_mpi.batches(data.x_train, data.y_train, 60, args.seed)
    for _ in range(2):
        network.train(*next(stream))
    found = [mnist_mpi.values_of(network) for _ in range(2)]
    mnist_mpi.check(found, data, args)
    assert "After 2 steps, it matches" in capsys.readouterr().out
    found[rank][-2] = found[rank][-2] * factor
    with pytest.raises(SystemExit, match="error: after 2 steps"):
        mnist_mpi.check(found, data, args)
