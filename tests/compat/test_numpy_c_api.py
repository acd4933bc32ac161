"""What Theano compiles against: NumPy 1's C API, in terms of NumPy 2."""

import bnlasagne  # isort: skip  # noqa: F401  # It repairs the stack.


import numpy as np
import pytest
import theano
import theano.tensor as T
from theano.gof import cmodule

NUMPY_2 = int(np.__version__.split(".")[0]) >= 2
MODULE = """
#include <numpy/noprefix.h>
#include <numpy/npy_3kcompat.h>
static PyObject* of_array(PyObject*, PyObject* argument)
{
    PyArrayObject* x = (PyArrayObject*) argument;
    const npy_complex128* values = (npy_complex128*) PyArray_DATA(x);
    const long size = PyInt_AsLong(PyInt_FromLong(PyArray_DESCR(x)->elsize));
    PyObject* sum = PyArray_Sum(x, NPY_MAXDIMS, NPY_CDOUBLE, NULL);
    return Py_BuildValue("ldd(N)", size, values[1].real, values[1].imag, sum);
}
static PyMethodDef methods[] = {
    {"of_array", of_array, METH_O, ""}, {NULL, NULL, 0, NULL}};
static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "c_api_module", "", -1, methods};
extern "C" __attribute__((visibility("default")))
PyObject* PyInit_c_api_module()
{
    import_array();
    return PyModule_Create(&definition);
}
"""
needs_compiler = pytest.mark.skipif(
    not theano.config.cxx, reason="no C++ compiler")


@needs_compiler
def test_names_of_numpy_1_compile(tmp_path):
    module = cmodule.GCC_compiler.compile_str(
        "c_api_module", MODULE, location=str(tmp_path),
        preargs=cmodule.GCC_compiler.compile_args())
    values = np.array([[1 + 2j, 3 + 4j]])
    assert module.of_array(values) == (16, 3, 4, (4 + 6j,))


@needs_compiler
def test_argmax_over_all_axes_and_complex_numbers(rng):
    x, z = T.dmatrix(), T.zvector()
    values = rng.normal(size=(3, 4))
    numbers = rng.normal(size=3) + 1j * rng.normal(size=3)
    compute = theano.function([x, z], [T.argmax(x), z * z])
    where, squares = compute(values, numbers)
    assert where == values.argmax()
    np.testing.assert_allclose(squares, numbers * numbers)


def test_modules_of_numpy_1_and_2_are_told_apart():
    keys = [flag for flag in cmodule.GCC_compiler.compile_args()
            if "BNLASAGNE_NUMPY_2" in flag]
    assert len(keys) == NUMPY_2
