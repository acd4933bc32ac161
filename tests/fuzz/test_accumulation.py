"""Steps of random micro-batches, against one step of the full batch."""

from bnlasagne import BatchNormLayer, CumulativeAverage, GradientAccumulator

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import full_batch
from helpers.fuzzing import many
from helpers.modes import default_mode
from helpers.splits import cuts_of
from hypothesis import given, note
from hypothesis import strategies as st
from lasagne.layers import (
    DenseLayer,
    ElemwiseSumLayer,
    InputLayer,
    get_all_layers,
    get_all_params,
    get_output,
)
from lasagne.nonlinearities import linear, rectify, tanh
from numpy.testing import assert_allclose, assert_array_equal

RATE, UNITS = 0.1, 3
SEEDS = st.integers(0, 2 ** 32 - 1)


@pytest.fixture(autouse=True, scope="module")
def settings():
    with default_mode(theano.Mode("py", None)), \
            theano.configparser.change_flags(floatX="float64"):
        yield


# --- rules, and the same in NumPy ------------------------------------------
# Gradients of nothing but rounding must not become steps: epsilons are large.

def sgd(state, p, g):
    return p - RATE * g


def momentum(state, p, g):
    state["v"] = 0.8 * state.get("v", 0) - RATE * g
    return p + state["v"]


def nesterov(state, p, g):
    momentum(state, p, g)
    return p + 0.8 * state["v"] - RATE * g


def adagrad(state, p, g):
    state["a"] = state.get("a", 0) + g ** 2
    return p - RATE * g / np.sqrt(state["a"] + 0.5)


def rmsprop(state, p, g):
    state["a"] = 0.7 * state.get("a", 0) + 0.3 * g ** 2
    return p - RATE * g / np.sqrt(state["a"] + 0.5)


def adam(state, p, g):
    state["t"] = t = state.get("t", 0) + 1
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.99 * state.get("v", 0) + 0.01 * g ** 2
    rate = RATE * np.sqrt(1 - 0.99 ** t) / (1 - 0.9 ** t)
    return p - rate * state["m"] / (np.sqrt(state["v"]) + 0.5)


def decayed(state, p, g):
    state["t"] = state.get("t", 0) + 1
    return p - RATE / state["t"] * (g + 0.1 * p)


def by_hand(gradients, params):
    """A rule as users write it: pairs, with a count of its own."""
    count = theano.shared(np.zeros(()))
    steps = [(param, param - RATE / (count + 1) * (gradient + 0.1 * param))
             for param, gradient in zip(params, gradients)]
    return [*steps, (count, count + 1)]


RULES = {
    "sgd": (lasagne.updates.sgd, {"learning_rate": RATE}, sgd),
    "momentum": (lasagne.updates.momentum, {
        "learning_rate": RATE, "momentum": 0.8}, momentum),
    "nesterov": (lasagne.updates.nesterov_momentum, {
        "learning_rate": RATE, "momentum": 0.8}, nesterov),
    "adagrad": (lasagne.updates.adagrad, {
        "learning_rate": RATE, "epsilon": 0.5}, adagrad),
    "rmsprop": (lasagne.updates.rmsprop, {
        "learning_rate": RATE, "rho": 0.7, "epsilon": 0.5}, rmsprop),
    "adam": (lasagne.updates.adam, {
        "learning_rate": RATE, "beta2": 0.99, "epsilon": 0.5}, adam),
    "by hand": (by_hand, {}, decayed),
}


# --- networks --------------------------------------------------------------

