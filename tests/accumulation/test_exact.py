"""Micro-batches that give exactly what the full batch does."""

from bnlasagne import (
    BatchNormLayer,
    GradientAccumulator,
    batch_norm,
    freeze_batch_norm,
    plain_expressions,
)

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import full_batch
from helpers.common import needs_compiler
from helpers.layers import expected_averages
from helpers.modes import default_mode
from helpers.networks import sized
from helpers.problems import RATE, Problem
from helpers.splits import cuts_of
from hypothesis import example, given, settings
from lasagne.layers import (
    DenseLayer,
    DropoutLayer,
    ElemwiseSumLayer,
    GlobalPoolLayer,
    InputLayer,
    NINLayer,
    get_all_params,
    get_output,
)
from lasagne.nonlinearities import linear, tanh
from numpy.testing import assert_allclose, assert_array_equal

TOLERANCE = {"float64": {"rtol": 1e-11, "atol": 1e-12},
             "float32": {"rtol": 2e-4, "atol": 2e-5}}
SHAPE = (None, 4)
N = 14


def plain_network(**kwargs):
    network = InputLayer(SHAPE)
    for _ in range(2):
        network = batch_norm(DenseLayer(network, 5, nonlinearity=tanh),
                             **kwargs)
    return DenseLayer(network, 3, nonlinearity=linear)


def residual_network():
    below = batch_norm(DenseLayer(InputLayer(SHAPE), 5, nonlinearity=tanh))
    network = batch_norm(DenseLayer(below, 5))
    network = batch_norm(DenseLayer(network, 5, nonlinearity=linear))
    network = BatchNormLayer(ElemwiseSumLayer([network, below]))
    return DenseLayer(network, 3, nonlinearity=linear)


def network_of_images():
    """Convolutions of size 1, for Theano has no others without C."""
    network = InputLayer((None, 2, 5, 5))
    for _ in range(2):
        network = batch_norm(NINLayer(network, 3))
    return DenseLayer(GlobalPoolLayer(network), 3, nonlinearity=linear)


def renormalized_network():
    return plain_network(r_max=1.2, d_max=0.3, mean=0.2, std=0.8)


def network_without():
    return DenseLayer(InputLayer(SHAPE), 3, nonlinearity=tanh)


def network_with_dead_channel():
    network = DenseLayer(InputLayer(SHAPE), 3, nonlinearity=linear)
    network.W.set_value(network.W.get_value() * [1, 0, 1])
    return BatchNormLayer(batch_norm(network), gamma=2)


def half_frozen_network():
    network = residual_network()
    freeze_batch_norm(network.input_layer.input_layer.input_layers[1])
    return network


def assert_same_step(problem, micro_batches, compiled=None, **kwargs):
    """A step by micro-batches is that of the full batch in NumPy."""
    accumulator, accumulate, step = compiled or problem.exact()
    floatX = problem.x.dtype
    expected_loss, expected_output, expected = problem.full_batch(**kwargs)
    before = problem.values()
    loss, outputs = accumulate(micro_batches)
    for value, old in zip(problem.values(), before):
        assert_array_equal(value, old)
    assert accumulator.size == N
    step()
    assert_allclose(loss, expected_loss, **TOLERANCE[floatX])
    assert_allclose(np.concatenate([output for output, in outputs]),
                    expected_output, **TOLERANCE[floatX])
    for value, after, old in zip(problem.values(), expected, before):
        assert_allclose(value, after, **TOLERANCE[floatX])
        assert np.any(value != old) == np.any(after != old)


@pytest.mark.parametrize("build", [
    plain_network, network_of_images, renormalized_network, network_without,
    network_with_dead_channel, half_frozen_network])
def test_networks(float64, quick, build):
    problem = Problem(build)
    assert_same_step(problem, problem.parts(1, 4, 4, N))


@pytest.fixture(scope="module")
def residual():
    """A problem, compiled once for the module."""
    with theano.configparser.change_flags(floatX="float64"), default_mode(
            "FAST_COMPILE"):
        problem = Problem(residual_network)
        return problem, problem.exact()


@given(cuts=cuts_of(N))
@example(cuts=list(range(N)))
@settings(max_examples=15)
def test_any_cut(residual, cuts):
    problem, compiled = residual
    problem.restart()
    assert_same_step(problem, problem.cut(cuts), compiled)


@pytest.mark.parametrize("flags, kwargs", [
    ({"batch_norm_update_averages": False}, {"moves": False}),
    ({"batch_norm_update_averages": "explicit"}, {}),
    ({"batch_norm_use_averages": True}, {"by_batch": False}),
    ({"deterministic": True}, {"by_batch": False, "moves": False})])
def test_flags(float64, quick, flags, kwargs):
    problem = Problem(residual_network, flags)
    assert_same_step(problem, problem.parts(5, N), **kwargs)


def test_plain_expressions(float64, quick):
    with plain_expressions():
        problem = Problem(residual_network)
        assert_same_step(problem, problem.parts(1, 4, 4, N))


