"""Installing: the builds, and the command for where Theano is missing.

The build of Theano runs on a small package in its place, which comes from a
folder, so nothing is downloaded.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from urllib.parse import unquote

import pytest
from helpers.programs import ROOT, run_python, succeed
from packaging.version import Version

BUILD_THEANO = ROOT / "bnlasagne" / "compat" / "build_theano"

# As Theano's setup.py uses them.
SETUP = """
import configparser
from setuptools import setup
parser = configparser.SafeConfigParser()
with open("setup.cfg") as file:
    parser.readfp(file)
setup(name="Theano", version=parser.get("metadata", "version"),
      py_modules=["theano"])
"""


def builds(test):
    import setuptools

    return pytest.mark.skipif(
        Version(setuptools.__version__) < Version("70.1"),
        reason="needs a setuptools that makes wheels")(test)


@pytest.fixture
def sdist(tmp_path):
    """A source distribution in a folder named links."""
    source = tmp_path / "Theano-1.0.5"
    source.mkdir()
    source.joinpath("setup.py").write_text(SETUP)
    source.joinpath("setup.cfg").write_text("[metadata]\nversion = 1.0.5\n")
    source.joinpath("theano.py").write_text("")
    path = tmp_path / "links" / "Theano-1.0.5.tar.gz"
    path.parent.mkdir()
    with tarfile.open(str(path), "w:gz") as tar:
        tar.add(str(source), source.name)
    return path


def build(folder, digest, *options, **environment):
    """Build Theano's wheel as a child of a pip with options."""
    backend = ("import sys; sys.path.insert(0, {!r}); import backend; "
               "backend.SHA256 = {!r}; print(backend.build_wheel('.'))"
               ).format(str(BUILD_THEANO), digest)
    outer = ("import subprocess, sys; sys.exit(subprocess.call("
             "[sys.executable, '-c', {!r}]))").format(backend)
    environment = dict(
        {name: value for name, value in os.environ.items()
         if not name.startswith("PIP_")},
        PIP_CONFIG_FILE=os.devnull, PIP_DISABLE_PIP_VERSION_CHECK="1",
        BNLASAGNE_NO_HOOK="1", **environment)
    return subprocess.run(
        [sys.executable, "-c", outer, "install", *options, "."],
        cwd=str(folder), env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True, timeout=300)


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names_in(folder):
    wheel, = folder.glob("*.whl")
    with zipfile.ZipFile(str(wheel)) as file:
        return file.namelist()


@builds
def test_build_puts_back_what_setup_py_misses(tmp_path, sdist):
    # As versions of pip tell the backend where it lies itself.
    elsewhere = {"PEP517_BACKEND_PATH": "elsewhere",
                 "_PYPROJECT_HOOKS_BACKEND_PATH_JSON": '["elsewhere"]'}
    succeed(build(tmp_path, digest_of(sdist), PIP_NO_INDEX="1",
                  PIP_FIND_LINKS=str(sdist.parent), **elsewhere))
    assert "theano.py" in names_in(tmp_path)


@builds
@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"),
                    reason="only Linux tells the options")
def test_build_knows_the_options_of_the_pip_that_runs_it(tmp_path, sdist):
    succeed(build(tmp_path, digest_of(sdist),
                  "--no-index", "-U", "-f", "links"))
    assert "theano.py" in names_in(tmp_path)


def test_build_refuses_another_source(tmp_path, sdist):
    process = build(tmp_path, "0" * 64, PIP_NO_INDEX="1",
                    PIP_FIND_LINKS=str(sdist.parent))
    assert process.returncode == 1
    assert digest_of(sdist) in process.stdout
    assert not list(tmp_path.glob("*.whl"))
    assert_one_sentence(process.stderr, "DO NOT MATCH THE HASHES")


def test_build_where_there_is_no_source(tmp_path):
    process = build(tmp_path, "0" * 64, PIP_NO_INDEX="1")
    assert process.returncode == 1
    assert_one_sentence(process.stderr, "Could not find a version that")


def assert_one_sentence(stderr, why):
    assert stderr.startswith("bnlasagne needs Theano==1.0.5, but pip could ")
    assert why in stderr and "PIP_FIND_LINKS=" in stderr
    assert stderr.count("\n") == 1


