"""Layers of Lasagne compute with new versions of NumPy."""

import bnlasagne  # isort: skip  # noqa: F401  # It repairs the stack.

import lasagne
import numpy as np
import pytest
from lasagne.layers import DenseLayer, InputLayer, get_output


@pytest.mark.skipif(not hasattr(lasagne.layers, "TPSTransformerLayer"),
                    reason="Lasagne 0.1 has no such layer")
def test_a_spline_that_moves_nothing():
    image = InputLayer((1, 1, 6, 6))
    offsets = DenseLayer(image, 2 * 16, W=lasagne.init.Constant(0),
                         b=lasagne.init.Constant(0), nonlinearity=None)
    layer = lasagne.layers.TPSTransformerLayer(
        image, offsets, control_points=16)
    x = np.random.RandomState(0).rand(1, 1, 6, 6).astype(offsets.b.dtype)
    got = get_output(layer, x).eval()
    np.testing.assert_allclose(got, x, atol=1e-4)
