"""Random networks compute the same when they are folded."""

import logging
from functools import partial

from bnlasagne import BatchNormLayer, fold_batch_norm, freeze_batch_norm

import lasagne
import numpy as np
import pytest
import theano
from helpers import reference
from helpers.common import LATER
from helpers.folded import (
    LEAKY,
    batches_for,
    deterministic,
    inputs_of,
    randomize,
    state_of,
)
from helpers.fuzzing import many
from helpers.modes import default_mode
from hypothesis import event, given, note
from hypothesis import strategies as st
from lasagne.layers import (
    ConcatLayer,
    Conv1DLayer,
    Conv2DLayer,
    DenseLayer,
    DropoutLayer,
    ElemwiseSumLayer,
    FlattenLayer,
    InputLayer,
    MaxPool2DLayer,
    NINLayer,
    NonlinearityLayer,
    ReshapeLayer,
    get_all_layers,
    get_all_params,
)
from lasagne.nonlinearities import linear, rectify, tanh

SEEDS = st.integers(0, 2 ** 32 - 1)
FUNCTIONS = {None: lambda x: x, linear: lambda x: x, tanh: np.tanh,
             rectify: lambda x: np.maximum(x, 0),
             LEAKY: lambda x: np.maximum(x, 0.5 * x)}


@pytest.fixture(autouse=True, scope="module")
def settings():
    # Each case logs a warning or two.
    logger = logging.getLogger("bnlasagne.folding")
    logger.setLevel("ERROR")
    with default_mode(theano.Mode("py", None)), \
            theano.configparser.change_flags(floatX="float64"):
        yield
    logger.setLevel("NOTSET")


# --- what a network computes, in NumPy -------------------------------------

def evaluated(outputs, data):
    """The deterministic output of each layer, by its parameters."""
    values = dict(data)
    for layer in get_all_layers(outputs):
        if layer not in values:
            below = [values[each] for each in getattr(
                layer, "input_layers", [getattr(layer, "input_layer", None)])]
            y = COMPUTE[type(layer).__name__](layer, *below)
            values[layer] = FUNCTIONS[getattr(
                layer, "nonlinearity", None)](y)
    return [values[layer] for layer in outputs]


def with_bias(layer, y):
    if layer.b is None:
        return y
    channel = y.ndim - 1 if isinstance(layer, DenseLayer) else 1
    return reference.add_bias(y, layer.b.get_value(), channel)


def dense(layer, x):
    return with_bias(layer, reference.dense(
        x, layer.W.get_value(), getattr(layer, "num_leading_axes", 1)))


def convolved(layer, x):
    pad = layer.pad
    if pad in ("same", "full"):
        pad = [(size - 1) // (2 if pad == "same" else 1)
               for size in layer.filter_size]
    function = reference.convolve if getattr(layer, "flip_filters", True) \
        else reference.correlate
    return with_bias(layer, function(
        x, layer.W.get_value(), stride=layer.stride, pad=pad,
        groups=getattr(layer, "num_groups", 1)))


def dilated(layer, x):
    return with_bias(layer, reference.correlate(
        x, layer.W.get_value().swapaxes(0, 1), dilation=layer.dilation))


def transposed(layer, x):
    W = layer.W.get_value()
    return with_bias(layer, reference.transposed(
        x, W if layer.flip_filters else reference.flipped(W),
        stride=layer.stride, crop=layer.crop))


