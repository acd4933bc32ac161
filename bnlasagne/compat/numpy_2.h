// What Theano's C++ code uses of NumPy 1, in terms of NumPy 2.

// With it, the fields of a type (`elsize`) can be read.
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>

// Python 3's names for Python 2's. Theano asks for NPY_PY3K which to use.
#define NPY_PY3K 1
#define PyInt_Check PyLong_Check
#define PyInt_AsLong PyLong_AsLong
#define PyInt_FromLong PyLong_FromLong

// Theano uses it for "all axes" only.
#undef NPY_MAXDIMS
#define NPY_MAXDIMS NPY_RAVEL_AXIS

// In C++, the parts of a complex number have no names any more. The memory is
// the same.
struct bnlasagne_complex64 { float real, imag; };
struct bnlasagne_complex128 { double real, imag; };
#define npy_complex64 bnlasagne_complex64
#define npy_complex128 bnlasagne_complex128

