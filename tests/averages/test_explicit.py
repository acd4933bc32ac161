"""Updates of running averages that the user collects and passes."""

from bnlasagne import (
    BatchNormLayer,
    batch_norm,
    get_batch_norm_updates,
)

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.layers import assert_followed
from lasagne.layers import (
    DenseLayer,
    InputLayer,
    get_all_layers,
    get_output,
)
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("float64")

def train(x, layer, flag=True):
    return layer.get_output_for(x, batch_norm_update_averages=flag)


@pytest.mark.parametrize("flag", [True, "explicit"])
@pytest.mark.parametrize("off", [False, True])
def test_passed_updates_apply_once(layer, batches, mode, flag, off):
    x = T.matrix()
    output = train(x, layer, flag)
    updates = get_batch_norm_updates(output)
    assert list(updates) == [layer.mean, layer.std]
    function = theano.function([x], output, updates=updates, mode=mode,
                               no_default_updates=off)
    assert_allclose(function(batches[0]),
                    reference.normalize_batch(batches[0], (0,)))
    function(batches[1])
    assert_followed(layer, *batches[:2])


def test_explicit_outputs_update_nothing_by_themselves(layer, batches, mode):
    x = T.matrix()
    output = train(x, layer, "explicit")
    function = theano.function([x], [output, T.grad(output.max(), x)],
                               mode=mode)
    function(batches[0])
    assert_followed(layer)


def test_explicit_is_automatic_in_all_bits(batches, mode):
    values = []
    for flag in True, "explicit":
        layer = BatchNormLayer((None, 3), alpha=0.3)
        x = T.matrix()
        output = train(x, layer, flag)
        updates = get_batch_norm_updates(output) if flag == "explicit" else {}
        function = theano.function([x], output, updates=updates, mode=mode)
        for batch in batches:
            function(batch)
        values.append([param.get_value() for param in layer.get_params()])
    for automatic, explicit in zip(*values):
        assert_array_equal(automatic, explicit)


@pytest.mark.parametrize("turned", [False, True])
def test_chain_is_in_order_of_application(layer, batches, mode, turned):
    a, b = T.matrices("ab")
    outputs = [train(a, layer), train(b, layer)]
    if turned:
        outputs.reverse()
    updates = get_batch_norm_updates(outputs)
    theano.function([a, b], outputs, updates=updates, mode=mode)(*batches[:2])
    assert_followed(layer, *batches[:2])


@pytest.mark.parametrize("sizes", [(4, 7), (4, 1), (0, 5), (1, 1)])
def test_pool(layer, rng, mode, sizes):
    parts = [rng.normal(1e6 * i, 1 + i, (size, 3))
             for i, size in enumerate(sizes)]
    a, b = T.matrices("ab")
    outputs = [train(a, layer, "explicit"), train(b, layer, "explicit")]
    updates = get_batch_norm_updates(outputs, combine="pool")
    theano.function([a, b], [], updates=updates, mode=mode)(*parts)
    assert_followed(layer, np.concatenate(parts))


def test_pool_with_values_that_are_not_finite(layer, batches, mode):
    a, b = T.matrices("ab")
    updates = get_batch_norm_updates(
        [train(a, layer), train(b, layer)], combine="pool")
    function = theano.function([a, b], [], updates=updates, mode=mode)
    batches[1][0, 0] = np.nan
    function(*batches[:2])
    assert_followed(layer)


def test_combine_error(layer):
    a, b = T.matrices("ab")
    outputs = [train(a, layer), train(b, layer)]
    with pytest.raises(ValueError, match=r"bn\.mean.*2 applications"):
        get_batch_norm_updates(outputs, combine="error")
    assert len(get_batch_norm_updates(outputs[0], combine="error")) == 2


def test_different_weights_cannot_be_pooled():
    layer = BatchNormLayer((None, 3), alpha=0.1)
    other = BatchNormLayer((None, 3), mean=layer.mean, std=layer.std)
    x = T.matrix()
    outputs = [train(x, layer), train(x, other)]
    with pytest.raises(ValueError, match="different weights"):
        get_batch_norm_updates(outputs, combine="pool")


def test_gradients_and_losses(layer, batches, mode):
    x = T.matrix()
    loss = T.sqr(train(x, layer) - 1).sum()
    gradient = T.grad(loss, layer.gamma)
    updates = lasagne.updates.sgd(loss, [layer.gamma], 0.1)
    updates.update(get_batch_norm_updates([loss, gradient]))
    theano.function([x], loss, updates=updates, mode=mode)(batches[0])
    assert_followed(layer, batches[0])


def test_some_layers_only(batches, mode):
    first = BatchNormLayer(InputLayer((None, 3)), alpha=0.25)
    second = BatchNormLayer(first, alpha=0.25)
    x = T.matrix()
    for flag, first_follows in (("explicit", False), (True, True)):
        output = get_output(second, x, batch_norm_update_averages=flag)
        updates = get_batch_norm_updates(output, layers=second)
        assert list(updates) == [second.mean, second.std]
        theano.function([x], output, updates=updates, mode=mode)(batches[0])
        assert_followed(first, *batches[:1] * first_follows)


