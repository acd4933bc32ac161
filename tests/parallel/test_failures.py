"""What becomes of a job under mpiexec in which something goes wrong.

Whatever that is, all of its processes are to end soon, with a return code that
tells, and with a message from the one that knows why. A process that waits
for ever is the worst of failures: each test is given a limit.
"""

import os
import re
import sys
import textwrap
import time
from collections import namedtuple
from pathlib import Path

import pytest
from helpers.jobs import MPIEXEC, finish, unlaunched

ROOT = Path(__file__).resolve().parents[2]
# Seconds after which a job hangs. Most take five, if they have a core.
LIMIT = 120
RUNNER, PLAIN = ("-m", "mpi4py"), ()
BOTH = pytest.mark.parametrize("flags", [RUNNER, PLAIN],
                               ids=["runner", "plain"])
BOTH_RANKS = pytest.mark.parametrize("flags, rank", [(RUNNER, 1), (PLAIN, 0)],
                                     ids=["runner", "plain"])

# What scripts begin with: a network, and how it is trained.
COMMON = """\
import bnlasagne

import os
import signal
import sys
import time
from pathlib import Path

import lasagne
import numpy as np
import theano
import theano.tensor as T
from bnlasagne import RanksDisagree, broadcast_params
from lasagne.layers import DenseLayer, InputLayer, get_all_params, get_output

comm = bnlasagne.world()
rank = comm.rank
BATCH = np.random.RandomState(rank).normal(
    0, 1, (4, 3)).astype(theano.config.floatX)


def build(sizes=(4, 2), comm=comm, names=None):
    network = InputLayer((None, 3))
    for number, size in enumerate(sizes):
        name = names[number] if names else "layer%d" % number
        network = bnlasagne.batch_norm(
            DenseLayer(network, size, name=name), comm=comm)
    return network


def forward(network):
    # It exchanges nothing but what the layers do.
    x = T.matrix()
    return theano.function([x], get_output(network, x))


def trainer(network):
    x = T.matrix()
    loss = T.sqr(get_output(network, x) - 1).mean()
    params = get_all_params(network, trainable=True)
    gradients, [loss] = bnlasagne.average_gradients(
        loss, params, comm, x.shape[0], outputs=[loss])
    updates = lasagne.updates.sgd(gradients, params, 0.1)
    return theano.function([x], loss, updates=updates)


def note(text):
    # Apart from what mpiexec puts together of all ranks' output.
    with open("rank%d.txt" % rank, "a") as file:
        file.write(text + "\\n")


def disagreement(function, *arguments):
    try:
        function(*arguments)
    except RanksDisagree as error:
        note(str(error).split("\\nApply node")[0])
    else:
        note("no error")
"""
# Ranks that told each other what went wrong go on together.
GO_ON = """
broadcast_params(right, comm)
train = trainer(right)
for _ in range(3):
    loss = train(BATCH)
note("went on: %r" % float(loss))
"""

Job = namedtuple("Job", "code errors seconds notes")


def environment(*path, **variables):
    """Variables for a Python that is no rank yet, and compiles quickly."""
    found = unlaunched(os.environ)
    found.pop("BNLASAGNE_MPI_TIMEOUT", None)
    found.update(
        PYTHONPATH=os.pathsep.join(map(str, (*path, ROOT))),
        THEANO_FLAGS=",".join(filter(None, [
            os.environ.get("THEANO_FLAGS"), "mode=FAST_COMPILE,cxx="])),
        OMP_NUM_THREADS="1")
    found.update(variables)
    return found


@pytest.fixture
def run(needs_mpi, tmp_path):
    """Runs a script on some ranks."""
    def run_script(code, then="", ranks=2, flags=RUNNER, **variables):
        (tmp_path / "script.py").write_text(
            COMMON + textwrap.dedent(code) + then, encoding="utf-8")
        command = [MPIEXEC, "-n", ranks, sys.executable, *flags, "script.py"]
        start = time.monotonic()
        result = finish(command, tmp_path, environment(**variables), LIMIT)
        seconds = time.monotonic() - start
        notes = [tmp_path / ("rank%d.txt" % rank) for rank in range(ranks)]
        return Job(result.returncode, result.stderr, seconds, [
            path.read_text(encoding="utf-8") if path.exists() else ""
            for path in notes])
    return run_script


