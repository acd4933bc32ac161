"""The repairs, and the messages where there is nothing to repair with.

What matters happens while modules are imported for the first time, so most
tests start a Python of their own. Where Theano and Lasagne need not be the
real ones, small packages in their place keep that fast.
"""

import os
import re
import shutil
import subprocess
import sys
import types

from bnlasagne.compat.install import REQUIREMENTS, install_line
from bnlasagne.compat.theano import let_clang_compile

import pytest
from helpers.common import needs_compiler
from helpers.programs import ROOT, run_python, succeed


@pytest.fixture
def bare(tmp_path):
    """A folder with only bnlasagne.compat, and packages to change at will."""
    package = tmp_path / "bnlasagne"
    package.mkdir()
    shutil.copytree(str(ROOT / "bnlasagne" / "compat"),
                    str(package / "compat"))
    (package / "__init__.py").write_text(
        "from . import compat\ncompat.apply()\n")
    write_package(tmp_path, "theano/tensor/signal", '__version__ = "1.0.5"')
    write_package(tmp_path, "lasagne", '__version__ = "0.2.dev1"')
    return tmp_path


def write_package(folder, path, source=""):
    """Make a package whose outermost __init__.py is `source`."""
    first, *inner = path.split("/")
    folder = folder / first
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").write_text(source + "\n", encoding="utf-8")
    if inner:
        write_package(folder, "/".join(inner))


def write_metadata(folder, name, version):
    info = folder / "{}-{}.dist-info".format(name, version)
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: {}\nVersion: {}\n".format(name, version)
    )


def hide(folder, package):
    """Let Python behave as if a package were not installed."""
    (folder / "sitecustomize.py").write_text(
        "import sys\nsys.modules[{!r}] = None\n".format(package)
    )


def refusal(folder, code="import bnlasagne"):
    """The ImportError's message, on one line."""
    process = run_python(code, folder)
    assert process.returncode == 1, process.stdout
    message = process.stderr[process.stderr.rindex("ImportError: ") :]
    return " ".join(message.split())


# ---------------------------------------------------------------------------
# With the real packages
# ---------------------------------------------------------------------------


def test_lasagne_pools_as_theano_does_without_warnings():
    # UserWarning is what Theano warns with about the old argument names.
    succeed(
        run_python(
            """
import warnings
import bnlasagne.compat
import numpy as np
import lasagne
import theano

warnings.simplefilter('error', UserWarning)
x = np.random.RandomState(0).randn(2, 3, 6, 7).astype(theano.config.floatX)


def pooled(layer_class, x, **settings):
    incoming = lasagne.layers.InputLayer(x.shape, theano.shared(x))
    layer = layer_class(incoming, **settings)
    return lasagne.layers.get_output(layer).eval()


layers = lasagne.layers
got = pooled(layers.MaxPool2DLayer, x, pool_size=(2, 3), stride=(1, 2))
want = [[x[..., i:i + 2, j:j + 3].max(axis=(2, 3)) for j in range(0, 5, 2)]
        for i in range(5)]
np.testing.assert_array_equal(got, np.transpose(want, (2, 3, 0, 1)))

got = pooled(layers.Pool2DLayer, x, pool_size=2, pad=1, mode='sum')
padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], 'constant')
want = padded[..., :8].reshape(2, 3, 4, 2, 4, 2).sum(axis=(3, 5))
np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)

got = pooled(layers.MaxPool1DLayer, x[:, :, 0], pool_size=2)
np.testing.assert_array_equal(got, x[:, :, 0, :6].reshape(2, 3, 3, 2).max(3))
""",
            ROOT,
        )
    )


def test_import_of_theano_that_failed_before_is_repaired():
    # In a notebook, `import lasagne` fails, then people find bnlasagne. The
    # first import fails here with every NumPy and Python.
    out = succeed(
        run_python(
            """
import numpy, sys
sys.modules['numpy.distutils'] = None
try:
    import lasagne
except ImportError as error:
    print('failed')
del sys.modules['numpy.distutils']
import bnlasagne.compat
import lasagne
import theano
print(theano.config.floatX)
""",
            ROOT,
            THEANO_FLAGS="floatX=float32",
        )
    )
    assert out == "failed\nfloat32\n"


