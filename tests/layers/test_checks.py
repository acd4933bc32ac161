"""What BatchNormLayer refuses, and what its errors say."""

from bnlasagne import BatchNormLayer, batch_norm

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from hypothesis import given
from hypothesis import strategies as st
from lasagne.layers import DenseLayer, InputLayer, get_output

# Axes

@st.composite
def layers_axes(draw):
    """A number of dimensions, and axes of it in any order and sign."""
    ndim = draw(st.integers(2, 5))
    axes = draw(st.lists(st.integers(0, ndim - 1), unique=True, min_size=1))
    signed = [axis - draw(st.sampled_from([0, ndim])) for axis in axes]
    kind = draw(st.sampled_from([list, tuple]))
    return ndim, sorted(axes), kind(signed)


@given(layers_axes())
def test_axes_are_counted_from_the_start(drawn):
    ndim, positive, axes = drawn
    shape = tuple(range(2, 2 + ndim))
    layer = BatchNormLayer(shape, axes=axes)
    assert layer.axes == tuple(positive)
    assert layer.param_shape() == layer.mean.get_value().shape == tuple(
        1 if axis in positive else size for axis, size in enumerate(shape))


@pytest.mark.parametrize("axes, expected", [
    (None, (0, 2, 3)), ("auto", (0, 2, 3)), (1, (1,)), (-1, (3,)),
    (np.int64(2), (2,))])
def test_axes_that_are_no_tuple(axes, expected):
    assert BatchNormLayer((2, 3, 4, 5), axes=axes).axes == expected


@pytest.mark.parametrize("axes, error, message", [
    (4, ValueError, "axis 4 is out of range .* 4 dimensions"),
    ((0, -5), ValueError, "axis -5 is out of range"),
    ((0, 0), ValueError, "twice"),
    ((1, -3), ValueError, "twice"),
    ((), ValueError, "at least one axis"),
    ("spatial", TypeError, "axes must be"),
    (1.0, TypeError, "axes must be"),
    ((0, "1"), TypeError, "axes must be"),
])
def test_wrong_axes(axes, error, message):
    with pytest.raises(error, match="BatchNormLayer 'bn'.*" + message):
        BatchNormLayer((2, 3, 4, 5), axes=axes, name="bn")


def test_axes_that_were_changed_afterwards():
    layer = BatchNormLayer(InputLayer((None, 3)), name="bn")
    layer.axes = (1,)
    for flag in (False, True):
        with pytest.raises(ValueError, match=r"'bn'.*axes=\(1,\).*Pass axes="):
            get_output(layer, deterministic=flag)


def test_unknown_size():
    BatchNormLayer((64, 2, None), axes=(0, 2))
    with pytest.raises(ValueError) as error:
        BatchNormLayer((64, None, 3), name="bn")
    message = str(error.value)
    assert "BatchNormLayer 'bn' needs specified input sizes" in message
    assert "axis 1" in message
    assert "axes=(0, 1, 2)" in message


# Other arguments

@pytest.mark.parametrize("arguments, error, message", [
    ({"epsilon": -1}, ValueError, "epsilon must be a number from 0 to inf"),
    ({"epsilon": "0.1"}, TypeError, "epsilon must be a number or a scalar"),
    ({"epsilon": float("nan")}, ValueError, "epsilon"),
    ({"alpha": 1.5}, ValueError, "alpha must be a number from 0 to 1"),
    ({"alpha": np.ones(3)}, ValueError, "alpha must be a number"),
    ({"alpha": T.vector()}, ValueError, "alpha must be a scalar"),
    ({"r_max": 0.5}, ValueError, "r_max must be a number from 1 to inf"),
    ({"r_max": "3"}, TypeError, "r_max must be a number or"),
    ({"d_max": -1}, ValueError, "d_max must be a number from 0 to inf"),
    ({"d_max": T.vector()}, ValueError, "d_max must be a scalar"),
    ({"nonlinearity": "rectify"}, TypeError, "nonlinearity must be None or"),
    ({"beta": np.zeros(4)}, ValueError,
     r"beta must have shape \(1, 3\) or \(3,\), got \(4,\)"),
    ({"gamma": "ones"}, TypeError,
     "gamma must be an array.*or a Theano shared variable, got 'ones'"),
    ({"gamma": lambda shape: None}, TypeError, "gamma must be an array"),
    ({"mean": theano.shared(np.zeros(3))}, ValueError,
     "mean must have 2 dimensions"),
    ({"std": None}, TypeError, "std must be an array"),
    ({"std": 1., "inv_std": 1.}, ValueError, "std and inv_std cannot both"),
    ({"inv_std": "x"}, TypeError, "inv_std must be an array, a number, a "
     "callable that returns an array, or the inv_std of another "
     "BatchNormLayer, got 'x'"),
    ({"inv_std": 0}, ValueError, "inv_std must be finite and positive"),
    ({"inv_std": -1}, ValueError, "inv_std must be finite and positive"),
    ({"inv_std": np.nan}, ValueError, "inv_std must be finite and positive"),
    ({"inv_std": T.row()}, ValueError, "inv_std must be .* pass std="),
    ({"inv_std": theano.shared(np.ones((1, 3)))}, ValueError,
     "inv_std must be .* pass std="),
    ({"inv_std": BatchNormLayer((None, 3), epsilon=1).inv_std}, ValueError,
     "inv_std must be .* with the same epsilon"),
])
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match="BatchNormLayer 'bn': " + message):
        BatchNormLayer((None, 3), name="bn", **arguments)