def check_traceback(job, error):
    """The job failed, with the traceback of one rank's error."""
    assert job.code != 0, job.errors
    assert "Traceback (most recent call last):" in job.errors
    assert "script.py" in job.errors
    assert error in job.errors, job.errors


def check_disagreement(job, *parts):
    """All ranks noted the same error."""
    for text in job.notes:
        assert "The ranks disagree" in text, job
        assert "First difference, item " in text
        for part in parts:
            assert part in text
    found = [text.split("\nwent on")[0] for text in job.notes]
    assert found == found[:1] * len(found)


def check_went_on(job):
    """After the error, ranks trained together."""
    assert job.code == 0, job.errors
    ends = [text.split("went on: ")[1] for text in job.notes]
    assert ends == ends[:1] * len(ends)
    assert ours(job) == []


def ours(job):
    """What bnlasagne told."""
    return [line for line in job.errors.splitlines()
            if line.startswith("bnlasagne:")]


# --- nothing goes wrong ----------------------------------------------------

@BOTH
def test_normal_end(run, flags):
    job = run("""
        network = build()
        broadcast_params(network, comm)
        train = trainer(network)
        for _ in range(5):
            loss = train(BATCH)
        note("%r" % float(loss))
        """, ranks=3, flags=flags)
    assert job.code == 0, job.errors
    assert ours(job) == []
    assert "Traceback" not in job.errors
    assert job.notes[0] and job.notes == job.notes[:1] * 3


@BOTH
def test_sys_exit_at_the_end(run, flags):
    """Scripts that end with sys.exit(main()), to no effect or to some."""
    job = run("""
        train = trainer(build())
        train(BATCH)
        sys.exit(0)
        """, flags=flags)
    assert job.code == 0, job.errors
    assert ours(job) == []


# --- one rank ends ---------------------------------------------------------

@BOTH_RANKS
def test_error_in_the_loop(run, flags, rank):
    job = run("""
        train = trainer(build())
        for step in range(1000000):
            train(BATCH)
            if rank == %d and step == 2:
                raise ZeroDivisionError("this batch is bad")
        """ % rank, flags=flags)
    check_traceback(job, "ZeroDivisionError: this batch is bad")
    assert job.errors.count("Traceback") == 1
    assert any("Rank %d of 2 raised an error" % rank in line
               for line in ours(job))


@BOTH
def test_error_before_the_first_message(run, flags):
    """The others wait for a rank that has not sent anything yet."""
    job = run("""
        network = build()
        train = trainer(network)
        if rank == 1:
            raise OSError("no such data")
        train(BATCH)
        """, ranks=3, flags=flags)
    check_traceback(job, "OSError: no such data")


@BOTH
def test_error_in_the_midst_of_a_step(run, flags):
    """The others are past the comparison, and wait for what this one has."""
    job = run("""
        train = trainer(build())
        for step in range(5):
            train(BATCH[:, :2] if rank == 1 and step == 2 else BATCH)
        """, ranks=3, flags=flags)
    check_traceback(job, "ValueError: ")


def test_error_in_the_midst_of_a_step_that_is_caught(run):
    """The others wait for the rest of it, so there is no way to go on."""
    job = run("""
        train = trainer(build())
        for step in range(3):
            try:
                train(BATCH[:, :2] if rank == 1 and step == 1 else BATCH)
            except ValueError:
                note("caught")
        """)
    assert job.code != 0
    assert job.notes == ["", "caught\n"]
    assert "Rank 1 of 2 has left a function by an error" in job.errors


def test_no_step_after_one_that_others_did_not_come_to(run):
    """They may still come, to a message that nobody waits for any more."""
    job = run("""
        function = forward(build())
        function(BATCH)
        if rank == 1:
            time.sleep(6)
        for _ in range(3):
            try:
                function(BATCH)
            except RanksDisagree as error:
                note(str(error).split("\\nApply node")[0])
        """, BNLASAGNE_MPI_TIMEOUT="2")
    assert job.code != 0
    notes = job.notes[0].splitlines()
    assert len(notes) == 3
    assert notes == notes[:1] * 3
    assert "waited 2 seconds" in notes[0]


