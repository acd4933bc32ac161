"""How running averages leave a graph, and what they must survive."""

import pickle

from bnlasagne import BatchNormLayer, batch_norm, plain_expressions
from bnlasagne.averages import marker

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from lasagne.layers import (
    CustomRecurrentLayer,
    DenseLayer,
    InputLayer,
    get_all_params,
    get_output,
)
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("float64")

ALPHA = 0.25
MODES = {
    "FAST_RUN": theano.Mode("cvm", "fast_run"),
    "FAST_RUN without C": theano.Mode("py", "fast_run"),
    "FAST_COMPILE": "FAST_COMPILE",
    "no optimization": theano.Mode("py", None),
}
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=list(MODES))


@pytest.fixture(params=["fused", "plain"], autouse=True)
def expressions(request):
    """The test runs with the fused Ops and with plain expressions."""
    if request.param == "fused":
        yield
    else:
        with plain_expressions():
            yield


@pytest.fixture
def layer():
    return BatchNormLayer((None, 3), alpha=ALPHA, name="bn")


@pytest.fixture
def batches(rng):
    return [rng.normal(place, place, (place + 3, 3)) for place in (1, 2, 3)]


def assert_followed(layer, *batches):
    """The layer's averages followed the batches, in order; from 0 and 1."""
    statistics = [reference.statistics(batch, (0,)) for batch in batches]
    assert_allclose(layer.mean.get_value(), reference.running_average(
        np.zeros((1, 3)), [mean for mean, _ in statistics], layer.alpha))
    assert_allclose(layer.std.get_value(), reference.running_average(
        np.ones((1, 3)), [std for _, std in statistics], layer.alpha))


# One application

@every_mode
def test_one_application(layer, batches, mode):
    x = T.matrix()
    function = theano.function([x], layer.get_output_for(x), mode=mode)
    for batch in batches:
        function(batch)
    assert_followed(layer, *batches)


@every_mode
def test_clone_with_another_weight(batches, mode):
    """Both move the averages, each with its own weight."""
    x, alpha = T.matrix(), T.scalar()
    layer = BatchNormLayer((None, 3), alpha=alpha)
    output = layer.get_output_for(x)
    # The copy comes first or second; with these weights, it does not matter.
    clone = theano.clone(output, replace={alpha: T.ones_like(alpha)})
    function = theano.function([x, alpha], [output, clone], mode=mode,
                               on_unused_input="ignore")
    function(batches[0], 0)
    assert_allclose(layer.mean.get_value()[0], batches[0].mean(axis=0))


@every_mode
def test_a_statistic_that_is_not_finite_leaves_all_averages(layer, mode):
    x = T.matrix()
    function = theano.function([x], layer.get_output_for(x), mode=mode)
    batch = np.array([[np.inf, 1, 2], [3, 3, 5]])
    with np.errstate(all="ignore"):
        function(batch)  # of which the other channels are finite
    assert_array_equal(layer.mean.get_value(), np.zeros((1, 3)))
    assert_array_equal(layer.std.get_value(), np.ones((1, 3)))


def test_nothing_is_left_in_the_compiled_function(layer, mode):
    x = T.matrix()
    function = theano.function([x], layer.get_output_for(x), mode=mode)
    nodes = function.maker.fgraph.apply_nodes
    ops = {type(node.op).__name__ for node in nodes}
    assert not ops & {"Marker", "UpdatedAverage"}


@pytest.mark.parametrize("wrt", ["x", "beta"])
@every_mode
def test_gradient_alone_updates(layer, batches, mode, wrt):
    x = T.matrix()
    cost = layer.get_output_for(x).sum()
    wrt = {"x": x, "beta": layer.beta}[wrt]
    function = theano.function([x], theano.grad(cost, wrt), mode=mode,
                               on_unused_input="ignore")
    function(batches[0])
    assert_followed(layer, batches[0])


def test_output_and_gradients_update_once(layer, batches, mode):
    x = T.matrix()
    output = layer.get_output_for(x)
    gradients = theano.grad(T.sqr(output).sum(), [x, layer.gamma, layer.beta])
    theano.function([x], [output] + gradients, mode=mode)(batches[0])
    assert_followed(layer, batches[0])


