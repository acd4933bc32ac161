// What C code that Cython 0.28 wrote needs on Python 3.11 and later.

#include <Python.h>

// Of the Pythons that Cython knew, the one whose inside it did not look at much.
#define PYSTON_VERSION 1
#define PyCode_HasFreeVars(code) (PyCode_GetNumFree(code) > 0)
// For tracebacks: a frame's line is that of its code.
#define PyFrame_SetLineNumber(frame, line)

// The constructor of code objects has other arguments in each Python.
#undef PyCode_New
#define PyCode_New(args, kwargs, locals, stack, flags, code, consts, names, \
                   vars, free, cell, file, name, line, lines) \
    PyCode_NewEmpty(PyUnicode_AsUTF8(file), PyUnicode_AsUTF8(name), line)

#ifndef PyUnicode_GET_SIZE
#define PyUnicode_GET_SIZE PyUnicode_GET_LENGTH
#endif

#if PY_VERSION_HEX >= 0x030d0000
#define _PyLong_AsByteArray(value, bytes, size, little, sign) \
    _PyLong_AsByteArray(value, bytes, size, little, sign, 1)
#endif
