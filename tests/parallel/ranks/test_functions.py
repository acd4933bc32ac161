"""Compare functions that exchange equal messages, and do different things."""

import re

from bnlasagne import (
    BatchNormLayer,
    CumulativeAverage,
    average_gradients,
    get_batch_norm_updates,
)

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.ranks import COMM, PY, assert_alike, error_on_all, several
from lasagne.layers import DenseLayer, InputLayer, get_all_params, get_output
from numpy.testing import assert_array_equal

pytestmark = [pytest.mark.usefixtures("float64"), several]


class Problem:
    """A network, its input and the functions that ranks build from both."""

    def __init__(self, comm=COMM, **options):
        self.x = T.matrix()
        dense = DenseLayer(InputLayer((None, 3), self.x), 2, name="dense")
        self.network = BatchNormLayer(dense, comm=comm, name="bn", **options)

    def output(self, **flags):
        return get_output(self.network, self.x, **flags)

    def compile(self, outputs, **options):
        return theano.function([self.x], outputs, mode=PY, **options)

    def forward(self, options=None, **flags):
        return self.compile(self.output(**flags), **options or {})

    def explicit(self):
        y = self.output(batch_norm_update_averages="explicit")
        return self.compile(y, updates=get_batch_norm_updates(y))

    def twice(self, combine="chain", first=True, second=True):
        outputs = [
            get_output(self.network, factor * self.x,
                       batch_norm_update_averages=updated and "explicit")
            for factor, updated in ((1, first), (2, second))]
        return self.compile(outputs, updates=get_batch_norm_updates(
            outputs, combine=combine))

    def twice_automatic(self):
        return self.compile([get_output(self.network, factor * self.x)
                             for factor in (1, 2)])

    def step(self, rule=lasagne.updates.sgd, rate=0.1, extra=None,
             updates=(), options=None, **flags):
        y = self.output(**flags)
        params = get_all_params(self.network, trainable=True)
        gradients, outputs = average_gradients(
            T.sqr(y - 1).mean(), params, COMM, self.x.shape[0],
            outputs=[T.sqr(y - 1).mean()])
        if extra is not None:
            outputs.append(extra(self.x, y))
        given = rule(gradients, params, rate)
        given.update(updates)
        return self.compile(outputs, updates=given, **options or {})


def decay(factor):
    rate = theano.shared(1., name="rate")
    return {rate: factor * rate}


def run_pair(one, other):
    """Run a function on rank 0, and another on all others."""
    lasagne.random.set_rng(np.random.RandomState(1))
    problem, function = (one if COMM.rank == 0 else other)()
    before = [param.get_value()
              for param in get_all_params(problem.network)]
    batch = np.random.RandomState(COMM.rank).normal(0, 1, (4, 3))
    error = error_on_all(function, batch)
    if error is not None:
        # Nothing is half changed.
        for param, value in zip(get_all_params(problem.network), before):
            assert_array_equal(param.get_value(), value)
    return problem, error


def build(method, *arguments, problem=(), **options):
    def build_on_this_rank():
        made = Problem(**dict(problem))
        return made, getattr(made, method)(*arguments, **options)
    return build_on_this_rank


NO_UPDATE = {"batch_norm_update_averages": False}
FORWARD = build("forward")
STEP = build("step")
LOCAL = {"comm": None}


