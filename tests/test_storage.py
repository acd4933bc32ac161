"""Parameters in files."""

import io
import os
import pickle
import re
import zipfile
from pathlib import Path

from bnlasagne import (
    BatchNormLayer,
    batch_norm,
    fold_batch_norm,
    load_network,
    save_network,
)

import numpy as np
import pytest
import theano
from common import later
from lasagne.layers import (
    CustomRecurrentLayer,
    DenseLayer,
    GRULayer,
    InputLayer,
    get_all_param_values,
    get_all_params,
    get_output,
)
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("quick")



# --- what the tests share --------------------------------------------------

def build(names=("fc", None, "out"), units=4):
    layer = InputLayer((None, 3))
    for name in names[:-1]:
        layer = batch_norm(DenseLayer(layer, units, name=name))
    return DenseLayer(layer, 2, name=names[-1])


def randomize(network, rng):
    for param in get_all_params(network):
        shape = param.get_value().shape
        param.set_value(np.asarray(rng.uniform(0.5, 2, shape), param.dtype))
    return network


def bits(network):
    return [(param.dtype, param.get_value().tobytes())
            for param in get_all_params(network)]


def saved(network):
    file = io.BytesIO()
    save_network(network, file)
    return file.getvalue()


def load(network, content):
    load_network(network, io.BytesIO(content))


# --- there and back --------------------------------------------------------

def recurrent():
    step = InputLayer((None, 3)), InputLayer((None, 4))
    layer = CustomRecurrentLayer(
        InputLayer((None, 5, 3)),
        batch_norm(DenseLayer(step[0], 4), name="in"),
        DenseLayer(step[1], 4, nonlinearity=None))
    return DenseLayer(layer, 2, name="in")


def several_outputs():
    layer = build()
    return [DenseLayer(layer, 3), layer.input_layer, DenseLayer(layer, 1)]


def shared():
    layer = DenseLayer(InputLayer((None, 3)), 3)
    return DenseLayer(BatchNormLayer(layer), 3, W=layer.W, name="other")


NETWORKS = {
    "named": build,
    "unnamed": lambda: build((None, None, None)),
    "of equal names": lambda: build(("fc", "fc", "fc")),
    "strange names": lambda: build(("block/fc", "..", "f c.\u00fc:0")),
    "not quite equal names": lambda: build(("1.DenseLayer", "fc", "Fc")),
    "recurrent": recurrent,
    "GRU": lambda: DenseLayer(GRULayer(InputLayer((None, 5, 3)), 4), 2),
    "several outputs": several_outputs,
    "shared": shared,
    "folded": lambda: fold_batch_norm(build(("fc", "fc", "out"))),
    "without parameters": lambda: InputLayer((None, 3)),
    "left out": lambda: BatchNormLayer((None, 3), gamma=None, beta=None),
}


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_there_and_back(rng, floatX, kind):
    first = randomize(NETWORKS[kind](), rng)
    second = randomize(NETWORKS[kind](), rng)
    assert bits(first) != bits(second) or kind == "without parameters"
    load(second, saved(first))
    assert bits(first) == bits(second)


@later
def test_expressions(rng, float64):
    def make():
        gamma = theano.shared(np.ones((1, 4)), broadcastable=(True, False))
        W = theano.shared(np.ones((3, 4)), "W")
        layer = DenseLayer(InputLayer((None, 3)), 4, W=2 * W + gamma.sum())
        return DenseLayer(BatchNormLayer(layer, gamma=gamma ** 2), 3,
                          W=layer.W.T)

    first, second = randomize(make(), rng), randomize(make(), rng)
    load(second, saved(first))
    assert bits(first) == bits(second)
    batch = rng.normal(size=(2, 3))
    assert_array_equal(*(get_output(network, batch, deterministic=True).eval()
                         for network in (first, second)))


def test_output_and_statistics(rng, floatX):
    batch = np.asarray(rng.normal(size=(5, 3)), floatX)
    first = randomize(build(), rng)
    theano.function([], get_output(first, batch))()
    second = build()
    load(second, saved(first))
    assert_array_equal(*(get_output(network, batch, deterministic=True).eval()
                         for network in (first, second)))
    third = fold_batch_norm(second)
    fourth = randomize(fold_batch_norm(build()), rng)
    load(fourth, saved(third))
    assert_array_equal(*(get_output(network, batch).eval()
                         for network in (third, fourth)))


@pytest.mark.parametrize("stored, used", [("float32", "float64"),
                                          ("float64", "float32")])
