"""BatchNormLayer: its parameters, outputs and running averages."""

import concurrent.futures
import pickle

import bnlasagne
from bnlasagne import BatchNormLayer, batch_norm

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.common import TOLERANCE, needs_compiler, tensor
from helpers.layers import apply, averages, expected_averages
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lasagne.layers import (
    DenseLayer,
    InputLayer,
    get_all_layers,
    get_all_param_values,
    get_all_params,
    get_output,
    set_all_param_values,
)
from numpy.testing import assert_allclose, assert_array_equal

# Parameters

def test_parameters():
    layer = BatchNormLayer((None, 3, 4, 5), name="bn")
    assert layer.get_params() == [
        layer.mean, layer.std, layer.beta, layer.gamma]
    assert [param.name for param in layer.get_params()] == [
        "bn.mean", "bn.std", "bn.beta", "bn.gamma"]
    for param, value in zip(layer.get_params(), (0, 1, 0, 1)):
        assert param.dtype == theano.config.floatX
        assert_array_equal(param.get_value(), np.full((1, 3, 1, 1), value))


def test_tags():
    layer = BatchNormLayer((None, 3))
    assert layer.get_params(trainable=True) == [layer.beta, layer.gamma]
    assert layer.get_params(regularizable=True) == [layer.beta]
    assert layer.get_params(batch_norm_stat=True) == [layer.mean, layer.std]


@pytest.mark.parametrize("shape", [(None, 3), (None, 3, 4, 5), (None, 1, 4)])
def test_parameters_may_be_replaced_by_plain_shared_variables(
        shape, rng, float64, quick):
    """As hand-written optimizers and averages of parameters do."""
    x = T.TensorType("float64", (False,) * len(shape))()
    layer = BatchNormLayer(InputLayer(shape, x), gamma=np.full(shape[1], 2.))
    loss = T.sqr(get_output(layer) - 1).mean()
    params = layer.get_params(trainable=True)
    states, updates = [], []
    for param, gradient in zip(params, T.grad(loss, params)):
        state = theano.shared(param.get_value() * 0)
        states.append(state)
        updates += [(state, 0.9 * state + gradient),
                    (param, T.clip(param - 0.1 * state, -5, 5))]
    train = theano.function([x], loss, updates=updates)
    batch = rng.normal(size=(6,) + tuple(size or 6 for size in shape[1:]))
    train(batch)
    for param, value in zip(params, (0, 2)):
        assert_array_equal(param.get_value(), np.full_like(
            param.get_value(), value))  # the state was zero
    averages = [theano.shared(param.get_value() + 1) for param in params]
    output = theano.function([x], get_output(layer, deterministic=True),
                             givens=list(zip(params, averages)))(batch)
    mean, std = (average.get_value() for average in (layer.mean, layer.std))
    assert_allclose(output, (batch - mean) / (std + 0.01) * 3 + 1)


def test_parameters_may_be_left_out(rng, floatX, quick):
    x = rng.normal(size=(6, 3)).astype(floatX)
    gamma, beta = rng.normal(size=(2, 1, 3)).astype(floatX)
    without_beta = BatchNormLayer((None, 3), beta=None, gamma=gamma)
    without_gamma = BatchNormLayer((None, 3), beta=beta, gamma=None)
    assert without_beta.beta is None
    assert without_gamma.gamma is None
    assert len(without_beta.get_params()) == 3
    assert len(without_gamma.get_params()) == 3
    assert_allclose(apply(without_beta, x)[0],
                    reference.normalize_batch(x, (0,), gamma=gamma),
                    **TOLERANCE[floatX])
    assert_allclose(apply(without_gamma, x)[0],
                    reference.normalize_batch(x, (0,), beta=beta),
                    **TOLERANCE[floatX])


@pytest.mark.parametrize("value", [
    np.arange(6.0).reshape(1, 3, 1, 2),
    np.arange(6.0).reshape(3, 2),
    lambda shape: np.arange(np.prod(shape)).reshape(shape),
], ids=["full", "without the axes", "callable"])
def test_initial_values(value, floatX):
    layer = BatchNormLayer((5, 3, 4, 2), axes=(0, 2), beta=value)
    assert layer.beta.dtype == floatX
    assert_array_equal(layer.beta.get_value(),
                       np.arange(6.0).reshape(1, 3, 1, 2))


