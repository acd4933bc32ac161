"""Layers with a mask: padding counts for nothing, whatever it holds."""

import copy
import pickle

from bnlasagne import BatchNormLayer, batch_norm, freeze_batch_norm

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.common import TOLERANCE, quick
from helpers.layers import averages
from helpers.masks import (
    SHAPES_AXES_MASKS,
    Unpadded,
    draw_mask,
    in_full,
    lengths_mask,
)
from lasagne.layers import (
    Conv1DLayer,
    InputLayer,
    LSTMLayer,
    SliceLayer,
    get_all_layers,
    get_output,
    get_output_shape,
)
from lasagne.nonlinearities import rectify, sigmoid
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = quick


def masked(shape, axes, mask_shape, **kwargs):
    """A layer with a mask; only the sizes of channels and of 1 are given."""
    channels = [size if axes is not None and axis not in axes or
                axes is None and axis == 1 else None
                for axis, size in enumerate(shape)]
    sizes = [1 if size == 1 else None for size in mask_shape]
    return BatchNormLayer(InputLayer(tuple(channels)), axes=axes,
                          mask_input=InputLayer(tuple(sizes)), **kwargs)


def compiled(layer, wrt=(), **flags):
    """A function of input, mask and the output's gradient.

    It returns the output, and the gradients by the input and by `wrt`.
    """
    x, mask = (each.input_var for each in layer.input_layers)
    dy = x.type()
    output = get_output(layer, **flags)
    gradients = theano.grad(None, [x, *wrt], known_grads={output: dy})
    return theano.function([x, mask, dy], [output, *gradients])


@pytest.mark.parametrize("nonlinearity", [None, rectify])
@pytest.mark.parametrize("shape, axes, mask_shape", SHAPES_AXES_MASKS)
def test_training(rng, floatX, expressions, shape, axes, mask_shape,
                  nonlinearity):
    """It is that of the same values without padding."""
    layer = masked(shape, axes, mask_shape, alpha=0.3,
                   nonlinearity=nonlinearity)
    mask = draw_mask(rng, mask_shape)
    cut = Unpadded(mask, shape, axes)
    x, dy = rng.normal(1.5, 2, (2, *shape)).astype(floatX)
    gamma, beta = rng.normal(size=(2, *layer.param_shape())).astype(floatX)
    layer.set_values(gamma=gamma, beta=beta)
    padding = ~in_full(mask, shape, axes)
    x[padding], dy[padding] = np.nan, np.inf
    y, dx, dgamma, dbeta = compiled(layer, [layer.gamma, layer.beta])(
        x, mask, dy)
    values, own_dy = cut.take(x), cut.take(dy)
    gamma, beta = gamma.reshape(1, -1), beta.reshape(1, -1)
    expected = reference.normalize_batch(values, (0,), gamma, beta)
    if nonlinearity:
        own_dy = np.where(cut.take(y) > 0, own_dy, 0)
        expected = np.maximum(expected, 0)
    by_x, *by_params = reference.gradient_of_normalize_batch(
        values, own_dy, (0,), gamma)
    assert_array_equal(y[padding], 0)
    assert_array_equal(dx[padding], 0)
    assert_allclose(cut.take(y), expected, **TOLERANCE[floatX])
    assert_allclose(cut.take(dx), by_x, **TOLERANCE[floatX])
    for one, other in zip((dgamma, dbeta), by_params):
        assert_allclose(one.reshape(1, -1), other, rtol=1e-4, atol=1e-4)
    for average, statistic, old in zip(
            averages(layer), reference.statistics(values, (0,)), (0, 1)):
        assert_allclose(average.reshape(1, -1), 0.7 * old + 0.3 * statistic,
                        **TOLERANCE[floatX])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("shape, axes, mask_shape", SHAPES_AXES_MASKS)
