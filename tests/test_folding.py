"""Networks for inference, without batch normalization layers."""

import concurrent.futures
import io
import logging
import pickle
import re
from functools import partial

from bnlasagne import (
    BatchNormLayer,
    batch_norm,
    fold_batch_norm,
    freeze_batch_norm,
    load_network,
    save_network,
)
from bnlasagne.networks.walk import all_layers

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.common import later, needs_compiler
from helpers.folded import (
    LEAKY,
    assert_close,
    batches_for,
    check,
    compiled,
    dense,
    into,
    kinds,
    nin,
    randomize,
    roots_of,
    state_of,
)
from lasagne.init import Constant
from lasagne.layers import (
    Conv2DLayer,
    CustomRecurrentLayer,
    DenseLayer,
    DropoutLayer,
    ElemwiseSumLayer,
    FlattenLayer,
    InputLayer,
    MaxPool2DLayer,
    ReshapeLayer,
    get_all_layers,
    get_all_params,
    get_output,
)
from lasagne.nonlinearities import identity, rectify, tanh
from numpy.testing import assert_array_equal
from theano.gof.graph import ancestors, inputs
from theano.sandbox.rng_mrg import MRG_RandomStreams
from theano.tensor.shared_randomstreams import RandomStreams


@pytest.fixture
def x():
    return InputLayer((None, 5))


# --- what is in the way ----------------------------------------------------

class Squares(DenseLayer):
    def get_output_for(self, input, **kwargs):
        return super(Squares, self).get_output_for(input, **kwargs) ** 2


class SquaredNorm(BatchNormLayer):
    def get_output_for(self, input, **kwargs):
        return super(SquaredNorm, self).get_output_for(input, **kwargs) ** 2


class Subclass(DenseLayer):
    pass


class ByBatch(BatchNormLayer):
    """Normalizes by the batch, in tests as well."""

    def get_output_for(self, input, **kwargs):
        kwargs.update(batch_norm_use_averages=False,
                      batch_norm_update_averages=False)
        return super(ByBatch, self).get_output_for(input, **kwargs)


class Rescaled(BatchNormLayer):
    """Has a parameter of its own."""

    def __init__(self, incoming, **kwargs):
        super(Rescaled, self).__init__(incoming, **kwargs)
        self.scale = self.add_param(np.full(4, 2.0), (4,), "scale")

    def get_output_for(self, input, **kwargs):
        return self.scale * super(Rescaled, self).get_output_for(
            input, **kwargs)


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
        return super(OtherParams, self).get_params(**tags)[::-1]


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


class Applies(lasagne.layers.Layer):
    """Applies a function, as Lasagne's later `ExpressionLayer`."""

    def __init__(self, incoming, function, **kwargs):
        super(Applies, self).__init__(incoming, **kwargs)
        self.function = function

    def get_output_for(self, input, **kwargs):
        return self.function(input)


class Holder(lasagne.layers.Layer):
    """Adds another layer's parameter, in a way that nobody knows."""

    def __init__(self, incoming, other, name):
        super(Holder, self).__init__(incoming)
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
        lambda x: Rescaled(dense(x)), "its class overrides get_output_for"),
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
        "its input is of whole numbers"),
    "whole numbers by a nonlinearity": (
        lambda x: dense(BatchNormLayer(dense(
            x, nonlinearity=lambda x: T.gt(x, 0)))),
        "its input is of whole numbers"),
    "whole numbers by a layer": (
        lambda x: dense(BatchNormLayer(Applies(x, lambda x: T.gt(x, 0)))),
        "its input is of whole numbers"),
    "another type": (
        lambda x: BatchNormLayer(dense(x, W=np.ones((5, 4), "float32"))),
        r"the weights of DenseLayer \(layer 1\) are of different types, "
        "float32, float64"),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_in_place(rng, float64, quick, caplog, x, name):
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
def test_zero_std_without_epsilon(x, float64, W, after):
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


def test_axes_changed_since(float64, x):
    _, report = fold_batch_norm(other_axes(x), return_report=True)
    assert "do not have the shape that its axes (1,) ask for" \
        in str(report[0])


def test_nothing_before(float64):
    _, report = fold_batch_norm(BatchNormLayer((None, 5)), True)
    assert "there is no layer before it" in str(report[0])


def test_subclass(rng, float64, quick, x):
    network = randomize(BatchNormLayer(Subclass(x, 4, nonlinearity=None)),
                        rng)
    folded, _ = check(network, rng)
    assert kinds(folded) == ["Input", "Subclass"]


def test_whole_numbers_before(rng, float64, quick):
    layer = dense(InputLayer((None, 5), T.imatrix()))
    _, report = check(randomize(BatchNormLayer(layer), rng), rng)
    assert into(report) == [layer]


