"""Have ranks do different things: all raise the same error, and go on."""

import time

from bnlasagne import (
    BatchNormLayer,
    RanksDisagree,
    average_gradients,
    batch_norm,
    broadcast_params,
    update_population_statistics,
)
from bnlasagne.parallel.channel import _THE_END, channel_of

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.ranks import (
    COMM,
    PY,
    assert_ranks_go_on,
    disagreement,
    several,
)
from lasagne.layers import (
    DenseLayer,
    InputLayer,
    get_all_param_values,
    get_all_params,
    get_output,
)
from numpy.testing import assert_array_equal

pytestmark = [pytest.mark.usefixtures("float64"), several]
BATCH = np.random.RandomState(COMM.rank).normal(0, 1, (4, 3))
IS_LAST = COMM.rank == COMM.size - 1


def build(sizes=(4, 2), comm=COMM, names=("one", "two", "three")):
    network = InputLayer((None, 3))
    for size, name in zip(sizes, names):
        network = batch_norm(DenseLayer(network, size, name=name), comm=comm)
    return network


def forward(network):
    """A function that exchanges only what the layers do."""
    x = T.matrix()
    return theano.function([x], get_output(network, x), mode=PY)


def trainer(network, params=None):
    """A function that exchanges gradients as well."""
    x = T.matrix()
    loss = T.sqr(get_output(network, x) - 1).mean()
    gradients = average_gradients(
        loss, params or get_all_params(network, trainable=True), COMM,
        x.shape[0])
    return theano.function([x], gradients, mode=PY)