def test_testing(rng, float64, expressions, shape, axes, mask_shape, frozen):
    layer = masked(shape, axes, mask_shape, mean=0.5, std=2)
    mask = draw_mask(rng, mask_shape)
    padding = ~in_full(mask, shape, axes)
    x, dy = rng.normal(size=(2, *shape))
    clean_x, clean_dy = x.copy(), np.where(padding, 0, dy)
    x[padding], dy[padding] = -np.inf, np.nan
    if frozen:
        freeze_batch_norm(layer)
    y, dx, dgamma, dbeta = compiled(
        layer, [layer.gamma, layer.beta], deterministic=not frozen)(
            x, mask, dy)
    normalized = np.where(padding, 0, (clean_x - 0.5) / 2.01)
    assert_allclose(y, normalized, **TOLERANCE["float64"])
    assert_allclose(dx, clean_dy / 2.01, **TOLERANCE["float64"])
    for one, other in ((dgamma, clean_dy * normalized), (dbeta, clean_dy)):
        assert_allclose(one, other.sum(layer.axes, keepdims=True),
                        rtol=1e-9, atol=1e-9)
    for average, value in zip(averages(layer), (0.5, 2)):
        assert_array_equal(average, np.full_like(average, value))


def reciprocal(x):
    """Of zero, it is not finite; nor is its derivative."""
    return 1 / x


@pytest.mark.parametrize("nonlinearity", [
    sigmoid, T.nnet.softplus, reciprocal])
@pytest.mark.parametrize("deterministic", [False, True])
def test_nonlinearities_of_zero(rng, float64, expressions, nonlinearity,
                                deterministic):
    """What they make of the zeros of padding is no output."""
    layer = masked((5, 7, 3), (0, 1), (5, 7), nonlinearity=nonlinearity)
    mask = draw_mask(rng, (5, 7))
    x, dy = rng.normal(size=(2, 5, 7, 3))
    x[mask == 0] = dy[mask == 0] = np.nan
    y, dx, dgamma, dbeta = compiled(
        layer, [layer.gamma, layer.beta], deterministic=deterministic)(
            x, mask, dy)
    assert_array_equal(y[mask == 0], 0)
    assert_array_equal(dx[mask == 0], 0)
    for each in (y, dx, dgamma, dbeta):
        assert np.isfinite(each).all()
    z = T.matrix()
    values = x[mask > 0]
    expected = values / 1.01 if deterministic else reference.normalize_batch(
        values, (0,))
    assert_allclose(y[mask > 0], nonlinearity(z).eval({z: expected}))


@pytest.mark.parametrize("use", [False, True])
@pytest.mark.parametrize("kwargs", [{}, {"r_max": 2, "d_max": 3},
                                    {"nonlinearity": rectify}],
                         ids=["plain", "renormalized", "rectified"])
def test_batch_without_values_that_count(rng, expressions, kwargs, use):
    layer = masked((5, 7, 3), (0, 1), (5, 7), beta=4, **kwargs)
    x = np.full((5, 7, 3), np.nan, theano.config.floatX)
    outputs = compiled(layer, [layer.gamma, layer.beta],
                       batch_norm_use_averages=use)(
        x, np.zeros((5, 7), "float32"), x)
    for output in outputs:
        assert_array_equal(output, np.zeros_like(output))
    for average, value in zip(averages(layer), (0, 1)):
        assert_array_equal(average, np.full_like(average, value))


def test_batch_with_a_single_value_that_counts(rng, expressions):
    layer = masked((5, 7, 3), (0, 1), (5, 7), beta=4)
    x = rng.normal(size=(5, 7, 3)).astype(theano.config.floatX)
    mask = np.zeros((5, 7), "float32")
    mask[2, 3] = 1
    y = compiled(layer)(x, mask, x)[0]
    assert_array_equal(y, 4 * mask[:, :, np.newaxis] * np.ones(3))
    for average, value in zip(averages(layer), (0, 1)):
        assert_array_equal(average, np.full_like(average, value))


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "float32",
                                   "float64"])
