"""Statistics over a whole training set: found, set, or nothing changed."""

import os
import sys
import tracemalloc

from bnlasagne import BatchNormLayer, batch_norm, update_population_statistics

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import full_batch, reference
from helpers.splits import cuts_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lasagne.layers import (
    ConcatLayer,
    Conv2DLayer,
    DenseLayer,
    DropoutLayer,
    ElemwiseSumLayer,
    InputLayer,
    NonlinearityLayer,
    ReshapeLayer,
    get_all_layers,
    get_all_param_values,
    get_output,
)
from lasagne.nonlinearities import rectify, tanh
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("float64", "quick")

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(autouse=True)
def weights():
    lasagne.random.set_rng(np.random.RandomState(3))


def dense_norm(incoming, units=4, name=None, nonlinearity=tanh):
    return batch_norm(DenseLayer(incoming, units, nonlinearity=nonlinearity),
                      name=name)


def chain(depth=3, nonlinearity=tanh):
    layer = InputLayer((None, 3))
    for number in range(1, depth + 1):
        layer = dense_norm(layer, name="bn%d" % number,
                           nonlinearity=nonlinearity)
    return layer


def norms(network):
    return [layer for layer in get_all_layers(network)
            if isinstance(layer, BatchNormLayer)]


def split(data, kind):
    """Data in a number of parts, or in parts of 1, 2, 3, ... rows."""
    size = len(data)
    cuts = (np.cumsum(np.arange(1, size)) if kind == "uneven"
            else [size * number // kind for number in range(1, kind)])
    return np.split(data, [cut for cut in cuts if cut < size])


def values(network):
    return get_all_param_values(network)


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        assert_array_equal(one, other)
        assert np.asarray(one).dtype == np.asarray(other).dtype


def outputs(network, *data, **kwargs):
    inputs = [layer for layer in get_all_layers(network)
              if isinstance(layer, InputLayer)]
    variables = [layer.input_var.type() for layer in inputs]
    expressions = get_output(network, dict(zip(inputs, variables)), **kwargs)
    if not isinstance(expressions, list):
        expressions = [expressions]
    return theano.function(variables, expressions)(*data)


def assert_as_one_batch(network, *data):
    """Testing gives what training computes from all data at once."""
    trained = outputs(network, *data, batch_norm_update_averages=False)
    tested = outputs(network, *data, deterministic=True)
    for one, other in zip(tested, trained):
        assert_allclose(one, other, **TOLERANCE)


def numbers():
    values = np.random.RandomState(1502).normal(2, 3, (64, 3))
    return values * [1, 5, 0.2] + np.arange(64)[:, None] / 9


@pytest.fixture
def data():
    return numbers()


def assert_population(network, data, found, rtol=1e-9):
    """Statistics are those of all data at once, in NumPy."""
    inputs = full_batch.Pass(network, data).inputs
    assert list(found) == norms(network)
    for layer, moments in found.items():
        mean, std = reference.statistics(inputs[layer], (0,))
        assert moments.count == len(data)
        assert_allclose(moments.mean, mean, rtol, rtol)
        assert_allclose(moments.std(), std, rtol, rtol)
        assert_allclose(layer.mean.get_value(), mean, rtol, rtol)
        assert_allclose(layer.std.get_value(), std, rtol, rtol)


# Layer by layer

@given(cuts=cuts_of(64), keep=st.sampled_from([None, "memory"]))
@example(cuts=list(range(64)), keep=None)
@settings(max_examples=6)
def test_any_cut(cuts, keep):
    network, data = chain(), numbers()
    found = update_population_statistics(network, np.split(data, cuts),
                                         keep=keep)
    assert_population(network, data, found)
    assert_as_one_batch(network, data)


def test_single_precision_with_a_large_mean(rng):
    with theano.configparser.change_flags(floatX="float32"):
        network = dense_norm(BatchNormLayer(InputLayer((None, 3))))
        data = rng.normal(1e4, 1, (128, 3)).astype("float32")
        for kind in (1, 3, "uneven"):
            found = update_population_statistics(network, split(data, kind))
            assert_population(network, data, found, rtol=1e-3)
            first = norms(network)[0]
            mean, std = reference.statistics(data, (0,))
            assert_allclose(found[first].mean, mean, 1e-12)
            assert_allclose(found[first].std(), std, 1e-10)


@pytest.mark.parametrize("keep", [None, "memory"])
def test_residual_block(data, keep):
    below = dense_norm(InputLayer((None, 3)), nonlinearity=rectify)
    block = dense_norm(dense_norm(below), nonlinearity=None)
    shortcut = dense_norm(below, nonlinearity=None)
    network = dense_norm(ElemwiseSumLayer([block, shortcut]))
    found = update_population_statistics(network, split(data, 5), keep=keep)
    assert_population(network, data, found)


@pytest.mark.parametrize("kind", [tuple, list, dict])
@pytest.mark.parametrize("keep", [None, "memory"])
def test_several_inputs(data, kind, keep):
    first, second = InputLayer((None, 3)), InputLayer((None, 2))
    network = dense_norm(ConcatLayer([dense_norm(first), second]))
    others = np.square(data[:, :2])
    batches = [kind(pair) if kind is not dict
               else {second: pair[1], first: pair[0]}
               for pair in zip(split(data, 5), split(others, 5))]
    update_population_statistics(network, batches, keep=keep)
    assert_as_one_batch(network, data, others)


@pytest.mark.skipif(not theano.config.cxx, reason="needs a compiler")
@pytest.mark.parametrize("keep", [None, "memory"])
def test_convolutional_network(rng, keep, monkeypatch):
    # Theano's convolutions have C code only.
    monkeypatch.setattr(theano.compile.mode, "instantiated_default_mode", None)
    images = rng.normal(1, 2, (12, 2, 6, 6))
    layer = batch_norm(Conv2DLayer(InputLayer((None, 2, 6, 6)), 3, 3))
    layer = batch_norm(Conv2DLayer(layer, 2, 3))
    network = dense_norm(layer)
    found = update_population_statistics(network, split(images, "uneven"),
                                         keep=keep)
    assert_as_one_batch(network, images)
    assert [moments.count for moments in found.values()] == [
        12 * 16, 12 * 4, 12]


def test_list_of_output_layers(data):
    below = dense_norm(InputLayer((None, 3)))
    network = [dense_norm(dense_norm(below)), dense_norm(below), below]
    found = update_population_statistics(network, split(data, 5))
    assert list(found) == norms(network)
    assert_as_one_batch(network, data)


def test_shapes_taken_from_the_batch(data, tmp_path):
    """What is kept may be a number."""
    below = dense_norm(InputLayer((None, 3)))
    network = dense_norm(ReshapeLayer(below, ([0], 2, 2)))
    results = []
    for keep in (None, "memory", str(tmp_path)):
        update_population_statistics(network, split(data, 5), keep=keep)
        assert_as_one_batch(network, data)
        results.append(values(network))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


# One pass

def test_one_pass(data):
    network = chain(2)
    batches = split(data, 16)
    found = update_population_statistics(network, iter(batches), "one_pass")
    first, second = norms(network)
    w1, w2 = (layer.input_layer.W.get_value() for layer in (first, second))
    hidden = np.concatenate([np.tanh(reference.normalize_batch(
        batch.dot(w1), (0,))) for batch in batches]).dot(w2)
    for layer, x in ((first, data.dot(w1)), (second, hidden)):
        mean, std = reference.statistics(x, (0,))
        assert_allclose(found[layer].mean, mean, **TOLERANCE)
        assert_allclose(layer.std.get_value(), std, **TOLERANCE)
    exact = update_population_statistics(network, batches)
    assert_same([exact[first].std()], [found[first].std()])
    assert np.abs(exact[second].std() / found[second].std() - 1).max() > 0.01


# Layers that share statistics

class Twice(lasagne.layers.MergeLayer):
    """Adds up what an inner layer makes of two inputs."""

    def __init__(self, incomings, inner, **kwargs):
        super().__init__(incomings, **kwargs)
        self.inner = inner

    def get_output_shape_for(self, input_shapes):
        return input_shapes[0]

    def get_output_for(self, inputs, **kwargs):
        return sum(self.inner.get_output_for(input, **kwargs)
                   for input in inputs)


def test_layer_applied_twice(data):
    inner = BatchNormLayer((None, 3), name="inner")
    network = Twice([InputLayer((None, 3)), InputLayer((None, 3))], inner)
    others = data ** 2
    batches = list(zip(split(data, 5), split(others, 5)))
    found = update_population_statistics(network, batches)
    assert list(found) == [inner]
    both = np.concatenate([data, others])
    mean, std = reference.statistics(both, (0,))
    assert found[inner].count == 128
    assert_allclose(inner.mean.get_value(), mean)
    assert_allclose(inner.std.get_value(), std)


def parallel(share_std=True):
    """Three layers side by side, of which the outer two share."""
    below = InputLayer((None, 3))
    first = BatchNormLayer(below, name="first")
    second = BatchNormLayer(below, name="second")
    third = BatchNormLayer(
        NonlinearityLayer(below, T.sqr), name="third", mean=first.mean,
        **({"std": first.std} if share_std else {}))
    return ElemwiseSumLayer([first, second, third]), [first, second, third]


def test_layers_that_share_both(data):
    network, (first, second, third) = parallel()
    before = first.mean.get_value(), first.std.get_value()
    found = update_population_statistics(network, split(data, 5))
    both = reference.statistics(np.concatenate([data, data ** 2]), (0,))
    assert len(found) == 3
    for layer, count, (mean, std) in (
            (first, 128, both), (third, 128, both),
            (second, 64, reference.statistics(data, (0,)))):
        assert found[layer].count == count
        assert_allclose(layer.mean.get_value(), mean)
        assert_allclose(layer.std.get_value(), std)
        assert_same(found.replaced[layer], before)


def test_order_is_that_of_application(data):
    network, layers = parallel()
    found = update_population_statistics(network, [data])
    assert list(found) == list(found.replaced) == layers


def test_layers_that_share_the_mean_only(data):
    network, _ = parallel(share_std=False)
    before = values(network)
    with pytest.raises(ValueError, match="'third' shares .*mean.*'first'"):
        update_population_statistics(network, [data])
    assert_same(values(network), before)


def test_statistics_that_depend_on_themselves(data):
    first = BatchNormLayer(InputLayer((None, 3)), name="lower")
    network = BatchNormLayer(NonlinearityLayer(first, T.sqr), name="upper",
                             mean=first.mean, std=first.std)
    with pytest.raises(ValueError, match="'lower'.*'upper'.*'one_pass'"):
        update_population_statistics(network, [data])
    found = update_population_statistics(network, split(data, 4), "one_pass")
    pooled = np.concatenate([data] + [
        np.square(reference.normalize_batch(batch, (0,)))
        for batch in split(data, 4)])
    mean, std = reference.statistics(pooled, (0,))
    assert_allclose(found[first].mean, mean)
    assert_allclose(network.std.get_value(), std)


# Batches

class Batches:
    """Can be iterated again, and counts how often it was, and by how much."""

    def __init__(self, batches):
        self.batches = batches
        self.passes = self.read = 0

    def __iter__(self):
        self.passes += 1
        for batch in self.batches:
            self.read += 1
            yield batch


@pytest.mark.parametrize("kind", [list, tuple, Batches, "callable"])
def test_batches_to_be_iterated_again(data, kind):
    network = chain(2)
    batches = split(data, 4)
    update_population_statistics(
        network, (lambda: iter(batches)) if kind == "callable"
        else kind(batches))
    assert_as_one_batch(network, data)


@pytest.mark.parametrize("depth, kwargs", [
    (1, {}), (2, {"method": "one_pass"}), (2, {"keep": "memory"})])
def test_generator_suffices_for_one_pass(data, depth, kwargs):
    network, other = chain(depth), chain(depth)
    lasagne.layers.set_all_param_values(other, values(network))
    batches = split(data, 4)
    update_population_statistics(network, iter(batches), **kwargs)
    update_population_statistics(other, batches, **kwargs)
    assert_same(values(network), values(other))


def test_generator_for_several_passes(data):
    batches = iter(split(data, 4))
    network = chain(2)
    before = values(network)
    with pytest.raises(ValueError, match="only once.* 2 passes.*keep="):
        update_population_statistics(network, batches)
    assert len(list(batches)) == 4
    assert_same(values(network), before)


@pytest.mark.parametrize("batches", [np.zeros((4, 3)), 5, None])
def test_no_batches(batches):
    with pytest.raises(TypeError, match=r"\[batch\]"):
        update_population_statistics(chain(1), batches)


def two_inputs():
    layers = [InputLayer((None, 3), name="a"), InputLayer((None, 3))]
    return layers, BatchNormLayer(ElemwiseSumLayer(layers), name="bn")


@pytest.mark.parametrize("kind", ["too few", "too many", "shape", "ndim",
                                  "dict", "unknown"])
def test_wrong_batch(data, kind):
    (first, second), network = two_inputs()
    batch, message = {
        "too few": ((data,), "2 input layers, got 1"),
        "too many": ((data,) * 3, "2 input layers, got 3.*Leave out targets"),
        "shape": ((data[:, :2], data), r"'a' takes .*\(None, 3\), got \(64, "),
        "ndim": ((data[0], data), r"'a' takes .*\(None, 3\), got \(3,"),
        "dict": ({first: data}, "2 input layers as keys"),
        "unknown": ({first: data, second: data, "y": 1}, "as keys"),
    }[kind]
    before = values(network)
    with pytest.raises(ValueError, match="batch 1.*" + message):
        update_population_statistics(network, [(data, data), batch])
    assert_same(values(network), before)


def test_inputs_of_unequal_length(data):
    _, network = two_inputs()
    with pytest.raises(ValueError, match="batch 1 does not go .*'bn'"):
        update_population_statistics(
            network, [(data, data), (data, data[:-1])])


def test_targets_are_refused(data):
    with pytest.raises(ValueError, match="Leave out targets"):
        update_population_statistics(chain(1), [(data, data)])


@pytest.mark.parametrize("keep", [None, "memory"])
def test_integers_and_empty_batches(rng, keep):
    numbers = rng.randint(0, 9, (20, 3))
    network = chain(2)
    parts = [numbers[:0], numbers[:7], numbers[:0], numbers[7:], numbers[:0]]
    update_population_statistics(network, parts, keep=keep)
    assert_as_one_batch(network, numbers.astype("float64"))


def test_normalized_over_other_axes(rng):
    """Statistics of batches are not broadcast against each other."""
    network = BatchNormLayer(InputLayer((5, 3)), axes=1, name="bn")
    update_population_statistics(network, [rng.normal(size=(5, 3))] * 2)
    before = values(network)
    for batches in ([(5, 3), (1, 3)], [(1, 3), (1, 3)]):
        with pytest.raises(ValueError):
            update_population_statistics(
                network, [np.ones(shape) for shape in batches])
        assert_same(values(network), before)


# What is kept

def check_keep(data, folder):
    network = chain(3)
    start, results = values(network), []
    for keep in (None, "memory", folder):
        lasagne.layers.set_all_param_values(network, start)
        batches = Batches(split(data, "uneven"))
        update_population_statistics(network, batches, keep=keep)
        count = 3 if keep is None else 1
        assert batches.passes == count
        assert batches.read == count * len(batches.batches)
        results.append(values(network))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])
    assert os.listdir(folder) == []


