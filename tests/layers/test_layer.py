"""BatchNormLayer: parameters, arguments, flags, stored statistics."""

import concurrent.futures
import pickle

import bnlasagne
from bnlasagne import BatchNormLayer, batch_norm
from bnlasagne.layers.layer import applications

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.common import TOLERANCE, needs_compiler, tensor
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


def run(layer, *batches, **flags):
    """Apply the layer to each batch, in one function each; the outputs."""
    variable = tensor(batches[0])
    function = theano.function(
        [variable], layer.get_output_for(variable, **flags))
    return [function(batch) for batch in batches]


def stored(layer):
    return [layer.mean.get_value(), layer.std.get_value()]


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
    assert_allclose(run(without_beta, x)[0],
                    reference.normalize_batch(x, (0,), gamma=gamma),
                    **TOLERANCE[floatX])
    assert_allclose(run(without_gamma, x)[0],
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
    assert_allclose(run(one, x)[0], 2 * reference.normalize_batch(x, (0,)))


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


# Axes

@pytest.mark.parametrize("axes, expected", [
    (None, (0, 2, 3)),
    ("auto", (0, 2, 3)),
    (1, (1,)),
    (-1, (3,)),
    ((0, -2), (0, 2)),
    ([3, 0], (0, 3)),
    (np.int64(2), (2,)),
])
def test_axes(axes, expected):
    layer = BatchNormLayer((2, 3, 4, 5), axes=axes)
    assert layer.axes == expected
    assert layer.mean.get_value().shape == tuple(
        1 if axis in expected else size
        for axis, size in enumerate((2, 3, 4, 5)))


@pytest.mark.parametrize("axes, error, message", [
    (4, ValueError, "axis 4 is out of range .* 4 dimensions"),
    ((0, -5), ValueError, "axis -5 is out of range"),
    ((0, 0), ValueError, "twice"),
    ((1, -3), ValueError, "twice"),
    ((), ValueError, "at least one axis"),
    ("spatial", TypeError, "axes must be"),
    (1.0, TypeError, "axes must be"),
    ((0, "1"), TypeError, "axes must be"),
])
def test_wrong_axes(axes, error, message):
    with pytest.raises(error, match="BatchNormLayer 'bn'.*" + message):
        BatchNormLayer((2, 3, 4, 5), axes=axes, name="bn")


def test_unknown_size():
    BatchNormLayer((64, 2, None), axes=(0, 2))
    with pytest.raises(ValueError) as error:
        BatchNormLayer((64, None, 3), name="bn")
    message = str(error.value)
    assert "BatchNormLayer 'bn' needs specified input sizes" in message
    assert "axis 1" in message
    assert "axes=(0, 1, 2)" in message


# Other arguments

@pytest.mark.parametrize("arguments, error, message", [
    ({"epsilon": -1}, ValueError, "epsilon must be a number from 0 to inf"),
    ({"epsilon": "0.1"}, TypeError, "epsilon must be a number or a scalar"),
    ({"epsilon": float("nan")}, ValueError, "epsilon"),
    ({"alpha": 1.5}, ValueError, "alpha must be a number from 0 to 1"),
    ({"alpha": np.ones(3)}, ValueError, "alpha must be a number"),
    ({"alpha": T.vector()}, ValueError, "alpha must be a scalar"),
    ({"nonlinearity": "rectify"}, TypeError, "nonlinearity must be None or"),
    ({"beta": np.zeros(4)}, ValueError,
     r"beta must have shape \(1, 3\) or \(3,\), got \(4,\)"),
    ({"gamma": "ones"}, TypeError, "gamma must be an array"),
    ({"mean": theano.shared(np.zeros(3))}, ValueError,
     "mean must have 2 dimensions"),
    ({"std": None}, TypeError, "std must be an array"),
])
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match="BatchNormLayer 'bn': " + message):
        BatchNormLayer((None, 3), name="bn", **arguments)