def test_left_ones_are_frozen(rng, float64, quick, x):
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
    lambda x: Rescaled(dense(x)), by_batch_always,
    lambda x: patched(BatchNormLayer(dense(x)))])
def test_left_ones_of_other_classes_stay(rng, float64, quick, x, make):
    network = randomize(make(x), rng)
    folded, _ = check(network, rng)
    assert not folded.frozen
    # In training as well.
    batches = batches_for(network, rng)
    expected, actual = (compiled(each, get_output(each))(*batches)
                        for each in (network, folded))
    assert_array_equal(actual, expected)


# --- subclasses ------------------------------------------------------------

class Marker(BatchNormLayer):
    """Told from others by its class."""

    def get_output_for(self, input, **kwargs):
        return super(Marker, self).get_output_for(input, **kwargs)


class ForTesting(BatchNormLayer):
    def get_output_for(self, input, **kwargs):
        return super(ForTesting, self).get_output_for(input,
                                                      deterministic=True)


class Noisy(BatchNormLayer):
    """Adds noise in training."""

    def get_output_for(self, input, deterministic=False, **kwargs):
        output = super(Noisy, self).get_output_for(
            input, deterministic=deterministic, **kwargs)
        return output if deterministic else output + 1


class Penalized(BatchNormLayer):
    """Has a parameter that its output does not depend on."""

    def __init__(self, incoming, **kwargs):
        super(Penalized, self).__init__(incoming, **kwargs)
        self.penalty = self.add_param(np.ones(4), (4,), "penalty")

    def get_params(self, **tags):
        return super(Penalized, self).get_params(**tags)[::-1]


class Counted(DenseLayer):
    def get_output_for(self, input, **kwargs):
        self.count = getattr(self, "count", 0) + 1
        return super(Counted, self).get_output_for(input, **kwargs)


@pytest.mark.parametrize("kind", [Marker, ForTesting, Noisy, Penalized])
def test_subclasses_with_the_same_test_output(rng, float64, quick, x, kind):
    layer = dense(x, name="fc")
    network = randomize(kind(layer, nonlinearity=tanh), rng)
    folded, report = check(network, rng)
    assert into(report) == [layer]
    assert [param.name for param in get_all_params(folded)] == ["fc.W", "fc.b"]


def test_subclasses_of_linear_layers(rng, float64, quick, x):
    first = Counted(x, 4, nonlinearity=None)
    second = Counted(BatchNormLayer(first), 4, nonlinearity=None)
    _, report = check(randomize(BatchNormLayer(second), rng), rng)
    assert into(report) == [first, second]


def test_nonlinearity_set_later(rng, float64, quick, x):
    network = BatchNormLayer(dense(x))
    network.nonlinearity = tanh
    folded, report = check(randomize(network, rng), rng)
    assert into(report) == [network.input_layer]
    assert folded.nonlinearity is tanh


def test_wrapped_twice(rng, float64, quick, x):
    layer = DenseLayer(x, 4, nonlinearity=None)
    network = batch_norm(batch_norm(layer), nonlinearity=LEAKY)
    folded, report = check(randomize(network, rng), rng)
    assert into(report) == [layer, layer]


# --- networks --------------------------------------------------------------

def test_shared_weights(rng, float64, quick, x):
    first = dense(x, 5)
    second = dense(BatchNormLayer(first, nonlinearity=LEAKY), 5, W=first.W)
    network = randomize(BatchNormLayer(second), rng)
    folded, report = check(network, rng)
    assert into(report) == [first, second]
    weights = [layer.W for layer in get_all_layers(folded)[1:]]
    assert len(set(weights)) == 2


def test_one_of_two_with_shared_weights(rng, float64, quick, x):
    first = dense(x, 5, nonlinearity=LEAKY)
    second = dense(first, 5, W=first.W, b=first.b)
    network = randomize(BatchNormLayer(second), rng)
    _, report = check(network, rng)
    assert into(report) == [second]


def test_shared_batch_norm_parameters(rng, float64, quick, x):
    first = BatchNormLayer(dense(x))
    second = dense(first)
    network = randomize(BatchNormLayer(
        second, mean=first.mean, std=first.std, gamma=first.gamma,
        beta=first.beta), rng)
    _, report = check(network, rng)
    assert into(report) == [first.input_layer, second]


def test_several_outputs(rng, float64, quick, x):
    trunk = batch_norm(dense(x, nonlinearity=LEAKY), name="trunk")
    left, right = dense(trunk), dense(trunk, 3)
    network = randomize([BatchNormLayer(left), BatchNormLayer(right), trunk],
                        rng)
    folded, report = check(network, rng)
    assert into(report) == [trunk.input_layer, left, right]
    assert [each.output_shape for each in folded] == [
        (None, 4), (None, 3), (None, 4)]
    assert len(get_all_layers(folded)) == 4
    assert folded[0].input_layer is folded[2]
    assert isinstance(fold_batch_norm([trunk]), list)
    assert isinstance(fold_batch_norm(tuple(network)), list)


