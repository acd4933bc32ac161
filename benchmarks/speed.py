"""Time training steps and inference, paired, in random order.

Run as a program it is one process of the measurement, with one number of
threads: ``python -m benchmarks.speed`` with a JSON object of options as its
argument. `measure` starts it.
"""

import gc
import itertools
import json
import os
import random
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


def measure(cases, peers, threads, rounds, seed):
    """Time peers in all cases.

    Returns
    -------
    list of dict
        One per case, training or inference, without or with the rectifier
        (``case``, ``training``, ``rectify``, ``threads``), and peer
        (``peer``): ``seconds``, a list with the median time of each round,
        ``fastest``, that of the fastest call, and ``others``, the cores that
        other jobs used in each round (None where that is not known).
    """
    return run_module("speed", {
        "cases": cases, "peers": peers, "threads": threads, "rounds": rounds,
        "seed": seed}, environment(threads))


def _measure_here(cases, peers, threads, rounds, seed):
    from . import cases as known

    if any(peer.startswith("torch") for peer in peers):
        import torch
        torch.set_num_threads(threads)
    by_name = {case.name: case for case in known.CASES + known.QUICK_CASES}
    order = random.Random(seed)
    rows = []
    gc.disable()  # A collection would land in anyone's turn.
    for name, training, rectify in itertools.product(
            cases, (True, False), (False, True)):
        start = time.perf_counter()
        programs = build(by_name[name], peers, rectify, training)
        gc.collect()
        times, others = time_in_turns(
            {peer: program.call for peer, program in programs.items()},
            rounds, order)
        for peer, turns in times.items():
            rows.append({
                "case": name, "training": training, "rectify": rectify,
                "threads": threads, "peer": peer,
                "seconds": [statistics.median(turn) for turn in turns],
                "fastest": min(map(min, turns)), "others": others})
        print(f"{name}, {'training' if training else 'inference'}"
              f"{' + rectifier' if rectify else ''}, threads: {threads} "
              f"({time.perf_counter() - start:.0f} s)", file=sys.stderr)
    return rows


def build(case, peers, rectify, training):
    """Make the peers' programs, and check that they agree.

    It raises a `Disagreement` if one of them computes something else.
    """
    from .agreement import check, without_undecided
    from .cases import random_data
    from .peers import CONVENTIONS, PEERS

    data = random_data(case)
    if training and rectify:
        data = without_undecided(data, case, CONVENTIONS)
    programs = {}
    for name in peers:
        peer = PEERS[name]
        if peer.measures(rectify, training):
            programs[name] = peer.build(case, data, rectify, training)
            if programs[name].convention is not None:
                check(peer.label, programs[name], case, data, rectify,
                      training)
    return programs


def time_in_turns(calls, rounds, order):
    """Time functions, each in its turn, in a new order each round.

    Goes on until as many rounds as asked for were quiet, or patience ends.
    A round is quiet or not for all functions alike: their own times have no
    say in it.

    Parameters
    ----------
    calls : dict of str to function
    rounds : int
    order : random.Random

    Returns
    -------
    times : dict of str to list of list of float
        For each function and round, the seconds of each call.
    others : list of float or None
        Cores that other jobs used in each round.
    """
    times, others = {name: [] for name in calls}, []
    while (len(others) < TRIES * rounds
           and sum(map(is_quiet, others)) < rounds):
        before = _cpu_clock()
        for name in order.sample(sorted(calls), len(calls)):
            times[name].append(_turn(calls[name]))
        others.append(_used_by_others(before, _cpu_clock()))
    return times, others


def medians_in_turns(calls, rounds, order):
    """Time functions in turns; give their ``seconds``, and ``others``.

    See :func:`measure`. ``seconds`` is a dict from functions to lists.
    """
    times, others = time_in_turns(calls, rounds, order)
    return {"others": others, "seconds": {
        name: [statistics.median(turn) for turn in turns]
        for name, turns in times.items()}}


def is_quiet(others):
    """Tell whether a round counts; where nothing is known, it does."""
    return others is None or others <= QUIET


def _cpu_clock():
    """Return the time now, CPU seconds of the machine, and of this process."""
    try:
        with open("/proc/stat") as stat:
            fields = [int(field) for field in stat.readline().split()[1:]]
    except OSError:
        return None
    # User, nice, system, then idle, waiting, and both interrupts, stolen.
    busy = sum(fields[:3] + fields[5:8]) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy, time.process_time()


def _used_by_others(before, after):
    if before is None:
        return None
    wall, busy, own = (b - a for a, b in zip(before, after))
    return max(0, busy - own) / wall


def _turn(call):
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


if __name__ == "__main__":
    answer(_measure_here)