def test_initial_value_may_be_a_number():
    layer = BatchNormLayer((5, 3), gamma=0.5)
    assert_array_equal(layer.gamma.get_value(), np.full((1, 3), 0.5))


def test_shared_parameters_stay_the_users(rng, float64, quick):
    gamma = theano.shared(np.full((1, 3), 2.0))  # not broadcastable
    one = BatchNormLayer((None, 3), gamma=gamma)
    other = BatchNormLayer((None, 3), gamma=one.gamma, mean=one.mean)
    assert one.gamma is other.gamma is gamma
    assert one.mean is other.mean
    x = rng.normal(size=(6, 3))
    assert_allclose(apply(one, x)[0], 2 * reference.normalize_batch(x, (0,)))


def test_list_saved_from_the_original_loads(rng, quick):
    """The original's parameters: W, mean, std, beta, gamma, then W, b."""
    values = [rng.normal(size=shape) for shape in (
        (4, 3), (1, 3), (1, 3), (1, 3), (1, 3), (3, 2), (2,))]
    values = [value.astype(theano.config.floatX) for value in values]
    network = InputLayer((None, 4))
    network = batch_norm(DenseLayer(network, 3))
    network = DenseLayer(network, 2, nonlinearity=None)
    set_all_param_values(network, values)
    for ours, theirs in zip(get_all_param_values(network), values):
        assert_array_equal(ours, theirs)
    x = rng.normal(size=(5, 4)).astype(theano.config.floatX)
    W, mean, std, beta, gamma, V, b = values
    hidden = reference.normalize(x @ W, mean, std, gamma, beta)
    actual = get_output(network, T.constant(x), deterministic=True).eval()
    assert_allclose(actual, np.maximum(hidden, 0) @ V + b,
                    rtol=1e-4, atol=1e-4)


# Outputs and running averages

