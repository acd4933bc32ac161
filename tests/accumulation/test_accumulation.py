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
from helpers import full_batch
from helpers.layers import expected_averages
from helpers.modes import default_mode
from helpers.problems import Problem
from helpers.splits import cuts_of
from hypothesis import example, given
from lasagne.layers import DenseLayer, DropoutLayer, InputLayer
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("quick")

ALPHA = 0.25
N = 14


def two_layers(middle=lambda layer: layer):
    """Two layers with batch normalization."""
    network = batch_norm(DenseLayer(InputLayer((None, 4)), 5), alpha=ALPHA,
                         name="first")
    return batch_norm(DenseLayer(middle(network), 3), alpha=ALPHA)


def lower(problem):
    return next(layer for layer in lasagne.layers.get_all_layers(
        problem.network) if layer.name == "first")


@pytest.fixture
def problem(float64):
    return Problem(two_layers)


def mean_gradients(problem, parts):
    """Parameter → gradient, in NumPy, weighted by the sizes of the parts."""
    total = sum(len(x) for x, _ in parts)
    gradients = [(len(x) / total, full_batch.gradients_of_error(
        problem.network, x, y)) for x, y in parts if len(x)]
    return {param: sum(weight * own[param] for weight, own in gradients)
            for param in problem.params}


def after_step(problem, gradients, rate=1):
    return {param: param.get_value() - rate * gradients[param]
            for param in problem.params}


def assert_values(expected):
    for param, value in expected.items():
        assert_allclose(param.get_value(), value, rtol=1e-11, atol=1e-13)


def accumulating(problem, rule=lasagne.updates.sgd, learning_rate=1.,
                 **kwargs):
    accumulator = GradientAccumulator(problem.params, **kwargs)
    accumulate = accumulator.function(problem.inputs, problem.loss)
    return accumulator, accumulate, accumulator.step_function(
        rule, learning_rate=learning_rate)


@pytest.fixture(scope="module")
def compiled():
    """A problem, compiled once for the module."""
    with theano.configparser.change_flags(floatX="float64"), default_mode(
            "FAST_COMPILE"):
        problem = Problem(two_layers)
        return problem, accumulating(problem)


@given(cuts=cuts_of(N))
@example(cuts=list(range(N)))
def test_any_cut(compiled, cuts):
    """Gradients are the weighted mean; averages see the full batch."""
    problem, (_, accumulate, step) = compiled
    problem.restart()
    parts = problem.cut(cuts)
    expected = after_step(problem, mean_gradients(problem, parts))
    averages = full_batch.Pass(problem.network, problem.data[0]).averages()
    layer = lower(problem)
    for part in parts:
        accumulate(*part)
    step()
    assert_values({**expected, **{average: averages[average] for average
                                  in (layer.mean, layer.std)}})


@pytest.mark.parametrize("offset", [0, 1000])
def test_averages_in_single_precision(offset):
    with theano.configparser.change_flags(floatX="float32"):
        problem = Problem(two_layers, floatX="float32")
        layer = lower(problem)
        problem.data[0][...] += offset
        _, accumulate, step = accumulating(problem)
        expected = full_batch.Pass(problem.network,
                                   problem.data[0]).averages()
        for part in problem.parts(1, 5, N):
            accumulate(*part)
        step()
    for average in layer.mean, layer.std:
        assert_allclose(average.get_value(), expected[average],
                        rtol=2e-3 if offset else 1e-5)


@pytest.mark.parametrize("rule", [
    lasagne.updates.momentum, lasagne.updates.nesterov_momentum,
    lasagne.updates.adam, lasagne.updates.rmsprop])
def test_rules(problem, rule):
    """Two steps are those of the rule with the weighted gradients."""
    other = Problem(two_layers)
    _, accumulate, step = accumulating(problem, rule, 0.1)
    given = [param.type() for param in other.params]
    apply_rule = theano.function(given, [], updates=rule(
        given, other.params, 0.1))
    for parts in problem.parts(4, N), problem.parts(5, N):
        gradients = mean_gradients(other, parts)
        apply_rule(*(gradients[param] for param in other.params))
        for part in parts:
            accumulate(*part)
        step()
        assert_values({param: expected.get_value() for param, expected
                       in zip(problem.params, other.params)})


def test_nothing_changes_until_the_step(compiled):
    problem, (accumulator, accumulate, step) = compiled
    problem.restart()
    before = problem.values()
    assert accumulate(*problem.data) > 0
    assert accumulator.size == N
    for value, expected in zip(problem.values(), before):
        assert_array_equal(value, expected)
    step()
    assert accumulator.size == 0
    assert all(np.any(value != old)
               for value, old in zip(problem.values(), before))


