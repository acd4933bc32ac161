"""Layers whose batches are spread over the ranks.

The problem is the same on all ranks, from one seed; each computes its part of
it, and compares that with the oracle and with what one process has.
"""

import contextlib

from bnlasagne import (
    BatchNormLayer,
    RanksDisagree,
    batch_norm,
    plain_expressions,
    world,
)

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers import reference
from helpers.common import TOLERANCE, tensor
from helpers.ranks import (
    COMM,
    EMPTY,
    EVEN,
    MPI,
    UNEVEN,
    assert_alike,
    messages,
    mine,
    several,
)
from lasagne.layers import DenseLayer, InputLayer, get_output
from lasagne.nonlinearities import rectify, tanh
from numpy.testing import assert_allclose, assert_array_equal

SIZES = pytest.mark.parametrize("sizes", [UNEVEN, EMPTY],
                                ids=["uneven", "one is empty"])
# What follows the batch's axis, and what is normalized over.
SHAPES_AND_AXES = [
    ((), (0,)),
    ((3,), (0,)),
    ((3, 2, 4), (0, 2, 3)),
    ((2, 4, 3), (0, 1, 2)),
    ((3, 4), (0, 2)),
    ((3, 2, 4), (0, 3)),
]
PY = theano.Mode("py", "fast_compile")
EPSILON = 0.01


class Problem:
    """A batch, parameters, and a loss of all ranks."""

    def __init__(self, rng, shape, axes, dtype, sizes, with_params=True):
        total, self.mine = mine(sizes)
        shape = (total,) + shape
        short = [1 if axis in axes else size
                 for axis, size in enumerate(shape)]
        self.axes = axes
        self.x = rng.normal(1.5, 2, shape).astype(dtype)
        # Batches of the ranks differ in what is to be put together.
        self.x += np.linspace(0, 3, total).reshape(
            (-1,) + (1,) * (len(shape) - 1)).astype(dtype)
        self.w = rng.normal(size=shape).astype(dtype)
        self.gamma, self.beta = (
            rng.normal(size=short).astype(dtype) if with_params else None
            for _ in range(2))
        self.mean = rng.normal(size=short).astype(dtype)
        self.std = rng.uniform(1, 2, short).astype(dtype)

    def layer(self, comm, **kwargs):
        return BatchNormLayer(
            (None,) + self.x.shape[1:], self.axes, gamma=self.gamma,
            beta=self.beta, mean=self.mean, std=self.std, epsilon=EPSILON,
            alpha=0.25, comm=comm, **kwargs)

    def step(self, comm, mode=PY, flags=None, **kwargs):
        """Output, gradients by x, gamma and beta, and averages after it."""
        layer = self.layer(comm, **kwargs)
        part = slice(None) if comm is None else self.mine
        x, w = tensor(self.x), tensor(self.w)
        y = layer.get_output_for(x, **flags or {})
        wanted = [x] + [param for param in (layer.gamma, layer.beta)
                        if param is not None]
        gradients = theano.grad((w * y).sum(), wanted)
        found = theano.function([x, w], [y] + gradients, mode=mode)(
            self.x[part], self.w[part])
        return found + [layer.mean.get_value(), layer.std.get_value()]

    def together(self, found):
        """This rank's results, and those of all of it that are sums."""
        y, dx, *params, mean, std = found
        return [y, dx] + [sum(COMM.allgather(param)) for param in params] + [
            mean, std]

    def parts(self, found):
        """What this rank should have of all results."""
        return [found[0][self.mine], found[1][self.mine]] + found[2:]

    def expected(self, nonlinearity=None, y=None):
        """The results by the oracle."""
        gamma, beta = (default if value is None else value for value, default
                       in ((self.gamma, 1), (self.beta, 0)))
        output = reference.normalize_batch(self.x, self.axes, gamma, beta)
        w = self.w.astype(np.float64)
        if nonlinearity is rectify:
            output = np.maximum(output, 0)
            w = np.where(output > 0, w, 0)
        elif nonlinearity is tanh:
            output = np.tanh(output)
            w = w * (1 - output ** 2)
        dx, *params = reference.gradient_of_normalize_batch(
            self.x, w, self.axes, gamma)
        return [output, dx] + (params if self.gamma is not None else []) + [
            reference.running_average(old, [new], 0.25) for old, new in zip(
                (self.mean, self.std),
                reference.statistics(self.x, self.axes))]