def test_parameters_in_another_order(run):
    """Their gradients would be mixed up, though of one total size."""
    job = run("""
        right = build(comm=None)
        params = get_all_params(right, trainable=True)
        if rank == 1:
            params = params[::-1]
        x = T.matrix()
        gradients = bnlasagne.average_gradients(
            T.sqr(get_output(right, x)).mean(), params, comm, x.shape[0])
        disagreement(theano.function([x], gradients), BATCH)
        """, GO_ON)
    check_disagreement(job, "the gradients of 6 parameters")
    check_went_on(job)


@BOTH
def test_error_before_the_network(run, flags):
    job = run("""
        if rank == 1:
            raise OSError("no such data")
        trainer(build())(BATCH)
        """, flags=flags)
    check_traceback(job, "OSError: no such data")


@BOTH
def test_keyboard_interrupt(run, flags):
    job = run("""
        train = trainer(build())
        for step in range(1000000):
            train(BATCH)
            if rank == 1 and step == 2:
                raise KeyboardInterrupt
        """, flags=flags)
    check_traceback(job, "KeyboardInterrupt")


@BOTH
def test_interrupt_by_signal(run, flags):
    """As Ctrl-C does it, in the midst of anything."""
    job = run("""
        train = trainer(build())
        if rank == 1:
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            # Again, should the first come where Python ignores errors.
            signal.setitimer(signal.ITIMER_REAL, 0.5, 5)
        while True:
            train(BATCH)
        """, flags=flags)
    check_traceback(job, "KeyboardInterrupt")


@BOTH_RANKS
def test_killed(run, flags, rank):
    job = run("""
        train = trainer(build())
        for step in range(1000000):
            train(BATCH)
            if rank == %d and step == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        """ % rank, flags=flags)
    assert job.code != 0, job.errors


@BOTH
def test_sys_exit_while_others_train(run, flags):
    job = run("""
        train = trainer(build())
        for step in range(1000000):
            train(BATCH)
            if rank == 1 and step == 2:
                sys.exit(3)
        """, flags=flags)
    assert job.code != 0, job.errors
    if not flags:
        # Without the runner, nobody but the other rank can tell.
        check_traceback(job, "RanksDisagree")


def test_runner_returns_the_exit_status(run):
    job = run("""
        train = trainer(build())
        train(BATCH)
        if rank == 0:
            sys.exit(3)
        train(BATCH)
        """)
    assert job.code == 3, job.errors


@BOTH
def test_sys_exit_with_a_message(run, flags):
    job = run("""
        train = trainer(build())
        train(BATCH)
        if rank == 1:
            sys.exit("the data end here")
        train(BATCH)
        """, ranks=3, flags=flags)
    assert job.code != 0, job.errors
    if not flags:
        # The runner ends the job so soon that mpiexec may lose what was said.
        assert "the data end here" in job.errors


# --- ranks that do different things ----------------------------------------

@BOTH
@pytest.mark.parametrize("steps", ["3 + rank", "4 - rank"])
def test_uneven_shards(run, flags, steps):
    """One rank has a batch more than the other."""
    job = run("""
        train = trainer(build())
        for step in range(%s):
            train(BATCH)
        """ % steps, flags=flags)
    check_traceback(job, "RanksDisagree: The ranks disagree on what to do")
    assert "the end of the program" in job.errors
    assert "a function that exchanges, first, the moments of" in job.errors


def test_uneven_shards_of_three(run):
    job = run("""
        train = trainer(build())
        for step in range(5 if rank == 1 else 4):
            train(BATCH)
        """, ranks=3)
    check_traceback(job, "RanksDisagree: The ranks disagree on what to do")
    # Those that are of one mind come first.
    assert "rank 0: the end of the program\n" in job.errors
    assert "rank 1: a function that exchanges" in job.errors


def test_uneven_shards_caught(run):
    """One rank handles the error and ends; the other's ends the job."""
    job = run("""
        train = trainer(build())
        try:
            for step in range(3 + rank):
                train(BATCH)
        except RanksDisagree as error:
            note(str(error))
        """)
    assert job.code != 0, job.errors
    assert "the end of the program" in job.notes[1]
    assert ours(job)


@pytest.mark.parametrize("make", ["forward", "trainer"])
def test_different_networks(run, make):
    """In the number of layers, of channels, and in the order of layers."""
    job = run("""
        right = build()
        for wrong in [build((4, 2, 2)[:2 + rank]), build((4 + rank, 2)),
                      build((3, 3), names=["one", "two"][::1 - 2 * rank])]:
            disagreement(%s(wrong), BATCH)
        """ % make, then=GO_ON)
    check_disagreement(job, "layer2", "of 5 channels", "'one_bn'", "'two_bn'")
    assert job.notes[0].count("First difference, item ") == 3
    # Training goes back through the layers where there are no more.
    assert ("nothing more" in job.notes[0]) == (make == "forward")
    check_went_on(job)