def test_one_output_twice(rng, float64, quick, x):
    network = randomize(BatchNormLayer(dense(x)), rng)
    (first, second), _ = check([network, network], rng)
    assert first is second


def test_twice_in_a_sum(rng, float64, quick, x):
    norm = BatchNormLayer(dense(x))
    folded, _ = check(randomize(ElemwiseSumLayer([norm, norm]), rng), rng)
    assert kinds(folded) == ["Input", "Dense", "ElemwiseSum"]
    assert len(set(folded.input_layers)) == 1


@needs_compiler
def test_residual_network(rng, float64):
    def conv(incoming, size=3, **options):
        return batch_norm(Conv2DLayer(incoming, 4, size, pad="same",
                                      **options))

    trunk = conv(InputLayer((None, 3, 6, 6)))
    branch = conv(conv(trunk), nonlinearity=None)
    total = ElemwiseSumLayer([conv(trunk, 1, nonlinearity=None), branch])
    normed = BatchNormLayer(total, nonlinearity=rectify, name="total")
    last = Conv2DLayer(normed, 5, 3, untie_biases=True, nonlinearity=None)
    network = batch_norm(dense(MaxPool2DLayer(BatchNormLayer(last), 2)))
    randomize(network, rng)
    folded, report = check(network, rng,
                           mode=theano.Mode("cvm", "fast_compile"))
    assert [entry.layer for entry in report if entry.into is None] == [normed]
    # The two that feed the sum: each would be scaled by itself.
    assert kinds(folded) == ["Input"] + ["Conv2D"] * 4 + [
        "ElemwiseSum", "BatchNorm", "Conv2D", "MaxPool2D", "Dense"]


def test_batch_norm_on_a_sum_into_the_layer_after(rng, float64, quick, x):
    total = BatchNormLayer(ElemwiseSumLayer([dense(x), dense(x)]))
    network = randomize(dense(total), rng)
    folded, report = check(network, rng)
    assert into(report) == [network]


# --- parameters that are expressions ---------------------------------------

@later
def test_expressions_of_weights(rng, float64, quick, x):
    w, b = theano.shared(np.ones((4, 5))), theano.shared(np.ones(4))
    layer = dense(x, W=w.T, b=T.exp(b))
    tied = dense(BatchNormLayer(layer), 5, W=w)
    network = randomize(BatchNormLayer(tied), rng)
    folded, report = check(network, rng)
    assert into(report) == [layer, tied]
    for each in get_all_layers(folded)[1:]:
        assert isinstance(each.W, theano.compile.SharedVariable)
    assert len(get_all_params(folded)) == 4


def centred(x):
    layer = DenseLayer(x, 4, name="fc")
    layer.W = layer.W - layer.W.mean(0, keepdims=True)
    return batch_norm(layer)


def weight_normalized(x):
    layer = DenseLayer(x, 4, name="fc")
    layer.v = layer.W
    layer.g = layer.add_param(np.ones(4), (4,), "g", regularizable=False)
    layer.W = layer.v * (layer.g / layer.v.norm(2, axis=0))
    return batch_norm(layer)


def of_itself_after(x):
    layer = dense(BatchNormLayer(x), name="fc")
    layer.W = 2 * layer.W
    layer.b = T.sqr(layer.b)
    return layer


def constant(x):
    layer = dense(x, b=None, name="fc")
    layer.W = T.constant(np.arange(20.0).reshape(5, 4))
    layer.params.clear()
    return BatchNormLayer(layer)


def array(x):
    network = constant(x)
    network.input_layer.W = network.input_layer.W.data
    return network


def not_registered(x):
    layer = dense(x, name="fc")
    layer.W = theano.shared(np.arange(20.0).reshape(5, 4))
    layer.b = theano.shared(np.arange(4.0))
    return BatchNormLayer(layer)


@pytest.mark.parametrize("make", [
    centred, weight_normalized, of_itself_after, constant, array,
    not_registered])
def test_parameters_that_are_left_over(rng, float64, quick, x, make):
    network = randomize(make(x), rng)
    folded, report = check(network, rng)
    assert len(into(report)) == 1 and None not in into(report)
    assert folded.get_params() == [folded.W, folded.b]
    assert [param.name for param in get_all_params(folded)] == ["fc.W", "fc.b"]
    assert lasagne.layers.count_params(folded) == 24
    assert folded.W in folded.get_params(trainable=True)
    # As the weights were that they are made of.
    regularizable = folded.W in folded.get_params(regularizable=True)
    assert regularizable == (make in (centred, weight_normalized,
                                      of_itself_after))
    reloaded = fold_batch_norm(network)
    randomize(reloaded, rng)
    with io.BytesIO() as file:
        save_network(folded, file)
        assert sorted(np.load(io.BytesIO(file.getvalue()))) == ["fc.W", "fc.b"]
        file.seek(0)
        load_network(reloaded, file)
    assert_array_equal(reloaded.W.get_value(), folded.W.get_value())


