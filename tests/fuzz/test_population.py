"""Population statistics of random data, in random batches and networks."""

import os
import tempfile

from bnlasagne import (
    BatchNormLayer,
    Moments,
    freeze_batch_norm,
    update_population_statistics,
)
from bnlasagne.population import batches as batches_module
from bnlasagne.population import stages

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.fuzzing import many
from helpers.modes import default_mode
from helpers.splits import cuts_of
from helpers.weights import bits
from hypothesis import example, given, note
from hypothesis import strategies as st
from lasagne.layers import (
    ConcatLayer,
    DenseLayer,
    InputLayer,
    get_all_layers,
)
from lasagne.nonlinearities import linear, rectify, tanh
from numpy.testing import assert_allclose, assert_array_equal

SEEDS = st.integers(0, 2 ** 32 - 1)
FUNCTIONS = {linear: lambda x: x, rectify: lambda x: np.maximum(x, 0),
             tanh: np.tanh}


@pytest.fixture(autouse=True, scope="module")
def quick():
    with default_mode(theano.Mode("py", None)):
        yield


# --- moments ---------------------------------------------------------------

def exact(values):
    """Count, mean and sum of squared deviations, in long double."""
    values = np.asarray(values, np.longdouble)
    mean = values.mean() if values.size else 0
    return values.size, mean, np.square(values - mean).sum()


def assert_moments(moments, values):
    """Check moments of two channels against the values of each."""
    for channel in range(2):
        count, mean, m2 = exact(values[channel])
        assert moments.count == count
        if count:
            scale = np.abs(values[channel]).max()
            assert_allclose(moments.mean.ravel()[channel], float(mean),
                            rtol=1e-14, atol=1e-14 * scale)
            # Of a large mean, deviations have fewer digits.
            assert_allclose(moments.m2.ravel()[channel], float(m2), rtol=1e-9,
                            atol=count * (1e-15 * scale) ** 2)


@many(20, quick=60)
@given(shape=st.tuples(st.integers(0, 9), st.integers(1, 3)), seed=SEEDS,
       exponent=st.integers(-100, 100), offset=st.sampled_from(
           [0, 1, -30, 1e4]), cuts=st.data(), mask=st.sampled_from(
           [None, "rows", "all"]), dtype=st.sampled_from(
           ["float32", "float64", "int32"]))
def test_moments(shape, seed, exponent, offset, cuts, mask, dtype):
    """Of parts, merged in any grouping, they are those of the whole."""
    rng = np.random.RandomState(seed)
    x = rng.normal(offset, 1, (shape[0], 2, shape[1]))
    x = (x * 100).astype(dtype) if dtype == "int32" else (
        x * 10. ** (exponent if dtype == "float64" else exponent / 10)
    ).astype(dtype)
    counts = np.ones((shape[0], 1, shape[1])) if mask is None else (
        rng.uniform(size=(shape[0], 1, 1 if mask == "rows" else shape[1]))
        < 0.5).astype(float)
    where = np.broadcast_to(counts, (shape[0], 1, shape[1]))[:, 0] != 0
    values = [x[:, channel][where] for channel in range(2)]
    places = cuts.draw(cuts_of(shape[0]))
    parts = [Moments.of(part, (0, 2), *([] if mask is None else [own]))
             for part, own in zip(np.split(x, places),
                                  np.split(counts, places))]
    assert_moments(Moments.of(x, (0, 2), counts), values)
    total = Moments.from_exact_sums(sum(
        part.exact_sums() for part in parts))
    assert_moments(total, values)
    backward = Moments.from_exact_sums(sum(
        part.exact_sums() for part in parts[::-1]))
    assert_array_equal(total.to_vector(), backward.to_vector())
    merged = Moments.empty((1, 2, 1))
    for part in parts:
        merged = merged.merge(part) if seed % 2 else part.merge(merged)
    assert_moments(merged, values)
    again = Moments.from_vector(merged.to_vector())
    assert_moments(again, values)
    for ddof in range(3):
        if merged.count > ddof:
            expected = [float(exact(each)[2] / (len(each) - ddof))
                        for each in values]
            scale = max(np.abs(each).max() for each in values)
            assert_allclose(merged.std(ddof).ravel(), np.sqrt(expected),
                            rtol=1e-9, atol=1e-14 * scale)
        else:
            with pytest.raises(ValueError, match="more than"):
                merged.variance(ddof)


