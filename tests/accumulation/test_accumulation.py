"""Steps from several micro-batches."""

from functools import partial

from bnlasagne import (
    BatchNormLayer,
    CumulativeAverage,
    GradientAccumulator,
    batch_norm,
)

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from lasagne.layers import (
    DenseLayer,
    DropoutLayer,
    InputLayer,
    get_all_params,
    get_output,
)
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("quick")

ALPHA = 0.25


class Network:
    """Two layers with batch normalization, and a loss."""

    def __init__(self, middle=lambda layer: layer, **flags):
        lasagne.random.set_rng(np.random.RandomState(3))
        network = InputLayer((None, 4))
        self.first = batch_norm(DenseLayer(network, 5), alpha=ALPHA,
                                name="first")
        network = middle(self.first)
        self.second = batch_norm(DenseLayer(network, 3), alpha=ALPHA)
        self.x, self.y = T.matrices("xy")
        self.output = get_output(self.second, self.x, **flags)
        self.loss = T.sqr(self.output - self.y).mean()
        self.params = get_all_params(self.second, trainable=True)

    def values(self):
        return [param.get_value() for param in get_all_params(self.second)]


@pytest.fixture
def data(rng):
    return rng.normal(2, 3, (12, 4)), rng.normal(size=(12, 3))


def cut(data, *ends):
    x, y = data
    return [(x[start:end], y[start:end])
            for start, end in zip((0,) + ends[:-1], ends)]


def mean_gradients(network, parts):
    """Weighted in NumPy, from a function of its own."""
    gradients = theano.function(
        [network.x, network.y], theano.grad(network.loss, network.params),
        no_default_updates=True)
    total = sum(len(x) for x, _ in parts)
    return [sum(weighted) / total for weighted in zip(*(
        [len(x) * gradient for gradient in gradients(x, y)]
        for x, y in parts))]


def make(network, rule=lasagne.updates.sgd, learning_rate=1., **kwargs):
    accumulator = GradientAccumulator(network.params, **kwargs)
    accumulate = accumulator.function([network.x, network.y], network.loss)
    return accumulator, accumulate, accumulator.step_function(
        rule, learning_rate=learning_rate)


def test_gradients_are_the_weighted_mean(float64, data):
    network = Network()
    parts = cut(data, 2, 3, 12)
    expected = [param.get_value() - gradient for param, gradient in zip(
        network.params, mean_gradients(network, parts))]
    _, accumulate, step = make(network)
    for part in parts:
        accumulate(*part)
    step()
    for param, value in zip(network.params, expected):
        assert_allclose(param.get_value(), value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("offset", [0, 1000])
def test_averages_of_the_first_layer_are_the_full_batchs(floatX, data, offset):
    network = Network()
    x, y = (np.asarray(array, floatX) for array in data)
    x += np.asarray(offset, floatX)
    _, accumulate, step = make(network)
    for part in cut((x, y), 1, 5, 12):
        accumulate(*part)
    weights = network.first.input_layer.W.get_value().astype("float64")
    step()
    mean, std = reference.statistics(x.astype("float64") @ weights, (0,))
    tolerance = 1e-12 if floatX == "float64" else 2e-3 if offset else 1e-5
    assert_allclose(network.first.mean.get_value(), ALPHA * mean,
                    rtol=tolerance)
    assert_allclose(network.first.std.get_value(),
                    1 - ALPHA + ALPHA * std, rtol=tolerance)


@pytest.mark.parametrize("rule", [
    lasagne.updates.momentum, lasagne.updates.nesterov_momentum,
    lasagne.updates.adam, lasagne.updates.rmsprop])
def test_rules(float64, data, rule):
    """Two steps are those of the rule with the weighted gradients."""
    network, other = Network(), Network()
    _, accumulate, step = make(network, rule, 0.1)
    given = [param.type() for param in other.params]
    apply_rule = theano.function(given, [], updates=rule(
        given, other.params, 0.1))
    for parts in cut(data, 4, 12), cut(data, 5, 12):
        apply_rule(*mean_gradients(other, parts))
        for part in parts:
            accumulate(*part)
        step()
        for param, expected in zip(network.params, other.params):
            assert_allclose(param.get_value(), expected.get_value(),
                            rtol=1e-11, atol=1e-13)


def test_nothing_changes_until_the_step(float64, data):
    network = Network()
    accumulator, accumulate, step = make(network)
    before = network.values()
    loss, = {float(accumulate(*part)) for part in cut(data, 12)}
    assert loss > 0
    assert accumulator.size == 12
    for value, expected in zip(network.values(), before):
        assert_array_equal(value, expected)
    step()
    assert accumulator.size == 0
    assert all(np.any(value != old)
               for value, old in zip(network.values(), before))


def test_reset(float64, data):
    network, other = Network(), Network()
    accumulator, accumulate, step = make(network)
    accumulate(data[0] + 5, data[1])
    accumulator.reset()
    accumulate(*data)
    step()
    _, accumulate, step = make(other)
    accumulate(*data)
    step()
    for value, expected in zip(network.values(), other.values()):
        assert_array_equal(value, expected)


@pytest.mark.parametrize("rule", [lasagne.updates.sgd, lasagne.updates.adam])
def test_step_without_micro_batch(float64, data, rule):
    network = Network()
    made = []

    def remember(*args, **kwargs):
        made.append(rule(*args, **kwargs))
        return made[0]
    _, accumulate, step = make(network, remember)
    accumulate(*data)
    step()
    before = [variable.get_value() for variable in made[0]] + network.values()
    with pytest.raises(ValueError, match="no micro-batch"):
        step()
    after = [variable.get_value() for variable in made[0]] + network.values()
    for value, expected in zip(after, before):
        assert_array_equal(value, expected)


@pytest.mark.parametrize("term", [None, "the same"])
def test_several_functions(float64, data, term):
    """Two losses add up; one loss in two functions is one mean."""
    network = Network()
    parts = cut(data, 3, 12)
    accumulator = GradientAccumulator(network.params)
    functions = [accumulator.function([network.x, network.y], network.loss,
                                      term=term) for _ in parts]
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=1.)
    if term is None:
        gradients = map(sum, zip(*(mean_gradients(network, [part])
                                   for part in parts)))
    else:
        gradients = mean_gradients(network, parts)
    expected = [param.get_value() - gradient
                for param, gradient in zip(network.params, gradients)]
    for function, part in zip(functions, parts):
        function(*part)
    step()
    for param, value in zip(network.params, expected):
        assert_allclose(param.get_value(), value, rtol=1e-12, atol=1e-14)
    hidden = data[0] @ Network().first.input_layer.W.get_value()
    assert_allclose(network.first.mean.get_value(),
                    ALPHA * hidden.mean(axis=0, keepdims=True))