@needs_compiler
@pytest.mark.parametrize("floatX", ["float32", "float64"])
def test_virtual_machine_in_c(floatX):
    """The one that computes in each pass what it wants only; without C Ops."""
    linker = theano.gof.vm.VM_Linker(use_cloop=True, c_thunks=False)
    with theano.configparser.change_flags(floatX=floatX), default_mode(
            theano.Mode(linker, "fast_compile")):
        problem = Problem(residual_network, floatX=floatX)
        assert_same_step(problem, problem.parts(1, 4, 4, N))


def test_linker_without_choice(float64):
    with default_mode(theano.Mode("py", "fast_compile")):
        problem = Problem(residual_network)
        assert_same_step(problem, problem.parts(1, 4, 4, N))


@pytest.mark.parametrize("combine", ["chain", "pool"])
def test_layer_applied_twice(float64, quick, rng, combine):
    """Each application has statistics of its own; averages see both."""
    whole = rng.normal(1, 2, (9, 4)), rng.normal(3, 1, (9, 4))
    lower = batch_norm(DenseLayer(InputLayer(SHAPE), 5, nonlinearity=tanh))
    upper = batch_norm(DenseLayer(lower, 3, nonlinearity=tanh))
    a, b = T.matrices("ab")
    loss = T.sqr(get_output(upper, a) - get_output(upper, b)).mean()
    accumulator = GradientAccumulator(get_all_params(upper, trainable=True),
                                      combine=combine)
    accumulate = accumulator.exact_function([a, b], loss)
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=RATE)
    first, second = (full_batch.Pass(upper, part) for part in whole)
    _, dy = full_batch.squared_error(first.output, second.output)
    one, other = first.gradients(dy), second.gradients(-dy)
    expected = {param: param.get_value() - RATE * (one[param] + other[param])
                for param in accumulator.params}
    for layer in lower, upper:
        seen = [first.inputs[layer], second.inputs[layer]]
        expected.update(zip((layer.mean, layer.std), expected_averages(
            layer, *seen if combine == "chain" else [np.concatenate(seen)])))
    accumulate([[part[:2] for part in whole], [part[2:] for part in whole]])
    step()
    for param, value in expected.items():
        assert_allclose(param.get_value(), value, **TOLERANCE["float64"])


def dropout_network():
    network = batch_norm(DenseLayer(InputLayer(SHAPE), 5))
    network = batch_norm(DenseLayer(DropoutLayer(network), 5))
    return DenseLayer(DropoutLayer(network), 3)


def random_states(problem):
    return [variable for variable in theano.gof.graph.inputs([problem.loss])
            if variable.name is None and hasattr(variable, "get_value")
            and getattr(variable, "default_update", None) is not None
            and variable.ndim == 2 and variable.dtype == "int32"]


def test_random_layers_draw_the_same_in_all_passes(float64, quick):
    """As with the other function, which draws once."""
    results = []
    for exact in False, True:
        problem = Problem(dropout_network)
        for state in random_states(problem):
            state.set_value(np.arange(6 * len(state.get_value()), dtype="int32"
                                      ).reshape(-1, 6) + 1)
        accumulator = GradientAccumulator(problem.params)
        make = accumulator.exact_function if exact else accumulator.function
        accumulate = make(problem.inputs, problem.loss)
        step = accumulator.step_function(lasagne.updates.sgd,
                                         learning_rate=0.1)
        for _ in range(2):
            accumulate([problem.data]) if exact else accumulate(*problem.data)
            step()
        results.append(problem.values() + [
            state.get_value() for state in random_states(problem)])
    assert len(results[0]) == len(problem.values()) + 2
    for exact, once in zip(results[1], results[0]):
        assert_allclose(exact, once, **TOLERANCE["float64"])


def normalized_network():
    return BatchNormLayer(DenseLayer(InputLayer(SHAPE), 3,
                                     nonlinearity=linear), gamma=3)


@pytest.mark.parametrize("term", [None, "the same"])
def test_together_with_other_functions(float64, quick, term):
    """A step by both functions; averages weigh all values alike."""
    problem = Problem(normalized_network)
    accumulator = GradientAccumulator(problem.params)
    exact = accumulator.exact_function(problem.inputs, problem.loss, term=term)
    plain = accumulator.function(problem.inputs, problem.loss, term=term)
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=RATE)
    parts = problem.parts(4, N)
    weights = [1, 1] if term is None else [4 / N, 1 - 4 / N]
    gradients = [full_batch.gradients_of_error(problem.network, *part)
                 for part in parts]
    averages = full_batch.Pass(problem.network, problem.data[0]).averages()
    expected = {param: param.get_value() - RATE * sum(
        weight * own[param] for weight, own in zip(weights, gradients))
        for param in problem.params}
    exact([[array[:1] for array in parts[0]], [array[1:] for array
                                               in parts[0]]])
    plain(*parts[1])
    step()
    for param, value in {**expected, **averages}.items():
        assert_allclose(param.get_value(), value, **TOLERANCE["float64"])


