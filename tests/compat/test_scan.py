"""Whether C or Python runs the loops of theano.scan, and what they return."""

import sys
from pathlib import Path
from types import SimpleNamespace

from bnlasagne.compat import kept, scan

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.common import needs_compiler
from helpers.programs import ROOT, run_python, succeed
from numpy.testing import assert_allclose
from theano.gof import compilelock
from theano.scan_module import scan_op, until

EXTENSION = "scan_perform_ext"


@pytest.fixture(params=["C", "Python"])
def loop(request, float64, quick, monkeypatch):
    """The loops of the test run in C or in Python, all else without C."""
    make_thunk, found = scan_op.Scan.make_thunk, []

    def make_either_thunk(*args, impl=None, **kwargs):
        thunk = make_thunk(*args, **kwargs)
        found.append("Python" if thunk.perform.__name__ == "execute" else "C")
        return thunk

    monkeypatch.setattr(scan_op.Scan, "make_thunk", make_either_thunk)
    if request.param == "Python":
        monkeypatch.setitem(
            sys.modules, f"theano.scan_module.{EXTENSION}", None)
        monkeypatch.delattr(theano.scan_module, EXTENSION, raising=False)
    elif not theano.config.cxx:
        pytest.skip("needs a C++ compiler")
    yield
    assert set(found) == {request.param}


def total(x, **kwargs):
    return theano.scan(
        lambda value, so_far: so_far + value, x, T.zeros((), x.dtype),
        **kwargs)


def test_sequence(loop):
    x = T.vector()
    sums = theano.function([x], total(x)[0])
    for length in (5, 1, 1000):
        values = np.arange(length, dtype="float64")
        assert_allclose(sums(values), np.cumsum(values))


def test_several_taps_and_states(loop):
    start, y = T.vector(), T.matrix()
    (numbers, rows), _ = theano.scan(
        lambda row, two, one, last: (two + one, last * row),
        y, [{"initial": start, "taps": [-2, -1]}, T.ones(2)])
    numbers, rows = theano.function([start, y], [numbers, rows])(
        [1, 1], [[1, 2], [3, 4], [5, 6]])
    assert_allclose(numbers, [2, 3, 5])
    assert_allclose(rows, [[1, 2], [3, 8], [15, 48]])


@pytest.mark.parametrize("steps", [-1, 2])
def test_gradient(loop, steps):
    x, first = T.vector(), T.scalar()
    powers, _ = theano.scan(lambda value, last: value * last, x, first,
                            truncate_gradient=steps)
    gradient = theano.function([x, first], T.grad(powers[-1], x))
    expected = np.full(5, 2 * 0.9**4)
    if steps > 0:
        expected[:-steps] = 0
    assert_allclose(gradient(np.full(5, 0.9), 2), expected)


def test_until(loop):
    x = T.vector()
    sums, _ = theano.scan(
        lambda value, so_far: (so_far + value, until(so_far + value > 5)),
        x, T.zeros((), "float64"))
    assert_allclose(theano.function([x], sums)([1, 2, 3, 4, 5]), [1, 3, 6])


def test_updates_of_shared_variables(loop):
    count = theano.shared(np.float64(0))
    values, updates = theano.scan(
        lambda: (count * 2, {count: count + 1}), n_steps=4)
    function = theano.function([], values, updates=updates)
    assert_allclose(function(), [0, 2, 4, 6])
    assert_allclose(function(), [8, 10, 12, 14])
    assert count.get_value() == 8


def test_error_in_an_iteration(loop):
    x, rows = T.vector(), T.matrix()
    dots = theano.function([x, rows], theano.scan(
        lambda row, x: T.dot(row, x), rows, non_sequences=x)[0])
    for _ in range(3):
        with pytest.raises(ValueError, match="Apply node that caused") as info:
            dots([1, 2, 3], np.ones((2, 2)))
        assert info.traceback
    assert_allclose(dots([1, 2], np.ones((2, 2))), [3, 3])


