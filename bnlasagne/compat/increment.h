// x[index] += inc and x[index] = inc, along the first axis of an array.

#include <complex>
#include <cstring>

namespace bnlasagne_increment {

// An axis after the first: its size, and the steps of both arrays in bytes.
struct Axis { npy_intp size, to, from; };

struct Rows {
    // As many as NumPy 2 allows; NumPy 1 allows 32.
    Axis axes[64];
    const Axis* end;
    const npy_intp* index;
    npy_intp count;
};

template <typename T, bool add>
inline void write_value(char* to, const char* from)
{
    T& x = *reinterpret_cast<T*>(to);
    const T& inc = *reinterpret_cast<const T*>(from);
    x = add ? static_cast<T>(x + inc) : inc;
}

template <typename T, bool add>
inline void write_row(char* to, const char* from, const Axis* axis,
                      const Axis* end)
{
    const npy_intp width = sizeof(T);
    if (axis == end) {
        write_value<T, add>(to, from);
    } else if (axis + 1 < end) {
        for (npy_intp i = 0; i < axis->size; ++i)
            write_row<T, add>(to + i * axis->to, from + i * axis->from,
                              axis + 1, end);
    } else if (axis->to == width && axis->from == width) {
        // The compiler makes vectors of it.
        for (npy_intp i = 0; i < axis->size; ++i)
            write_value<T, add>(to + i * width, from + i * width);
    } else {
        for (npy_intp i = 0; i < axis->size; ++i)
            write_value<T, add>(to + i * axis->to, from + i * axis->from);
    }
}

template <typename T, bool add>
inline int write_rows(char* x, const char* inc, const Rows& rows)
{
    const Axis& first = rows.axes[0];
    for (npy_intp i = 0; i < rows.count; ++i)
        write_row<T, add>(x + rows.index[i] * first.to, inc + i * first.from,
                          rows.axes + 1, rows.end);
    return 0;
}

template <typename T>
int write(PyArrayObject* x, PyArrayObject* inc, const Rows& rows, int add)
{
    return (add ? write_rows<T, true> : write_rows<T, false>)(
        PyArray_BYTES(x), PyArray_BYTES(inc), rows);
}

int write_any(PyArrayObject* x, PyArrayObject* inc, const Rows& rows, int add)
{
    switch (PyArray_TYPE(x)) {
        case NPY_BOOL: return write<bool>(x, inc, rows, add);
        case NPY_BYTE: return write<npy_byte>(x, inc, rows, add);
        case NPY_UBYTE: return write<npy_ubyte>(x, inc, rows, add);
        case NPY_SHORT: return write<npy_short>(x, inc, rows, add);
        case NPY_USHORT: return write<npy_ushort>(x, inc, rows, add);
        case NPY_INT: return write<npy_int>(x, inc, rows, add);
        case NPY_UINT: return write<npy_uint>(x, inc, rows, add);
        case NPY_LONG: return write<npy_long>(x, inc, rows, add);
        case NPY_ULONG: return write<npy_ulong>(x, inc, rows, add);
        case NPY_LONGLONG: return write<npy_longlong>(x, inc, rows, add);
        case NPY_ULONGLONG: return write<npy_ulonglong>(x, inc, rows, add);
        case NPY_FLOAT: return write<float>(x, inc, rows, add);
        case NPY_DOUBLE: return write<double>(x, inc, rows, add);
        case NPY_CFLOAT: return write<std::complex<float> >(x, inc, rows, add);
        case NPY_CDOUBLE:
            return write<std::complex<double> >(x, inc, rows, add);
    }
    PyErr_SetString(PyExc_TypeError, "unsupported type for a");
    return -1;
}

// Return the indices as positions, counted from the start.
PyArrayObject* positions(PyObject* index, npy_intp size)
{
    // A copy, which is changed here; and x may be its own index.
    PyArrayObject* array = reinterpret_cast<PyArrayObject*>(PyArray_FromAny(
        index, PyArray_DescrFromType(NPY_INTP), 1, 1,
        NPY_ARRAY_CARRAY | NPY_ARRAY_FORCECAST | NPY_ARRAY_ENSURECOPY, NULL));
    if (array == NULL)
        return NULL;
    npy_intp* values = reinterpret_cast<npy_intp*>(PyArray_DATA(array));
    for (npy_intp i = 0; i < PyArray_DIM(array, 0); ++i) {
        if (values[i] < -size || values[i] >= size) {
            PyErr_Format(PyExc_IndexError, "index %zd is out of bounds for "
                         "axis 0 with size %zd", values[i], size);
            Py_DECREF(array);
            return NULL;
        }
        values[i] += values[i] < 0 ? size : 0;
    }
    return array;
}

const void* owner(PyArrayObject* array)
{
    PyObject* base = PyArray_BASE(array);
    return base != NULL && PyArray_Check(base)
        ? owner(reinterpret_cast<PyArrayObject*>(base)) : array;
}

// Return the values in the type of x, apart from the memory of x.
PyArrayObject* cast(PyArrayObject* inc, PyArrayObject* x)
{
    PyArray_Descr* dtype = PyArray_DESCR(x);
    Py_INCREF(dtype);
    int flags = NPY_ARRAY_ALIGNED | NPY_ARRAY_FORCECAST;
    if (owner(inc) == owner(x))
        flags |= NPY_ARRAY_ENSURECOPY;
    return reinterpret_cast<PyArrayObject*>(PyArray_FromAny(
        reinterpret_cast<PyObject*>(inc), dtype, 0, 0, flags, NULL));
}

// Compare the shapes of (count,) + x.shape[1:] and inc, by NumPy's rules.
int lay_out(Rows* rows, PyArrayObject* x, PyArrayObject* inc)
{
    const int added = PyArray_NDIM(x) - PyArray_NDIM(inc);
    bool fits = added >= 0;
    for (int i = 0; fits && i < PyArray_NDIM(x); ++i) {
        Axis& axis = rows->axes[i];
        axis.size = i == 0 ? rows->count : PyArray_DIM(x, i);
        axis.to = PyArray_STRIDE(x, i);
        const npy_intp size = i < added ? 1 : PyArray_DIM(inc, i - added);
        axis.from = size == 1 ? 0 : PyArray_STRIDE(inc, i - added);
        fits = size == 1 || size == axis.size;
    }
    rows->end = rows->axes + PyArray_NDIM(x);
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "the values that are to be added "
                        "or set do not have the shape of what is indexed");
    return fits ? 0 : -1;
}

}  // namespace bnlasagne_increment

static int
inplace_increment(PyArrayObject* x, PyObject* index, PyArrayObject* inc,
                  int add)
{
    using namespace bnlasagne_increment;
    if (PyArray_FailUnlessWriteable(x, "input/output array") < 0)
        return -1;
    int failed = -1;
    PyArrayObject* where = positions(index, PyArray_DIM(x, 0));
    PyArrayObject* values = where == NULL ? NULL : cast(inc, x);
    if (values != NULL) {
        Rows rows;
        rows.index = reinterpret_cast<npy_intp*>(PyArray_DATA(where));
        rows.count = PyArray_DIM(where, 0);
        failed = lay_out(&rows, x, values);
        if (!failed)
            failed = write_any(x, values, rows, add);
    }
    Py_XDECREF(where);
    Py_XDECREF(values);
    return failed;
}