def test_message_names_the_header_that_the_compiler_misses(tmp_path):
    # Theano asks g++, the first on the path, for its version before all else.
    compiler = tmp_path / "g++"
    compiler.write_text(
        "#!/bin/sh\n"
        'case " $* " in *" -c "* | *" -shared "*)\n'
        "  echo 'mod.cpp:1:10: fatal error: Python.h: No such file' >&2\n"
        "  exit 1;;\n"
        "esac\n"
        "echo 12\n"
    )
    compiler.chmod(0o755)
    process = run_python(
        "import bnlasagne.compat",
        ROOT,
        THEANO_FLAGS="base_compiledir={},cxx={}".format(tmp_path, compiler),
    )
    assert process.returncode == 1
    last = process.stderr[process.stderr.rindex("ImportError: ") :]
    assert "Python.h" in last
    assert "THEANO_FLAGS=cxx=" in last
    assert "python{}.{}-dev".format(*sys.version_info) in last


# ---------------------------------------------------------------------------
# The repairs
# ---------------------------------------------------------------------------


def test_provides_what_is_missing_and_keeps_the_flags(bare):
    out = succeed(
        run_python(
            """
import bnlasagne
from theano.tensor.signal import downsample
import os, sys
assert downsample.max_pool_2d is bnlasagne.compat.max_pool_2d
bnlasagne.compat.apply()
import theano.tensor.signal.downsample
assert theano.tensor.signal.downsample is downsample
del sys.modules['theano.tensor.signal.downsample']
assert theano.tensor.signal.downsample is downsample
print(os.environ['THEANO_FLAGS'])
""",
            bare,
            THEANO_FLAGS="cxx=",
        )
    )
    assert out == "cxx=\n"


FORMAT = (
    "compiledir_%(short_platform)s-%(processor)s-%(python_version)s-"
    "%(python_bitwidth)s-rank"
)


@pytest.mark.parametrize("name", ["PMI_RANK", "OMPI_COMM_WORLD_RANK"])
def test_each_mpi_process_has_its_compile_directory(bare, name):
    write_package(bare, "theano", "import os\n__version__ = '1.0.5'\n"
                  "flags = os.environ.get('THEANO_FLAGS')")
    code = """
import os
import bnlasagne
import theano
print(theano.flags, os.environ.get('THEANO_FLAGS'))
"""
    plain = {"THEANO_FLAGS": "openmp=1", "THEANORC": os.devnull}
    assert succeed(run_python(code, bare, **plain)) == "openmp=1 openmp=1\n"
    out = succeed(run_python(code, bare, **plain, **{name: "12"}))
    assert out == "compiledir_format=%s12,openmp=1 openmp=1\n" % FORMAT


def test_the_users_compile_directory_stays(bare, tmp_path):
    write_package(bare, "theano", "import os\n__version__ = '1.0.5'\n"
                  "print(os.environ['THEANO_FLAGS'])")
    config = tmp_path / "theanorc"
    config.write_text("[global]\ncompiledir_format = mine\n")
    out = succeed(run_python("import bnlasagne", bare, PMI_RANK="1",
                             THEANO_FLAGS="openmp=1", THEANORC=str(config)))
    assert out == "openmp=1\n"


def test_flags_of_mpi_processes_are_understood(tmp_path):
    # The real Theano: that of two flags of one name, the last one counts.
    code = "import bnlasagne, theano; print(theano.config.compiledir)"
    flags = "base_compiledir=%s" % tmp_path
    for more, end in (("", "-rank3"), (",compiledir_format=mine", "mine")):
        out = succeed(run_python(code, ROOT, PMI_RANK="3", THEANORC=os.devnull,
                                 THEANO_FLAGS=flags + more))
        assert out.strip().startswith(str(tmp_path))
        assert out.strip().endswith(end)


IO_OF_THEANO = """
try:
    from mpi4py import MPI
except ImportError:
    mpi_enabled = False
else:
    mpi_enabled = True
"""
# What importing mpi4py does, in mpi4py/MPI.py or in its __init__.py.
OUTCOMES = {
    "starts MPI": "print('MPI started')",
    "no library": "raise RuntimeError('cannot load MPI library')",
    "unreadable library": "raise OSError('libmpi.so.12')",
    "unfinished": "raise AttributeError('COMM_WORLD')",
    "hangs": "import time; time.sleep(20)",
}


