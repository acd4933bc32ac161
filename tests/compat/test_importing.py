"""What a package's modules, and nobody else, get for an import."""

import importlib
import types
import warnings

from bnlasagne.compat.importing import repair_on_import, view

import pytest
from helpers.common import needs_compiler
from helpers.programs import ROOT, run_python, succeed


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Import a package with some code, and with a table of stand-ins."""
    import sys

    folder = tmp_path / "outmoded"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))

    def load(code, **table):
        (folder / "code.py").write_text(code)
        repair_on_import({}, {}, {"outmoded": table})
        return importlib.import_module("outmoded.code")

    return load


def stand_in():
    return types.SimpleNamespace(
        sub=types.SimpleNamespace(leaf="leaf", name="name"), top="top")


@pytest.mark.parametrize(
    "code",
    ["import gone; got = gone.sub.leaf",
     "import gone.sub; got = gone.sub.leaf",
     "import gone.sub as sub; got = sub.leaf",
     "from gone import sub; got = sub.leaf",
     "from gone.sub import leaf as got",
     "def f():\n    import gone.sub\n    return gone.sub.leaf\ngot = f()",
     "class C:\n    from gone.sub import leaf\ngot = C.leaf",
     "got = __import__('gone.sub').sub.leaf"])
def test_every_kind_of_import_finds_the_stand_in(package, code):
    assert package(code, gone=stand_in).got == "leaf"
    with pytest.raises(ImportError):
        importlib.import_module("gone")


def test_functions_find_the_stand_in_when_they_run(package):
    module = package("def run():\n    import gone\n    return gone.top",
                     gone=stand_in)
    assert module.run() == "top"


def test_others_import_as_ever(package):
    module = package("import json, os.path as p\nfrom json import decoder",
                     json=lambda: types.SimpleNamespace(decoder="mine"))
    import json
    import os.path

    assert module.decoder == "mine"
    assert json.decoder is not module.decoder
    assert module.p is os.path


def test_what_is_missing_is_an_import_error(package):
    with pytest.raises(ImportError):
        package("import json.nothing", json=lambda: view(
            importlib.import_module("json")))
    with pytest.raises(ImportError):
        package("from . import nothing", json=lambda: None)


def test_stand_in_may_raise(package):
    def hidden():
        raise ImportError("hidden")

    module = package("try:\n    import json\nexcept ImportError as error:\n"
                     "    got = str(error)", json=hidden)
    assert module.got == "hidden"


def test_stand_in_is_made_once_and_late(package):
    made = []
    code = "def run():\n    import gone\n    return gone"
    module = package(code, gone=lambda: made.append(1) or stand_in())
    assert not made
    assert module.run() is module.run()
    assert made == [1]


def test_modules_are_repaired_once(package):
    def repair(module):
        module.times = getattr(module, "times", 0) + 1

    module = package("")
    for _ in range(2):
        repair_on_import({}, {"outmoded.code": [repair]}, {})
    assert module.times == 1
    del module.times
    importlib.reload(module)  # executes its code again
    assert module.times == 1


def test_repairs_of_theano_do_not_pile_up():
    from bnlasagne import compat

    from theano.gof import cc

    before = vars(cc.CLinker).copy()
    compat.prepare()
    assert vars(cc.CLinker) == before


def test_view_adds_names_and_leaves_the_module():
    import numpy

    changed = view(numpy, cast="mine", pi=3)
    assert changed.cast == "mine"
    assert changed.pi == 3
    assert numpy.pi != 3
    assert changed.float32 is numpy.float32
    assert changed.random is numpy.random
    with pytest.raises(AttributeError):
        changed.nothing  # noqa: B018


def test_old_code_is_compiled_without_warnings(package):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = package("got = '\\d' is 'd'", gone=stand_in)
    assert module.got is False


@needs_compiler  # Theano warns that there is none.
def test_import_of_sources_without_their_caches_warns_of_nothing(tmp_path):
    # Of other packages than Theano and Lasagne, it may.
    out = succeed(run_python("""
import warnings
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    import bnlasagne, theano.gpuarray
print([str(one) for one in found
       if "theano" in one.filename or "lasagne" in one.filename])
""", ROOT, PYTHONPYCACHEPREFIX=str(tmp_path)))
    assert out == "[]\n"
