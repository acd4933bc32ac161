// What Theano's C++ code uses of NumPy 1, in terms of NumPy 2.

#include <Python.h>
// With it, the fields of a type (`elsize`) can be read.
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>
#include <numpy/arrayscalars.h>

#if NPY_ABI_VERSION >= 0x02000000

// Python 3's names for Python 2's; Theano asks for NPY_PY3K which to use.
#ifndef NPY_PY3K
#define NPY_PY3K 1
#endif
#ifndef PyInt_Check
#define PyInt_Check PyLong_Check
#define PyInt_CheckExact PyLong_CheckExact
#define PyInt_AsLong PyLong_AsLong
#define PyInt_AS_LONG PyLong_AsLong
#define PyInt_FromLong PyLong_FromLong
#define PyNumber_Int PyNumber_Long
#define PyString_Check PyUnicode_Check
#define PyString_FromFormat PyUnicode_FromFormat
#define PyString_FromString PyUnicode_FromString
#define PyString_AsString PyUnicode_AsUTF8
#endif

// Theano uses it for "all axes" only.
#undef NPY_MAXDIMS
#define NPY_MAXDIMS NPY_RAVEL_AXIS

// In C++, the parts of a complex number have no names any more. The memory is
// the same.
struct bnlasagne_complex64 { float real, imag; };
struct bnlasagne_complex128 { double real, imag; };
#define npy_complex64 bnlasagne_complex64
#define npy_complex128 bnlasagne_complex128

#endif
