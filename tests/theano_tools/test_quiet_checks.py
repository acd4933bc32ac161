"""Flags of Theano's that make it stricter about the user's expressions."""

import contextlib

from bnlasagne import (
    BatchNormLayer,
    CumulativeAverage,
    GradientAccumulator,
    batch_norm,
    fold_batch_norm,
    get_batch_norm_updates,
    plain_expressions,
    update_population_statistics,
)
from bnlasagne.theano_tools.quiet_checks import quiet_checks

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from lasagne.layers import (
    DenseLayer,
    InputLayer,
    get_all_params,
    get_output,
)

pytestmark = pytest.mark.usefixtures("quick")

FLAGS = {
    "warn_float64": "raise",
    "compute_test_value": "raise",
    "int_division": "raise",
    "cast_policy": "numpy+floatX",
    "on_shape_error": "raise",
}
BATCH = np.random.RandomState(0).normal(2, 3, (6, 4)).astype("float32")


@pytest.fixture(params=list(FLAGS), autouse=True)
def strict(request):
    # Test values are computed in C where there is a compiler, Op by Op.
    with theano.configparser.change_flags(
            floatX="float32", cxx="", **{request.param: FLAGS[request.param]}):
        yield


@pytest.fixture
def x():
    variable = T.matrix("x")
    variable.tag.test_value = BATCH
    return variable


def network(x, **kwargs):
    lasagne.random.set_rng(np.random.RandomState(1))
    return DenseLayer(batch_norm(DenseLayer(InputLayer((None, 4), x), 3),
                                 **kwargs), 2)


def loss_of(layer):
    return T.sqr(get_output(layer) - 1).mean()


def train(x, layer):
    loss = loss_of(layer)
    updates = lasagne.updates.adam(
        loss, get_all_params(layer, trainable=True), np.float32(0.1))
    return theano.function([x], loss, updates=updates)(BATCH)


@pytest.mark.parametrize("kwargs, context", [
    ({}, contextlib.nullcontext),
    ({"r_max": 3, "d_max": 5}, plain_expressions),
    ({"alpha": lambda: theano.shared(np.float32(0.3)),
      "epsilon": lambda: theano.shared(np.float32(0.3))},
     contextlib.nullcontext),
    ({"alpha": lambda: CumulativeAverage().alpha}, plain_expressions)])
def test_train_and_test(x, kwargs, context):
    with context():
        layer = network(x, **{name: value() if callable(value) else value
                              for name, value in kwargs.items()})
        before = train(x, layer)
        assert train(x, layer) < before
        test = theano.function([x], get_output(layer, deterministic=True))
        frozen = T.grad(get_output(layer, deterministic=True).sum(), x)
        assert np.all(np.isfinite(theano.function([x], frozen)(BATCH)))
        assert test(BATCH).shape == (6, 2)


@pytest.mark.parametrize("combine", ["chain", "pool"])
def test_explicit_updates(x, combine):
    layer = network(x)
    outputs = [get_output(layer), get_output(layer, x * np.float32(2))]
    updates = get_batch_norm_updates(outputs, combine=combine)
    with quiet_checks() if combine == "pool" else \
            contextlib.nullcontext():  # pools in double precision
        theano.function([x], outputs, updates=updates)(BATCH)


def test_gradients_of_gradients(x):
    layer = network(x)
    params = get_all_params(layer, trainable=True)
    penalty = sum(T.sqr(gradient).sum()
                  for gradient in T.grad(loss_of(layer), params))
    gradients = theano.function([x], T.grad(penalty, params))(BATCH)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize("exact", [False, True])
def test_accumulation(x, exact):
    layer = network(x)
    accumulator = GradientAccumulator(get_all_params(layer, trainable=True))
    if exact:
        accumulator.exact_function([x], loss_of(layer))([BATCH[:2],
                                                         BATCH[2:]])
    else:
        accumulator.function([x], loss_of(layer))(BATCH)
    accumulator.step_function(lasagne.updates.sgd,
                              learning_rate=np.float32(0.1))


def test_loops(x):
    layer = BatchNormLayer((None, 4))
    batches = T.stack([x, 2 * x])
    outputs, _ = theano.scan(layer.get_output_for, sequences=[batches])
    function = theano.function([x], outputs.sum())
    function(BATCH)
    assert np.any(layer.mean.get_value() != 0)
    jacobian = theano.gradient.jacobian(layer.get_output_for(x)[0], x)
    assert theano.function([x], jacobian)(BATCH).shape == (4, 6, 4)


def test_statistics_and_folding(x):
    layer = network(x)
    update_population_statistics(layer, [BATCH])
    layer.input_layer.get_statistics(epsilon=1e-5)
    folded = fold_batch_norm(layer)
    theano.function([x], get_output(folded))(BATCH)


def test_flags_are_as_before(x):
    flags = [getattr(theano.config, name) for name in FLAGS]
    with pytest.raises(ZeroDivisionError), quiet_checks(), \
            quiet_checks():
        raise ZeroDivisionError
    train(x, network(x))
    assert flags == [getattr(theano.config, name) for name in FLAGS]


def test_the_users_own_expressions_are_still_checked():
    if theano.config.warn_float64 == "raise":
        with pytest.raises(Exception, match="float64"):
            BatchNormLayer((None, 4), nonlinearity=lambda y: y.astype(
                "float64")).get_output_for(T.matrix())