def test_gradient_penalty(layer, batches, mode):
    x = T.matrix()
    output = layer.get_output_for(x)
    gradient = theano.grad((output ** 3).sum(), x)
    penalty = theano.grad(T.sqr(gradient).sum(), layer.gamma)
    actual = theano.function([x], penalty, mode=mode)(batches[0])
    assert_followed(layer, batches[0])

    def expected(gamma):
        dy = 3 * reference.normalize_batch(batches[0], (0,), gamma) ** 2
        dx = reference.gradient_of_normalize_batch(
            batches[0], dy, (0,), gamma)[0]
        return np.square(dx).sum()

    assert_allclose(actual, reference.finite_differences(
        expected, np.ones((1, 3))), rtol=1e-5)


# Several applications

@every_mode
def test_two_applications_follow_each_other(layer, batches, mode):
    x, y = T.matrices(2)
    first, second = layer.get_output_for(x), layer.get_output_for(y)
    # The order of application counts, not that of the outputs.
    theano.function([x, y], [second, first], mode=mode)(*batches[:2])
    assert_followed(layer, *batches[:2])


@every_mode
def test_two_applications_through_gradients(layer, batches, mode):
    x, y = T.matrices(2)
    first, second = layer.get_output_for(x), layer.get_output_for(y)
    cost = (first ** 3).sum() * (second ** 3).sum()
    gradients = theano.grad(cost, get_all_params(layer, trainable=True))
    theano.function([x, y], gradients, mode=mode)(*batches[:2])
    assert_followed(layer, *batches[:2])


def test_applications_on_the_same_input_are_two(layer, batches, mode):
    x = T.matrix()
    outputs = [layer.get_output_for(x), layer.get_output_for(x)]
    theano.function([x], outputs, mode=mode)(batches[0])
    assert_followed(layer, batches[0], batches[0])


def test_layer_on_itself(layer, batches, mode):
    x = T.matrix()
    output = layer.get_output_for(layer.get_output_for(x))
    theano.function([x], output, mode=mode)(batches[0])
    assert_followed(layer, batches[0],
                    reference.normalize_batch(batches[0], (0,)))


def test_function_with_one_of_two_applications(layer, batches, mode):
    x, y = T.matrices(2)
    layer.get_output_for(x)
    second = layer.get_output_for(y)
    theano.function([y], second, mode=mode)(batches[1])
    assert_followed(layer, batches[1])


@every_mode
def test_deterministic_output_sees_the_averages_before(layer, batches, mode):
    x = T.matrix()
    outputs = [layer.get_output_for(x),
               layer.get_output_for(x, deterministic=True), layer.mean]
    function = theano.function([x], outputs, mode=mode)
    mean, std = layer.mean.get_value(), layer.std.get_value()
    for step, batch in enumerate(batches, 1):
        trained, tested, returned = function(batch)
        assert_allclose(trained, reference.normalize_batch(batch, (0,)))
        assert_allclose(tested, reference.normalize(batch, mean, std))
        assert_array_equal(returned, mean)
        assert_followed(layer, *batches[:step])
        mean, std = layer.mean.get_value(), layer.std.get_value()


def test_layers_that_share_their_averages(layer, batches, mode):
    other = BatchNormLayer((None, 3), alpha=ALPHA, mean=layer.mean,
                           std=layer.std)
    x, y = T.matrices(2)
    outputs = [layer.get_output_for(x), other.get_output_for(y)]
    theano.function([x, y], outputs, mode=mode)(*batches[:2])
    assert_followed(layer, *batches[:2])
    assert_followed(other, *batches[:2])


def test_averages_in_use_while_they_are_updated(layer, batches, mode):
    x = T.matrix()
    output = layer.get_output_for(x, batch_norm_use_averages=True)
    actual = theano.function([x], output, mode=mode)(batches[0])
    assert_allclose(actual, reference.normalize(batches[0], 0, 1))
    assert_followed(layer, batches[0])


# What else users do with graphs

def test_givens(layer, batches, mode):
    x, y = T.matrices(2)
    output = layer.get_output_for(x)
    theano.function([y], output, givens={x: 2 * y}, mode=mode)(batches[0])
    assert_followed(layer, 2 * batches[0])