@pytest.mark.parametrize("one, other, told, other_told", [
    (FORWARD, build("forward", **NO_UPDATE),
     "an update of bn.mean ", "not this, but an output "),
    (FORWARD, build("forward", {"no_default_updates": True}),
     "an update of bn.mean ", "not this, but an output "),
    (FORWARD, build("forward", problem={"alpha": 0.1}),
     "bn.mean .* constant 0.5", "bn.mean .* constant 0.1"),
    (build("forward", problem={"alpha": CumulativeAverage().alpha}), FORWARD,
     "", "bn.mean .* constant 0.5"),
    (build("twice"), build("twice", "pool"), " 2 moves", " 1 move"),
    (build("twice", first=False), build("twice", second=False),
     "bn.mean .* from message 2,", "bn.mean .* from message 1,"),
    (STEP, build("step", rate=0.2), " constant 0.1", " constant 0.2"),
    (STEP, build("step", lasagne.updates.momentum),
     " constant 0.1", " constants 0.1, 0.9"),
    (STEP, build("step", extra=lambda x, y: y.mean()),
     "nothing more", "an output .* from message 1"),
    (STEP, build("step", updates=decay(0.9)),
     "not this, but an output ", "an update of rate "),
    (build("step", updates=decay(0.8)), build("step", updates=decay(0.9)),
     "rate .* constant 0.8", "rate .* constant 0.9"),
], ids=["no_update", "no_default_updates", "alpha", "schedule", "pool",
        "application", "rate", "rule", "output", "update",
        "constant"])
def test_disagreement(one, other, told, other_told):
    _, error = run_pair(one, other)
    assert "The ranks disagree" in error
    # The majority comes first.
    lines = sorted(line for line in error.splitlines()
                   if line.startswith("  rank "))
    assert re.search("rank 0: .*" + told, lines[0]), error
    assert re.search("rank [^0].*" + other_told, lines[1]), error
    check = Problem()
    run_pair(*[lambda: (check, check.forward())] * 2)


@pytest.mark.parametrize("one, other", [
    (FORWARD, build("explicit")),
    (build("twice"), build("twice_automatic")),
    (build("step", problem=LOCAL), build("step", problem=LOCAL, **NO_UPDATE)),
    (STEP, build("step", extra=lambda x, y: x.mean())),
    (STEP, build("step", extra=lambda x, y: y.shape[0])),
    (build("step", options={"name": "one"}), build("step", options={
        "on_unused_input": "ignore"})),
], ids=["explicit", "explicit_twice", "own_averages", "own_output", "size",
        "options"])
def test_agreement(one, other):
    problem, error = run_pair(one, other)
    assert error is None
    assert_alike(*[param.get_value() for param in get_all_params(
        problem.network, batch_norm_stat=False)])
    if problem.network.channel is not None:
        assert_alike(*[param.get_value() for param in get_all_params(
            problem.network, batch_norm_stat=True)])


def test_a_part_of_one_example():
    """Its static size makes another broadcast pattern, and nothing else."""
    size = 1 if COMM.rank else None
    problem = Problem()
    problem.x = T.TensorType("float64", (size == 1, False))()
    batch = np.random.RandomState(COMM.rank).normal(0, 1, (size or 4, 3))
    lasagne.random.set_rng(np.random.RandomState(1))
    assert np.isfinite(problem.step()(batch)).all()


def test_order_of_updates():
    """Updates of one function have none."""
    problem = Problem()
    y = problem.output()
    shared = [theano.shared(0., name=name) for name in "abc"]
    updates = [(variable, variable + y.sum()) for variable in shared]
    function = problem.compile(y, updates=updates[::1 if COMM.rank else -1])
    function(np.ones((2, 3)))


def test_functions_without_messages_are_not_compared():
    problem = Problem()
    y = problem.output(deterministic=True)
    if COMM.rank == 0:
        problem.compile([y, y.mean()])(np.ones((2, 3)))


@pytest.mark.skipif(COMM.size < 4, reason="takes two groups of two ranks")
def test_groups_are_apart():
    """A group's ranks need not know what another group updates."""
    group = COMM.Split(COMM.rank % 2)
    own = Problem(comm=group, alpha=0.25 if COMM.rank % 2 else 0.5)
    common = BatchNormLayer((None, 2), comm=COMM)
    y = common.get_output_for(own.output())
    function = own.compile(y)
    assert np.isfinite(function(np.random.normal(0, 1, (4, 3)))).all()
    group.Free()