@pytest.fixture
def mpi(bare):
    """Writes an mpi4py, and a Theano that tries to import it."""
    (bare / "theano/tensor/io.py").write_text(IO_OF_THEANO)
    (bare / "theano/__init__.py").write_text(
        "__version__ = '1.0.5'\nimport theano.tensor.io\n")

    def write(outcome, in_package=False):
        write_package(bare, "mpi4py", OUTCOMES[outcome] * in_package)
        (bare / "mpi4py" / "MPI.py").write_text(
            OUTCOMES[outcome] * (not in_package))
        return bare
    return write


SHOW_MPI = """
import bnlasagne, theano, sys
print(theano.tensor.io.mpi_enabled, [name for name in sys.modules
                                     if name.startswith("mpi4py")])
"""


@pytest.mark.parametrize("in_package", [False, True])
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_theano_leaves_mpi_alone(mpi, outcome, in_package):
    folder = mpi(outcome, in_package)
    assert succeed(run_python(SHOW_MPI, folder)) == "False []\n"


@pytest.mark.parametrize("outcome, expected", [
    ("starts MPI", "MPI started\nTrue ['mpi4py', 'mpi4py.MPI']\n"),
    ("no library", "False ['mpi4py']\n"),
    ("unreadable library", "False ['mpi4py']\n"),
    ("unfinished", "False ['mpi4py']\n"),
])
def test_mpi_under_mpiexec(mpi, outcome, expected):
    folder = mpi(outcome)
    out = succeed(run_python(SHOW_MPI, folder, PMI_RANK="0"))
    assert out == expected


def test_mpi_that_the_program_asks_for(mpi):
    folder = mpi("starts MPI")
    out = succeed(run_python("import mpi4py.MPI\n" + SHOW_MPI, folder))
    assert out.startswith("MPI started\nTrue")
    # Not before: the package alone starts nothing.
    out = succeed(run_python("import mpi4py\n" + SHOW_MPI +
                             "from mpi4py import MPI", folder))
    assert out == "False ['mpi4py']\nMPI started\n"


def test_mpi4py_without_a_library(tmp_path):
    # Theano expects an ImportError there; mpi4py raises another.
    write_package(tmp_path, "mpi4py")
    (tmp_path / "mpi4py" / "MPI.py").write_text(
        "raise RuntimeError('cannot load MPI library')"
    )
    code = """
import bnlasagne
for _ in range(2):
    try:
        bnlasagne.world()
    except ImportError as error:
        print(error.name, error)
"""
    out = succeed(run_python(code, tmp_path, ROOT))
    assert out.count("(RuntimeError: cannot load MPI library)") == 2
    assert 'pip install "bnlasagne[mpi]"' in out


def test_without_mpi4py(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['mpi4py'] = None\n"
    )
    code = """
import bnlasagne
try:
    bnlasagne.world()
except ImportError as error:
    print(error.name, error)
"""
    out = succeed(run_python(code, tmp_path, ROOT))
    assert out.startswith("mpi4py Training on several machines")
    assert "mpi4py cannot be imported" in out
    assert 'pip install "bnlasagne[mpi]"' in out


def test_leaves_what_is_there(bare):
    (bare / "theano/tensor/signal/downsample.py").write_text("mine = True")
    succeed(
        run_python(
            """
import bnlasagne
from theano.tensor.signal import downsample
assert downsample.mine
assert not hasattr(downsample, 'max_pool_2d')
""",
            bare,
        )
    )


@pytest.mark.parametrize(
    "shim",
    [
        "sys.modules['theano.tensor.signal.downsample'] = mine",
        "theano.tensor.signal.downsample = mine",
    ],
)
def test_leaves_a_repair_that_the_user_made(bare, shim):
    succeed(
        run_python(
            """
import sys, types
import theano.tensor.signal
mine = types.ModuleType('mine')
{}
import bnlasagne
from theano.tensor.signal import downsample
assert downsample is mine
""".format(shim),
            bare,
        )
    )


