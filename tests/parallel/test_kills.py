"""End ranks of jobs at random moments, and look at what becomes of the jobs.

``make kills`` does so more often.
"""

import random
import sys

import pytest
from helpers.kills import (
    RUNNER,
    WAYS,
    Kill,
    draw_kill,
    faults,
    run_kill,
    undisturbed,
)

pytestmark = [
    pytest.mark.jobs, pytest.mark.usefixtures("needs_mpi"),
    pytest.mark.skipif(sys.platform != "linux",
                       reason="finds processes in /proc")]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """How long phases take on two ranks, and the bits that are computed."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), 2)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "SIGSTOP"])
def test_end_of_a_rank(way, known, tmp_path):
    """The job ends, names the rank, and leaves no process behind."""
    seconds, _ = known
    kill = draw_kill(random.Random(way), [way])
    outcome = run_kill(kill, tmp_path, seconds)
    assert not faults(outcome), (outcome, faults(outcome))


def test_a_rank_that_stops_for_a_while(known, tmp_path):
    """The other ranks wait, say for whom, and compute the same bits."""
    seconds, bits = known
    outcome = run_kill(Kill(2, 1, "SIGSTOP", "train", 0.3, RUNNER), tmp_path,
                       seconds, stop=5, KILL_PATIENCE="2")
    assert not faults(outcome, bits), (outcome, faults(outcome, bits))
    assert "bnlasagne: Rank 0 of 2" in outcome.errors
    assert " seconds for rank 1 (process " in outcome.errors
    assert ", stopped, last did: " in outcome.errors
