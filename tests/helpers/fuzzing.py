"""Decide how many cases a random test runs, and count them."""

import collections
import functools
import os

from hypothesis import HealthCheck, settings

__all__ = ["counter", "is_quick", "many", "register_profiles"]

counter = collections.Counter()


def register_profiles():
    """Make the profiles of hypothesis: a quick one, and one to find faults."""
    settings.register_profile(
        "bnlasagne", derandomize=True, deadline=None, database=None,
        max_examples=30)
    # Where hypothesis sees a CI system, it draws the same cases each time.
    settings.register_profile(
        "fuzz", derandomize=False, deadline=None, print_blob=True,
        max_examples=int(os.environ.get("FUZZ_CASES", "50")),
        suppress_health_check=[HealthCheck.too_slow,
                               HealthCheck.data_too_large])


def is_quick():
    """Tell whether few cases run, the same ones each time."""
    return settings().derandomize


def many(times=1, quick=None):
    """Set the number of a random test's cases, and count those that pass.

    `times` is how many cases the test can run in the time in which a slow
    test runs one. `quick` is the number in a quick run, by default 10.
    """
    def decorated(test):
        # What hypothesis calls for each case, and has for others to wrap.
        one = test.hypothesis.inner_test

        @functools.wraps(one)
        def counted(*args, **kwargs):
            result = one(*args, **kwargs)
            counter["cases"] += 1
            return result
        test.hypothesis.inner_test = counted
        profile = settings()
        n = profile.max_examples * times
        if profile.derandomize:
            n = quick or 10
        return settings(max_examples=n)(test)
    return decorated
