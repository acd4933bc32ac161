"""theano.scan has its loop in C, and falls back on Python."""

import sys

import pytest
from helpers.common import needs_compiler
from helpers.programs import ROOT, run_python, succeed

LOOP = """
import sys
import bnlasagne, numpy as np, theano, theano.tensor as T
from bnlasagne.compat import scan
{}
x, indices = T.vector(), T.ivector()
sums, _ = theano.scan(lambda i, total, x: total + x[i], indices,
                      outputs_info=T.zeros_like(x[0]), non_sequences=x)
f = theano.function([x, indices], sums)
numbers = np.arange(3, dtype=theano.config.floatX)
np.testing.assert_array_equal(f(numbers, [1, 2, 2]), [1, 3, 5])
try:
    f(numbers, [0, 7])
except IndexError as error:
    print('Subtensor' in str(error))
print('theano.scan_module.scan_perform_ext' in sys.modules)
"""


@needs_compiler
@pytest.mark.skipif(sys.version_info < (3, 11), reason="nothing is repaired")
@pytest.mark.parametrize("fault", ["", """
sys.modules['scan_perform'] = None  # as if it were not compiled yet
scan._translate = lambda *arguments: '#error no'
"""], ids=["C", "Python"])
def test_loop_in_c_or_python(fault):
    out = succeed(run_python(LOOP.format(fault), ROOT))
    assert out.splitlines()[-2:] == ["True", str(not fault)]
