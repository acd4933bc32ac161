"""How functions move running averages, and what that must survive."""

import pickle

from bnlasagne import BatchNormLayer, plain_expressions
from bnlasagne.averages import marker

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.layers import assert_followed
from helpers.modes import every_mode
from lasagne.layers import get_all_params
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("float64")


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
    other = BatchNormLayer((None, 3), alpha=0.25, mean=layer.mean,
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


def test_another_op_that_fails_leaves_all_averages(layer, batches, mode):
    """Theano likes to compute new values in the place of the old ones."""
    x, y, weights = T.matrices(3)
    tested = layer.get_output_for(y, deterministic=True)
    outputs = [layer.get_output_for(x), T.dot(tested, weights)]
    function = theano.function([x, y, weights], outputs, mode=mode)
    with pytest.raises(ValueError):
        function(*batches[:2], np.zeros((2, 2)))
    assert_array_equal(layer.mean.get_value(), np.zeros((1, 3)))
    assert_array_equal(layer.std.get_value(), np.ones((1, 3)))


# What else users do with graphs

def test_givens(layer, batches, mode):
    x, y = T.matrices(2)
    output = layer.get_output_for(x)
    theano.function([y], output, givens={x: 2 * y}, mode=mode)(batches[0])
    assert_followed(layer, 2 * batches[0])


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
                    reference.running_average(1, stds, 0.25))


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


def test_test_values(layer, batches, quick):
    with theano.configparser.change_flags(compute_test_value="raise", cxx=""):
        x = T.matrix()
        x.tag.test_value = batches[0]
        output = layer.get_output_for(x)
        gradient = theano.grad(T.sqr(output).sum(), x)
    assert_allclose(output.tag.test_value,
                    reference.normalize_batch(batches[0], (0,)))
    assert gradient.tag.test_value.shape == batches[0].shape


# Derivatives forward

def test_rop(rng, batches, quick):
    x, direction = T.matrices("xv")
    layer = BatchNormLayer((None, 3), alpha=0.25)
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


# Graphs that come from another process

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
