"""Start jobs under mpiexec in which something goes wrong.

All processes of a job must end, with a return code and a message of the rank
that knows the reason. The worst failure is a process that waits forever.
"""

import os
import re
import sys
import textwrap
from collections import namedtuple

import pytest
from helpers.examples import ROOT
from helpers.jobs import MPIEXEC, finish, unlaunched

pytestmark = pytest.mark.jobs
# Whether ``python -m mpi4py`` ends the job, or the package itself.
RUNNER, PLAIN = ("-m", "mpi4py"), ()
BOTH = pytest.mark.parametrize("flags", [RUNNER, PLAIN],
                               ids=["runner", "plain"])

# What scripts begin with: a function that exchanges one message.
COMMON = """\
import bnlasagne

import os
import signal
import sys
import time

import lasagne
import numpy as np
import theano
import theano.tensor as T
from bnlasagne.parallel import waiting
from bnlasagne.parallel.channel import channel_of

comm = bnlasagne.world()
rank = comm.rank
BATCH = np.ones((4, 3), theano.config.floatX)


def build(comm=comm):
    x = T.matrix()
    layer = bnlasagne.BatchNormLayer((None, 3), name="bn", comm=comm)
    return theano.function([x], layer.get_output_for(T.dot(x, T.eye(3))),
                           name="train")


def note(text):
    # mpiexec mixes the output of all ranks.
    with open("rank%d.txt" % rank, "a") as file:
        file.write(text + "\\n")
"""

Job = namedtuple("Job", "code errors notes")


@pytest.fixture
def run(needs_mpi, tmp_path):
    """Runs a script on some ranks."""
    def run_script(code, ranks=2, flags=RUNNER, **variables):
        (tmp_path / "script.py").write_text(
            COMMON + textwrap.dedent(code), encoding="utf-8")
        result = finish(
            [MPIEXEC, "-n", ranks, sys.executable, *flags, "script.py"],
            tmp_path, environment(**variables))
        notes = [tmp_path / ("rank%d.txt" % rank) for rank in range(ranks)]
        return Job(result.returncode, result.stderr, [
            path.read_text(encoding="utf-8") if path.exists() else ""
            for path in notes])
    return run_script


def environment(**variables):
    """Variables for a Python that is no rank yet, and compiles quickly."""
    found = unlaunched(os.environ)
    found.pop("BNLASAGNE_MPI_TIMEOUT", None)
    flags = [os.environ.get("THEANO_FLAGS"), "mode=FAST_COMPILE,cxx="]
    return dict(found, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1",
                THEANO_FLAGS=",".join(filter(None, flags)), **variables)


def assert_ended_well(job):
    assert job.code == 0, job.errors
    assert "bnlasagne:" not in job.errors
    assert "Traceback" not in job.errors


def assert_failed(job, error):
    """The job failed, with the traceback of an error."""
    assert job.code != 0, job.errors
    assert "Traceback (most recent call last):" in job.errors
    assert "script.py" in job.errors
    assert error in job.errors, job.errors


# Nothing goes wrong

@pytest.mark.parametrize("flags, end", [
    (RUNNER, "sys.exit(0)"), (PLAIN, "sys.exit()"), (PLAIN, "")],
    ids=["runner", "plain", "plain without exit"])
def test_normal_end(run, flags, end):
    job = run(f"""
        function = build()
        for _ in range(5):
            function(BATCH)
        note("done")
        {end}
        """, ranks=3, flags=flags)
    assert_ended_well(job)
    assert job.notes == ["done\n"] * 3


# An error on one rank

def test_error_before_the_first_message(run):
    """The other ranks wait for a rank that has not sent anything."""
    job = run("""
        if rank == 1:
            raise OSError("no such data")
        build()(BATCH)
        """, ranks=3, flags=PLAIN)
    assert_failed(job, "OSError: no such data")


@pytest.mark.parametrize("flags, rank", [(RUNNER, 1), (PLAIN, 0)],
                         ids=["runner", "plain"])
def test_error_between_two_messages(run, flags, rank):
    job = run(f"""
        function = build()
        for iteration in range(1000000):
            function(BATCH)
            if rank == {rank} and iteration == 2:
                raise ZeroDivisionError("this batch is bad")
        """, flags=flags)
    assert_failed(job, "ZeroDivisionError: this batch is bad")
    assert f"Rank {rank} of 2 raised an error" in job.errors


def test_error_in_a_function(run):
    """The other ranks wait for the message that they agreed on."""
    job = run("""
        function = build()
        function(BATCH)
        function(BATCH[:, :2] if rank == 1 else BATCH)
        """, ranks=3, flags=PLAIN)
    assert_failed(job, "ValueError: ")


def test_error_in_a_function_that_is_caught(run):
    """The job cannot go on without the message."""
    job = run("""
        waiting.SHORT_PATIENCE = 0
        function = build()
        function(BATCH)
        try:
            function(BATCH[:, :2] if rank == 1 else BATCH)
        except ValueError:
            note("caught")
        function(BATCH)
        """)
    assert job.code != 0
    assert job.notes == ["", "caught\n"]
    assert "Rank 1 of 2 has left a function by an error" in job.errors


@BOTH
def test_interrupt(run, flags):
    """As by Ctrl-C, at any time."""
    job = run("""
        function = build()
        if rank == 1:
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            # Again, should the first come where Python ignores errors.
            signal.setitimer(signal.ITIMER_REAL, 0.5, 5)
        while True:
            function(BATCH)
        """, flags=flags)
    # Not always in the script: within an operation of MPI, that ends the job.
    assert job.code != 0, job.errors
    assert "KeyboardInterrupt" in job.errors