def test_build_takes_a_wheel_where_there_is_no_source(tmp_path):
    name = "Theano-1.0.5-py3-none-any.whl"
    links = tmp_path / "links"
    links.mkdir()
    info = "Theano-1.0.5.dist-info/"
    with zipfile.ZipFile(str(links / name), "w") as file:
        file.writestr(info + "METADATA",
                      "Metadata-Version: 2.1\nName: Theano\nVersion: 1.0.5\n")
        file.writestr(info + "WHEEL", "Wheel-Version: 1.0\n"
                      "Root-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(info + "RECORD", "")
    out = succeed(build(tmp_path, "0" * 64, PIP_NO_INDEX="1",
                        PIP_FIND_LINKS=str(links)))
    assert out.endswith(name + "\n")
    assert info + "METADATA" in names_in(tmp_path)


def test_options_of_the_pip_or_uv_that_runs_a_build():
    code = ("import sys; sys.path.insert(0, {!r}); import outer; "
            "print(outer.options())").format(str(BUILD_THEANO))
    outer = ("import subprocess, sys; subprocess.call("
             "[sys.executable, '-c', {!r}])").format(code)

    def options(*arguments):
        return eval(subprocess.check_output(
            [sys.executable, "-c", outer, *arguments],
            universal_newlines=True, timeout=60))

    assert options("pip", "install", ".") == []
    assert options(
        "install", "-r", "file", "-i", "https://a/simple", "-qf", "x", "-fw",
        "--find-links=b c", "--trusted-host", "a", "-U", ".[test]",
    ) == ["--index-url=https://a/simple", "--find-links=w",
          "--find-links=b c", "--trusted-host=a"]
    assert options("pip", "install", "--default-index", "https://a", "-i"
                   ) == []  # wrong, which pip will say


# ---------------------------------------------------------------------------
# bnlasagne's own build
# ---------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path):
    """The package's files, in a folder with an unusual name."""
    folder = tmp_path / "a c\u00f6py; of it"
    folder.mkdir()
    for path in ROOT.glob("*"):
        if path.is_file():
            shutil.copy(str(path), str(folder))
    shutil.copytree(str(ROOT / "bnlasagne"), str(folder / "bnlasagne"),
                    ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def call_hook(hook, folder, clone, version=(3, 12)):
    """Call a hook of the build backend as pip does."""
    process = run_python("""
import collections, sys
import build_backend
build_backend.sys = collections.namedtuple('sys', 'version_info')({})
print(build_backend.{}({!r}))""".format(version, hook, str(folder)), clone)
    return folder / succeed(process).splitlines()[-1]


def requirements_on_theano(metadata):
    return re.findall(r"^Requires-Dist: (Theano.*)$",
                      metadata.split("\n\n")[0], re.M)


ON_OLDER = re.compile(r'Theano ?==1.0.5 ?; python_version < "3.12"')


@builds
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_metadata_name_the_folder_that_builds_theano(tmp_path, clone, kind):
    path = call_hook("prepare_metadata_for_build_" + kind, tmp_path, clone)
    metadata = path.joinpath("METADATA").read_text(encoding="utf-8")
    older, line = requirements_on_theano(metadata)
    assert ON_OLDER.match(older)
    url = re.match("Theano @ file://([^ ;]*)$", line).group(1)
    assert os.path.exists(os.path.join(unquote(url), "pyproject.toml"))
    assert metadata.split("\n\n", 1)[1].startswith("# bnlasagne\n")


@builds
def test_metadata_on_older_pythons(tmp_path, clone):
    path = call_hook("prepare_metadata_for_build_wheel", tmp_path, clone,
                     (3, 11))
    older, = requirements_on_theano(
        path.joinpath("METADATA").read_text(encoding="utf-8"))
    assert ON_OLDER.match(older)


@builds
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_wheel_names_no_folder(tmp_path, clone, kind):
    before = sorted(map(str, clone.rglob("*")))
    wheel = call_hook("build_" + kind, tmp_path, clone)
    with zipfile.ZipFile(str(wheel)) as file:
        names = file.namelist()
        metadata, = (name for name in names if name.endswith("/METADATA"))
        older, = requirements_on_theano(file.read(metadata).decode("utf-8"))
    assert ON_OLDER.match(older)
    assert "start_bnlasagne.pth" in names
    if kind == "wheel":
        for path in BUILD_THEANO.rglob("*.*"):
            if path.suffix in (".py", ".toml"):
                assert path.relative_to(ROOT).as_posix() in names
    # Nothing is written there: it may be read-only.
    assert [name for name in sorted(map(str, clone.rglob("*")))
            if "__pycache__" not in name] == before


@builds
def test_sdist_has_all_that_builds_and_says_what_is_dynamic(tmp_path, clone):
    path = call_hook("build_sdist", tmp_path, clone)
    with tarfile.open(str(path)) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
        info = tar.extractfile(tar.getnames()[0] + "/PKG-INFO").read()
    assert {"pyproject.toml", "build_backend.py", "start_bnlasagne.pth",
            "bnlasagne/compat/build_theano/backend.py",
            "bnlasagne/compat/build_theano/pyproject.toml",
            "bnlasagne/compat/build_theano/stand_ins/configparser.py",
            } <= names
    # Otherwise uv takes the requirements from here.
    assert (b"\nDynamic: Requires-Dist\n" in info
            or b"\nMetadata-Version: 2.1\n" in b"\n" + info)


# ---------------------------------------------------------------------------
# python -m bnlasagne.compat install
# ---------------------------------------------------------------------------


@pytest.fixture
def lone(tmp_path):
    """Only bnlasagne.compat, a pip that installs nothing, and no Theano."""
    shutil.copytree(str(ROOT / "bnlasagne" / "compat"),
                    str(tmp_path / "bnlasagne" / "compat"))
    tmp_path.joinpath("bnlasagne", "__init__.py").write_text(
        "from . import compat\ncompat.apply()\n")
    pip = tmp_path / "pip"
    pip.mkdir()
    pip.joinpath("__init__.py").write_text("")
    pip.joinpath("__main__.py").write_text(
        "import sys; print(sys.argv[1:]); sys.exit(3)")
    tmp_path.joinpath("sitecustomize.py").write_text(
        "import sys\nsys.modules['theano'] = None\n")
    return tmp_path


def run_command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "bnlasagne.compat", *arguments],
        cwd=str(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=str(folder), BNLASAGNE_NO_HOOK="1"),
        universal_newlines=True, timeout=300)


