"""Have a watcher say how a process ends that plays a rank, without MPI."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from helpers.examples import ROOT

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="reads how processes end from /proc")

# The notes alone: the package would take seconds.
COMMON = f"""\
import os, signal, subprocess, sys, time, types

package = types.ModuleType("parallel")
package.__path__ = [{str(ROOT / "bnlasagne" / "parallel")!r}]
sys.modules["parallel"] = package
from parallel import notes

def end_by(number):
    os.kill(os.getpid(), number)

def sleep(seconds):
    return subprocess.Popen([sys.executable, "-c",
                             f"import time; time.sleep({{seconds}})"])

%s
notes.start("Rank 1 of 3")
notes.begin_call("message 2 of 5: Größe".encode())
"""
LAST = "It last did: message 2 of 5: Größe"


def errors_of(code, before="pass"):
    """What a process and its watcher say; both have ended then."""
    return subprocess.run(
        [sys.executable, "-c", COMMON % before + textwrap.dedent(code)],
        stderr=subprocess.PIPE, encoding="utf-8", timeout=60,
        start_new_session=True).stderr


@pytest.mark.parametrize("code, way", [
    (f"end_by({int(number)})", f"was ended by signal {int(number)} ({name})")
    for name, number in [("SIGKILL", signal.SIGKILL),
                         ("SIGTERM", signal.SIGTERM),
                         ("SIGSEGV", signal.SIGSEGV)]] + [
    (f"os._exit({status})", f"ended with exit status {status}, before the end "
     "of its program") for status in (0, 3)])
def test_end_of_a_rank(code, way):
    """One line names the rank, the way, and what it last did."""
    line, = errors_of(code).splitlines()
    assert line.startswith("bnlasagne: Rank 1 of 3 (process ")
    assert line.endswith(f") {way}. {LAST} (not finished).")


@pytest.mark.parametrize("code, last", [
    ("notes.done()", LAST),
    ("with notes.doing('a'): end_by(9)", "It last did: a (not finished)"),
    ("with notes.doing('a'): pass", "It last did: a"),
    ("with notes.doing('a'):\n    with notes.doing('b'): pass\n    end_by(9)",
     "It last did: a (not finished)"),
    ("with notes.doing('a'):\n    notes.begin(b'b')\nend_by(9)",
     "It last did: a"),
    ("notes.begin(b'x' * 9999)", "It last did: " + "x" * 495
     + " (not finished)"),
    ("notes.end()", LAST),
])
def test_what_a_rank_last_did(code, last):
    assert errors_of(code + "\nend_by(9)").endswith(
        f"was ended by signal 9 (SIGKILL). {last}.\n")


@pytest.mark.parametrize("code", [
    "notes.end()", "notes.end(); os._exit(0)", "notes.said(); os._exit(1)",
    "notes.said(); end_by(9)", "notes.start('twice'); notes.end()",
    # Such as those of a daemon.
    "notes.end(); os.closerange(3, 256); time.sleep(1.5)"])
def test_nothing_to_say(code):
    assert errors_of(code) == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_end_of_the_whole_group(number):
    """As mpiexec ends the other ranks, of which none is to be named."""
    with waiting_rank() as rank:
        os.killpg(rank.pid, number)
        assert "bnlasagne:" not in rank.communicate(timeout=60)[1]


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Python 3.8")
@pytest.mark.parametrize("status, named", [(0, True), (1, False)])
def test_end_after_another_rank(status, named):
    """Only the first rank that fails is named."""
    with subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.exit(input() or {status})"
             ], stdin=subprocess.PIPE) as other, waiting_rank() as rank:
        other.communicate(b"\n")
        time.sleep(0.1)
        os.kill(rank.pid, signal.SIGKILL)
        errors = rank.communicate(timeout=60)[1]
    assert ("was ended by signal 9" in errors) == named


@contextlib.contextmanager
def waiting_rank():
    """A rank as large as Theano makes it, which ends as slowly."""
    with subprocess.Popen(
            [sys.executable, "-c", COMMON % "large = b'x' * 300000000"
             + "print(flush=True); time.sleep(600)"], start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            encoding="utf-8") as rank:
        rank.stdout.readline()
        # The watcher looks for other ranks.
        time.sleep(1)
        try:
            yield rank
        finally:
            rank.kill()


def test_files_that_are_closed():
    assert "(SIGKILL)" in errors_of(
        "os.closerange(3, 256); time.sleep(1.2); end_by(9)")


@pytest.mark.parametrize("leads, seconds", [(True, 60), (False, 2)])
def test_what_a_rank_leaves_behind(leads, seconds):
    """It ends with a rank that has a process group of its own."""
    start = time.monotonic()
    code = f"sleep({seconds}); end_by(9)"
    if leads:
        errors = errors_of(code)
    else:
        errors = errors_of(f"""
            if os.fork():
                os.wait()
            else:
                notes._Memory.file = None
                notes.start("Rank 2 of 3")
                {code}
            notes.end()
            """)
    line, = errors.splitlines()
    assert " was ended" in line
    # Nobody reads the standard error stream any more.
    waited = time.monotonic() - start
    assert waited < 50 if leads else waited > 2


def test_a_child_that_outlives_the_rank():
    """It has inherited the pipe of which the watcher waits for the end."""
    assert " was ended" in errors_of("""
        if os.fork():
            end_by(9)
        time.sleep(60)
        """)


def test_a_long_wait_is_said_once():
    line, = errors_of("""
        notes.begin_call(b"message 3", 0.1)
        time.sleep(4.5)
        notes.end()
        """).splitlines()
    assert line.startswith("bnlasagne: Rank 1 of 3 (process ")
    assert "seconds for the other ranks, in: message 3." in line


def test_the_ranks_that_are_waited_for():
    """They have begun fewer calls, or were stopped in this one."""
    code = """
        children = []
        for rank in range(5):
            pid = os.fork()
            if not pid:
                notes._Memory.file = notes._open()
                notes._Memory.buffer = notes.mmap.mmap(
                    notes._Memory.file, notes.SIZE)
                notes._Memory.number = rank - (rank > 2)
                notes.begin(f"message {rank}".encode())
                os.write(out, b"%d" % notes._Memory.file)
                time.sleep(60)
            children.append((pid, int(os.read(inp, 9))))
        for stopped in 1, 2, 4:
            os.kill(children[stopped][0], signal.SIGSTOP)
        time.sleep(0.1)
        notes._Memory.number = 2
        notes.begin(b"message 2")
        host = notes.address()[0]
        notes.set_addresses([(host, *child) for child in children]
            + [("elsewhere", *children[0]), (host, os.getpid(), None)])
        sys.stderr.write(notes.missing())
        for pid, _ in children:
            os.kill(pid, signal.SIGKILL)
        sys.stderr.write("".join(f"\\n{pid}" for pid, _ in children))
        notes.end()
        """
    found, *pids = errors_of("inp, out = os.pipe()\n"
                             + textwrap.dedent(code)).splitlines()
    assert found == (
        f"rank 0 (process {pids[0]}, last did: message 0 (not finished)), "
        f"rank 1 (process {pids[1]}, stopped, last did: message 1 (not "
        f"finished)), rank 2 (process {pids[2]}, stopped, last did: message 2 "
        "(not finished))")


def test_without_a_watcher():
    """The program goes on where none can be started."""
    assert errors_of("end_by(9)", before="sys.executable = '/absent'") == ""
