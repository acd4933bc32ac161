"""The benchmarks: that they run, and that a wrong peer is found out."""

import importlib
import random
from pathlib import Path

import numpy as np
import pytest
import theano

ROOT = Path(__file__).resolve().parent.parent

needs_compiler = pytest.mark.skipif(
    not theano.config.cxx, reason="needs a C++ compiler")


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module("benchmarks." + name)


@needs_compiler
def test_smoke(bench, tmp_path, capsys):
    bench("__main__").main([
        "--quick", "--threads", "1", "--parts", "speed", "memory",
        "--peers", "ours", "gist", "limit-twice", "limit-once",
        "--output", str(tmp_path)])
    report = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert report.strip() == capsys.readouterr().out.strip()
    for title in ("## Goals", "## Training step, threads: 1",
                  "## Training step + rectifier, threads: 1",
                  "## Inference, threads: 1", "## Peak memory"):
        assert title in report
    # Times and ratios; in training and inference, without and with rectifier.
    assert sum(line.startswith(("| 8x16 ", "| 4x3x5x5 "))
               for line in report.splitlines()) == 2 * 2 * 4
    assert report.count("| geometric mean |") == 4
    # PyTorch was not asked for, and one round settles nothing.
    assert "not measured" in report
    assert "| yes |" not in report
    assert (tmp_path / "results.png").stat().st_size > 1000


def test_accumulation(bench, quick, monkeypatch):
    """In this process and without C, which would take a minute."""
    module, report = bench("accumulation"), bench("report")
    monkeypatch.setattr(module, "run_module", lambda name, options, env:
                        module._measure_here(**options))
    found = module.measure(1, 1, depths=[1, 2], width=4, size=16)
    assert [row["depth"] for row in found] == [1, 2]
    for row in found:
        assert set(row["seconds"]) == {"full", "accumulated", "exact"}
        assert min(map(min, row["seconds"].values())) > 0
    table = report._accumulation(found)[-1]
    assert len(table.splitlines()) == 2 + 2


def wrong(case, kind, build):
    """Break a peer in one way."""
    def broken(*args):
        program = build(*args)
        if kind == "averages":
            return program._replace(averages=lambda: [
                np.zeros(16), np.ones(16)])
        if kind == "epsilon":
            return program._replace(
                convention=program.convention._replace(within=True))
        position = ["dx", "dgamma", "dbeta", "y"].index(kind)

        def outputs():
            arrays = [np.array(array) for array in program.outputs()]
            arrays[position].flat[3] *= 1.001
            arrays[position].flat[3] += 0.001
            return arrays
        return program._replace(outputs=outputs)
    return broken


@pytest.mark.parametrize("kind", [
    "dx", "dgamma", "dbeta", "y", "averages", "epsilon"])
def test_wrong_peer_is_caught(bench, quick, monkeypatch, kind):
    speed, peers, cases = bench("speed"), bench("peers"), bench("cases")
    case = cases.QUICK_CASES[0]
    with theano.configparser.change_flags(floatX="float32"):
        speed.build(case, ["ours"], False, True)
        monkeypatch.setitem(peers.PEERS, "ours", peers.PEERS["ours"]._replace(
            build=wrong(case, kind, peers.ours)))
        with pytest.raises(bench("agreement").Disagreement, match="bnlasagne"):
            speed.build(case, ["ours"], False, True)


def rows(ratio, others):
    return [{"case": "a", "training": True, "rectify": False, "threads": 1,
             "peer": peer, "seconds": [seconds] * len(others),
             "fastest": seconds, "others": others}
            for peer, seconds in (("ours", 1), ("torch", ratio))]


@pytest.mark.parametrize("ratio, others, found", [
    (2, [0, 0, 0], "yes"),
    (1, [0, 0, 0], r"**missed** by a factor of 1.50"),
    (2, [1, 1, 0], "not settled: other jobs were running"),
])
def test_verdicts(bench, ratio, others, found):
    goals, case = bench("goals"), bench("cases").Case
    made = goals.speed_goals(goals.Times(rows(ratio, others)),
                             [case("a", "dense", (2, 2), (0,))], [1])
    goal, = (goal for goal in made if goal.reached is not None
             and goal.text.startswith("training, PyTorch eager / ours, every"))
    assert goals.verdict(goal) == found


def test_rounds_that_are_not_quiet_do_not_count(bench):
    goals = bench("goals")
    first, second = rows(2, [0, 1, 0, 0])
    second["seconds"][1] = 100
    times = goals.Times([first, second])
    assert times.rounds(1, True, False, "a", "torch") == ([2, 2, 2], True)


def test_turns_have_every_peer_in_every_round(bench):
    calls = {"a": lambda: None, "b": lambda: None}
    times, others = bench("speed").time_in_turns(calls, 2, random.Random(0))
    assert len(times["a"]) == len(times["b"]) == len(others) >= 2