def test_reset(compiled):
    problem, (accumulator, accumulate, step) = compiled
    results = []
    for other in None, problem.data[0] + 5:
        problem.restart()
        if other is not None:
            accumulate(other, problem.data[1])
            accumulator.reset()
        accumulate(*problem.data)
        step()
        results.append(problem.values())
    for value, expected in zip(*results):
        assert_array_equal(value, expected)


def test_step_without_micro_batch(problem):
    made = []

    def remember(*args, **kwargs):
        made.append(lasagne.updates.adam(*args, **kwargs))
        return made[0]
    _, accumulate, step = accumulating(problem, remember)
    accumulate(*problem.data)
    step()
    state = list(made[0]) + lasagne.layers.get_all_params(problem.network)
    before = [variable.get_value() for variable in state]
    with pytest.raises(ValueError, match="no micro-batch"):
        step()
    for variable, expected in zip(state, before):
        assert_array_equal(variable.get_value(), expected)


@pytest.mark.parametrize("term", [None, "the same"])
def test_several_functions(problem, term):
    """Two losses add up; one loss in two functions is one mean."""
    parts = problem.parts(3, N)
    accumulator = GradientAccumulator(problem.params)
    functions = [accumulator.function(problem.inputs, problem.loss, term=term)
                 for _ in parts]
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=1.)
    if term is None:
        each = [mean_gradients(problem, [part]) for part in parts]
        gradients = {param: each[0][param] + each[1][param]
                     for param in problem.params}
    else:
        gradients = mean_gradients(problem, parts)
    expected = after_step(problem, gradients)
    layer = lower(problem)
    hidden = full_batch.Pass(problem.network, problem.data[0]).inputs[layer]
    for function, part in zip(functions, parts):
        function(*part)
    step()
    assert_values(expected)
    assert_allclose(layer.mean.get_value(),
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
    assert_values(dict(zip((layer.mean, layer.std), expected_averages(
        layer, *whole if combine == "chain" else [np.concatenate(whole)]))))


def test_some_layers_only(problem):
    first, second = lower(problem), problem.network
    _, accumulate, step = accumulating(problem, layers=first)
    accumulate(*problem.data)
    step()
    assert_array_equal(second.mean.get_value(), np.zeros((1, 3)))
    assert np.all(first.mean.get_value() != 0)


@pytest.mark.parametrize("flag, moves", [
    ("explicit", True), (False, False)])
def test_flags(float64, flag, moves):
    problem = Problem(two_layers, {"batch_norm_update_averages": flag})
    _, accumulate, step = accumulating(problem)
    accumulate(*problem.data)
    step()
    assert np.all((lower(problem).mean.get_value() != 0) == moves)


def test_values_that_are_not_finite_leave_averages(compiled):
    problem, (_, accumulate, step) = compiled
    problem.restart()
    before = [average.get_value() for average in problem.averages]
    x, y = problem.data[0].copy(), problem.data[1]
    x[0, 0] = np.inf
    for part in slice(6), slice(6, N):
        accumulate(x[part], y[part])
    step()
    for average, value in zip(problem.averages, before):
        assert_array_equal(average.get_value(), value)


def test_size_zero_counts_for_nothing(problem):
    size = T.scalar()
    accumulator = GradientAccumulator(problem.params)
    accumulate = accumulator.function(problem.inputs + [size], problem.loss,
                                      size=size)
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=1.)
    expected = after_step(problem, mean_gradients(problem, [problem.data]))
    x, y = problem.data
    accumulate(x * np.nan, y, 0)
    accumulate(x, y, N)
    step()
    assert_values(expected)
    assert np.all(lower(problem).mean.get_value() != 0)


def test_schedule_of_alpha_moves_with_the_step(float64, rng):
    average = CumulativeAverage()
    layer = BatchNormLayer((None, 4), alpha=average.alpha)
    x, data = T.matrix(), rng.normal(2, 3, (12, 4))
    accumulator = GradientAccumulator([layer.gamma])
    accumulate = accumulator.function([x], layer.get_output_for(x)[0].sum())
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=0.1)
    alphas = []
    for _ in range(3):
        accumulate(data[:6])
        accumulate(data[6:])
        alphas.append(float(average.alpha.get_value()))
        step()
    assert_allclose(alphas, [1, 1 / 2, 1 / 3])
    assert_allclose(layer.mean.get_value(), data.mean(axis=0, keepdims=True))


def test_random_layers_move_with_the_micro_batch(float64):
    problem = Problem(lambda: two_layers(DropoutLayer))
    _, accumulate, _ = accumulating(problem)
    losses = {float(accumulate(*problem.data)) for _ in range(4)}
    assert len(losses) > 1
    assert np.all(lower(problem).mean.get_value() == 0)