def assert_as_expected(found, expected, dtype, factor=1.):
    assert len(found) == len(expected)
    # Gradients are sums of many values, which single precision rounds.
    tolerance = TOLERANCE[dtype]["rtol"] * factor
    for one, other in zip(found, expected):
        assert one.shape == other.shape
        assert_allclose(one, other, rtol=tolerance, atol=5 * tolerance)


@SIZES
@pytest.mark.parametrize("shape, axes", SHAPES_AND_AXES)
def test_step(rng, floatX, shape, axes, sizes):
    problem = Problem(rng, shape, axes, floatX, sizes)
    found = problem.step(COMM)
    assert {str(array.dtype) for array in found} == {floatX}
    assert_alike(*found[-2:])
    found = problem.together(found)
    assert_as_expected(found, problem.parts(problem.expected()), floatX)
    assert_as_expected(found, problem.parts(problem.step(None)), floatX)


@SIZES
@pytest.mark.parametrize("nonlinearity", [rectify, tanh])
@pytest.mark.parametrize("with_params", [True, False])
def test_options(rng, float64, expressions, with_params, nonlinearity, sizes):
    problem = Problem(rng, (3, 2), (0, 2), "float64", sizes, with_params)
    found = problem.step(COMM, nonlinearity=nonlinearity)
    assert_alike(*found[-2:])
    assert_as_expected(problem.together(found),
                       problem.parts(problem.expected(nonlinearity)),
                       "float64")


@SIZES
@pytest.mark.parametrize("shape, axes", SHAPES_AND_AXES[:3])
def test_plain_expressions(rng, floatX, shape, axes, sizes):
    problem = Problem(rng, shape, axes, floatX, sizes)
    with plain_expressions():
        found = problem.step(COMM)
    assert_alike(*found[-2:])
    assert_as_expected(problem.together(found),
                       problem.parts(problem.expected()), floatX)


def test_types_of_plain_expressions(rng, floatX):
    with plain_expressions():
        found = Problem(rng, (3,), (0,), floatX, UNEVEN).step(COMM)
    assert {str(array.dtype) for array in found} == {floatX}


@pytest.mark.skipif(not theano.config.cxx, reason="needs a C++ compiler")
@SIZES
@pytest.mark.parametrize("shape, axes, nonlinearity", [
    ((3,), (0,), rectify), ((3, 2, 4), (0, 2, 3), None)])
def test_kernels(rng, floatX, shape, axes, nonlinearity, sizes):
    problem = Problem(rng, shape, axes, floatX, sizes)
    found = problem.step(COMM, theano.Mode("cvm", "fast_run"),
                         nonlinearity=nonlinearity)
    assert_alike(*found[-2:])
    assert_as_expected(problem.together(found),
                       problem.parts(problem.expected(nonlinearity)), floatX)


@pytest.mark.parametrize("offset", {"float32": 1e4, "float64": 1e6}.items(),
                         ids=lambda offset: offset[0])
def test_large_mean(rng, expressions, offset):
    """As exact as without an offset, for the data as they are rounded."""
    check_large_mean(rng, offset, "py")


@pytest.mark.skipif(not theano.config.cxx, reason="needs a C++ compiler")
@pytest.mark.parametrize("offset", {"float32": 1e4, "float64": 1e6}.items(),
                         ids=lambda offset: offset[0])
def test_large_mean_in_kernels(rng, offset):
    check_large_mean(rng, offset, "cvm")


def check_large_mean(rng, offset, linker):
    dtype, value = offset
    with theano.configparser.change_flags(floatX=dtype):
        problem = Problem(rng, (3,), (0,), dtype, (30, 50, 20, 0))
        problem.x = (rng.normal(size=problem.x.shape) + value).astype(dtype)
        found = problem.step(COMM, theano.Mode(linker, "fast_compile"))
    assert_alike(*found[-2:])
    expected = problem.parts(problem.expected())
    # The mean of float64 in the output is one of 1e-10 relative to std.
    assert_as_expected(problem.together(found)[:-2], expected[:-2], dtype,
                       10 if dtype == "float32" else 100)
    for one, other in zip(found[-2:], expected[-2:]):
        assert_allclose(one, other, rtol=2e-6 if dtype == "float32" else 1e-9)


