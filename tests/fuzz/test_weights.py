"""Weights in files: what comes back, and what is refused."""

import io
import warnings
import zipfile

from bnlasagne import (
    BatchNormLayer,
    CumulativeAverage,
    load_network,
    save_network,
)

import numpy as np
import pytest
from helpers.fuzzing import many
from helpers.weights import Values, bits
from hypothesis import example, given, note
from hypothesis import strategies as st
from lasagne.layers import InputLayer

TYPES = ["float32", "float64", "float16", "int8", "int16", "int32", "int64",
         "uint8", "uint16", "uint32", "uint64", "bool", "complex64",
         "complex128"]
# Names of arrays, as NumPy or other layers have them, and odd characters.
ODD_NAMES = ["", ".", "..", "/", "a/b", "a\\b", "a.npy", "arr_0", "param0",
             "1.Values", "2.Values", "file", "a b", "\u00e9", "e\u0301",
             "\U0001f40d", "a\nb", "\x7f", "\uffff", "x" * 300, "a\0b",
             "a\ud800", "0.InputLayer", "'\"", "%s{}"]
NAMES = st.none() | st.sampled_from(ODD_NAMES + ["a", "b", "fc"]) | st.text(
    max_size=6)
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
SEEDS = st.integers(0, 2 ** 32 - 1)


def numbers(dtype, shape, seed):
    """An array of any bits, but NaN."""
    rng, dtype = np.random.RandomState(seed), np.dtype(dtype)
    if dtype.kind == "b":
        return np.asarray(rng.uniform(size=shape) < 0.5)
    size = int(np.prod(shape)) * dtype.itemsize
    array = np.frombuffer(rng.bytes(size), dtype).reshape(shape).copy()
    array[np.isnan(array)] = rng.choice([0, -0., np.inf, 1])
    return array


@st.composite
def values(draw):
    return [numbers(draw(st.sampled_from(TYPES)), draw(SHAPES), draw(SEEDS))
            for _ in range(draw(st.integers(0, 3)))]


def network_of(layers):
    network = InputLayer((None, 3))
    for name, arrays in layers:
        network = Values(arrays, network, name)
    return network


def saved(network):
    file = io.BytesIO()
    save_network(network, file)
    return file.getvalue()


# --- there and back --------------------------------------------------------

def is_possible(names):
    """Whether all these names can be in one file."""
    used = ["0.InputLayer"]
    for number, name in enumerate(names, 1):
        alone = name is not None and names.count(name) == 1
        used.append(name if alone else f"{number}.{name or 'Values'}")
    characters = "".join(filter(None, names))
    return len(set(used[1:])) == len(names) and not any(
        character == "\0" or "\ud800" <= character <= "\udfff"
        for character in characters)


@many(20, quick=30)
@given(st.lists(st.tuples(NAMES, values()), max_size=4))
@example([("1.Values", [np.zeros(1)]), (None, [np.ones(1)])])
@example([("2.Values", [np.zeros(1)]), (None, [np.ones(1)])])
def test_there_and_back(tmp_path_factory, layers):
    layers = [(name, arrays or [np.ones(1)]) for name, arrays in layers]
    first = network_of(layers)
    second = network_of([(name, list(map(np.zeros_like, arrays)))
                         for name, arrays in layers])
    if not is_possible([name for name, _ in layers]):
        with pytest.raises(ValueError, match="name"):
            saved(first)
        return
    content = saved(first)
    assert saved(first) == content
    before = bits(first)
    load_network(second, io.BytesIO(content))
    assert bits(second) == bits(first) == before
    path = tmp_path_factory.getbasetemp() / "it.npz"
    save_network(second, path)
    assert path.read_bytes() == content
    with np.load(str(path), allow_pickle=False) as arrays:
        assert [array.tobytes() for array in arrays.values()] == [
            value for _, value in before]


# --- types -----------------------------------------------------------------

LIMITS = [0, 1, -1, 127, 128, -128, -129, 255, 256, 32767, 32768, 2 ** 31 - 1,
          2 ** 31, -2 ** 31 - 1, 2 ** 32, 2 ** 53 + 1, 2 ** 63 - 1, 2 ** 63,
          2 ** 64 - 1, -2 ** 63, 0.5, -0.5, 65504, 65520, 1e-300, 3.4e38,
          3.5e38, 1e308, np.inf, -np.inf, np.nan, 1j]


