"""The numbers that random streams draw, those of Python 3.11 with NumPy 1.23.
"""

import bnlasagne  # isort: skip  # noqa: F401  # It repairs the stack.

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.modes import mode_fixture
from numpy.testing import assert_allclose, assert_array_equal
from theano.sandbox.rng_mrg import MRG_RandomStreams
from theano.tensor.shared_randomstreams import RandomStreams

mode = mode_fixture(("FAST_COMPILE", "fused"), ("FAST_RUN", "fused"))
PROBABILITIES = np.array([[0.2, 0.3, 0.5]] * 4)


def draw(*variables, mode="FAST_COMPILE"):
    return theano.function([], list(variables), mode=mode)()


@pytest.mark.parametrize("seed,expected", [
    (12345, [1579097239, 555271803, 1490526932, 1654796383]),
    (2147462578, [1821890902, 2039467913, 183915140, 899977014]),
    ([1, 2, 3, 4, 5, 6], [8061309, 1806215773, 2072156087, 1038232112])])
def test_mrg_draws_these_multiples(seed, expected, mode):
    double, single = draw(
        MRG_RandomStreams(seed).uniform((4,), dtype="float64"),
        MRG_RandomStreams(seed).uniform((4,), dtype="float32"), mode=mode)
    assert_array_equal(double * 2.0**31, expected)
    assert_allclose(single, double, rtol=2e-7)


def test_mrg_draws_in_debug_mode(float64):
    mode = theano.compile.DebugMode(check_c_code=False)
    got, = draw(MRG_RandomStreams(12345).uniform((2, 2)), mode=mode)
    assert_array_equal(got * 2.0**31, [[1579097239, 555271803],
                                       [1490526932, 1654796383]])


def test_mrg_draws_half_precision():
    got, = draw(MRG_RandomStreams(4).uniform((3,), dtype="float16"))
    assert got[:2].tolist() == [0.015625, 0.34765625]


def test_mrg_draws_from_several_streams():
    got, = draw(MRG_RandomStreams(3).uniform(
        (3, 2), nstreams=2, dtype="float64"))
    assert_array_equal(got * 2.0**31, [
        [12386688, 448951809], [12323481, 360064306],
        [1699277464, 1187478684]])


def test_mrg_jumps():
    streams = MRG_RandomStreams(11)
    streams.inc_rstate()
    states = streams.get_substream_rstates(3, "float32")
    assert_array_equal(states[0], [1463963629, 1528559287, 1344918158,
                                   1487208971, 410476108, 1172055529])
    assert_array_equal(states[2], [817113151, 1115467534, 565840004,
                                   1387886921, 2008978082, 1294246855])


def test_mrg_distributions(float64):
    streams = MRG_RandomStreams(9)
    normal, binomial, multinomial, choice = draw(
        streams.normal((3,), avg=2, std=0.1), streams.binomial((9,), p=0.3),
        streams.multinomial(pvals=PROBABILITIES, n=5),
        streams.choice(size=2, p=PROBABILITIES, replace=False))
    assert_allclose(normal, [2.114393566780766, 2.051477395839634,
                             2.260864830788919], rtol=1e-14)
    assert_array_equal(binomial, [0, 0, 0, 0, 0, 0, 0, 0, 1])
    assert_array_equal(multinomial,
                       [[0, 3, 2], [1, 1, 3], [1, 0, 4], [0, 4, 1]])
    assert_array_equal(choice, [[1, 2], [0, 2], [2, 1], [2, 1]])


def test_shared_streams(float64):
    streams = RandomStreams(7)
    floats = draw(streams.uniform((2,)), streams.normal((2,)))
    assert_allclose(floats, [[0.055749463523702913, 0.5019673520362743],
                             [-1.3146578069068626, -1.9343606749476512]],
                    rtol=1e-14)
    integers = draw(
        streams.binomial((4,), n=9, p=0.2),
        streams.random_integers((4,), low=1, high=9),
        streams.choice((4,), a=50), streams.permutation(n=5),
        streams.multinomial((2,), n=30, pvals=[0.2, 0.8]),
        streams.poisson((3,), lam=20.))
    assert [values.tolist() for values in integers] == [
        [2, 3, 2, 1], [4, 8, 6, 5], [44, 17, 40, 42], [0, 1, 2, 3, 4],
        [[13, 17], [9, 21]], [17, 17, 22]]


def test_random_op_leaves_its_state_alone():
    x = RandomStreams(1).uniform((3,))
    mode = theano.Mode(linker="py", optimizer=None)
    f = theano.function([], x, mode, no_default_updates=True)
    np.testing.assert_array_equal(f(), f())
    g = theano.function([], x, mode)
    assert (g() != g()).all()


@pytest.mark.parametrize("layer,expected", [
    (lasagne.layers.DropoutLayer, [[2, 0, 0], [0, 0, 0]]),
    (lasagne.layers.GaussianNoiseLayer, [
        [1.031183170446018, 0.9207565932505332, 0.8950128649045557],
        [0.8802728874960811, 0.9639278788524791, 0.9568741659169309]])])
def test_layers_of_lasagne(layer, expected, quick, floatX):
    lasagne.random.set_rng(np.random.RandomState(3))
    x = T.matrix()
    noisy = layer(lasagne.layers.InputLayer((2, 3), x), *(
        [0.1] if layer is lasagne.layers.GaussianNoiseLayer else []))
    got = theano.function([x], lasagne.layers.get_output(noisy))(
        np.ones((2, 3), floatX))
    assert got.dtype == floatX
    assert_allclose(got, expected, rtol=1e-6 if floatX == "float32" else 1e-14)