@SIZES
def test_channels_that_do_not_vary(rng, floatX, expressions, sizes):
    problem = Problem(rng, (3,), (0,), floatX, sizes)
    problem.x[:, 0] = 0.1
    problem.x[:, 2] = 1e4 / 3
    found = problem.step(COMM)
    assert all(np.isfinite(array).all() for array in found)
    assert_array_equal(found[-1][0, ::2],
                       (0.75 * problem.std.astype(floatX))[0, ::2])
    # Its factor is 1 / epsilon, and so is that on roundings.
    assert_as_expected(problem.together(found)[1:],
                       problem.parts(problem.expected())[1:], floatX, 100)
    assert_allclose(found[0][:, ::2], np.broadcast_to(
        problem.beta, problem.x.shape)[problem.mine][:, ::2], rtol=1e-6)


@several
def test_a_channel_varies_between_ranks_only(rng, float64, expressions):
    problem = Problem(rng, (2,), (0,), "float64", EVEN)
    problem.x[:, 0] = np.repeat([2, 5, -1, 4], 4)[:len(problem.x)]
    found = problem.together(problem.step(COMM))
    assert_as_expected(found, problem.parts(problem.expected()), "float64")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_leaves_all_averages(rng, float64, expressions,
                                                value):
    problem = Problem(rng, (3,), (0,), "float64", UNEVEN)
    problem.x[-1, 1] = value  # of the last rank
    y, *_, mean, std = problem.step(COMM)
    assert_array_equal(mean, problem.mean)
    assert_array_equal(std, problem.std)
    assert np.isfinite(y[:, ::2]).all()
    # As in one process, where the channel's mean is no number.
    assert not np.isfinite(y[:, 1]).any()


@SIZES
def test_averages_used_and_updated(rng, float64, expressions, sizes):
    problem = Problem(rng, (3,), (0,), "float64", sizes)
    flags = {"batch_norm_use_averages": True,
             "batch_norm_update_averages": True}
    found = problem.step(COMM, flags=flags)
    assert_alike(*found[-2:])
    assert_allclose(found[0], reference.normalize(
        problem.x[problem.mine], problem.mean, problem.std, problem.gamma,
        problem.beta), rtol=1e-11)
    found = problem.together(found)
    assert_as_expected(found[-2:], problem.expected()[-2:], "float64")
    assert_as_expected(found, problem.parts(problem.step(None, flags=flags)),
                       "float64")


def test_averages_not_updated(rng, float64, expressions):
    problem = Problem(rng, (3,), (0,), "float64", UNEVEN)
    found = problem.together(problem.step(
        COMM, flags={"batch_norm_update_averages": False}))
    assert_as_expected(found[:-2], problem.parts(problem.expected())[:-2],
                       "float64")
    assert_array_equal(found[-2], problem.mean)
    assert_array_equal(found[-1], problem.std)


@SIZES
@pytest.mark.parametrize("r_max, d_max", [(1.1, 0.2), (3, 5)])
def test_renormalization(rng, floatX, expressions, r_max, d_max, sizes):
    problem = Problem(rng, (3,), (0,), floatX, sizes)
    kwargs = {"r_max": r_max, "d_max": d_max, "nonlinearity": rectify}
    found = problem.step(COMM, **kwargs)
    assert_alike(*found[-2:])
    assert_as_expected(problem.together(found),
                       problem.parts(problem.step(None, **kwargs)), floatX, 5)


def test_gradients_of_gradients(rng, float64):
    """Those of plain expressions, which pass the messages once more."""
    problem = Problem(rng, (3,), (0,), "float64", UNEVEN)
    results = []
    for comm, part in ((COMM, problem.mine), (None, slice(None))):
        layer = problem.layer(comm, nonlinearity=tanh)
        x, w = T.matrices("xw")
        with plain_expressions():
            y = layer.get_output_for(x)
            first = theano.grad((w * y).sum(), x)
            second = theano.grad((first ** 2).sum(), x)
        results.append(theano.function([x, w], second, mode=PY)(
            problem.x[part], problem.w[part]))
    assert_allclose(results[0], results[1][problem.mine], rtol=1e-9,
                    atol=1e-9)


