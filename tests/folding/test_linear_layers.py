"""Batch normalization folded into linear layers of all types."""

from collections import namedtuple
from functools import partial

from bnlasagne import BatchNormLayer, fold_batch_norm

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.common import LATER, needs_compiler
from helpers.folded import (
    LEAKY,
    assert_close,
    batches_for,
    check,
    dense,
    fold_and_run,
    into,
    kinds,
    randomize,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lasagne.init import Normal
from lasagne.layers import InputLayer, get_all_layers

Case = namedtuple("Case", "kind shape options product axes through")
Case.__doc__ = """A type of layers, with its linear part in NumPy.

`axes` are those to normalize over; `through`, whether batch normalization
before the layer can go through it.
"""
Case.__new__.__defaults__ = ({}, None, None, True)


def dilated(x, W):
    return reference.correlate(x, np.swapaxes(W, 0, 1), dilation=(2, 1))


def locally_connected(x, W):
    return reference.locally_connected(x, np.flip(W, (2, 3)))


def channelwise(x, W):
    # Each filter sees its own channel: with the others, it has zeros.
    own = np.eye(len(W)).reshape(len(W), len(W), 1, 1, 1, 1)
    return locally_connected(x, own * W[:, None])


def transposed(x, W, **options):
    return reference.transposed(x, reference.flipped(W), **options)


CASES = {
    "dense": Case("DenseLayer", (4,), {}, reference.dense),
    "dense on images": Case("DenseLayer", (4, 3, 2), {}, reference.dense),
    "dense on sequences": Case(
        "DenseLayer", (4, 3), {"num_leading_axes": 2},
        partial(reference.dense, leading=2), (0, 1)),
    "dense on the last axis": Case(
        "DenseLayer", (2, 3, 4), {"num_leading_axes": -1},
        partial(reference.dense, leading=3), (0, 1, 2)),
    "1-d": Case("Conv1DLayer", (4, 7), {"filter_size": 3},
                reference.convolve),
    "1-d, padded": Case(
        "Conv1DLayer", (4, 7), {"filter_size": 3, "pad": 1, "stride": 2},
        partial(reference.convolve, pad=1, stride=2), None, False),
    "1-d, pad='same'": Case(
        "Conv1DLayer", (4, 7), {"filter_size": 3, "pad": "same"},
        partial(reference.convolve, pad=1), None, False),
    "2-d": Case(
        "Conv2DLayer", (4, 7, 6), {"filter_size": (3, 2), "stride": (2, 1)},
        partial(reference.convolve, stride=(2, 1))),
    "2-d, padded": Case(
        "Conv2DLayer", (4, 7, 6), {"filter_size": (3, 2), "pad": (0, 1)},
        partial(reference.convolve, pad=(0, 1)), None, False),
    "2-d, pad='full'": Case(
        "Conv2DLayer", (4, 5, 6), {"filter_size": (3, 2), "pad": "full"},
        partial(reference.convolve, pad=(2, 1)), None, False),
    "2-d, one position": Case(
        "Conv2DLayer", (4, 5, 6), {"filter_size": 1, "pad": "same"},
        reference.convolve),
    "2-d, not flipped": Case(
        "Conv2DLayer", (4, 7, 6), {"filter_size": 3, "flip_filters": False},
        reference.correlate),
    "2-d, in groups": Case(
        "Conv2DLayer", (4, 7, 6), {"filter_size": 3, "num_groups": 2},
        partial(reference.convolve, groups=2)),
    "3-d": Case("Conv3DLayer", (4, 5, 4, 3), {"filter_size": 2},
                reference.convolve),
    "dilated": Case(
        "DilatedConv2DLayer", (4, 7, 6),
        {"filter_size": 3, "dilation": (2, 1)}, dilated),
    "transposed": Case(
        "TransposedConv2DLayer", (4, 5, 4),
        {"filter_size": 3, "stride": (2, 1), "crop": (1, 0)},
        partial(transposed, stride=(2, 1), crop=(1, 0)), None, False),
    "transposed, flipped": Case(
        "TransposedConv2DLayer", (4, 5, 4),
        {"filter_size": 2, "flip_filters": True}, reference.transposed, None,
        False),
    "transposed, 3-d": Case(
        "TransposedConv3DLayer", (4, 4, 3, 2), {"filter_size": 2}, transposed,
        None, False),
    "NIN": Case("NINLayer", (4, 3, 2), {}, reference.nin),
    "NIN, 1-d": Case("NINLayer", (4, 3), {}, reference.nin),
    "local": Case("LocallyConnected2DLayer", (4, 5, 6), {"filter_size": 3},
                  locally_connected, None, False),
    "local, one position": Case(
        "LocallyConnected2DLayer", (4, 5, 6), {"filter_size": 1},
        locally_connected),
    "local, by channel": Case(
        "LocallyConnected2DLayer", (4, 5, 6),
        {"filter_size": 3, "channelwise": True}, channelwise, None, False),
    "local, one position, by channel": Case(
        "LocallyConnected2DLayer", (4, 5, 6),
        {"filter_size": 1, "channelwise": True}, channelwise),
}


def exists(case):
    options = {"num_leading_axes", "num_groups", "flip_filters"}
    return hasattr(lasagne.layers, case.kind) and (
        LATER or not options & set(case.options))


def layer_of(case, incoming, bias="tied", **kwargs):
    if bias == "untied":
        kwargs["untie_biases"] = True
    units = 4 if case.options.get("channelwise") else 6
    return getattr(lasagne.layers, case.kind)(
        incoming, units, b=None if bias == "none" else Normal(1),
        **kwargs, **case.options)


def mode_of(case):
    """Convolutions need C; for the others, Python is there sooner."""
    return theano.Mode("cvm" if "Conv" in case.kind else "py", "fast_compile")


def cases(*names):
    return [pytest.param(CASES[name], id=name, marks=marks(CASES[name]))
            for name in names]


def marks(case):
    found = [] if exists(case) else [pytest.mark.skip(
        reason="needs Lasagne's development version")]
    return found + ([needs_compiler] if "Conv" in case.kind else [])


def linear_layers():
    """Each type of layers with a bias, and with none or with an untied one.

    Both widths of floats take turns.
    """
    for number, (name, case) in enumerate(CASES.items()):
        other = "none" if number % 2 or case.kind == "DenseLayer" \
            else "untied"
        for index, bias in enumerate(("tied", other)):
            floatX = "float32" if (number + index) % 4 == 0 else "float64"
            yield pytest.param(case, bias, floatX, marks=marks(case),
                               id="%s, bias %s, %s" % (name, bias, floatX))


def leaky(x):
    return np.where(x > 0, x, x / 2)


def oracle(layer, x):
    """What batch normalization computes, by the averages."""
    values = {name: getattr(layer, name).get_value()
              for name in ("mean", "std", "gamma", "beta")}
    return reference.normalize(x, **values)


def oracle_of_linear(case, layer, x):
    y = case.product(x, layer.W.get_value())
    channel = y.ndim - 1 if case.kind == "DenseLayer" else 1
    return y if layer.b is None \
        else reference.add_bias(y, layer.b.get_value(), channel)


@pytest.mark.parametrize("case, bias, floatX", list(linear_layers()))
def test_from_both_sides(rng, case, bias, floatX):
    """The layer after batch normalization, and before it, takes it over."""
    with theano.configparser.change_flags(floatX=floatX):
        first = BatchNormLayer(InputLayer((None,) + case.shape),
                               axes=case.axes)
        layer = layer_of(case, first, bias, nonlinearity=None)
        network = randomize(BatchNormLayer(layer, axes=case.axes,
                                           nonlinearity=LEAKY), rng)
        batches = batches_for(network, rng)
        folded, report, (found,) = fold_and_run(network, batches,
                                                mode_of(case))
    assert into(report) == [layer if case.through else None, layer]
    assert len(get_all_layers(folded)) == 3 - case.through
    assert type(folded) is type(layer)
    assert folded.nonlinearity is LEAKY
    # Each position has other weights, and so another bias after a shift.
    untied = bias == "untied" or case.through and "Local" in case.kind
    assert folded.b.ndim == (len(folded.output_shape) - 1 if untied else 1)
    assert_close(found, leaky(oracle(network, oracle_of_linear(
        case, layer, oracle(first, *batches)))), floatX)


def test_nonlinearity_after(rng, float64, quick, x):
    network = randomize(dense(BatchNormLayer(x), nonlinearity=LEAKY), rng)
    folded, report = check(network, rng)
    assert into(report) == [network] and folded.nonlinearity is LEAKY


def test_untied_bias_of_one_position(rng, float64, quick):
    layer = lasagne.layers.NINLayer(
        InputLayer((None, 4, 1, 1)), 3, untie_biases=True, nonlinearity=None)
    folded, _ = check(randomize(BatchNormLayer(layer), rng), rng)
    assert folded.untie_biases and folded.b.get_value().shape == (3, 1, 1)


# --- axes ------------------------------------------------------------------

# Convolutions would have to be compiled.
DRAWN = [case for case in CASES.values()
         if exists(case) and "Conv" not in case.kind]


def shared_before(case, axes):
    """The axes of the output that share weights, but not statistics."""
    along = {"DenseLayer": range(1, len(layer_of(case, InputLayer(
        (None,) + case.shape)).output_shape) - 1), "NINLayer": range(
            2, 1 + len(case.shape))}.get(case.kind, [])
    return [axis for axis in along if axis not in axes]


def shared_after(case, axes):
    """The axes of the input that share weights, but not statistics."""
    ndim = 1 + len(case.shape)
    leading = case.options.get("num_leading_axes", 1) % ndim
    return [axis for axis in (range(1, leading) if case.kind == "DenseLayer"
                              else range(2, ndim)) if axis not in axes]


def axes_of(ndim):
    """Draw axes to normalize over, with that of the examples."""
    return st.sets(st.integers(1, ndim - 1)).map(
        lambda axes: tuple(sorted({0, *axes})))


@given(st.data())
@settings(max_examples=12,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_axes(float64, quick, data):
    """A layer is folded if the weights differ where its statistics do."""
    rng = np.random.RandomState(1502)
    case = data.draw(st.sampled_from(DRAWN))
    axes = data.draw(axes_of(1 + len(case.shape)))
    first = BatchNormLayer(InputLayer((None,) + case.shape), axes=axes)
    layer = layer_of(case, first, data.draw(st.sampled_from(
        ["none", "tied", "untied"][:2 + (case.kind != "DenseLayer")])),
        nonlinearity=None)
    last = data.draw(axes_of(len(layer.output_shape)))
    network = randomize(BatchNormLayer(layer, axes=last), rng)
    _, report = check(network, rng)
    folds = case.through and not shared_after(case, axes)
    assert into(report) == [layer if folds else None,
                            None if shared_before(case, last) else layer]


@pytest.mark.parametrize("case", cases("2-d", "2-d, in groups", "dilated",
                                       "transposed", "local"))
def test_all_axes(rng, float64, case):
    axes = tuple(range(1 + len(case.shape)))
    first = BatchNormLayer(InputLayer((None,) + case.shape), axes=axes)
    layer = layer_of(case, first, nonlinearity=None)
    network = randomize(BatchNormLayer(layer, axes=axes), rng)
    _, report = check(network, rng, mode=mode_of(case))
    assert into(report) == [layer if case.through else None, layer]


@pytest.mark.parametrize("case", cases(
    "2-d", "NIN", "local", "local, by channel", "dense on sequences"))
def test_axes_that_share_weights(float64, case):
    """The axes are named, and need no functions."""
    layer = layer_of(case, BatchNormLayer(InputLayer((None,) + case.shape),
                                          axes=0), nonlinearity=None)
    before, after = fold_batch_norm(BatchNormLayer(layer, axes=0), True)[1]
    reason = "its statistics differ along axes %s, along which the weights " \
        "of %s (layer 2) do not" % (
            {"DenseLayer": [1]}.get(case.kind, [2, 3]), case.kind)
    assert "Local" in case.kind or reason in str(before)
    assert ("Local" in case.kind) == (after.into is layer)
    assert after.into or reason in str(after)


@pytest.mark.parametrize("make", [
    lambda x: dense(BatchNormLayer(BatchNormLayer(x)), nonlinearity=LEAKY),
    lambda x: BatchNormLayer(BatchNormLayer(dense(x)), nonlinearity=LEAKY)])
def test_two_batch_norms(rng, float64, quick, x, make):
    folded, report = check(randomize(make(x), rng), rng)
    assert None not in into(report)
    assert kinds(folded) == ["Input", "Dense"]
    assert folded.nonlinearity is LEAKY


def test_each_example_of_its_own(rng, float64, quick):
    network = randomize(BatchNormLayer(dense(InputLayer((3, 5))), axes=1),
                        rng)
    _, report = check(network, rng)
    assert "statistics differ from example to example" in str(report[0])


@pytest.mark.parametrize("left_out", [["beta"], ["gamma"], ["beta", "gamma"]])
def test_without_beta_or_gamma(rng, float64, quick, x, left_out):
    options = dict.fromkeys(left_out)
    first = BatchNormLayer(x, **options)
    network = randomize(BatchNormLayer(dense(first), **options), rng)
    folded, report = check(network, rng)
    assert kinds(folded) == ["Input", "Dense"]


# --- what a layer does not tell --------------------------------------------

def plain_convolution(*args, **options):
    return T.nnet.conv2d(*args, **options)


def padding_convolution(x, W, **options):
    """Pads by itself."""
    for name in ("input_shape", "image_shape"):
        options.pop(name, None)
    shape = [x.shape[0], x.shape[1], x.shape[2] + 2, x.shape[3] + 2]
    padded = T.set_subtensor(T.zeros(shape)[:, :, 1:-1, 1:-1], x)
    return T.nnet.conv2d(padded, W, **options)


def correlation(*args, **options):
    return T.nnet.conv2d(*args, **dict(options, filter_flip=False))


def convolution_of_centred_filters(x, W, **options):
    return T.nnet.conv2d(x, W - W.mean((1, 2, 3), keepdims=True), **options)


def squared_convolution(*args, **options):
    return T.nnet.conv2d(*args, **options) ** 2


class OtherConvolution(lasagne.layers.Conv2DLayer):
    """Convolves by other weights, in all versions of Lasagne."""

    def convolve(self, input, **kwargs):
        return 2 * super().convolve(input, **kwargs)

    def get_output_for(self, input, **kwargs):
        output = super().get_output_for(input, **kwargs)
        return output if LATER else 2 * output


def norm_and_conv(after, kind=lasagne.layers.Conv2DLayer, **options):
    def conv(incoming):
        return kind(incoming, 3, 3, nonlinearity=None, **options)

    incoming = InputLayer((None, 2, 6, 5))
    if after:
        return conv(BatchNormLayer(incoming))
    return BatchNormLayer(conv(incoming))


@pytest.mark.parametrize("convolution", [
    padding_convolution, correlation, convolution_of_centred_filters,
    squared_convolution,
    partial(T.nnet.conv2d, filter_dilation=(2, 2))])
def test_convolutions_that_are_not_known(float64, convolution):
    for after, where in (False, "before"), (True, "after"):
        network = norm_and_conv(after, convolution=convolution)
        folded, report = fold_batch_norm(network, return_report=True)
        assert into(report) == [None]
        assert (f"{where} it is not known to be linear: it does not compute "
                "what Lasagne's Conv2DLayer computes") in str(report[0])
        assert kinds(folded) == kinds(network)


@pytest.mark.parametrize("after", [False, True])
def test_a_class_that_convolves_otherwise(float64, after):
    network = norm_and_conv(after, OtherConvolution)
    _, report = fold_batch_norm(network, return_report=True)
    assert "OtherConvolution" in str(report[0]) and into(report) == [None]


@needs_compiler
@pytest.mark.filterwarnings("ignore:.*image_shape")
@pytest.mark.parametrize("after", [False, True])
def test_another_name_for_the_convolution(rng, float64, after):
    network = norm_and_conv(after, convolution=plain_convolution)
    _, report = check(randomize(network, rng), rng,
                      mode=theano.Mode("cvm", "fast_compile"))
    assert None not in into(report)