def test_no_default_updates(layer, batches, mode):
    x = T.matrix()
    outputs = [layer.get_output_for(x), layer.get_output_for(2 * x),
               layer.get_output_for(x, deterministic=True)]
    actual = theano.function([x], outputs, mode=mode,
                             no_default_updates=True)(batches[0])
    assert_allclose(actual[0], reference.normalize_batch(batches[0], (0,)))
    assert_followed(layer)


def test_explicit_update_takes_the_place_of_the_automatic_ones(
        layer, batches, mode):
    x = T.matrix()
    outputs = [layer.get_output_for(x), layer.get_output_for(2 * x)]
    theano.function([x], outputs, updates={layer.mean: layer.mean + 7},
                    mode=mode)(batches[0])
    assert_array_equal(layer.mean.get_value(), np.full((1, 3), 7))
    stds = [reference.statistics(factor * batches[0], (0,))[1]
            for factor in (1, 2)]
    assert_allclose(layer.std.get_value(),
                    reference.running_average(1, stds, ALPHA))


def test_no_default_update_of_one_average(layer, batches, mode):
    x = T.matrix()
    function = theano.function([x], layer.get_output_for(x), mode=mode,
                               no_default_updates=[layer.mean])
    function(batches[0])
    assert_array_equal(layer.mean.get_value(), np.zeros((1, 3)))
    assert_allclose(layer.std.get_value(), reference.running_average(
        1, [reference.statistics(batches[0], (0,))[1]], ALPHA))


@every_mode
def test_clone_with_another_input(layer, batches, mode):
    x, y = T.matrices(2)
    output = theano.clone(layer.get_output_for(x), replace={x: 2 * y})
    actual = theano.function([y], output, mode=mode)(batches[0])
    assert_allclose(actual, reference.normalize_batch(2 * batches[0], (0,)))
    assert_followed(layer, 2 * batches[0])


def test_original_and_clones_in_one_function(layer, batches, mode):
    x, y = T.matrices(2)
    output = layer.get_output_for(x)
    replaced = theano.clone(output, replace={x: y})
    copied = theano.clone(output)  # the same application once more
    theano.function([x, y], [output, replaced, copied],
                    mode=mode)(*batches[:2])
    assert_followed(layer, *batches[:2])


def test_clone_with_another_scale_is_the_same_application(
        layer, batches, mode):
    """As where a step of learning is part of the graph."""
    x = T.matrix()
    output = layer.get_output_for(x)
    adapted = theano.clone(output, replace={layer.gamma: layer.gamma * 2})
    theano.function([x], [output, adapted], mode=mode)(batches[0])
    assert_followed(layer, batches[0])


def test_poisoned_averages_stay_out_of_the_training_output(
        layer, batches, mode):
    for average in (layer.mean, layer.std):
        average.set_value(np.full((1, 3), np.nan))
    x = T.matrix()
    output = layer.get_output_for(x)
    outputs = [output] + theano.grad((output ** 3).sum(), [x, layer.gamma])
    actual = theano.function([x], outputs, mode=mode)(batches[0])
    assert_allclose(actual[0], reference.normalize_batch(batches[0], (0,)))
    assert all(np.all(np.isfinite(value)) for value in actual)


def test_compiled_function_pickles(layer, batches, mode):
    x, y = T.matrices(2)
    outputs = [layer.get_output_for(x), layer.get_output_for(y), layer.mean]
    function = theano.function([x, y], outputs, mode=mode)
    copy = pickle.loads(pickle.dumps(function, -1))
    # Its own copy of the averages follows, and is what it returns.
    copy(*batches[:2])
    assert_followed(layer)
    returned = copy(*batches[:2])[2]
    function(*batches[:2])
    assert_followed(layer, *batches[:2])
    assert_allclose(returned, layer.mean.get_value())


def test_network_and_function_pickle_together(layer, batches, quick):
    x = T.matrix()
    function = theano.function([x], layer.get_output_for(x))
    layer, function = pickle.loads(pickle.dumps((layer, function), -1))
    function(batches[0])
    assert_followed(layer, batches[0])


def test_copy_of_a_function(layer, batches, mode):
    x = T.matrix()
    function = theano.function([x], layer.get_output_for(x), mode=mode)
    function.copy()(batches[0])
    assert_followed(layer, batches[0])
    function.copy(delete_updates=True)(batches[1])
    assert_followed(layer, batches[0])