def test_testing_takes_no_other_rank(rng, float64):
    problem = Problem(rng, (3,), (0,), "float64", UNEVEN)
    layer = problem.layer(COMM)
    x = T.matrix()
    function = theano.function(
        [x], layer.get_output_for(x, deterministic=True), mode=PY)
    assert not messages(function)
    if COMM.rank == 0:
        assert_allclose(function(problem.x), reference.normalize(
            problem.x, problem.mean, problem.std, problem.gamma,
            problem.beta), rtol=1e-11)


def means_after(rng, sizes):
    """Running means before and after a step, and the batch of all ranks."""
    problem = Problem(rng, (3,), (0,), "float64", sizes)
    *_, mean, _ = problem.step(COMM)
    assert_alike(mean)
    return problem, mean


def test_one_value_leaves_the_averages(rng, float64, expressions):
    problem, mean = means_after(rng, (1, 0, 0, 0))
    assert_array_equal(mean, problem.mean)


@several
def test_one_value_per_rank_updates_the_averages(rng, float64, expressions):
    problem, mean = means_after(rng, (1, 1, 1, 1))
    assert_allclose(mean, problem.expected()[-2], rtol=1e-11)


def test_no_value_leaves_the_averages(rng, float64, expressions):
    problem = Problem(rng, (3,), (0,), "float64", UNEVEN)
    problem.mine = slice(0, 0)
    y, dx, dgamma, dbeta, mean, std = problem.step(COMM)
    assert y.shape == dx.shape == (0, 3)
    assert_array_equal(dbeta, np.zeros((1, 3)))
    assert_array_equal(mean, problem.mean)
    assert_array_equal(std, problem.std)


def test_layer_applied_twice(rng, float64, expressions):
    first = Problem(rng, (3,), (0,), "float64", UNEVEN)
    second = Problem(rng, (3,), (0,), "float64", EMPTY)
    layer = first.layer(COMM)
    inputs = T.matrices("ab")
    outputs = [layer.get_output_for(x) for x in inputs]
    function = theano.function(inputs, outputs, mode=PY)
    found = function(first.x[first.mine], second.x[second.mine])
    second.gamma, second.beta = first.gamma, first.beta
    for y, problem in zip(found, (first, second)):
        assert_allclose(y, problem.expected()[0][problem.mine], rtol=1e-10,
                        atol=1e-12)
    averages = [layer.mean.get_value(), layer.std.get_value()]
    assert_alike(*averages)
    for average, old, *batches in zip(
            averages, (first.mean, first.std),
            *(reference.statistics(problem.x, (0,))
              for problem in (first, second))):
        assert_allclose(average, reference.running_average(
            old, batches, 0.25), rtol=1e-11)


def test_layers_on_each_other(rng, float64, expressions):
    """The gradient at the lower ones has passed the upper ones."""
    total, part = mine(UNEVEN)
    x, w = rng.normal(size=(total, 4)), rng.normal(size=(total, 3))
    weights = rng.normal(size=(4, 5)), rng.normal(size=(5, 3))
    results = []
    for comm, own in ((COMM, part), (None, slice(None))):
        x_, w_ = T.matrices("xw")
        layers = [InputLayer((None, 4), x_)]
        for value in weights:
            dense = DenseLayer(layers[-1], value.shape[1], value)
            layers.append(batch_norm(dense, comm=comm))
        loss = (w_ * get_output(layers[-1])).sum()
        gradients = theano.grad(loss, [x_, layers[1].gamma,
                                       layers[1].input_layer.W])
        results.append(theano.function([x_, w_], gradients, mode=PY)(
            x[own], w[own]))
    (dx, *sums), (all_dx, *all_sums) = results
    assert_allclose(dx, all_dx[part], rtol=1e-9, atol=1e-10)
    for one, other in zip(sums, all_sums):
        assert_allclose(sum(COMM.allgather(one)), other, rtol=1e-9,
                        atol=1e-10)


def test_one_process_alone_has_the_plain_graph(float64):
    texts = []
    for comm in (None, MPI.COMM_SELF):
        layer = BatchNormLayer((None, 3), comm=comm)
        assert layer.channel is None
        x = T.matrix()
        y = layer.get_output_for(x)
        function = theano.function([x], [y, theano.grad((y ** 2).sum(), x)],
                                   mode=PY)
        assert not messages(function)
        texts.append(theano.printing.debugprint(function, file="str"))
    assert texts[0] == texts[1]