@st.composite
def batches(draw):
    """A batch of any shape, axes to normalize over, and a seed."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=5)))
    axes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    return shape, tuple(sorted(axes)), draw(st.integers(0, 99))


@settings(max_examples=12,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches())
@example(((5, 3), (0,), 0))
@example(((5, 3, 2, 4), (0, 2, 3), 1))
def test_shapes_and_axes(float64, quick, expressions, drawn):
    shape, axes, seed = drawn
    rng = np.random.RandomState(seed)
    batch = rng.normal(2, 3, shape)
    layer = BatchNormLayer(shape, axes=axes, epsilon=0.1, alpha=0.3)
    gamma, beta = rng.normal(size=(2,) + layer.param_shape())
    layer.set_values(gamma=gamma, beta=beta)
    moves = np.prod([shape[axis] for axis in axes]) > 1
    after = expected_averages(layer, *[batch] if moves else [])
    output, = apply(layer, batch)
    assert_allclose(output, reference.normalize_batch(
        batch, axes, gamma, beta, epsilon=0.1), rtol=1e-10, atol=1e-10)
    for actual, expected in zip(averages(layer), after):
        assert_allclose(actual, np.broadcast_to(expected, actual.shape),
                        rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("use", [None, False, True])
@pytest.mark.parametrize("update", [None, False, True])
def test_flags(rng, float64, quick, deterministic, use, update):
    x = rng.normal(2, 3, (6, 3, 4))
    before = rng.normal(size=(1, 3, 1)), rng.uniform(0.5, 2, (1, 3, 1))
    layer = BatchNormLayer((None, 3, 4), alpha=0.3, epsilon=0.1,
                           mean=before[0], std=before[1])
    actual, = apply(layer, x, deterministic=deterministic,
                    batch_norm_use_averages=use,
                    batch_norm_update_averages=update)
    use = deterministic if use is None else use
    update = not deterministic if update is None else update
    statistics = before if use else reference.statistics(x, (0, 2))
    after = expected_averages(layer, x, before=before) if update else before
    assert_allclose(actual, reference.normalize(x, *statistics, epsilon=0.1))
    assert_allclose(averages(layer), after)


@pytest.mark.parametrize("floatX", ["float32"], indirect=True)
def test_network_in_c(rng, floatX):
    x = rng.normal(2, 3, (6, 3)).astype(floatX)
    network = InputLayer((None, 3))
    network = BatchNormLayer(network, nonlinearity=lasagne.nonlinearities.tanh)
    variable = get_all_layers(network)[0].input_var = tensor(x)
    train = theano.function([variable], get_output(network))
    assert_allclose(train(x), np.tanh(reference.normalize_batch(x, (0,))),
                    **TOLERANCE[floatX])
    test = theano.function([variable],
                           get_output(network, deterministic=True))
    mean, std = expected_averages(network, x)
    assert_allclose(test(x), np.tanh(reference.normalize(x, mean, std)),
                    **TOLERANCE[floatX])


@pytest.mark.parametrize("wrapped", [False, True])
def test_alpha_may_change(rng, float64, quick, wrapped):
    alpha = theano.shared(0.5)
    layer = BatchNormLayer((None, 3), alpha=alpha * 1 if wrapped else alpha)
    x = T.matrix()
    function = theano.function([x], layer.get_output_for(x))
    batches = rng.normal(size=(2, 5, 3))
    expected = 0
    for batch, value in zip(batches, (0.25, 1)):
        alpha.set_value(value)
        function(batch)
        expected = reference.running_average(
            expected, [batch.mean(0, keepdims=True)], value)
        assert_allclose(layer.mean.get_value(), expected)


def test_wide_scalars_do_not_widen_the_output(rng, quick):
    with theano.configparser.change_flags(floatX="float32"):
        layer = BatchNormLayer(
            (None, 3), epsilon=theano.shared(np.float64(0.01)),
            alpha=theano.shared(np.float64(0.5)))
        y, = apply(layer, rng.normal(size=(4, 3)).astype("float32"))
    assert y.dtype == layer.mean.dtype == "float32"


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_integer_input(rng, floatX, quick, dtype):
    x = rng.randint(0, 255, (6, 3)).astype(dtype)
    y, = apply(BatchNormLayer((None, 3)), x)
    assert y.dtype == floatX
    assert_allclose(y, reference.normalize_batch(x, (0,)), rtol=1e-4,
                    atol=1e-4)


def test_half_precision(rng, quick):
    with theano.configparser.change_flags(floatX="float16"):
        layer = BatchNormLayer((None, 3))
        x = rng.normal(size=(6, 3)).astype("float16")
        y, = apply(layer, x)
    assert y.dtype == layer.mean.dtype == "float16"
    assert_allclose(y, reference.normalize_batch(x, (0,)), atol=1e-2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_batch_that_is_not_finite_leaves_all_averages(
        rng, floatX, quick, value):
    layer = BatchNormLayer((None, 3))
    x = rng.normal(size=(4, 3)).astype(floatX)
    broken = x.copy()
    broken[2, 1] = value
    apply(layer, x, broken)
    assert_allclose(averages(layer), expected_averages(layer, x), rtol=1e-5)


def test_batch_whose_squares_overflow_moves_both_averages(rng, quick):
    layer = BatchNormLayer((None, 3))
    x = rng.normal(0, 1e25, (4, 3)).astype("float32")
    apply(layer, x)
    assert_allclose(averages(layer), expected_averages(layer, x), rtol=1e-5)


@pytest.mark.parametrize("size", [0, 1])
def test_batch_without_two_values_leaves_averages(rng, floatX, quick, size):
    beta = rng.normal(size=(1, 3)).astype(floatX)
    layer = BatchNormLayer((None, 3), beta=beta)
    y, = apply(layer, rng.normal(size=(size, 3)).astype(floatX))
    assert_allclose(y, np.repeat(beta, size, axis=0))
    assert_array_equal(averages(layer), [np.zeros((1, 3)), np.ones((1, 3))])


def test_one_example_with_two_positions_counts(rng, float64, quick):
    layer = BatchNormLayer((None, 3, 2))
    x = rng.normal(size=(1, 3, 2))
    apply(layer, x)
    assert_allclose(layer.mean.get_value(),
                    x.mean((0, 2), keepdims=True) / 2)


def test_network_pickles(rng, floatX, quick):
    network = batch_norm(DenseLayer(InputLayer((None, 4), name="in"), 3))
    x = rng.normal(size=(5, 4)).astype(floatX)
    theano.function([], get_output(network, T.constant(x)))()
    copy = pickle.loads(pickle.dumps(network))
    for one, other in zip(get_all_param_values(network),
                          get_all_param_values(copy)):
        assert_array_equal(one, other)
    for one, other in zip(get_all_params(network), get_all_params(copy)):
        assert one is not other
    theano.function([], get_output(copy, T.constant(x)))()
    assert np.any(network.mean.get_value() != copy.mean.get_value())


def test_what_the_package_exports():
    for name in bnlasagne.__all__:
        assert hasattr(bnlasagne, name)


# Layers of older versions

def test_pickles_name_modules_of_older_versions():
    layer = BatchNormLayer((None, 3))
    new, old = b"cbnlasagne.layers.layer\n", b"cbnlasagne.layer\n"
    pickled = pickle.dumps([layer, layer.get_output_for], 0)
    assert new in pickled
    loaded, method = pickle.loads(pickled.replace(new, old))
    assert type(loaded) is BatchNormLayer and method.__self__ is loaded
    for line, what in [
            (b"layer\nbatch_norm", batch_norm),
            (b"folding\nFolding", bnlasagne.folding.fold.Folding),
            (b"folding\nfold_batch_norm", bnlasagne.fold_batch_norm),
            (b"population\nPopulationStatistics",
             bnlasagne.PopulationStatistics)]:
        assert pickle.loads(b"cbnlasagne." + line + b"\n.") is what


@pytest.mark.parametrize("missing", [
    ["frozen", "channel", "r_max", "d_max"],  # the original class
    ["channel"], ["r_max", "d_max"]])
def test_pickles_of_older_classes(rng, floatX, quick, missing):
    x = T.matrix()
    layer = BatchNormLayer(InputLayer((None, 3), x), name="bn", alpha=0.25,
                           nonlinearity=lasagne.nonlinearities.tanh)
    old = BatchNormLayer.__new__(BatchNormLayer)
    vars(old).update((name, value) for name, value in vars(layer).items()
                     if name not in missing)
    loaded = pickle.loads(pickle.dumps(old, -1))
    assert not set(vars(loaded)) & set(missing)
    batch = rng.normal(2, 3, (5, 3)).astype(floatX)
    y = loaded.input_layer.input_var
    actual = theano.function([y], get_output(loaded))(batch)
    assert_allclose(actual, np.tanh(reference.normalize_batch(batch, (0,))),
                    **TOLERANCE[floatX])
    assert_allclose(loaded.mean.get_value()[0], 0.25 * batch.mean(axis=0),
                    **TOLERANCE[floatX])
    with bnlasagne.freeze_batch_norm(loaded):
        assert loaded.frozen
    bnlasagne.update_population_statistics(loaded, [batch])
    bnlasagne.fold_batch_norm(loaded)


# Threads

def test_contexts_are_those_of_a_thread(quick):
    def build():
        x = T.matrix()
        output = BatchNormLayer((None, 3)).get_output_for(x)
        nodes = theano.function([x], output).maker.fgraph.apply_nodes
        return {type(node.op).__name__ for node in nodes}

    with bnlasagne.plain_expressions():
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            assert "BatchNormalize" in threads.submit(build).result()
        assert "BatchNormalize" not in build()


@pytest.mark.parametrize("linker", [
    "py", pytest.param("cvm", marks=needs_compiler)])
def test_one_factor_for_all_channels(rng, float64, linker):
    x = T.matrix()
    one = [theano.shared(np.full((1, 1), value), broadcastable=(True, True))
           for value in (2., 3., 4., 5.)]
    layer = BatchNormLayer(InputLayer((None, 3), x), **dict(zip(
        ("mean", "std", "beta", "gamma"), one)))
    output = get_output(layer, batch_norm_update_averages=False)
    gradient = T.grad(T.sqr(output).sum(), layer.gamma)
    batch = rng.normal(size=(5, 3))
    function = theano.function(
        [x], [output, gradient, get_output(layer, deterministic=True)],
        mode=theano.Mode(linker, "fast_run"))
    trained, by_gamma, tested = function(batch)
    normalized = reference.normalize_batch(batch, (0,))
    assert_allclose(trained, 5 * normalized + 4)
    assert_allclose(by_gamma, [[2 * np.sum(
        normalized * (5 * normalized + 4))]])
    assert_allclose(tested, (batch - 2) / 3.01 * 5 + 4)
