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
from helpers.folded import randomize
from helpers.weights import Values, bits, refused
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_data
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
not_windows = pytest.mark.skipif(os.name == "nt", reason="is another there")


# --- what the tests share --------------------------------------------------

def build(names=("fc", None, "out"), units=4):
    layer = InputLayer((None, 3))
    for name in names[:-1]:
        layer = batch_norm(DenseLayer(layer, units, name=name))
    return DenseLayer(layer, 2, name=names[-1])


def masked():
    """Two layers with masks, of virtual batches."""
    below, mask = InputLayer((None, None, 3)), InputLayer((None, None))
    layer = below
    for name in "ab":
        layer = BatchNormLayer(layer, axes=(0, 1), mask_input=mask, name=name,
                               virtual_batch_size=4)
    return layer


def small(value):
    layer = BatchNormLayer((None, 2), gamma=None, beta=None, name="n")
    for param in layer.get_params():
        param.set_value(np.full_like(param.get_value(), value))
    return layer


def saved(network):
    file = io.BytesIO()
    save_network(network, file)
    return file.getvalue()


def load(network, content):
    load_network(network, io.BytesIO(content))


def arrays(network):
    return dict(np.load(io.BytesIO(saved(network)), allow_pickle=False))


def npz(content):
    file = io.BytesIO()
    np.savez(file, **content)
    return file.getvalue()


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
    "not quite equal names": lambda: build(("1.DenseLayer", "fc", "Fc")),
    "recurrent": recurrent,
    "with masks": masked,
    "GRU": lambda: DenseLayer(GRULayer(InputLayer((None, 5, 3)), 4), 2),
    "several outputs": several_outputs,
    "shared": shared,
    "folded": lambda: fold_batch_norm(build(("fc", "fc", "out"))),
    "without parameters": lambda: InputLayer((None, 3)),
    "left out": lambda: BatchNormLayer((None, 3), gamma=None, beta=None),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_there_and_back(rng, kind):
    first = randomize(NETWORKS[kind](), rng)
    second = randomize(NETWORKS[kind](), rng)
    assert bits(first) != bits(second) or kind == "without parameters"
    load(second, saved(first))
    assert bits(first) == bits(second)


