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
        "--isa", "native",
        "--output", str(tmp_path)])
    report = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert report.strip() == capsys.readouterr().out.strip()
    for title in ("## Goals", "## Training, threads: 1",
                  "## Training + rectifier, threads: 1",
                  "## Inference, threads: 1", "## Peak memory",
                  "## Training with each way of malloc"):
        assert title in report
    # In training and inference, without and with the rectifier; and all ms.
    assert sum(line.startswith(("| 8x16 ", "| 4x3x5x5 "))
               for line in rows_of(report)) == 2 * (2 * 2 + 2)
    assert sum(row.startswith("| geometric mean |")
               for row in rows_of(report)) == 4
    # PyTorch was not asked for, and one round settles nothing.
    torch, = (row for row in rows_of(report) if row.startswith(
        "| training, PyTorch eager / ours, geometric mean |"))
    assert torch.endswith("| ≥ 2.5 | – |")
    limit, = (row for row in rows_of(report) if row.startswith(
        "| training, ours / limit (x twice), geometric mean |"))
    assert limit.endswith(" ? |") and "**" not in limit
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


def test_batches(bench, quick, monkeypatch):
    """Masks and virtual batches, in the same way."""
    module, cases = bench("batches"), bench("cases")
    case = cases.Case("8x5x3", "sequence", (8, 5, 3), (0, 1))
    monkeypatch.setattr(module, "SIZES", [4, 8])
    monkeypatch.setattr(bench("speed"), "TURN", 0.001)
    with theano.configparser.change_flags(floatX="float32"):
        rows = [module._timed(case, steps, 1) for steps in (
            module._masked_steps(case, (8, 5)), module._virtual_steps(case))]
    assert list(rows[0]["seconds"]) == ["ordinary", "masked",
                                        "masked, plain Theano"]
    assert list(rows[1]["seconds"]) == ["ordinary", "4"]
    table = rows_of(module._table("title", rows))
    assert table[0] == ("| shape | ordinary, ms | masked / ordinary | masked, "
                        "plain Theano / ordinary | 4 / ordinary |")
    assert len(table) == 2 + 2


@pytest.fixture
def step(bench, quick):
    """Compute a training step of ours, and what it should be."""
    agreement, cases = bench("agreement"), bench("cases")
    case = cases.QUICK_CASES[0]
    data = cases.random_data(case)
    with theano.configparser.change_flags(floatX="float32"):
        program = bench("peers").ours(case, data, False, True)
    return program.results(), lambda convention: agreement.expected(
        convention, case, data, False, True)


def test_ours_agrees(bench, step):
    found, expected = step
    agreement = bench("agreement")
    agreement.check("ours", expected(agreement.OURS), found)


@pytest.mark.parametrize("name", [
    "dx", "dgamma", "dbeta", "y", "mean", "spread"])
def test_wrong_array_is_caught(bench, step, name):
    found, expected = step
    agreement = bench("agreement")
    found[name] = np.array(found[name])
    found[name].flat[3] += 0.001 * (1 + abs(found[name].flat[3]))
    with pytest.raises(agreement.Disagreement, match=f"ours: {name} is off"):
        agreement.check("ours", expected(agreement.OURS), found)


def test_epsilon_in_another_place_is_caught(bench, step):
    found, expected = step
    agreement = bench("agreement")
    with pytest.raises(agreement.Disagreement):
        agreement.check("ours", expected(
            agreement.OURS._replace(within=True)), found)