def test_clones(layer, batches, mode):
    x, y = T.matrices("xy")
    output = train(x, layer, "explicit")
    clone = theano.clone(output, replace={x: y})
    updates = get_batch_norm_updates(clone)
    theano.function([y], clone, updates=updates, mode=mode)(batches[0])
    assert_followed(layer, batches[0])
    both = get_batch_norm_updates([output, clone], combine="pool")
    layer.mean.set_value(np.zeros((1, 3)))
    layer.std.set_value(np.ones((1, 3)))
    theano.function([x, y], [], updates=both, mode=mode)(*batches[:2])
    assert_followed(layer, np.concatenate(batches[:2]))


def test_functions_share_applications(layer, batches, mode):
    """An adversarial network's discriminator: real, generated, both."""
    real, fake = T.matrices("rf")
    outputs = [train(real, layer, "explicit"), train(fake, layer, "explicit")]
    both = theano.function(
        [real, fake], outputs, mode=mode,
        updates=get_batch_norm_updates(outputs, combine="pool"))
    one = theano.function([fake], outputs[1], mode=mode,
                          updates=get_batch_norm_updates(outputs[1]))
    none = theano.function([fake], T.grad(outputs[1].max(), fake), mode=mode)
    both(*batches[:2])
    none(batches[0])
    one(batches[2])
    assert_followed(layer, np.concatenate(batches[:2]), batches[2])


def test_values_can_be_computed_with(layer, batches, mode):
    x = T.matrix()
    updates = get_batch_norm_updates(train(x, layer, "explicit"))
    moved = theano.function([x], updates[layer.mean] - layer.mean, mode=mode)
    assert_allclose(moved(batches[0]),
                    0.25 * reference.statistics(batches[0], (0,))[0])
    assert_followed(layer)


# Loops

def loop(layer, steps, flag=True):
    outputs, _ = theano.scan(lambda x: train(x, layer, flag), steps)
    return outputs


def test_loop(layer, rng, quick):
    steps, x = T.tensor3(), T.matrix()
    values = rng.normal(size=(4, 5, 3))
    outputs = loop(layer, steps)
    updates = get_batch_norm_updates(outputs)
    assert list(updates) == [layer.mean, layer.std]
    theano.function([steps], outputs, updates=updates)(values)
    assert_followed(layer, *values)
    chain = get_batch_norm_updates([outputs, train(x, layer)])
    theano.function([steps, x], [], updates=chain)(values[:2], values[2])
    assert_followed(layer, *list(values) + list(values[:3]))


def test_loop_cannot_be_pooled(layer):
    steps, x = T.tensor3(), T.matrix()
    with pytest.raises(ValueError, match="a loop is among them"):
        get_batch_norm_updates([loop(layer, steps), train(x, layer)],
                               combine="pool")


def test_explicit_in_a_loop_is_out_of_reach(layer):
    with pytest.raises(ValueError, match="inside another Op"):
        get_batch_norm_updates(loop(layer, T.tensor3(), "explicit"))


# What there is none of, and errors

def test_outputs_without_updates(layer):
    x = T.matrix()
    outputs = [layer.get_output_for(x, deterministic=True),
               train(x, layer, False), x]
    with pytest.warns(UserWarning, match="there is nothing to update"):
        assert not get_batch_norm_updates(outputs)


def test_layers_may_be_given_as_a_network(layer):
    x = T.matrix()
    first = BatchNormLayer(InputLayer((None, 3)))
    network = DenseLayer(BatchNormLayer(DenseLayer(first, 4)), 2)
    output = get_output(network, x) + layer.get_output_for(x)[:, :2]
    expected = list(get_batch_norm_updates(get_output(network, x)))
    assert len(expected) == 4
    for layers in (network, [network], get_all_layers(network)):
        assert list(get_batch_norm_updates(output, layers)) == expected
    first.frozen = True
    assert list(get_batch_norm_updates(output, network)) == expected[2:]


def test_layer_that_is_not_applied(layer):
    network = batch_norm(DenseLayer(InputLayer((None, 3)), 2), name="other")
    with pytest.raises(ValueError, match="from BatchNormLayer 'other', so"):
        get_batch_norm_updates(train(T.matrix(), layer), layers=[network])


@pytest.mark.parametrize("arguments, error, message", [
    ({"combine": "sum"}, ValueError, "combine must be"),
    ({"layers": [InputLayer((None, 3))]}, TypeError, "layers must be"),
    ({"layers": [3]}, TypeError, r"layers must be .*got \[3\]"),
    ({"outputs": 3}, TypeError, "outputs must be"),
])
def test_wrong_arguments(layer, arguments, error, message):
    arguments = dict({"outputs": train(T.matrix(), layer)}, **arguments)
    with pytest.raises(error, match=message):
        get_batch_norm_updates(**arguments)


def test_wrong_flag(layer):
    with pytest.raises(ValueError, match="'bn'.*'explicit', got 'implicit'"):
        train(T.matrix(), layer, "implicit")
