"""Running averages of layers that are applied in loops, or around them."""

from bnlasagne import batch_norm, plain_expressions

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.layers import assert_followed
from helpers.modes import mode_fixture
from lasagne.layers import (
    CustomRecurrentLayer,
    DenseLayer,
    InputLayer,
    get_all_params,
    get_output,
)
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("float64")


mode = mode_fixture(("FAST_RUN", "fused"), ("FAST_COMPILE", "plain"))


@pytest.fixture
def steps(rng):
    """A sequence of batches, as one array, steps first."""
    return rng.normal(1, 2, (4, 5, 3))


@pytest.mark.parametrize("passed", [False, True])
def test_loop(layer, steps, mode, passed):
    x = T.tensor3()
    outputs, updates = theano.scan(layer.get_output_for, sequences=[x])
    actual = theano.function([x], outputs, mode=mode,
                             updates=updates if passed else None)(steps)
    for one, step in zip(actual, steps):
        assert_allclose(one, reference.normalize_batch(step, (0,)))
    assert_followed(layer, *steps)


def test_updates_of_a_loop_alone(layer, steps, mode):
    x = T.tensor3()
    _, updates = theano.scan(layer.get_output_for, sequences=[x])
    theano.function([x], [], updates=updates, mode=mode)(steps)
    assert_followed(layer, *steps)


def test_loop_without_default_updates(layer, steps, mode):
    x = T.tensor3()
    outputs, _ = theano.scan(layer.get_output_for, sequences=[x])
    theano.function([x], outputs, mode=mode,
                    no_default_updates=True)(steps)
    assert_followed(layer)


def test_applications_in_and_out_of_loops(layer, steps, mode):
    x = T.tensor3()

    def twice(step):
        return layer.get_output_for(step) + layer.get_output_for(3 * step)

    first = layer.get_output_for(2 * x[0])
    loop, _ = theano.scan(layer.get_output_for, sequences=[x])
    last, _ = theano.scan(twice, sequences=[x])
    theano.function([x], [last, loop, first], mode=mode)(steps)
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
                        alpha=0.25)
    network = CustomRecurrentLayer(sequences, to_hidden, hidden,
                                   unroll_scan=unroll)
    return sequences.input_var, network, hidden


def test_recurrent_layer_in_a_loop_is_as_unrolled(rng, mode):
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
                                 mode=mode)(data)
        found.append(values + [layer.mean.get_value(),
                               layer.std.get_value()])
    for looped, unrolled in zip(*found):
        assert_allclose(looped, unrolled, rtol=1e-9, atol=1e-12)
    assert np.any(found[0][-2] != 0)


def test_recurrent_layer_may_leave_averages_alone(rng, mode):
    x, network, layer = recurrent_network(rng, unroll=False)
    output = get_output(network, batch_norm_update_averages=False)
    theano.function([x], output, mode=mode)(rng.normal(size=(5, 4, 2)))
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
def test_gradients_in_a_loop(layer, batches, mode, loop):
    x = T.matrix()
    function = theano.function([x], loop(outside(layer, x), x),
                               mode=mode)
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

def test_rop(layer, steps, quick):
    x, direction = T.tensor3s(2)
    with plain_expressions():
        outputs, _ = theano.scan(layer.get_output_for, sequences=[x])
        derivative = T.Rop(outputs, x, direction)
    found = theano.function([x, direction], derivative)(steps, 2 * steps)
    assert_followed(layer, *steps)
    ends = [[reference.normalize_batch((1 + 2 * size) * step, (0,))
             for step in steps] for size in (1e-5, -1e-5)]
    assert_allclose(found, np.subtract(*ends) / 2e-5, rtol=1e-6, atol=1e-8)


# What an iteration may return

def test_condition_to_stop(layer, steps, mode):
    """It is taken from an output that was built outside of the loop."""
    x = T.tensor3()
    output = layer.get_output_for(x[0])

    def iteration(i):
        return T.grad(output[i].sum(), x), theano.scan_module.until(
            output[i, 0] > 1e9)

    gradients, _ = theano.scan(iteration, sequences=[T.arange(2)])
    theano.function([x], gradients, mode=mode)(steps)
    assert_followed(layer, steps[0])