NAMES = st.none() | st.text(st.characters(
    blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=6)
VALUES = st.sampled_from([
    "bool", "int8", "uint16", "int64", "float16", "float32", "float64",
    "complex64"]).flatmap(lambda dtype: numpy_data.arrays(
        dtype, numpy_data.array_shapes(min_dims=0, max_dims=3, min_side=0,
                                       max_side=3),
        elements=numpy_data.from_dtype(np.dtype(dtype), allow_nan=False)))


@given(layers=st.lists(st.tuples(NAMES, st.lists(VALUES, max_size=3)),
                       max_size=4))
def test_names_types_and_shapes(layers):
    first = second = InputLayer((None, 3))
    for name, values in layers:
        first = Values(values, first, name)
        second = Values([np.zeros_like(value) for value in values], second,
                        name)
    load(second, saved(first))
    assert bits(second) == bits(first)


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
    for value in arrays(first).values():
        assert value.dtype == stored
    load(second, saved(first))
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


def test_many_layers(rng, floatX):
    layer = InputLayer((None, 3))
    for number in range(40):
        layer = batch_norm(DenseLayer(layer, 3, name=f"fc{number % 20}"))
    content = saved(randomize(layer, rng))
    expected = bits(layer)
    load(randomize(layer, rng), content)
    assert bits(layer) == expected


# --- what is in a file -----------------------------------------------------

def test_readable_by_numpy(rng, floatX, tmp_path):
    network = randomize(build(("a", None, "b")), rng)
    save_network(network, tmp_path / "it.npz")
    with np.load(str(tmp_path / "it.npz"), allow_pickle=False) as found:
        assert found.files == [
            "a.W", "a_bn.mean", "a_bn.std", "a_bn.beta", "a_bn.gamma",
            "3.DenseLayer.W", "4.BatchNormLayer.mean", "4.BatchNormLayer.std",
            "4.BatchNormLayer.beta", "4.BatchNormLayer.gamma", "b.W", "b.b"]
        for param, array in zip(get_all_params(network), found.values()):
            assert array.dtype == param.dtype
            assert_array_equal(array, param.get_value())


def test_equal_names():
    assert set(arrays(build(("a", "a", "b")))) == {
        "1.a.W", "3.a.W", "b.W", "b.b", *[
            f"{number}.a_bn.{name}" for number in "24"
            for name in ("mean", "std", "beta", "gamma")]}


def test_names_within_layers():
    found = arrays(recurrent())
    assert len(found) == 10
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


@pytest.mark.parametrize("name, error, expected", [
    ("a\0b", ValueError, r"Values 'a\\x00b' has a character in its name"),
    ("a\ud800", ValueError, r"Values 'a\\ud800' has a character in its name"),
    (5, TypeError, "Values 5 must have a name of text"),
    (b"a", TypeError, "Values b'a' must have a name of text"),
])
def test_names_that_no_file_can_have(tmp_path, name, error, expected):
    layer = Values([np.zeros(3)], name=name)
    for file in (io.BytesIO(), str(tmp_path / "it.npz")):
        with pytest.raises(error, match=r"save_network\(\): " + expected):
            save_network(layer, file)
        assert not isinstance(file, io.BytesIO) or not file.getvalue()
    assert not os.listdir(str(tmp_path))


def test_params_that_only_a_method_knows():
    """They have no attribute, and are in no `params`."""
    class Hidden(Layer):
        def get_params(self, unwrap_shared=True, **tags):
            return [hidden]

    hidden = theano.shared(np.arange(3.))
    content = saved(Hidden((None, 2)))
    assert list(np.load(io.BytesIO(content))) == ["param0"]
    hidden.set_value(np.zeros(3))
    load(Hidden((None, 2)), content)
    assert_array_equal(hidden.get_value(), np.arange(3))


# --- files -----------------------------------------------------------------

class PathLike:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


@pytest.mark.parametrize("kind, name", [
    (str, "it.npz"), (str, "no\u00eb .z"), (Path, "it"),
    (PathLike, "it.params"), (os.fsencode, "no\u00eb .z")])
def test_paths(tmp_path, kind, name):
    path = kind(tmp_path / name)
    save_network(small(3), path)
    assert os.listdir(str(tmp_path)) == [name]
    layer = small(1)
    load_network(layer, path)
    assert bits(layer) == bits(small(3))


def test_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_network(small(3), "it.npz")
    assert os.listdir(".") == ["it.npz"]
    load_network(small(1), "it.npz")


def test_file_objects(tmp_path):
    layer = small(1)
    with open(str(tmp_path / "it"), "w+b") as file:
        save_network(small(3), file)
        file.seek(0)
        load_network(layer, file)
        assert not file.closed
    assert bits(layer) == bits(small(3))


def test_takes_the_place_of_another(tmp_path):
    path = tmp_path / "it.npz"
    path.write_bytes(b"older")
    save_network(small(3), path)
    save_network(small(3), path)
    load_network(small(1), path)
    assert os.listdir(str(tmp_path)) == ["it.npz"]
    # With the rights that a new file has.
    (tmp_path / "new").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode


@not_windows
def test_mode_of_a_file_stays(tmp_path):
    path = tmp_path / "it.npz"
    path.write_bytes(b"")
    path.chmod(0o640)
    save_network(small(3), path)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error, before", [
    (OSError, b"older"), (KeyboardInterrupt, b"older"), (MemoryError, None)])
def test_interrupted(tmp_path, monkeypatch, error, before):
    def write_array(stream, array, **options):
        stream.write(b"half of it")
        raise error("interrupted")

    path = tmp_path / "it.npz"
    if before:
        path.write_bytes(before)
    monkeypatch.setattr(np.lib.format, "write_array", write_array)
    with pytest.raises(error, match="interrupted"):
        save_network(build(), path)
    assert os.listdir(str(tmp_path)) == (["it.npz"] if before else [])
    assert not before or path.read_bytes() == before


