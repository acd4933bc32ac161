"""Layers with virtual batches: as if small batches came one by one."""

import pickle
import sys

from bnlasagne import (
    BatchNormLayer,
    CumulativeAverage,
    freeze_batch_norm,
    get_batch_norm_updates,
)

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.common import TOLERANCE, quick, tensor
from helpers.layers import averages
from helpers.masks import draw_mask
from lasagne.layers import InputLayer
from lasagne.nonlinearities import rectify
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = quick

# Examples, their shape, axes, virtual batch size, and what is cut.
CUTS = [
    (12, (3,), None, 4, [4, 4, 4]),
    (14, (3,), None, 4, [4, 4, 4, 2]),
    (13, (3,), None, 4, [4, 4, 5]),  # one value has no statistics
    (5, (3,), None, 4, [5]),
    (4, (3,), None, 4, [4]),
    (3, (3,), None, 4, [3]),
    (2, (3,), None, 1000, [2]),
    (5, (3, 2, 2), None, sys.maxsize, [5]),
    (6, (3,), None, 2, [2, 2, 2]),
    (0, (3,), None, 4, [0]),
    (12, (3, 2, 2), None, 4, [4, 4, 4]),
    (13, (3, 2, 2), None, 4, [4, 4, 4, 1]),
    (3, (3, 2, 2), None, 1, [1, 1, 1]),
    (14, (4, 3), (0, 1), 4, [4, 4, 4, 2]),
    (14, (4, 3), (0, 1, 2), 4, [4, 4, 4, 2]),
    (13, (3, 2, 4), (0, 3), 4, [4, 4, 4, 1]),
]


def compiled(layer, x, wrt=(), **flags):
    """A function of the input and the output's gradient."""
    x, dy = tensor(x), tensor(x)
    output = layer.get_output_for(x, **flags)
    gradients = theano.grad(None, [x, *wrt], known_grads={output: dy})
    return theano.function([x, dy], [output, *gradients])


def cut(array, sizes):
    return np.split(array, np.cumsum(sizes)[:-1])


def in_a_row(layer, x, dy, sizes):
    """Small batches one by one: outputs and gradients as of one batch."""
    function = compiled(layer, x, [layer.gamma, layer.beta])
    found = [function(*each) for each in zip(cut(x, sizes), cut(dy, sizes))]
    y, dx, dgamma, dbeta = zip(*found)
    return [np.concatenate(y), np.concatenate(dx), sum(dgamma), sum(dbeta)]


@pytest.mark.parametrize("n, shape, axes, size, sizes", CUTS)
def test_training(rng, floatX, expressions, n, shape, axes, size, sizes):
    kwargs = {"axes": axes, "alpha": 0.3, "nonlinearity": rectify}
    layer, other = (BatchNormLayer(
        (None,) + shape, virtual_batch_size=each, **kwargs)
        for each in (size, None))
    params = rng.normal(size=(2, *layer.param_shape())).astype(floatX)
    for each in (layer, other):
        each.set_values(**dict(zip(("gamma", "beta"), params)))
    x, dy = rng.normal(1.5, 2, (2, n, *shape)).astype(floatX)
    found = compiled(layer, x, [layer.gamma, layer.beta])(x, dy)
    expected = in_a_row(other, x, dy, sizes)
    for one, two in zip(found, expected):
        assert one.dtype == floatX
        assert_allclose(one, two, rtol=10 * TOLERANCE[floatX]["rtol"],
                        atol=10 * TOLERANCE[floatX]["atol"])
    for one, two in zip(averages(layer), averages(other)):
        assert_allclose(one, two, **TOLERANCE[floatX])


def test_against_the_oracle(rng, float64, expressions):
    layer = BatchNormLayer((None, 3), virtual_batch_size=4, alpha=0.3)
    x, dy = rng.normal(size=(2, 14, 3))
    parts = cut(x, [4, 4, 4, 2])
    y, dx = compiled(layer, x)(x, dy)
    assert_allclose(y, np.concatenate([
        reference.normalize_batch(part, (0,)) for part in parts]))
    assert_allclose(dx, np.concatenate([
        reference.gradient_of_normalize_batch(*each, (0,))[0]
        for each in zip(parts, cut(dy, [4, 4, 4, 2]))]))
    statistics = zip(*(reference.statistics(part, (0,)) for part in parts))
    for average, own, old in zip(averages(layer), statistics, (0, 1)):
        assert_allclose(average, reference.running_average(old, own, 0.3))