def test_keep_changes_no_bit(data, tmp_path):
    check_keep(data, str(tmp_path))


def test_keep_changes_no_bit_in_c(data, tmp_path, monkeypatch):
    monkeypatch.setattr(theano.compile.mode, "instantiated_default_mode", None)
    check_keep(data, str(tmp_path))


def test_one_array_for_all_batches(data):
    """What is kept are no views of the user's arrays."""
    layer = InputLayer((None, 3))
    network = BatchNormLayer(
        ConcatLayer([BatchNormLayer(layer), layer]))
    buffer = np.empty((16, 3))

    def batches():
        for part in split(data, 4):
            buffer[...] = part
            yield buffer

    update_population_statistics(network, batches, keep="memory")
    assert_as_one_batch(network, data)


def test_folder_is_empty_after_an_error(data, tmp_path):
    network = chain(3)
    seen = []

    def progress(items):
        seen.append(items)
        for number, item in enumerate(items):
            if len(seen) == 2 and number == 1:
                assert os.listdir(str(tmp_path))
                raise RuntimeError
            yield item

    with pytest.raises(RuntimeError):
        update_population_statistics(network, split(data, 4),
                                     progress=progress, keep=str(tmp_path))
    assert os.listdir(str(tmp_path)) == []


def test_folder_holds_one_array_for_each_batch(data, tmp_path):
    """What a pass has read is removed while that pass goes on."""
    batches, counts = split(data, 4), []

    def progress(items):
        for item in items:
            counts.append(len(list(tmp_path.rglob("*.npy"))))
            yield item

    update_population_statistics(chain(3), batches, progress=progress,
                                 keep=str(tmp_path))
    assert len(batches) <= max(counts) <= len(batches) + 1