def pooled(layer, x):
    n, c, *size = x.shape
    size = [each // 2 for each in size]
    x = x[:, :, :2 * size[0], :2 * size[1]]
    return x.reshape(n, c, size[0], 2, size[1], 2).max((3, 5))


def normalized(layer, x):
    return reference.normalize(
        x, layer.mean.get_value(), layer.std.get_value(),
        1 if layer.gamma is None else layer.gamma.get_value(),
        0 if layer.beta is None else layer.beta.get_value(), layer.epsilon)


COMPUTE = {
    "DenseLayer": dense, "Conv2DLayer": convolved, "Conv1DLayer": convolved,
    "NINLayer": lambda layer, x: with_bias(layer, reference.nin(
        x, layer.W.get_value())),
    "DilatedConv2DLayer": dilated, "TransposedConv2DLayer": transposed,
    "MaxPool2DLayer": pooled, "BatchNormLayer": normalized,
    "ElemwiseSumLayer": lambda layer, *xs: sum(xs),
    "ConcatLayer": lambda layer, *xs: np.concatenate(xs, 1),
    "FlattenLayer": lambda layer, x: x.reshape(len(x), -1),
    "ReshapeLayer": lambda layer, x: x.reshape(layer.get_output_shape_for(
        x.shape)),
    "DropoutLayer": lambda layer, x: x,
    "NonlinearityLayer": lambda layer, x: x,
}


# --- networks --------------------------------------------------------------

class Drawing:
    """Draw a network, one layer after the other."""

    def __init__(self, draw):
        self.draw = draw
        shape = draw(st.sampled_from([(None, 4), (None, 4, 5, 4),
                                      (None, 4, 6)]))
        self.layers = [InputLayer(shape)]

    def some(self, ndim=None, shape=None):
        """One of the last layers, if it has a shape that fits."""
        back = self.draw(st.sampled_from([1, 1, 1, 1, 1, 2, 3]))
        layer = self.layers[-min(back, len(self.layers))]
        fits = ndim in (None, len(layer.output_shape)) and shape in (
            None, layer.output_shape)
        return layer if fits else None

    def nonlinearity(self):
        return self.draw(st.sampled_from([linear, linear, None, linear, None,
                                          linear, tanh, rectify, LEAKY]))

    def options(self):
        """Options of any linear layer."""
        found = {"nonlinearity": self.nonlinearity()}
        if self.draw(st.booleans()):
            found["b"] = None
        return found

    def shared(self, kind, make, **options):
        """A layer, maybe with the weights of another one."""
        if self.draw(st.integers(0, 4)) == 4:
            for other in self.layers:
                if type(other) is kind:
                    shape = make(**options).W.get_value().shape
                    if other.W.get_value().shape == shape:
                        return make(W=other.W, **options)
        return make(**options)

    def dense(self):
        return self.shared(DenseLayer, partial(
            DenseLayer, self.some(), self.draw(st.integers(3, 4))),
            **self.options())

    def nin(self):
        below = self.some()
        if len(below.output_shape) < 3:
            return None
        return self.shared(NINLayer, partial(
            NINLayer, below, 4, untie_biases=self.draw(st.booleans())),
            **self.options())

    def conv(self):
        below = self.some()
        n = len(below.output_shape) - 2
        if not n:
            return None
        pad = self.draw(st.sampled_from([0, 0, 1, "same", "full"]))
        size = self.draw(st.sampled_from([1, 3] if pad == "same"
                                         else [1, 2, 3]))
        if pad == 0 and min(below.output_shape[2:]) < size:
            return None
        options = dict(self.options(), pad=pad,
                       stride=self.draw(st.sampled_from([1, 1, 2])),
                       untie_biases=self.draw(st.booleans()))
        if LATER and self.draw(st.booleans()):
            options["flip_filters"] = self.draw(st.booleans())
            if below.output_shape[1] == 4:
                options["num_groups"] = self.draw(st.sampled_from([1, 2, 4]))
        kind = {1: Conv1DLayer, 2: Conv2DLayer}[n]
        return self.shared(kind, partial(kind, below, 4, size), **options)

    def later_conv(self):
        below = self.some(ndim=4)
        if not LATER or below is None or min(below.output_shape[2:]) < 3:
            return None
        if self.draw(st.booleans()):
            return lasagne.layers.DilatedConv2DLayer(
                below, 4, 2, dilation=2, **self.options())
        return lasagne.layers.TransposedConv2DLayer(
            below, 4, 3, stride=self.draw(st.integers(1, 2)),
            crop=self.draw(st.integers(0, 1)),
            flip_filters=self.draw(st.booleans()), **self.options())

    def norm(self):
        below = self.some()
        ndim = len(below.output_shape)
        axes = self.draw(st.sampled_from([None] * 6 + [
            (0,), (0, 1), (0, ndim - 1), tuple(range(ndim - 1))]))
        layer = BatchNormLayer(
            below, axes=axes, nonlinearity=self.nonlinearity(),
            epsilon=self.draw(st.sampled_from([0.01, 0.5])),
            gamma=self.draw(st.sampled_from([lasagne.init.Constant(1),
                                             None])),
            beta=self.draw(st.sampled_from([lasagne.init.Constant(0), None])))
        if self.draw(st.integers(0, 5)) == 5:
            freeze_batch_norm(layer)
        return layer

    def total(self):
        below = self.some()
        other = self.some(shape=below.output_shape)
        return other and ElemwiseSumLayer([below, other])

    def both(self):
        below = self.some()
        other = self.some(ndim=len(below.output_shape))
        if other is None or other.output_shape[2:] != below.output_shape[2:]:
            return None
        return ConcatLayer([below, other])

    def pool(self):
        below = self.some(ndim=4)
        return below and min(below.output_shape[2:]) > 1 and MaxPool2DLayer(
            below, 2) or None

    def plain(self):
        below = self.some()
        kind = self.draw(st.sampled_from([
            DropoutLayer, FlattenLayer, partial(
                NonlinearityLayer, nonlinearity=self.nonlinearity()),
            partial(ReshapeLayer, shape=([0], -1))]))
        return kind(below)


@st.composite
def networks(draw):
    drawing = Drawing(draw)
    linears = [Drawing.conv, Drawing.dense, Drawing.nin, Drawing.later_conv]
    others = [Drawing.total, Drawing.both, Drawing.pool, Drawing.plain]
    norms, convs = [Drawing.norm], [Drawing.conv]
    # Mostly linear layers and norms by turns.
    for group in draw(st.sampled_from([
            [norms, convs], [convs, norms], [norms, linears, norms],
            [linears, norms, others]]) | st.lists(st.sampled_from(
                [linears, norms, linears, norms, others]),
                min_size=3, max_size=10)):
        layer = draw(st.sampled_from(group))(drawing)
        if layer is not None:
            drawing.layers.append(layer)
    outputs = [drawing.layers[-1]]
    if draw(st.booleans()):
        outputs.append(drawing.some())
    return randomize(outputs, np.random.RandomState(draw(SEEDS)))


def described(outputs):
    names = ("nonlinearity", "axes", "pad", "stride", "b", "W", "flip_filters",
             "num_groups", "frozen", "output_shape")
    layers = get_all_layers(outputs)
    return "\n".join(
        f"{number} {type(layer).__name__} of " + ", ".join(
            str(layers.index(each)) for each in below_of(layer)) + ": " +
        ", ".join(f"{name}={getattr(layer, name)}" for name in names
                  if hasattr(layer, name))
        for number, layer in enumerate(layers))


def below_of(layer):
    return getattr(layer, "input_layers", None) or [
        each for each in [getattr(layer, "input_layer", None)] if each]


# --- what is folded --------------------------------------------------------

LINEAR = (DenseLayer, Conv1DLayer, Conv2DLayer, NINLayer)


def must_fold(norm, outputs):
    """Whether it is alone on a linear layer, or on a norm that is."""
    layer, = below_of(norm)
    consumers = [each for each in get_all_layers(outputs)
                 if layer in below_of(each)]
    channels = set(range(len(layer.output_shape))) - {1}
    is_linear = isinstance(layer, LINEAR) or (
        isinstance(layer, BatchNormLayer) and must_fold(layer, outputs))
    return is_linear and layer not in outputs and consumers == [norm] and \
        layer.nonlinearity is linear and set(norm.axes) == channels


def check_report(report, outputs):
    norms = [layer for layer in get_all_layers(outputs)
             if isinstance(layer, BatchNormLayer)]
    assert [entry.layer for entry in report] == norms
    for entry in report:
        text = str(entry)
        assert text.startswith("BatchNormLayer (layer ")
        if entry.into is None:
            assert " left in place: " in text
            assert not must_fold(entry.layer, outputs)
            event("left")
        else:
            where = "before" if entry.into in get_all_layers(entry.layer) \
                else "after"
            assert " folded into " in text and text.endswith(f"{where} it")
            event(where)


def close(actual, expected):
    assert actual.shape == expected.shape
    scale = max(np.abs(expected).max(), 1e-3)
    assert np.abs(actual - expected).max() <= 1e-9 * scale


@many(4, quick=80)
@given(outputs=networks(), by_theano=st.integers(0, 9), seed=SEEDS)
def test_networks(outputs, by_theano, seed):
    note(described(outputs))
    before = state_of(outputs)
    folded, report = fold_batch_norm(outputs, return_report=True)
    note("\n".join(map(str, report)))
    assert state_of(outputs) == before
    check_report(report, outputs)
    left = [layer for layer in get_all_layers(folded)
            if isinstance(layer, BatchNormLayer)]
    assert len(left) == sum(entry.into is None for entry in report)
    assert all(layer.frozen for layer in left)
    assert not set(get_all_params(folded)) & set(get_all_params(outputs))
    assert inputs_of(folded) == inputs_of(outputs)
    assert [layer.output_shape for layer in folded] == [
        layer.output_shape for layer in outputs]
    data = batches_for(outputs, np.random.RandomState(seed))
    inputs = [layer for layer in get_all_layers(outputs)
              if isinstance(layer, InputLayer)]
    expected = evaluated(outputs, zip(inputs, data))
    for actual, value in zip(evaluated(folded, zip(inputs, data)), expected):
        close(actual, value)
    if by_theano == 9:
        found = theano.function(inputs_of(outputs), deterministic(
            outputs, folded))(*data)
        for actual, value in zip(found, expected * 2):
            close(actual, value)
