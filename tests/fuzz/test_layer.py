"""Random layers, applied in random ways, against a model in NumPy."""

import copy
import dataclasses
import io
import pickle

from bnlasagne import CumulativeAverage, batch_norm

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.common import tensor
from helpers.fuzzing import many
from helpers.model import LayerModel, number
from helpers.setups import FLAGS, Setup, modes, setups, uses_and_updates
from hypothesis import assume, event, example, given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

# How an input gets to its output.
WAYS = ["straight", "cloned", "givens", "shared", "expression"]


@dataclasses.dataclass(frozen=True)
class Use:
    """One application of a layer: flags, and how the input gets there."""

    flags: dict
    way: str
    examples: int


USES = st.lists(st.builds(
    Use, FLAGS, st.sampled_from(WAYS), st.sampled_from([3, 2, 1, 5])),
    min_size=1, max_size=3)


class Graph:
    """Apply a layer several times; compile one function of all of it."""

    def __init__(self, setup, layer, uses, mode):
        self.setup, self.layer, self.uses, self.mode = (
            setup, layer, uses, mode)
        self.inputs, self.givens, wrt, outputs, costs = [], {}, [], [], []
        for use in uses:
            x, mask, dy = (each if each is None else tensor(each)
                           for each in setup.batch(0, use.examples))
            output, given = self._output(use, x, mask)
            outputs.append(output)
            wrt.append(x if use.way == "givens" else given)
            costs.append((output * dy).sum())
            self.inputs += [each for each in (given, mask, dy)
                            if each is not None]
        wrt += [param for param in (layer.gamma, layer.beta)
                if param is not None]
        self.outputs = outputs + theano.grad(
            sum(costs), wrt, disconnected_inputs="ignore")

    def _output(self, use, x, mask):
        """Return the output, and the variable for the batch."""
        def output(x):
            return self.layer.get_output_for(
                x if mask is None else [x, mask], **use.flags)

        if use.way == "cloned":
            given = x.type()
            return theano.clone(output(x), replace={x: given}), given
        if use.way == "givens":
            given = x.type()
            self.givens[x] = given * 2
            return output(x), given
        if use.way == "shared":
            given = theano.shared(np.zeros((1,) * x.ndim, x.dtype),
                                  broadcastable=x.broadcastable)
            return output(given), given
        return output(x + x if use.way == "expression" else x), x

    def function(self):
        variables = [each for each in self.inputs
                     if not hasattr(each, "set_value")]
        return theano.function(
            variables, self.outputs, mode=self.mode, givens=self.givens,
            on_unused_input="ignore", allow_input_downcast=True)

    def call(self, function, batches):
        """Call the function for a batch of each application."""
        values = [each for batch in batches for each in batch
                  if each is not None]
        given = []
        for variable, value in zip(self.inputs, values):
            if hasattr(variable, "set_value"):
                variable.set_value(value)
            else:
                given.append(value)
        return function(*given)


FACTORS = {"givens": 2, "expression": 2}


class Followed:
    """A model that follows a graph of a layer."""

    def __init__(self, graph):
        self.graph, self.layer = graph, graph.layer
        self.model = LayerModel(graph.layer)
        self.schedule = CumulativeAverage.of(graph.layer)

    def check(self, found, batches, before):
        """Compare outputs and gradients with those by the averages before."""
        setup, uses, layer = self.graph.setup, self.graph.uses, self.layer
        gradients = found[len(uses):]
        by_params = 0, 0
        for i, (use, (x, mask, dy)) in enumerate(zip(uses, batches)):
            factor = FACTORS.get(use.way, 1)
            applied = before.apply(
                x * x.dtype.type(factor), mask,
                uses_and_updates(use.flags)[0])
            setup.close(found[i], applied.y, "output %d" % i)
            dx, *others = applied.gradients(dy)
            if use.way == "expression":
                dx = dx * factor
            setup.close(gradients[i], dx, "gradient %d" % i)
            by_params = [one + other for one, other
                         in zip(by_params, others)]
        own = [each for each, param in zip(by_params, (
            layer.gamma, layer.beta)) if param is not None]
        for one, other in zip(gradients[len(uses):], own):
            setup.close(one, other, "gradient of a parameter")

    def follow(self, batches, alpha=None):
        """Move the averages by the batches of a call."""
        alpha = number(self.layer.alpha) if alpha is None else alpha
        for use, (x, mask, _) in zip(self.graph.uses, batches):
            if uses_and_updates(use.flags)[1]:
                factor = x.dtype.type(FACTORS.get(use.way, 1))
                self.model.move(self.model.apply(
                    x * factor, mask).statistics, alpha)

    def check_averages(self):
        for name in ("mean", "std"):
            self.graph.setup.close(
                getattr(self.layer, name).get_value(),
                getattr(self.model, name), name)