@pytest.mark.parametrize("combine", ["pool", "chain"])
def test_layer_applied_twice(float64, rng, combine):
    layer = BatchNormLayer((None, 3), alpha=ALPHA)
    a, b = T.matrices("ab")
    loss = T.sqr(layer.get_output_for(a) - layer.get_output_for(b) * 2).mean()
    accumulator = GradientAccumulator([layer.gamma], combine=combine)
    accumulate = accumulator.function([a, b], loss)
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=0.1)
    whole = rng.normal(1, 2, (8, 3)), rng.normal(5, 1, (8, 3))
    for start, end in [(0, 3), (3, 8)]:
        accumulate(*(part[start:end] for part in whole))
    step()
    if combine == "pool":
        whole = [np.concatenate(whole)]
    for param, start, which in (layer.mean, 0, 0), (layer.std, 1, 1):
        assert_allclose(param.get_value(), reference.running_average(
            start, [reference.statistics(part, (0,))[which]
                    for part in whole], ALPHA))


def test_some_layers_only(float64, data):
    network = Network()
    _, accumulate, step = make(network, layers=network.first)
    accumulate(*data)
    step()
    assert_array_equal(network.second.mean.get_value(), np.zeros((1, 3)))
    assert np.all(network.first.mean.get_value() != 0)


@pytest.mark.parametrize("flag, moves", [(True, True), ("explicit", True),
                                         (False, False)])
def test_flags(float64, data, flag, moves):
    network = Network(batch_norm_update_averages=flag)
    _, accumulate, step = make(network)
    accumulate(*data)
    step()
    assert np.all((network.first.mean.get_value() != 0) == moves)


def test_values_that_are_not_finite_leave_averages(float64, data):
    network = Network()
    _, accumulate, step = make(network, learning_rate=0.)
    data[0][0, 0] = np.inf
    for part in cut(data, 6, 12):
        accumulate(*part)
    step()
    assert_array_equal(network.first.mean.get_value(), np.zeros((1, 5)))
    assert_array_equal(network.first.std.get_value(), np.ones((1, 5)))


def test_size_zero_counts_for_nothing(float64, data):
    network = Network()
    size = T.scalar()
    accumulator = GradientAccumulator(network.params)
    accumulate = accumulator.function([network.x, network.y, size],
                                      network.loss, size=size)
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=1.)
    expected = [param.get_value() - gradient for param, gradient in zip(
        network.params, mean_gradients(network, [data]))]
    accumulate(data[0] * np.nan, data[1], 0)
    accumulate(*data, 12)
    step()
    for param, value in zip(network.params, expected):
        assert_allclose(param.get_value(), value, rtol=1e-12, atol=1e-14)
    assert np.all(network.first.mean.get_value() != 0)


def test_schedule_of_alpha_moves_with_the_step(float64, data):
    average = CumulativeAverage()
    layer = BatchNormLayer((None, 4), alpha=average.alpha)
    x = T.matrix()
    accumulator = GradientAccumulator([layer.gamma])
    accumulate = accumulator.function([x], layer.get_output_for(x)[0].sum())
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=0.1)
    alphas = []
    for _ in range(3):
        accumulate(data[0][:6])
        accumulate(data[0][6:])
        alphas.append(float(average.alpha.get_value()))
        step()
    assert_allclose(alphas, [1, 1 / 2, 1 / 3])
    assert_allclose(layer.mean.get_value(),
                    data[0].mean(axis=0, keepdims=True))