@pytest.mark.parametrize("incoming", [None, [None, 3], np.zeros((2, 3))])
def test_incoming_that_is_no_layer(incoming):
    with pytest.raises(TypeError, match="incoming must be a Layer"):
        BatchNormLayer(incoming)


def test_input_with_wrong_number_of_dimensions():
    layer = BatchNormLayer((None, 3), name="bn")
    with pytest.raises(ValueError, match="'bn' expects .* 2 dimensions.* 3"):
        layer.get_output_for(T.tensor3())


# Outputs and stored statistics

@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("use", [None, False, True])
@pytest.mark.parametrize("update", [None, False, True])
def test_flags(rng, floatX, quick, deterministic, use, update):
    x = rng.normal(2, 3, (6, 3, 4)).astype(floatX)
    mean, beta, gamma = rng.normal(size=(3, 3)).astype(floatX)
    std = rng.uniform(0.5, 2, 3).astype(floatX)
    layer = BatchNormLayer((None, 3, 4), alpha=0.3, epsilon=0.1, mean=mean,
                           std=std, beta=beta, gamma=gamma)
    flags = {"deterministic": deterministic,
             "batch_norm_use_averages": use,
             "batch_norm_update_averages": update}
    actual, = run(layer, x, **flags)

    use = deterministic if use is None else use
    update = not deterministic if update is None else update
    before = [value.reshape(1, 3, 1) for value in (mean, std)]
    batch = reference.statistics(x, (0, 2))
    expected = reference.normalize(
        x, *(before if use else batch), gamma=gamma[:, None],
        beta=beta[:, None], epsilon=0.1)
    after = [reference.running_average(old, [new] if update else [], 0.3)
             for old, new in zip(before, batch)]
    assert actual.dtype == floatX
    assert_allclose(actual, expected, **TOLERANCE[floatX])
    assert_allclose(stored(layer), after, **TOLERANCE[floatX])


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
    mean, std = (reference.running_average(old, [new]) for old, new
                 in zip((0, 1), reference.statistics(x, (0,))))
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
        y, = run(layer, rng.normal(size=(4, 3)).astype("float32"))
    assert y.dtype == layer.mean.dtype == "float32"


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_integer_input(rng, floatX, quick, dtype):
    x = rng.randint(0, 255, (6, 3)).astype(dtype)
    y, = run(BatchNormLayer((None, 3)), x)
    assert y.dtype == floatX
    assert_allclose(y, reference.normalize_batch(x, (0,)), rtol=1e-4,
                    atol=1e-4)