def draw_batches(setup, uses, seed):
    return [setup.batch(seed + i, use.examples) for i, use in enumerate(uses)]


# Virtual batches of vectors.
OF_VECTORS = Setup((4,), (0,), "float64", None, 3, 0.01, 0.1, (1, 0),
                   (True, True), lasagne.nonlinearities.identity, True, 0)


@many(times=2, quick=5)
@example(OF_VECTORS, [Use({}, "straight", 4)],
         theano.Mode("py", "fast_compile"), 0)
@given(setups(), USES, modes(), st.integers(0, 99))
def test_outputs_gradients_and_averages(setup, uses, mode, seed):
    """Several applications in one function, called twice."""
    with setup.context():
        layer = setup.layer()
        graph = Graph(setup, layer, uses, mode)
        function, followed = graph.function(), Followed(graph)
        updates = any(uses_and_updates(use.flags)[1] for use in uses)
        event("updates" if updates else "no updates")
        for call in range(2):
            batches = draw_batches(setup, uses, seed + 10 * call)
            before = copy.copy(followed.model)
            count = followed.schedule and followed.schedule.count
            alpha = number(layer.alpha)
            found = graph.call(function, batches)
            followed.check(found, batches, before)
            followed.follow(batches, alpha)
            followed.check_averages()
            if followed.schedule:
                assert followed.schedule.count == count + updates
                assert followed.schedule.alpha.get_value() == (
                    np.asarray(1 / (count + updates + 1), setup.floatX))


def copied_by_pickle(layer, way):
    """A copy of a layer, with its mask's layer."""
    if way == "deep copy":
        return copy.deepcopy(layer)
    file = io.BytesIO()
    pickle.dump(layer, file, -1)
    return pickle.loads(file.getvalue())


@many(quick=2)
@given(setups(most_axes=3), USES, modes(), st.sampled_from(
    ["deep copy", "pickle", "copy of the function"]))
def test_copies(setup, uses, mode, way):
    """A copy does what the original does, bit for bit, and stays apart."""
    with setup.context():
        layer = setup.layer()
        graph = Graph(setup, layer, uses, mode)
        function = graph.function()
        batches = draw_batches(setup, uses, 5)
        before = [param.get_value() for param in layer.get_params()]
        if way == "copy of the function":
            # Theano copies no functions of some linkers, such as "c|py".
            assume(hasattr(function.fn, "storage_map"))
            other, other_layer = function.copy(), layer
        else:
            other_layer = copied_by_pickle(layer, way)
            graph_of_copy = Graph(setup, other_layer, uses, mode)
            other = graph_of_copy.function()
        one = graph.call(function, batches)
        states = [param.get_value() for param in layer.get_params()]
        if way == "copy of the function":
            for param, value in zip(layer.get_params(), before):
                param.set_value(value)
            schedule = CumulativeAverage.of(layer)
            if schedule:
                schedule.count = setup.seed % 3
            two = graph.call(other, batches)
        else:
            for param, value in zip(other_layer.get_params(), before):
                assert_array_equal(param.get_value(), value)
            two = graph_of_copy.call(other, batches)
        for each, same in zip(one, two):
            assert_array_equal(each, same)
        for param, value in zip(other_layer.get_params(), states):
            assert_array_equal(param.get_value(), value)


@many(quick=2)
@given(setups(most_axes=3), FLAGS, modes(), st.sampled_from([2, 1, 3]),
       st.integers(0, 99))
def test_in_a_loop(setup, flags, mode, length, seed):
    """Each iteration moves the averages; all are normalized by the first."""
    with setup.context():
        layer = setup.layer()
        batches = [setup.batch(seed + i) for i in range(length)]
        sequences = [np.stack(each) for each in zip(*batches)
                     if each[0] is not None]
        variables = [tensor(each) for each in sequences]

        def iteration(x, *others):
            mask = list(others[:-1])
            return layer.get_output_for([x, *mask] if mask else x, **flags)

        outputs, updates = theano.scan(iteration, sequences=variables)
        dx = theano.grad((outputs * variables[-1]).sum(), variables[0])
        function = theano.function(variables, [outputs, dx], updates=updates,
                                   mode=mode)
        model, alpha = LayerModel(layer), number(layer.alpha)
        before = copy.copy(model)
        found = function(*sequences)
        use, update = uses_and_updates(flags)
        schedule = CumulativeAverage.of(layer)
        count = schedule and setup.seed % 3
        for i, (x, mask, dy) in enumerate(batches):
            applied = before.apply(x, mask, use)
            setup.close(found[0][i], applied.y, "output")
            setup.close(found[1][i], applied.gradients(dy)[0], "gradient")
            if update:
                weight = 1 / (count + 1 + i) if schedule else alpha
                model.move(applied.statistics, weight)
        for name in ("mean", "std"):
            setup.close(getattr(layer, name).get_value(),
                        getattr(model, name), name)