@pytest.mark.parametrize("both", [False, True])
def test_tied_weights(rng, float64, quick, x, both):
    """The weights stay for as long as a layer uses them."""
    encoder = dense(x, name="encoder")
    decoder = dense(BatchNormLayer(encoder), 5, name="decoder")
    del decoder.params[decoder.W]
    decoder.W = encoder.W.T
    network = BatchNormLayer(decoder) if both else DropoutLayer(decoder)
    folded, report = check(randomize(network, rng), rng)
    assert into(report) == [encoder, decoder][:1 + both]
    encoder, decoder = get_all_layers(folded)[1:3]
    assert encoder.get_params()[:2] == [encoder.W, encoder.b]
    source, = set(inputs([decoder.W]))
    if both:
        assert source is decoder.W
        assert [param.name for param in get_all_params(folded)] == [
            "encoder.W", "encoder.b", "decoder.W", "decoder.b"]
    else:
        assert get_all_params(folded) == [
            encoder.W, encoder.b, source, decoder.b]


def test_nonlinearities_with_parameters(rng, float64, quick, x):
    slope = theano.shared(np.full(4, 0.3), "slope")
    layer = dense(x, name="fc")
    network = BatchNormLayer(
        layer, nonlinearity=lambda x: T.switch(x > 0, x, slope * x))
    network.params[slope] = {"trainable"}
    folded, report = check(randomize(network, rng), rng)
    assert into(report) == [layer]
    assert [param.name for param in get_all_params(folded)] == [
        "fc.W", "fc.b", "slope"]
    batches = batches_for(network, rng)
    function = compiled(folded, get_output(folded))
    before = function(*batches)
    folded.get_params()[2].set_value(np.full(4, 0.7))
    assert np.any(function(*batches) != before)


control = theano.shared(np.float64(1), "control")


def scaled_by_control(x):
    return x * control


def test_variables_that_are_no_parameters(rng, float64, quick, x):
    """Users set them for both networks; a function stays as it is."""
    network = randomize(batch_norm(dense(
        x, nonlinearity=scaled_by_control, name="fc")), rng)
    folded, report = fold_batch_norm(network, return_report=True)
    assert into(report) == [get_all_layers(network)[1]]
    batches = batches_for(network, rng)
    before, = compiled(folded, get_output([folded]))(*batches)
    try:
        control.set_value(3.0)
        for each in folded, pickle.loads(pickle.dumps(folded)):
            output, = compiled(each, get_output([each]))(*batches)
            assert_close(output, 3 * before, "float64")
    finally:
        control.set_value(1.0)


@later
def test_expressions_of_statistics(rng, float64, quick, x):
    row = partial(theano.shared, np.ones((1, 4)),
                  broadcastable=(True, False))
    layer = dense(x)
    network = randomize(BatchNormLayer(
        layer, mean=2 * row(), std=T.exp(row()), gamma=T.sqr(row()),
        beta=-row()), rng)
    _, report = check(network, rng)
    assert into(report) == [layer]


def test_epsilon_as_shared_variable(rng, float64, quick, x):
    layer = dense(x)
    network = randomize(BatchNormLayer(
        layer, epsilon=theano.shared(0.3) ** 2), rng)
    _, report = check(network, rng)
    assert into(report) == [layer]


@later
def test_weights_that_depend_on_inputs(rng, float64, quick, x):
    weights = T.tanh(T.dot(x.input_var.T, x.input_var))
    network = BatchNormLayer(dense(x, 5, W=weights))
    folded, report = check(randomize(network, rng), rng)
    assert kinds(folded) == kinds(network)
    assert "W of DenseLayer (layer 1) has no value of its own" \
        in str(report[0])
    assert "is an input of the network" in str(report[0])


@pytest.mark.parametrize("streams", [MRG_RandomStreams, RandomStreams])
@pytest.mark.parametrize("name", ["gamma", "W"])
def test_parameters_that_are_random(float64, quick, x, streams, name):
    layer = dense(x, b=None)
    network = BatchNormLayer(layer)
    owner = network if name == "gamma" else layer
    old = getattr(owner, name)
    # Lasagne 0.1 would not take an expression as an argument.
    new = T.patternbroadcast(
        streams(1).normal(old.get_value().shape, avg=0.0, std=1.0),
        old.broadcastable)
    setattr(owner, name, new)
    folded, report = fold_batch_norm(network, return_report=True)
    assert kinds(folded) == kinds(network)
    assert "is updated by each function" in str(report[0])
    function = compiled(folded, get_output(folded, deterministic=True))
    assert np.all(function(np.ones((1, 5))) != function(np.ones((1, 5))))


