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


NETWORKS = [plain_network, residual_network, network_of_images,
            renormalized_network, network_without,
            network_with_dead_channel, half_frozen_network]


class Problem:
    """A network, its loss on some data, and its state."""

    def __init__(self, build, flags=None, floatX="float64"):
        lasagne.random.set_rng(np.random.RandomState(5))
        self.network = build()
        shape = lasagne.layers.get_all_layers(self.network)[0].shape
        self.x = T.TensorType(floatX, (False,) * len(shape))("x")
        self.y = T.matrix("y")
        self.output = get_output(self.network, self.x, **flags or {})
        self.loss = T.sqr(self.output - self.y).mean()
        self.params = get_all_params(self.network, trainable=True)
        rng = np.random.RandomState(6)
        self.data = (rng.normal(1, 2, (N,) + shape[1:]).astype(floatX),
                     rng.normal(size=(N, 3)).astype(floatX))

    def parts(self, *ends):
        return [tuple(array[start:end] for array in self.data)
                for start, end in zip((0,) + ends[:-1], ends)]

    def values(self):
        return [param.get_value() for param in get_all_params(self.network)]

    def full_step(self):
        step = theano.function(
            [self.x, self.y], [self.loss, self.output],
            updates=lasagne.updates.sgd(self.loss, self.params, 0.1))
        return step(*self.data)

    def accumulator(self, **kwargs):
        accumulator = GradientAccumulator(self.params, **kwargs)
        accumulate = accumulator.exact_function(
            [self.x, self.y], self.loss, outputs=self.output)
        step = accumulator.step_function(lasagne.updates.sgd,
                                         learning_rate=0.1)
        return accumulator, accumulate, step


def assert_same_step(build, parts=(1, 4, 4, N), flags=None, floatX="float64",
                     **kwargs):
    full, problem = (Problem(build, flags, floatX) for _ in range(2))
    expected_loss, expected_output = full.full_step()
    accumulator, accumulate, step = problem.accumulator(**kwargs)
    before = problem.values()
    loss, outputs = accumulate(problem.parts(*parts))
    for value, old in zip(problem.values(), before):
        assert_array_equal(value, old)
    assert accumulator.size == N
    step()
    assert_allclose(loss, expected_loss, **TOLERANCE[floatX])
    assert_allclose(np.concatenate([output for output, in outputs]),
                    expected_output, **TOLERANCE[floatX])
    for value, expected in zip(problem.values(), full.values()):
        assert_allclose(value, expected, **TOLERANCE[floatX])
    if kwargs.get("moves", True):
        assert any(np.any(value != old)
                   for value, old in zip(problem.values(), before))


@pytest.mark.parametrize("build", NETWORKS)
def test_networks(float64, quick, build):
    assert_same_step(build)


@pytest.mark.parametrize("parts", [(N,), (7, N), tuple(range(1, N + 1))])
def test_any_cut(float64, quick, parts):
    assert_same_step(residual_network, parts)


@pytest.mark.parametrize("flags", [
    {"batch_norm_update_averages": False},
    {"batch_norm_update_averages": "explicit"},
    {"batch_norm_use_averages": True},
    {"deterministic": True}])
def test_flags(float64, quick, flags):
    full = Problem(residual_network, flags)
    if flags.get("batch_norm_update_averages") == "explicit":
        flags = {}  # for what it is compared with
    assert full.loss.ndim == 0
    assert_same_step(residual_network, flags=flags)


def test_explicit_averages(float64, quick):
    problem, full = (Problem(residual_network, flags) for flags in (
        {"batch_norm_update_averages": "explicit"}, {}))
    full.full_step()
    _, accumulate, step = problem.accumulator()
    accumulate(problem.parts(5, N))
    step()
    for value, expected in zip(problem.values(), full.values()):
        assert_allclose(value, expected, **TOLERANCE["float64"])


def test_plain_expressions(float64, quick):
    with plain_expressions():
        assert_same_step(residual_network)


@pytest.mark.skipif(not theano.config.cxx, reason="needs a C++ compiler")
@pytest.mark.parametrize("floatX", ["float32", "float64"])
def test_virtual_machine_in_c(monkeypatch, floatX):
    """The one that computes in each pass what it wants only; without C Ops."""
    linker = theano.gof.vm.VM_Linker(use_cloop=True, c_thunks=False)
    monkeypatch.setattr(theano.compile.mode, "instantiated_default_mode",
                        theano.Mode(linker, "fast_compile"))
    with theano.configparser.change_flags(floatX=floatX):
        assert_same_step(residual_network, floatX=floatX)


def test_linker_without_choice(float64, monkeypatch):
    monkeypatch.setattr(theano.compile.mode, "instantiated_default_mode",
                        theano.Mode("py", "fast_compile"))
    assert_same_step(residual_network)