@pytest.mark.parametrize("incoming", [None, [None, 3], np.zeros((2, 3))])
def test_incoming_that_is_no_layer(incoming):
    with pytest.raises(TypeError, match="incoming must be a Layer"):
        BatchNormLayer(incoming)


@pytest.mark.parametrize("name, advice", [
    ("momentum", "alpha"), ("eps", "epsilon"), ("axis", "axes"),
    ("scale", "gamma=None"), ("center", "beta=None"), ("affine", "beta=None"),
    ("track_running_stats", "batch_norm_update_averages"), ("var", "std"),
    ("mode", "one way"), ("alfa", "alpha"), ("colour", "epsilon")])
def test_arguments_of_other_frameworks(name, advice):
    dense = DenseLayer((None, 4), 3)
    before = dict(vars(dense))
    with pytest.raises(TypeError, match=f"no argument {name}.*{advice}"):
        batch_norm(dense, **{name: 0.9})
    assert vars(dense) == before


def test_errors_of_other_base_classes_stay_as_they_are():
    class Refuses(lasagne.layers.Layer):
        def __init__(self, incoming, **kwargs):
            raise TypeError("no such day")

    class Both(BatchNormLayer, Refuses):
        pass

    with pytest.raises(TypeError, match="no such day"):
        Both((None, 3), colour=1)


# Inputs and flags

def test_input_with_wrong_number_of_dimensions():
    layer = BatchNormLayer((None, 3), name="bn")
    with pytest.raises(ValueError, match="'bn' expects .* 2 dimensions.* 3"):
        layer.get_output_for(T.tensor3())


@pytest.mark.parametrize("flag, meant", [
    ("batch_norm_updates_averages", "batch_norm_update_averages"),
    ("batch_norm_use_average", "batch_norm_use_averages"),
    ("batchnorm_use_averages", "batch_norm_use_averages"),
    ("update_averages", "batch_norm_update_averages"),
    ("determinstic", "deterministic")])
def test_misspelled_flags(flag, meant):
    layer = BatchNormLayer(InputLayer((None, 3)), name="bn")
    with pytest.raises(TypeError, match=f"'bn'.*{flag}.*{meant}"):
        get_output(layer, **{flag: False})


def test_flags_of_other_layers_are_let_through():
    get_output(BatchNormLayer(InputLayer((None, 3))), unroll=True,
               deterministic_dropout=True)


@pytest.mark.parametrize("flag, value, error", [
    ("deterministic", T.iscalar(), TypeError),
    ("batch_norm_use_averages", "no", TypeError),
    ("batch_norm_update_averages", [], ValueError)])
def test_flags_of_wrong_types(flag, value, error):
    layer = BatchNormLayer(InputLayer((None, 3)), name="bn")
    with pytest.raises(error, match=f"'bn'.*{flag} must be True"):
        get_output(layer, **{flag: value})


def test_flags_may_be_numbers():
    layer = BatchNormLayer(InputLayer((None, 3)))
    assert get_output(layer, deterministic=np.bool_(True),
                      batch_norm_update_averages=0)


def test_averages_that_are_expressions_cannot_be_updated():
    layer = BatchNormLayer((None, 3), name="bn")
    layer.mean = layer.mean * 2
    layer.get_output_for(T.matrix(), batch_norm_update_averages=False)
    with pytest.raises(ValueError, match="'bn' cannot update .* expression"):
        layer.get_output_for(T.matrix())