# On the last rank there is something else than on the others.
NETWORKS = {
    "layers": (lambda: build((4, 2, 2) if IS_LAST else (4, 2)),
               ["three", "nothing more"], ["three.W", "nothing more"]),
    "channels": (lambda: build((5 if IS_LAST else 4, 2)),
                 ["of 5 channels", "of 4 channels"],
                 ["of shape (3, 5)", "of shape (3, 4)"]),
    "order": (lambda: build((3, 3), names=["two", "one"] if IS_LAST
                            else ["one", "two"]),
              ["'one_bn'", "'two_bn'"], ["one.W", "two.W"]),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_different_networks(kind):
    make, parts, _ = NETWORKS[kind]
    network = make()
    before = get_all_param_values(network)
    text = disagreement(forward(network), BATCH)
    assert all(part in text for part in parts), text
    for one, other in zip(get_all_param_values(network), before):
        assert_array_equal(one, other)
    # Of two ranks, the first counts as usual; of more, most.
    assert "\n  rank 0: " in text
    assert "\n  rank %d: " % (COMM.size - 1) in text


def test_different_networks_are_trained():
    """Training goes back through the layers where there are no more."""
    text = disagreement(trainer(NETWORKS["layers"][0]()), BATCH)
    assert "three" in text and "nothing more" not in text


@pytest.mark.parametrize("kind", NETWORKS)
def test_broadcast_to_different_networks(kind):
    make, _, parts = NETWORKS[kind]
    network = make()
    before = get_all_param_values(network)
    text = disagreement(broadcast_params, network, COMM)
    assert "broadcast_params() number " in text
    assert all(part in text for part in parts), text
    for one, other in zip(get_all_param_values(network), before):
        assert_array_equal(one, other)


@pytest.mark.parametrize("rank", [0, 1])
def test_broadcast_while_the_others_train(rank):
    network = build()
    call = ((broadcast_params, network, COMM) if COMM.rank == rank
            else (trainer(network), BATCH))
    text = disagreement(*call)
    assert "item 1:" in text
    assert "broadcast_params() from rank 0\n" in text
    assert ": a function that exchanges, first, the moments of" in text


def test_population_statistics_while_the_others_train():
    network = build()
    text = disagreement(*(
        (trainer(network), BATCH) if COMM.rank == 0 else (
            lambda: update_population_statistics(
                network, [BATCH], comm=COMM),)))
    assert "update_population_statistics()" in text


def test_different_functions():
    """One rank computes a gradient, and the others the output only."""
    x = T.matrix()
    layer = BatchNormLayer((None, 3), comm=COMM)
    y = layer.get_output_for(x)
    functions = [theano.function([x], outputs, mode=PY) for outputs in (
        y, theano.grad((y ** 3).sum(), x))]
    for function in functions:
        function(BATCH)
    before = layer.mean.get_value()
    disagreement(functions[COMM.rank == 0], BATCH)
    assert_array_equal(layer.mean.get_value(), before)


def test_branches_built_in_different_orders(mode):
    x = T.matrix()
    branches = {}
    for name in ("one", "two") if COMM.rank % 2 else ("two", "one"):
        branches[name] = BatchNormLayer((None, 3), name=name,
                                        comm=COMM).get_output_for(x)
    function = theano.function([x], branches["one"] + branches["two"],
                               mode=mode)
    for _ in range(2):
        text = disagreement(function, BATCH)
        assert "item 1:" in text and "'one'" in text and "'two'" in text


def test_parameters_in_different_orders():
    """Their gradients would be mixed up, though of one total size."""
    network = build(comm=None)
    params = get_all_params(network, trainable=True)
    text = disagreement(trainer(network, params[::-1 if IS_LAST else 1]),
                        BATCH)
    assert "the gradients of 6 parameters" in text


def test_network_without_comm_on_one_rank():
    """The first message tells, as all ranks average gradients."""
    text = disagreement(trainer(build(comm=None if IS_LAST else COMM)), BATCH)
    assert "a function that exchanges, first, the moments of" in text
    assert "a function that exchanges, first, the gradients of" in text


# Blocks that all ranks finish, or none

class Strange(Exception):
    pass


def block(error=None, lines=("a block",)):
    """A block that raises an error on rank 1; return whether it did not."""
    with channel_of(COMM, "test").together(*lines):
        if COMM.rank == 1 and error is not None:
            raise error
        return True


@pytest.mark.parametrize("error, kind, text", [
    (ValueError("odd"), ValueError, "odd"),
    (KeyError("odd"), KeyError, "'odd'"),
    (ZeroDivisionError("odd"), ZeroDivisionError, "odd"),
    (RuntimeError("odd"), RuntimeError, "odd"),
    # The nearest built-in type, which names the other one.
    (FileNotFoundError("odd"), OSError, "FileNotFoundError: odd"),
    (UnicodeDecodeError("ascii", b"x", 0, 1, "odd"), ValueError,
     "UnicodeDecodeError: "),
    (Strange("odd"), RuntimeError, "Strange: odd"),
    (SystemExit(3), RuntimeError, "SystemExit: 3"),
], ids=lambda value: type(value).__name__)
def test_error_in_a_block(error, kind, text):
    with pytest.raises(BaseException) as raised:
        block(error)
    if COMM.rank == 1:
        assert raised.value is error
    else:
        assert raised.type is kind
        assert "On rank 1: " in str(raised.value)
        assert text in str(raised.value)
    assert block()
    assert_ranks_go_on()


def test_errors_in_a_block_on_several_ranks():
    """Each rank keeps its own."""
    error = [ValueError, KeyError, OSError, IndexError][COMM.rank](COMM.rank)
    with pytest.raises(type(error)) as raised, (
            channel_of(COMM, "test").together("a block")):
        raise error
    assert raised.value is error
    assert_ranks_go_on()


def test_different_blocks():
    text = disagreement(
        lambda: block(lines=["other" if IS_LAST else "usual"]))
    assert "rank 0: usual\n" in text
    assert "rank %d: other\n" % (COMM.size - 1) in text


def test_error_in_a_block_that_others_do_not_enter():
    """The rank keeps its error, and the others are told the difference."""
    if COMM.rank == 1:
        with pytest.raises(ValueError, match="odd"):
            block(ValueError("odd"))
    else:
        with pytest.raises(RuntimeError, match="(?s)rank 1: a block"):
            channel_of(COMM, "test").agree(("something else",))
    assert_ranks_go_on()


# Ranks that do not come

@pytest.fixture
def channel(monkeypatch):
    """A channel on which no rank waits for rank 0."""
    group = COMM.Dup()
    found = channel_of(group, "test")
    found.agree(("a beginning",))
    if COMM.rank:
        monkeypatch.setattr("bnlasagne.parallel.waiting.TIMEOUT", 0)
    yield found
    # It tells the end of the program no more.
    group.Free()


def test_rank_that_does_not_come(channel):
    """It may still come, to a message that no rank waits for any more."""
    texts = set()
    for line in ("a wait", "another", "a third") if COMM.rank else ():
        with pytest.raises(RanksDisagree, match=(
                r"Rank \d of \d has waited .* do not come, before: a wait")
                ) as raised:
            channel.agree((line,))
        texts.add(str(raised.value))
    assert len(texts) == (COMM.rank > 0)
    COMM.barrier()
    if COMM.rank == 0:
        channel.agree(("a wait",))


def test_a_long_wait_is_told(channel, monkeypatch, capfd):
    monkeypatch.setattr("bnlasagne.parallel.waiting.TIMEOUT", 600)
    monkeypatch.setattr("bnlasagne.parallel.waiting.PATIENCE", 0)
    if COMM.rank == 0:
        time.sleep(0.2)
    channel.agree(("a wait",))
    text = f"bnlasagne: Rank {COMM.rank} of {COMM.size} has waited "
    found = capfd.readouterr().err
    # Rank 0 itself may wait, too, on a busy machine.
    assert found.count(text) == 1 or COMM.rank == 0, found


def test_waiting_for_the_end_has_no_limit(channel):
    """One rank may have something to do after training."""
    if COMM.rank == 0:
        time.sleep(0.2)
    channel.agree((_THE_END,))
