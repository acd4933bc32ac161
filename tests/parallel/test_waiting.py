"""Wait for messages that come late, by a clock of its own."""

from bnlasagne.parallel import waiting

import pytest


class Clock:
    """Stands for the module `time`; it advances when someone sleeps."""

    def __init__(self):
        self.now = 0.

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Request:
    """A message that comes after some seconds."""

    def __init__(self, clock, seconds):
        self.clock = clock
        self.time = clock.now + seconds

    def Test(self):
        self.clock.now += 1e-3
        return self.clock.now >= self.time


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(waiting, "time", clock)
    return clock


def test_stages(clock):
    """Each is called once, in the order of their times."""
    called = []
    stages = [(seconds, lambda waited, seconds=seconds:
               called.append((seconds, waited))) for seconds in (3, 1, 2, 5)]
    for _ in range(2):
        waiting.wait(Request(clock, 4), stages)
        assert [seconds for seconds, _ in called] == [1, 2, 3]
        for seconds, waited in called:
            assert waited == pytest.approx(seconds, abs=0.1)
        # Another wait starts from zero.
        called.clear()


def test_a_stage_ends_the_waiting(clock):
    def give_up(waited):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        waiting.wait(Request(clock, 1e9), [(1, give_up)])
    assert clock.now < 2
    # A message that has come is not waited for.
    waiting.wait(Request(clock, 0), [(0, give_up)])


def test_limit_by_the_environment(monkeypatch):
    name = "BNLASAGNE_MPI_TIMEOUT"
    monkeypatch.delenv(name, raising=False)
    assert waiting._seconds(name, 1800) == 1800
    monkeypatch.setenv(name, "2.5")
    assert waiting._seconds(name, 1800) == 2.5
    monkeypatch.setenv(name, "soon")
    with pytest.raises(ValueError, match=(
            f"{name} must be a number of seconds, got 'soon'")):
        waiting._seconds(name, 1800)
