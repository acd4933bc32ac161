"""End a rank of a job at some moment, and look at what becomes of the job."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import namedtuple
from pathlib import Path

from .examples import ROOT
from .jobs import MPIEXEC, unlaunched

JOB = ROOT / "tests" / "parallel" / "kills" / "job.py"
PHASES = ("compile", "train", "accumulate", "population", "end")
# Compile C++ code for an empty compile directory. It takes a minute or two.
COLD = "cold"
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM,
           "SIGINT": signal.SIGINT, "SIGSTOP": signal.SIGSTOP}
WAYS = (*SIGNALS, "error", "exit")
# Seconds in which a job ends after one of its ranks has, on a busy machine;
# and in which it does all that it has to do.
LIMIT, LIMIT_OF_ALL = 60, 600
RUNNER, PLAIN = ("-m", "mpi4py"), ()

Kill = namedtuple("Kill", "ranks rank way phase fraction flags")
# `left` are processes that stay behind, `again` what a second start of the job
# has printed, if that failed.
Outcome = namedtuple(
    "Outcome", "kill came_late code seconds errors left bits again")


def draw_kill(rng, ways=WAYS, phases=PHASES):
    """Draw who is ended, when and how."""
    ranks = rng.choice((2, 3, 4))
    return Kill(ranks, rng.randrange(ranks), rng.choice(ways),
                rng.choice(phases), rng.random(), rng.choice((RUNNER, PLAIN)))


class Job:
    """Start a job whose ranks note their phases in files of a folder."""

    def __init__(self, folder, ranks, flags=RUNNER, arguments=(), **variables):
        self.folder = Path(folder)
        # The processes of the job inherit it.
        self.mark = f"BNLASAGNE_JOB={uuid.uuid4()}"
        name, value = self.mark.split("=")
        with open(self.folder / "errors.txt", "wb") as errors:
            self.process = subprocess.Popen(
                [MPIEXEC, "-n", str(ranks), sys.executable, *flags, str(JOB),
                 *arguments],
                cwd=str(folder), env=environment(**{name: value}, **variables),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=errors, start_new_session=True)

    def phases(self, rank):
        """Map the phases that a rank has entered to the time and its id."""
        path = self.folder / f"rank{rank}.txt"
        text = path.read_text() if path.exists() else ""
        return {phase: (float(seconds), int(pid)) for phase, seconds, pid in
                map(str.split, text.splitlines(True)) if text.endswith("\n")}

    def wait_for(self, rank, phase, limit):
        """Return the time of a phase and the process, None after the limit."""
        end = time.monotonic() + limit
        while time.monotonic() < end and self.process.poll() is None:
            found = self.phases(rank)
            if phase in found:
                return found[phase]
            time.sleep(0.005)
        return None

    def finish(self, limit):
        """Wait for mpiexec; return its exit status, None if it hangs."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            return None

    def errors(self):
        return (self.folder / "errors.txt").read_text(errors="replace")

    def bits(self):
        """List what the ranks have computed."""
        return [path.read_text()
                for path in sorted(self.folder.glob("rank*.bits"))]

    def processes(self):
        """List the processes of the job, with their commands."""
        return [(pid, _read(pid, "cmdline").replace("\0", " "))
                for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
                if self.mark in _read(pid, "environ").split("\0")]

    def remaining(self, limit=5):
        """List the processes that are still there after some seconds."""
        end = time.monotonic() + limit
        while self.processes() and time.monotonic() < end:
            time.sleep(0.05)
        return self.processes()

    def end(self):
        """End all processes of the job."""
        for pid, _ in self.processes():
            _send(pid, signal.SIGKILL)
        self.process.wait()


def _read(pid, name):
    try:
        # Of a process that has ended, it is empty.
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def _send(pid, number):
    try:
        os.kill(pid, number)
        return True
    except ProcessLookupError:
        return False


def environment(**variables):
    """Variables for ranks that are no ranks yet, and compile quickly."""
    flags = [os.environ.get("THEANO_FLAGS"), "mode=FAST_COMPILE,cxx="]
    found = dict(unlaunched(os.environ), PYTHONPATH=str(ROOT),
                 OMP_NUM_THREADS="1",
                 THEANO_FLAGS=",".join(filter(None, flags)))
    return {**found, **variables}


