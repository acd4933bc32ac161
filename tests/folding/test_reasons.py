"""Layers that are folded, and the reasons why others stay in place."""

import logging
import re
from functools import partial

from bnlasagne import BatchNormLayer, batch_norm, fold_batch_norm

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.folded import (
    LEAKY,
    Applies,
    batches_for,
    check,
    compiled,
    dense,
    into,
    kinds,
    randomize,
)
from helpers.subclasses import ByBatch, Scaled, Unchanged
from lasagne.init import Constant
from lasagne.layers import (
    DenseLayer,
    DropoutLayer,
    ElemwiseSumLayer,
    FlattenLayer,
    InputLayer,
    NINLayer,
    ReshapeLayer,
    get_all_params,
    get_output,
)
from lasagne.nonlinearities import rectify, tanh
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.usefixtures("float64", "quick")


# --- what is in the way ----------------------------------------------------

class Squares(DenseLayer):
    def get_output_for(self, input, **kwargs):
        return super().get_output_for(input, **kwargs) ** 2


class SquaredNorm(BatchNormLayer):
    def get_output_for(self, input, **kwargs):
        return super().get_output_for(input, **kwargs) ** 2


class Subclass(DenseLayer):
    pass


class NormedWeights(DenseLayer):
    """Its weights are not what they are set to."""

    @property
    def W(self):
        return self._W / self._W.norm(2)

    @W.setter
    def W(self, value):
        self._W = value


class NoBias(DenseLayer):
    def get_output_for(self, input, **kwargs):
        return self.nonlinearity(T.dot(input, self.W))


class NoNonlinearity(DenseLayer):
    def get_output_for(self, input, **kwargs):
        return T.dot(input, self.W) + self.b.dimshuffle("x", 0)


class OtherParams(DenseLayer):
    def get_params(self, **tags):
        return super().get_params(**tags)[::-1]


def by_batch_always(x):
    layer = BatchNormLayer(dense(x))
    original = layer.get_output_for
    layer.get_output_for = lambda input, **kwargs: original(input)
    return layer


def other_axes(x):
    layer = BatchNormLayer(dense(x))
    layer.axes = (1,)
    return layer


# As in a script: functions find it among the global variables.
everywhere = None


def global_layer(x):
    global everywhere
    everywhere = dense(x)
    return Applies(BatchNormLayer(everywhere),
                   lambda input: input + get_output(everywhere))


def layer_of_a_method(x):
    layer = dense(x)

    class Adds(lasagne.layers.Layer):
        def get_output_for(self, input, **kwargs):
            return input + get_output(layer)

    return Adds(BatchNormLayer(layer))


def layer_of_a_function(x):
    layer = dense(x)
    return Applies(BatchNormLayer(layer),
                   lambda input: input + get_output(layer))


class Holder(lasagne.layers.Layer):
    """Adds another layer's parameter, in a way that nobody knows."""

    def __init__(self, incoming, other, name):
        super().__init__(incoming)
        self.others = {"the": [other]}
        self.name = name

    def get_output_for(self, input, **kwargs):
        (other,), name = self.others["the"], self.name
        return input + getattr(other, name).sum()


def patched(layer):
    """A layer that squares its output, of no class of its own."""
    original = layer.get_output_for
    layer.get_output_for = lambda *args, **kwargs: original(
        *args, **kwargs) ** 2
    return layer


def shared_output(x):
    layer = dense(x)
    return [BatchNormLayer(layer), BatchNormLayer(layer)]


def to_two(x):
    layer = BatchNormLayer(x)
    return [dense(layer), dense(layer)]


def returned(x):
    layer = dense(x)
    return [layer, BatchNormLayer(layer)]


def norm_returned(x):
    layer = BatchNormLayer(x)
    return [dense(layer), layer]


def sum_with_itself(x):
    layer = dense(x)
    return ElemwiseSumLayer([layer, BatchNormLayer(layer)])


def held(x, of_norm, name):
    layer = dense(x)
    norm = BatchNormLayer(layer)
    return Holder(norm, norm if of_norm else layer, name)


def norm_held_by_consumer(x):
    layer = BatchNormLayer(x)
    return Holder(dense(layer), layer, "mean")


