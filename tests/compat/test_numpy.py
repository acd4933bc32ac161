"""The NumPy that Theano sees."""

import bnlasagne  # isort: skip  # noqa: F401  # It repairs the stack.

import numpy as np
import pytest
import theano
from helpers.programs import ROOT, run_python, succeed
from theano.scalar import basic as theano_scalar

old = theano_scalar.np


def test_theano_sees_the_same_objects():
    assert old is not np
    assert old.ndarray is np.ndarray
    assert old.random.RandomState is np.random.RandomState


def test_old_names_mean_what_they_meant():
    assert old.bool is bool
    assert old.complex is complex
    assert old.product([2, 3]) == 6
    assert old.sctype2char("float32") == "f"
    cast = old.cast["float32"](1)
    assert cast.dtype == "float32"
    assert old.cast[theano_scalar.int8](300).dtype == "int8"
    assert old.cast["int8"]([1, 2]).tolist() == [1, 2]
    assert issubclass(old.ComplexWarning, RuntimeWarning)
    assert old.linalg.linalg.LinAlgError is np.linalg.LinAlgError
    assert isinstance(old.MAXDIMS, int)
    assert old.distutils.misc_util.get_numpy_include_dirs() == [
        np.get_include()]


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_sums_over_all_axes(axis):
    x = theano.tensor.matrix()
    values = np.arange(6).reshape(2, 3).astype(x.dtype)
    got = theano.function([x], theano.tensor.cumsum(x, axis))(values)
    np.testing.assert_array_equal(got, values.cumsum(axis))


def test_numpy_itself_does_not_change():
    out = succeed(run_python("""
import sys
import numpy
def names():
    return {name: id(value) for name, value in vars(numpy).items()}
before = names()
had = {name for name in ("distutils", "imp", "numpy.distutils")
       if name in sys.modules}
import bnlasagne
# What NumPy imports at its first use are its submodules.
changed = {name for name, value in names().items()
           if before.get(name, value) != value or (
               name not in before and "numpy." + name not in sys.modules)}
print(sorted(changed))
print(sorted({name for name in ("distutils", "imp", "numpy.distutils")
              if name in sys.modules} - had))
""", ROOT))
    assert out == "[]\n[]\n"