def test_any_type_of_mask(rng, float64, expressions, dtype):
    x = InputLayer((None, None, 3))
    mask = T.TensorType(dtype, (False, False))()
    layer = BatchNormLayer(x, axes=(0, 1),
                           mask_input=InputLayer((None, None), mask))
    data = rng.normal(size=(5, 7, 3))
    counted = lengths_mask([7, 1, 4, 0, 3], 7)
    y = theano.function([x.input_var, mask], get_output(layer))(
        data, (-2 * counted).astype(dtype))
    assert_allclose(y[counted > 0], reference.normalize_batch(
        data[counted > 0], (0,)))
    assert_array_equal(y[counted == 0], 0)


def test_sequences_one_by_one(rng, float64):
    """Padded in one batch, or each for itself: the pooled values count."""
    lengths, time = [9, 2, 5], 9
    sequences = [rng.normal(size=(length, 3)) for length in lengths]
    padded = np.full((3, time, 3), np.nan)
    for row, sequence in zip(padded, sequences):
        row[:len(sequence)] = sequence
    layer = masked(padded.shape, (0, 1), (3, time))
    y = compiled(layer)(padded, lengths_mask(lengths, time), padded)[0]
    mean, std = reference.statistics(np.concatenate(sequences), (0,))
    for row, sequence in zip(y, sequences):
        assert_allclose(row[:len(sequence)],
                        reference.normalize(sequence, mean, std))
        assert_array_equal(row[len(sequence):], 0)


def test_renormalization(rng, float64, expressions):
    kwargs = {"r_max": 1.5, "d_max": 0.4, "mean": 0.3, "std": 2.}
    layer = masked((5, 7, 3), (0, 1), (5, 7), **kwargs)
    mask = draw_mask(rng, (5, 7))
    x, dy = rng.normal(1, 3, (2, 5, 7, 3))
    y, dx = compiled(layer)(np.where(mask[..., None], x, np.nan), mask, dy)
    plain = BatchNormLayer(InputLayer((None, 3)), **kwargs)
    output, gradient = T.dmatrix(), T.dmatrix()
    own = plain.get_output_for(output)
    expected = theano.function([output, gradient], [own, theano.grad(
        None, output, known_grads={own: gradient})])(x[mask > 0], dy[mask > 0])
    for one, other in zip((y, dx), expected):
        assert_allclose(one[mask > 0], other)
        assert_array_equal(one[mask == 0], 0)


# As a layer of a network

def test_two_inputs(rng):
    below, mask = InputLayer((None, 7, 3)), InputLayer((None, 7))
    layer = BatchNormLayer(below, axes=(0, 1), mask_input=mask, name="bn")
    assert layer.input_layers == [below, mask]
    assert layer.input_layer is below
    assert layer.input_shape == layer.output_shape == (None, 7, 3)
    assert get_all_layers(layer) == [below, mask, layer]
    assert get_output_shape(layer, {below: (4, 7, 3), mask: (4, 7)}) == (
        4, 7, 3)
    assert isinstance(layer, BatchNormLayer)
    assert repr(layer).startswith("<bnlasagne.layers.layer.BatchNormLayer ")
    assert [param.name for param in layer.get_params()] == [
        "bn.mean", "bn.std", "bn.beta", "bn.gamma"]
    x, own = T.tensor3(), T.matrix()
    output = get_output(layer, {below: x, mask: own})
    data = rng.normal(size=(4, 7, 3)).astype(x.dtype)
    ones = np.ones((4, 7), own.dtype)
    assert_allclose(output.eval({x: data, own: ones}),
                    reference.normalize_batch(data, (0, 1)), rtol=1e-4,
                    atol=1e-4)


def test_shapes_in_the_place_of_layers():
    layer = BatchNormLayer((None, 7, 3), axes=(0, 1), mask_input=(None, 7))
    assert layer.input_layers == [None, None]
    output = layer.get_output_for([T.tensor3(), T.matrix()])
    assert output.ndim == 3