def test_different_networks_of_three(run):
    job = run("""
        right = build()
        disagreement(trainer(build((5 if rank == 2 else 4, 2))), BATCH)
        """, then=GO_ON, ranks=3)
    check_disagreement(job, "  rank 0: ", "  rank 2: ")
    check_went_on(job)


def test_broadcast_to_different_networks(run):
    job = run("""
        right = build()
        for wrong in [build((4, 2, 2)[:2 + rank]), build((4 + rank, 2)),
                      build((4, 2), names=["one", "two"][::1 - 2 * rank])]:
            before = lasagne.layers.get_all_param_values(wrong)
            disagreement(broadcast_params, wrong, comm)
            after = lasagne.layers.get_all_param_values(wrong)
            assert all((one == two).all() for one, two in zip(before, after))
        """, then=GO_ON)
    check_disagreement(job, "broadcast_params() number ", "of shape (3, 5)",
                       "nothing more", "one.W", "two.W")
    assert job.notes[0].count("First difference, item ") == 3
    check_went_on(job)


@pytest.mark.parametrize("rank", [0, 1])
def test_broadcast_while_the_other_trains(run, rank):
    job = run("""
        right = build()
        if rank == %d:
            disagreement(broadcast_params, right, comm)
        else:
            disagreement(trainer(right), BATCH)
        """ % rank, then=GO_ON)
    check_disagreement(
        job, "item 1:", "rank %d: broadcast_params() from rank 0\n" % rank,
        "rank %d: a function that exchanges, first, the moments of"
        % (1 - rank))
    check_went_on(job)


def test_different_roots(run):
    job = run("""
        right = build()
        disagreement(broadcast_params, right, comm, rank)
        """, then=GO_ON)
    check_disagreement(job, "rank 0: broadcast_params() from rank 0\n",
                       "rank 1: broadcast_params() from rank 1\n")
    check_went_on(job)


def test_population_statistics_while_the_other_trains(run):
    job = run("""
        right = build()
        if rank == 0:
            disagreement(trainer(right), BATCH)
        else:
            disagreement(lambda: bnlasagne.update_population_statistics(
                right, [BATCH], comm=comm))
        """, then=GO_ON)
    check_disagreement(job, "rank 1: update_population_statistics()")
    check_went_on(job)


# --- ranks that were not told of each other --------------------------------

@BOTH
def test_network_without_comm_on_one_rank(run, flags):
    """It goes on alone, with nothing to send to the one that waits."""
    job = run("""
        network = build(comm=None if rank == 1 else comm)
        function = forward(network)
        while True:
            function(BATCH)
        """, flags=flags, BNLASAGNE_MPI_TIMEOUT="5")
    check_traceback(job, "RanksDisagree: Rank 0 of 2 has waited ")
    # With few processors, it may be a second later.
    assert re.search(
        r"waited \d+ seconds for others that do not come, before: "
        "a function that exchanges, first, the moments of ", job.errors)
    assert "have all of them built their layers with comm?" in " ".join(
        job.errors.split())
    assert "BNLASAGNE_MPI_TIMEOUT" in job.errors
    assert job.seconds > 5


@BOTH
def test_network_without_comm_on_a_rank_that_ends(run, flags):
    """With it, all of its messages are missing, which it can tell."""
    job = run("""
        network = build(comm=None if rank == 1 else comm)
        function = forward(network)
        for _ in range(3):
            function(BATCH)
        """, flags=flags)
    check_traceback(job, "RanksDisagree: The ranks disagree on what to do")
    assert "rank 1: the end of the program\n" in job.errors


def test_no_comm_on_one_rank_but_common_gradients(run):
    """Where both have a channel, the first step tells."""
    job = run("""
        right = build()
        disagreement(trainer(build(comm=None if rank == 1 else comm)), BATCH)
        """, then=GO_ON)
    check_disagreement(
        job, "rank 0: a function that exchanges, first, the moments of",
        "rank 1: a function that exchanges, first, the gradients of")
    check_went_on(job)


