"""What Theano imports of SciPy."""

import pytest
from helpers.programs import ROOT, run_python, succeed

PARTS = "[part in sys.modules for part in ('scipy.stats', 'scipy.signal')]"


def run(code, **environment):
    return succeed(run_python(
        "import sys, bnlasagne.compat, theano\n" + code, ROOT,
        THEANO_FLAGS="cxx=,floatX=float64", **environment))


def test_parts_are_imported_at_their_first_use():
    out = run(f"""
import theano.tensor as T
print({PARTS})
x = T.vector()
value, = T.chi2sf(x, 2.0).eval({{x: [1.0]}})
import scipy.stats, scipy.signal
print(round(float(value), 6), scipy.stats.norm.cdf(0.0))
print(len(scipy.signal.convolve([1, 2], [3, 4])))
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


@pytest.mark.parametrize("mode", ["valid", "full"])
def test_convolution_without_a_compiler(mode):
    out = run(f"""
import numpy as np
import theano.tensor as T
print({PARTS})
rng = np.random.RandomState(0)
x, w = rng.normal(size=(2, 3, 5, 6)), rng.normal(size=(4, 3, 3, 2))
X, W = T.tensor4(), T.tensor4()
got = T.nnet.conv2d(X, W, border_mode='{mode}').eval({{X: x, W: w}})
edge = (2, 1) if '{mode}' == 'full' else (0, 0)
padded = np.pad(x, [(0, 0), (0, 0)] + [(pad, pad) for pad in edge])
want = sum(np.einsum('nchw,oc->nohw', padded[:, :, i:i + got.shape[2],
                                             j:j + got.shape[3]],
                     w[:, :, 2 - i, 1 - j])
           for i in range(3) for j in range(2))
np.testing.assert_allclose(got, want)
""")
    assert out == "[False, False]\n"


def test_repair_is_switched_off():
    assert run(f"print({PARTS})",
               BNLASAGNE_NO_REPAIR="scipy_for_theano") == "[True, True]\n"
