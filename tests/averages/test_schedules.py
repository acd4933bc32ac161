"""Weights of the batches in running averages."""

import copy
import pickle

from bnlasagne import (
    BatchNormLayer,
    CumulativeAverage,
    GradientAccumulator,
    get_batch_norm_updates,
)
from bnlasagne.networks.copy import copy_network

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from lasagne.layers import InputLayer, get_output
from numpy.testing import assert_allclose

pytestmark = pytest.mark.usefixtures("quick")


def averages(layer):
    return [layer.mean.get_value()[0], layer.std.get_value()[0]]


def plain_average(batches):
    return [np.mean([function(batch, axis=0) for batch in batches], axis=0)
            for function in (np.mean, np.std)]


def test_all_batches_weigh_the_same(rng, floatX):
    average = CumulativeAverage()
    x = T.matrix()
    first = BatchNormLayer(InputLayer((None, 3), x), alpha=average.alpha)
    second = BatchNormLayer(first, alpha=average.alpha)
    function = theano.function([x], get_output(second))
    batches = rng.normal(2, 3, (9, 5, 3)).astype(floatX)
    for number, batch in enumerate(batches, 1):
        assert_allclose(average.alpha.get_value(), 1 / number, rtol=1e-6)
        function(batch)
        assert_allclose(averages(first), plain_average(batches[:number]),
                        rtol=1e-5)
    average.reset()
    for batch in batches[4:6]:
        function(batch)
    assert_allclose(averages(first), plain_average(batches[4:6]), rtol=1e-5)


def test_functions_that_update_nothing_do_not_count(rng, floatX):
    average = CumulativeAverage()
    x = T.matrix()
    layer = BatchNormLayer(InputLayer((None, 3), x), alpha=average.alpha)
    function = theano.function([x], get_output(layer, deterministic=True))
    function(rng.normal(size=(4, 3)).astype(floatX))
    assert average.alpha.get_value() == 1


def test_many_batches(floatX):
    """The weight is right where single precision no longer counts."""
    average = CumulativeAverage()
    average.count = 2 ** 25 - 1
    x = T.matrix()
    layer = BatchNormLayer(InputLayer((None, 3), x), alpha=average)
    function = theano.function([x], get_output(layer))
    for _ in range(3):
        function(np.ones((4, 3), floatX))
    assert average.count == 2 ** 25 + 2
    assert average.alpha.dtype == floatX
    assert_allclose(average.alpha.get_value(), 1 / (2 ** 25 + 3), rtol=2e-7)


# What counts

def counted(layer, x, batch, **kwargs):
    """How many batches a function of the layer counts."""
    schedule = CumulativeAverage.of(layer)
    before = schedule.count
    output = get_output(layer, **kwargs.pop("flags", {}))
    outputs = kwargs.pop("outputs", lambda y: y)(output)
    theano.function([x], outputs, **kwargs)(batch)
    return schedule.count - before


@pytest.fixture
def cumulative(float64):
    x = T.matrix()
    return BatchNormLayer(InputLayer((None, 3), x),
                          alpha=CumulativeAverage().alpha), x


@pytest.mark.parametrize("kwargs, expected", [
    ({}, 1),
    ({"flags": {"batch_norm_update_averages": False}}, 0),
    ({"flags": {"batch_norm_update_averages": "explicit"}}, 0),
    ({"flags": {"deterministic": True}}, 0),
    ({"no_default_updates": True}, 0),
    ({"outputs": lambda y: y.shape}, 0),
    ({"outputs": lambda y: T.grad(y.sum(), y)}, 0),
    ({"outputs": lambda y: T.grad(T.sqr(y).sum(), y)}, 1),
])
def test_batches_count_if_averages_move(cumulative, rng, kwargs, expected):
    layer, x = cumulative
    assert counted(layer, x, rng.normal(size=(4, 3)), **kwargs) == expected