class Counting(lasagne.layers.Layer):
    """The identity, which counts how often it is computed."""

    def __init__(self, incoming):
        super().__init__(incoming)
        self.calls = 0

    def get_output_for(self, input, **kwargs):
        def count(value):
            self.calls += 1
            return value.copy()

        return theano.compile.ops.as_op([T.dmatrix], [T.dmatrix])(count)(input)


@pytest.mark.parametrize("keep, expected", [
    (None, [12, 8, 4, 0]), ("memory", [4, 4, 4, 0])])
def test_nothing_is_computed_for_nothing(data, keep, expected):
    layer = InputLayer((None, 3))
    counting = []
    for _ in range(3):
        layer = Counting(layer)
        counting.append(layer)
        layer = BatchNormLayer(layer)
    counting.append(Counting(layer))
    update_population_statistics(counting[-1], split(data, 4), keep=keep)
    assert [layer.calls for layer in counting] == expected


# Layers within a loop of another layer

class Loop(lasagne.layers.Layer):
    """Apply a layer in a loop: to each example, or always to all of them."""

    def __init__(self, incoming, inner, whole):
        super().__init__(incoming)
        self.inner = inner
        self.whole = whole

    def get_output_for(self, input, **kwargs):
        def iteration(example):
            rows = input if self.whole else example.dimshuffle("x", 0)
            return example + self.inner.get_output_for(rows, **kwargs)[0]
        return theano.scan(iteration, sequences=[input])[0]