LEFT = {
    "a nonlinearity before": (
        lambda x: BatchNormLayer(dense(x, nonlinearity=rectify)),
        r"DenseLayer \(layer 1\) before it has a nonlinearity, rectify"),
    "a nonlinearity without a name": (
        lambda x: BatchNormLayer(dense(x, nonlinearity=LEAKY)),
        "before it has a nonlinearity, LeakyRectify"),
    "a nonlinearity of its own": (
        lambda x: dense(BatchNormLayer(x, nonlinearity=tanh)),
        "it has a nonlinearity, tanh"),
    "nothing linear": (
        lambda x: FlattenLayer(BatchNormLayer(x)),
        r"InputLayer .* before it is not known to be linear; FlattenLayer "
        r"\(layer 2\) after it is not known to be linear"),
    "dropout": (
        lambda x: dense(DropoutLayer(BatchNormLayer(x))),
        "DropoutLayer .* after it is not known to be linear"),
    "a second consumer of the layer before": (
        shared_output, r"the output of DenseLayer \(layer 1\) before it goes "
        r"to BatchNormLayer \(layer 2\) and BatchNormLayer \(layer 3\)"),
    "a second consumer after it": (
        to_two, r"its output goes to DenseLayer \(layer 2\) and DenseLayer "
        r"\(layer 3\)"),
    "the layer before, twice in a sum": (
        sum_with_itself, "goes to BatchNormLayer .* and ElemwiseSumLayer"),
    "the layer before is returned": (
        returned, "the output of DenseLayer .* before it is returned, too"),
    "it is returned": (
        lambda x: BatchNormLayer(x), "its output is returned"),
    "it is returned, too": (
        norm_returned, "its output is returned"),
    "another way of computing": (
        lambda x: BatchNormLayer(Squares(x, 4, nonlinearity=None)),
        "Squares .* before it is not known to be linear"),
    "another way of computing after it": (
        lambda x: Squares(BatchNormLayer(x), 4),
        "Squares .* after it is not known to be linear"),
    "another way of normalizing": (
        lambda x: SquaredNorm(dense(x)), "its class overrides get_output_for"),
    "normalizing by the batch": (
        lambda x: ByBatch(dense(x)),
        r"ByBatch \(layer 2\) .* its class overrides get_output_for.* its "
        "test output is not that of a BatchNormLayer"),
    "normalizing by the batch, before a layer": (
        lambda x: dense(ByBatch(x)), "its class overrides get_output_for"),
    "flags that get no further": (
        by_batch_always, "overrides get_output_for"),
    "a parameter of its own": (
        lambda x: Scaled(dense(x)), "its class overrides get_output_for"),
    "weights by a property": (
        lambda x: BatchNormLayer(NormedWeights(x, 4, nonlinearity=None)),
        "NormedWeights .* is not known to be linear: it does not compute what "
        "Lasagne's DenseLayer computes"),
    "no bias, whatever the fold gives it": (
        lambda x: BatchNormLayer(NoBias(x, 4, b=None, nonlinearity=None)),
        "NoBias .* does not use another bias or nonlinearity as Lasagne's "
        "DenseLayer does"),
    "no nonlinearity, whatever the fold gives it": (
        lambda x: BatchNormLayer(NoNonlinearity(x, 4, nonlinearity=None),
                                 nonlinearity=LEAKY),
        "NoNonlinearity .* does not use another bias or nonlinearity"),
    "parameters that a class returns": (
        lambda x: BatchNormLayer(OtherParams(x, 4, nonlinearity=None)),
        "OtherParams .* is not known to be linear"),
    "a function that applies the layer before": (
        layer_of_a_function,
        r"DenseLayer \(layer 1\) is referred to by Applies"),
    "a method that applies the layer before": (
        layer_of_a_method,
        r"DenseLayer \(layer 1\) is referred to by Adds"),
    "a function that applies a global layer": (
        global_layer, r"DenseLayer \(layer 1\) is referred to by Applies"),
    "a patched layer before": (
        lambda x: BatchNormLayer(patched(dense(x))),
        "DenseLayer .* before it is not known to be linear"),
    "a patched layer after": (
        lambda x: patched(dense(BatchNormLayer(x))),
        "DenseLayer .* after it is not known to be linear"),
    "patched itself": (
        lambda x: patched(BatchNormLayer(dense(x))), "overrides get_output"),
    "its parameter is used elsewhere": (
        partial(held, of_norm=True, name="std"),
        r"BatchNormLayer \(layer 2\) is referred to by Holder 'std'"),
    "the weights are used elsewhere": (
        partial(held, of_norm=False, name="W"),
        r"DenseLayer \(layer 1\) is referred to by Holder 'W'"),
    "its parameter is used above": (
        norm_held_by_consumer, "is referred to by Holder 'mean'"),
    "whole numbers": (
        lambda _: dense(BatchNormLayer(ReshapeLayer(
            InputLayer((None, 5), T.imatrix()), ([0], [1])))),
        "its input may be of whole numbers"),
    "whole numbers by a nonlinearity": (
        lambda x: dense(BatchNormLayer(dense(
            x, nonlinearity=lambda x: T.gt(x, 0)))),
        "its input may be of whole numbers"),
    "whole numbers by a layer": (
        lambda x: dense(BatchNormLayer(Applies(x, lambda x: T.gt(x, 0)))),
        "its input may be of whole numbers"),
    "another type": (
        lambda x: BatchNormLayer(dense(x, W=np.ones((5, 4), "float32"))),
        r"the weights of DenseLayer \(layer 1\) are of different types, "
        "float32, float64"),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_in_place(rng, caplog, x, name):
    make, reason = LEFT[name]
    network = randomize(make(x), rng)
    with caplog.at_level(logging.INFO, "bnlasagne.folding"):
        folded, report = check(network, rng)
    assert kinds(folded) == kinds(network)
    assert set(into(report)) == {None}
    for entry in report:
        assert "left in place: " in str(entry)
    assert re.search(reason, str(report[0]))
    # Theano logs as well, while it waits for another process to compile.
    assert [(record.levelname, record.getMessage())
            for record in caplog.records
            if record.name == "bnlasagne.folding"] == [
                ("WARNING", str(entry)) for entry in report]


@pytest.mark.parametrize("W", [1, [[1]] * 2 + [[-1]] * 2 + [[0]]])
@pytest.mark.parametrize("after", [False, True])
def test_zero_std_without_epsilon(x, W, after):
    options = {"std": [0.0, 1, 1, 1, 1], "epsilon": 0}
    W = np.full((5, 5), W, "float64")
    network = dense(BatchNormLayer(x, **options), 5, W=W) if after \
        else BatchNormLayer(dense(x, 5, W=W), **options)
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        folded, report = fold_batch_norm(network, return_report=True)
    assert ("weights or bias of DenseLayer (layer %d) would not be finite"
            % (1 + after)) in str(report[0])
    assert kinds(folded) == kinds(network)


def test_too_large_for_the_type(x):
    with theano.configparser.change_flags(floatX="float32"):
        network = BatchNormLayer(dense(x, W=Constant(1e30)), gamma=1e30)
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        _, report = fold_batch_norm(network, return_report=True)
    assert "would not be finite" in str(report[0])


def test_axes_changed_since(x):
    _, report = fold_batch_norm(other_axes(x), return_report=True)
    assert "do not have the shape that its axes (1,) ask for" \
        in str(report[0])


def test_nothing_before():
    _, report = fold_batch_norm(BatchNormLayer((None, 5)), True)
    assert "there is no layer before it" in str(report[0])


def test_mask(rng, x):
    """The layer with it stays, and is frozen; others are folded."""
    below, mask = InputLayer((None, 3, 4)), InputLayer((None, 4))
    inner = batch_norm(NINLayer(below, 5, name="inner"), mask_input=mask)
    network = batch_norm(NINLayer(inner, 2, name="outer"))
    randomize(network, rng)
    folded, report = fold_batch_norm(network, return_report=True)
    assert [str(each) for each in report] == [
        "BatchNormLayer 'inner_bn' left in place: it has a mask, outside of "
        "which its output is zero",
        "BatchNormLayer 'outer_bn' folded into NINLayer 'outer' before it"]
    assert report[0].layer.frozen is False
    assert folded.input_layer.frozen
    assert folded.input_layer.input_layers[1] is mask
    inputs = {below: rng.normal(size=(6, 3, 4)),
              mask: rng.randint(0, 2, (6, 4)).astype("float64")}
    one, other = (get_output(each, inputs, deterministic=True).eval()
                  for each in (network, folded))
    assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_subclass(rng, x):
    network = randomize(BatchNormLayer(Subclass(x, 4, nonlinearity=None)),
                        rng)
    folded, _ = check(network, rng)
    assert kinds(folded) == ["Input", "Subclass"]


def test_whole_numbers_before(rng):
    layer = dense(InputLayer((None, 5), T.imatrix()))
    _, report = check(randomize(BatchNormLayer(layer), rng), rng)
    assert into(report) == [layer]


def test_layers_below_may_need_more(x):
    """Folding does not build the outputs of layers that it knows."""
    class Needs(lasagne.layers.Layer):
        def get_output_for(self, input, **kwargs):
            return kwargs["what"] * input

    network = dense(BatchNormLayer(dense(Needs(x), nonlinearity=tanh)))
    _, report = fold_batch_norm(network, return_report=True)
    assert into(report) == [network]


def test_left_ones_are_frozen(rng, x):
    network = randomize(BatchNormLayer(dense(x, nonlinearity=rectify)), rng)
    folded, _ = check(network, rng)
    assert folded.frozen and not network.frozen
    batches = batches_for(network, rng)
    before = get_all_params(folded)[2].get_value()
    expected, actual = compiled(network, [
        get_output(network, deterministic=True), get_output(folded)])(*batches)
    assert_array_equal(actual, expected)
    assert_array_equal(get_all_params(folded)[2].get_value(), before)


@pytest.mark.parametrize("make", [
    lambda x: SquaredNorm(dense(x)), lambda x: ByBatch(dense(x)),
    lambda x: Scaled(dense(x)), by_batch_always,
    lambda x: patched(BatchNormLayer(dense(x)))])
def test_left_ones_of_other_classes_stay(rng, x, make):
    network = randomize(make(x), rng)
    folded, _ = check(network, rng)
    assert not folded.frozen
    # In training as well.
    batches = batches_for(network, rng)
    expected, actual = (compiled(each, get_output(each))(*batches)
                        for each in (network, folded))
    assert_array_equal(actual, expected)


# --- subclasses ------------------------------------------------------------

class ForTesting(BatchNormLayer):
    def get_output_for(self, input, **kwargs):
        return super().get_output_for(input,
                                                      deterministic=True)


class Noisy(BatchNormLayer):
    """Adds noise in training."""

    def get_output_for(self, input, deterministic=False, **kwargs):
        output = super().get_output_for(
            input, deterministic=deterministic, **kwargs)
        return output if deterministic else output + 1


class Penalized(BatchNormLayer):
    """Has a parameter that its output does not depend on."""

    def __init__(self, incoming, **kwargs):
        super().__init__(incoming, **kwargs)
        self.penalty = self.add_param(np.ones(4), (4,), "penalty")

    def get_params(self, **tags):
        return super().get_params(**tags)[::-1]


class Counted(DenseLayer):
    def get_output_for(self, input, **kwargs):
        self.count = getattr(self, "count", 0) + 1
        return super().get_output_for(input, **kwargs)


@pytest.mark.parametrize("kind", [Unchanged, ForTesting, Noisy, Penalized])
def test_subclasses_with_the_same_test_output(rng, x, kind):
    layer = dense(x, name="fc")
    network = randomize(kind(layer, nonlinearity=tanh), rng)
    folded, report = check(network, rng)
    assert into(report) == [layer]
    assert [param.name for param in get_all_params(folded)] == ["fc.W", "fc.b"]


def test_subclasses_of_linear_layers(rng, x):
    first = Counted(x, 4, nonlinearity=None)
    second = Counted(BatchNormLayer(first), 4, nonlinearity=None)
    _, report = check(randomize(BatchNormLayer(second), rng), rng)
    assert into(report) == [first, second]


def test_nonlinearity_set_later(rng, x):
    network = BatchNormLayer(dense(x))
    network.nonlinearity = tanh
    folded, report = check(randomize(network, rng), rng)
    assert into(report) == [network.input_layer]
    assert folded.nonlinearity is tanh


def test_wrapped_twice(rng, x):
    layer = DenseLayer(x, 4, nonlinearity=None)
    network = batch_norm(batch_norm(layer), nonlinearity=LEAKY)
    folded, report = check(randomize(network, rng), rng)
    assert into(report) == [layer, layer]