def test_givens_outputs_and_updates(problem):
    x, y = problem.data
    shared, calls = theano.shared(x), theano.shared(0)
    start = T.iscalar()
    accumulator = GradientAccumulator(problem.params)
    accumulate = accumulator.function(
        [start, problem.y], problem.loss, size=problem.x.shape[0],
        outputs=[problem.output], updates=[(calls, calls + 1)],
        givens={problem.x: shared[start:]})
    output, = accumulate(N - 5, y[-5:])
    assert output.shape == (5, 3)
    assert accumulator.size == 5
    assert calls.get_value() == 1
    assert np.all(lower(problem).mean.get_value() == 0)


@pytest.mark.parametrize("held", [True, []])
def test_default_updates_that_are_held_back(problem, held):
    """The user's are, along with those of the averages."""
    calls = theano.shared(0.)
    calls.default_update = calls + 1
    accumulator = GradientAccumulator(problem.params)
    accumulate = accumulator.function(
        problem.inputs, problem.loss, outputs=problem.loss + calls,
        no_default_updates=held)
    accumulate(*problem.data)
    assert calls.get_value() == (0 if held else 1)
    assert np.all(lower(problem).mean.get_value() == 0)


def test_rule_may_take_inputs(problem):
    rate = T.scalar()
    accumulator = GradientAccumulator(problem.params)
    accumulate = accumulator.function(problem.inputs, problem.loss)
    step = accumulator.step_function(
        partial(lasagne.updates.sgd, learning_rate=rate), inputs=[rate])
    accumulate(*problem.data)
    beta = lower(problem).beta
    before = beta.get_value()
    step(0)
    assert_array_equal(beta.get_value(), before)


# Errors

def scan_loss(layer):
    outputs, _ = theano.scan(layer.get_output_for, T.tensor3())
    return outputs.sum()


def test_errors():
    problem = Problem(two_layers)
    accumulator = GradientAccumulator(problem.params)
    for error, message, loss, kwargs in [
            (TypeError, "loss must be a Theano variable", 3, {}),
            (ValueError, "loss must be a scalar", problem.output, {}),
            (ValueError, "depends on none", T.sqr(problem.y).mean(), {}),
            (ValueError, "depends on none",
             theano.gradient.disconnected_grad(problem.loss), {}),
            (ValueError, "size must be a scalar", problem.loss,
             {"size": problem.y}),
            (ValueError, "in a loop", scan_loss(problem.network)
             + problem.loss, {})]:
        with pytest.raises(error, match=message):
            accumulator.function(problem.inputs, loss, **kwargs)
    for inputs in [T.scalar()], []:
        with pytest.raises(ValueError, match="size must be given"):
            accumulator.function(inputs, problem.loss)
    # None of these left anything behind.
    with pytest.raises(ValueError, match="nothing to make a step of"):
        accumulator.step_function(lasagne.updates.sgd, learning_rate=1)


def test_function_that_cannot_be_compiled(problem):
    accumulator = GradientAccumulator(problem.params)
    with pytest.raises(theano.gof.fg.MissingInputError):
        accumulator.function([problem.x], problem.loss)
    with pytest.raises(ValueError, match="nothing to make a step of"):
        accumulator.step_function(lasagne.updates.sgd, learning_rate=1)


def test_errors_of_the_step(compiled):
    problem, (accumulator, _, _) = compiled
    with pytest.raises(ValueError, match="step function already"):
        accumulator.function(problem.inputs, problem.loss)
    other = theano.shared(1., "other")
    accumulator = GradientAccumulator(problem.params + [other])
    accumulator.function(problem.inputs, problem.loss)
    with pytest.raises(ValueError, match="depends on the parameter other"):
        accumulator.step_function(lasagne.updates.sgd, learning_rate=1)
    stranger = BatchNormLayer((None, 3), name="stranger")
    with pytest.raises(ValueError, match="training mode from .*'stranger'"):
        accumulating(problem, layers=[stranger])


@pytest.mark.parametrize("arguments, error, message", [
    (([3],), TypeError, "list of shared variables"),
    (([],), ValueError, "params is empty"),
    (([theano.shared(1.)], None, "sum"), ValueError, "combine must be"),
])
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        GradientAccumulator(*arguments)


@pytest.mark.parametrize("call, message", [
    (lambda p, a: GradientAccumulator(batch_norm(DenseLayer((None, 3), 2))),
     "get_all_params"),
    (lambda p, a: GradientAccumulator(p.loss), "params must be a list"),
    (lambda p, a: a.function(p.x, p.loss), "inputs must be a list"),
    (lambda p, a: a.step_function("adam"), "rule must be a function"),
    (lambda p, a: a.step_function(lasagne.updates.sgd, 0.1),
     "learning_rate=0.1"),
    (lambda p, a: a.exact_function(p.inputs, p.loss)(1, 2), "one list"),
])
def test_first_mistakes(call, message):
    problem = Problem(two_layers)
    accumulator = GradientAccumulator(problem.params)
    with pytest.raises(TypeError, match=message):
        call(problem, accumulator)