@pytest.mark.skipif(sys.version_info < (3, 10), reason="no sys.orig_argv")
def test_command_installs_where_nothing_can_be_imported(lone):
    process = run_command(lone, "install", "--no-index", "-f", "links")
    assert process.stderr == ""
    assert process.returncode == 3  # pip's
    first, theano, *others = eval(process.stdout)
    assert first == "install"
    assert os.path.exists(os.path.join(theano, "pyproject.toml"))
    assert others[0] == "Lasagne>=0.1"
    assert others[-3:] == ["--no-index", "-f", "links"]


@pytest.mark.skipif(sys.version_info < (3, 10), reason="no sys.orig_argv")
def test_command_explains_itself(lone):
    process = run_command(lone, "--help")
    assert process.returncode == 0
    assert process.stdout.startswith("usage: python -m bnlasagne.compat ")
    assert run_command(lone).returncode == 1


def test_another_module_is_not_the_command(lone):
    lone.joinpath("bnlasagne", "other.py").write_text("")
    process = subprocess.run(
        [sys.executable, "-m", "bnlasagne.other", "install"], cwd=str(lone),
        env=dict(os.environ, PYTHONPATH=str(lone), BNLASAGNE_NO_HOOK="1"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        universal_newlines=True, timeout=300)
    assert process.returncode == 1 and process.stdout == ""
    assert "bnlasagne needs Theano==1.0.5" in process.stderr


@pytest.mark.parametrize("version, command", [
    ((3, 11), '{} -m pip install "Theano==1.0.5" '),
    ((3, 12), "{} -m bnlasagne.compat install"),
])
def test_message_names_the_command_where_pip_cannot(lone, version, command):
    process = run_python("import sys; sys.version_info = {}\n"
                         "import bnlasagne".format(version + (0, "final", 0)),
                         lone)
    assert process.returncode == 1
    line = process.stderr.splitlines()[-1]
    assert line.startswith("    " + command.format(sys.executable))


def test_message_where_lasagne_is_imported_first(lone):
    lasagne = lone / "lasagne"
    lasagne.mkdir()
    lasagne.joinpath("__init__.py").write_text("""
try:
    import theano
except ImportError:
    raise ImportError("Could not import Theano.")
""")
    process = run_python("""
import importlib, sys, types
sys.modules['bnlasagne'] = package = types.ModuleType('bnlasagne')
package.__path__ = ['bnlasagne']
importlib.import_module('bnlasagne.compat').prepare()
import lasagne""", lone)
    last = process.stderr[process.stderr.rindex("ImportError: "):]
    assert "bnlasagne needs Theano==1.0.5, but there is none" in last