@pytest.mark.parametrize("combine", ["chain", "pool"])
def test_layer_applied_twice(float64, quick, rng, combine):
    """Each application has statistics of its own; averages see both."""
    states = []
    whole = rng.normal(1, 2, (9, 4)), rng.normal(3, 1, (9, 4))
    for exact in False, True:
        lasagne.random.set_rng(np.random.RandomState(5))
        layer = batch_norm(DenseLayer(InputLayer(SHAPE), 5, nonlinearity=tanh))
        network = batch_norm(DenseLayer(layer, 3, nonlinearity=tanh))
        a, b = T.matrices("ab")
        loss = T.sqr(get_output(network, a) - get_output(network, b)).mean()
        params = get_all_params(network, trainable=True)
        accumulator = GradientAccumulator(params, combine=combine)
        if exact:
            accumulator.exact_function([a, b], loss)(
                [[part[:2] for part in whole], [part[2:] for part in whole]])
        else:
            accumulator.function([a, b], loss)(*whole)
        accumulator.step_function(lasagne.updates.sgd, learning_rate=0.1)()
        states.append([param.get_value()
                       for param in get_all_params(network)])
    for exact, full in zip(states[1], states[0]):
        assert_allclose(exact, full, **TOLERANCE["float64"])


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
    results = []
    for exact in False, True:
        problem = Problem(dropout_network)
        for state in random_states(problem):
            state.set_value(np.arange(6 * len(state.get_value()), dtype="int32"
                                      ).reshape(-1, 6) + 1)
        accumulator = GradientAccumulator(problem.params)
        make = accumulator.exact_function if exact else accumulator.function
        accumulate = make([problem.x, problem.y], problem.loss)
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


def test_together_with_other_functions(float64, quick):
    """A term by exact_function() and one by function() in a step."""
    problem, other = Problem(network_without), Problem(network_without)
    accumulator = GradientAccumulator(problem.params)
    inputs = [problem.x, problem.y]
    exact = accumulator.exact_function(inputs, problem.loss)
    plain = accumulator.function(inputs, problem.loss)
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=0.05)
    exact(problem.parts(3, N))
    plain(*problem.data)
    step()
    other.full_step()
    for value, expected in zip(problem.values(), other.values()):
        assert_allclose(value, expected, **TOLERANCE["float64"])


def test_number_of_passes(float64, quick):
    problem = Problem(residual_network)
    _, accumulate, _ = problem.accumulator()
    passes = []

    def parts():
        passes.append(None)
        return iter(problem.parts(3, N))
    accumulate(parts)
    # One to learn the sizes, which computes nothing, and 2 D + 1.
    assert len(passes) == 1 + 2 * 4 + 1


# What goes wrong

def test_iterator_that_fails_late(float64, quick):
    problem = Problem(dropout_network)
    accumulator, accumulate, _ = problem.accumulator()
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


def test_wrong_data(float64, quick):
    problem = Problem(plain_network)
    accumulator, accumulate, _ = problem.accumulator()
    parts = problem.parts(3, N)
    lengths = iter([2, 1, 1, 1, 1, 1])
    for error, message, wrong in [
            (ValueError, "iterated only once", iter(parts)),
            (TypeError, "expected a list of micro-batches", 3),
            (TypeError, "expected a list of micro-batches", problem.data[0]),
            (ValueError, "no examples", []),
            (ValueError, "no examples", problem.parts(0)),
            (ValueError, "micro-batch 1 has 1 arrays", [parts[0], [1]]),
            (ValueError, "micro-batch 1 does not go through",
             [parts[0], (parts[1][0], parts[1][1][:, :2])]),
            (ValueError, "2 micro-batches in the first pass and 1",
             lambda: parts[:next(lengths)])]:
        with pytest.raises(error, match=message):
            accumulate(wrong)
        assert accumulator.size == 0


def test_gradient_in_the_loss_is_refused():
    problem = Problem(plain_network)
    gradient = T.grad(problem.loss, problem.x)
    accumulator = GradientAccumulator(problem.params)
    with pytest.raises(ValueError, match="have a gradient through batch"):
        accumulator.exact_function([problem.x, problem.y],
                                   problem.loss + T.sqr(gradient).mean())


def test_loop_is_refused():
    problem = Problem(plain_network)
    layer = BatchNormLayer((None, 3))
    for flag in True, False:
        looped, _ = theano.scan(lambda x, flag=flag: layer.get_output_for(
            x, batch_norm_update_averages=flag), T.tensor3())
        accumulator = GradientAccumulator(problem.params)
        with pytest.raises(ValueError, match="in a loop"):
            accumulator.exact_function([problem.x, problem.y],
                                       problem.loss + looped.sum())


def test_batch_of_one_value_leaves_averages(float64, quick):
    """As by function(): a batch of one value per channel moves none."""
    problem = Problem(plain_network)
    before = [param.get_value() for param in get_all_params(
        problem.network, batch_norm_stat=True)]
    _, accumulate, step = problem.accumulator()
    accumulate(problem.parts(1))
    step()
    for param, value in zip(get_all_params(
            problem.network, batch_norm_stat=True), before):
        assert_array_equal(param.get_value(), value)


def test_one_loss_by_both_functions(float64, quick):
    """Averages weigh all values alike, whichever function had them."""
    problem = Problem(lambda: BatchNormLayer(
        DenseLayer(InputLayer(SHAPE), 3, nonlinearity=linear)))
    accumulator = GradientAccumulator(problem.params)
    inputs = [problem.x, problem.y]
    exact = accumulator.exact_function(inputs, problem.loss)
    plain = accumulator.function(inputs, problem.loss)
    step = accumulator.step_function(lasagne.updates.sgd, learning_rate=0)
    first, second = problem.parts(4, N)
    exact([first])
    plain(*second)
    step()
    network = problem.network
    x = problem.data[0] @ network.input_layer.W.get_value()
    assert_allclose(network.mean.get_value(), 0.5 * x.mean(
        0, keepdims=True), **TOLERANCE["float64"])
