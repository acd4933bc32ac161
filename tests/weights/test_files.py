"""Parameters in files."""

import gzip
import io
import os
import pickle
import re
import zipfile
from pathlib import Path

from bnlasagne import (
    BatchNormLayer,
    CumulativeAverage,
    batch_norm,
    fold_batch_norm,
    load_network,
    save_network,
)

import numpy as np
import pytest
import theano
from helpers.common import later
from lasagne.layers import (
    CustomRecurrentLayer,
    DenseLayer,
    GRULayer,
    InputLayer,
    Layer,
    get_all_param_values,
    get_all_params,
    get_output,
)
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

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


def with_values(value, name="s.n", layer_name="s"):
    """A layer with one more parameter, of any type."""
    class Other(Layer):
        def __init__(self, incoming, **kwargs):
            super(Other, self).__init__(incoming, **kwargs)
            self.n = theano.shared(value)
            self.params[self.n] = set()

    return Other(InputLayer((None, 3)), name=layer_name)


@pytest.mark.parametrize("value, found, expected", [
    (np.array([1, 2]), np.array([.5, 2]), "whole numbers from .* got 0.5"),
    (np.array([1, 2]), np.array([1, np.nan]), "whole numbers from .* got nan"),
    (np.array([1, 2], "int8"), np.array([1, 128]), "w.* to 127, .* got 128"),
    (np.array([1, 2], "uint8"), np.array([-1, 1]), "w.* 0 to 255, .* got -1"),
    (np.array([1., 2]), np.array([1, np.nan]), "numbers, got 1 NaN"),
    (np.array([1, 2], "float32"), np.array([1, 1e39]), "numbers, .*got 1e.39"),
    (np.array([True, False]), np.array([1, 0]), "truth values, .* int"),
    (np.array([1., 2]), np.array([True, False]), "numbers, .* bool"),
    (np.array([1., 2]), np.array([1, 2j]), "numbers, .* complex128"),
])
def test_what_a_type_cannot_hold(value, found, expected):
    layer = DenseLayer(with_values(value), 2, name="fc")
    before = bits(layer)
    values = dict(arrays(layer), **{"s.n": found})
    values["fc.b"] = np.ones(2)
    with pytest.raises(ValueError, match=r"^load_network\(\): s\.n must be an "
                                         "array of " + expected):
        load(layer, npz(values))
    assert bits(layer) == before


def test_saving_nan_warns(tmp_path):
    layer = with_values(np.array([1., np.nan]))
    with pytest.warns(RuntimeWarning, match=r"save_network\(\): there is NaN "
                                            r"in s\.n\. load_network\(\) w"):
        save_network(layer, tmp_path / "it.npz")
    with pytest.raises(ValueError, match=r"s\.n must be .*, got 1 NaN"):
        load_network(layer, tmp_path / "it.npz")


@pytest.mark.parametrize("value", [
    np.array([True, False]), np.array([1, 2j], "complex64"),
    np.array([1, 2], "int8"), np.array([1, 2], "float16")],
    ids=lambda value: value.dtype.name)
def test_what_is_saved_loads(value):
    first, second = with_values(value), with_values(np.zeros_like(value))
    load(second, saved(first))
    assert bits(second) == bits(first)


@pytest.mark.parametrize("value, found", [
    (sparse.csr_matrix(np.eye(3)), "csr_matrix"),
    (sparse.csc_matrix(np.eye(3)), "csc_matrix"), ([1, 2], "list")],
    ids=["csr", "csc", "list"])
def test_what_is_no_array(value, found):
    layer, file = with_values(value), io.BytesIO()
    expected = r"network\(\): s\.n must be an array of .*got a %s\." % found
    with pytest.raises(TypeError, match="save_" + expected):
        save_network(layer, file)
    assert not file.getvalue()
    with pytest.raises(TypeError, match="load_" + expected):
        load(layer, npz({"s.n": np.eye(3)}))


@pytest.mark.parametrize("name, error, expected", [
    ("a\0b", ValueError, r"Other 'a\\x00b' has a character in its name"),
    ("a\ud800", ValueError, r"Other 'a\\ud800' has a character in its name"),
    (5, TypeError, "Other 5 must have a name of text"),
    (b"a", TypeError, "Other b'a' must have a name of text"),
])
def test_names_that_no_file_can_have(tmp_path, name, error, expected):
    layer = with_values(np.zeros(3), layer_name=name)
    for file in (io.BytesIO(), str(tmp_path / "it.npz")):
        with pytest.raises(error, match=r"save_network\(\): " + expected):
            save_network(layer, file)
        assert not isinstance(file, io.BytesIO) or not file.getvalue()
    assert not os.listdir(str(tmp_path))