def test_test_values(layer, batches, quick):
    with theano.configparser.change_flags(compute_test_value="raise", cxx=""):
        x = T.matrix()
        x.tag.test_value = batches[0]
        output = layer.get_output_for(x)
        gradient = theano.grad(T.sqr(output).sum(), x)
    assert_allclose(output.tag.test_value,
                    reference.normalize_batch(batches[0], (0,)))
    assert gradient.tag.test_value.shape == batches[0].shape


# Loops

@pytest.fixture
def steps(rng):
    """A sequence of batches, as one array, steps first."""
    return rng.normal(1, 2, (4, 5, 3))


@pytest.fixture(params=["FAST_RUN", "FAST_COMPILE"])
def loop_mode(request):
    return request.param


@pytest.mark.parametrize("passed", [False, True])
def test_loop(layer, steps, loop_mode, passed):
    x = T.tensor3()
    outputs, updates = theano.scan(layer.get_output_for, sequences=[x])
    actual = theano.function([x], outputs, mode=loop_mode,
                             updates=updates if passed else None)(steps)
    for one, step in zip(actual, steps):
        assert_allclose(one, reference.normalize_batch(step, (0,)))
    assert_followed(layer, *steps)


def test_updates_of_a_loop_alone(layer, steps, loop_mode):
    x = T.tensor3()
    _, updates = theano.scan(layer.get_output_for, sequences=[x])
    theano.function([x], [], updates=updates, mode=loop_mode)(steps)
    assert_followed(layer, *steps)


def test_loop_without_default_updates(layer, steps, loop_mode):
    x = T.tensor3()
    outputs, _ = theano.scan(layer.get_output_for, sequences=[x])
    theano.function([x], outputs, mode=loop_mode,
                    no_default_updates=True)(steps)
    assert_followed(layer)


def test_applications_in_and_out_of_loops(layer, steps, loop_mode):
    x = T.tensor3()

    def twice(step):
        return layer.get_output_for(step) + layer.get_output_for(3 * step)

    first = layer.get_output_for(2 * x[0])
    loop, _ = theano.scan(layer.get_output_for, sequences=[x])
    last, _ = theano.scan(twice, sequences=[x])
    theano.function([x], [last, loop, first], mode=loop_mode)(steps)
    expected = [2 * steps[0]] + list(steps)
    for step in steps:
        expected += [step, 3 * step]
    assert_followed(layer, *expected)


@pytest.mark.parametrize("passed", [False, True])
def test_loop_in_a_loop(layer, steps, quick, passed):
    x = T.tensor3()

    def outer(step):
        outputs, updates = theano.scan(
            lambda factor: layer.get_output_for(factor * step),
            sequences=[T.constant([1., 2.])])
        return (outputs[-1], updates) if passed else outputs[-1]

    outputs, _ = theano.scan(outer, sequences=[x])
    theano.function([x], outputs)(steps)
    assert_followed(layer, *[factor * step for step in steps
                             for factor in (1, 2)])


def test_updates_that_cannot_be_told_apart_in_a_loop(layer, steps, quick):
    x = T.tensor3()

    def outer(step):
        inner, updates = theano.scan(
            lambda factor: layer.get_output_for(factor * step),
            sequences=[T.constant([1., 2.])])
        return inner[-1] + layer.get_output_for(step), updates

    outputs, _ = theano.scan(outer, sequences=[x])
    with pytest.raises(ValueError, match="batch_norm_update_averages=False"):
        theano.function([x], outputs)
    assert_followed(layer)


def recurrent_network(rng, unroll):
    sequences = InputLayer((5, 4, 2))
    weights = rng.normal(size=(2, 3)), rng.normal(size=(3, 3))
    to_hidden = DenseLayer(InputLayer((None, 2)), 3, W=weights[0])
    hidden = batch_norm(DenseLayer(InputLayer((None, 3)), 3, W=weights[1]),
                        alpha=ALPHA)
    network = CustomRecurrentLayer(sequences, to_hidden, hidden,
                                   unroll_scan=unroll)
    return sequences.input_var, network, hidden