def test_nothing_breaks_if_theano_was_imported_before(bare):
    out = succeed(
        run_python(
            """
import theano, sys
import bnlasagne
import theano.tensor.signal.downsample
print('numpy.distutils' in sys.modules, sys.modules['theano'] is theano)
""",
            bare,
        )
    )
    assert out == "False True\n"


def test_two_copies_of_the_repairs(bare):
    # As where a tool imports a package once more.
    code = """
import sys
import bnlasagne
for name in [name for name in sys.modules if name.startswith('bnlasagne')]:
    del sys.modules[name]
import bnlasagne
import theano.tensor.signal.downsample, lasagne
"""
    succeed(run_python(code, bare))


def test_is_silent_even_where_warnings_are_errors(bare):
    process = run_python("import bnlasagne", bare, PYTHONWARNINGS="error")
    succeed(process)
    assert process.stdout + process.stderr == ""


@pytest.mark.parametrize(
    "error", ["ImportError('libblas')", "ValueError('cxx')", "Exception('C')"]
)
def test_other_errors_of_theano_pass_unchanged(bare, error):
    write_package(bare, "theano", "raise " + error)
    process = run_python("import bnlasagne", bare)
    assert process.returncode == 1
    name, text = re.match(r"(\w+)\('(\w+)'\)", error).groups()
    assert process.stderr.endswith("\n{}: {}\n".format(name, text))


def test_warning_about_blas_is_not_shown(bare):
    (bare / "theano/tensor/blas_headers.py").write_text(
        "import logging\nlogger = logging.getLogger('theano.tensor.blas')\n"
        "def warn():\n"
        "    logger.warning('Using NumPy C-API based implementation for BLAS "
        "functions.')\n"
        "    logger.warning('Something else.')\n"
        "warn()\n")
    process = run_python(
        "import bnlasagne, theano.tensor.blas_headers as blas; blas.warn()",
        bare)
    succeed(process)
    # Only while Theano is imported is it known to be that warning.
    assert [line[:9] for line in process.stderr.splitlines()] == [
        "Something", "Using Num", "Something"]


@needs_compiler
def test_links_without_the_library_of_python(tmp_path):
    # As a Python that was built without, or moved after it was built.
    out = succeed(run_python(
        """
import sysconfig
sysconfig.get_config_vars().update(
    LDLIBRARY='libpython9.9.so', LIBDIR='/nowhere')
import bnlasagne.compat
from theano.gof.cmodule import GCC_compiler
source = '''
#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "tiny", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_tiny(void) { return PyModule_Create(&module); }
'''
module = GCC_compiler.compile_str('tiny', source, %r, hide_symbols=False,
                                  preargs=['-fPIC'])
print(module.__file__)
""" % str(tmp_path), ROOT))
    assert out == "{}\n".format(tmp_path / "tiny.so")


@pytest.mark.parametrize("compiler, before, after", [
    ("/usr/bin/clang++-14", "-O2", "-O2 -Wno-c++11-narrowing"),
    ("clang++", "-Wno-c++11-narrowing -g", "-Wno-c++11-narrowing -g"),
    ("/usr/bin/g++", "-O2", "-O2"), ("", "", "")])
def test_clang_takes_theanos_own_code(compiler, before, after):
    config = types.SimpleNamespace(
        cxx=compiler, gcc=types.SimpleNamespace(cxxflags=before))
    let_clang_compile(types.SimpleNamespace(config=config))
    assert config.gcc.cxxflags == after


# ---------------------------------------------------------------------------
# The hook
# ---------------------------------------------------------------------------


# As Python itself does at its start with folders of installed packages.
START = "import site; site.addsitedir({!r})\n".format(str(ROOT))
HOOK_ON = {"BNLASAGNE_NO_HOOK": ""}


def run_with_hook(code, *path):
    return run_python(START + code, *path, **HOOK_ON)


@needs_compiler  # Theano warns that there is none.
@pytest.mark.parametrize("first", ["theano", "lasagne"])
def test_program_that_does_not_import_this_package(first):
    process = run_with_hook("import " + first + """
import lasagne, sys
assert 'bnlasagne' not in sys.modules
layer = lasagne.layers.InputLayer((2, 1, 5, 5))
layer = lasagne.layers.Conv2DLayer(layer, 2, 3)
layer = lasagne.layers.MaxPool2DLayer(layer, 2)
print(lasagne.layers.get_output(layer).ndim)
import bnlasagne
print(bnlasagne.compat.__name__, bnlasagne.batch_norm.__name__)
assert sys.modules['theano'].__spec__.loader.__class__.__name__ == (
    'SourceFileLoader')
""", ROOT)
    assert succeed(process) == "4\nbnlasagne.compat batch_norm\n"
    assert process.stderr == ""


