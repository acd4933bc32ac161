// What the C loop of theano.scan uses of older Pythons and NumPys, in terms of
// today's. Cython 0.28 wrote its code.

#include <Python.h>
#include <numpy/arrayobject.h>

// In Pyston, Cython's code leaves the insides of Python's objects alone.
#define PYSTON_VERSION "0.6"
#define CYTHON_USE_UNICODE_INTERNALS 0
#define PyCode_HasFreeVars(code) (PyCode_GetNumFree(code) > 0)

// For the lines of a traceback. Each line gets a code object of its own.
#define PyCode_New(args, kwargs, locals, stack, flags, code, consts, names, \
                   vars, free_vars, cells, file, name, line, lines) \
    PyCode_NewEmpty(PyUnicode_AsUTF8(file), PyUnicode_AsUTF8(name), line)
#define PyFrame_SetLineNumber(frame, line) ((void)0)

#ifndef PyUnicode_GET_SIZE
#define PyUnicode_GET_SIZE PyUnicode_GET_LENGTH
#endif
#if PY_VERSION_HEX >= 0x030C0000
// Read only when an exception is raised with a traceback, and none is.
#define curexc_traceback current_exception
#endif
#if PY_VERSION_HEX >= 0x030D0000
#define _PyLong_AsByteArray(number, bytes, size, little_endian, is_signed) \
    (_PyLong_AsByteArray)(number, bytes, size, little_endian, is_signed, 1)
#endif

// Names that Theano defines by the compiler's options.
#define NPY_C_CONTIGUOUS NPY_ARRAY_C_CONTIGUOUS
#define NPY_F_CONTIGUOUS NPY_ARRAY_F_CONTIGUOUS

#if NPY_ABI_VERSION >= 0x02000000
// Only the buffers of Python 2 read these fields.
struct bnlasagne_descr : PyArray_Descr {
    static struct Subarray { PyObject *shape; } *subarray;
    static PyObject *names, *fields;
    static npy_intp elsize;
};
bnlasagne_descr::Subarray *bnlasagne_descr::subarray;
PyObject *bnlasagne_descr::names, *bnlasagne_descr::fields;
npy_intp bnlasagne_descr::elsize;
#define PyArray_Descr bnlasagne_descr
#endif