def test_widths(rng, stored, used):
    with theano.configparser.change_flags(floatX=stored):
        first = randomize(build(), rng)
    with theano.configparser.change_flags(floatX=used):
        second = build()
    content = saved(first)
    for value in np.load(io.BytesIO(content)).values():
        assert value.dtype == stored
    load(second, content)
    for param, value in zip(get_all_params(second),
                            get_all_param_values(first)):
        assert param.dtype == used
        assert_array_equal(param.get_value(), value.astype(used))


def test_options_stay(rng, float64):
    """What is no parameter is not stored: it is as the network was built."""
    network = BatchNormLayer((None, 3), epsilon=0.5, name="n")
    other = BatchNormLayer((None, 3), epsilon=0.25, name="n")
    load(other, saved(randomize(network, rng)))
    assert other.epsilon == 0.25
    assert_array_equal(other.std.get_value(), network.std.get_value())


# --- what is in a file -----------------------------------------------------

def names(network):
    with np.load(io.BytesIO(saved(network)), allow_pickle=False) as arrays:
        return sorted(arrays.files)


def test_readable_by_numpy(rng, floatX, tmp_path):
    network = randomize(build(("a", None, "b")), rng)
    save_network(network, tmp_path / "it.npz")
    with np.load(str(tmp_path / "it.npz"), allow_pickle=False) as arrays:
        assert arrays.files == [
            "a.W", "a_bn.mean", "a_bn.std", "a_bn.beta", "a_bn.gamma",
            "3.DenseLayer.W", "4.BatchNormLayer.mean", "4.BatchNormLayer.std",
            "4.BatchNormLayer.beta", "4.BatchNormLayer.gamma", "b.W", "b.b"]
        for param, array in zip(get_all_params(network), arrays.values()):
            assert array.dtype == param.dtype
            assert_array_equal(array, param.get_value())


def test_equal_names():
    assert names(build(("a", "a", "b"))) == sorted(
        ["1.a.W", "3.a.W"] + ["%s.a_bn.%s" % (number, name) for number in "24"
                              for name in ("mean", "std", "beta", "gamma")] +
        ["b.W", "b.b"])


def test_names_within_layers():
    found = names(recurrent())
    assert len(found) == len(set(found)) == 10
    assert any(re.match(r"\d+\.in\.W$", name) for name in found)
    assert any(re.match(r"in\.mean$|\d+\.in\.mean$", name) for name in found)


def test_names_that_would_be_equal():
    layer = DenseLayer(InputLayer((None, 3)), 3)
    layer = DenseLayer(layer, 3, name="1.DenseLayer")
    file = io.BytesIO()
    with pytest.raises(ValueError, match="parameters would have the same name"
                                         ".*1.DenseLayer.W"):
        save_network(layer, file)
    assert not file.getvalue()


# --- files -----------------------------------------------------------------

class PathLike(object):
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


@pytest.mark.parametrize("kind", [str, Path, PathLike])
@pytest.mark.parametrize("name", ["it.npz", "it", "it.params", "no\u00eb .z"])
def test_paths(rng, tmp_path, kind, name):
    network = randomize(build(), rng)
    path = kind(tmp_path / name)
    save_network(network, path)
    assert os.listdir(str(tmp_path)) == [name]
    other = build()
    load_network(other, path)
    assert bits(network) == bits(other)


def test_relative_path(rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = randomize(build(), rng)
    save_network(network, "it.npz")
    assert os.listdir(".") == ["it.npz"]
    load_network(build(), "it.npz")


def test_file_objects(rng, tmp_path):
    network, other = randomize(build(), rng), build()
    with open(str(tmp_path / "it"), "w+b") as file:
        save_network(network, file)
        file.seek(0)
        load_network(other, file)
        assert not file.closed
    assert bits(network) == bits(other)


def test_takes_the_place_of_another(rng, tmp_path):
    path = tmp_path / "it.npz"
    path.write_bytes(b"older")
    network = randomize(build(), rng)
    save_network(network, path)
    save_network(network, path)
    load_network(build(), path)
    assert os.listdir(str(tmp_path)) == ["it.npz"]
    # With the rights that a new file has.
    (tmp_path / "new").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("before", [b"older", None])
def test_interrupted(rng, tmp_path, monkeypatch, error, before):
    def savez(file, **arrays):
        with open(file, "wb") as stream:
            stream.write(b"PK half of it")
        raise error("interrupted")

    path = tmp_path / "it.npz"
    if before:
        path.write_bytes(before)
    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(error):
        save_network(build(), path)
    assert os.listdir(str(tmp_path)) == (["it.npz"] if before else [])
    assert not before or path.read_bytes() == before


def test_cannot_be_written(tmp_path):
    with pytest.raises(OSError):
        save_network(build(), tmp_path / "nowhere" / "it.npz")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"")
    with pytest.raises(OSError):
        save_network(build(), tmp_path / "folder")
    assert os.listdir(str(tmp_path)) == ["folder"]