def test_cannot_be_read(tmp_path):
    for path in (tmp_path / "missing.npz", tmp_path):
        with refused(small(3), error=OSError):
            load_network(small(3), path)


@pytest.mark.parametrize("name", ["nowhere/it.npz", "folder"])
def test_error_names_the_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    path = str(tmp_path / name)
    with pytest.raises(OSError) as caught:
        save_network(small(3), path)
    assert caught.value.filename == os.path.realpath(path)
    assert str(caught.value).endswith(": %r" % os.path.realpath(path))
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def loop(path):
    os.symlink(path, path)


def link_to_device(path):
    os.symlink(os.devnull, path)


def link_to_pipe(path):
    """As /dev/stdout often is: the real path has no file."""
    read, write = os.pipe()
    os.close(read)
    os.symlink(f"/proc/self/fd/{write}", path)
    return write


@not_windows
@pytest.mark.parametrize("make", [
    os.mkfifo, loop, link_to_device, link_to_pipe, os.mkdir])
def test_no_regular_file(tmp_path, make):
    if make is link_to_pipe and not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc")
    path = str(tmp_path / "it")
    pipe = make(path)
    before = os.lstat(path).st_mode
    with pytest.raises(IsADirectoryError if make is os.mkdir else OSError,
                       match="a directory" if make is os.mkdir
                       else "no regular file.*mode 'wb'"):
        save_network(small(3), path)
    assert os.lstat(path).st_mode == before
    assert os.listdir(str(tmp_path)) == ["it"]
    if pipe:
        os.close(pipe)


@not_windows
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


class Reader:
    """An object that reads text, though it is no text file of Python's."""

    def read(self):
        return "text"


def test_no_file():
    for file in (None, 0, 1.5, ["it.npz"], io.StringIO()):
        for function, verb in (save_network, "write"), (load_network, "read"):
            with pytest.raises(TypeError, match=(
                    rf"{function.__name__}\(\): file must be a path, or a "
                    f"file object that is open in binary mode to {verb}, ")):
                function(small(3), file)
    with pytest.raises(TypeError, match="open in binary mode, mode 'rb'. "
                                        "Reading it gave str"):
        load_network(small(3), Reader())


@pytest.mark.parametrize("function", [save_network, load_network])
def test_no_network(function, tmp_path):
    for network in ("network", [build(), None]):
        with pytest.raises(TypeError, match="_network.*: network must be a "
                                            "Layer or a list of them"):
            function(network, tmp_path / "it.npz")
    assert not os.listdir(str(tmp_path))


# --- what does not fit -----------------------------------------------------

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
def test_misfits(rng, change, row):
    network = randomize(build(), rng)
    found = {name: value + 1 for name, value in arrays(network).items()}
    change(found)
    with refused(network) as caught:
        load(network, npz(found))
    text = str(caught.value)
    assert text.startswith("load_network(): the file does not fit the network,"
                           " where marked:\n  file")
    assert re.search("\n" + row + r"(\n|$)", text)
    assert text.count("\n!") == 1
    # Those that fit are listed, too.
    assert re.search(r"\n  fc_bn.mean: \(1, 4\)  +fc_bn.mean: \(1, 4\)", text)


def test_another_network(rng):
    network = randomize(build(), rng)
    for other in (build(("fc", "fc2", "out")), build(units=5), build()
                  .input_layer, InputLayer((None, 3))):
        with refused(other, "load_network.*does not fit"):
            load(other, saved(network))


def test_other_types_of_numbers(float64):
    network = build()
    load(network, npz({name: np.ones(value.shape, dtype) for (
        name, value), dtype in zip(arrays(network).items(), [
            "float32", "int8", "uint16", "float16", ">f8", "<i4"] * 2)}))
    for value in get_all_param_values(network):
        assert value.dtype == "float64" and np.all(value == 1)