# --- parameters that are broadcast -----------------------------------------

def test_one_bias_for_all(rng, float64, quick, x):
    b = theano.shared(np.ones(1), broadcastable=(True,))
    layer = dense(x, b=b)
    folded, report = check(randomize(BatchNormLayer(layer), rng), rng)
    assert into(report) == [layer]
    assert folded.b.get_value().shape == (4,)


@needs_compiler
def test_one_bias_for_all_positions(rng, float64):
    b = theano.shared(np.ones((3, 1, 1)), broadcastable=(False, True, True))
    layer = Conv2DLayer(InputLayer((None, 2, 5, 5)), 3, 3, b=b,
                        untie_biases=True, nonlinearity=None)
    network = randomize(BatchNormLayer(layer), rng)
    _, report = check(network, rng, mode=theano.Mode("cvm", "fast_compile"))
    assert into(report) == [layer]


def test_one_factor_for_all(rng, float64, quick, x):
    one = partial(theano.shared, np.ones((1, 1)),
                  broadcastable=(True, True))
    first = BatchNormLayer(x, mean=one(), std=one(), gamma=one(), beta=None)
    layer = dense(first)
    network = randomize(BatchNormLayer(layer, std=one(), gamma=one()), rng)
    _, report = check(network, rng)
    assert into(report) == [layer, layer]


# --- sizes -----------------------------------------------------------------

def of_input(incoming):
    size, time, _ = incoming.input_var.shape
    return size, time


def of_output(incoming):
    shape = get_output(batch_norm(dense(ReshapeLayer(incoming, (-1, 5))))
                       ).shape
    return shape[0] // 2, 2


def of_folded_output(incoming):
    return None