def test_reading_the_weight_does_not_count(cumulative, rng):
    layer, x = cumulative
    schedule, batch = CumulativeAverage.of(layer), rng.normal(size=(4, 3))
    schedule.count = 3
    other = theano.shared(1.)
    theano.function([], schedule.alpha)()
    theano.function([], updates=[(other, other * (1 - schedule.alpha))])()
    theano.function([x], [get_output(layer, deterministic=True),
                          schedule.alpha])(batch)
    assert (schedule.count, other.get_value()) == (3, 0.75)
    function = theano.function([x], [get_output(layer), schedule.alpha])
    assert_allclose([function(batch)[1], function(batch)[1]], [1 / 4, 1 / 5])
    assert schedule.count == 5


def test_updates_given_by_the_user_take_the_place_of_weighted_ones(
        cumulative, rng):
    layer, x = cumulative
    batch = rng.normal(size=(4, 3))
    both = [(layer.mean, layer.mean + 1), (layer.std, layer.std * 2)]
    one = both[:1]
    assert counted(layer, x, batch, updates=one) == 1
    assert counted(layer, x, batch, updates=both) == 0


@pytest.mark.parametrize("flag", [True, "explicit"])
@pytest.mark.parametrize("combine", ["chain", "pool"])
def test_explicit_updates_count_with_the_averages(
        cumulative, rng, flag, combine):
    layer, x = cumulative
    y = T.matrix()
    outputs = [layer.get_output_for(each, batch_norm_update_averages=flag)
               for each in (x, y)]
    train = theano.function([x, y], outputs, updates=get_batch_norm_updates(
        outputs, combine=combine))
    again = theano.function(
        [x, y], outputs, no_default_updates=True,
        updates=get_batch_norm_updates(outputs, combine=combine))
    look = theano.function([x, y], outputs, no_default_updates=True)
    batches = rng.normal(size=(6, 4, 3))
    for function, pair in zip((train, again, train),
                              zip(batches[::2], batches[1::2])):
        function(*pair)
        look(*pair)
    assert CumulativeAverage.of(layer).count == 3
    if combine == "pool":
        assert_allclose(averages(layer)[0], batches.mean(axis=(0, 1)))


def test_steps_of_a_loop_count(cumulative, rng):
    layer, _ = cumulative
    x = T.tensor3()
    outputs, _ = theano.scan(layer.get_output_for, sequences=[x])
    batches = rng.normal(size=(5, 4, 3))
    theano.function([x], outputs)(batches)
    assert CumulativeAverage.of(layer).count == 5
    for found, expected in zip(averages(layer), plain_average(batches)):
        assert_allclose(found, expected)


def test_accumulated_steps_count(cumulative, rng):
    layer, x = cumulative
    accumulator = GradientAccumulator(layer.get_params(trainable=True))
    accumulate = accumulator.function([x], T.sqr(get_output(layer)).mean())
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=0.1)
    for number in range(3):
        accumulate(rng.normal(size=(4, 3)))
        accumulate(rng.normal(size=(4, 3)))
        assert CumulativeAverage.of(layer).count == number
        step()
    assert CumulativeAverage.of(layer).count == 3


def test_schedule_of_the_users_own(rng, float64):
    """Any shared variable with a default update moves as averages do."""
    alpha = theano.shared(1.)
    alpha.default_update = alpha * 0.5
    x = T.matrix()
    layer = BatchNormLayer(InputLayer((None, 3), x), alpha=alpha * 0.8)
    train = theano.function([x], get_output(layer))
    theano.function([x], get_output(layer, batch_norm_update_averages=False))(
        rng.normal(size=(4, 3)))
    assert alpha.get_value() == 1
    batches = rng.normal(size=(2, 4, 3))
    expected = np.zeros(3)
    for weight, batch in zip((0.8, 0.4), batches):
        train(batch)
        expected += weight * (batch.mean(axis=0) - expected)
    assert_allclose(averages(layer)[0], expected)
    assert alpha.get_value() == 0.25


