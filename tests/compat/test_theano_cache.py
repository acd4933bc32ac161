"""Which compiled code Theano keeps, and finds again in another process."""

from pathlib import Path

import pytest
import theano
import theano.tensor as T
from helpers.common import needs_compiler
from helpers.programs import ROOT, run_python, succeed
from theano.gof import CLinker, FunctionGraph
from theano.gof.cmodule import ModuleCache


class Number(theano.Op):
    """Return a number that the C++ code names, which is not a property."""

    __props__ = ()
    number = 1
    version = (1,)

    def make_node(self):
        return theano.Apply(self, [], [T.dscalar()])

    def perform(self, node, inputs, output_storage):
        raise NotImplementedError

    def c_code_cache_version(self):
        return self.version

    def c_code(self, node, name, inputs, outputs, sub):
        return """
            Py_XDECREF(OUT);
            OUT = (PyArrayObject*)PyArray_ZEROS(0, NULL, NPY_DOUBLE, 0);
            *(double*)PyArray_DATA(OUT) = NUMBER;
            """.replace("OUT", outputs[0]).replace("NUMBER", str(self.number))


@pytest.fixture
def process(tmp_path, monkeypatch):
    """Compile and run a Number, as a process does that finds a cache.

    Returns its value, and whether it was compiled.
    """
    def run():
        cache = ModuleCache(str(tmp_path))
        monkeypatch.setattr(
            theano.gof.cc, "get_module_cache", lambda *_, **__: cache)
        compute, _, outputs = linker_of(Number()()).make_thunk()
        compute()
        return float(outputs[0].data), bool(cache.stats[2])

    return run


def linker_of(output):
    inputs = theano.gof.graph.inputs([output])
    return CLinker().accept(FunctionGraph(
        [each for each in inputs if not isinstance(each, theano.Constant)],
        [output], clone=False))


def version_of(output):
    return linker_of(output).cmodule_key()[0]


@needs_compiler
def test_op_without_props_is_compiled_once(process):
    assert process() == (1, True)
    assert process() == (1, False)


@needs_compiler
def test_code_that_changed_is_not_taken_from_the_cache(process, monkeypatch):
    for number, is_compiled in [(1, True), (2, True), (1, False)]:
        monkeypatch.setattr(Number, "number", number)
        assert process() == (number, is_compiled)


def test_op_without_version_is_not_kept(monkeypatch):
    assert version_of(Number()())
    monkeypatch.setattr(Number, "version", ())
    assert version_of(Number()()) == ()


def test_op_that_no_pickle_can_hold_is_not_kept():
    class Local(Number):
        pass

    assert version_of(Local()()) == ()


@needs_compiler
def test_processes_agree_on_versions():
    one, other = (versions(PYTHONHASHSEED=seed) for seed in "12")
    assert one == other
    assert not any(version.startswith("()") for version in one)


@needs_compiler
def test_repair_can_be_switched_off():
    softmax, shuffled = versions(
        BNLASAGNE_NO_REPAIR="keep_ops_without_props,version_code_in_files")
    assert softmax == "()"
    assert shuffled != versions()[1]


def versions(**variables):
    """Versions of two Ops' code in a process of its own."""
    return succeed(run_python("""
import bnlasagne, test_theano_cache
import theano.tensor as T
for output in T.nnet.softmax(T.matrix()), T.vector().dimshuffle("x", 0):
    print(test_theano_cache.version_of(output))
""", ROOT, ROOT / "tests", Path(__file__).parent, **variables)).splitlines()