def test_hook_repairs_by_itself(bare):
    code = "import theano.tensor.signal.downsample as m; print(m.__doc__)"
    assert "provided by bnlasagne" in succeed(run_with_hook(code, bare))
    process = run_python(START + code, bare)  # switched off
    assert "No module named 'theano.tensor.signal.downsample'" in (
        process.stderr)


def test_repairs_are_switched_off_by_name(bare):
    names = "link_without_libpython, provide_downsample"
    process = run_python("import bnlasagne, theano.tensor.signal.downsample",
                         bare, BNLASAGNE_NO_REPAIR=names)
    assert "No module named 'theano.tensor.signal.downsample'" in (
        process.stderr)


def test_unknown_name_of_a_repair_is_told(bare):
    process = run_python("import bnlasagne", bare,
                         BNLASAGNE_NO_REPAIR="provide_downsample,hidden")
    assert process.stderr.count("UserWarning") == 1
    assert ("BNLASAGNE_NO_REPAIR names 'hidden', but there is no such repair"
            in process.stderr)


def test_every_name_of_a_repair_is_documented():
    from bnlasagne import compat

    page = (ROOT / "docs" / "stack.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(\w+)`", page))
    for repair in compat._all_repairs():
        # These change nothing but the words of errors.
        if repair.__name__ not in ("explained", "words_for_a_missing_header"):
            assert repair.__name__ in documented


def test_hook_lets_work_what_works(bare):
    write_package(bare, "theano", "__version__ = '1.1.2'\nprint('fine')")
    out = succeed(run_with_hook("import lasagne, theano", bare))
    assert out == "fine\n"
    shutil.rmtree(str(bare / "bnlasagne" / "compat"))
    out = succeed(run_with_hook("import lasagne, theano", bare))
    assert out == "fine\n"


@pytest.mark.parametrize("first", ["theano", "lasagne"])
def test_hook_explains_what_fails(bare, first):
    write_package(
        bare, "theano", "__version__ = '1.0.4'\nraise AttributeError('bool')")
    write_package(
        bare, "lasagne", "__version__ = '0.2.dev1'\nimport theano")
    process = run_with_hook("import " + first, bare)
    assert process.returncode == 1
    assert "AttributeError: bool" in process.stderr
    message = process.stderr[process.stderr.rindex("ImportError: "):]
    assert "found 1.0.4" in message
    assert_tells_what_to_type(" ".join(message.split()))


def test_hook_without_its_module_is_silent(tmp_path):
    name = "start_bnlasagne.pth"
    (tmp_path / name).write_text((ROOT / name).read_text())
    process = run_python(
        "import site; site.addsitedir('.'); print('fine')", tmp_path,
        **HOOK_ON)
    assert (succeed(process), process.stderr) == ("fine\n", "")


def test_hook_imports_nothing_at_the_start_of_python(tmp_path):
    out = succeed(run_with_hook("""
import sys
before = set(sys.modules)
del sys.modules['start_bnlasagne']
import start_bnlasagne
print(set(sys.modules) == before)
""", ROOT))
    assert out == "True\n"


def test_setup_installs_the_hook(tmp_path):
    source, root = tmp_path / "source", tmp_path / "root"
    source.mkdir()
    for path in ROOT.glob("*"):
        if path.is_file():
            shutil.copy(str(path), str(source))
    shutil.copytree(str(ROOT / "bnlasagne"), str(source / "bnlasagne"))
    subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", "-q", "install",
         "--root", str(root), "--record", str(tmp_path / "record")],
        cwd=str(source), check=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    package, = root.glob("**/bnlasagne/compat/__init__.py")
    folder = package.parents[2]
    for name in ("start_bnlasagne.py", "start_bnlasagne.pth"):
        assert (folder / name).read_text() == (ROOT / name).read_text()
        assert name in (tmp_path / "record").read_text()


