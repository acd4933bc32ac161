"""Answers that are kept for other processes."""

import contextlib
import errno
import json
import os
import pathlib

from bnlasagne.compat import kept

import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "_path", tmp_path.joinpath)
    return tmp_path


def test_answers_are_added_and_the_oldest_go(folder):
    for number in range(70):
        kept.keep("it", f"key {number}", [number])
    found = kept.answers("it")
    assert found == {f"key {number}": [number] for number in range(6, 70)}
    kept.keep("it", "key 69", False)
    assert kept.answers("it")["key 69"] is False
    assert os.listdir(folder) == ["it"]


def test_damage_costs_answers_and_no_more(folder):
    kept.keep("it", "a", [1, "\u00e9"])
    content = (folder / "it").read_bytes()
    for damaged in [content[:length] for length in range(len(content))] + [
            bytes(len(content)), b"\xff" + content, b"[1]", b"3"]:
        (folder / "it").write_bytes(damaged)
        assert kept.answers("it") == {}
    kept.keep("it", "b", 2)
    assert kept.answers("it") == {"b": 2}


@pytest.mark.parametrize("failing", ["write_text", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"),
                                   KeyboardInterrupt()])
def test_an_error_leaves_the_old_answers(folder, monkeypatch, failing, error):
    def fail(path, *args):
        path.write_bytes(b"half")
        raise error

    kept.keep("it", "a", 1)
    before = (folder / "it").read_bytes()
    monkeypatch.setattr(pathlib.Path, failing, fail)
    with contextlib.nullcontext() if isinstance(error, OSError) \
            else pytest.raises(KeyboardInterrupt):
        kept.keep("it", "b", 2)
    assert (folder / "it").read_bytes() == before
    assert json.loads(before) == {"a": 1}
    assert os.listdir(folder) == ["it"]