@pytest.mark.parametrize("sizes", [of_input, of_output, of_folded_output])
def test_sizes(rng, float64, quick, sizes):
    incoming = InputLayer((None, 2, 5))
    first = dense(ReshapeLayer(incoming, (-1, 5)), name="first")
    normed = BatchNormLayer(first)
    found = sizes(incoming) or (get_output(normed).shape[0] // 2, 2)
    again = BatchNormLayer(ReshapeLayer(normed, found + (4,)), axes=(0, 1))
    network = dense(ReshapeLayer(again, (-1, 4)), name="last")
    folded, report = check(randomize(network, rng), rng)
    assert into(report) == [first, None]
    assert [param.name for param in get_all_params(folded)] == [
        "first.W", "first.b", "mean", "std", "beta", "gamma", "last.W",
        "last.b"]
    # For other data, too.
    batch = rng.normal(size=(7, 2, 5))
    expected, actual = (
        theano.function([incoming.input_var], get_output(
            each, {incoming: incoming.input_var}, deterministic=True))(batch)
        for each in (network, folded))
    assert_close(actual, expected, "float64")


def test_input_layers_on_expressions(rng, float64, quick):
    x = T.matrix()
    incoming = InputLayer((None, 1, 5), x.dimshuffle(0, "x", 1))
    size = incoming.input_var.shape[0]
    first = dense(ReshapeLayer(incoming, (size, 5)))
    network = dense(Applies(BatchNormLayer(first), lambda output: output +
                            incoming.input_var.sum((1, 2), keepdims=False
                                                   ).dimshuffle(0, "x")))
    randomize(network, rng)
    folded, report = fold_batch_norm(network, return_report=True)
    assert into(report) == [first]
    expected, actual = theano.function([x], [
        get_output(each, deterministic=True) for each in (network, folded)])(
            rng.normal(size=(3, 5)))
    assert_close(actual, expected, "float64")
    assert incoming.input_var in ancestors([get_output(folded)])
    assert not set(get_all_params(network)) & roots_of(folded)


@later
@needs_compiler
def test_transposed_convolution_sized_by_the_input(rng, float64):
    incoming = InputLayer((None, 1, 7, 6))
    layer = Conv2DLayer(incoming, 2, 3, stride=2, nonlinearity=None)
    upper = lasagne.layers.TransposedConv2DLayer(
        BatchNormLayer(layer, nonlinearity=LEAKY), 2, 3, stride=2,
        nonlinearity=None, output_size=incoming.input_var.shape[2:])
    network = randomize(BatchNormLayer(upper), rng)
    _, report = check(network, rng, mode=theano.Mode("cvm", "fast_compile"))
    assert into(report) == [layer, upper]


# --- layers within layers --------------------------------------------------

@pytest.mark.parametrize("precompute", [False, True])
def test_recurrent(rng, float64, quick, precompute):
    step_in = dense(InputLayer((None, 5)))
    step = dense(InputLayer((None, 4)))
    network = randomize(dense(CustomRecurrentLayer(
        InputLayer((2, 3, 5)), BatchNormLayer(step_in), BatchNormLayer(step),
        precompute_input=precompute, unroll_scan=True)), rng)
    layers = all_layers([network])
    batches = [rng.normal(size=(2, 3, 5))]
    folded, report = check(network, rng, batches)
    assert [entry.layer for entry in report] == [
        layer for layer in layers if isinstance(layer, BatchNormLayer)]
    assert into(report) == [step_in, step]
    assert not any(isinstance(layer, BatchNormLayer)
                   for layer in all_layers([folded]))


def test_recurrent_with_scan(rng, float64, quick):
    step = dense(InputLayer((None, 4)))
    network = randomize(CustomRecurrentLayer(
        InputLayer((2, 3, 5)), dense(InputLayer((None, 5))),
        BatchNormLayer(step)), rng)
    _, report = check(network, rng, [rng.normal(size=(2, 3, 5))])
    assert into(report) == [step]


class Caller(lasagne.layers.Layer):
    """Applies a network of its own, for training always."""

    def __init__(self, incoming, inner):
        super(Caller, self).__init__(incoming)
        self.inner = inner

    def get_output_for(self, input, **kwargs):
        return get_output(self.inner, input)


def test_within_a_layer_that_is_not_known(rng, float64, quick, x):
    network = Caller(x, batch_norm(dense(InputLayer((None, 5)), 5)))
    folded, report = check(randomize(network, rng), rng)
    assert into(report) == [None]
    assert "is within another layer, which may not pass" in str(report[0])
    assert not folded.inner.frozen


# --- Lasagne's own batch normalization -------------------------------------

@later
def test_lasagnes_own(rng, float64, quick, x):
    theirs = lasagne.layers.BatchNormLayer(x)
    layer = dense(theirs, nonlinearity=LEAKY, name="fc")
    network = randomize(lasagne.layers.batch_norm(layer), rng)
    folded, report = check(network, rng)
    assert into(report) == [layer, layer]
    assert kinds(folded) == ["Input", "Dense", "Nonlinearity"]
    assert str(report[0]) == ("BatchNormLayer (layer 1) folded into "
                              "DenseLayer 'fc' after it")


@later
def test_lasagnes_own_on_images(rng, float64, quick):
    layer = lasagne.layers.NINLayer(InputLayer((None, 2, 4, 3)), 3,
                                    nonlinearity=None)
    network = randomize(lasagne.layers.BatchNormLayer(layer), rng)
    batches = batches_for(network, rng)
    folded, _ = check(network, rng, batches)
    mean, inv_std, gamma, beta = (
        getattr(network, name).get_value()[:, None, None]
        for name in ("mean", "inv_std", "gamma", "beta"))
    expected = reference.normalize(
        reference.add_bias(nin(*batches, layer.W.get_value()),
                           layer.b.get_value()),
        mean, 1 / inv_std, gamma, beta, epsilon=0)
    actual = compiled(folded, get_output(folded))(*batches)
    assert_close(actual, expected, "float64")


@later
def test_lasagnes_own_left_in_place(rng, float64, quick, x):
    network = randomize(lasagne.layers.BatchNormLayer(x), rng)
    folded, report = check(network, rng)
    assert into(report) == [None]
    assert not hasattr(folded, "frozen")


# --- the original and its copy ---------------------------------------------

@pytest.fixture
def network(rng, float64, quick, x):
    """One that is folded before, one after, and one that is left."""
    first = batch_norm(DenseLayer(x, 4, nonlinearity=tanh, name="first"))
    second = DenseLayer(BatchNormLayer(first, name="before"), 3,
                        nonlinearity=tanh, name="second")
    return randomize(BatchNormLayer(second, name="left"), rng)


def test_original_stays(rng, network):
    batch, = batches_for(network, rng)
    first = get_all_layers(network)[2]
    trained = compiled(network, get_output(network))
    trained(batch)
    freeze_batch_norm(first, params=True)
    tested = compiled(network, get_output(network, deterministic=True))
    expected = tested(batch)
    before = state_of(network)
    fold_batch_norm(network)
    assert state_of(network) == before
    assert first.frozen and first.nonlinearity is tanh
    assert first.input_layer.b is None
    assert first.input_layer.nonlinearity is identity
    with pytest.raises(ValueError, match="was wrapped before"):
        batch_norm(first.input_layer)
    assert_array_equal(tested(batch), expected)
    trained(batch)
    assert np.all(tested(batch) != expected)


def test_neither_follows_the_other(rng, network):
    batches = batches_for(network, rng)
    folded = fold_batch_norm(network)
    pair = [compiled(network, get_output(each, deterministic=True))
            for each in (network, folded)]
    before = pair[0](*batches)
    randomize(folded, rng)
    assert np.all(pair[1](*batches) != before)
    assert_array_equal(pair[0](*batches), before)
    changed = pair[1](*batches)
    randomize(network, rng)
    assert np.all(pair[0](*batches) != before)
    assert_array_equal(pair[1](*batches), changed)
    for layer in get_all_layers(network):
        for tags in layer.params.values():
            tags.add("new")
    assert not get_all_params(folded, new=True)


def test_names_and_tags(network):
    layers = get_all_layers(network)
    layers[1].params[layers[1].W].add("own")
    folded = fold_batch_norm(network)
    assert [layer.name for layer in get_all_layers(folded)] == [
        None, "first", "second", "left"]
    params = get_all_params(folded)
    assert [param.name for param in params] == [
        # The bias that batch_norm() had removed is new.
        "first.W", "first.b", "second.W", "second.b", "left.mean", "left.std",
        "left.beta", "left.gamma"]
    assert get_all_params(folded, own=True) == params[:1]
    assert get_all_params(folded, trainable=True) == params[:4] + params[6:]
    assert get_all_params(folded, regularizable=True) == [
        params[0], params[2], params[6]]
    assert get_all_params(folded, batch_norm_stat=True) == params[4:6]


@pytest.mark.parametrize("named", [False, True])
def test_names_given_to_variables(x, float64, named):
    W = theano.shared(np.ones((5, 4)), "mine" if named else None)
    folded = fold_batch_norm(BatchNormLayer(dense(x, W=W, name="fc")))
    assert [param.name for param in folded.get_params()] == [
        "mine" if named else "fc.W", "fc.b"]


def test_wrapped_again(rng, float64, quick, x):
    layer = DenseLayer(x, 4)
    folded = fold_batch_norm(batch_norm(layer))
    again = batch_norm(folded)
    assert again.nonlinearity is rectify
    refolded, _ = check(randomize(again, rng), rng)
    assert kinds(refolded) == ["Input", "Dense"]


def test_pickle(rng, network):
    folded = fold_batch_norm(network)
    copy = pickle.loads(pickle.dumps(folded))
    assert [param.get_value().tobytes() for param in get_all_params(copy)] \
        == [param.get_value().tobytes() for param in get_all_params(folded)]


# --- the report ------------------------------------------------------------

def test_report(network, caplog):
    first, norm, before, second, left = get_all_layers(network)[1:]
    with caplog.at_level(logging.INFO, "bnlasagne.folding"):
        folded, report = fold_batch_norm(network, return_report=True)
    assert [(entry.layer, entry.into) for entry in report] == [
        (norm, first), (before, second), (left, None)]
    assert [str(entry) for entry in report] == [
        "BatchNormLayer 'first_bn' folded into DenseLayer 'first' before it",
        "BatchNormLayer 'before' folded into DenseLayer 'second' after it",
        "BatchNormLayer 'left' left in place: DenseLayer 'second' before it "
        "has a nonlinearity, tanh; its output is returned"]
    assert report[0].text == str(report[0])
    assert [(record.levelname, record.name, record.getMessage())
            for record in caplog.records] == [
        (level, "bnlasagne.folding", str(entry)) for level, entry
        in zip(["INFO", "INFO", "WARNING"], report)]


def test_without_report(network):
    folded = fold_batch_norm(network)
    assert isinstance(folded, BatchNormLayer)
    assert isinstance(fold_batch_norm([network]), list)


def test_no_batch_norm(rng, float64, quick, caplog, x):
    network = randomize(dense(DropoutLayer(dense(x, nonlinearity=LEAKY))),
                        rng)
    with caplog.at_level(logging.INFO, "bnlasagne.folding"):
        folded, report = check(network, rng)
    assert report == [] and not caplog.records
    assert kinds(folded) == kinds(network)


@pytest.mark.parametrize("wrong", ["network", None, [None]])
def test_wrong_network(wrong):
    with pytest.raises(TypeError, match=re.escape(
            "fold_batch_norm(): network must be a Layer or a list of them")):
        fold_batch_norm(wrong)


# --- networks drawn by chance ----------------------------------------------

def draw(rng):
    """A network of layers with 4 units, as they may come."""
    incoming = InputLayer((None, 4))
    layers = [incoming]
    weights = None

    def some():
        # Late ones are likelier: else, all would be used more than once.
        return layers[-1 - rng.randint(min(len(layers), 3))]

    for _ in range(rng.randint(4, 12)):
        kind = rng.choice(["dense", "norm", "norm", "batch_norm", "sum",
                           "shared", "itself", "tied", "subclass", "sized",
                           "function"])
        activation = [None, None, LEAKY][rng.randint(3)]
        if kind == "dense" or kind == "shared" and weights is None:
            layers.append(dense(some(), nonlinearity=activation))
            weights = layers[-1].W
        elif kind == "shared":
            layers.append(dense(some(), W=weights, nonlinearity=activation))
        elif kind == "norm":
            layers.append(BatchNormLayer(
                some(), axes=[0, (0, 1)][rng.randint(2)],
                nonlinearity=activation))
        elif kind == "batch_norm":
            layers.append(batch_norm(DenseLayer(
                some(), 4, nonlinearity=activation)))
        elif kind == "itself":
            layer = dense(some(), nonlinearity=activation)
            layer.W = layer.W - layer.W.mean(0, keepdims=True)
            layers.append(layer)
        elif kind == "tied":
            layers.append(dense(some(), nonlinearity=activation))
            if weights is not None:
                layers[-1].W = weights.T
        elif kind == "subclass":
            layers.append([Marker, ByBatch, Noisy][rng.randint(3)](some()))
        elif kind == "sized":
            sizes = get_output(some()) if rng.randint(2) \
                else incoming.input_var
            layers.append(ReshapeLayer(some(), (sizes.shape[0], 4)))
        elif kind == "function":
            below, other = some(), some()
            layers.append(Applies(
                below, lambda output, other=other: output / 2 + get_output(
                    other, deterministic=True)))
        else:
            layers.append(ElemwiseSumLayer([some(), some()]))
    return [layers[-1]] + ([some()] if rng.randint(2) else [])


@pytest.mark.parametrize("seed", range(16))
def test_networks_drawn_by_chance(float64, quick, seed):
    rng = np.random.RandomState(seed)
    network = draw(rng)
    randomize(network, rng)
    check(network, rng, batches_for(network, rng, 4))


def test_threads_fold_networks_of_their_own(float64, quick):
    def fold(seed):
        rng = np.random.RandomState(seed)
        network = randomize(batch_norm(DenseLayer(
            Marker(dense(InputLayer((None, 5)))), 3)), rng)
        folded, report = fold_batch_norm(network, return_report=True)
        return network, folded, [entry.into for entry in report]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fold, range(12)))
    rng = np.random.RandomState(1)
    for network, folded, layers in found[::4]:
        assert layers == get_all_layers(network)[1::2]
        batches = batches_for(network, rng)
        expected, actual = (
            compiled(each, get_output(each, deterministic=True))(*batches)
            for each in (network, folded))
        assert_close(actual, expected, "float64")


