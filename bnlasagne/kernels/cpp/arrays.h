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

inline bool prepare_vector(PyArrayObject** output, npy_intp size, int type) {
    return prepare(output, 1, &size, type);
}

/* No version of NumPy has more dimensions. */
const int MOST_AXES = 64;

/* The same for an array with the given one's sizes from axis `first` up to, and
 * without, `end`; with size 1 along the other axes, but for the first one if it
 * has virtual batches. */
inline bool prepare_statistic(PyArrayObject** output, PyArrayObject* array,
                              int first, int end, npy_intp virtual_batches) {
    npy_intp shape[MOST_AXES];
    for (int axis = 0; axis < PyArray_NDIM(array); ++axis)
        shape[axis] = axis >= first && axis < end ? PyArray_DIM(array, axis)
                      : axis ? 1 : virtual_batches;
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

inline bool mismatch(const char* name, int axis, npy_intp wanted,
                     npy_intp found) {
    PyErr_Format(PyExc_ValueError,
                 "batch normalization: %s must be of size %zd along axis %d, "
                 "to go with its input, but is of size %zd",
                 name, (Py_ssize_t)wanted, axis, (Py_ssize_t)found);
    return false;
}

/* The values of a mask, which goes with an array that has the parameters' axes
 * from `first` up to, and without, `end`: along the axes before and behind them
 * it has size 1, or is repeated for the array's size. NULL if it does not fit,
 * or if there is no memory. */
inline PyArrayObject* truth(PyArrayObject* mask, PyArrayObject* array,
                            int first, int end) {
    const int axes = PyArray_NDIM(array);
    npy_intp shape[MOST_AXES];
    bool varies[] = {false, false, false};
    const auto block = [=](int axis) {
        return axis < first ? 0 : axis < end ? 1 : 2;
    };
    for (int axis = 0; axis < axes; ++axis) {
        const npy_intp found = PyArray_DIM(mask, axis);
        const npy_intp wanted = block(axis) == 1 ? 1 : PyArray_DIM(array, axis);
        if (found != wanted && found != 1) {
            mismatch("the mask", axis, wanted, found);
            return NULL;
        }
        varies[block(axis)] |= found != 1;
    }
    for (int axis = 0; axis < axes; ++axis)
        shape[axis] = varies[block(axis)] ? PyArray_DIM(array, axis) : 1;
    PyArrayObject* repeated = reinterpret_cast<PyArrayObject*>(
        PyArray_SimpleNew(axes, shape, NPY_BOOL));
    if (repeated && PyArray_CopyInto(repeated, mask) == 0) return repeated;
    Py_XDECREF(repeated);
    return NULL;
}

/* The batch in an array, with the parameters' axes from `first` up to, and
 * without, `end`. `mask` is what truth() made of one, or NULL. Virtual batches
 * have `virtual_size` examples; 0 if there are none. */
inline Batch batch_of(PyArrayObject* array, PyArrayObject* mask, int first,
                      int end, npy_intp virtual_size) {
    Batch batch = {{1, 1, 1}, {NULL, false, false}, 1, 0, 1};
    Index each = 1;  // values per channel of an example
    for (int axis = 0; axis < PyArray_NDIM(array); ++axis) {
        const Index size = PyArray_DIM(array, axis);
        (axis < first ? batch.shape.M
         : axis < end ? batch.shape.C : batch.shape.S) *= size;
        if (axis && (axis < first || axis >= end)) each *= size;
        if (mask && PyArray_DIM(mask, axis) != 1)
            (axis < first ? batch.mask.along_m : batch.mask.along_s) = true;
    }
    if (mask) batch.mask.counts = values<npy_bool>(mask);
    batch.examples = PyArray_DIM(array, 0);
    if (virtual_size) batch.cut(virtual_size, each);
    return batch;
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

/* Whether a statistic is like an average, but along the first axis so many
 * times as large as there are virtual batches. */
inline bool is_statistic(PyArrayObject* statistic, PyArrayObject* average,
                         npy_intp virtual_batches) {
    for (int axis = 0; axis < PyArray_NDIM(average); ++axis) {
        npy_intp wanted = PyArray_DIM(average, axis);
        if (!axis) wanted *= virtual_batches;
        npy_intp found = PyArray_DIM(statistic, axis);
        if (found != wanted)
            return mismatch("a batch's statistic", axis, wanted, found);
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
