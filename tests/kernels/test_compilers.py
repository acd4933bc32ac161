"""The kernels with other compilers, and with the user's own flags."""

import json
import os
import subprocess
import sys
import warnings

from bnlasagne.compat import kept
from bnlasagne.kernels import compiled, compilers, ops
from bnlasagne.kernels.batch import Batch
from bnlasagne.kernels.blocks import Layout

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.common import needs_compiler
from numpy.testing import assert_allclose
from theano.gof import CLinker, FunctionGraph

pytestmark = needs_compiler

PROGRAM = "int one() { return 1; }\n"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch, tmp_path):
    """Each test finds out anew, and keeps what it finds to itself."""
    monkeypatch.setattr(compilers, "_found", {})
    monkeypatch.setattr(compilers, "_warned", set())
    monkeypatch.setattr(kept, "_path", tmp_path.joinpath)
    monkeypatch.setattr(compilers, "_cores", lambda: 2)


@pytest.fixture
def compiler(tmp_path):
    """Makes a compiler that looks at its arguments, `$arg`, first."""
    def make(check):
        path = tmp_path / "some-g++"
        path.write_text(
            '#!/bin/bash\nfor arg in "$@"; do\n%s\ndone\nexec %s "$@"\n'
            % (check, theano.config.cxx))
        path.chmod(0o755)
        return theano.configparser.change_flags(cxx=str(path))
    return make


def refuse(pattern):
    """Code that refuses the arguments that a pattern of the shell matches."""
    return ('[[ $arg == %s ]] && { echo "error: no $arg" >&2; exit 1; }'
            % pattern)


ON_KERNELS = ('[[ -f $arg ]] && grep -q bnlasagne "$arg" && '
              '{ echo "mod.cpp:7: error: what is this?" >&2; exit 1; }')
NOT_ON_TRIALS = ON_KERNELS.replace('[[ -f', '[[ "$*" != *-O0* && -f')


def test_all_that_a_current_compiler_can_do():
    found = compilers.arguments(PROGRAM)
    assert found == ["-std=gnu++11"] + list(compilers._FLAGS)


@pytest.mark.parametrize("pattern, expected, missing", [
    ("-std=*", None, "-std=gnu++11"),
    ("-std=gnu*", "-std=c++11", "-std=gnu++11"),
    ("-fno-trapping-math", "-std=gnu++11", "-fno-trapping-math"),
    ("-W*", "-fopenmp", "-Wno-psabi"),
])
def test_a_compiler_without_some_flag(compiler, pattern, expected, missing):
    # What these need is C++11, which is the default or has to be asked for.
    program = PROGRAM
    if expected == "-std=c++11":
        program += "#ifndef __STRICT_ANSI__\n#error too new\n#endif\n"
    with compiler(refuse(pattern)):
        found = compilers.arguments(program)
    assert missing not in found and "-O3" in found
    assert expected is None or expected in found


def test_a_compiler_without_openmp(compiler):
    with compiler(refuse("-fopenmp")):
        with pytest.warns(RuntimeWarning, match="has no OpenMP"):
            found = compilers.arguments(PROGRAM)
        # Once.
        assert compilers.arguments(PROGRAM) is found
    assert "-std=gnu++11" in found and "-fopenmp" not in found


def test_a_compiler_that_is_not_there(tmp_path):
    with theano.configparser.change_flags(cxx=str(tmp_path / "g++")), \
            pytest.warns(RuntimeWarning, match="No such file"):
        assert compilers.arguments(PROGRAM) is None


@pytest.fixture
def tried(monkeypatch):
    """The flags that are tried from now on."""
    flags = []
    monkeypatch.setattr(compilers, "_compile",
                        lambda program, mine, user: flags.append(mine))
    return flags


def test_what_is_found_is_kept(tried):
    found = compilers.arguments(PROGRAM)
    compilers._found.clear()
    assert compilers.arguments(PROGRAM) == found
    assert len(tried) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"%s": 3}', ""])
def test_what_was_kept_is_of_no_use(tried, tmp_path, text):
    compilers.arguments(PROGRAM)
    key, = json.loads((tmp_path / "compilers").read_text())
    (tmp_path / "compilers").write_text(text.replace("%s", key))
    compilers._found.clear()
    assert compilers.arguments(PROGRAM)
    assert len(tried) == 2


def test_other_flags_and_programs_are_tried_anew(tried):
    compilers.arguments(PROGRAM)
    compilers.arguments(PROGRAM + PROGRAM)
    with theano.configparser.change_flags(**{"gcc.cxxflags": "-O2"}):
        compilers.arguments(PROGRAM)
    assert len(tried) == 3