# --- precision, and objects of all kinds -----------------------------------

@pytest.mark.parametrize("mean, folds", [(90, True), (110, False)])
def test_large_means_before_weights(rng, floatX, quick, mean, folds):
    """What a layer subtracts, the weights after it would multiply first."""
    incoming = InputLayer((None, 5))
    norm = BatchNormLayer(incoming, mean=[0, -mean, 0, 0, 1], std=0.99)
    network = dense(norm)
    batch = mean + rng.normal(size=(6, 5)).astype(floatX)
    _, report = check(network, rng, [batch])
    assert (report[0].into is network) == folds
    assert folds or ("its mean is 110 standard deviations from zero"
                     in str(report[0]))
    # Into the layer before, it makes no difference: what is normalized has
    # been multiplied anyway.
    norm = BatchNormLayer(dense(incoming), mean=mean, std=0.99)
    assert check(norm, rng)[1][0].into is norm.input_layer


class Doubled(object):
    """A nonlinearity that seems to be nothing."""

    def __call__(self, x):
        return 2 * x

    def __len__(self):
        return 0


def test_nonlinearity_that_is_false(rng, float64, quick, x):
    nonlinearity = Doubled()
    network = BatchNormLayer(dense(x), nonlinearity=nonlinearity)
    folded, _ = check(randomize(network, rng), rng)
    assert folded.nonlinearity is nonlinearity


@later
def test_layers_that_are_inputs_and_attributes(rng, float64, quick):
    """Lasagne's recurrent layers keep what they start from twice."""
    sequence = InputLayer((3, 6, 5))
    start = batch_norm(DenseLayer(InputLayer((3, 5)), 4))
    network = lasagne.layers.GRULayer(sequence, 4, hid_init=start)
    folded, report = fold_batch_norm(network, return_report=True)
    assert report[0].into is start.input_layer
    assert folded.hid_init in folded.input_layers
    assert type(folded.hid_init) is DenseLayer
    check(randomize(network, rng), rng)


def test_who_refers_is_named_once(x):
    holder = dense(x)
    norm = BatchNormLayer(dense(x), name="norm")
    holder.norms, holder.name = [norm, norm], "holder"
    network = lasagne.layers.ElemwiseSumLayer([holder, norm])
    _, report = fold_batch_norm(network, return_report=True)
    assert str(report[0]).endswith(
        "BatchNormLayer 'norm' is referred to by DenseLayer 'holder'")