def test_half_precision(rng, quick):
    with theano.configparser.change_flags(floatX="float16"):
        layer = BatchNormLayer((None, 3))
        x = rng.normal(size=(6, 3)).astype("float16")
        y, = run(layer, x)
    assert y.dtype == layer.mean.dtype == "float16"
    assert_allclose(y, reference.normalize_batch(x, (0,)), atol=1e-2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_batch_that_is_not_finite_leaves_all_averages(
        rng, floatX, quick, value):
    layer = BatchNormLayer((None, 3))
    x = rng.normal(size=(4, 3)).astype(floatX)
    broken = x.copy()
    broken[2, 1] = value
    run(layer, x, broken)
    mean, std = reference.statistics(x, (0,))
    assert_allclose(layer.mean.get_value(), mean / 2, rtol=1e-5)
    assert_allclose(layer.std.get_value(), (1 + std) / 2, rtol=1e-5)


def test_batch_whose_squares_overflow_moves_both_averages(rng, quick):
    layer = BatchNormLayer((None, 3))
    x = rng.normal(0, 1e25, (4, 3)).astype("float32")
    run(layer, x)
    mean, std = reference.statistics(x, (0,))
    assert_allclose(layer.mean.get_value(), mean / 2, rtol=1e-5)
    assert_allclose(layer.std.get_value(), (1 + std) / 2, rtol=1e-5)


@pytest.mark.parametrize("size", [0, 1])
def test_batch_without_two_values_leaves_averages(rng, floatX, quick, size):
    beta = rng.normal(size=(1, 3)).astype(floatX)
    layer = BatchNormLayer((None, 3), beta=beta)
    y, = run(layer, rng.normal(size=(size, 3)).astype(floatX))
    assert_allclose(y, np.repeat(beta, size, axis=0))
    assert_array_equal(layer.mean.get_value(), np.zeros((1, 3)))
    assert_array_equal(layer.std.get_value(), np.ones((1, 3)))


def test_one_example_with_two_positions_counts(rng, float64, quick):
    layer = BatchNormLayer((None, 3, 2))
    x = rng.normal(size=(1, 3, 2))
    run(layer, x)
    assert_allclose(layer.mean.get_value(),
                    x.mean((0, 2), keepdims=True) / 2)


def test_averages_that_are_expressions_cannot_be_updated():
    layer = BatchNormLayer((None, 3), name="bn")
    layer.mean = layer.mean * 2
    layer.get_output_for(T.matrix(), batch_norm_update_averages=False)
    with pytest.raises(ValueError, match="'bn' cannot update .* expression"):
        layer.get_output_for(T.matrix())


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


# Names of other frameworks and of Lasagne's later layer

@pytest.mark.parametrize("name, advice", [
    ("momentum", "alpha"), ("eps", "epsilon"), ("axis", "axes"),
    ("scale", "gamma=None"), ("center", "beta=None"), ("affine", "beta=None"),
    ("track_running_stats", "batch_norm_update_averages"), ("var", "std"),
    ("mode", "one way"), ("alfa", "alpha"), ("colour", "epsilon")])
def test_arguments_of_other_frameworks(name, advice):
    dense = DenseLayer((None, 4), 3)
    before = dict(vars(dense))
    with pytest.raises(TypeError, match="no argument %s.*%s" % (name, advice)):
        batch_norm(dense, **{name: 0.9})
    assert vars(dense) == before


@pytest.mark.parametrize("flag, meant", [
    ("batch_norm_updates_averages", "batch_norm_update_averages"),
    ("batch_norm_use_average", "batch_norm_use_averages"),
    ("batchnorm_use_averages", "batch_norm_use_averages"),
    ("update_averages", "batch_norm_update_averages"),
    ("determinstic", "deterministic")])
def test_misspelled_flags(flag, meant):
    layer = BatchNormLayer(InputLayer((None, 3)), name="bn")
    with pytest.raises(TypeError, match="'bn'.*%s.*%s" % (flag, meant)):
        get_output(layer, **{flag: False})


def test_flags_of_other_layers_are_let_through():
    get_output(BatchNormLayer(InputLayer((None, 3))), unroll=True,
               deterministic_dropout=True)


@pytest.mark.parametrize("flag, value, error", [
    ("deterministic", T.iscalar(), TypeError),
    ("batch_norm_use_averages", "no", TypeError),
    ("batch_norm_update_averages", [], ValueError)])
def test_flags_of_wrong_types(flag, value, error):
    layer = BatchNormLayer(InputLayer((None, 3)), name="bn")
    with pytest.raises(error, match="'bn'.*%s must be True" % flag):
        get_output(layer, **{flag: value})


def test_flags_may_be_numbers(quick):
    layer = BatchNormLayer(InputLayer((None, 3)))
    assert get_output(layer, deterministic=np.bool_(True),
                      batch_norm_update_averages=0)


def test_inverse_standard_deviation(rng, floatX, quick):
    std = rng.uniform(0.1, 2, 3)
    layer = BatchNormLayer((None, 3), std=std, epsilon=0.25)
    expected = 1 / (std + 0.25)
    for value in (layer.inv_std.get_value(), layer.inv_std.eval()):
        assert value.dtype == floatX
        assert_allclose(value[0], expected, rtol=1e-6)
    assert layer.inv_std.name == "inv_std"
    again = BatchNormLayer((None, 3), inv_std=expected, epsilon=0.25)
    assert_allclose(again.std.get_value()[0], std, rtol=1e-5)
    again = BatchNormLayer((None, 3), inv_std=lasagne.init.Constant(2))
    assert_allclose(again.std.get_value(), 0.49, rtol=1e-5)
    shared = BatchNormLayer((None, 3), inv_std=layer.inv_std, epsilon=0.25)
    assert shared.std is layer.std
    x = T.matrix()
    assert_allclose(theano.function([x], x * layer.inv_std)(
        np.ones((2, 3), floatX)), [expected] * 2, rtol=1e-6)
    with pytest.raises(ValueError, match="std and inv_std"):
        BatchNormLayer((None, 3), std=1., inv_std=1.)


@pytest.mark.parametrize("inv_std", [
    0, -1, np.nan, T.row(), theano.shared(np.ones((1, 3))),
    BatchNormLayer((None, 3), epsilon=1).inv_std])
def test_wrong_inverse_standard_deviations(inv_std):
    with pytest.raises(ValueError, match="'bn'.*inv_std"):
        BatchNormLayer((None, 3), inv_std=inv_std, name="bn")


def test_inverse_standard_deviation_cannot_be_set():
    layer = BatchNormLayer((None, 3))
    with pytest.raises(AttributeError, match=r"set_statistics\(mean, inv_st"):
        layer.inv_std = np.ones(3)
    with pytest.raises(AttributeError, match=r"set_lasagne_values\(\)"):
        layer.inv_std.set_value(np.ones(3))


# Setting parameters by vectors

@pytest.mark.parametrize("shape", [(None, 3), (None, 3, 4, 5)])
def test_set_values(rng, shape):
    layer = BatchNormLayer(shape)
    values = dict(zip(("mean", "std", "beta", "gamma"), rng.rand(4, 3)))
    layer.set_values(**values)
    for name, value in values.items():
        param = getattr(layer, name).get_value()
        assert param.shape == layer.param_shape()
        assert_allclose(param.ravel(), value, rtol=1e-6)
    layer.set_values(beta=0.5, gamma=np.full(layer.param_shape(), 2))
    assert_array_equal(layer.beta.get_value().ravel(), [0.5] * 3)
    assert_array_equal(layer.gamma.get_value().ravel(), [2] * 3)


@pytest.mark.parametrize("values, error, message", [
    ({"gamma": np.ones(4)}, ValueError, "'bn'.*gamma.*shape"),
    ({"beta": np.ones(3)}, ValueError, "'bn'.*no parameter beta.*gamma"),
    ({"inv_std": 1}, ValueError, r"'bn'.*inv_std.*set_statistics\(\)"),
    ({"gamma": "a"}, TypeError, "'bn'.*gamma"),
])
def test_wrong_values_change_nothing(values, error, message):
    layer = BatchNormLayer((None, 3), beta=None, name="bn")
    with pytest.raises(error, match=message):
        layer.set_values(mean=np.ones(3), **values)
    assert_array_equal(layer.mean.get_value(), np.zeros((1, 3)))


# Layers of older versions and of subclasses

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


def test_axes_that_were_changed_afterwards():
    layer = BatchNormLayer(InputLayer((None, 3)), name="bn")
    layer.axes = (1,)
    for flag in (False, True):
        with pytest.raises(ValueError, match=r"'bn'.*axes=\(1,\).*Pass axes="):
            get_output(layer, deterministic=flag)


# Threads

def test_contexts_are_those_of_a_thread(quick):
    def build():
        x = T.matrix()
        output = BatchNormLayer((None, 3)).get_output_for(x)
        nodes = theano.function([x], output).maker.fgraph.apply_nodes
        return {type(node.op).__name__ for node in nodes}

    with bnlasagne.plain_expressions(), applications() as recorded:
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            assert "BatchNormalize" in threads.submit(build).result()
        assert "BatchNormalize" not in build()
    assert len(recorded) == 1


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