def test_cannot_be_read(tmp_path):
    network = build()
    before = bits(network)
    for path in (tmp_path / "missing.npz", tmp_path):
        with pytest.raises(OSError):
            load_network(network, path)
    assert bits(network) == before


@pytest.mark.parametrize("function", [save_network, load_network])
def test_no_network(function, tmp_path):
    for network in ("network", [build(), None]):
        with pytest.raises(TypeError, match="_network.*: network must be a "
                                            "Layer or a list of them"):
            function(network, tmp_path / "it.npz")
    assert not os.listdir(str(tmp_path))


# --- what does not fit -----------------------------------------------------

def arrays(network):
    return dict(np.load(io.BytesIO(saved(network))))


def npz(content):
    file = io.BytesIO()
    np.savez(file, **content)
    return file.getvalue()


@pytest.mark.parametrize("change, row", [
    (lambda found: found.pop("fc.W"), r"! -  +fc.W: \(3, 4\)"),
    (lambda found: found.pop("out.b"), r"! -  +out.b: \(2,\)"),
    (lambda found: found.update(more=np.ones(3)), r"! more: \(3,\)  +-"),
    (lambda found: found.update({"fc.b": np.ones(4)}), r"! fc.b: \(4,\)  +-"),
    (lambda found: found.update({"fc.W": np.ones((4, 3))}),
     r"! fc.W: \(4, 3\)  +fc.W: \(3, 4\)"),
    (lambda found: found.update({"fc_bn.std": np.ones(4)}),
     r"! fc_bn.std: \(4,\)  +fc_bn.std: \(1, 4\)"),
    (lambda found: found.update({"out.b": np.array(1.)}),
     r"! out.b: \(\)  +out.b: \(2,\)"),
])
def test_misfits(rng, floatX, change, row):
    network = randomize(build(), rng)
    found = {name: value + 1 for name, value in arrays(network).items()}
    change(found)
    before = bits(network)
    with pytest.raises(ValueError) as caught:
        load(network, npz(found))
    text = str(caught.value)
    assert text.startswith("load_network(): the file does not fit the network,"
                           " where marked:\n  file")
    assert re.search("\n" + row + r"(\n|$)", text)
    assert text.count("\n!") == 1
    # Those that fit are listed, too.
    assert re.search(r"\n  fc_bn.mean: \(1, 4\)  +fc_bn.mean: \(1, 4\)", text)
    assert bits(network) == before


def test_another_network(rng):
    network = randomize(build(), rng)
    for other in (build(("fc", "fc2", "out")), build(units=5), build()
                  .input_layer, InputLayer((None, 3))):
        before = bits(other)
        with pytest.raises(ValueError, match="load_network.*does not fit"):
            load(other, saved(network))
        assert bits(other) == before


@pytest.mark.parametrize("value", [
    np.array(["a", "b"]), np.array([True, False]), np.array([1j, 2])])
def test_no_numbers(rng, value):
    network = randomize(build(), rng)
    before = bits(network)
    with pytest.raises(ValueError, match="load_network.*out.b must be an "
                                         "array of numbers"):
        load(network, npz(dict(arrays(network), **{"out.b": value})))
    assert bits(network) == before


def test_other_types_of_numbers(float64):
    network = build()
    load(network, npz({name: np.ones(value.shape, dtype) for (
        name, value), dtype in zip(arrays(network).items(), [
            "float32", "int8", "uint16", "float16", ">f8", "<i4"] * 2)}))
    for value in get_all_param_values(network):
        assert value.dtype == "float64" and np.all(value == 1)


# --- files that are no sound ones ------------------------------------------