@pytest.mark.parametrize("flags", [
    {"deterministic": True}, {"batch_norm_use_averages": True}])
def test_given_statistics(rng, float64, expressions, flags):
    """Outputs are as without; averages follow each virtual batch."""
    layer, other = (BatchNormLayer((None, 3), virtual_batch_size=size, mean=2)
                    for size in (4, None))
    x, dy = rng.normal(size=(2, 14, 3))
    for one, two in zip(*(compiled(each, x, **flags)(x, dy)
                          for each in (layer, other))):
        assert_allclose(one, two)
    other.set_statistics(mean=2, std=1)
    if "deterministic" not in flags:
        in_a_row(other, x, dy, [4, 4, 4, 2])
    for one, two in zip(averages(layer), averages(other)):
        assert_allclose(one, two)


def test_frozen(rng, float64):
    layer = BatchNormLayer((None, 3), virtual_batch_size=4, mean=2)
    freeze_batch_norm(layer)
    x = rng.normal(size=(14, 3))
    assert_allclose(compiled(layer, x)(x, x)[0], (x - 2) / 1.01)
    assert_array_equal(averages(layer)[0], np.full((1, 3), 2))


@pytest.mark.parametrize("alpha", [0, 0.25, 1])
def test_what_is_not_finite_stays_in_its_virtual_batch(
        rng, float64, expressions, alpha):
    layer, other = (BatchNormLayer((None, 3), virtual_batch_size=size,
                                   alpha=alpha) for size in (4, None))
    x, dy = rng.normal(size=(2, 12, 3))
    x[5, 1] = np.nan
    found = compiled(layer, x, [layer.gamma, layer.beta])(x, dy)
    for one, two in zip(found, in_a_row(other, x, dy, [4, 4, 4])):
        assert_allclose(one, two, equal_nan=True)
    assert np.isfinite(found[0][:4]).all()
    assert np.isfinite(found[0][8:]).all()
    for one, two in zip(averages(layer), averages(other)):
        assert np.isfinite(one).all()
        assert_allclose(one, two)


def test_averages_that_are_not_finite(rng, float64, expressions):
    """All weight replaces them, as with a single batch."""
    layer = BatchNormLayer((None, 3), virtual_batch_size=4, alpha=1,
                           mean=np.nan)
    x = rng.normal(size=(12, 3))
    compiled(layer, x)(x, x)
    assert_allclose(averages(layer)[0][0], x[8:].mean(0))


@pytest.mark.parametrize("mask_shape", [(14, 5), (14,), (1, 1, 5)])
def test_masks(rng, float64, expressions, mask_shape):
    kwargs = {"axes": (0, 2), "alpha": 0.3, "mask_input": tuple(
        1 if size == 1 else None for size in mask_shape)}
    layer, other = (BatchNormLayer(
        (None, 3, 5), virtual_batch_size=size, **kwargs)
        for size in (4, None))
    x, dy = rng.normal(size=(2, 14, 3, 5))
    mask = draw_mask(rng, mask_shape)
    if mask_shape[0] > 1:
        mask[4:8] = 0  # a virtual batch in which nothing counts
    x[np.broadcast_to(mask.reshape(
        len(mask), 1, -1), x.shape) == 0] = np.nan

    def run(layer):
        inputs = [tensor(x), tensor(mask)]
        gradient = tensor(dy)
        output = layer.get_output_for(inputs)
        return theano.function([*inputs, gradient], [output, *theano.grad(
            None, [inputs[0], layer.gamma, layer.beta],
            known_grads={output: gradient})])

    found = run(layer)(x, mask, dy)
    function, sizes = run(other), [4, 4, 4, 2]
    masks = cut(mask, sizes) if len(mask) > 1 else [mask] * 4
    y, dx, dgamma, dbeta = zip(*(
        function(*each) for each in zip(cut(x, sizes), masks,
                                        cut(dy, sizes))))
    for one, two in zip(found, (np.concatenate(y), np.concatenate(dx),
                                sum(dgamma), sum(dbeta))):
        assert_allclose(one, two, atol=1e-12)
    for one, two in zip(averages(layer), averages(other)):
        assert_allclose(one, two)