def test_packed_by_another_program():
    """Folders are members of the archive then."""
    layer = with_values(np.ones(3), layer_name="block/conv")
    file, packed = io.BytesIO(), io.BytesIO()
    save_network(layer, file)
    with zipfile.ZipFile(file) as archive, \
            zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as again:
        again.writestr("block/", b"")
        for name in archive.namelist():
            again.writestr(name, archive.read(name))
    layer.params.clear()
    layer = with_values(np.zeros(3), layer_name="block/conv")
    load_network(layer, io.BytesIO(packed.getvalue()))
    assert np.all(get_all_param_values(layer)[0] == 1)


def test_numbered_arrays():
    """As scripts for Lasagne save them."""
    file = io.BytesIO()
    np.savez(file, *get_all_param_values(small(3)))
    with pytest.raises(ValueError, match=r"(?s)arr_0.*set_all_param_values"):
        load_network(small(3), io.BytesIO(file.getvalue()))


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


# --- arrays that are not unpacked ------------------------------------------

def zipped(members):
    """A file of (name, header or None, bytes), compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, header, content in members:
            stream = io.BytesIO()
            if header is not None:
                np.lib.format.write_array_header_1_0(stream, dict(
                    {"fortran_order": False}, **header))
            archive.writestr(name, stream.getvalue() + content)
    return file.getvalue()


@pytest.fixture
def only_headers(monkeypatch):
    """No array in a file may be read."""
    def read(*args, **kwargs):
        raise AssertionError("an array was read")

    monkeypatch.setattr(np.lib.format, "read_array", read)


HUGE = 1 << 24


@pytest.mark.parametrize("header, content, expected", [
    ({"shape": (1, HUGE), "descr": "|i1"}, bytes(HUGE),
     r"! n.mean: \(1, 16777216\) +n.mean: \(1, 2\)"),
    ({"shape": (1, 2), "descr": "|V8000000"}, bytes(HUGE), "array of numbers"),
    ({"shape": (1, 2), "descr": "<U2000000"}, bytes(HUGE), "array of numbers"),
    ({"shape": (1, 2), "descr": "|O"}, b"", "must be an array of numbers"),
    ({"shape": (1, 2), "descr": [("a", "<f8")]}, bytes(16), "of numbers"),
    # More bytes, or fewer, than a header says.
    ({"shape": (1, 2), "descr": "<f8"}, bytes(HUGE), "must take 144 to be"),
    ({"shape": (1, 2), "descr": "<f8"}, bytes(8), "must take 144 to be"),
    ({"shape": (1, 1 << 60), "descr": "<f8"}, bytes(8), "bytes, and must"),
])
def test_refused_by_its_header(only_headers, header, content, expected):
    layer = small(1)
    before = bits(layer)
    file = zipped([("n.mean.npy", header, content),
                   ("n.std.npy", {"shape": (1, 2), "descr": "<f8"},
                    bytes(16))])
    assert len(file) < 20000
    with pytest.raises(ValueError, match=expected):
        load(layer, file)
    assert bits(layer) == before


def test_long_header(only_headers):
    """Such as of version 2, which may have gigabytes of blanks."""
    header = b"\x93NUMPY\x02\x00" + (HUGE).to_bytes(4, "little")
    with pytest.raises(ValueError, match="no sound file.*n.mean must be"):
        load(small(1), zipped([("n.mean.npy", None, header + b" " * HUGE)]))


def test_two_arrays_of_a_name(only_headers):
    header = {"shape": (1, 2), "descr": "<f8"}
    with pytest.raises(ValueError, match="two arrays of the name n.mean"):
        load(small(1), zipped([("n.mean.npy", header, bytes(16)),
                               ("n.mean", header, bytes(16))]))


def test_compressed(rng, tmp_path):
    first, second = randomize(build(), rng), build()
    np.savez_compressed(str(tmp_path / "it.npz"), **arrays(first))
    load_network(second, tmp_path / "it.npz")
    assert bits(first) == bits(second)


# --- what is no regular file -----------------------------------------------

def fifo(path):
    os.mkfifo(path)


def loop(path):
    os.symlink(path, path)


def link_to_device(path):
    os.symlink(os.devnull, path)


@pytest.mark.skipif(os.name == "nt", reason="has none of these")
@pytest.mark.parametrize("make", [fifo, loop, link_to_device, os.mkdir])
def test_no_regular_file(tmp_path, make):
    path = str(tmp_path / "it")
    make(path)
    before = os.lstat(path).st_mode
    with pytest.raises(OSError, match="regular file.*mode 'wb'|directory"):
        save_network(small(3), path)
    assert os.lstat(path).st_mode == before
    assert os.listdir(str(tmp_path)) == ["it"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_through_a_link(tmp_path):
    os.symlink("target", str(tmp_path / "link"))
    save_network(small(3), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    layer = small(1)
    load_network(layer, tmp_path / "target")
    assert bits(layer) == bits(small(3))


class Unseekable(io.RawIOBase):
    """A pipe, say."""

    def __init__(self):
        self.content = b""

    def writable(self):
        return True

    def write(self, data):
        self.content += bytes(data)
        return len(data)


def test_stream():
    stream, layer = Unseekable(), small(1)
    save_network(small(3), stream)
    load(layer, stream.content)
    assert bits(layer) == bits(small(3))


def test_compressed_stream():
    """It can only go on: NumPy would go back."""
    stream, layer = io.BytesIO(), small(1)
    with gzip.open(stream, "wb") as compressed:
        save_network(small(3), compressed)
    load(layer, gzip.decompress(stream.getvalue()))
    assert bits(layer) == bits(small(3))


@pytest.mark.parametrize("function, mode, found", [
    (save_network, "rb", "to write, got <_io.Buff"),
    (load_network, "wb", "to read, got <_io.Buff")])
def test_opened_for_something_else(tmp_path, function, mode, found):
    path = str(tmp_path / "it.npz")
    save_network(small(3), path)
    with open(path, mode) as file, pytest.raises(
            TypeError, match="binary mode " + found):
        function(small(3), file)


@pytest.mark.parametrize("function", [save_network, load_network])
@pytest.mark.parametrize("file", [None, 0, 1.5, ["it.npz"], io.StringIO()],
                         ids=["None", "0", "1.5", "list", "text"])
def test_no_file(function, file):
    with pytest.raises(TypeError, match=r"%s\(\): file must be a path, or a "
                                        "file object that is open in binary "
                                        "mode to (read|write), got "
                       % function.__name__):
        function(small(3), file)


# --- weights of batches ----------------------------------------------------

def counted(count, names=("a", "b"), average=None):
    average = average or CumulativeAverage(count)
    layer = InputLayer((None, 2))
    for name in names:
        layer = BatchNormLayer(layer, name=name, alpha=average.alpha)
    return layer, average


def test_count_is_restored(floatX):
    content = saved(counted(7)[0])
    with np.load(io.BytesIO(content)) as found:
        assert found["a.count"] == found["b.count"] == 7
        assert found["a.count"].dtype == "int64"
    layer, average = counted(2)
    load(layer, content)
    assert average.count == 7
    assert_allclose(average.alpha.get_value(), 1 / 8)


def test_count_is_optional():
    """Files of older versions, and networks of another weight."""
    plain = BatchNormLayer(BatchNormLayer((None, 2), name="a"), name="b")
    layer, average = counted(7)
    with_counts, without = saved(layer), saved(plain)
    load(plain, with_counts)
    load(layer, without)
    assert average.count == 7
    average.reset()
    with pytest.warns(UserWarning, match="no a.count, b.count: the next"):
        load(layer, without)
    with pytest.raises(ValueError, match=r"! c.count: \(\) +-"):
        load(layer, npz(dict(arrays(layer), **{"c.count": np.array(3)})))
    with pytest.raises(ValueError, match=r"! input.count: \(\) +-"):
        load(layer, npz(dict(arrays(layer), **{"input.count": np.array(3)})))


@pytest.mark.parametrize("change, expected", [
    ({"b.count": np.array(4)}, "b.count is shared by layers .*: 3 and 4"),
    ({"a.count": np.array(-1)}, "a.count must be a number of batches.*got -1"),
    ({"a.count": np.array(1.5)}, "a.count must be an array of whole numbers"),
    ({"a.count": np.array([3])}, r"! a.count: \(1,\) +a.count: \(\)"),
    ({"b.std": np.full((1, 2), np.nan)}, r"b.std must be .* got 2 NaN"),
])
def test_count_is_left_on_an_error(change, expected):
    layer, average = counted(7)
    values = arrays(counted(3)[0])
    values["a.mean"] = np.ones((1, 2))
    before = bits(layer)
    with pytest.raises(ValueError, match=expected):
        load(layer, npz(dict(values, **change)))
    assert average.count == 7 and bits(layer) == before


def test_counts_of_several():
    first, second = CumulativeAverage(3), CumulativeAverage(4)
    network = [counted(0, "a", first)[0], counted(0, "b", second)[0]]
    content = saved(network)
    first.reset()
    second.reset()
    load(network, content)
    assert (first.count, second.count) == (3, 4)


def test_count_and_a_parameter_of_that_name():
    class Counting(BatchNormLayer):
        def __init__(self, *args, **kwargs):
            super(Counting, self).__init__(*args, **kwargs)
            self.count = self.add_param(theano.shared(np.array(1)), (), "n")

    layer = Counting((None, 2), name="a")
    load(layer, saved(layer))
    layer = Counting((None, 2), name="a", alpha=CumulativeAverage().alpha)
    with pytest.raises(ValueError, match="the same name in the file: a.count"):
        saved(layer)
