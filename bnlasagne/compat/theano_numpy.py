"""Let Theano's Ops compute with NumPy 2 what they computed before.

Each repair first tries whether NumPy still does what the Op expects of it. All
go with Theano 1.0.5.
"""

import functools
import warnings
from types import CodeType, FunctionType, SimpleNamespace

from .importing import view

__all__ = [
    "be_dtypes",
    "call_methods_by_new_names",
    "flatten_inverse_of_unique",
    "index_by_lists",
    "partition_by_indices",
    "keep_eigenvalues_real",
    "take_short_signatures",
]


def be_dtypes(utils):
    """Let NumPy take Theano's variables and types for their dtypes.

    Since 2.4, it refuses an object whose attribute `dtype` is a string.
    """
    np, node_or_type = utils.np, utils.object2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy 1.20 and later warn.
        try:
            np.dtype(SimpleNamespace(dtype="int8"))
        except ValueError:
            node_or_type.__numpy_dtype__ = property(
                lambda self: np.dtype(self.dtype))


def take_short_signatures(module):
    """Let the scalar Ops of a module ask NumPy for float32 by ``sig="f"``.

    They do so for int8 and uint8. NumPy 2 refuses it, earlier ones warn.
    """
    np = module.np
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            np.exp(np.int8(0), sig="f")
        except (DeprecationWarning, TypeError):
            module.np = view(np, **{
                name: _with_signature(value) for name, value in
                vars(np).items() if isinstance(value, np.ufunc)})


def _with_signature(ufunc):
    @functools.wraps(ufunc)
    def call(*args, sig=None, **options):
        if sig:
            options["dtype"] = sig
        return ufunc(*args, **options)
    return call


def flatten_inverse_of_unique(extra_ops):
    """Give the output `inverse` of `Unique` one axis, whatever NumPy gives it.

    NumPy 2 gives it the shape of the input.
    """
    np, op = extra_ops.np, extra_ops.Unique
    if np.unique([[0]], return_inverse=True)[1].ndim == 1:
        return
    perform = op.perform

    @functools.wraps(perform)
    def flat(self, node, inputs, outputs):
        perform(self, node, inputs, outputs)
        for output in outputs[1:]:
            output[0] = output[0].ravel()

    op.perform = flat


def index_by_lists(module):
    """Let pooling without C code and `topk` index by lists of slices.

    NumPy 1.23 takes a tuple only, earlier ones warn.
    """
    np = module.np
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            np.zeros(1)[[slice(None)]]
            return
        except (FutureWarning, IndexError):
            pass

    class Array(np.ndarray):
        """Takes such a list for the tuple that it stands for."""

        def __getitem__(self, key):
            return super().__getitem__(_as_tuple(key))

        def __setitem__(self, key, value):
            super().__setitem__(_as_tuple(key), value)

    # Where the Ops pad an image.
    module.np = view(np, zeros=lambda *arguments, **keywords: np.zeros(
        *arguments, **keywords).view(Array))
    for op in vars(module).values():
        if isinstance(op, type) and "perform" in vars(op):
            op.perform = _perform_on(Array, op.perform, np.asarray)


def _as_tuple(key):
    return tuple(key) if isinstance(key, list) else key


def _perform_on(array, perform, plain):
    """Make an Op compute with another kind of array, and give plain ones."""
    @functools.wraps(perform)
    def perform_on(self, node, inputs, outputs, *params):
        perform(self, node, [value.view(array) for value in inputs], outputs,
                *params)
        for output in outputs:
            output[0] = plain(output[0])
    return perform_on


def keep_eigenvalues_real(nlinalg):
    """Let `eig` return real numbers where the imaginary parts are zeros.

    NumPy returns complex numbers since 2.5, and warns when Theano casts them.
    """
    np, op = nlinalg.np, nlinalg.Eig
    if np.linalg.eig(np.eye(1))[0].dtype.kind != "c":
        return

    def eig(matrix):
        values, vectors = np.linalg.eig(matrix)
        if matrix.dtype.kind == "c" or values.imag.any():
            return values, vectors
        return values.real, vectors.real

    op._numop = staticmethod(eig)


def call_methods_by_new_names(module):
    """Let a module call methods of arrays that NumPy 2 has renamed or removed.

    `itemset` is gone since 2.0, `tostring` since 2.3. Of an array without
    axes, `fill` sets the one value, too.
    """
    names = {old: new for old, new in (
        ("itemset", "fill"), ("tostring", "tobytes"))
        if not hasattr(module.np.ndarray, old)}
    own = [value for value in vars(module).values()
           if getattr(value, "__module__", None) == module.__name__]
    methods = [value for part in own if isinstance(part, type)
               for value in vars(part).values()]
    for function in own + methods:
        if names and isinstance(function, FunctionType):
            function.__code__ = _renamed(function.__code__, names)


def _renamed(code, names):
    """Return a function's code, and the code of those in it, with new names.
    """
    return code.replace(
        co_names=tuple(names.get(name, name) for name in code.co_names),
        co_consts=tuple(_renamed(value, names) if isinstance(value, CodeType)
                        else value for value in code.co_consts))


def partition_by_indices(sort):
    """Have `topk` give values in the order in which `argtopk` gives indices.

    The gradient of `topk` takes both orders for the same. Since 1.25, NumPy
    partitions values and indices by two algorithms where the processor has
    AVX-512; with older versions, this changes nothing.
    """
    np = sort.np

    def partition(values, kth, axis):
        return np.take_along_axis(
            values, np.argpartition(values, kth, axis), axis)

    sort.np = view(np, partition=partition)