def test_interrupt_in_an_operation_of_mpi(run):
    """There, mpi4py would end the job without a word on the rank."""
    job = run("""
        def merge(lower, upper):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.1)
            return lower + upper

        channel = channel_of(comm, "test")
        channel.agree(("a test",))
        channel.merge(np.zeros(3), merge)
        time.sleep(600)
        """)
    assert_failed(job, "KeyboardInterrupt")
    assert "raised an error, which ends the job. It last did: message of: a " \
        "test" in job.errors
    assert "Fatal Python error" not in job.errors


# The end of one rank

@pytest.mark.parametrize("code, last", [
    ("end_self()", "the start of the program"),
    ("""
        send = Channel._send
        Channel._send = lambda self, call, *arguments: send(
            self, lambda *_: end_self() or call(*arguments))
        build()(BATCH)
        """, "message 1 of 1 of function 'train': the moments of "
     "BatchNormLayer 'bn' of 3 channels (not finished)"),
    ("""
        build()(BATCH)
        end_self()
        """, "message 1 of 1 of function 'train': the moments of "
     "BatchNormLayer 'bn' of 3 channels"),
    ("""
        class Fatal(theano.Op):
            def make_node(self, x):
                return theano.Apply(self, [x], [x.type()])

            def infer_shape(self, node, shapes):
                return end_self() or shapes

        theano.function([], Fatal()(T.eye(3)).shape, name="fatal")
        """, "compiling function 'fatal' (not finished)"),
    ("""
        def batches():
            passes.append(1)
            return [BATCH] if len(passes) < 2 else end_self()

        passes = []
        network = lasagne.layers.InputLayer((None, 3))
        network = bnlasagne.BatchNormLayer(bnlasagne.BatchNormLayer(network))
        bnlasagne.update_population_statistics(network, batches, comm=comm)
        """, "update_population_statistics(), pass number 2 (not finished)"),
    ("""
        end = notes.end
        notes.end = lambda: end() or end_self()
        """, "comparison of the ranks before: the end of the program"),
], ids=["start", "in a message", "after a message", "compiling", "population",
        "end"])
def test_killed(run, code, last):
    """A line says which rank it was, and what it last did."""
    job = run(f"""
        from bnlasagne.parallel import notes
        from bnlasagne.parallel.channel import Channel

        def end_self():
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)

        {textwrap.indent(textwrap.dedent(code), " " * 8).strip()}
        """, flags=PLAIN)
    assert job.code != 0, job.errors
    line, = [line for line in job.errors.splitlines() if "bnlasagne: " in line]
    assert re.fullmatch(
        r"bnlasagne: Rank 1 of 2 \(process \d+ on .+\) was ended by signal 9 "
        rf"\(SIGKILL\)\. It last did: {re.escape(last)}\.", line)


def test_exit_with_a_child(run):
    """A process that the rank has started holds up nobody."""
    job = run("""
        import subprocess

        if rank == 1:
            subprocess.Popen(["sleep", "600"])
            os._exit(7)
        time.sleep(600)
        """, ranks=3)
    assert job.code != 0
    assert "ended with exit status 7, before the end of its program" in (
        job.errors)


def test_runner_returns_the_exit_status(run):
    job = run("""
        function = build()
        function(BATCH)
        if rank == 0:
            sys.exit(3)
        function(BATCH)
        """)
    assert job.code == 3, job.errors


def test_exit_with_a_message(run):
    """Without the runner, the other ranks find out, and end the job."""
    job = run("""
        function = build()
        function(BATCH)
        if rank == 1:
            sys.exit("the data end here")
        function(BATCH)
        """, ranks=3, flags=PLAIN)
    assert_failed(job, "RanksDisagree")
    assert "the data end here" in job.errors


@pytest.mark.parametrize("ranks, iterations, flags", [
    (2, "3 + rank", PLAIN), (3, "5 if rank == 1 else 4", RUNNER)],
    ids=["plain", "runner"])
def test_uneven_numbers_of_batches(run, ranks, iterations, flags):
    job = run(f"""
        function = build()
        for _ in range({iterations}):
            function(BATCH)
        """, ranks=ranks, flags=flags)
    assert_failed(job, "RanksDisagree: The ranks disagree on what to do")
    # What most ranks do comes first.
    assert "rank 0: the end of the program\n" in job.errors
    assert "rank 1: a function that exchanges, first, the moments of" in (
        job.errors)


def test_uneven_numbers_of_batches_caught(run):
    """One rank handles the error and ends; the error of the other remains."""
    job = run("""
        function = build()
        try:
            for _ in range(3 + rank):
                function(BATCH)
        except bnlasagne.RanksDisagree as error:
            note(str(error))
        """)
    assert job.code != 0, job.errors
    assert "the end of the program" in job.notes[1]
    assert "bnlasagne: The ranks disagree" in job.errors


# One rank sends nothing

def test_rank_without_comm(run):
    """It goes on alone, so that no message tells the waiting rank."""
    job = run("""
        function = build(None if rank == 1 else comm)
        while True:
            function(BATCH)
        """, flags=PLAIN, BNLASAGNE_MPI_TIMEOUT="1")
    assert_failed(job, "RanksDisagree: Rank 0 of 2 has waited ")
    text = " ".join(job.errors.split())
    assert ("for other ranks that do not come, before: a function that "
            "exchanges, first, the moments of ") in text
    assert "have all of them built their layers with comm?" in text
    assert "BNLASAGNE_MPI_TIMEOUT" in text


def test_rank_without_comm_that_ends(run):
    job = run("""
        function = build(None if rank == 1 else comm)
        function(BATCH)
        """, flags=PLAIN)
    assert_failed(job, "RanksDisagree: The ranks disagree on what to do")
    assert "rank 1: the end of the program\n" in job.errors
