"""Have Theano type and convert Python's numbers as with NumPy 1."""

import functools

from .importing import view
from .numpy import keeps_lowest_bits

__all__ = [
    "add_numbers_in_place",
    "cast_numbers_in_place",
    "compare_numbers_in_full",
    "count_in_64_bits",
    "divide_in_full",
    "filter_numbers_in_full",
    "let_integers_wrap",
]

_KINDS = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}


def add_numbers_in_place(subtensor):
    """Let `inc_subtensor()` add numbers of wider types, as int16 to uint8.

    NumPy 1 took the type of the array if the number, an array without axes,
    was no wider in kind. NumPy 2 refuses, or adds float64 to float32 in double
    precision. This goes with Theano 1.0.5.
    """
    op, np = subtensor.IncSubtensor, subtensor.np
    if np.result_type(np.zeros(1, "f4"), np.zeros((), "f8")) == "f4":
        return
    make_node = op.make_node

    @functools.wraps(make_node)
    def make_node_with_cast(self, x, y, *indices):
        x, y = map(subtensor.theano.tensor.as_tensor_variable, (x, y))
        axes = x.ndim - sum(not isinstance(index, slice)
                            for index in self.idx_list)
        wider = _KINDS[np.dtype(y.dtype).kind] > _KINDS[np.dtype(x.dtype).kind]
        if axes and not (y.ndim or wider or self.set_instead_of_inc):
            y = y.astype(x.dtype)
        return make_node(self, x, y, *indices)

    op.make_node = make_node_with_cast


def cast_numbers_in_place(elemwise):
    """Let an Op without C code write integers in place as in a new array.

    It casts arrays of Python numbers, but not the single number that NumPy
    gives instead of an array without axes. This goes with Theano 1.0.5.
    """
    np = elemwise.np
    if keeps_lowest_bits(np):
        return

    def frompyfunc(function, nin, nout):
        ufunc = np.frompyfunc(function, nin, nout)

        def call(*inputs):
            outputs = ufunc(*inputs)
            if nout == 1:
                return np.asarray(outputs, object)
            return tuple(np.asarray(output, object) for output in outputs)

        call.nout, call.reduce = nout, ufunc.reduce
        return call

    elemwise.np = view(np, frompyfunc=frompyfunc)


def compare_numbers_in_full(scalar):
    """Let Theano take the smallest type that holds a Python number exactly.

    It compares the number to its values in one type after the other. NumPy 2
    rounds a Python number to the type of what it is compared to, so that 0.1
    equals its value in float32. This goes with Theano 1.0.5.
    """
    caster, np = scalar.NumpyAutocaster, scalar.np
    call = caster.__call__
    if keeps_lowest_bits(np):
        return

    @functools.wraps(call)
    def call_with_candidates(self, number):
        if (scalar.config.cast_policy == "custom"
                and not hasattr(number, "dtype")):
            self = caster(candidates(np.asarray(number), self.dtypes))
        return call(self, number)

    def candidates(value, dtypes):
        # Theano rounds a float to floatX. If no type fits, it takes the last.
        with np.errstate(all="ignore"):
            return [dtype for dtype in dtypes if dtype == dtypes[-1]
                    or dtype == scalar.config.floatX
                    or value.astype(dtype) == value]

    caster.__call__ = call_with_candidates


def filter_numbers_in_full(scalar):
    """Let scalar types refuse a Python number that they do not hold exactly.

    Like `compare_numbers_in_full`, for the values of scalar variables.
    """
    kind, np = scalar.Scalar, scalar.np
    filter_ = kind.filter
    if keeps_lowest_bits(np):
        return

    @functools.wraps(filter_)
    def filter_typed(self, data, strict=False, allow_downcast=None):
        rounded = allow_downcast is None and self.dtype == scalar.config.floatX
        if (isinstance(data, (int, float, complex)) and not strict
                and not (rounded and type(data) is float)):
            data = np.asarray(data)[()]
        return filter_(self, data, strict, allow_downcast)

    kind.filter = filter_typed


# The Ops without C code that calculate with an input and a number of Python's,
# and what one of them calls.
_COUNTING = ("FillDiagonalOffset", "MultinomialFromUniform",
             "ChoiceFromUniform", "random_integers_helper")


def count_in_64_bits(module):
    """Give the integers that some Ops count with to them in 64 bits.

    Theano's constants have small types: 127 is an int8. NumPy 1 computed
    127 + 1 and 127 * 200 in 64 bits, NumPy 2 does in 8. This goes with Theano
    1.0.5.
    """
    np = module.np
    if (np.int8(1) + 1).dtype == "int64":
        return
    for name in set(_COUNTING) & set(vars(module)):
        counting = getattr(module, name)
        if isinstance(counting, type):
            counting.perform = _perform_in_64_bits(counting.perform)
        else:
            setattr(module, name, _in_64_bits(counting))


def _perform_in_64_bits(perform):
    @functools.wraps(perform)
    def perform_in_64_bits(self, node, inputs, outputs):
        # An array is not to change its type.
        return perform(self, node, [
            value if value.ndim else _widened(value) for value in inputs
        ], outputs)
    return perform_in_64_bits


def _in_64_bits(function):
    @functools.wraps(function)
    def function_in_64_bits(random_state, low, high, size):
        return function(random_state, _widened(low), _widened(high), size)
    return function_in_64_bits


def _widened(value):
    dtype = value.dtype
    small = dtype.kind in "iu" and dtype.itemsize < 8
    return value.astype("int64") if small else value


def divide_in_full(scalar):
    """Let `inv` divide in double precision, in Python as in C.

    It divides a one of NumPy's float32 by the number that it gets. NumPy 2
    gives the quotient this type if the number is one of Python's.
    """
    inv, np = scalar.Inv, scalar.np
    impl = inv.impl
    if (np.float32(1.0) / 3.0).dtype == "float64":
        return

    @functools.wraps(impl)
    def impl_in_full(self, number):
        return impl(self, np.asarray(number)[()])

    inv.impl = impl_in_full


def let_integers_wrap(scalar):
    """Let casts to integers keep the lowest bits, in Python as in C.

    An Op without C code gets Python integers, and NumPy 2 refuses those that
    do not fit the type. This goes with Theano 1.0.5.
    """
    cast, np = scalar.Cast, scalar.np
    impl = cast.impl
    if keeps_lowest_bits(np):
        return

    @functools.wraps(impl)
    def wrapping(self, number):
        if self.o_type in scalar.integer_types:
            return np.asarray(number, self.o_type.dtype)[()]
        return impl(self, number)

    cast.impl = wrapping
