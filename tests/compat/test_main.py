"""`python -m bnlasagne` does what `python` does, with the repairs before.

The oracle is Python itself: most tests run the same thing both ways and
compare. The real Theano takes seconds to import, so all but the first run a
copy of the runner without the layers.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_python(*arguments, cwd, path, flags=(), **environment):
    # Without the hook that may be installed, which repairs as well.
    environment = dict(os.environ, PYTHONPATH=str(path),
                       BNLASAGNE_NO_HOOK="1", **environment)
    return subprocess.run(
        [sys.executable, *flags, *map(str, arguments)],
        env=environment,
        cwd=str(cwd),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=300,
    )


@pytest.fixture
def run(tmp_path):
    """Runs `python -m bnlasagne …` in a folder with a small module tree."""
    package = tmp_path / "site" / "bnlasagne"
    package.mkdir(parents=True)
    source = (ROOT / "bnlasagne" / "__main__.py").read_text(encoding="utf-8")
    (package / "__main__.py").write_text(source, encoding="utf-8")
    (package / "__init__.py").write_text("repaired = True\n")
    work = tmp_path / "work"
    work.mkdir()

    def run(*arguments, **settings):
        return run_python(
            "-m",
            "bnlasagne",
            *arguments,
            cwd=work,
            path=package.parent,
            **settings,
        )

    run.folder = work
    run.directly = lambda *arguments, **settings: run_python(
        *arguments, cwd=work, path=package.parent, **settings
    )
    return run


def write(run, path, source):
    path = run.folder / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")


def outcome(process):
    return process.returncode, process.stdout, process.stderr


def test_script_that_imports_lasagne_first(tmp_path):
    (tmp_path / "train.py").write_text(
        "import lasagne\n"
        "import bnlasagne\n"
        "layer = lasagne.layers.DenseLayer((None, 3), 2)\n"
        "print(type(bnlasagne.batch_norm(layer)).__name__)\n"
    )
    process = run_python(
        "-m", "bnlasagne", "train.py", cwd=tmp_path, path=ROOT
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == "BatchNormLayer\n"


# Everything about its surroundings that a script can see and a user may use.
SURROUNDINGS = """
import os, sys, __main__
print(sys.argv)
print(sys.path[0])
print(__name__, __package__, __spec__ and __spec__.name, __doc__)
print(os.path.abspath(__file__), type(__loader__).__name__)
print(sorted(vars(__main__)))
print(vars(__main__) is globals())
"""


def test_script_finds_itself_as_the_main_program(run):
    write(run, "inner/script.py", "'''Title'''" + SURROUNDINGS)
    arguments = ["inner/script.py", "-m", "x", "--help", "-"]
    assert outcome(run(*arguments)) == outcome(run.directly(*arguments))


@pytest.mark.parametrize("name", ["package", "package.module", "module"])
def test_module_finds_itself_as_the_main_program(run, name):
    for path in "module.py", "package/__main__.py", "package/module.py":
        write(run, path, SURROUNDINGS)
    write(run, "package/__init__.py", "")
    arguments = ["-m", name, "-m", "x", "--help"]
    assert outcome(run(*arguments)) == outcome(run.directly(*arguments))


def test_linked_script_finds_the_modules_beside_the_file(run):
    write(run, "inner/helper.py", "word = 'found'")
    write(run, "inner/script.py", "import helper; print(helper.word)")
    (run.folder / "link.py").symlink_to(run.folder / "inner" / "script.py")
    assert run("link.py").stdout == "found\n"


def test_isolated_python_gets_no_script_folder(run):
    # It does not see PYTHONPATH either, so the runner is named by its file.
    runner = run.folder.parent / "site" / "bnlasagne" / "__main__.py"
    write(run, "show.py", "import sys; print(sys.path)")
    want = run.directly("show.py", flags=["-I"])
    got = run.directly(runner, "show.py", flags=["-I"])
    assert outcome(got) == outcome(want)


def test_runs_after_the_import_of_the_package(run):
    write(
        run,
        "script.py",
        "import sys; print(sys.modules['bnlasagne'].repaired)",
    )
    assert run("script.py").stdout == "True\n"


def test_pickled_class_of_the_script_loads_in_a_direct_run(run):
    write(
        run,
        "save.py",
        "import pickle\n"
        "class Weights:\n"
        "    value = 7\n"
        "if __name__ == '__main__':\n"
        "    with open('w.pkl', 'wb') as file:\n"
        "        pickle.dump(Weights(), file)\n"
        "    with open('w.pkl', 'rb') as file:\n"
        "        print(pickle.load(file).value)\n",
    )
    write(
        run,
        "load.py",
        "import pickle\n"
        "from save import Weights\n"
        "with open('w.pkl', 'rb') as file:\n"
        "    print(type(pickle.load(file)) is Weights)\n",
    )
    assert run("save.py").stdout == "7\n"
    assert run.directly("load.py").stdout == "True\n"


def test_code_after_the_script_finds_its_names(run):
    # What atexit and threads do happens after the runner is through.
    write(
        run,
        "script.py",
        "import atexit, pickle, threading, time\n"
        "class Thing: pass\n"
        "def late(name):\n"
        "    time.sleep(0.2)\n"
        "    print(name, type(pickle.loads(pickle.dumps(Thing()))).__name__)\n"
        "atexit.register(late, 'atexit')\n"
        "threading.Thread(target=late, args=('thread',)).start()\n",
    )
    assert outcome(run("script.py")) == (0, "thread Thing\natexit Thing\n", "")


ENDINGS = {
    "end": "print('done')",
    "exit": "import sys; sys.exit(7)",
    "exit with a message": "import sys; sys.exit('no data')",
    "exit with none": "import sys; sys.exit()",
    "exception": "def f():\n    raise ValueError('x')\nf()",
    "chained": "try:\n    {}[1]\nexcept KeyError:\n    1 / 0",
    "syntax error": "x = )",
    "syntax error of a module": "import broken",
    "output before": "print('\\u00e9'); 1 / 0",
    "own hook": (
        "import sys\n"
        "def hook(kind, error, traceback):\n"
        "    print(error, traceback.tb_frame.f_code.co_name)\n"
        "sys.excepthook = hook\n"
        "1 / 0"
    ),
    "interrupt": "raise KeyboardInterrupt",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_script_ends_as_if_run_directly(run, ending):
    write(run, "broken.py", "y = )")
    write(run, "script.py", ENDINGS[ending])
    # By its full name, because Python 3.8 shows the name as it was given.
    script = run.folder / "script.py"
    got, want = run(script), run.directly(script)
    assert outcome(got) == outcome(want)


def test_interrupted_script_ends_by_the_signal(run):
    # So that a shell loop around it stops, too.
    write(run, "script.py", "raise KeyboardInterrupt")
    expected = -signal.SIGINT if os.name == "posix" else 0xC000013A
    assert run("script.py").returncode == expected


def test_module_shows_only_its_own_frames(run):
    write(run, "module.py", "def f():\n    1 / 0\nf()")
    process = run("-m", "module")
    assert process.returncode == 1
    frames = [
        line.split()[-1]
        for line in process.stderr.splitlines()
        if line.startswith("  File")
    ]
    assert frames == ["<module>", "f"]


@pytest.mark.parametrize("path", ["absent.py", "inner/absent.py", "."])
def test_script_that_cannot_be_opened(run, path):
    process = run(path)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith(
        "{}: can't open file '{}': [Errno ".format(
            sys.executable, os.path.abspath(str(run.folder / path))
        )
    )


@pytest.mark.parametrize(
    "name", ["absent", "package.absent", "package", "sys"]
)
def test_module_that_cannot_be_run(run, name):
    write(run, "package/__init__.py", "")
    process = run("-m", name)
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.count("\n") == 1
    assert "No module named {}".format(name) in process.stderr


def test_module_whose_package_misses_another(run):
    write(run, "package/__init__.py", "import absent")
    write(run, "package/module.py", "")
    process = run("-m", "package.module")
    assert process.returncode == 1
    assert process.stderr.endswith("No module named 'absent'\n")
    assert "Traceback" in process.stderr


def test_help(run):
    for option in "-h", "--help":
        process = run(option)
        assert process.returncode == 0
        assert process.stdout.startswith("usage: python -m bnlasagne")
        assert process.stderr == ""


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "usage: "),
        (["-m"], "-m needs the name of a module"),
        (["--verbose", "script.py"], "there is no option --verbose"),
    ],
)
def test_wrong_usage(run, arguments, says):
    process = run(*arguments)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith("usage: python -m bnlasagne")
    assert says in process.stderr


def test_flags_that_come_too_late_are_pointed_out(run):
    write(
        run,
        "script.py",
        "import os; os.environ['THEANO_FLAGS'] = 'floatX=float32'; 1 / 0",
    )
    process = run("script.py")
    assert process.returncode == 1
    assert "ZeroDivisionError" in process.stderr
    assert "'floatX=float32' after Theano had been" in process.stderr
    assert "THEANO_FLAGS" not in run("--help", THEANO_FLAGS="a=b").stderr