@pytest.mark.parametrize("whole", [False, True])
def test_layer_in_a_loop(data, whole):
    inner = BatchNormLayer((None, 3), name="inner")
    network = Loop(InputLayer((None, 3)), inner, whole)
    if whole:
        found = update_population_statistics(network, [data])
        assert found[inner].count == len(data)
        assert_allclose(inner.mean.get_value()[0], data.mean(axis=0))
    else:
        with pytest.raises(ValueError, match="'inner'.*out of reach"):
            update_population_statistics(network, [data])


# Nothing changes on failure

@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("failing, at", [(1, 2), (2, 2), (1, 0)])
def test_failing_batches(data, kind, failing, at):
    network, error = chain(2), kind("disk")
    before = values(network)
    passes = []

    def batches():
        passes.append(None)
        for number, batch in enumerate(split(data, 4)):
            if len(passes) == failing and number == at:
                raise error
            yield batch

    with pytest.raises(kind) as caught:
        update_population_statistics(network, batches)
    assert caught.value is error
    assert len(passes) == failing
    assert_same(values(network), before)
    if sys.version_info >= (3, 11) and kind is OSError:
        note, = error.__notes__
        assert f"{at} batches" in note
        assert "'bn%d'" % failing in note


@pytest.mark.parametrize("ddof, batches, message", [
    (0, [], "no data.*pass 1"), (0, [np.ones((0, 3))], "no data"),
    (0, [np.ones((1, 3))], "take 2 values.* have 1"),
    (1, [np.ones((1, 3))], "take 2 values.* have 1"),
    (2, [np.ones((2, 3))], "take 3 values.* have 2")])