def test_a_rank_that_comes_late_enough(run):
    """The time limit is that of one wait, and not for what goes well."""
    job = run("""
        train = trainer(build())
        comm.barrier()
        for _ in range(3):
            time.sleep(2 * rank)
            train(BATCH)
        """, BNLASAGNE_MPI_TIMEOUT="5")
    assert job.code == 0, job.errors
    assert ours(job) == []


def test_waiting_for_the_end_takes_no_limit(run):
    """One rank may have something to do when all is trained."""
    job = run("""
        train = trainer(build())
        comm.barrier()
        train(BATCH)
        if rank == 0:
            time.sleep(5)
            note("saved")
        """, BNLASAGNE_MPI_TIMEOUT="2")
    assert job.code == 0, job.errors
    assert job.notes[0] == "saved\n"


# --- blocks that all ranks finish, or none ---------------------------------

TOGETHER = """
from bnlasagne.parallel.channel import channel_of


class Strange(Exception):
    pass


channel = channel_of(comm, "x")
for kind in (ValueError, KeyError, ZeroDivisionError, FileNotFoundError,
             RuntimeError, Strange):
    reached = False
    try:
        with channel.together("step"):
            if rank == 1:
                raise kind("what happened")
            reached = True
        note("no error")
    except Exception as error:
        note("%s: %s: %s" % (kind.__name__, type(error).__name__, error))
    assert reached == (rank != 1)
with channel.together("step"):
    pass
note("went on")
"""


def test_together(run):
    job = run(TOGETHER, ranks=3)
    assert job.code == 0, job.errors
    assert ours(job) == []
    assert job.notes[0] == job.notes[2]
    others, mine = (text.splitlines() for text in job.notes[:2])
    assert others[-1] == mine[-1] == "went on"
    found = dict(line.split(": ", 1) for line in others[:-1])
    for kind in ("ValueError", "ZeroDivisionError", "RuntimeError"):
        assert found[kind] == kind + ": On rank 1: what happened"
        assert "%s: %s: what happened" % (kind, kind) in mine
    assert found["KeyError"].startswith("KeyError: ")
    assert "On rank 1: 'what happened'" in found["KeyError"]
    # A type that is not sent is named.
    assert found["FileNotFoundError"].startswith("OSError: On rank 1: ")
    assert "FileNotFoundError: what happened" in found["FileNotFoundError"]
    assert found["Strange"].startswith("RuntimeError: On rank 1: ")
    assert "Strange: what happened" in found["Strange"]
    assert "Strange: Strange: what happened" in mine


def test_together_with_errors_on_both(run):
    """Each keeps its own."""
    job = run("""
        from bnlasagne.parallel.channel import channel_of

        try:
            with channel_of(comm, "x").together("step"):
                raise [ValueError, KeyError][rank](rank)
        except (ValueError, KeyError) as error:
            note(repr(error))
        """)
    assert job.code == 0, job.errors
    assert job.notes == ["ValueError(0)\n", "KeyError(1)\n"]


def test_sys_exit_in_a_block(run):
    job = run("""
        from bnlasagne.parallel.channel import channel_of

        try:
            with channel_of(comm, "x").together("step"):
                if rank == 1:
                    sys.exit(3)
        except RuntimeError as error:
            note(str(error))
        """, flags=PLAIN)
    assert job.code == 3, job.errors
    assert job.notes[0] == "On rank 1: SystemExit: 3\n"


def test_different_blocks(run):
    job = run("""
        from bnlasagne.parallel.channel import channel_of

        right = build()

        def block():
            with channel_of(comm, "x").together("step %d" % rank):
                pass

        disagreement(block)
        """, then=GO_ON)
    check_disagreement(job, "rank 0: step 0\n", "rank 1: step 1\n")
    check_went_on(job)


def test_error_while_batches_are_made(run):
    """The same through a public function."""
    job = run("""
        def batches():
            yield BATCH
            if rank == 1:
                raise ValueError("a bad batch")

        right = build()
        try:
            bnlasagne.update_population_statistics(right, batches, comm=comm)
        except ValueError as error:
            note(str(error))
        """, then=GO_ON)
    assert "On rank 1: a bad batch" in job.notes[0], job
    assert "On rank" not in job.notes[1]
    assert "a bad batch" in job.notes[1]
    check_went_on(job)