class Case:
    """A network to train, and what a step makes of it, in NumPy."""

    def __init__(self, network, rule, exact, seed):
        self.network, self.exact = network, exact
        self.rng = np.random.RandomState(seed)
        self.inputs = [layer for layer in get_all_layers(network)
                       if isinstance(layer, InputLayer)]
        y = T.matrix()
        output = get_output(network)
        loss = T.sqr(output - y).mean()
        self.params = get_all_params(network, trainable=True)
        self.accumulator = GradientAccumulator(self.params)
        make = self.accumulator.exact_function if exact \
            else self.accumulator.function
        rule, options, self.rule = RULES[rule]
        self.accumulate = make(
            [layer.input_var for layer in self.inputs] + [y], loss,
            size=self.inputs[-1].input_var.shape[0])
        self.step = self.accumulator.step_function(rule, **options)
        self.states = {param: {} for param in self.params}

    def values(self):
        return [param.get_value() for param in get_all_params(self.network)]

    def draw(self, n):
        """Arrays for the inputs, and targets."""
        return [(self.rng.uniform(size=n) < 0.7).astype(float)
                if layer.name == "mask"
                else self.rng.normal(1, 2, (n, *layer.shape[1:]))
                for layer in self.inputs] + [self.rng.normal(size=(n, 3))]

    def parts_of(self, layer, ends):
        """How a layer cuts the full batch to normalize it."""
        size = layer.virtual_batch_size
        starts = [0, *ends[:-1]]
        if not size:
            return [np.arange(ends[-1])] if self.exact else [
                np.arange(*ends) for ends in zip(starts, ends)]
        # A rest of one example belongs to the part before it.
        return [part for start, end in zip(starts, ends)
                for part in np.split(np.arange(start, end), range(
                    size, end - start - 1, size))]

    def expected(self, arrays, ends):
        """The loss, and the parameters after a step."""
        full = full_batch.Pass(
            self.network, dict(zip(self.inputs, arrays)),
            parts_of=lambda layer: self.parts_of(layer, ends))
        loss, dy = full_batch.squared_error(full.output, arrays[-1])
        gradients = full.gradients(dy)
        after = {param: self.rule(self.states[param], param.get_value(),
                                  gradients[param]) for param in self.params}
        after.update(full.averages())
        return loss, after


@st.composite
def networks(draw):
    """Dense layers, some with skips, and batch normalization in any form."""
    lasagne.random.set_rng(np.random.RandomState(draw(SEEDS)))
    with_mask = draw(st.booleans())
    mask = InputLayer((None,), name="mask")
    layers = [InputLayer((None, 4))]
    for _ in range(draw(st.integers(1, 3))):
        layer = DenseLayer(layers[-1], UNITS, b=None, nonlinearity=linear)
        if len(layers) > 1 and draw(st.booleans()):
            layer = ElemwiseSumLayer([layer, draw(
                st.sampled_from(layers[1:]))])
        if draw(st.integers(0, 5)):
            layer = drawn_norm(draw, layer, mask if with_mask else None)
        layers.append(layer)
    return DenseLayer(layers[-1], 3, nonlinearity=draw(
        st.sampled_from([linear, tanh])))


def drawn_norm(draw, layer, mask):
    alpha = draw(st.sampled_from([0.3, 1, None]))
    renormalized = draw(st.integers(0, 4)) == 4
    norm = BatchNormLayer(
        layer, epsilon=draw(st.sampled_from([0.01, 0.3])),
        alpha=CumulativeAverage(draw(st.integers(0, 3))).alpha
        if alpha is None else alpha,
        nonlinearity=draw(st.sampled_from([tanh, rectify, linear])),
        gamma=draw(st.sampled_from([lasagne.init.Uniform((0.5, 2)), None])),
        beta=draw(st.sampled_from([lasagne.init.Normal(1), None])),
        mean=lasagne.init.Normal(1), std=lasagne.init.Uniform((1, 2)),
        r_max=1.5 if renormalized else 1, d_max=0.5 if renormalized else 0,
        virtual_batch_size=draw(st.sampled_from([None, None, 2, 3])),
        mask_input=mask if draw(st.booleans()) else None)
    norm.frozen = draw(st.integers(0, 5)) == 5
    return norm


def described(network):
    names = ("nonlinearity", "alpha", "epsilon", "gamma", "beta", "r_max",
             "virtual_batch_size", "frozen", "mask_input")
    return "\n".join(f"{type(layer).__name__} " + ", ".join(
        f"{name}={getattr(layer, name)}" for name in names
        if hasattr(layer, name)) for layer in get_all_layers(network))