def test_what_cannot_be_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "_path", tmp_path.joinpath("nowhere").joinpath)
    assert compilers.arguments(PROGRAM)


@pytest.mark.parametrize("check", [ON_KERNELS, NOT_ON_TRIALS])
def test_a_compiler_that_fails(rng, compiler, check, capsys):
    """NumPy computes, after one warning that says what was wrong."""
    x = T.matrix()
    data = rng.normal(size=(5, 3)).astype(theano.config.floatX)
    mode = theano.Mode("cvm", "fast_compile")
    op = ops.BatchNormalize(Layout(1, 2))
    params = [T.constant(np.full((1, 3), value, data.dtype))
              for value in (1, 0)]
    with compiler(check), warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        functions = [theano.function([x], op(x, *params, epsilon)[0],
                                     mode=mode) for epsilon in (0.01, 0.5)]
    for function, epsilon in zip(functions, (0.01, 0.5)):
        assert_allclose(function(data), reference.normalize_batch(
            data, (0,), epsilon=epsilon), rtol=1e-4, atol=1e-5)
    mine = [str(each.message) for each in found
            if "bnlasagne" in str(each.message)]
    assert len(mine) == 1
    assert "cannot compile the kernels" in mine[0]
    assert "what is this?" in mine[0] and len(mine[0]) < 700


def test_flags_that_nobody_can_take_away(compiler):
    """The compiler's own, say: the kernels refuse them."""
    with compiler('[[ $# -gt 1 ]] && exec g++ "$@" -ffast-math'), \
            pytest.warns(RuntimeWarning, match="ffast-math"):
        assert compilers.arguments(compiled.TRIAL) is None


UNSAFE = ["-ffast-math", "-Ofast", "-ffinite-math-only", "-std=c++98",
          "-funsafe-math-optimizations", "-fassociative-math", "-Werror",
          "-ftree-parallelize-loops=2", "-fsingle-precision-constant"]


@pytest.mark.parametrize("linker", ["cvm", "c"])
def test_flags_of_the_user(linker):
    """Those that change results go, as often as they are there."""
    x = T.matrix()
    y = ops.normalize_batch(Batch(x, (0,)), None, None, 0.01)[0]
    z = ops.MoveAverage(1)(x, T.dscalar(), T.lscalar(), x)
    flags = " ".join(["-O3", "-g0"] + UNSAFE + UNSAFE[:1])
    with theano.configparser.change_flags(**{"gcc.cxxflags": flags}):
        for output in (y, z):
            node = output.owner
            graph = FunctionGraph(node.inputs, node.outputs, clone=True)
            taken = CLinker().accept(graph).compile_args()
            assert not set(UNSAFE) & set(taken)
            assert {"-O3", "-g0", "-std=gnu++11"} <= set(taken)


FORKED = """
import os, select, sys
import bnlasagne
import numpy as np
import theano
import theano.tensor as T
from bnlasagne.kernels import ops
from bnlasagne.kernels.batch import Batch

x, dy = T.fmatrix(), T.fmatrix()
stored = [theano.shared(np.full((1, 512), value, "float32"),
                        broadcastable=(True, False)) for value in (1, 2)]
y = ops.normalize_batch(Batch(x, (0,)), None, None, 0.01)[0]
z = ops.normalize(Batch(x, (0,)), *stored, None, None, 0.01)
dx = theano.grad(None, x, known_grads={y: dy})
function = theano.function([x, dy], [y, z, dx])
data = np.random.RandomState(0).normal(size=(2, 2048, 512)).astype("float32")


def compute():
    return b"".join(each.tobytes() for each in function(*data))


def in_child(compute):
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        try:
            with open(sending, "wb") as pipe:
                pipe.write(compute())
        finally:
            os._exit(0)
    os.close(sending)
    if not select.select([receiving], [], [], 60)[0]:
        os.kill(child, 9)
        os._exit(2)
    with open(receiving, "rb") as pipe:
        found = pipe.read()
    os.waitpid(child, 0)
    return found


before = in_child(compute)
expected = compute()
after = in_child(compute)
nested = in_child(lambda: compute() and in_child(compute))
assert expected == before == after == nested
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
def test_a_forked_child_computes_the_same_bits():
    subprocess.run([sys.executable, "-c", FORKED], check=True,
                   env=dict(os.environ, OMP_NUM_THREADS="2"))