def test_renormalization(rng, float64, expressions):
    """Each virtual batch is corrected by the averages before the call."""
    kwargs = {"r_max": 1.5, "d_max": 0.4, "gamma": 2, "beta": 1}
    layer, other = (BatchNormLayer((None, 3), virtual_batch_size=size,
                                   **kwargs) for size in (4, None))
    x, dy = rng.normal(1, 3, (2, 14, 3))
    found = compiled(layer, x, [layer.gamma, layer.beta])(x, dy)
    function = compiled(other, x, [other.gamma, other.beta],
                        batch_norm_update_averages=False)
    y, dx, dgamma, dbeta = zip(*(
        function(*each) for each in zip(cut(x, [4, 4, 4, 2]),
                                        cut(dy, [4, 4, 4, 2]))))
    for one, two in zip(found, (np.concatenate(y), np.concatenate(dx),
                                sum(dgamma), sum(dbeta))):
        assert_allclose(one, two)
    in_a_row(other, x, dy, [4, 4, 4, 2])
    for one, two in zip(averages(layer), averages(other)):
        assert_allclose(one, two)


def test_schedule(rng, float64, expressions):
    """All virtual batches of a call have the weight of that call."""
    layer = BatchNormLayer((None, 3), virtual_batch_size=4,
                           alpha=CumulativeAverage())
    x = rng.normal(size=(2, 8, 3))
    function = compiled(layer, x[0])
    expected = 0
    for call, batch in enumerate(x, 1):
        function(batch, batch)
        for part in cut(batch, [4, 4]):
            expected = expected + (part.mean(0) - expected) / call
    assert_allclose(averages(layer)[0][0], expected)
    assert CumulativeAverage.of(layer).count == 2


@pytest.mark.parametrize("combine", ["chain", "pool"])
def test_explicit_updates(rng, float64, expressions, combine):
    layer = BatchNormLayer((None, 3), virtual_batch_size=4, alpha=0.3)
    x = rng.normal(size=(2, 14, 3))
    variables = T.dmatrices(2)
    outputs = [layer.get_output_for(
        each, batch_norm_update_averages="explicit") for each in variables]
    theano.function(variables, outputs, updates=get_batch_norm_updates(
        outputs, combine=combine))(*x)
    parts = [part for batch in x for part in cut(batch, [4, 4, 4, 2])]
    if combine == "pool":
        parts = [np.concatenate(parts)]
    statistics = zip(*(reference.statistics(part, (0,)) for part in parts))
    for average, own, old in zip(averages(layer), statistics, (0, 1)):
        assert_allclose(average, reference.running_average(old, own, 0.3))


def test_two_applications_in_a_function(rng, float64, expressions):
    layer = BatchNormLayer((None, 3), virtual_batch_size=4, alpha=0.3)
    x = rng.normal(size=(2, 14, 3))
    variables = T.dmatrices(2)
    theano.function(variables, [layer.get_output_for(each)
                                for each in variables])(*x)
    statistics = zip(*(reference.statistics(part, (0,)) for batch in x
                       for part in cut(batch, [4, 4, 4, 2])))
    for average, own, old in zip(averages(layer), statistics, (0, 1)):
        assert_allclose(average, reference.running_average(old, own, 0.3))


def test_old_pickles(rng):
    layer = BatchNormLayer(InputLayer((None, 3)))
    del vars(layer)["virtual_batch_size"]
    other = pickle.loads(pickle.dumps(layer))
    assert other.virtual_batch_size is None
    other.get_output_for(T.matrix())


@pytest.mark.parametrize("shape, axes, size", [
    ((None, 3), None, 0), ((None, 3), None, -4), ((None, 3), None, 1),
    ((None, 3, 1), None, 1)])
def test_too_small(shape, axes, size):
    with pytest.raises(ValueError, match="'bn': virtual_batch_size must be "
                       f"such that .* got {size}"):
        BatchNormLayer(shape, axes=axes, virtual_batch_size=size, name="bn")


@pytest.mark.parametrize("size", ["8", 8., True, T.iscalar()])
def test_wrong_type(size):
    with pytest.raises(TypeError, match="must be None or a whole number"):
        BatchNormLayer((None, 3), virtual_batch_size=size)


def test_first_axis_must_be_normalized_over():
    with pytest.raises(ValueError, match="'bn': virtual_batch_size cuts "
                       r"batches along axis 0.* axes are \(1,\)"):
        BatchNormLayer((5, 3), axes=(1,), virtual_batch_size=4, name="bn")