@pytest.mark.parametrize("name", [
    "torch", "torch-channels-last", "onednn-nchw", "onednn-nhwc",
    "onednn-nChw8c", "onnxruntime"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rectify", [True, False])
def test_frameworks_agree(bench, name, training, rectify):
    peer, agreement = bench("peers").PEERS[name], bench("agreement")
    cases = bench("cases")
    if not peer.is_installed():
        pytest.skip("not installed")
    for case in [*cases.QUICK_CASES, cases._case("sequence", 2, 3, 2, 4)]:
        if peer.measures(case, training, rectify):
            data = cases.random_data(case)
            if rectify:
                data = agreement.without_undecided(data, case)
            agreement.check(name, agreement.expected(
                peer.convention, case, data, rectify, training),
                peer.build(case, data, rectify, training).results())


CELL = {"isa": "native", "malloc": "default", "threads": 1, "training": True,
        "rectify": False, "case": "a"}


def rows(ratio, others):
    return [dict(CELL, peer=peer, seconds=[seconds] * len(others),
                 fastest=seconds, others=others)
            for peer, seconds in (("ours", 1), ("torch", ratio))]


@pytest.mark.parametrize("ratio, others, found", [
    (3, [0, 0, 0], "yes"),
    (1, [0, 0, 0], r"**missed** by a factor of 2.50"),
    (3, [1, 1, 0], "not settled: other jobs were running"),
])
def test_verdicts(bench, ratio, others, found):
    goals, case = bench("goals"), bench("cases").Case
    made = goals.speed_goals(
        goals.Times(rows(ratio, others)),
        [case("a", "dense", (2, 2), (0,))], "native", 1)
    goal, = (goal for goal in made if goal.reached is not None
             and goal.text.startswith(
                 "training, PyTorch eager / ours, geometric mean"))
    assert goals.verdict(goal) == found


def test_rounds_that_are_not_quiet_do_not_count(bench):
    goals = bench("goals")
    first, second = rows(2, [0, 1, 0, 0])
    second["seconds"][1] = 100
    times = goals.Times([first, second])
    assert times.rounds(goals.Cell(**CELL), "torch") == ([2, 2, 2], True)


def test_width_is_compared_with_the_next_wider(bench):
    goals, case = bench("goals"), bench("cases").Case
    found = []
    for isa, seconds in (("native", 1), ("avx2", 2)):
        found += [dict(CELL, isa=isa, training=training, rectify=rectify,
                       peer="ours", seconds=[seconds + training] * 3,
                       fastest=1, others=[0] * 3)
                  for training in (True, False) for rectify in (True, False)]
    goal = goals.width_goal(
        goals.Times(found), [case("a", "dense", (2, 2), (0,))],
        ("native", "avx2"), 1)
    assert (goal.reached, goal.settled) == (2, True)


def test_best_of_some_peers(bench):
    paired, goals = bench("paired"), bench("goals")
    layouts = [dict(rows(1, [0])[0], peer=f"onednn-{name}", seconds=[seconds])
               for name, seconds in (("nchw", 3), ("nhwc", 2))]
    row, = paired.best(layouts)
    times = goals.Times(layouts + [row])
    cell = goals.Cell(**CELL)
    assert row["peer"] == "onednn" and times.median(cell, "onednn") == 2
    assert times.name(cell, "onednn") == "onednn-nhwc"


def test_instruction_sets_restrict_programs(bench):
    isa = bench("isa")
    env = {"THEANO_FLAGS": "floatX=float32"}
    assert isa.restricted(env, "native") is env
    found = isa.restricted(env, "avx2")
    assert found["THEANO_FLAGS"] == (
        "floatX=float32,gcc.cxxflags=-march=native -mno-avx512f")
    assert found["ONEDNN_MAX_CPU_ISA"] == "AVX2"


@needs_compiler
def test_options(bench, monkeypatch, capsys):
    main = bench("__main__")
    monkeypatch.setattr(bench("isa"), "available", lambda: ["native", "sse2"])
    args = main.parse_arguments(["--isa", "sse2", "native",
                                 "--peers", "limit-twice"])
    assert args.isa == ["native", "sse2"] and args.peers == [
        "ours", "limit-twice"]
    assert main.parse_arguments([]).isa == ["native"]
    with pytest.raises(SystemExit):
        main.parse_arguments(["--isa", "avx"])
    assert "--isa avx: this machine has native, sse2" in (
        capsys.readouterr().err)


@needs_compiler
def test_a_program_that_fails_is_named(bench, tmp_path, capfd):
    workers = bench("workers")
    setting = workers.Setting(["ours"], bench("speed").environment(1))
    with pytest.raises(workers.Failure, match="ours"):
        setting.start(peer="ours", case="8x16", training=True, rectify=False,
                      data=str(tmp_path), results="")
    setting.close()
    assert "Traceback" in capfd.readouterr().err


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


def test_first_steps(bench):
    def way(cold, warm):
        return {"nodes": 24, **{cache: [
            {"start": seconds + 1.0, "function": seconds}
            for seconds in times] for cache, times in (
                ("cold", cold), ("warm", warm))}}

    found = {depth: {"ours": way([12.0], [1.0, 2.0, 3.0]),
                     "gist": way([48.0], [9.0, 11.0, 15.0]),
                     "without": way([9.5], [1.0, 1.0, 1.0])}
             for depth in ("1", "50")}
    goals = bench("goals").startup_goals(found)
    assert [goal.reached for goal in goals] == [
        0.25, 2 / 11, 2.5, 0.25, 2 / 11, 0.25]
    row = ("| 50 | gist's graph, plain Theano | 24 | 49.0 | 48.0 "
           "| 12.00 | 11.00 |")
    text = "\n".join(bench("report")._startup(found))
    assert row in rows_of(text)
    for ways in found.values():
        for each in ways.values():
            each["cold"] = []
    text = "\n".join(bench("report")._startup(found))
    assert row.replace("49.0 | 48.0", "– | –") in rows_of(text)
