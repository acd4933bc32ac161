"""The types that Theano gives to numbers, as with NumPy 1.23."""

import bnlasagne  # isort: skip  # noqa: F401  # It repairs the stack.

import warnings

import numpy as np
import pytest
import theano
import theano.tensor as T
from theano.sandbox.multinomial import (
    ChoiceFromUniform,
    MultinomialFromUniform,
)
from theano.tensor.shared_randomstreams import RandomStreams

INTEGERS = [(1, "int8"), (200, "int16"), (1000, "int16"), (-40000, "int32"),
            (2**40, "int64"), (2**63, "uint64"), (-2**63, "int64"),
            (True, "int8")]
FLOATS = [(0.5, "float32"), (0.1, "float64"), (1e300, "float64"),
          (16777217.0, "float64"), (float("inf"), "float32"),
          (float("nan"), "float64")]
TYPED = [(np.float64(0.5), "float64"), (np.float32(0.1), "float32"),
         (np.int64(1), "int64"), (np.array(0.5), "float64"),
         (np.bool_(True), "bool"), (1j, "complex128"), ([1, 2], "int64"),
         ([1, 2.5], "float64"), ([True], "bool")]


@pytest.mark.parametrize("value,dtype", INTEGERS + FLOATS + TYPED)
def test_types_of_constants_in_float64(value, dtype, float64):
    constant = T.constant(value)
    assert constant.dtype == dtype
    np.testing.assert_array_equal(constant.data, value)


@pytest.mark.parametrize("value,dtype", INTEGERS + TYPED + [
    (value, "float32") for value, _ in FLOATS if value != 1e300])
def test_types_of_constants_in_float32(value, dtype):
    with theano.configparser.change_flags(floatX="float32"):
        assert T.constant(value).dtype == dtype


@pytest.mark.parametrize("floatX", ["float32", "float64"])
def test_types_by_the_other_policy(floatX):
    with theano.configparser.change_flags(
            floatX=floatX, cast_policy="numpy+floatX"):
        assert T.constant(1).dtype == "int64"
        assert T.constant(2**63).dtype == "uint64"
        assert T.constant(0.5).dtype == floatX
        assert T.constant(0.1).dtype == floatX
        assert T.constant(np.float64(0.1)).dtype == "float64"
        with pytest.raises(TypeError):
            T.constant(2**64)


def test_a_number_that_fits_no_type(float64):
    with pytest.raises(OverflowError):
        T.constant(2**64)


def test_types_that_are_given(float64):
    with theano.scalar.autocast_float_as("float32"):
        assert T.constant(0.1).dtype == "float32"
    with theano.scalar.autocast_float_as("float64"):
        assert T.constant(0.5).dtype == "float64"
    assert T.constant(0.5).dtype == "float32"


def test_types_of_expressions(float64):
    assert (T.fvector() * 0.1).dtype == "float64"
    assert (T.fvector() * 0.5).dtype == "float32"
    assert (T.bvector() + 200).dtype == "int16"
    assert (T.bvector() + 2**40).dtype == "int64"


def test_no_warning_of_a_number(float64):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert T.constant(1000).dtype == "int16"
        assert T.constant(1e300).dtype == "float64"


@pytest.mark.parametrize("value,dtype,expected", [
    (300, "int8", 44), (-1, "uint8", 255), (2**40 + 5, "int32", 5),
    (-1, "uint64", 2**64 - 1), ([300, -1], "int8", [44, -1])])
def test_integers_keep_their_lowest_bits(value, dtype, expected, mode):
    assert theano._asarray(value, dtype).tolist() == expected
    assert T.constant(value, dtype=dtype).data.tolist() == expected
    x = T.lvector()
    got = theano.function([x], T.cast(x, dtype), mode=mode)(
        np.atleast_1d(value))
    assert got.dtype == dtype
    assert got.tolist() == np.atleast_1d(expected).tolist()


def test_large_integers_keep_their_lowest_bits(mode):
    x = T.TensorType("uint64", [False])()
    got = theano.function([x], T.cast(x, "uint32"), mode=mode)(
        np.array([2**63 + 7], "uint64"))
    assert got.dtype == "uint32"
    assert got.tolist() == [7]


@pytest.mark.parametrize("dtype", ["int32", "float32", "float64"])
def test_one_divided_by_a_number(dtype, mode):
    x = T.vector(dtype=dtype)
    values = np.array([3, 7, 70001], dtype)
    got = theano.function([x], T.inv(x), mode)(values)
    exact = 1.0 / values
    assert got.dtype == exact.dtype
    np.testing.assert_array_equal(got, exact)


def test_a_range_up_to_the_largest_of_a_small_type():
    stream = RandomStreams(1)
    draw = theano.function([], [
        stream.random_integers((50,), 126, 127),
        stream.random_integers((50,), [-3], T.constant([255], dtype="uint8")),
        stream.random_integers((50,), 32767, 32767)])
    small, wide, largest = draw()
    assert set(small) == {126, 127}
    assert -3 <= wide.min() < 60 < 190 < wide.max() <= 255
    assert set(largest) == {32767}


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("offset", [-3, 3])
def test_the_diagonal_of_a_large_matrix(offset, dtype):
    x = T.matrix(dtype=dtype)
    filled = theano.function([x], T.extra_ops.fill_diagonal_offset(
        x, np.array(5, dtype), offset))
    got = filled(np.zeros((400, 200), dtype))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, 5 * np.eye(400, 200, offset))


@pytest.mark.parametrize("draw", [
    MultinomialFromUniform("auto"), ChoiceFromUniform(odtype="auto")])