def undisturbed(folder, ranks, **variables):
    """Run a job to its end; return how long phases take, and the bits."""
    job = Job(folder, ranks, **variables)
    try:
        assert job.finish(LIMIT_OF_ALL) == 0, job.errors()
        assert not job.remaining(), job.processes()
        times = [seconds for seconds, _ in job.phases(0).values()]
        times.append(times[-1] + 0.3)
        seconds = {phase: after - before for phase, before, after
                   in zip(PHASES, times, times[1:])}
        return {**seconds, COLD: 20}, job.bits()
    finally:
        job.end()


def run_kill(kill, folder, seconds, stop=20, **variables):
    """Run a job in which one rank is ended; `seconds` are of its phases."""
    delay = kill.fraction * seconds[kill.phase]
    if kill.way not in SIGNALS:
        variables.update(KILL_WAY=kill.way, KILL_RANK=str(kill.rank),
                         KILL_PHASE=kill.phase, KILL_SECONDS=str(delay))
    arguments = ()
    if kill.phase == COLD:
        arguments = (COLD,)
        variables["THEANO_FLAGS"] = f"base_compiledir={folder}/compiled"
    job = Job(folder, kill.ranks, kill.flags, arguments, **variables)
    try:
        came_late = _kill(job, kill, delay, stop)
        start = time.monotonic()
        code = job.finish(LIMIT_OF_ALL if kill.way == "SIGSTOP" else LIMIT)
        waited = time.monotonic() - start
        left = job.remaining()
        # Or after the work of all ranks.
        came_late = came_late or kill.way != "SIGSTOP" and code == 0
        outcome = Outcome(kill, came_late, code, waited, job.errors(), left,
                          job.bits(), "")
    finally:
        job.end()
    if kill.phase == COLD:
        outcome = outcome._replace(again=_start_again(
            folder, kill.ranks, variables["THEANO_FLAGS"]))
    return outcome


def _start_again(folder, ranks, flags):
    """Start a job anew; return what it prints if that fails or hangs."""
    job = Job(folder, ranks, RUNNER, (COLD,), THEANO_FLAGS=flags)
    try:
        code = job.finish(LIMIT_OF_ALL)
        return "" if code == 0 else job.errors() or "nothing"
    finally:
        job.end()


def _kill(job, kill, delay, stop):
    """End a rank, or stop it for a while; tell whether it was too late."""
    found = job.wait_for(kill.rank, kill.phase, 300)
    if found is None:
        return True
    begun, pid = found
    time.sleep(max(0, begun + delay - time.time()))
    if kill.way not in SIGNALS:
        return False
    came_late = not _send(pid, SIGNALS[kill.way])
    if kill.way == "SIGSTOP" and not came_late:
        time.sleep(stop)
        _send(pid, signal.SIGCONT)
    return came_late


NAMED = re.compile(
    r"^bnlasagne: Rank (\d+) of (\d+) .*It last did: (.+)\.$", re.MULTILINE)


def ended_well(outcome, bits):
    """Tell whether all ranks have done all."""
    return outcome.code == 0 and bits in (None, outcome.bits)


def faults(outcome, bits=None):
    """List what is wrong with the end of a job that may compute `bits`."""
    kill, found = outcome.kill, []
    if outcome.again:
        found.append(f"does not start again: {outcome.again}")
    if outcome.code is None:
        found.append("hangs")
    if outcome.left:
        found.append(f"processes stay behind: {outcome.left}")
    if kill.way == "SIGSTOP" or outcome.came_late:
        if not ended_well(outcome, bits):
            found.append(f"ends with {outcome.code}, other bits: "
                         f"{outcome.bits != bits}")
        return found
    if outcome.code == 0:
        found.append("ends with exit status 0")
    named = {(int(rank), int(size))
             for rank, size, _ in NAMED.findall(outcome.errors)}
    # Within some blocks, all ranks raise the error of one of them.
    others = f"On rank {kill.rank}: " in outcome.errors
    victim = kill.rank, kill.ranks
    if victim not in named or len(named) > 1 and not others:
        found.append(f"names {sorted(named)}")
    return found
