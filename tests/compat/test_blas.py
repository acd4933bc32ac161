"""Theano with the OpenBLAS that SciPy's wheel brings."""

import os
import platform
import subprocess
import sys
import types
from importlib.util import find_spec

from bnlasagne.compat import blas

import pytest
import theano
from helpers.programs import ROOT, run_python, succeed

LIBRARIES = blas._libraries()
needs_library = pytest.mark.skipif(
    not LIBRARIES or not theano.config.cxx or sys.platform != "linux",
    reason="needs the library in SciPy's wheel, and a C++ compiler")
_other = theano.config.blas.ldflags and not any(
    os.path.dirname(path) in theano.config.blas.ldflags for path in LIBRARIES)
is_linked = pytest.mark.skipif(
    bool(_other), reason="Theano finds another BLAS here")
SHOW = "import bnlasagne.compat, theano; print(theano.config.blas.ldflags)"


@pytest.fixture
def tried(monkeypatch):
    """Has Theano try flags; those in `good` work, and `works` after them."""
    def run(flags, good=(), libraries=(), works=()):
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(blas, "_libraries", lambda: list(libraries))
        monkeypatch.setattr(
            blas, "_works", lambda flags: flags.split()[1][2:] in works)
        theanos = types.SimpleNamespace(
            try_blas_flag=lambda flags: " ".join(flags) * (flags in good))
        blas.link_blas_of_scipy(theanos)
        return theanos.try_blas_flag(flags)
    return run


def test_other_libraries_come_first(tried):
    library = {"libraries": ["/a/libopenblas.so"], "works": ["openblas"]}
    flags = ["-L/mkl", "-lmkl_rt"]
    assert tried(flags, [flags], **library) == "-L/mkl -lmkl_rt"
    assert tried(flags, **library) == ""
    assert tried(["-lblas"], [["-lblas"]], **library) == "-lblas"
    assert tried(["-lblas"], **library).startswith("-L/a -lopenblas ")


def test_the_first_library_that_works(tried):
    paths = ["/a/libopenblas-1.so", "/a/libopenblas-2.so"]
    assert tried(["-lblas"], libraries=paths) == ""
    assert "-lopenblas-2 " in tried(["-lblas"], libraries=paths,
                                    works=["openblas-2"])


def test_names_have_the_prefix_of_the_library():
    flags = blas._flags("/a/libscipy_openblas-1.so").split()
    assert flags[:2] == ["-L/a", "-lscipy_openblas-1"]
    assert "-Dsgemm_=scipy_sgemm_" in flags
    assert "-D" not in blas._flags("/a/libopenblasp-r0-1.3.18.so")


@pytest.mark.parametrize("folder", ["with space", "with,comma"])
@needs_library
def test_folders_that_flags_cannot_name(tmp_path, folder):
    path = tmp_path / folder
    path.symlink_to(os.path.dirname(LIBRARIES[0]))
    assert blas._works(blas._flags(LIBRARIES[0]))
    assert not blas._works(blas._flags(
        str(path / os.path.basename(LIBRARIES[0]))))


def renamed(folder, name, **others):
    """Make a library that calls SciPy's by names without a prefix."""
    flags = blas._flags(LIBRARIES[0]).split()
    names = {function: function for function in blas._FUNCTIONS}
    names.update(others)
    prefix = "scipy_" if "-Dsgemm_=scipy_sgemm_" in flags else ""
    source = folder / "jumps.cpp"
    source.write_text("".join(
        f'asm(".globl {function}\\n{function}: jmp {prefix}{target}@PLT");\n'
        for function, target in names.items()))
    path = folder / f"lib{name}.so"
    subprocess.run([theano.config.cxx, "-shared", "-o", str(path),
                    str(source), *flags[:3]], check=True)
    return str(path)


@pytest.mark.skipif(platform.machine() != "x86_64" or not LIBRARIES
                    or "scipy_" not in LIBRARIES[0],
                    reason="needs SciPy's library of today on x86")
@needs_library
@pytest.mark.parametrize("wrong, works", [
    ({}, True),
    ({"sdot_": "sdsdot_"}, False),
    ({"dgemv_": "dgemm_"}, False),
    ({"sger_": "saxpy_"}, False),
])
def test_a_library_is_tried(tmp_path, wrong, works):
    path = renamed(tmp_path, "openblasp-r0", **wrong)
    assert blas._works(blas._flags(path)) == works