def test_drawing_for_many_rows(draw, mode):
    rows = T.fmatrix()
    f = theano.function([rows], draw(rows, T.ones_like(rows[:, 0]) / 2, 1),
                        mode)
    got = f(np.tile(np.array([0, 0, 1], "float32"), (200, 1)))
    assert got.shape[0] == 200
    assert (got.argmax(1) == 2).all() or (got == 2).all()


def test_integers_wrap_around_in_inputs():
    x = T.wvector()
    f = theano.function([theano.In(x, allow_downcast=True)], x)
    assert f([2 ** 16 + 3, -1]).tolist() == [3, -1]
    with pytest.raises(TypeError, match="cannot store accurately"):
        theano.function([x], x)([2 ** 16 + 3])


def test_what_no_integer_type_holds():
    with pytest.raises(OverflowError):
        theano._asarray(2**64, "int64")
    assert theano._asarray(2**64, "float64") == 2.0**64


@pytest.mark.parametrize("dtype,number,expected", [
    ("uint8", 200, 203), ("uint8", 1000, 235), ("uint64", np.int64(7), 10),
    ("int8", 300, 47), ("float32", np.float64(0.1), np.float32(3.1)),
    ("float32", 0.1, np.float32(3) + np.float32(0.1))])
def test_a_wider_number_is_added_in_place(dtype, number, expected, mode):
    x = T.vector(dtype=dtype)
    f = theano.function([x], T.inc_subtensor(x[1:], number), mode=mode)
    assert f(np.array([3, 3], dtype)).tolist() == [3, expected]
    assert f.maker.fgraph.outputs[0].dtype == dtype


@pytest.mark.parametrize("dtype,number", [("int32", 0.5), ("float64", 1j)])
def test_a_number_of_a_wider_kind_is_not_added_in_place(dtype, number, mode):
    x = T.vector(dtype=dtype)
    f = theano.function([x], T.inc_subtensor(x[1:], number), mode=mode)
    with pytest.raises(TypeError):
        f(np.array([3, 3], dtype))


def test_a_wider_number_is_added_in_place_in_c():
    x = T.vector(dtype="uint8")
    f = theano.function([x], T.inc_subtensor(x[1:], 200))
    assert f(np.array([3, 3], "uint8")).tolist() == [3, 203]


@pytest.mark.parametrize("dtype,value", [
    ("float32", 0.1), ("float32", 1e300), ("float16", 2**40), ("int8", 300),
    ("uint8", -1), ("complex64", 0.1)])
def test_scalars_refuse_what_they_do_not_hold(dtype, value, float64):
    kind = theano.scalar.get_scalar_type(dtype)
    with pytest.raises(TypeError):
        kind.filter(value)
    with np.errstate(over="ignore"):
        expected = np.asarray(value).astype(dtype)
        assert kind.filter(value, allow_downcast=True) == expected


@pytest.mark.parametrize("dtype,value", [
    ("float32", 0.5), ("float64", 0.1), ("int8", 3), ("uint64", 2**63),
    ("bool", True)])
def test_scalars_take_what_they_hold(dtype, value, float64):
    got = theano.scalar.get_scalar_type(dtype).filter(value)
    assert got == value
    assert got.dtype == dtype


def test_scalars_round_to_floatX():
    with theano.configparser.change_flags(floatX="float32"):
        assert theano.scalar.float32.filter(0.1) == np.float32(0.1)


def test_integers_keep_their_lowest_bits_in_place(mode):
    x = T.vector(dtype="uint8")
    f = theano.function([x], T.ptp(x), mode=mode)
    assert f(np.array([0, 3, 200], "uint8")) == 200


@pytest.mark.parametrize("number,dtype,expected", [
    (5, "int8", 10), (300, "int64", 600), (0.1, "float64", 0.2),
    (1.5, "float32", 3.0), (np.float32(0.1), "float32", np.float32(0.2))])
def test_updates_by_numbers(number, dtype, expected, mode, float64):
    shared = theano.shared(np.zeros((), dtype))
    step = theano.function([], [], updates={shared: shared + number},
                           mode=mode)
    step()
    step()
    assert shared.get_value().dtype == dtype
    assert shared.get_value() == expected


@pytest.mark.parametrize("number,dtype", [
    (5, "uint8"), (300, "int8"), (0.1, "float32"), (1.5, "int8"),
    (1, "bool"), (np.float64(0.5), "float32")])
def test_updates_of_wider_types_are_refused(number, dtype, float64):
    shared = theano.shared(np.zeros((), dtype))
    with pytest.raises(TypeError, match="update must have the same type"):
        theano.function([], [], updates={shared: shared + number})


@pytest.mark.parametrize("dtype,expected", [
    ("int8", -32), ("uint8", 224), ("int16", 12000)])
def test_updates_keep_the_lowest_bits(dtype, expected, mode):
    shared = theano.shared(np.array(120, dtype))
    step = theano.function(
        [], [], updates={shared: T.cast(shared * 10, dtype)}, mode=mode)
    step()
    step()
    assert shared.get_value() == expected


@pytest.mark.parametrize("value,dtype", [
    (5, "int64"), (1.5, "float64"), (True, "bool"),
    (np.float32(0.1), "float32")])
def test_types_of_shared_variables(value, dtype):
    assert theano.shared(value).dtype == dtype


@pytest.mark.parametrize("dtype,value,refused", [
    ("float32", 0.1, True), ("float32", 0.5, False), ("int8", 300, True),
    ("int64", 1.5, True), ("uint8", -1, True), ("float64", 0.1, False)])
def test_inputs_that_lose_precision(dtype, value, refused, quick, float64):
    x = T.scalar(dtype=dtype)
    if refused:
        with pytest.raises(TypeError):
            theano.function([x], x)(value)
    else:
        assert theano.function([x], x)(value) == value
    rounding = theano.function([x], x, allow_input_downcast=True)
    assert rounding(value) == np.asarray(value).astype(dtype)
