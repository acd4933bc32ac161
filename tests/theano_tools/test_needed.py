"""Outputs that are wanted only for their shape are not applications."""

from bnlasagne import (
    BatchNormLayer,
    CumulativeAverage,
    GradientAccumulator,
    batch_norm,
    fold_batch_norm,
    get_batch_norm_updates,
    update_population_statistics,
)

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.layers import assert_followed, averages
from lasagne.layers import (
    DenseLayer,
    InputLayer,
    ReshapeLayer,
    get_all_params,
    get_output,
)
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("float64")

ALPHA = 0.25


@pytest.fixture
def layer():
    return BatchNormLayer(InputLayer((None, 3)), alpha=ALPHA)


@pytest.fixture
def batch(rng):
    return rng.normal(2, 3, (5, 3))


def ops(function):
    return {type(node.op).__name__
            for node in function.maker.fgraph.apply_nodes}


SHAPES = {
    "shape": lambda y: y.shape,
    "one size": lambda y: y.shape[0] * 2,
    "size": lambda y: y.size,
    "shape of more": lambda y: (T.exp(y) + 1).T.shape,
    "zeros_like": T.zeros_like,
    "ones_like of more": lambda y: T.ones_like(2 * y) + 1,
    "alloc": lambda y: T.alloc(1., y.shape[0], 2),
    "random": lambda y: T.shared_randomstreams.RandomStreams(1).normal(
        y.shape),
    "gradient": lambda y: theano.grad(T.sqr(y).sum(), y).shape,
    "in a loop": lambda y: theano.scan(
        lambda i, y: i * y.shape[0], [T.arange(3)], non_sequences=[y])[0],
    "of a loop": lambda y: theano.scan(lambda row: 2 * row, [y])[0].shape,
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_shape_alone(layer, batch, mode, shape):
    x = T.matrix()
    found = shape(layer.get_output_for(x))
    function = theano.function([x], found, mode=mode)
    function(batch)
    assert_followed(layer)
    assert not ops(function) & {"BatchNormalize", "MoveAverage"}
    with pytest.warns(UserWarning, match="nothing to update"):
        assert not get_batch_norm_updates(found)


def test_no_kernel_runs_without_optimizations(layer, batch):
    x = T.matrix()
    function = theano.function([x], layer.get_output_for(x).shape,
                               mode=theano.Mode("py", None))
    assert_array_equal(function(batch), batch.shape)
    assert not ops(function) & {"BatchNormalize", "MoveAverage"}


VALUES = {
    "sum": lambda y: y.sum(),
    "filled with it": lambda y: T.fill(T.zeros((2,)), y[0, 0]),
    "times zero": lambda y: 0 * y,
    "in a loop": lambda y: theano.scan(
        lambda i, y: i * y.sum(), [T.arange(3)], non_sequences=[y])[0],
    "without passing it to the loop": lambda y: theano.scan(
        lambda i: y[i], [T.arange(3)])[0],
    "shape, and value": lambda y: y / y.shape[0],
}


@pytest.mark.parametrize("value", VALUES.values(), ids=list(VALUES))
def test_a_value_counts_once(layer, batch, mode, value):
    x = T.matrix()
    output = layer.get_output_for(x)
    theano.function([x], value(output), mode=mode)(batch)
    assert_followed(layer, batch)
    assert len(get_batch_norm_updates(value(output))) == 2


def sized_by_an_output(**flags):
    """A network with a reshape by the sizes of its own layer's output."""
    lasagne.random.set_rng(np.random.RandomState(1))
    x = T.matrix("x")
    first = batch_norm(DenseLayer(InputLayer((None, 3), x), 4),
                       alpha=CumulativeAverage().alpha)
    n, c = (get_output(first, **flags).shape[axis] for axis in (0, 1))
    second = BatchNormLayer(ReshapeLayer(first, (c * n // 4, 4)), alpha=ALPHA)
    return x, first, second


@pytest.mark.parametrize("flags", [{}, {"deterministic": True}])
def test_network_sized_by_an_output(batch, quick, flags):
    x, first, second = sized_by_an_output(**flags)
    train = theano.function([x], get_output(second))
    test = theano.function([x], get_output(second, deterministic=True))
    test(batch)
    schedule = CumulativeAverage.of(first)
    assert schedule.count == 0
    before = averages(second)
    train(batch)
    assert schedule.count == 1
    moved = averages(first) + averages(second)
    assert not np.array_equal(moved[2], before[0])
    dense = first.input_layer
    assert_allclose(moved[0][0], batch.dot(dense.W.get_value()).mean(axis=0))
    test(batch)
    for value, now in zip(moved, averages(first) + averages(second)):
        assert_array_equal(value, now)
    expected = test(batch)

    folded = fold_batch_norm(second)
    function = theano.function([x], get_output(folded, deterministic=True))
    assert_allclose(function(batch), expected)
    for value, now in zip(moved, averages(first) + averages(second)):
        assert_array_equal(value, now)


@pytest.mark.parametrize("flags", [{}, {"deterministic": True}])
def test_population_of_a_network_sized_by_an_output(batch, quick, flags):
    x, first, second = sized_by_an_output(**flags)
    found = update_population_statistics(second, [batch[:2], batch[2:]])
    assert [found[layer].count for layer in (first, second)] == [5, 5]
    z = batch.dot(first.input_layer.W.get_value())
    y = np.maximum(reference.normalize_batch(z, (0,)), 0)
    for layer, value in ((first, z), (second, y)):
        for average, expected in zip(averages(layer),
                                     reference.statistics(value, (0,))):
            assert_allclose(average, expected)


def test_accumulation_of_a_network_sized_by_an_output(batch, quick):
    results = []
    for cut in ([5], [2, 5]):
        x, first, second = sized_by_an_output()
        params = get_all_params(second, trainable=True)
        loss = T.sqr(get_output(second) - 1).mean()
        accumulator = GradientAccumulator(params)
        accumulate = accumulator.exact_function([x], loss)
        step = accumulator.step_function(lasagne.updates.sgd,
                                         learning_rate=0.1)
        starts = [0] + cut[:-1]
        accumulate([batch[a:b] for a, b in zip(starts, cut)])
        step()
        assert CumulativeAverage.of(first).count == 1
        results.append([param.get_value()
                        for param in get_all_params(second)])
    for one, other in zip(*results):
        assert_allclose(one, other, rtol=1e-9, atol=1e-12)


class SizedBy(lasagne.layers.Layer):
    """Ones, as many as there are in another layer's output."""

    def __init__(self, incoming, other):
        super().__init__(incoming)
        self.other = other

    def get_output_for(self, input, **kwargs):
        return input * T.ones_like(self.other.get_output_for(input, **kwargs))


def test_population_of_a_layer_sized_by_another(batch, quick):
    l_in = InputLayer((None, 3))
    other = BatchNormLayer(l_in)
    layer = BatchNormLayer(SizedBy(l_in, other))
    found = update_population_statistics(layer, [batch])
    assert list(found) == [layer]
    assert_array_equal(other.mean.get_value(), np.zeros((1, 3)))
