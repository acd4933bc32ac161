/* NumPy arrays, as the kernels want them. All functions set a Python error
 * where they fail. */
#ifndef BNLASAGNE_ARRAYS_H
#define BNLASAGNE_ARRAYS_H

namespace bnlasagne {

/* Holds a reference and gives it back. */
class Array {
    PyArrayObject* array_;
    Array(const Array&);
    Array& operator=(const Array&);

  public:
    explicit Array(PyArrayObject* array) : array_(array) {}
    ~Array() { Py_XDECREF(array_); }
    operator PyArrayObject*() const { return array_; }
};

template <typename T> inline T* values(PyArrayObject* array) {
    return static_cast<T*>(PyArray_DATA(array));
}

/* A new reference to the array, or to a copy of it, whose values lie one after
 * the other; NULL if there is no memory. */
inline PyArrayObject* in_order(PyArrayObject* array) {
    return reinterpret_cast<PyArrayObject*>(
        PyArray_FromArray(array, NULL, NPY_ARRAY_CARRAY_RO));
}

/* Makes *output an array of the given shape whose values lie one after the
 * other: the one that is there already, if it fits. */
inline bool prepare(PyArrayObject** output, int ndim, const npy_intp* shape,
                    int type) {
    if (*output && PyArray_NDIM(*output) == ndim
        && PyArray_TYPE(*output) == type && PyArray_ISCARRAY(*output)
        && PyArray_CompareLists(PyArray_DIMS(*output), shape, ndim))
        return true;
    Py_XDECREF(*output);
    *output = reinterpret_cast<PyArrayObject*>(
        PyArray_SimpleNew(ndim, const_cast<npy_intp*>(shape), type));
    return *output != NULL;
}

inline bool prepare_like(PyArrayObject** output, PyArrayObject* array) {
    return prepare(output, PyArray_NDIM(array), PyArray_DIMS(array),
                   PyArray_TYPE(array));
}

inline bool prepare_vector(PyArrayObject** output, npy_intp size) {
    return prepare(output, 1, &size, NPY_FLOAT64);
}

/* The same for an array with the given one's sizes from axis `first` up to, and
 * without, `end`; and with size 1 along the other axes. */
inline bool prepare_statistic(PyArrayObject** output, PyArrayObject* array,
                              int first, int end) {
    npy_intp shape[64];  // no version of NumPy has more dimensions
    for (int axis = 0; axis < PyArray_NDIM(array); ++axis)
        shape[axis] = axis >= first && axis < end
                      ? PyArray_DIM(array, axis) : 1;
    return prepare(output, PyArray_NDIM(array), shape, PyArray_TYPE(array));
}

/* Makes *output the given array, if its values may be overwritten in order;
 * else a new one of its shape. */
inline bool prepare_over(PyArrayObject** output, PyArrayObject* array) {
    if (!PyArray_ISCARRAY(array)) return prepare_like(output, array);
    Py_INCREF(array);
    Py_XDECREF(*output);
    *output = array;
    return true;
}

/* The shape of an array, with the parameters' axes from `first` up to, and
 * without, `end`. */
inline Shape shape_of(PyArrayObject* array, int first, int end) {
    Shape shape = {1, 1, 1};
    for (int axis = 0; axis < PyArray_NDIM(array); ++axis)
        (axis < first ? shape.M : axis < end ? shape.C : shape.S)
            *= PyArray_DIM(array, axis);
    return shape;
}

inline bool mismatch(const char* name, int axis, npy_intp wanted,
                     npy_intp found) {
    PyErr_Format(PyExc_ValueError,
                 "batch normalization: %s must be of size %zd along axis %d, "
                 "to go with its input, but is of size %zd",
                 name, (Py_ssize_t)wanted, axis, (Py_ssize_t)found);
    return false;
}

/* Whether a parameter has the array's size along its own axes, and size 1
 * along the others. */
inline bool is_parameter(PyArrayObject* parameter, const char* name,
                         PyArrayObject* array, int first, int end) {
    for (int axis = 0; axis < PyArray_NDIM(array); ++axis) {
        npy_intp wanted = axis >= first && axis < end
                          ? PyArray_DIM(array, axis) : 1;
        npy_intp found = PyArray_DIM(parameter, axis);
        if (found != wanted) return mismatch(name, axis, wanted, found);
    }
    return true;
}

inline bool is_like(PyArrayObject* other, const char* name,
                    PyArrayObject* array) {
    for (int axis = 0; axis < PyArray_NDIM(array); ++axis)
        if (PyArray_DIM(other, axis) != PyArray_DIM(array, axis))
            return mismatch(name, axis, PyArray_DIM(array, axis),
                            PyArray_DIM(other, axis));
    return true;
}

inline bool is_size(PyArrayObject* vector, const char* name, npy_intp size) {
    return PyArray_DIM(vector, 0) == size
        || mismatch(name, 0, size, PyArray_DIM(vector, 0));
}

}  // namespace bnlasagne

#endif
