"""Check that the benchmarks run, and that a wrong peer is found out."""

import gc
import importlib
import random
import re
from pathlib import Path

import numpy as np
import pytest
import theano
from helpers.common import needs_compiler

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch):
    """Import a module of the benchmarks."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module("benchmarks." + name)


def rows_of(text):
    """List the rows of tables, without the spaces that pad their cells."""
    return [re.sub(" +", " ", line) for line in text.splitlines()
            if line.startswith("|")]


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
               for line in rows_of(report)) == 2 * 2 * 4
    assert sum(row.startswith("| geometric mean |")
               for row in rows_of(report)) == 4
    # PyTorch was not asked for, and one round settles nothing.
    assert "not measured" in report
    assert not any("| yes |" in row for row in rows_of(report))
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


# The cost of several ranks

def test_fit_of_messages(bench):
    line = bench("distributed").fit({
        str(n): 2e-6 + 3e-9 * n for n in (8, 1000, 10 ** 6)})
    np.testing.assert_allclose(line, (2e-6, 3e-9))


def test_model_of_messages(bench):
    module = bench("distributed")
    link, free = module.Line(1., 0.25), module.Line(0., 0.)
    assert module.allreduce_seconds(8, 2, link) == 3
    # Recursive doubling for a short one, Rabenseifner's for a long one.
    assert module.allreduce_seconds(8, 4, link) == 2 * 3
    assert module.allreduce_seconds(800, 4, link) == 4 + 2 * 200 * 0.75
    assert module.agreement_seconds(4, link) == 2 + 16 * 3 / 4
    assert module.synchronization_seconds([2], 1, link, link) == 0
    # 40 bytes forward, with a merge as long as the message, and 32 back.
    assert module.synchronization_seconds([2], 2, link, free) == 11 + 9
    assert module.synchronization_seconds([2] * 3, 2, link, link) == 3 * 31
    assert module.merge_seconds(40, 8, link, link) == 3 * 22
    assert module.exchange_seconds(1, 2, link) == 5 + 3
    assert module.images_for(0.05, 1., 2.) == 10
    assert [module.group_size(n, 16) for n in (1, 4, 5, 32, 64)] == [
        16, 8, 8, 1, 1]
    channels = module.RESNET_CHANNELS
    assert (len(channels), sum(channels)) == (53, 26560)


def test_report_on_ranks(bench):
    module = bench("distributed")

    def run(ranks):
        return {"rows": [
            {"network": kind, "batch": batch, "same": True,
             "sync": [0.5, 0.6], "local": [0.25, 0.3],
             "messages": {"sync": 7, "local": 1}}
            for kind in module.CHANNELS
            for batch in sorted({128 // ranks, 32})],
            "others": [0, 1], "merge": {"8": 1e-6, "1000": 2e-6},
            "messages": None if ranks == 1 else {
                name: [1e-6 + 1e-9 * int(name.replace("agree", "16"))] * 2
                for name in ("agree", "8", "8192")}}

    page = module.PAGE.read_text(encoding="utf-8")
    made = module.tables({str(ranks): run(ranks) for ranks in (1, 2, 4)},
                         [("cores", 2)])
    text = module.fill(page, made)
    assert text.count("<!-- end -->") == len(made)
    assert all(f"\n\n{table}\n<!-- end -->" in text
               for table in made.values())
    assert "| cores | 2 |" in rows_of(made["run"])
    assert "**no: other jobs were running" in made["run"]
    assert sum(row.endswith("| 2.00 | 1 | 7 |")
               for row in rows_of(made["steps"])) == 2 * 2 * 3
    assert any(row.startswith("| shared memory | 1.0 | 1.000 | measured;")
               for row in rows_of(made["lines"]))
    assert sum(row.startswith("| ResNet-50 |")
               for row in rows_of(made["model"])) == 3
    with pytest.raises(ValueError, match="one place for the table 'run'"):
        module.fill("", made)


def test_times_of_one_rank(bench, quick, needs_mpi, monkeypatch):
    module = bench("ranks")
    monkeypatch.setattr(module, "CHANNELS", {"dense": [4, 3]})
    monkeypatch.setattr(module, "CALLS", 1)
    found = module._measure_here(1)
    gc.enable()
    assert [row["batch"] for row in found["rows"]] == [32, 128]
    for row in found["rows"]:
        assert row["same"] and row["messages"] == {"sync": 0, "local": 0}
        assert len(row["sync"]) == len(row["local"]) == 1
    assert found["messages"] is None
    assert min(found["merge"].values()) > 0