@pytest.mark.parametrize("value, found, expected", [
    (np.array([1, 2]), np.array([.5, 2]), "whole numbers from .* got 0.5"),
    (np.array([1, 2]), np.array([1, np.nan]), "whole numbers from .* got nan"),
    (np.array([1, 2], "int8"), np.array([1, 128]), "w.* to 127, .* got 128"),
    (np.array([1, 2], "uint8"), np.array([-1, 1]), "w.* 0 to 255, .* got -1"),
    (np.array([1., 2]), np.array([1, np.nan]), "numbers, got 1 NaN"),
    (np.array([1., 2]), np.array(["a", "b"]), "numbers, got an .*<U1"),
    (np.array([1, 2], "float32"), np.array([1, 1e39]), "numbers, .*got 1e.39"),
    (np.array([True, False]), np.array([1, 0]), "truth values, .* int"),
    (np.array([1., 2]), np.array([True, False]), "numbers, .* bool"),
    (np.array([1., 2]), np.array([1, 2j]), "numbers, .* complex128"),
])
def test_what_a_type_cannot_hold(value, found, expected):
    layer = DenseLayer(Values([value]), 2, name="fc")
    with refused(layer, r"^load_network\(\): .*s\.n0 must be an array of "
                 + expected):
        load(layer, npz({**arrays(layer), "s.n0": found, "fc.b": np.ones(2)}))


def test_saving_nan_warns(tmp_path):
    layer = Values([np.array([1., np.nan])])
    with pytest.warns(RuntimeWarning, match=r"save_network\(\): there is NaN "
                                            r"in s\.n0\. load_network\(\) w"):
        save_network(layer, tmp_path / "it.npz")
    with pytest.raises(ValueError, match=r"s\.n0 must be .*, got 1 NaN"):
        load_network(layer, tmp_path / "it.npz")


@pytest.mark.parametrize("value, found", [
    (sparse.csr_matrix(np.eye(3)), "csr_matrix"),
    (sparse.csc_matrix(np.eye(3)), "csc_matrix"), ([1, 2], "list")],
    ids=["csr", "csc", "list"])
def test_what_is_no_array(value, found):
    layer, file = Values([value]), io.BytesIO()
    expected = r"network\(\): s\.n0 must be an array of .*got a %s\." % found
    with pytest.raises(TypeError, match="save_" + expected):
        save_network(layer, file)
    assert not file.getvalue()
    with pytest.raises(TypeError, match="load_" + expected):
        load(layer, npz({"s.n0": np.eye(3)}))


def test_numbered_arrays():
    """As scripts for Lasagne save them."""
    file = io.BytesIO()
    np.savez(file, *get_all_param_values(small(3)))
    with pytest.raises(ValueError, match=r"(?s)arr_0.*set_all_param_values"):
        load(small(3), file.getvalue())


# --- files that are damaged ------------------------------------------------

class Trap:
    """Runs code when it is read from a pickle."""

    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def test_objects_are_not_read(tmp_path):
    layer = small(3)
    trap = np.array([Trap(), 0], object)
    pure, array = pickle.dumps(Trap()), io.BytesIO()
    np.save(array, trap, allow_pickle=True)
    for file in (npz({**arrays(layer), "n.mean": trap}), pure,
                 array.getvalue()):
        (tmp_path / "it.npz").write_bytes(file)
        for source in (io.BytesIO(file), tmp_path / "it.npz"):
            with refused(layer, "is damaged, or was not written"):
                load_network(layer, source)
    assert not Trap.sprung
    # The trap would work.
    pickle.loads(pure)
    assert Trap.sprung
    Trap.sprung = False


def test_other_files(tmp_path):
    single, archive = io.BytesIO(), io.BytesIO()
    np.save(single, np.ones(3))
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("fc.W", b"not an array")
    for content in (b"", b"PK", b"text", single.getvalue(), bytes(1000),
                    archive.getvalue(), pickle.dumps([1, 2])):
        (tmp_path / "it.npz").write_bytes(content)
        with pytest.raises(ValueError, match="load_network.*"):
            load(small(3), content)
        with pytest.raises(ValueError, match="it.npz is damaged, or .*" + (
                "one array only" if content == single.getvalue() else "")):
            load_network(small(3), tmp_path / "it.npz")