def test_recurrent_layer_in_a_loop_is_as_unrolled(rng, loop_mode):
    data = rng.normal(size=(5, 4, 2))
    state = rng.get_state()
    found = []
    for unroll in (False, True):
        rng.set_state(state)
        x, network, layer = recurrent_network(rng, unroll)
        output = get_output(network)
        gradients = theano.grad(
            T.sqr(output).sum(), get_all_params(network, trainable=True))
        values = theano.function([x], [output] + gradients,
                                 mode=loop_mode)(data)
        found.append(values + [layer.mean.get_value(),
                               layer.std.get_value()])
    for looped, unrolled in zip(*found):
        assert_allclose(looped, unrolled, rtol=1e-9, atol=1e-12)
    assert np.any(found[0][-2] != 0)


def test_recurrent_layer_may_leave_averages_alone(rng, loop_mode):
    x, network, layer = recurrent_network(rng, unroll=False)
    output = get_output(network, batch_norm_update_averages=False)
    theano.function([x], output, mode=loop_mode)(rng.normal(size=(5, 4, 2)))
    assert_array_equal(layer.mean.get_value(), np.zeros((1, 3)))


def test_updates_out_of_reach_are_refused(layer, batches, quick):
    x = T.matrix()
    op = theano.OpFromGraph([x], [layer.get_output_for(x)])
    with pytest.raises(ValueError, match="batch_norm_update_averages=False"):
        theano.function([x], op(x))
    assert_followed(layer)
    shape = theano.OpFromGraph([x], [layer.get_output_for(x).shape[0] * x])
    theano.function([x], shape(x))(batches[0])
    assert_followed(layer)
    op = theano.OpFromGraph(
        [x], [layer.get_output_for(x, batch_norm_update_averages=False)])
    assert_allclose(theano.function([x], op(x))(batches[0]),
                    reference.normalize_batch(batches[0], (0,)))


# Loops over gradients: what is applied outside of a loop moves averages once

def outside(layer, x):
    """A function of the layer's output, and its derivative by NumPy."""
    return T.tanh(layer.get_output_for(x))


def jacobian_of_tanh(batch):
    """By central differences, of the first row of the output."""
    def row(x):
        return np.tanh(reference.normalize_batch(x, (0,)))[0]

    columns = []
    for index in np.ndindex(*batch.shape):
        step = np.zeros_like(batch)
        step[index] = 1e-5
        columns.append((row(batch + step) - row(batch - step)) / 2e-5)
    return np.stack(columns, -1).reshape((3,) + batch.shape)


LOOPS = {
    "jacobian": lambda y, x: theano.gradient.jacobian(y[0], x),
    "scan": lambda y, x: theano.scan(
        lambda i, row: T.grad(row[i], x), [T.arange(3)],
        non_sequences=[y[0]])[0],
    "scan that is passed nothing": lambda y, x: theano.scan(
        lambda i: T.grad(y[0][i], x), [T.arange(3)])[0],
    "scan in a scan": lambda y, x: theano.scan(
        lambda i: theano.scan(lambda j: T.grad(y[0][j], x), [T.arange(3)])[0],
        [T.arange(2)])[0][1],
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=list(LOOPS))
def test_gradients_in_a_loop(layer, batches, loop_mode, loop):
    x = T.matrix()
    function = theano.function([x], loop(outside(layer, x), x),
                               mode=loop_mode)
    assert_allclose(function(batches[0]), jacobian_of_tanh(batches[0]),
                    rtol=1e-6, atol=1e-8)
    assert_followed(layer, batches[0])
    function(batches[1])
    assert_followed(layer, *batches[:2])


@pytest.mark.parametrize("loop", LOOPS.values(), ids=list(LOOPS))
def test_gradients_in_a_loop_and_outside_count_once(
        layer, batches, quick, loop):
    x = T.matrix()
    output = outside(layer, x)
    outputs = [loop(output, x), T.grad(output.sum(), x), output]
    theano.function([x], outputs)(batches[0])
    assert_followed(layer, batches[0])


def test_hessian(layer, batches, quick):
    x = T.matrix()
    scale = theano.shared(np.ones(3))
    loss = T.tanh(layer.get_output_for(x) * scale).sum()
    hessian = theano.function([x], theano.gradient.hessian(loss, scale))
    normalized = reference.normalize_batch(batches[0], (0,))
    tanh = np.tanh(normalized)
    assert_allclose(hessian(batches[0]), np.diag(np.sum(
        -2 * tanh * (1 - tanh ** 2) * normalized ** 2, axis=0)), atol=1e-12)
    assert_followed(layer, batches[0])


