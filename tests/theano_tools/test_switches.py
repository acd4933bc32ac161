"""Turn something on for the time of a ``with`` statement."""

import threading

from bnlasagne.theano_tools.switches import Switch

import pytest


def test_on_within_and_off_after():
    switch = Switch("test")
    assert not switch.is_on
    with switch():
        with switch():
            assert switch.is_on
        assert switch.is_on
    assert not switch.is_on


def test_off_after_an_error():
    switch = Switch("test")
    with pytest.raises(ZeroDivisionError), switch():
        raise ZeroDivisionError
    assert not switch.is_on


def test_each_thread_has_its_own():
    switch, found = Switch("test"), []
    with switch():
        thread = threading.Thread(target=lambda: found.append(switch.is_on))
        thread.start()
        thread.join()
    assert found == [False]