def can_hold(dtype, value):
    """Whether a type can hold a number, but for rounding."""
    kind, given_kind = np.dtype(dtype).kind, value.dtype.kind
    if "b" in (kind, given_kind):
        return kind == given_kind
    if given_kind == "c":
        return kind == "c" and not np.isnan(value) and all(
            can_hold(np.zeros(1, dtype).real.dtype, part)
            for part in (value.real, value.imag))
    if np.isnan(value):
        return False
    if kind in "iu":
        limits = np.iinfo(dtype)
        return bool(np.isfinite(value)) and value == int(value) and \
            limits.min <= int(value) <= limits.max
    with np.errstate(over="ignore"):
        return bool(np.isinf(value)) or not np.isinf(value.astype(dtype))


@many(20, quick=100)
@given(stored=st.sampled_from(TYPES), used=st.sampled_from(TYPES),
       order=st.sampled_from("<>"), number=st.sampled_from(LIMITS),
       seed=SEEDS)
@example("float64", "int64", "<", 2 ** 63, 0)
@example("uint64", "int64", "<", 2 ** 64 - 1, 0)
@example("float64", "float16", "<", 65520, 0)
@example("complex128", "complex64", "<", 3.5e38, 0)
@example("float32", "float64", "<", np.nan, 0)
@example("float64", "int32", "<", 0.5, 0)
@example("float16", "uint8", ">", -1, 0)
@example("float64", "complex64", "<", np.nan, 0)
def test_types(stored, used, order, number, seed):
    """A number goes from any type to any other, or is refused."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            array = np.ones(3, np.dtype(stored).newbyteorder(order))
            array[seed % 3] = number
        except (OverflowError, TypeError, ValueError):
            return
    note(array)
    file = io.BytesIO()
    np.savez(file, **{"s.n0": array, "s.n1": np.ones(2)})
    file.seek(0)
    layer = Values([np.zeros(3, used), np.zeros(2)])
    if all(can_hold(used, value) for value in array):
        load_network(layer, file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = array.astype(used)
        np.testing.assert_array_equal(layer.n0.get_value(), expected)
        assert layer.n0.get_value().dtype == used
        assert layer.n1.get_value().tolist() == [1, 1]
    else:
        before = bits(layer)
        with pytest.raises(ValueError, match="load_network.*s.n0 must be"):
            load_network(layer, file)
        assert bits(layer) == before


# --- counts of schedules ---------------------------------------------------

COUNTS = st.integers(0, 9) | st.sampled_from([2 ** 31, 2 ** 53 + 1,
                                              2 ** 63 - 2])


def scheduled(places, counts):
    """Layers with the schedules of these places; None for a number."""
    schedules = [CumulativeAverage(count) for count in counts]
    layer = None, 2
    for number, place in enumerate(places):
        layer = BatchNormLayer(
            layer, name=f"n{number}",
            alpha=0.1 if place is None else schedules[place].alpha)
    return layer, schedules


@many(5)
@given(st.data())
def test_counts(data):
    places = data.draw(st.lists(st.none() | st.integers(0, 2), min_size=1,
                                max_size=4))
    counts = [data.draw(COUNTS) for _ in range(3)]
    first, _ = scheduled(places, counts)
    # Layers without a schedule need none of the counts in the file.
    used = [place if data.draw(st.booleans()) else None for place in places]
    second, schedules = scheduled(used, [5, 6, 7])
    load_network(second, io.BytesIO(saved(first)))
    assert bits(second) == bits(first)
    assert [schedule.count for schedule in schedules] == [
        counts[place] if place in used else 5 + place for place in range(3)]
    for schedule in schedules:
        assert schedule.alpha.get_value() == pytest.approx(
            1 / (schedule.count + 1))


# --- damage ----------------------------------------------------------------

def flipped(content, place, bit):
    content[place % len(content)] ^= 1 << bit


def truncated(content, place, bit):
    del content[place % len(content):]


def extended(content, place, bit):
    content += bytes([place % 256] * (bit + 1))


def cut_out(content, place, bit):
    place %= len(content)
    del content[place:place + 1 + bit]


def blank(content, place, bit):
    place %= len(content)
    length = min(1 << bit, len(content) - place)
    content[place:place + length] = bytes(length)


def doubled(content, place, bit):
    place %= len(content)
    content[place:place] = content[place:place + 1 + bit]


def before_it(content, place, bit):
    content[:0] = bytes([place % 256] * (bit + 1))


DAMAGES = [flipped, flipped, truncated, extended, cut_out, blank, doubled,
           before_it]


def small_network(value):
    layer = Values([np.full(3, value, "float32"), np.asarray(value > 1)],
                   name="\u00e9")
    return BatchNormLayer(layer, name="n", beta=None, gamma=None,
                          alpha=CumulativeAverage(int(value)).alpha)


def state(network):
    return bits(network), CumulativeAverage.of(network).count


CONTENT, OLD, NEW = (
    saved(small_network(2)), state(small_network(1)), state(small_network(2)))


LAST = CONTENT.rindex(b"PK\1\2")


@many(20, quick=100)
@given(kind=st.sampled_from(DAMAGES), place=st.integers(0, len(CONTENT)),
       bit=st.integers(0, 7))
# The comment of the last member but one hides the last, a count.
@example(flipped, CONTENT.rindex(b"PK\1\2", 0, LAST) + 33, 0)
def test_damage(tmp_path_factory, kind, place, bit):
    """All is as it was saved, or nothing has changed."""
    content, layer = bytearray(CONTENT), small_network(1)
    kind(content, place, bit)
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(content)
    try:
        load_network(layer, path)
    except ValueError as error:
        assert str(error).startswith("load_network(): ")
        assert str(path) in str(error) or "does not fit" in str(error)
        assert state(layer) == OLD
    else:
        assert state(layer) == NEW


def members_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [[name, archive.read(name)] for name in archive.namelist()]


def zipped(members, compression):
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(
            file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def values_of(members):
    """The arrays of an archive, in NumPy; None if two have one name."""
    arrays = {}
    for name, content in members:
        name = name[:-len(".npy")] if name.endswith(".npy") else name
        if name in arrays:
            return None
        arrays[name] = np.load(io.BytesIO(content))
    return arrays


@many(20, quick=30)
@given(st.data())
def test_members(data):
    """Arrays are found by their names, in any order; or all are refused."""
    shapes = [data.draw(st.sampled_from([(), (2,), (2, 1)]))
              for _ in range(3)]
    first, second = (
        Values([np.full(shape, float(start + number))
                for number, shape in enumerate(shapes)])
        for start in (1, 10))
    members = members_of(saved(first))
    for _ in range(data.draw(st.integers(0, 2))):
        one, other = (data.draw(st.integers(0, len(members) - 1))
                      for _ in range(2))
        change = data.draw(st.sampled_from([
            "order", "contents", "names", "missing", "twice", "more"]))
        note((change, one, other))
        if change == "order":
            members[one], members[other] = members[other], members[one]
        elif change == "missing":
            if len(members) > 1:
                del members[one]
        elif change == "twice":
            members.append(members[one])
        elif change == "more":
            members.append([data.draw(st.sampled_from([
                "s.n3.npy", "n0.npy", "s.n0", "s.N0.npy"])), members[one][1]])
        else:
            part = 1 if change == "contents" else 0
            members[one], members[other] = list(members[one]), list(
                members[other])
            members[one][part], members[other][part] = \
                members[other][part], members[one][part]
    found, before = values_of(members), bits(second)
    content = zipped(members, data.draw(st.sampled_from([
        zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))
    expected = {f"s.n{number}": shape for number, shape in enumerate(shapes)}
    if found is not None and expected == {
            name: array.shape for name, array in found.items()}:
        load_network(second, io.BytesIO(content))
        for number in range(3):
            np.testing.assert_array_equal(
                getattr(second, f"n{number}").get_value(),
                found[f"s.n{number}"])
    else:
        with pytest.raises(ValueError, match="load_network"):
            load_network(second, io.BytesIO(content))
        assert bits(second) == before
