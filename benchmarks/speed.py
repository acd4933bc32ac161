"""Time functions in turns, in processes with a given environment."""

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Seconds: of a peer's turn, of the calls before it that are not timed, and of
# the rest before those, in which the threads of the peer before fall asleep.
TURN, WARM_UP, PAUSE = 0.03, 0.004, 0.02

# Cores that other jobs may use during a round. With more, threads wait for
# one that is not running, milliseconds at a time, whatever the work.
QUIET = 0.1
# Rounds that are tried for each that is asked for, and quiet rounds without
# which a result does not count.
TRIES, ENOUGH = 3, 3

# Memory that is freed is kept for the next call. By default, glibc gives
# arrays of some sizes back to the system at each call; whose pages are then
# faulted in again is a matter of luck, and costs more than the work itself.
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2 ** 40),
}


def environment(threads, keep_freed=True, **others):
    """Return the environment of a process that measures.

    With `keep_freed`, memory that is freed is kept for the next call. `others`
    are Theano's flags.
    """
    flags = [os.environ.get("THEANO_FLAGS", ""), "floatX=float32"]
    flags += [f"{name}={value}" for name, value in others.items()]
    kept = ENVIRONMENT if keep_freed else {}
    return dict(os.environ, **kept, OMP_NUM_THREADS=str(threads),
                MKL_NUM_THREADS=str(threads),
                OPENBLAS_NUM_THREADS=str(threads),
                THEANO_FLAGS=",".join(filter(None, flags)))


def run_module(name, options, env, launcher=()):
    """Run a module of this package as a program; return what it returned.

    Its options and its result are JSON objects. `launcher` is a command that
    starts the program, such as ``mpiexec``; of several ranks, one answers.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "result.json")
        subprocess.run([*launcher, sys.executable, "-m", "benchmarks." + name,
                        json.dumps(options), path],
                       cwd=str(ROOT), env=env, check=True)
        return json.loads(Path(path).read_text())


def answer(function):
    """Be such a program: call `function` with the options."""
    result = function(**json.loads(sys.argv[1]))
    if result is not None:
        Path(sys.argv[2]).write_text(json.dumps(result))


def time_in_turns(calls, rounds, order):
    """Time functions of this process; see :func:`rounds_in_turns`."""
    return rounds_in_turns(
        {name: functools.partial(turn, call) for name, call in calls.items()},
        time.process_time, rounds, order)


def rounds_in_turns(turns, clock, rounds, order):
    """Time programs, each in its turn, in a new order each round.

    Goes on until as many rounds as asked for were quiet, or patience ends.
    A round is quiet or not for all programs alike: their own times have no
    say in it.

    Parameters
    ----------
    turns : dict from names to functions
        Each has a turn, and returns the seconds of each call.
    clock : function
        It returns the CPU seconds that all programs have used.
    rounds : int
    order : random.Random

    Returns
    -------
    times : dict from names to lists of lists of float
        For each program and round, the seconds of each call.
    others : list of float or None
        Cores that other jobs used in each round.
    """
    times, others = {name: [] for name in turns}, []
    while (len(others) < TRIES * rounds
           and sum(map(is_quiet, others)) < rounds):
        before = _cpu_clock(clock)
        for name in order.sample(sorted(turns), len(turns)):
            times[name].append(turns[name]())
        others.append(_used_by_others(before, _cpu_clock(clock)))
    return times, others


def medians_in_turns(calls, rounds, order):
    """Time functions in turns; give their ``seconds``, and ``others``.

    ``seconds`` has the median time of each round, for each function;
    ``others`` are as in :func:`rounds_in_turns`.
    """
    times, others = time_in_turns(calls, rounds, order)
    return {"others": others, "seconds": {
        name: [statistics.median(turn) for turn in turns]
        for name, turns in times.items()}}


def is_quiet(others):
    """Tell whether a round counts; where nothing is known, it does."""
    return others is None or others <= QUIET


def _cpu_clock(clock=time.process_time):
    """Return the time now, CPU seconds of the machine, and of programs."""
    try:
        with open("/proc/stat") as stat:
            fields = [int(field) for field in stat.readline().split()[1:]]
    except OSError:
        return None
    # User, nice, system, then idle, waiting, and both interrupts, stolen.
    busy = sum(fields[:3] + fields[5:8]) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy, clock()


def _used_by_others(before, after):
    if before is None:
        return None
    wall, busy, own = (b - a for a, b in zip(before, after))
    return max(0, busy - own) / wall


def turn(call):
    """Rest, then time calls for a while; return the seconds of each."""
    time.sleep(PAUSE)
    _repeat(call, WARM_UP)
    return _repeat(call, TURN)


def _repeat(call, seconds):
    """Time calls, one at least, until their time is up."""
    times = []
    now = start = time.perf_counter()
    while not times or now - start < seconds:
        call()
        before, now = now, time.perf_counter()
        times.append(now - before)
    return times

