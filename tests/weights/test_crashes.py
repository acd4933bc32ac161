"""A saved file is the old or the new one, and never a piece."""

import errno
import os
import stat
import sys

from bnlasagne import load_network, save_network

import numpy as np
import pytest
from helpers.programs import ROOT, run_python, succeed
from lasagne.layers import DenseLayer, InputLayer, get_all_params

pytestmark = pytest.mark.skipif(os.name == "nt", reason="is another there")

# What may fail because of a disk; of Python's functions in C.
ON_DISK = {"BufferedWriter.write", "BufferedWriter.flush", "open", "stat",
           "BufferedWriter.seek", "BufferedWriter.tell", "chmod", "fsync",
           "BufferedWriter.__exit__", "replace", "close", "mkdir"}


def network(value):
    layer = DenseLayer(InputLayer((None, 3)), 2, name="fc")
    for param in get_all_params(layer):
        param.set_value(np.full_like(param.get_value(), value))
    return layer


def values_in(path):
    layer = network(0)
    load_network(layer, path)
    return {value for param in get_all_params(layer)
            for value in param.get_value().ravel()}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "it.npz"
    save_network(network(1), path)
    return path


def save(path, failing=None, error=None):
    """Save a network, with the error from a call; return all calls.

    Calls are those to the disk, of the package and of zipfile.
    """
    calls, layer = [], network(2)

    def profile(frame, event, called):
        name = getattr(called, "__qualname__", "")
        file = frame.f_code.co_filename
        if event == "c_call" and name in ON_DISK and (
                "weights" in file or "zipfile" in file):
            calls.append(name)
            if len(calls) - 1 == failing:
                raise error

    sys.setprofile(profile)
    try:
        save_network(layer, path)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken"),
    KeyboardInterrupt("interrupted")], ids=["full", "broken", "interrupted"])
def test_any_call_fails(path, error):
    number = len(save(path))
    assert number >= 40
    failed = 0
    for failing in range(number):
        save_network(network(1), path)
        try:
            save(path, failing, error)
        except BaseException as caught:
            assert type(caught) is type(error)
            assert error.args[-1] in str(caught)
            assert not isinstance(error, OSError) or \
                caught.filename == str(path)
            assert values_in(path) in ({1}, {2})
            failed += 1
        else:
            assert values_in(path) == {2}
        assert os.listdir(path.parent) == [path.name]
    # Some are attempts.
    assert failed >= number - 5


def test_power_cut(path, monkeypatch):
    """The content is on the disk before the name; and the name then."""
    events = []

    def sync(descriptor):
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            events.append("folder")
            assert os.path.samestat(status, os.stat(path.parent))
        else:
            events.append("file")
            new, = path.parent.glob("save_network-*/*")
            assert os.path.samestat(status, os.stat(new))
            content.append(new.read_bytes())

    def replace(source, target):
        events.append("replace")
        real(source, target)

    content, real = [], os.replace
    mode = path.stat().st_mode
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    save_network(network(2), path)
    assert events == ["file", "replace", "folder"]
    assert path.read_bytes() == content[0]
    assert path.stat().st_mode == mode


def test_folder_that_cannot_be_synced(path, monkeypatch):
    real = os.fsync

    def sync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    save_network(network(2), path)
    assert values_in(path) == {2}


@pytest.mark.parametrize("call", [
    "kill({path!r}, times=25, seed=1)", "race({path!r}, times=40)",
    "fill({path!r}, step=3989)", "write_protected()"])
def test_processes(tmp_path, call):
    path = str(tmp_path / "it.npz")
    process = run_python(
        f"from helpers import crashes; crashes.{call.format(path=path)}",
        ROOT / "tests", ROOT)
    succeed(process)
    assert "Exception ignored" not in process.stderr