def micro_batches(arrays, cuts):
    return list(zip(*(np.split(array, cuts) for array in arrays)))


def abort(case, batches, number):
    """Have a sweep end early; nothing stays of it."""
    before = [variable.get_value()
              for variable in case.accumulator._state()] + case.values()
    left = [number]

    def failing():
        for batch in batches:
            if not left[0]:
                raise KeyError("early")
            left[0] -= 1
            yield batch

    if case.exact:
        with pytest.raises(KeyError, match="early"):
            while True:
                case.accumulate(failing)
                case.accumulator.reset()
    else:
        for batch in batches[:number]:
            case.accumulate(*batch)
        case.accumulator.reset()
    assert case.accumulator.size == 0
    if case.exact:
        for variable, value in zip(case.accumulator._state(), before):
            assert_array_equal(variable.get_value(), value)
    for value, old in zip(case.values(), before[-len(case.values()):]):
        assert_array_equal(value, old)


def check_step(case, arrays, cuts):
    """A step of micro-batches is that of the full batch."""
    before = case.values()
    expected_loss, expected = case.expected(arrays, [*cuts, len(arrays[0])])
    counts = {layer: CumulativeAverage.of(layer) for layer
              in get_all_layers(case.network)
              if isinstance(layer, BatchNormLayer) and not layer.frozen}
    counts = {schedule: schedule.count
              for schedule in filter(None, counts.values())}
    batches = micro_batches(arrays, cuts)
    if case.exact:
        loss = case.accumulate(batches)
        assert_allclose(loss, expected_loss, 1e-9, 1e-9)
    else:
        losses = [case.accumulate(*batch) for batch in batches]
        assert_allclose(sum(loss * len(batch[0]) for loss, batch
                            in zip(losses, batches) if len(batch[0])),
                        expected_loss * len(arrays[0]), 1e-9, 1e-9)
    assert case.accumulator.size == len(arrays[0])
    for value, old in zip(case.values(), before):
        assert_array_equal(value, old)
    case.step()
    assert case.accumulator.size == 0
    for param, old in zip(get_all_params(case.network), before):
        assert_allclose(param.get_value(), expected.get(param, old),
                        1e-8, 1e-9, err_msg=str(param))
    for schedule, count in counts.items():
        assert schedule.count == count + 1


@many(quick=6)
@given(network=networks(), rule=st.sampled_from(list(RULES)),
       exact=st.booleans(), seed=SEEDS, data=st.data())
def test_steps(network, rule, exact, seed, data):
    case = Case(network, rule, exact, seed)
    note(described(network))
    for _ in range(data.draw(st.integers(1, 4))):
        n = data.draw(st.integers(1, 12))
        arrays, cuts = case.draw(n), data.draw(cuts_of(n))
        note((exact, rule, n, cuts))
        if data.draw(st.integers(0, 3)) == 3:
            abort(case, micro_batches(arrays, cuts),
                  data.draw(st.integers(0, 40 if exact else 9)))
        check_step(case, arrays, cuts)
    with pytest.raises(ValueError, match="no micro-batch"):
        case.step()


def test_last_pass_ends_early():
    """Three layers deep, with a skip, a mask and an empty part."""
    lasagne.random.set_rng(np.random.RandomState(1))
    mask = InputLayer((None,), name="mask")
    options = {"gamma": lasagne.init.Uniform((0.5, 2)), "nonlinearity": tanh}
    first = BatchNormLayer(DenseLayer(InputLayer((None, 4)), UNITS, b=None,
                                      nonlinearity=linear), **options)
    second = BatchNormLayer(DenseLayer(first, UNITS, b=None),
                            mask_input=mask, **options)
    total = ElemwiseSumLayer([DenseLayer(second, UNITS), first])
    case = Case(DenseLayer(BatchNormLayer(total, **options), 3), "adam", True,
                seed=1)
    for cuts in [3, 3, 7], [], [0, 1]:
        arrays = case.draw(9)
        abort(case, micro_batches(arrays, cuts), 8 * (len(cuts) + 1) - 1)
        check_step(case, arrays, cuts)