def test_random_layers_move_with_the_micro_batch(float64, data):
    network = Network(DropoutLayer)
    _, accumulate, _ = make(network)
    losses = {float(accumulate(*data)) for _ in range(4)}
    assert len(losses) > 1
    assert np.all(network.first.mean.get_value() == 0)


def test_givens_outputs_and_updates(float64, data):
    network = Network()
    shared, calls = theano.shared(data[0]), theano.shared(0)
    start = T.iscalar()
    accumulator = GradientAccumulator(network.params)
    accumulate = accumulator.function(
        [start, network.y], network.loss, size=network.x.shape[0],
        outputs=[network.output], updates=[(calls, calls + 1)],
        givens={network.x: shared[start:]})
    output, = accumulate(7, data[1][7:])
    assert output.shape == (5, 3)
    assert accumulator.size == 5
    assert calls.get_value() == 1
    assert np.all(network.first.mean.get_value() == 0)


def test_rule_may_take_inputs(float64, data):
    network = Network()
    rate = T.scalar()
    accumulator = GradientAccumulator(network.params)
    accumulate = accumulator.function([network.x, network.y], network.loss)
    step = accumulator.step_function(
        partial(lasagne.updates.sgd, learning_rate=rate), inputs=[rate])
    accumulate(*data)
    before = network.first.beta.get_value()
    step(0)
    assert_array_equal(network.first.beta.get_value(), before)


# Errors

def scan_loss(layer):
    outputs, _ = theano.scan(layer.get_output_for, T.tensor3())
    return outputs.sum()


def test_errors():
    network = Network()
    accumulator = GradientAccumulator(network.params)
    inputs = [network.x, network.y]
    for error, message, loss, kwargs in [
            (TypeError, "loss must be a Theano variable", 3, {}),
            (ValueError, "loss must be a scalar", network.output, {}),
            (ValueError, "depends on none", T.sqr(network.y).mean(), {}),
            (ValueError, "size must be a scalar", network.loss,
             {"size": network.y}),
            (ValueError, "in a loop", scan_loss(network.second)
             + network.loss, {})]:
        with pytest.raises(error, match=message):
            accumulator.function(inputs, loss, **kwargs)
    with pytest.raises(ValueError, match="size must be given"):
        accumulator.function([T.scalar()], network.loss)
    # None of these left anything behind.
    with pytest.raises(ValueError, match="nothing to make a step of"):
        accumulator.step_function(lasagne.updates.sgd, learning_rate=1)


def test_function_that_cannot_be_compiled(float64, data):
    network = Network()
    accumulator = GradientAccumulator(network.params)
    with pytest.raises(theano.gof.fg.MissingInputError):
        accumulator.function([network.x], network.loss)
    with pytest.raises(ValueError, match="nothing to make a step of"):
        accumulator.step_function(lasagne.updates.sgd, learning_rate=1)


def test_errors_of_the_step():
    network = Network()
    other = theano.shared(1., "other")
    accumulator = GradientAccumulator(network.params + [other])
    accumulator.function([network.x, network.y], network.loss)
    with pytest.raises(ValueError, match="depends on the parameter other"):
        accumulator.step_function(lasagne.updates.sgd, learning_rate=1)
    accumulator, _, _ = make(network)
    with pytest.raises(ValueError, match="step function already"):
        accumulator.function([network.x, network.y], network.loss)
    stranger = BatchNormLayer((None, 3), name="stranger")
    with pytest.raises(ValueError, match="training mode from .*'stranger'"):
        make(network, layers=[stranger])


@pytest.mark.parametrize("arguments, error, message", [
    (([3],), TypeError, "list of shared variables"),
    (([],), ValueError, "params is empty"),
    (([theano.shared(1.)], None, "sum"), ValueError, "combine must be"),
])
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        GradientAccumulator(*arguments)


@pytest.mark.parametrize("call, message", [
    (lambda n, a: GradientAccumulator(batch_norm(DenseLayer((None, 3), 2))),
     "get_all_params"),
    (lambda n, a: GradientAccumulator(n.loss), "params must be a list"),
    (lambda n, a: a.function(n.x, n.loss), "inputs must be a list"),
    (lambda n, a: a.step_function("adam"), "rule must be a function"),
    (lambda n, a: a.step_function(lasagne.updates.sgd, 0.1),
     "learning_rate=0.1"),
    (lambda n, a: a.exact_function([n.x, n.y], n.loss)(1, 2), "one list"),
])
def test_first_mistakes(call, message):
    network = Network()
    accumulator = GradientAccumulator(network.params)
    with pytest.raises(TypeError, match=message):
        call(network, accumulator)