# ---------------------------------------------------------------------------
# The messages
# ---------------------------------------------------------------------------

WANTED = {"numpy": "numpy>=1.17.3,<3", "theano": "Theano==1.0.5",
          "lasagne": "Lasagne>=0.1"}


def assert_tells_what_to_type(message):
    command = " ".join(install_line().split())
    assert message.endswith(f"Type: {command}")


@pytest.mark.parametrize("package", WANTED)
def test_message_for_a_missing_package(bare, package):
    hide(bare, package)
    message = refusal(bare)
    assert f"needs {WANTED[package]}" in message
    assert "but there is none" in message
    assert_tells_what_to_type(message)


@pytest.mark.parametrize("is_imported", [False, True])
@pytest.mark.parametrize("package, version", [
    ("numpy", "3.0.0"),
    ("numpy", "1.16.6"),
    ("theano", "1.0.5.dev1"),
    ("theano", "1.1.2"),
])
def test_message_for_a_wrong_version(bare, package, version, is_imported):
    if is_imported:
        write_package(bare, package, f'__version__ = "{version}"')
    else:
        write_package(bare, package, "raise SystemError('was imported')")
        write_metadata(bare, package, version)
    if package == "numpy":
        write_package(bare, "theano", "import numpy")
    message = refusal(bare, "import bnlasagne" if not is_imported else
                      f"import {package}; import bnlasagne")
    assert f"needs {WANTED[package]}" in message
    assert f"but found {version} in {bare / package} (" in message
    assert_tells_what_to_type(message)


def test_message_for_theano_pymc(bare):
    write_package(bare, "numpy", '__version__ = "1.23.5"')
    write_package(bare, "theano", "raise SystemError('was imported')")
    write_metadata(bare, "Theano_PyMC", "1.1.2")
    message = refusal(bare, WITHOUT_INSTALLED + "import bnlasagne")
    assert "found 1.1.2" in message
    assert "Theano-PyMC, to be uninstalled first" in message


def test_version_that_only_the_imported_package_knows(bare):
    # As in a checkout of Theano, which asks git.
    write_package(bare, "theano/tensor/signal", "__version__ = '0.' + '9.0'")
    assert "but found 0.9.0" in refusal(bare)


@pytest.mark.parametrize("package, version", [
    ("theano", "1.0.5+2.gb5b1d2c.dirty"),
    ("theano", "unknown"),
    ("lasagne", "0.2.dev1"),
    ("lasagne", "unknown"),
])
def test_version_that_works(bare, package, version):
    path = {"theano": "theano/tensor/signal"}.get(package, package)
    write_package(bare, path, f'__version__ = "{version}"')
    succeed(run_python("import bnlasagne", bare))


def test_metadata_elsewhere_is_not_about_a_checkout(bare, tmp_path):
    # The checkout hides an installed Theano, whose metadata stays in view.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_metadata(elsewhere, "theano", "0.9.0")
    succeed(run_python("import bnlasagne", bare, elsewhere))


# What is installed here is neither found nor asked for its version.
WITHOUT_INSTALLED = """
import importlib.metadata, sys
from packaging.requirements import Requirement
sys.path[:] = [path for path in sys.path
               if not path.endswith('site-packages')]
"""


def test_folder_without_code_is_not_a_package(bare):
    # Say, the folder in which somebody keeps compiled Theano functions.
    (bare / "theano" / "__init__.py").unlink()
    write_package(bare, "numpy", '__version__ = "1.23.5"')
    message = refusal(bare, WITHOUT_INSTALLED + "import bnlasagne")
    assert "needs Theano==1.0.5, but there is none" in message


def test_message_for_a_python_that_cannot_work(bare):
    message = refusal(bare, "import sys; sys.version_info = (3, 7, 0, "
                      "'final', 0); import bnlasagne")
    assert "needs Python 3.8 or later, but this is Python 3.7." in message
    assert "python3.11 -m pip install" in message


def test_messages_ask_for_what_setup_asks_for():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    block = re.search(r"^requirements = \[(.*?)^\]", setup, re.M | re.S)
    lines = re.findall(r'^ *"(.*)",$', block.group(1), re.M)
    assert tuple(lines) == REQUIREMENTS