# --- statistics ------------------------------------------------------------

@st.composite
def problems(draw):
    """A network of the drawn kind, its data, and what is expected."""
    dtype = draw(st.sampled_from(["float64", "float32"]))
    rng = np.random.RandomState(draw(SEEDS))
    n, depth = draw(st.integers(0, 30)), draw(st.integers(1, 3))
    bare = draw(st.booleans())
    wide = dtype == "float64" or (bare and depth == 1)
    offset = draw(st.sampled_from([0, 3, 1e4] if wide else [0, 3]))
    with theano.configparser.change_flags(floatX=dtype):
        lasagne.random.set_rng(rng)
        x = InputLayer((None, 3), name="x")
        more = InputLayer((None, 2), name="more") if draw(st.booleans()) \
            else None
        mask = InputLayer((None,), name="mask") if draw(st.booleans()) \
            else None
        network = x if more is None else ConcatLayer([x, more])
        for number in range(depth):
            if number or not bare:
                network = DenseLayer(network, draw(st.integers(1, 4)), b=None,
                                     nonlinearity=linear)
            network = BatchNormLayer(
                network, name=f"bn{number}",
                nonlinearity=draw(st.sampled_from(list(FUNCTIONS))),
                epsilon=draw(st.sampled_from([0.01, 1e-4, 0.5])),
                mask_input=mask if draw(st.booleans()) else None,
                virtual_batch_size=draw(st.sampled_from([None, 2])),
                gamma=lasagne.init.Uniform((0.5, 2)),
                beta=lasagne.init.Normal(1), mean=lasagne.init.Normal(1),
                std=lasagne.init.Uniform((0.5, 2)))
            if draw(st.integers(0, 4)) == 4:
                freeze_batch_norm(network)
    kinds = {x: (n, 3), more: (n, 2), mask: (n,)}
    data = {}
    for layer in get_all_layers(network):
        if layer is mask:
            data[layer] = (rng.uniform(size=n) < 0.7).astype(dtype)
        elif isinstance(layer, InputLayer):
            scale = 10. ** rng.randint(-3, 4, kinds[layer][1:])
            data[layer] = ((offset + rng.normal(size=kinds[layer])) * scale
                           ).astype(dtype)
    return network, data


def expected_of(network, data, ddof):
    """The count, mean and deviation that each layer sees, in long double."""
    found, values = {}, {layer: array.astype(np.longdouble)
                         for layer, array in data.items()}
    for layer in get_all_layers(network):
        below = [values[each] for each in getattr(
            layer, "input_layers", [getattr(layer, "input_layer", None)])
            if each is not None]
        if isinstance(layer, ConcatLayer):
            values[layer] = np.concatenate(below, 1)
        elif isinstance(layer, DenseLayer):
            values[layer] = below[0] @ layer.W.get_value().astype(
                np.longdouble)
        elif isinstance(layer, BatchNormLayer):
            h = below[0]
            where = below[1] != 0 if len(below) > 1 else np.ones(len(h), bool)
            mean, std = layer.mean.get_value(), layer.std.get_value()
            if not layer.frozen:
                seen = h[where]
                if len(seen) < max(2, ddof + 1):
                    return None
                mean, std = seen.mean(0), np.sqrt(
                    np.square(seen - seen.mean(0)).sum(0) / (
                        len(seen) - ddof))
                found[layer] = len(seen), mean, std, np.abs(seen).max(0)
            y = FUNCTIONS[layer.nonlinearity](
                (h - mean) * layer.gamma.get_value() / (std + layer.epsilon)
                + layer.beta.get_value())
            values[layer] = np.where(where[:, np.newaxis], y, 0)
    return found


def batches_of(data, cuts, kind):
    """Batches, in one of the forms that a user may pass."""
    parts = list(zip(*(np.split(array, cuts) for array in data.values())))
    if kind == "dict":
        return [dict(zip(list(data)[::-1], part[::-1])) for part in parts]
    if kind == "bare" and len(data) == 1:
        return [part for part, in parts]
    if kind == "list" and len(data) > 1:
        return [list(part) for part in parts]
    return parts


