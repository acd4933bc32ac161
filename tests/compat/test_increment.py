"""Adding to rows and setting rows, in the package's C++ and in Theano."""

import bnlasagne  # isort: skip  # noqa: F401  # It repairs the stack.

from pathlib import Path

from bnlasagne.compat import numpy_c_api

import numpy as np
import pytest
import theano
import theano.tensor as T
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16",
          "uint32", "uint64", "float32", "float64", "complex64", "complex128"]
MODULE = """
#include <Python.h>
#include <numpy/arrayobject.h>
%s
static PyObject* increment(PyObject*, PyObject* arguments)
{
    PyArrayObject *x, *inc;
    PyObject* index;
    int add;
    if (!PyArg_ParseTuple(arguments, "OOOi", &x, &index, &inc, &add)
            || inplace_increment(x, index, inc, add))
        return NULL;
    Py_RETURN_NONE;
}
static PyMethodDef methods[] = {
    {"increment", increment, METH_VARARGS, ""}, {NULL, NULL, 0, NULL}};
static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "increment_module", "", -1, methods};
extern "C" __attribute__((visibility("default")))
PyObject* PyInit_increment_module()
{
    import_array();
    return PyModule_Create(&definition);
}
"""


@pytest.fixture(scope="module")
def increment(tmp_path_factory):
    """The function of increment.h, which compiles with NumPy 1, too."""
    if not theano.config.cxx:
        pytest.skip("no C++ compiler")
    code = Path(numpy_c_api.__file__).with_name("increment.h").read_text()
    compiler = theano.gof.cmodule.GCC_compiler
    return compiler.compile_str(
        "increment_module", MODULE % code, preargs=compiler.compile_args(),
        location=str(tmp_path_factory.mktemp("increment"))).increment


def expected(x, index, inc, add):
    """The oracle."""
    x = x.copy()
    if add:
        np.add.at(x, index, inc)
    else:
        for i, position in enumerate(index):
            x[position] = np.broadcast_to(inc, (len(index), *x.shape[1:]))[i]
    return x


@st.composite
def problems(draw):
    """Draw x with any strides, an index, and values that broadcast."""
    shape = draw(arrays.array_shapes(min_dims=1, max_dims=4, max_side=5))
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.RandomState(draw(st.integers(0, 99)))
    steps = tuple(slice(None, None, draw(st.sampled_from([1, 2, -1])))
                  for _ in shape)
    x = integers(rng, [2 * size for size in shape], dtype)[steps]
    x = x.transpose(draw(st.permutations(range(x.ndim))))
    index = rng.randint(-len(x), len(x), draw(st.integers(0, 9))).astype(
        draw(st.sampled_from(["int8", "int32", "int64"])))
    inc_shape = [draw(st.sampled_from([1, size]))
                 for size in (len(index), *x.shape[1:])]
    del inc_shape[:draw(st.integers(0, x.ndim))]
    return x, index, integers(rng, inc_shape, dtype)


def integers(rng, shape, dtype):
    return rng.randint(0, 9, shape).astype(dtype)


@given(problem=problems(), add=st.booleans())
def test_numpy_computes_the_same(increment, problem, add):
    x, index, inc = problem
    wanted = expected(x, index, inc, add)
    increment(x, index, inc, add)
    np.testing.assert_array_equal(x, wanted)


def test_rows_add_up_in_the_order_of_the_indices(increment, rng):
    x = rng.normal(size=(50, 40)).astype("float32")
    inc = rng.normal(size=(1000, 40)).astype("float32") * 1e3
    index = rng.randint(-50, 50, 1000)
    wanted = expected(x, index, inc, True)
    increment(x, index, inc, True)
    np.testing.assert_array_equal(x, wanted)


@pytest.mark.parametrize("to, of", [
    ("int8", "int64"), ("uint8", "float64"), ("float32", "float64"),
    ("float64", "int32"), ("complex64", "float64"), ("bool", "int16")])
def test_values_are_cast(increment, to, of):
    x = np.zeros((3, 2), to)
    inc = np.array([[1, 2], [3, 0]], of)
    increment(x, np.array([2, 0]), inc, True)
    np.testing.assert_array_equal(x[[2, 0]], inc.astype(to))
    assert not x[1].any()


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("wrong", [3, -4, 2**40])
def test_an_index_out_of_range_changes_nothing(increment, wrong, add):
    x = np.ones((3, 2))
    with pytest.raises(IndexError, match=f"{wrong} is out of bounds.*size 3"):
        increment(x, np.array([0, wrong]), x[:2], add)
    assert (x == 1).all()


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (1, 2, 2), (3,)])
def test_values_of_another_shape_change_nothing(increment, shape):
    x = np.ones((3, 2))
    with pytest.raises(ValueError, match="shape"):
        increment(x, np.array([0, 1]), np.ones(shape), True)
    assert (x == 1).all()


def test_x_holds_the_values_and_the_index(increment):
    x = np.arange(6.).reshape(3, 2)
    wanted = expected(x, [2, 0, 1], x[::-1].copy(), True)
    increment(x, np.array([2, 0, 1]), x[::-1], True)
    np.testing.assert_array_equal(x, wanted)
    x = np.array([2, 0, 1])
    increment(x, x, np.array([5, 6, 7]), False)
    np.testing.assert_array_equal(x, [6, 7, 5])


def test_types_that_theano_does_not_compile_are_refused(increment):
    for dtype in ("float16", "longdouble", "U1"):
        with pytest.raises(TypeError, match="unsupported type"):
            increment(np.ones(2, dtype), np.array([0]), np.ones(1, dtype), 1)
    x = np.ones(2)
    x.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        increment(x, np.array([0]), np.ones(1), 1)


def test_a_gradient_of_an_embedding(rng, float64):
    weights, index = T.matrix(), T.imatrix()
    scale = T.tensor3()
    gradient = theano.function(
        [weights, index, scale],
        T.grad((weights[index] * scale).sum(), weights))
    shape, rows = (20, 3), rng.randint(-20, 20, (4, 10)).astype("int32")
    values = rng.normal(size=(4, 10, 3))
    got = gradient(rng.normal(size=shape), rows, values)
    wanted = expected(np.zeros(shape), rows.ravel(), values.reshape(40, 3), 1)
    np.testing.assert_array_equal(got, wanted)
    with pytest.raises(IndexError):
        gradient(np.zeros(shape), rows + 20, values)


@pytest.mark.parametrize("function, add", [
    (T.inc_subtensor, True), (T.set_subtensor, False)])
def test_theano_changes_rows(rng, function, add):
    x, y = T.fmatrix(), T.fvector()
    index = T.lvector()
    change = theano.function([x, index, y], function(x[index], y))
    values = rng.normal(size=(5, 3)).astype("float32")
    row = rng.normal(size=3).astype("float32")
    rows = np.array([1, -1, 1, 0])
    np.testing.assert_array_equal(
        change(values, rows, row), expected(values, rows, row, add))
