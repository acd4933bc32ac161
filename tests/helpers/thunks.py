"""Call an Op without a function of Theano's around it.

So nothing arranges its inputs in memory before, and its outputs may be in any
state when it is called: there is nothing, or what an earlier call left there.
"""

import functools

import numpy as np
import theano.tensor as T

__all__ = ["LAYOUTS", "LEFTOVERS", "call", "laid_out"]


@functools.lru_cache(maxsize=1000)
def _thunk(op, types, implementation):
    variables = [T.TensorType(dtype, (False,) * ndim)()
                 for dtype, ndim in types]
    node = op.make_node(*variables)
    cells = {variable: [None] for variable in node.inputs + node.outputs}
    thunk = op.make_thunk(node, cells, dict.fromkeys(cells, [True]), [],
                          impl=implementation)
    return thunk, *([cells[variable] for variable in variables]
                    for variables in (node.inputs, node.outputs))


def call(op, inputs, implementation, leftover=None):
    """Call an Op, 'c' or 'py'; return its outputs.

    `leftover` makes what lies in the place of an output, from the output of
    another call.
    """
    inputs = [np.asarray(value) for value in inputs]
    types = tuple((value.dtype.name, value.ndim) for value in inputs)
    thunk, givens, results = _thunk(op, types, implementation)
    for cell, value in zip(givens, inputs):
        cell[0] = value
    try:
        for _ in range(1 if leftover is None else 2):
            for cell in results:
                cell[0] = leftover(cell[0]) if leftover and (
                    cell[0] is not None) else None
            thunk()
        return [cell[0] for cell in results]
    finally:
        for cell in givens + results:
            cell[0] = None


def _double(array, axis):
    """An array of the same shape, with other numbers in between."""
    shape = list(array.shape)
    shape[axis] *= 2
    return np.full(shape, 99, array.dtype)[
        (slice(None),) * (axis % array.ndim) + (slice(None, None, 2),)]


def _copied_into(made, array):
    made[...] = array
    return made


def _behind(array):
    """An array that starts one place behind where memory is aligned."""
    return np.zeros(array.size + 1, array.dtype)[1:].reshape(array.shape)


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


# How the same numbers may lie in memory.
LAYOUTS = {
    "in order": np.array,
    "Fortran": lambda a: np.array(a, order="F"),
    "behind": lambda a: _copied_into(_behind(a), a),
    "every other": lambda a: _copied_into(_double(a, -1), a),
    "every other row": lambda a: _copied_into(_double(a, 0), a),
    "reversed": lambda a: np.array(a[::-1])[::-1],
    "columns reversed": lambda a: np.array(a[..., ::-1])[..., ::-1],
    "read only": _read_only,
}


def laid_out(array, layout):
    made = LAYOUTS[layout](array) if array.ndim else array
    assert made.shape == array.shape
    return made


# What an output's place may hold.
LEFTOVERS = {
    "the same": lambda a: np.full_like(a, 77, order="C"),
    "another shape": lambda a: np.full(
        np.add(a.shape, 1), 77, a.dtype),
    "as many": lambda a: np.full(a.shape[::-1], 77, a.dtype),
    "more axes": lambda a: np.full((1, *a.shape), 77, a.dtype),
    "not in order": lambda a: _double(a, -1),
    "read only": lambda a: _read_only(np.full_like(a, 77, order="C")),
}
