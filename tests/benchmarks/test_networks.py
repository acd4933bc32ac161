"""The whole networks of the benchmarks, and how cost grows."""

import importlib
import re
import sys
from pathlib import Path

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["cnn", "resnet", "lstm"]
# PyTorch's LSTM has two biases.
MORE_IN_TORCH = {"cnn": 0, "resnet": 0, "lstm": 4 * 128}


@pytest.fixture
def bench(monkeypatch):
    """Import a module of the benchmarks."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module("benchmarks." + name)


def sizes(bench, name, way):
    """Return the number of trainable values, and that of all others."""
    networks, layers = bench("networks"), bench("layers")
    last = networks.built(name, T.TensorType("float32", (False,) * len(
        networks.NETWORKS[name].shape))(), way)
    total, trainable = lasagne.layers.count_params(last), sum(
        param.get_value().size for param in lasagne.layers.get_all_params(
            last, trainable=True))
    assert way in layers.WAYS
    return trainable, total - trainable


@pytest.mark.parametrize("name", NAMES)
def test_all_normalize_alike(bench, name):
    ours = sizes(bench, name, "ours")
    assert ours == sizes(bench, name, "gist") == sizes(bench, name, "lasagne")
    # The LSTM has states to start from.
    assert sizes(bench, name, "without")[1] == (256 if name == "lstm" else 0)
    assert sizes(bench, name, "without") != ours


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["without", "ours"])
def test_torch_has_the_same_network(bench, name, way):
    pytest.importorskip("torch")
    torch = bench("torch_networks")
    network = torch.build(name, way == "ours")
    assert sum(param.numel() for param in network.parameters()) == (
        sizes(bench, name, way)[0] + MORE_IN_TORCH[name])
    networks = bench("networks")
    step = torch.step(name, way == "ours", networks.random_batch(name),
                      networks.RATE, networks.MOMENTUM)
    assert np.isfinite(step())


def test_layers_of_others(bench, quick, rng):
    """Ours and the gist's agree, and so does later Lasagne's, but epsilon."""
    batch = rng.normal(3, 2, size=(20, 4)).astype("float32")
    x, outputs, averages = T.fmatrix(), {}, {}
    for way in ("ours", "gist", "lasagne"):
        lasagne.random.set_rng(np.random.RandomState(1))
        layer = bench("layers").WAYS[way][0](lasagne.layers.DenseLayer(
            lasagne.layers.InputLayer((None, 4), x), 3))
        train = theano.function([x], lasagne.layers.get_output(layer))
        outputs[way] = train(batch)
        averages[way] = [
            param.get_value().ravel() for param in layer.get_params()
            if param.name.endswith(("mean", "std", "spread"))][-2:]
    np.testing.assert_allclose(outputs["gist"], outputs["ours"], 1e-4, 1e-5)
    np.testing.assert_allclose(outputs["lasagne"], outputs["ours"], 0.05, 0.05)
    np.testing.assert_allclose(averages["gist"], averages["ours"], 1e-4)
    np.testing.assert_allclose(averages["lasagne"][0], averages["ours"][0],
                               1e-4)


class Remote:
    """A program whose turns take the same time."""

    def __init__(self, seconds):
        self.seconds = seconds

    def ask(self, question):
        return True

    def turn(self):
        return [self.seconds]

    def clock(self):
        return 0.

    def close(self):
        pass


@pytest.mark.parametrize("ours, verdict", [(1.05, "yes"), (1.2, "**missed**")])
def test_report(bench, monkeypatch, ours, verdict):
    networks = bench("networks")
    seconds = {"ours": ours}
    monkeypatch.setattr(networks, "start", lambda module, env, way, **_:
                        (None, seconds.get(way, 1.)))
    monkeypatch.setattr(networks, "RemoteProgram", Remote)
    monkeypatch.setattr("benchmarks.speed.is_quiet", lambda others: True)
    found = networks.measure(["cnn"], 1, 3)
    assert set(found["cnn"]["seconds"]) >= {"without", "ours", "ours-kept"}
    found["cnn"]["others"] = [0, 0, 0]
    text = "\n".join(bench("report")._networks(found))
    goal, = (line for line in text.splitlines()
             if line.startswith("| cnn, bnlasagne / no batch norm"))
    assert verdict in goal


def test_growth(bench, quick, monkeypatch, tmp_path):
    """In this process, without C and with small sizes."""
    growth = bench("growth")
    small = growth.CURVES["positions"]._replace(shape=(2, 3, None), most=3)
    assert small.sizes() == [1, 2, 3]
    assert small.case(2).shape == (2, 3, 2) and small.case(2).axes == (0, 2)
    monkeypatch.setattr(growth, "CURVES", {"positions": small})
    monkeypatch.setattr(growth, "run_module", lambda name, options, env:
                        growth._measure_here(**options))
    monkeypatch.setattr(growth, "PEERS", {"ours": "a", "limit-twice": "b"})
    peers = bench("peers").PEERS
    monkeypatch.setitem(peers, "limit-twice", peers["ours"])
    with theano.configparser.change_flags(floatX="float32"):
        found = growth.measure(1, [1], [1, 2])
    assert found["curves"]["positions"]["1"]["values"] == [6, 12, 18]
    assert [len(pairs) for pairs in found["layers"].values()] == [2, 2]
    growth.draw(tmp_path / "growth.png", found)
    assert (tmp_path / "growth.png").stat().st_size > 1000
    text = "\n".join(bench("report")._growth(found))
    assert "| positions" in text and text.count("\n| ") >= 4


@pytest.mark.parametrize("least, most, sizes", [
    (1, 8, [1, 2, 3, 4, 6, 8]), (2, 5, [2, 3, 4]), (3, 12, [3, 4, 6, 8, 12])])
def test_sizes(bench, least, most, sizes):
    curve = bench("growth").Curve("", (None,), least, most)
    assert curve.sizes() == sizes


def test_libraries_take_turns(bench, monkeypatch, capsys):
    blas = bench("blas")
    calls = []

    def compile_step(name, way):
        flags = theano.config.blas.ldflags
        return lambda *batch: calls.append(flags)

    monkeypatch.setattr(blas, "STEPS", 3)
    monkeypatch.setattr(blas.networks, "compile_step", compile_step)
    with theano.configparser.change_flags(
            **{"blas.ldflags": "-L/a -lopenblas", "floatX": "float32"}):
        blas.main(["cnn"])
    assert calls[2:] == ["-L/a -lopenblas", ""] * 3
    assert "ms with -lopenblas" in capsys.readouterr().out
    with theano.configparser.change_flags(**{"blas.ldflags": ""}), \
            pytest.raises(SystemExit, match="no BLAS"):
        blas.main([])


def test_loops_take_turns(bench, monkeypatch, capsys):
    loops = bench("loops")
    monkeypatch.setattr(loops, "CALLS", 3)
    ways = []

    def compiled():
        way = sys.modules.get(loops.EXTENSION, "C") or "Python"
        return lambda: ways.append(way)

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, loops.EXTENSION, "C")
        patch.setattr(loops.scan_module, "scan_perform_ext", "C",
                      raising=False)
        loops._compare("a sum", compiled)
        assert loops.scan_module.scan_perform_ext == "C"
    assert ways[2:] == ["C", "Python"] * 3
    assert re.search("a sum: .* ms in C, .* ms in Python: .* times",
                     capsys.readouterr().out)