# Going on after a restart

def test_count_can_be_set(rng, cumulative):
    layer, x = cumulative
    batches = rng.normal(size=(5, 4, 3))
    function = theano.function([x], get_output(layer))
    layer.set_values(mean=batches[:3].mean(axis=(0, 1)))
    CumulativeAverage.of(layer).count = 3
    for batch in batches[3:]:
        function(batch)
    assert_allclose(averages(layer)[0], batches.mean(axis=(0, 1)))
    assert CumulativeAverage(count=7).alpha.get_value() == 0.125


@pytest.mark.parametrize("count", [-1, 0.5, np.nan, np.inf, "1", [1, 2]])
def test_wrong_counts(count):
    average = CumulativeAverage(4)
    with pytest.raises(ValueError, match="count must be a whole number"):
        average.count = count
    assert average.count == 4


@pytest.mark.parametrize("duplicate", [
    lambda value: pickle.loads(pickle.dumps(value, -1)), copy.deepcopy,
    lambda value: (copy_network([value[0]])[value[0]], None)],
    ids=["pickle", "deepcopy", "copy_network"])
def test_copies_have_a_schedule_of_their_own(cumulative, rng, duplicate):
    layer, x = cumulative
    average = CumulativeAverage.of(layer)
    average.count = 4
    other, schedule = duplicate((layer, average))
    found = CumulativeAverage.of(other)
    assert found.count == 4
    assert found.alpha is other.alpha
    assert schedule is None or schedule.alpha is other.alpha
    y = T.matrix()
    theano.function([y], other.get_output_for(y))(rng.normal(size=(4, 3)))
    assert found.count == 5
    assert average.count == 4
    found.reset()
    assert other.alpha.get_value() == 1
    assert layer.alpha.get_value() == 0.2


def test_schedule_within_an_expression(rng, float64):
    average = CumulativeAverage()
    x = T.matrix()
    layer = BatchNormLayer(InputLayer((None, 3), x),
                           alpha=T.maximum(average.alpha, 0.4))
    assert CumulativeAverage.of(layer).alpha is average.alpha
    function = theano.function([x], get_output(layer))
    expected = np.zeros(3)
    for weight, batch in zip((1, 0.5, 0.4), rng.normal(size=(3, 4, 3))):
        function(batch)
        expected += weight * (batch.mean(axis=0) - expected)
    assert average.count == 3
    assert_allclose(averages(layer)[0], expected)


def test_copy_of_a_function_with_another_schedule(cumulative, rng):
    layer, x = cumulative
    first, second = CumulativeAverage.of(layer), CumulativeAverage(3)
    function = theano.function([x], get_output(layer))
    copied = function.copy(swap={first.alpha: second.alpha})
    batches = rng.normal(size=(3, 4, 3))
    function(batches[0])
    for batch in batches[1:]:
        copied(batch)
    assert (first.count, second.count) == (1, 5)
    expected = batches[0].mean(axis=0)
    for weight, batch in zip((1 / 4, 1 / 5), batches[1:]):
        expected += weight * (batch.mean(axis=0) - expected)
    assert_allclose(averages(layer)[0], expected)
    read = theano.function([], first.alpha)
    # Theano makes a list of what a copy returns.
    assert read.copy(swap={first.alpha: second.alpha})() == [1 / 6]


def test_schedule_of_another_layer():
    with pytest.raises(TypeError, match="must be a BatchNormLayer, got Inp"):
        CumulativeAverage.of(InputLayer((None, 3)))


def test_the_schedule_itself_may_be_given():
    average = CumulativeAverage()
    assert BatchNormLayer((None, 3), alpha=average).alpha is average.alpha


@pytest.mark.parametrize("alpha", [0.5, theano.shared(0.5), T.scalar()])
def test_layers_without_a_schedule(alpha):
    assert CumulativeAverage.of(BatchNormLayer((None, 3), alpha=alpha)) is None