def test_too_little_data(ddof, batches, message):
    network = chain(2)
    before = values(network)
    with pytest.raises(ValueError, match="'bn1'.*" + message):
        update_population_statistics(network, batches, ddof=ddof)
    assert_same(values(network), before)


def test_exhausted_iterator(data):
    network = chain(2)
    before = values(network)
    batches = iter(split(data, 4))
    with pytest.raises(ValueError, match="'bn2'.*pass 2.*new iterator"):
        update_population_statistics(network, lambda: batches)
    assert_same(values(network), before)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_not_finite(data, value):
    network = chain(2)
    before = values(network)
    data[40, 1] = value
    with pytest.raises(ValueError, match="'bn1': batch 2 .*not finite"):
        update_population_statistics(network, split(data, 4))
    assert_same(values(network), before)


def test_means_too_far_apart():
    """Of which each is finite, and the deviation of both is not."""
    network = BatchNormLayer(InputLayer((None, 1)), name="bn")
    before = values(network)
    with pytest.raises(ValueError, match="'bn'.*too large"):
        update_population_statistics(
            network, [np.full((2, 1), value) for value in (1e200, -1e200)])
    assert_same(values(network), before)


@pytest.mark.parametrize("keep", [None, "memory"])
def test_number_of_a_batch_not_finite_further_up(data, keep):
    """All batches count, empty ones too, in all passes."""
    first = BatchNormLayer(InputLayer((None, 3)), name="bn1")
    # Infinite for the one value far from the mean.
    peak = NonlinearityLayer(first, lambda x: T.switch(x > 7, np.inf, x))
    network = BatchNormLayer(peak, name="bn2")
    before = values(network)
    data[40] = 1e4
    first, *others = split(data, 4)
    with pytest.raises(ValueError, match="'bn2': batch 3 .*not finite"):
        update_population_statistics(
            network, [first, data[:0]] + others, keep=keep)
    assert_same(values(network), before)


