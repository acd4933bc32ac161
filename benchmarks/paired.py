"""Time training steps and inference, paired: peers, instruction sets, malloc.

In each round, each peer has a turn with each instruction set and each way of
malloc, in random order.
"""

import functools
import itertools
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from . import isa, workers
from .agreement import check, expected, without_undecided
from .cases import random_data
from .goals import Cell
from .peers import PEERS
from .speed import environment, rounds_in_turns

# Whether memory that is freed is kept for the next call.
MALLOC = {"default": False, "kept": True}
# Peers that are measured with the second way as well.
OF_MALLOC = ["ours", "torch"]
# Peers that are the fastest of others, in each cell.
BEST = {
    "torch-best": ("PyTorch, best layout", ["torch", "torch-channels-last"]),
    "onednn": ("oneDNN, best layout",
               [name for name in PEERS if name.startswith("onednn-")]),
}


def measure(cases, threads, options):
    """Time peers in all cases.

    `options` has ``peers``, ``isa`` and ``malloc`` (lists of names),
    ``rounds`` and ``seed``.

    Returns
    -------
    list of dict
        One per cell (see :class:`benchmarks.goals.Cell`) and ``peer``:
        ``seconds``, a list with the median time of each round, ``fastest``,
        that of the fastest call, and ``others``, the cores that other jobs
        used in each round (None where that is not known).
    """
    settings = {
        (name, malloc): _start(name, malloc, threads, options)
        for name in options.isa for malloc in options.malloc}
    order, rows = random.Random(options.seed), []
    for case, training, rectify in itertools.product(
            cases, (True, False), (False, True)):
        start = time.perf_counter()
        programs = _programs(settings, case, training, rectify)
        times, others = rounds_in_turns(
            {key: program.turn for key, program in programs.items()},
            lambda programs=programs: time.process_time() + sum(
                program.clock() for program in programs.values()),
            options.rounds, order)
        for program in programs.values():
            program.close()
        rows += [{
            "isa": name, "malloc": malloc if PEERS[peer].allocates else None,
            "threads": threads, "training": training, "rectify": rectify,
            "case": case.name, "peer": peer, "others": others,
            "fastest": min(map(min, turns)),
            "seconds": [statistics.median(turn) for turn in turns]}
            for (name, malloc, peer), turns in times.items()]
        print(f"{case.name}, {'training' if training else 'inference'}"
              f"{' + rectifier' if rectify else ''}, threads: {threads} "
              f"({time.perf_counter() - start:.0f} s)", file=sys.stderr)
    for setting in settings.values():
        setting.close()
    return rows + best(rows)


def _start(name, malloc, threads, options):
    """Start the process of a setting, with the peers that depend on it."""
    peers = [peer for peer in options.peers
             if (peer in OF_MALLOC or malloc == options.malloc[0])
             and (peer != "onednn-nChw16c" or isa.is_wide(name))]
    env = environment(threads, keep_freed=MALLOC[malloc])
    return workers.Setting(peers, isa.restricted(env, name))


def _programs(settings, case, training, rectify):
    """Start the programs of a case, and check that they agree.

    It raises a `Disagreement` if one of them computes something else.
    """
    data = random_data(case)
    if training and rectify:
        data = without_undecided(data, case)
    programs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workers.save(folder / "data", data._asdict())
        rule = functools.lru_cache(maxsize=None)(
            lambda convention: expected(
                convention, case, data, rectify, training))
        for key, setting in settings.items():
            for name in setting.peers:
                peer, results = PEERS[name], folder / "-".join((*key, name))
                if not peer.measures(case, training, rectify):
                    continue
                # One after the other: Theano's compile directory is locked.
                programs[(*key, name)] = setting.start(
                    peer=name, case=case.name, training=training,
                    rectify=rectify, data=str(folder / "data"),
                    results=str(results))
                if peer.convention is not None:
                    check(f"{peer.label} ({key[0]})", rule(peer.convention),
                          workers.load(results), peer.tolerance)
    return programs


def best(rows):
    """Copy the row of the fastest peer of those in `BEST`, in each cell."""
    cells = {}
    for row in rows:
        cells.setdefault(Cell.of(row), {})[row["peer"]] = row
    found = []
    for name, cell in itertools.product(BEST, cells.values()):
        among = [cell[peer] for peer in BEST[name][1] if peer in cell]
        if among:
            row = min(among, key=lambda row: statistics.median(row["seconds"]))
            found.append(dict(row, peer=name, name=row["peer"]))
    return found