def layers_of(network):
    return [layer for layer in get_all_layers(network)
            if isinstance(layer, BatchNormLayer)]


@many(quick=15)
@given(problem=problems(), data=st.data(), ddof=st.sampled_from([0, 0, 1, 2]),
       keep=st.sampled_from([None, "memory", "folder"]),
       form=st.sampled_from(["tuple", "list", "dict", "bare"]),
       repeated=st.sampled_from(["list", "function", "generator"]))
def test_statistics(problem, data, ddof, keep, form, repeated):
    network, arrays = problem
    n = len(next(iter(arrays.values())))
    batches = batches_of(arrays, data.draw(cuts_of(n)), form)
    expected = expected_of(network, arrays, ddof)
    before, replaced = bits(network), {
        layer: (layer.mean.get_value(), layer.std.get_value())
        for layer in layers_of(network)}
    with tempfile.TemporaryDirectory() as folder:
        given_batches = {"list": batches, "function": lambda: iter(batches),
                         "generator": (batch for batch in batches)}[
            repeated if keep or repeated != "generator" else "function"]

        def update(batches, keep):
            return update_population_statistics(
                network, batches, ddof=ddof,
                keep=folder if keep == "folder" else keep)
        if not expected:
            with pytest.raises(ValueError, match="(?i)pass more data|no data|"
                                                 "no layer"):
                update(given_batches, keep)
            assert bits(network) == before
            return
        found = update(given_batches, keep)
        assert os.listdir(folder) == []
    assert list(found) == list(found.replaced) == list(expected)
    dtype = network.mean.dtype
    for layer, (count, mean, std, scale) in expected.items():
        rtol = {"float64": 1e-7, "float32": 2e-3}[dtype]
        if not isinstance(layer.input_layer, DenseLayer) and \
                layer.name == "bn0":
            rtol = 1e-9  # no rounding before it
        moments = found[layer]
        assert moments.count == count
        note((layer.name, moments.std(ddof).ravel(), std))
        atol = (1e-13 if dtype == "float64" else 1e-6) * scale.max()
        assert_allclose(moments.mean[0], mean.astype(float), rtol, atol)
        assert_allclose(moments.std(ddof)[0], std.astype(float), rtol, atol)
        for param, value, old in zip(
                (layer.mean, layer.std), (moments.mean, moments.std(ddof)),
                found.replaced[layer]):
            assert_array_equal(param.get_value(), value.astype(dtype))
            assert param.dtype == old.dtype == dtype
        for one, other in zip(found.replaced[layer], replaced[layer]):
            assert_array_equal(one, other)
    for layer in layers_of(network):
        if layer not in expected:
            assert_array_equal(layer.mean.get_value(), replaced[layer][0])
            assert_array_equal(layer.std.get_value(), replaced[layer][1])
    if keep:
        after = bits(network)
        update(batches, None)
        assert bits(network) == after


# --- failures --------------------------------------------------------------

def two_layers():
    below = BatchNormLayer(InputLayer((None, 2)), name="lower")
    return BatchNormLayer(below, name="upper", nonlinearity=T.tanh)


class Failing:
    """Raise an error at the k-th of all calls."""

    def __init__(self, number, error):
        self.left, self.error, self.has_raised = number, error, False

    def __call__(self):
        self.left -= 1
        if self.left == -1:
            self.has_raised = True
            raise self.error


def wrapped(function, failing, after=False):
    def call(*args, **kwargs):
        if not after:
            failing()
            return function(*args, **kwargs)
        result = function(*args, **kwargs)
        failing()
        return result
    return call


def failing_batches(batches, failing):
    for batch in batches:
        failing()
        yield batch
    failing()


def patched(patch, place, network, failing):
    """Have a part of the package fail."""
    if place == "functions":
        compile = stages.Stage._compile
        patch.setattr(stages.Stage, "_compile",
                      lambda self: wrapped(compile(self), failing))
    elif place == "compiling":
        patch.setattr(stages.Stage, "_compile",
                      wrapped(stages.Stage._compile, failing))
    elif place == "disk":
        for name in "save", "load":
            patch.setattr(batches_module.np, name,
                          wrapped(getattr(np, name), failing))
    elif place == "store":
        for layer in layers_of(network):
            for param in layer.mean, layer.std:
                patch.setattr(param, "set_value",
                              wrapped(param.set_value, failing, after=True))