@many(times=2, quick=4)
@given(setups(most_axes=4), USES, modes(), st.integers(0, 9), st.data())
def test_a_call_that_fails_changes_nothing(setup, uses, mode, which, data):
    with setup.context():
        layer = setup.layer()
        graph = Graph(setup, layer, uses, mode)
        function = graph.function()
        batches = draw_batches(setup, uses, 5)
        others = [axis for axis in range(len(setup.shape))
                  if axis not in setup.axes]
        which %= len(batches)
        x, mask, dy = batches[which]
        if not others or mask is not None:
            batches[which][2] = np.concatenate([dy, dy, dy])
        else:
            axis = data.draw(st.sampled_from(others))
            batches[which] = [None if each is None else np.concatenate(
                [each] * 3, axis) for each in (x, mask, dy)]
        before = [param.get_value() for param in layer.get_params()]
        schedule = CumulativeAverage.of(layer)
        count = schedule and schedule.count
        with pytest.raises(ValueError):
            graph.call(function, batches)
        for param, value in zip(layer.get_params(), before):
            assert_array_equal(param.get_value(), value)
        assert count == (schedule and schedule.count)


LAYERS = {
    "dense": lambda incoming, **options: lasagne.layers.DenseLayer(
        incoming, 3, **options),
    "convolution": lambda incoming, **options: lasagne.layers.Conv1DLayer(
        lasagne.layers.ReshapeLayer(incoming, ([0], 1, -1)), 3, 2, **options),
    "nin": lambda incoming, **options: lasagne.layers.NINLayer(
        lasagne.layers.ReshapeLayer(incoming, ([0], 2, -1)), 3, **options),
}


@many(quick=5)
@given(st.sampled_from(list(LAYERS)), st.booleans(), st.sampled_from(
    [None, lasagne.nonlinearities.rectify, lasagne.nonlinearities.tanh]),
    st.fixed_dictionaries({}, optional={
        "epsilon": st.sampled_from([0.5, 1e-3]),
        "alpha": st.sampled_from([1, 0.1]),
        "gamma": st.none(), "beta": st.none(),
        "axes": st.sampled_from([0, "auto", 7, (0, 0)]),
        "virtual_batch_size": st.sampled_from([2, 0]),
        "name": st.just("bn"), "nonlinearity": st.just(T.tanh),
        "unknown": st.just(3)}), FLAGS)
def test_batch_norm(kind, biased, nonlinearity, options, flags):
    """It takes over bias and nonlinearity; or it fails, and takes nothing."""
    mode = theano.Mode("py", "fast_compile")
    incoming = lasagne.layers.InputLayer((None, 4))
    layer = LAYERS[kind](incoming, nonlinearity=nonlinearity,
                         b=lasagne.init.Normal() if biased else None)
    before = dict(layer.__dict__), list(layer.get_params())
    x = T.matrix()
    linear = lasagne.layers.get_output(layer, x)
    wrong = options.keys() & {"unknown"} or options.get("axes") in (
        7, (0, 0)) or options.get("virtual_batch_size") == 0 or (
        options.get("axes") == 0 and kind != "dense")
    try:
        wrapper = batch_norm(layer, **options)
    except (TypeError, ValueError):
        assert wrong
        assert (layer.__dict__, layer.get_params()) == before
        return
    assert not wrong
    assert layer.b is None
    expected = options.get("nonlinearity",
                           layer_nonlinearity(nonlinearity))
    assert wrapper.nonlinearity is expected
    plain = lasagne.layers.get_output(layer, x)
    output = lasagne.layers.get_output(wrapper, x, **flags)
    data = np.random.RandomState(3).normal(size=(6, 4)).astype(x.dtype)
    # With a compiler, Theano has convolutions in C only.
    with theano.configparser.change_flags(cxx=""):
        function = theano.function([x], [linear, plain, output], mode=mode,
                                   no_default_updates=True)
    _, values, found = function(data)
    wrapper.nonlinearity = lasagne.nonlinearities.identity
    applied = LayerModel(wrapper).apply(values, None,
                                        uses_and_updates(flags)[0])
    value = theano.function([], expected(T.constant(applied.y)), mode=mode)()
    np.testing.assert_allclose(found, value, 1e-3, 1e-3)


def layer_nonlinearity(nonlinearity):
    return nonlinearity or lasagne.nonlinearities.identity
