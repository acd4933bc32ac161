"""The examples gan.py and accumulate.py, in this process and without C."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def run(example):
    """Runs an example with arguments."""
    return lambda name, *arguments: example(name, *arguments).main()


def stored(network):
    return [param.get_value()
            for param in network.get_params(batch_norm_stat=True)]


def test_gan(run, npz, tmp_path, capsys):
    path = tmp_path / "samples.png"
    assert run("gan", "--steps", 2, "--batch-size", 20, "--quiet",
                   "--data", npz, "--output", path) == 0
    with Image.open(str(path)) as image:
        assert (image.format, image.size) == ("PNG", (560, 560))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["steps", "1", "2"]


def test_gan_updates_one_network_at_a_time(example, rng):
    gan = example("gan")
    networks = gan.build_networks(1)
    functions = gan.compile_functions(networks, 0.001)
    layers = [gan.batch_norm_layers(network) for network in networks]
    assert list(map(len, layers)) == [2, 1]

    def averages():
        return [np.concatenate([value.ravel() for layer in part
                                for value in stored(layer)])
                for part in layers]
    before = averages()
    functions.discriminate(rng.uniform(size=(10, 784)), gan.draw(rng, 10))
    middle = averages()
    assert_array_equal(middle[0], before[0])
    assert np.all(middle[1] != before[1])
    functions.generate(gan.draw(rng, 10))
    after = averages()
    assert np.all(after[0] != middle[0])
    assert_array_equal(after[1], middle[1])


def test_accumulate(run, npz, tmp_path, capsys):
    path = tmp_path / "curves.png"
    assert run("accumulate", "--steps", 2, "--quiet", "--data", npz,
                   "--output", path) == 0
    with Image.open(str(path)) as image:
        assert image.format == "PNG"
    row = next(line for line in capsys.readouterr().out.splitlines()
               if line.strip().startswith("2 "))
    full, exact = row.split()[1:3]
    assert full == exact


@pytest.mark.parametrize("name, arguments, message", [
    ("gan", ["--steps", "0"], "--steps: expected 1 or more"),
    ("gan", ["--batch-size", "1"], "--batch-size: expected 2 or more"),
    ("gan", ["--output", "a.jpg"], "--output: expected a name that ends"),
    ("accumulate", ["--learning-rate", "-1"], "--learning-rate: expected"),
    ("accumulate", ["--seed", "-1"], "--seed: expected 0 to"),
])
def test_wrong_arguments(run, capsys, name, arguments, message):
    with pytest.raises(SystemExit):
        run(name, *arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name, arguments, message", [
    ("gan", ["--batch-size", 301], "--batch-size is 301"),
])
def test_data_that_does_not_do(run, npz, name, arguments,
                               message):
    with pytest.raises(SystemExit, match=message):
        run(name, *(["--data", npz] + arguments))