@many(4, quick=40)
@given(place=st.sampled_from(["batches", "functions", "compiling", "disk",
                              "store", "progress"]),
       kind=st.sampled_from([KeyError, OSError, ValueError, TypeError,
                             KeyboardInterrupt, MemoryError]),
       number=st.integers(0, 12), keep=st.sampled_from(
           [None, "memory", "folder"]))
@example("store", KeyboardInterrupt, 3, None)
def test_failures(place, kind, number, keep):
    """Whatever fails, nothing has changed, and nothing stays behind."""
    error = kind("failed")
    network, failing = two_layers(), Failing(number, error)
    batches = list(np.random.RandomState(1).normal(size=(3, 4, 2)))
    before = bits(network)

    def progress(items):
        for item in items:
            failing()
            yield item

    with pytest.MonkeyPatch.context() as patch, \
            tempfile.TemporaryDirectory() as folder:
        patched(patch, place, network, failing)
        try:
            update_population_statistics(
                network, lambda: failing_batches(batches, failing)
                if place == "batches" else batches,
                keep=folder if keep == "folder" else keep,
                progress=progress if place == "progress" else None)
        except BaseException as caught:
            assert failing.has_raised
            if place == "functions" and kind in (ValueError, TypeError):
                assert isinstance(caught, ValueError)
                assert "does not go through the network up to " \
                    "BatchNormLayer" in str(caught)
                assert caught.__cause__ is error
            else:
                assert caught is error
            assert bits(network) == before
        else:
            assert not failing.has_raised
            assert bits(network) != before
        assert os.listdir(folder) == []
    update_population_statistics(network, batches)
    assert_allclose(layers_of(network)[0].mean.get_value()[0],
                    np.mean(batches, (0, 1)))


# --- arguments -------------------------------------------------------------

GOOD = [np.arange(8.).reshape(4, 2), np.arange(6.).reshape(3, 2) ** 2]
# What an argument may be instead, and whether that is right as well.
JUNK = st.sampled_from([
    None, True, 0, 1, -1, 1.5, np.nan, 10 ** 30, "", "x", b"x", [], (), {},
    [None], object(), np.ones(2), np.ones((3, 2)), np.array(1),
    {"x": 1}, T.matrix(), "memory", "one_pass", [[]]])


@many(4, quick=60)
@given(name=st.sampled_from(["network", "batches", "method", "ddof", "keep",
                             "progress", "comm", "batch"]), junk=JUNK)
@example("ddof", None)
@example("ddof", np.nan)
@example("ddof", -1)
@example("ddof", 1.5)
@example("keep", 1.5)
@example("keep", 10 ** 30)
@example("keep", np.ones(2))
@example("batches", T.matrix())
@example("method", np.ones(2))
@example("batch", "x")
@example("batch", np.ones((3, 2)))
def test_arguments(name, junk):
    """An argument that is wrong is named, and nothing has changed."""
    network = two_layers()
    kwargs = {"network": network, "batches": GOOD, name: junk}
    if name == "batch":
        del kwargs["batch"]
        kwargs["batches"] = [GOOD[0], junk]
    before = bits(network)
    try:
        update_population_statistics(**kwargs)
    except (TypeError, ValueError) as error:
        assert "update_population_statistics()" in str(error)
        if name not in ("batches", "batch"):
            assert name in str(error)
        elif name == "batch":
            assert "batch 1" in str(error)
        assert bits(network) == before
    else:
        assert bits(network) != before
        # An array can be compared with no text.
        text = junk if isinstance(junk, str) else None
        assert {
            "network": False, "comm": junk is None, "batches": False,
            "batch": isinstance(junk, (list, tuple, np.ndarray)),
            "method": text == "one_pass",
            "keep": junk is None or text == "memory",
            "progress": junk is None,
            "ddof": isinstance(junk, int) and junk >= 0}[name]