@pytest.mark.parametrize("steps, error", [
    (4, ValueError), (-1, IndexError), (0, NotImplementedError)])
def test_wrong_number_of_steps(loop, steps, error):
    x, n = T.vector(), T.iscalar()
    sums = theano.function([x, n], total(x, n_steps=n)[0])
    with pytest.raises(error):
        sums([1, 2, 3], steps)
    assert_allclose(sums([1, 2, 3], 2), [1, 3])


def test_python_runs_loops_without_a_compiler():
    out = succeed(run_python("""
import bnlasagne
import theano, theano.tensor as T
x = T.vector()
sums = theano.function(
    [x], theano.scan(lambda value: value + 1, x)[0],
    mode=theano.Mode("vm", "fast_compile"))
print(sums([1, 2]), [thunk.perform.__name__ for thunk in sums.fn.thunks
                     if hasattr(thunk, "perform")
                     and thunk.perform.__name__ in ("p", "execute")])
""", ROOT, THEANO_FLAGS="cxx=,floatX=float64"))
    assert out == "[2. 3.] ['execute']\n"


@needs_compiler
@pytest.mark.skipif(sys.version_info < (3, 11), reason="Theano compiles it")
def test_warnings_are_no_reason_to_give_up(tmp_path):
    succeed(run_python("""
import bnlasagne
import theano.scan_module.scan_perform_ext
""", ROOT, PYTHONWARNINGS="error",
        THEANO_FLAGS=f"base_compiledir={tmp_path}"))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Theano compiles it")
def test_loop_that_does_not_compile_cannot_be_imported(monkeypatch):
    monkeypatch.setattr(scan, "_loop", lambda *_: None)
    with pytest.raises(ImportError, match="Python runs it"), \
            scan.compile_scan_extension():
        pass  # Theano's module


@pytest.fixture
def refusing(tmp_path, monkeypatch):
    """Theano's module of compilers, with one that refuses the loop."""
    asked = []

    def try_compile_tmp(source, **kwargs):
        asked.append(source)
        return False, b"", b"error"

    monkeypatch.setattr(kept, "_path", lambda name: tmp_path / name)
    return SimpleNamespace(
        asked=asked, std_include_dirs=list,
        config=SimpleNamespace(cxx="c++", compiledir=str(tmp_path)),
        GCC_compiler=SimpleNamespace(
            compile_args=list, version_str=str,
            try_compile_tmp=try_compile_tmp))


def test_damaged_library_is_compiled_again(refusing):
    """As a power cut may leave it."""
    module, made = refusing, []

    def compile_str(name, source, location, **kwargs):
        made.append(location)
        (Path(location) / f"{name}.so").write_bytes(b"whole")

    def dlimport(path):
        if Path(path).read_bytes() != b"whole":
            raise ImportError("file too short")
        return "loop"

    module.get_lib_extension, module.dlimport = lambda: "so", dlimport
    module.GCC_compiler.try_compile_tmp = lambda *_, **__: (True, b"", b"")
    module.GCC_compiler.compile_str = compile_str
    for _ in range(2):  # in two processes
        assert scan._loop.__wrapped__(module, "2.0") == "loop"
        assert len(made) == 1
    Path(made[0], "scan_perform.so").write_bytes(b"")
    assert scan._loop.__wrapped__(module, "2.0") == "loop"
    assert len(made) == 2
    assert not kept.answers(scan._FILE)


def test_compiler_that_refuses_the_loop_is_asked_once(refusing):
    for _ in range(2):  # in two processes
        assert scan._loop.__wrapped__(refusing, "2.0") is None
        assert len(refusing.asked) == 1
        assert not getattr(compilelock.get_lock, "n_lock", 0)
    scan._loop.__wrapped__(refusing, "2.1")
    assert len(refusing.asked) == 2