@pytest.mark.parametrize("number", range(4))
def test_failing_store(data, monkeypatch, number):
    network = chain(2)
    before = values(network)
    params = [param for layer in norms(network)
              for param in (layer.mean, layer.std)]
    param = params[number]
    real, calls = param.set_value, []

    def fail(value, *args, **kwargs):
        real(value, *args, **kwargs)
        calls.append(value)
        if len(calls) == 1:
            raise MemoryError("once")

    monkeypatch.setattr(param, "set_value", fail)
    with pytest.raises(MemoryError, match="once"):
        update_population_statistics(network, [data])
    assert calls
    assert_same(values(network), before)


# Arguments

def test_dropout_is_off_by_default(data):
    dropped = DropoutLayer(InputLayer((20, 3)), 0.5)
    network = BatchNormLayer(dropped)
    update_population_statistics(network, [data])
    exact = network.std.get_value()
    assert_allclose(exact, reference.statistics(data, (0,))[1])
    update_population_statistics(network, split(data[:60], 3),
                                 deterministic=False)
    assert (np.abs(network.std.get_value() / exact - 1) > 0.05).any()


def test_dropout_of_batches_of_any_size(data):
    """Whose random numbers depend on the shape of the batch."""
    network = dense_norm(DropoutLayer(dense_norm(InputLayer((None, 3)))))
    for keep in (None, "memory"):
        before = [layer.mean.get_value() for layer in norms(network)]
        found = update_population_statistics(
            network, split(data, 5), keep=keep, deterministic=False)
        # Running averages have not been updated either.
        assert_same([pair[0] for pair in found.replaced.values()], before)


class Scaled(lasagne.layers.Layer):
    def get_output_for(self, input, factor=1, **kwargs):
        return input * factor


def test_arguments_of_get_output(data):
    network = BatchNormLayer(Scaled(InputLayer((None, 3))))
    found = update_population_statistics(network, [data], factor=10)
    assert_allclose(found[network].mean, 10 * data.mean(0, keepdims=True))


def test_no_batch_normalization(data):
    with pytest.raises(ValueError, match="no layer to measure"):
        update_population_statistics(InputLayer((None, 3)), [data])


def test_statistics_that_are_expressions(data):
    network = BatchNormLayer(InputLayer((None, 3)), name="bn")
    # Which Lasagne 0.1 does not take as an argument.
    network.mean = network.mean * 2
    with pytest.raises(ValueError, match="'bn'.*expression"):
        update_population_statistics(network, [data])


def test_unnamed_layers_have_numbers(data):
    network = BatchNormLayer(NonlinearityLayer(
        BatchNormLayer(InputLayer((None, 3))), lambda x: x / 0))
    with pytest.raises(ValueError, match="BatchNormLayer \\(layer 3\\): "):
        update_population_statistics(network, [data])


@pytest.mark.parametrize("kwargs, message", [
    ({"method": "exact"}, "'layerwise' or 'one_pass', got 'exact'"),
    ({"keep": "no such folder"}, "keep must be .*'no such folder'")])
