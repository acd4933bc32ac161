"""What Theano imports of SciPy."""

import pytest
from helpers.programs import ROOT, run_python, succeed

scipy = pytest.importorskip("scipy")
pytestmark = pytest.mark.skipif(
    not hasattr(scipy, "__getattr__"),
    reason="this SciPy does not import its parts at their first use")

PARTS = "[part in sys.modules for part in ('scipy.stats', 'scipy.signal')]"


def run(code, **environment):
    return succeed(run_python(
        "import sys, bnlasagne.compat, theano\n" + code, ROOT,
        THEANO_FLAGS="cxx=,floatX=float64", **environment))


def test_parts_are_imported_at_their_first_use():
    out = run(f"""
import theano.tensor as T
import scipy
print({PARTS})
x = T.vector()
value, = T.chi2sf(x, 2.0).eval({{x: [1.0]}})
print(round(float(value), 6), scipy.stats.norm.cdf(0.0))
print(len(scipy.signal.convolve([1, 2], [3, 4])))
import scipy.stats, scipy.signal
print(scipy.stats.__file__ != scipy.signal.__file__)
""")
    assert out == "[False, False]\n0.606531 0.5\n3\nTrue\n"


def test_the_users_import_comes_first():
    out = succeed(run_python("""
import sys, scipy.stats, scipy.signal
before = scipy.stats, scipy.signal
import bnlasagne.compat, theano
print(before == (sys.modules['scipy.stats'], sys.modules['scipy.signal']))
""", ROOT, THEANO_FLAGS="cxx="))
    assert out == "True\n"


def test_nothing_changes_for_theano():
    code = """
import theano.tensor.nnet.conv as conv
import theano.tensor.nnet.abstract_conv as abstract_conv
import theano.scalar.basic_scipy as scipys
print(*[getattr(module, name, None) for module in (conv, abstract_conv, scipys)
        for name in ('imported_scipy_signal', 'imported_scipy_special')])
"""
    off = "without_scipy_stats,without_scipy_signal"
    out = run(code + f"print({PARTS})", BNLASAGNE_NO_REPAIR=off)
    assert out == run(code) + "[True, True]\n"