def test_groups(rng, float64):
    """Ranks that synchronize with some others only."""
    colour = COMM.rank % 2
    group = COMM.Split(colour, COMM.rank)
    problem = Problem(rng, (3,), (0,), "float64", UNEVEN)
    _, part = mine(UNEVEN)
    batches = COMM.allgather(problem.x[part])
    whole = np.concatenate(batches[colour::2])
    layer = problem.layer(group)
    x = T.matrix()
    y = theano.function([x], layer.get_output_for(x), mode=PY)(
        problem.x[part])
    start = sum(map(len, batches[colour:COMM.rank:2]))
    assert_allclose(y, reference.normalize_batch(
        whole, (0,), problem.gamma, problem.beta)[start:start + len(y)],
        rtol=1e-10, atol=1e-12)
    assert_alike(layer.mean.get_value(), layer.std.get_value(), comm=group)
    assert_allclose(layer.mean.get_value(), reference.running_average(
        problem.mean, [whole.mean(0, keepdims=True)], 0.25), rtol=1e-11)
    group.Free()


def test_two_groups_in_one_function(rng, float64):
    """Some layers with all ranks, others with some: in one order, too."""
    group = COMM.Split(COMM.rank // 2, COMM.rank)
    total, part = mine(UNEVEN)
    data = rng.normal(size=(total, 3))
    x = T.matrix()
    outputs = [BatchNormLayer((None, 3), comm=comm).get_output_for(x)
               for comm in (COMM, group)]
    found = theano.function([x], outputs, mode=PY)(data[part])
    assert_allclose(found[0], reference.normalize_batch(data, (0,))[part],
                    rtol=1e-10, atol=1e-12)
    batches = COMM.allgather(data[part])
    first = COMM.rank // 2 * 2
    whole = np.concatenate(batches[first:first + 2])
    start = sum(map(len, batches[first:COMM.rank]))
    assert_allclose(found[1], reference.normalize_batch(
        whole, (0,))[start:start + len(found[1])], rtol=1e-10, atol=1e-12)
    group.Free()


def test_world():
    assert world() is MPI.COMM_WORLD
    layer = BatchNormLayer((None, 3), comm=world())
    if COMM.size > 1:
        assert (layer.channel.rank, layer.channel.size) == (
            COMM.rank, COMM.size)
        # Layers of one communicator take turns in one order.
        assert BatchNormLayer((3, 2), comm=COMM).channel is layer.channel


@pytest.mark.parametrize("comm", ["world", 4, MPI, MPI.COMM_NULL, world],
                         ids=lambda comm: type(comm).__name__)
def test_what_is_no_communicator(comm):
    with pytest.raises(TypeError, match="BatchNormLayer 'odd'.*comm must be"):
        BatchNormLayer((None, 3), comm=comm, name="odd")
    with pytest.raises(TypeError, match="BatchNormLayer 'odd_bn'.*comm must"):
        batch_norm(DenseLayer((None, 3), 2, name="odd"), comm=comm)


@several
def test_constant_channels_have_no_variance(rng, expressions, float64):
    """None at all, though most means are rounded: by parts of odd sizes."""
    constants = rng.normal(size=500) * 10. ** rng.randint(-9, 9, 500)
    total, part = mine(UNEVEN)
    layer = BatchNormLayer((None, 500), alpha=1, comm=COMM)
    x = T.matrix()
    function = theano.function([x], layer.get_output_for(x), mode=PY)
    function(np.tile(constants, (total, 1))[part])
    assert_array_equal(layer.std.get_value(), 0)
    assert_allclose(layer.mean.get_value()[0], constants, rtol=1e-15)


@several
def test_fused_and_plain_are_refused():
    """They would sum up vectors of different meaning."""
    layer = BatchNormLayer((None, 3), comm=COMM)
    x = T.matrix()
    with plain_expressions() if COMM.rank == 0 else contextlib.nullcontext():
        loss = layer.get_output_for(x).sum()
    gradient = theano.function([x], theano.grad(loss, x), mode=PY)
    with pytest.raises(RanksDisagree, match="First difference"):
        gradient(np.ones((2, 3), theano.config.floatX))