def test_wrong_argument(data, kwargs, message):
    with pytest.raises(ValueError, match=message):
        update_population_statistics(chain(1), [data], **kwargs)


def test_ddof(data):
    network = BatchNormLayer(InputLayer((None, 3)))
    update_population_statistics(network, split(data, 3), ddof=1)
    assert_allclose(network.std.get_value()[0], data.std(0, ddof=1))


def test_replaced(data, rng):
    network = chain(2)
    for layer in norms(network):
        layer.mean.set_value(rng.normal(size=(1, 4)))
        layer.std.set_value(rng.uniform(1, 2, (1, 4)))
    before = {layer: (layer.mean.get_value(), layer.std.get_value())
              for layer in norms(network)}
    found = update_population_statistics(network, [data])
    assert list(found.replaced) == norms(network)
    for layer, pair in found.replaced.items():
        assert_same(pair, before[layer])


@pytest.mark.parametrize("keep", [None, "memory"])
def test_progress(data, keep):
    lengths, done = [], []

    def progress(items):
        lengths.append(len(items))
        for item in items:
            yield item
            done.append(None)

    update_population_statistics(chain(3), split(data, 4), keep=keep,
                                 progress=progress)
    assert lengths == [4, 4, 4]
    assert len(done) == 12


# Training

def test_training_goes_on(data):
    x = T.matrix()
    network = BatchNormLayer(InputLayer((None, 3), x), alpha=0.25)
    train = theano.function([x], get_output(network))
    train(data)
    # One update in all: `replaced` is what training had left.
    running = network.mean.get_value(), network.std.get_value()
    found = update_population_statistics(network, split(data, 4))
    assert_same(found.replaced[network], running)
    statistics = reference.statistics(data, (0,))
    assert_allclose(network.mean.get_value(), statistics[0])
    train(2 * data)
    for param, value in zip((network.mean, network.std), statistics):
        assert_allclose(param.get_value(), 0.75 * value + 0.25 * 2 * value)


# Memory

@pytest.mark.parametrize("peak_of", ["few", "many"])
def test_only_one_batch_is_in_memory(peak_of):
    count = {"few": 10, "many": 300}[peak_of]
    network = BatchNormLayer(NonlinearityLayer(BatchNormLayer(
        InputLayer((None, 3))), T.tanh))

    def batches():
        for number in range(count):
            yield np.full((1000, 3), float(number)) + np.eye(1000, 3)

    update_population_statistics(network, lambda: [next(batches())])
    tracemalloc.start()
    try:
        found = update_population_statistics(network, batches)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found[network].count == 1000 * count
    # All of it would take 7 MB.
    assert peak < 3e6


# Types

def test_statistics_too_large_for_what_stores_them(rng):
    """Inputs in double precision, statistics in single."""
    with theano.configparser.change_flags(floatX="float32"):
        network = BatchNormLayer(
            InputLayer((None, 2), T.dmatrix()), name="bn")
    before = values(network)
    with pytest.raises(ValueError, match="'bn'.*too large for float32"):
        update_population_statistics(
            network, [1e100 * rng.normal(size=(5, 2))])
    assert_same(values(network), before)


def test_fractions_for_an_input_of_integers(rng):
    network = BatchNormLayer(InputLayer((None, 2), T.imatrix(), name="in"))
    with pytest.raises(ValueError, match="'in' takes arrays of int32"):
        update_population_statistics(network, [rng.normal(size=(5, 2))])


@pytest.mark.parametrize("name", [
    "inputs", "batch_norm_use_averages", "batch_norm_update_averages"])
def test_arguments_that_are_not_the_users(data, name):
    network = BatchNormLayer(InputLayer((None, 3)))
    with pytest.raises(TypeError, match=name):
        update_population_statistics(network, [data], **{name: True})


@pytest.mark.parametrize("network, progress, message", [
    (None, None, "network must be a Layer"),
    ([BatchNormLayer((None, 3)), 3], None, "network must be a Layer"),
    (BatchNormLayer((None, 3)), True, "progress must be None or a callable"),
])
def test_arguments_of_another_type(data, network, progress, message):
    with pytest.raises(TypeError, match=message):
        update_population_statistics(network, [data], progress=progress)