def test_batch_of_one_value_leaves_averages(residual):
    """As by the other function: a batch of one value moves none."""
    problem, (_, accumulate, step) = residual
    problem.restart()
    before = [average.get_value() for average in problem.averages]
    accumulate(problem.parts(1))
    step()
    for average, value in zip(problem.averages, before):
        assert_array_equal(average.get_value(), value)


def test_number_of_passes(residual):
    problem, (accumulator, accumulate, _) = residual
    passes = []

    def parts():
        passes.append(None)
        return iter(problem.parts(3, N))
    accumulate(parts)
    accumulator.reset()
    # One to learn the sizes, which computes nothing, and 2 D + 1.
    assert len(passes) == 1 + 2 * 4 + 1


# What goes wrong

def test_iterator_that_fails_late(float64, quick):
    problem = Problem(dropout_network)
    accumulator, accumulate, _ = problem.exact()
    accumulate(problem.parts(3, N))
    state = accumulator._state() + random_states(problem)
    before = [variable.get_value() for variable in state]
    passes = []

    def parts():
        passes.append(None)
        yield problem.parts(3, N)[0]
        if len(passes) == 6:
            raise KeyError("late")
        yield problem.parts(3, N)[1]
    with pytest.raises(KeyError, match="late"):
        accumulate(parts)
    for variable, value in zip(state, before):
        assert_array_equal(variable.get_value(), value)


def test_wrong_data(residual):
    problem, (accumulator, accumulate, _) = residual
    parts = problem.parts(3, N)
    lengths = iter([2] + 9 * [1])
    for error, message, wrong in [
            (ValueError, "iterated only once", iter(parts)),
            (TypeError, "micro_batches must be an iterable", 3),
            (TypeError, "micro_batches must be an iterable", problem.data[0]),
            (ValueError, "no examples", []),
            (ValueError, "no examples", problem.parts(0)),
            (ValueError, "micro-batch 1 has 1 arrays", [parts[0], [1]]),
            (ValueError, "micro-batch 0 has 1 arrays", [problem.data[0]]),
            (ValueError, "micro-batch 1 does not go through",
             [parts[0], (parts[1][0], parts[1][1][:, :2])]),
            (ValueError, "2 micro-batches in the first pass and 1 .*same",
             lambda: parts[:next(lengths)])]:
        with pytest.raises(error, match=message):
            accumulate(wrong)
        assert accumulator.size == 0


def test_gradient_in_the_loss_is_refused():
    problem = Problem(plain_network)
    gradient = T.grad(problem.loss, problem.x)
    accumulator = GradientAccumulator(problem.params)
    with pytest.raises(ValueError, match="have a gradient through batch"):
        accumulator.exact_function(problem.inputs,
                                   problem.loss + T.sqr(gradient).mean())


def looped(apply, x):
    return theano.scan(apply, x)[0]


def looped_twice(apply, x):
    return theano.scan(lambda x: theano.scan(apply, x)[0],
                       T.shape_padleft(x))[0]


def in_another_op(apply, x):
    row = T.matrix()
    return theano.OpFromGraph([row], [apply(row)])(x[0])


@pytest.mark.parametrize("place, moves", [
    (looped, True), (looped, False), (looped_twice, False),
    (in_another_op, False)])
def test_loop_is_refused(place, moves):
    problem = Problem(plain_network)
    layer = BatchNormLayer((None, 4))
    output = place(lambda x: layer.get_output_for(
        x, batch_norm_update_averages=moves), T.shape_padleft(problem.x))
    accumulator = GradientAccumulator(problem.params)
    with pytest.raises(ValueError, match="in a loop"):
        accumulator.exact_function(problem.inputs,
                                   problem.loss + output.sum())


def test_loop_for_its_shape_alone(float64, quick):
    """It is not computed, so nothing in it is out of reach."""
    problem = Problem(normalized_network)
    output = looped(BatchNormLayer((None, 4)).get_output_for,
                    T.shape_padleft(problem.x))
    accumulator = GradientAccumulator(problem.params)
    accumulate = accumulator.exact_function(
        problem.inputs, problem.loss * output.shape[0])
    assert_allclose(accumulate(problem.parts(3, N)), problem.full_batch()[0])


def test_network_sized_by_its_input(rng, float64, quick):
    results = []
    data = rng.normal(2, 3, (6, 7, 4))
    for cuts in ([6], [2, 6]):
        l_in, _, second = sized(None)
        accumulator = GradientAccumulator(
            get_all_params(second, trainable=True))
        accumulate = accumulator.exact_function(
            [l_in.input_var], T.sqr(get_output(second) - 1).mean())
        step = accumulator.step_function(lasagne.updates.sgd,
                                         learning_rate=0.1)
        loss = accumulate(list(np.split(data, cuts[:-1])))
        step()
        results.append([loss] + [param.get_value()
                                 for param in get_all_params(second)])
    for one, other in zip(*results):
        assert_allclose(one, other, rtol=1e-9, atol=1e-12)