def test_layers_without_a_mask_have_one_input():
    layer = BatchNormLayer((None, 3))
    assert not isinstance(layer, lasagne.layers.MergeLayer)
    assert not hasattr(layer, "input_layers")


def test_wrapping(rng, float64):
    x, mask = InputLayer((None, 2, 9)), InputLayer((None, 9))
    conv = Conv1DLayer(x, 3, 1, nonlinearity=rectify, name="conv")
    layer = batch_norm(conv, mask_input=mask)
    assert conv.b is None
    assert (layer.name, layer.nonlinearity) == ("conv_bn", rectify)
    assert layer.input_layers == [conv, mask]


def test_wrapping_with_a_wrong_mask_changes_nothing():
    conv = Conv1DLayer(InputLayer((None, 2, 9)), 3, 1)
    bias, nonlinearity = conv.b, conv.nonlinearity
    with pytest.raises(ValueError, match="mask_input has shape"):
        batch_norm(conv, mask_input=InputLayer((None, 8)))
    assert conv.b is bias
    assert conv.nonlinearity is nonlinearity


def test_recurrent_networks(rng, float64):
    """Padding changes neither outputs nor gradients, nor the averages."""
    l_x, l_mask = InputLayer((None, None, 3)), InputLayer((None, None))
    layer = BatchNormLayer(l_x, axes=(0, 1), mask_input=l_mask)
    network = SliceLayer(LSTMLayer(layer, 4, mask_input=l_mask), -1, 1)
    loss = T.sqr(get_output(network)).sum()
    inputs = [l_x.input_var, l_mask.input_var]
    function = theano.function(inputs, [loss, T.grad(loss, inputs[0]),
                                        T.grad(loss, layer.gamma)])
    lengths = [6, 2, 4]
    x, mask = rng.normal(size=(3, 6, 3)), lengths_mask(lengths, 6)
    mask = mask.astype("float64")
    found = []
    for filler in (0, 1e5):
        x[mask == 0] = filler
        layer.set_statistics(mean=0, std=1)
        found.append(function(x, mask) + averages(layer))
    longer = np.full((3, 9, 3), np.nan)
    longer[:, :6] = x
    layer.set_statistics(mean=0, std=1)
    value, gradient, *others = function(longer, lengths_mask(
        lengths, 9).astype("float64")) + averages(layer)
    assert_array_equal(gradient[:, 6:], 0)
    found.append([value, gradient[:, :6], *others])
    for other in found[1:]:
        for one, two in zip(found[0], other):
            assert_allclose(one, two, rtol=1e-12, atol=1e-14)


def test_recurrent_layers_are_still_refused():
    below = InputLayer((None, None, 3))
    with pytest.raises(TypeError, match="recurrence"):
        batch_norm(LSTMLayer(below, 4), mask_input=InputLayer((None, None)))


# Copies

class Doubled(BatchNormLayer):
    """As users write subclasses: the input goes on as it comes."""

    def get_output_for(self, input, **kwargs):
        return 2 * super().get_output_for(input, **kwargs)


