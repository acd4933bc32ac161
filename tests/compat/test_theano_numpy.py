"""Theano's Ops compute with new versions of NumPy as with old ones."""

import bnlasagne  # isort: skip  # noqa: F401  # It repairs the stack.

import io

import numpy as np
import pytest
import theano
import theano.tensor as T
from theano.misc import pkl_utils
from theano.tensor.signal.pool import pool_2d


# Of NumPy from 1.20 up to 2.3.
@pytest.mark.filterwarnings("ignore:in the future the `.dtype` attribute")
def test_variables_and_types_are_dtypes():
    assert np.zeros((), T.fmatrix).dtype == "float32"
    assert np.dtype(T.fmatrix()) == np.dtype(theano.scalar.float32)
    with pytest.raises(TypeError):
        np.dtype(theano.tensor.raw_random.random_state_type)
    # It asks for the type that two variables have in common.
    assert T.ceil_intdiv(T.iscalar(), T.lscalar()).dtype == "int64"


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("op", [
    theano.scalar.exp, T.nnet.sigm.scalar_softplus])
def test_small_integers_are_computed_in_float32(op, dtype):
    x = theano.scalar.get_scalar_type(dtype)()
    mode = theano.Mode(linker="py", optimizer=None)
    got = theano.function([x], op(x), mode)(3)
    assert got.dtype == "float32"
    y = theano.scalar.float32()
    expected = theano.function([y], op(y), mode)(3)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_inverse_of_unique_is_a_vector():
    x = T.matrix()
    outputs = T.extra_ops.Unique(True, True, True)(x)
    values = np.array([[3, 1, 3]], x.dtype)
    got = theano.function([x], outputs, theano.Mode(linker="py"))(values)
    assert [output.tolist() for output in got] == [
        [1, 3], [1, 0], [1, 0, 1], [1, 2]]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("k", [1, 3, -2])
def test_the_largest_values(k, axis):
    x = T.matrix()
    values = np.random.RandomState(1).permutation(20).reshape(4, 5)
    outputs = T.topk_and_argtopk(x, k, axis, sorted=False)
    largest, where = theano.function([x], outputs)(values.astype(x.dtype))
    in_order = np.sort(values, axis)
    expected = np.take(in_order, range(-k, 0) if k > 0 else range(-k), axis)
    assert type(largest) is type(where) is np.ndarray
    np.testing.assert_array_equal(np.sort(largest, axis), expected)
    np.testing.assert_array_equal(
        np.take_along_axis(values, where, axis), largest)


def test_values_and_indices_are_in_one_order():
    x = T.vector()
    values = np.random.RandomState(1).rand(257).astype(x.dtype)
    # Apart: one Op that gives both takes the values by the indices.
    f = theano.function([x], T.topk(x, 129, sorted=False))
    g = theano.function([x], T.argtopk(x, 129, sorted=False))
    np.testing.assert_array_equal(f(values), values[g(values)])


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("kind", ["max", "sum", "average_inc_pad"])
def test_pooling_in_python(kind, pad):
    x = T.tensor4()
    mode = theano.Mode(linker="py")
    pooled = pool_2d(
        x, (2, 2), ignore_border=True, pad=(pad, pad), mode=kind)
    weights = np.arange(1.0, pad + 5).astype(x.dtype)[:2 + pad]
    f = theano.function(
        [x], [pooled, theano.grad((pooled * weights).sum(), x)], mode)
    values = np.random.RandomState(1).rand(2, 3, 4, 4).astype(x.dtype)
    got, gradient = f(values)
    assert type(got) is type(gradient) is np.ndarray
    edges = ((0, 0), (0, 0), (pad, pad), (pad, pad))
    padded = np.pad(values, edges, "constant")
    n = 2 + pad
    parts = padded.reshape(2, 3, n, 2, n, 2).transpose(0, 1, 2, 4, 3, 5)
    parts = parts.reshape(2, 3, n, n, 4)
    reduce = {"max": np.max, "sum": np.sum, "average_inc_pad": np.mean}[kind]
    np.testing.assert_allclose(got, reduce(parts, -1), rtol=1e-5)
    share = {"max": parts == parts.max(-1, keepdims=True),
             "sum": np.ones(parts.shape),
             "average_inc_pad": np.full(parts.shape, 0.25)}[kind]
    expected = (share * weights[:, None]).reshape(2, 3, n, n, 2, 2)
    expected = expected.transpose(0, 1, 2, 4, 3, 5).reshape(padded.shape)
    inside = slice(pad, padded.shape[2] - pad)
    np.testing.assert_allclose(
        gradient, expected[:, :, inside, inside], rtol=1e-5)


def test_arrays_are_dumped_beside_the_pickle():
    file = io.BytesIO()
    pkl_utils.dump([theano.shared(np.arange(3), "x")], file)
    file.seek(0)
    assert np.load(file)["x"].tolist() == [0, 1, 2]
    loaded, = pkl_utils.load(file)
    assert loaded.get_value().tolist() == [0, 1, 2]


@pytest.mark.filterwarnings("error::numpy.exceptions.ComplexWarning"
                            if hasattr(np, "exceptions") else "error")
def test_real_eigenvalues_stay_real(rng):
    x = T.dmatrix()
    values = rng.normal(size=(3, 3))
    values = values.dot(values.T)
    eig = theano.function([x], T.nlinalg.eig(x), theano.Mode("py", None))
    for got, expected in zip(eig(values), np.linalg.eig(values)):
        assert got.dtype == "float64"
        np.testing.assert_array_equal(got, expected.real)


def test_debug_mode_changes_a_value_without_axes():
    total, x = theano.shared(np.asarray(1.)), T.dscalar()
    add = theano.function([x], total * x, updates=[(total, total + x)],
                          mode=theano.compile.DebugMode(check_c_code=False))
    assert [float(add(value)) for value in (2., 3.)] == [2., 9.]
    assert total.get_value() == 6


@pytest.mark.filterwarnings("ignore:tostring")  # With NumPy before 2.3.
def test_digests_of_arrays():
    digest = theano.printing.hex_digest
    assert digest(np.ones((2, 3))) == digest(np.ones((2, 3)))
    assert digest(np.ones((2, 3))) != digest(np.zeros((2, 3)))