def test_truncated(tmp_path):
    """Warnings about files that were left open are errors here."""
    content, layer, path = saved(small(3)), small(1), tmp_path / "it.npz"
    for length in range(len(content)):
        with refused(layer):
            load(layer, content[:length])
        if length % 50 == 0:
            path.write_bytes(content[:length])
            with pytest.raises(ValueError):
                load_network(layer, path)
    load(layer, content)
    assert bits(layer) == bits(small(3))


@pytest.mark.parametrize("flip", [1, 0x80, 0xff])
def test_corrupted(tmp_path, flip):
    content, path = saved(small(3)), tmp_path / "it.npz"
    layer, refusals = small(1), 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= flip
        source = io.BytesIO(damaged)
        if place >= len(content) - 22:
            # A file on disk may then have the stream seek before its start.
            path.write_bytes(damaged)
            source = path
        try:
            load_network(layer, source)
        except ValueError:
            refusals += 1
            assert bits(layer) == bits(small(1))
        else:
            # Dates and the like.
            assert bits(layer) == bits(small(3))
            layer = small(1)
    assert refusals > len(content) / 2


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
    # Headers of version 2 may have gigabytes of blanks.
    (None, b"\x93NUMPY\x02\x00" + HUGE.to_bytes(4, "little") + b" " * HUGE,
     "is damaged.*n.mean must be"),
], ids=str.split("shape V U O records long short overflow version"))
def test_refused_by_its_header(only_headers, header, content, expected):
    layer = small(1)
    file = zipped([("n.mean.npy", header, content),
                   ("n.std.npy", {"shape": (1, 2), "descr": "<f8"},
                    bytes(16))])
    assert len(file) < 20000
    with refused(layer, expected):
        load(layer, file)


def test_two_arrays_of_a_name(only_headers):
    header = {"shape": (1, 2), "descr": "<f8"}
    with pytest.raises(ValueError, match="two arrays of the name n.mean"):
        load(small(1), zipped([("n.mean.npy", header, bytes(16)),
                               ("n.mean", header, bytes(16))]))


def test_packed_by_another_program():
    """Compressed; and folders are members of the archive then."""
    values, file = [np.ones(3)], io.BytesIO()
    content = saved(Values(values, name="block/conv"))
    with zipfile.ZipFile(io.BytesIO(content)) as archive, \
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as again:
        again.writestr("block/", b"")
        for name in archive.namelist():
            again.writestr(name, archive.read(name))
    layer = Values([np.zeros(3)], name="block/conv")
    load(layer, file.getvalue())
    assert_array_equal(layer.n0.get_value(), np.ones(3))


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
    for name in ("c", "input"):
        with pytest.raises(ValueError, match=rf"! {name}.count: \(\) +-"):
            load(layer, npz({**arrays(layer), f"{name}.count": np.array(3)}))


@pytest.mark.parametrize("change, expected", [
    ({"b.count": np.array(4)}, "b.count is shared by layers .*: 3 and 4"),
    ({"a.count": np.array(-1)}, "a.count must be a number of batches.*got -1"),
    ({"a.count": np.array(1.5)}, "a.count must be an array of whole numbers"),
    ({"a.count": np.array([3])}, r"! a.count: \(1,\) +a.count: \(\)"),
    ({"b.std": np.full((1, 2), np.nan)}, r"b.std must be .* got 2 NaN"),
])
def test_count_is_left_on_an_error(change, expected):
    layer, average = counted(7)
    with refused(layer, expected):
        load(layer, npz({**arrays(counted(3)[0]), "a.mean": np.ones((1, 2)),
                         **change}))
    assert average.count == 7


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
            super().__init__(*args, **kwargs)
            self.count = self.add_param(theano.shared(np.array(1)), (), "n")

    layer = Counting((None, 2), name="a")
    load(layer, saved(layer))
    layer = Counting((None, 2), name="a", alpha=CumulativeAverage().alpha)
    with pytest.raises(ValueError, match="the same name in the file: a.count"):
        saved(layer)