class Trap(object):
    """Runs code when it is read from a pickle."""

    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def test_objects_are_not_read(rng, tmp_path):
    network = randomize(build(), rng)
    before = bits(network)
    trap = np.array([Trap(), 0], object)
    content = npz(dict(arrays(network), **{"out.b": trap}))
    pure = pickle.dumps(Trap())
    array = io.BytesIO()
    np.save(array, trap, allow_pickle=True)
    for file in (content, pure, array.getvalue()):
        (tmp_path / "it.npz").write_bytes(file)
        for source in (io.BytesIO(file), tmp_path / "it.npz"):
            with pytest.raises(ValueError, match="no sound file of arrays"):
                load_network(network, source)
    assert not Trap.sprung
    assert bits(network) == before
    # The trap would work.
    pickle.loads(pure)
    assert Trap.sprung
    Trap.sprung = False


def test_other_files(rng, tmp_path):
    network = randomize(build(), rng)
    before = bits(network)
    single, archive = io.BytesIO(), io.BytesIO()
    np.save(single, np.ones(3))
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("fc.W", b"not an array")
    for content in (b"", b"PK", b"text", single.getvalue(), bytes(1000),
                    archive.getvalue(), pickle.dumps([1, 2])):
        (tmp_path / "it.npz").write_bytes(content)
        for source in (io.BytesIO(content), tmp_path / "it.npz"):
            with pytest.raises(ValueError, match="load_network.*"):
                load_network(network, source)
    with pytest.raises(ValueError, match="it.npz is no sound file"):
        load_network(network, tmp_path / "it.npz")
    assert bits(network) == before


def small(value):
    layer = BatchNormLayer((None, 2), gamma=None, beta=None, name="n")
    for param in layer.get_params():
        param.set_value(np.full_like(param.get_value(), value))
    return layer


def test_truncated(floatX):
    content = saved(small(3))
    layer = small(1)
    before = bits(layer)
    for length in range(len(content)):
        with pytest.raises(ValueError):
            load(layer, content[:length])
    assert bits(layer) == before
    load(layer, content)
    assert bits(layer) == bits(small(3))


@pytest.mark.parametrize("flip", [1, 0x80, 0xff])
def test_corrupted(float64, flip):
    content = saved(small(3))
    layer = small(1)
    before, right = bits(layer), bits(small(3))
    refused = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= flip
        try:
            load(layer, bytes(damaged))
        except ValueError:
            refused += 1
            assert bits(layer) == before
        else:
            # Dates and the like.
            assert bits(layer) == right
            layer = small(1)
    assert refused > len(content) / 2


def test_damaged_file_is_closed(tmp_path):
    """Warnings about files that were left open are errors here."""
    path = tmp_path / "it.npz"
    content = saved(small(3))
    for length in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError):
            load_network(small(1), path)


def test_many_layers(rng, floatX):
    layer = InputLayer((None, 3))
    for number in range(40):
        layer = batch_norm(DenseLayer(layer, 3, name="fc%d" % (number % 20)))
    content = saved(randomize(layer, rng))
    expected = get_all_param_values(layer)
    load(randomize(layer, rng), content)
    for actual, value in zip(get_all_param_values(layer), expected):
        assert_allclose(actual, value, rtol=0)


def test_corrupted_on_disk(tmp_path):
    """A file may then have the stream seek before its start."""
    content = saved(small(3))
    layer = small(1)
    before = bits(layer)
    path = tmp_path / "it.npz"
    for place in range(len(content) - 22, len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0xff
        path.write_bytes(damaged)
        try:
            load_network(layer, path)
        except ValueError:
            assert bits(layer) == before
        else:
            assert bits(layer) == bits(small(3))
            layer = small(1)


def test_names_in_bytes(tmp_path):
    path = os.fsencode(str(tmp_path / "it.npz"))
    save_network(small(3), path)
    layer = small(1)
    load_network(layer, path)
    assert bits(layer) == bits(small(3))


@pytest.mark.skipif(os.name == "nt", reason="modes are others there")
def test_mode_of_a_file_stays(tmp_path):
    path = tmp_path / "it.npz"
    path.write_bytes(b"")
    path.chmod(0o640)
    save_network(small(3), path)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["nowhere/it.npz", "folder"])
def test_error_names_the_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    path = str(tmp_path / name)
    with pytest.raises(OSError) as caught:
        save_network(small(3), path)
    assert caught.value.filename == os.path.realpath(path)
    assert str(caught.value).endswith(": %r" % os.path.realpath(path))
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_one_array(tmp_path):
    path = tmp_path / "it.npy"
    np.save(str(path), np.zeros(3))
    with pytest.raises(ValueError, match="one array only"):
        load_network(small(3), path)
