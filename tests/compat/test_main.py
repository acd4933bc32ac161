"""`python -m bnlasagne script.py` runs a script as Python itself does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_python(*arguments, cwd, path):
    """Run Python in a folder; the finished process."""
    # Without the hook that may be installed.
    environment = dict(os.environ, PYTHONPATH=str(path), BNLASAGNE_NO_HOOK="1")
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, cwd=str(cwd),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True, timeout=600)


class Folder:
    """A folder to run programs in, with and without the runner.

    The runner is in a package that does nothing else, so it starts quickly.
    """

    def __init__(self, path):
        self.path = path / "work"
        self.path.mkdir()
        self._site = path / "site"
        package = self._site / "bnlasagne"
        package.mkdir(parents=True)
        package.joinpath("__main__.py").write_text(
            (ROOT / "bnlasagne" / "__main__.py").read_text(encoding="utf-8"))
        package.joinpath("__init__.py").write_text(
            "def keep_freed_memory(): pass")

    def write(self, path, source):
        path = self.path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")

    def directly(self, *arguments):
        return run_python(*arguments, cwd=self.path, path=self._site)

    def run(self, *arguments):
        return self.directly("-m", "bnlasagne", *arguments)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_script_that_imports_lasagne_first(tmp_path):
    (tmp_path / "train.py").write_text(
        "import lasagne\n"
        "import bnlasagne\n"
        "layer = lasagne.layers.DenseLayer((None, 3), 2)\n"
        "print(type(bnlasagne.batch_norm(layer)).__name__)\n")
    process = run_python("-m", "bnlasagne", "train.py", cwd=tmp_path,
                         path=ROOT)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "BatchNormLayer\n"


# What a script can see of its surroundings, and may use.
SURROUNDINGS = """
import os, pickle, sys
class Weights:
    value = 7
print(sys.argv)
print(os.path.realpath(sys.path[0]))
print(__name__, os.path.abspath(__file__))
print(pickle.loads(pickle.dumps(Weights())).value)
import helper
"""


def assert_alike(process, other):
    assert process.stderr == other.stderr == ""
    assert process.stdout == other.stdout


def test_script_finds_itself_as_the_main_program(folder):
    folder.write("inner/script.py", SURROUNDINGS)
    folder.write("inner/helper.py", "print('found')")
    arguments = ["inner/script.py", "-m", "x", "--help", "-"]
    assert_alike(folder.run(*arguments), folder.directly(*arguments))
    (folder.path / "link.py").symlink_to(folder.path / "inner" / "script.py")
    assert_alike(folder.run("link.py"), folder.directly("link.py"))


@pytest.mark.parametrize("name", ["package", "module"])
def test_module_finds_itself_as_the_main_program(folder, name):
    for path in "module.py", "package/__main__.py":
        folder.write(path, SURROUNDINGS)
    folder.write("package/__init__.py", "")
    folder.write("helper.py", "print('found')")
    arguments = ["-m", name, "-m", "x", "--help"]
    assert_alike(folder.run(*arguments), folder.directly(*arguments))


@pytest.mark.parametrize("ending", [
    "import sys; sys.exit(7)",
    "import sys; sys.exit('no data')",
    "1 / 0",
    "x = )",
    "raise KeyboardInterrupt",
])
def test_script_ends_as_if_run_directly(folder, ending):
    folder.write("script.py", ending)
    got, want = folder.run("script.py"), folder.directly("script.py")
    assert got.returncode == want.returncode
    assert got.stderr.splitlines()[-1:] == want.stderr.splitlines()[-1:]


@pytest.mark.parametrize("arguments, status, says", [
    (["absent.py"], 1, "No such file"),
    (["-m", "absent"], 1, "No module named absent"),
    ([], 2, "usage: python -m bnlasagne"),
    (["--verbose", "script.py"], 2, "usage: python -m bnlasagne"),
])
def test_what_cannot_be_run(folder, arguments, status, says):
    process = folder.run(*arguments)
    assert process.returncode == status
    assert process.stdout == ""
    assert says in process.stderr


def test_help(folder):
    process = folder.run("--help")
    assert process.returncode == 0
    assert process.stdout.startswith("usage: python -m bnlasagne")
    assert "-m module" in process.stdout