@needs_library
def test_a_file_that_is_no_library(tmp_path):
    path = tmp_path / "libopenblas.so"
    path.write_text("nothing")
    assert not blas._works(blas._flags(str(path)))


@needs_library
@pytest.mark.parametrize("settings", [
    {"THEANO_FLAGS": "blas.ldflags="},
    {"THEANO_FLAGS": "blas.ldflags=-lm"},
    {"THEANORC": "[blas]\nldflags =\n"},
    {"BNLASAGNE_NO_REPAIR": "link_blas_of_scipy"},
])
def test_the_user_decides(tmp_path, settings):
    environment = dict({"THEANORC": ""}, **settings)
    rc = tmp_path / "theanorc"
    rc.write_text(environment.pop("THEANORC"))
    if "THEANO_FLAGS" in environment:
        environment["THEANO_FLAGS"] += "," + os.environ.get(
            "THEANO_FLAGS", "")
    out = succeed(run_python(SHOW, ROOT, THEANORC=str(rc), **environment))
    assert "scipy" not in out
    assert ("-lm" in out) == ("-lm" in settings.get("THEANO_FLAGS", ""))


# One Op of each kind, and no others.
PRODUCTS = """
import re, sys
from pathlib import Path
import bnlasagne.compat, theano
import numpy as np
import theano.tensor as T
from theano.tensor import blas, blas_c
from theano.tensor.nnet.corr import CorrMM

x, y = T.fmatrices(2)
u, v = T.fvectors(2)
batches = [T.TensorType('float32', (False,) * 3)() for _ in range(2)]
images = [T.ftensor4() for _ in range(2)]
one = T.constant(np.float32(1))
f = theano.function(
    [x, y, u, v, *batches, *images],
    [blas._dot22(x, y), blas_c.cgemv_no_inplace(u, one, x, v, one),
     blas_c.cger_no_inplace(x, one, u, v), blas.BatchedDot()(*batches),
     CorrMM(openmp=True)(*images)], mode=theano.Mode('cvm', None))
a, b = np.random.RandomState(0).randn(2, 6, 6).astype('float32')
got = f(a, b, a[0], b[0], [a, b], [b, a], [[a]], [[b]])
want = [a @ b, a[0] + a @ b[0], a + np.outer(a[0], b[0]), [a @ b, b @ a],
        [[[[(a * b).sum()]]]]]
for one, other in zip(got, want):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)

paths = [str(getattr(module, '__file__', '')) for module in
         list(sys.modules.values())]
codes = [Path(path).read_bytes() for path in paths if path.endswith('.so')
         and path.startswith(theano.config.compiledir)]
pattern = rb'\\b(?:scipy_)?(?:s(?:gem[mv]|ger|dot)_|openblas_\\w+_threads)\\b'
for code in codes:
    names = set(re.findall(pattern, code))
    if names:
        print(LIBRARY in code, *sorted(name.decode() for name in names))
"""


@is_linked
@needs_library
def test_products_call_the_library():
    library = f"LIBRARY = {os.path.basename(LIBRARIES[0]).encode()}\n"
    out = succeed(run_python(library + PRODUCTS, ROOT))
    assert out.count("True ") == 5
    assert "False" not in out
    names = set(out.replace("True", "").split())
    prefix = "scipy_" if "scipy_" in library else ""
    assert names == {prefix + function for function in blas._FUNCTIONS
                     if function[0] in "so" and "axpy" not in function}


PRODUCT = """
import bnlasagne.compat, theano
import theano.tensor as T
x = T.matrix()
print(theano.function([x], T.dot(x, x))([[1, 2], [3, 4]]).tolist())
print(theano.config.blas.ldflags)
"""


@is_linked
@needs_library
def test_a_library_that_has_gone(tmp_path):
    # As after an update of SciPy, or where the environment has moved.
    scipy = tmp_path / "scipy"
    scipy.mkdir()
    (scipy / "__init__.py").write_text(
        f"__path__ = {find_spec('scipy').submodule_search_locations!r}\n"
        "exec(open(__path__[0] + '/__init__.py').read())\n")
    libraries = tmp_path / "scipy.libs"
    libraries.symlink_to(os.path.dirname(LIBRARIES[0]))
    for there in (True, False):
        if not there:
            libraries.unlink()
        out = succeed(run_python(PRODUCT, tmp_path, ROOT))
        assert out.startswith("[[7.0, 10.0], [15.0, 22.0]]\n")
        assert (f"-L{libraries}" in out) == there