@pytest.mark.parametrize("kind", [BatchNormLayer, Doubled])
@pytest.mark.parametrize("duplicate", [
    copy.copy, copy.deepcopy, *(
        lambda layer, protocol=protocol:
        pickle.loads(pickle.dumps(layer, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1))])
def test_copies(rng, kind, duplicate):
    layer = kind(InputLayer((None, None, 3)), axes=(0, 1), name="bn",
                 mask_input=InputLayer((None, None)), mean=[1, 2, 3])
    layer.note = "of the user"
    other = duplicate(layer)
    assert type(other) is type(layer)
    assert isinstance(other, kind)
    assert other.note == "of the user"
    x, mask = rng.normal(size=(4, 5, 3)), lengths_mask([5, 1, 0, 3], 5)
    floatX = theano.config.floatX
    arrays = [x.astype(floatX), mask.astype(floatX), x.astype(floatX)]
    one, two = (compiled(each, deterministic=True)(*arrays)[0]
                for each in (layer, other))
    assert_array_equal(one, two)
    assert_array_equal(one[mask == 0], 0)


# Wrong arguments

@pytest.mark.parametrize("shape, axes, mask, text", [
    ((None, 200, 16), None, (None, 200),
     r"mask_input has shape \(None, 200\), which does not go with the input's "
     r"shape \(None, 200, 16\), normalized over axes \(0, 2\)\. It must have "
     r"shape \(None,\) or \(None, 16\) or \(None, 1, 16\).* pass "
     r"axes=\(0, 1\)"),
    ((4, None, 3), (0, 1), (5,), r"shape \(4,\) or \(4, None\) or"),
    ((4, None, 3), (0, 1), (4, 1, 3), r"or \(4, None, 1\)"),
    ((4, None, 3), (0, 1), (4, 1, None), r"or \(4, None, 1\)"),
    ((4, None, 3), (0, 1), (4, 5, 1, 1), r"or \(4, None, 1\)"),
    ((4, None, 3), (0, 1), (), r"or \(4, None, 1\)"),
    ((4, 3), (0,), (4, 3), r"shape \(4,\) or \(4, 1\)"),
])
def test_shapes_that_do_not_fit(shape, axes, mask, text):
    with pytest.raises(ValueError, match="BatchNormLayer 'bn': .*" + text):
        BatchNormLayer(shape, axes=axes, mask_input=mask, name="bn")


@pytest.mark.parametrize("mask", [3, "mask", T.matrix(), np.ones((4, 5))],
                         ids=["number", "text", "variable", "array"])
def test_mask_must_be_a_layer(mask):
    with pytest.raises(TypeError, match="mask_input must be a Layer"):
        BatchNormLayer((None, None, 3), axes=(0, 1), mask_input=mask)


def test_misspelled_arguments():
    with pytest.raises(TypeError, match="Pass mask_input"):
        BatchNormLayer((None, 3), mask=(None,))


def test_input_must_be_two_variables():
    layer = BatchNormLayer((None, 3), mask_input=(None,), name="bn")
    for wrong in (T.matrix(), [T.matrix()], [T.matrix(), None]):
        with pytest.raises(ValueError, match="'bn' has a mask: its input must "
                           "be a list of two"):
            layer.get_output_for(wrong)
    with pytest.raises(ValueError, match="a mask with 1 dimensions"):
        layer.get_output_for([T.matrix(), T.matrix()])


@pytest.mark.parametrize("flags", [{}, {"deterministic": True}], ids=str)
@pytest.mark.parametrize("mask_shape, size, text", [
    ((5, 7), (5, 6), r"shape \(5, 6\), .* input of shape \(5, 7, 3\), "
     r"normalized over axes \(0, 1\)\. Pass a mask of shape \(5, 7\)"),
    ((5, 7), (5, 1), r"mask of shape \(5, 7\)\. \(Where"),
    ((5, 7), (0, 7), r"mask of shape \(5, 7\)"),
    ((5,), (4,), r"mask of shape \(5,\)"),
    ((5, 1, 1), (4, 1, 1), r"mask of shape \(5, 1, 1\)"),
])
def test_masks_of_another_size_than_the_batch(
        rng, float64, expressions, mask_shape, size, text, flags):
    layer = masked((5, 7, 3), (0, 1), mask_shape, name="bn")
    x = rng.normal(size=(5, 7, 3))
    with pytest.raises(ValueError, match=f"'bn': the mask has {text}" if
                       size == (5, 6) else f"'bn': the mask has .*{text}"):
        compiled(layer, **flags)(x, np.ones(size), x)
    assert_array_equal(averages(layer)[0], np.zeros((1, 1, 3)))