def test_loop_over_gradients_of_a_loop_of_layers(layer, steps, quick):
    """Of an application in a loop and another outside of all loops."""
    x = T.tensor3()
    inside, _ = theano.scan(layer.get_output_for, sequences=[x])
    output = outside(layer, 2 * x[0])
    gradients, _ = theano.scan(lambda i: T.grad(output[i].sum(), x),
                               [T.arange(2)])
    theano.function([x], [inside, gradients])(steps)
    assert_followed(layer, *list(steps) + [2 * steps[0]])


def test_default_updates_are_there_after_a_loop(layer, batches, quick):
    """They are taken away only while the loop is built, errors included."""
    x = T.matrix()
    output = layer.get_output_for(x)
    theano.gradient.jacobian(output[0], x)
    with pytest.raises(ZeroDivisionError):
        theano.scan(lambda i: output[i] * (1 / 0), [T.arange(3)])
    theano.function([x], output)(batches[0])
    assert_followed(layer, batches[0])


# Derivatives forward

def test_rop(rng, batches, quick):
    x, direction = T.matrices("xv")
    layer = BatchNormLayer((None, 3), alpha=ALPHA)
    with plain_expressions():
        output = layer.get_output_for(x)
        derivative = T.Rop(output, x, direction)
    v = rng.normal(size=batches[0].shape)
    found = theano.function([x, direction], derivative)(batches[0], v)
    ends = [reference.normalize_batch(batches[0] + step * v, (0,))
            for step in (1e-5, -1e-5)]
    assert_allclose(found, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-8)


def test_rop_of_fused_ops_says_what_to_do():
    x = T.matrix()
    output = BatchNormLayer((None, 3)).get_output_for(x)
    if any(type(node.op).__name__ == "BatchNormalize" for node
           in theano.gof.graph.io_toposort([x], [output])):
        with pytest.raises(NotImplementedError, match="plain_expressions"):
            T.Rop(output, x, x)


# Graphs that come from another process, and copies of functions

def test_loaded_applications_come_first(layer, batches, mode, monkeypatch):
    x, y = T.matrices(2)
    for _ in range(5):
        layer.get_output_for(x)
    content = pickle.dumps((layer, x, layer.get_output_for(x)), -1)
    monkeypatch.setattr(marker, "_numbers", marker._Numbers())
    layer, x, first = pickle.loads(content)
    second = layer.get_output_for(y)
    theano.function([x, y], [second, first], mode=mode)(*batches[:2])
    assert_followed(layer, *batches[:2])


@pytest.mark.parametrize("tested", [False, True])
def test_copy_with_other_averages(layer, batches, mode, tested):
    x = T.matrix()
    outputs = [layer.get_output_for(x)] + [
        layer.get_output_for(x, deterministic=True)] * tested
    function = theano.function([x], outputs, mode=mode)
    other = BatchNormLayer((None, 3), alpha=ALPHA)
    copy = function.copy(swap={layer.mean: other.mean, layer.std: other.std})
    copy(batches[0])
    assert_followed(layer)
    assert_followed(other, batches[0])
    if tested:
        mean, std = other.mean.get_value(), other.std.get_value()
        assert_allclose(copy(batches[1])[1],
                        reference.normalize(batches[1], mean, std))
    function(batches[2])
    assert_followed(layer, batches[2])


# What was stored before

@every_mode
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_batch_of_weight_1_replaces_what_is_not_finite(
        batches, mode, poison):
    layer = BatchNormLayer((None, 3), alpha=theano.shared(0.5))
    x = T.matrix()
    function = theano.function([x], layer.get_output_for(x), mode=mode)
    for average in (layer.mean, layer.std):
        average.set_value(np.full((1, 3), poison))
    function(batches[0])
    assert not np.any(np.isfinite(layer.mean.get_value()))
    layer.alpha.set_value(1)
    function(batches[0])
    for average, value in zip((layer.mean, layer.std),
                              reference.statistics(batches[0], (0,))):
        assert_allclose(average.get_value(), value)
