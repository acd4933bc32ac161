"""
Repairs that let Theano 1.0.5 and Lasagne be imported on a current machine.

Importing this module checks that the versions at hand can work together,
imports Theano, and mends what has moved since Lasagne 0.1:

* NumPy >= 1.22 has no ``numpy.distutils.__config__.blas_opt_info``, which
  Theano reads to find a BLAS;
* Theano >= 0.9 has no ``theano.tensor.signal.downsample``, which Lasagne 0.1
  imports;
* Python >= 3.11 has no ``longintrepr.h``, which the C code of Theano's loops,
  and so each of Lasagne's recurrent layers, includes: they run in Python;
* mpi4py without an MPI library raises an error that Theano, which tries to
  import it, does not expect;
* the processes that ``mpiexec`` starts would wait for each other to compile
  anything: each gets a compile directory of its own.

Where nothing is to be mended, nothing is touched. The user's Theano flags stay
in force.
"""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
import types
import warnings
from collections import namedtuple

__all__ = ["apply", "max_pool_2d"]

# What setup.py asks pip for (a test compares the two).
_REQUIREMENTS = (
    "Theano==1.0.5",
    "Lasagne>=0.1",
    "numpy>=1.17.3,<1.24",
    "setuptools<80.9",
)

# The versions that work are those from `first` up to, and without, `end`.
_Need = namedtuple("_Need", "name first end why")
_NEEDS = {
    "numpy": _Need(
        "NumPy",
        "1.17.3",
        "1.24",
        "Theano 1.0.5 uses names that NumPy 1.24 removed",
    ),
    "theano": _Need(
        "Theano",
        "1.0.5",
        "1.1",
        "older ones fail on current Pythons; newer ones are "
        "Theano-PyMC, to be uninstalled first",
    ),
    "lasagne": _Need("Lasagne", "0.1", None, "0.1 was the first release"),
}
_DOWNSAMPLE = "theano.tensor.signal.downsample"


def apply():
    """
    Check the installed versions and apply the repairs; again is harmless.

    Raises
    ------
    ImportError
        If Python, NumPy, Theano, Lasagne or setuptools is missing or in a
        version that cannot work. The message names the versions that work
        and the command that installs them.
    """
    _check_python()
    for package in _NEEDS:
        _check_version(package)
    _check_pkg_resources()
    _forget_failed_import()
    _provide_blas_opt_info()
    _import_theano()
    _check_version("theano")  # a checkout tells its version only now
    _provide_downsample()
    _give_up_scan_extension()


def max_pool_2d(
    input, ds, ignore_border=None, st=None, padding=(0, 0), mode="max"
):
    """
    Pool over the two trailing axes, as ``downsample.max_pool_2d`` did.

    The arguments are those of Theano 0.8. They are handed to today's
    ``theano.tensor.signal.pool.pool_2d`` under today's names, because it
    warns about the old ones.
    """
    from theano.tensor.signal import pool

    return pool.pool_2d(
        input,
        ws=ds,
        ignore_border=ignore_border,
        stride=st,
        pad=padding,
        mode=mode,
    )


def _check_python():
    if not (3, 8) <= sys.version_info[:2] < (3, 12):
        raise ImportError(
            "bnlasagne needs Python 3.8 to 3.11 (Theano 1.0.5 cannot be "
            "built for a newer one), but this is Python {}.{}. Install "
            "Python 3.11, say, and type:\n{}".format(
                *sys.version_info[:2], _pip_line("python3.11")
            )
        )


def _check_version(package):
    """Raise ImportError if a package is missing or is known not to work."""
    need = _NEEDS[package]
    if not _exists(package):
        _refuse(package, "there is none for " + sys.executable)
    version = _find_version(package)
    if version and not _in_range(version, need.first, need.end):
        _refuse(
            package,
            "found {} in {} ({})".format(version, _folder(package), need.why),
        )


def _refuse(package, found):
    need = _NEEDS[package]
    raise ImportError(
        "bnlasagne needs {} >= {}{}, but {}. Type:\n{}".format(
            need.name,
            need.first,
            " and < " + need.end if need.end else "",
            found,
            _pip_line(),
        ),
        name=package,
    )


def _pip_line(python=None):
    # All requirements at once: with one alone, pip may pick another that
    # does not fit, such as the newest NumPy for Theano.
    return "    {} -m pip install {}".format(
        python or sys.executable or "python",
        " ".join('"{}"'.format(line) for line in _REQUIREMENTS),
    )


def _exists(module):
    if module in sys.modules:
        return sys.modules[module] is not None
    return _folder(module) is not None


def _folder(module):
    """The folder that a module's file lies in, or None."""
    spec = importlib.util.find_spec(module)
    # A mere folder of that name, say of data, has no origin.
    return os.path.dirname(spec.origin) if spec and spec.origin else None


def _find_version(package):
    """
    The version of a package, found without importing it where possible.

    Returns
    -------
    str or None
        None if only the imported package could tell.
    """
    if package in sys.modules:
        found = getattr(sys.modules[package], "__version__", None)
    else:
        found = _version_from_metadata(package) or _version_from_source(
            package
        )
    return found if re.match(r"\d", str(found)) else None


def _version_from_metadata(package):
    from importlib.metadata import distributions  # Python >= 3.8

    # Only metadata beside the package is about the package: a checkout put
    # first in PYTHONPATH hides an installed package, but not its metadata.
    beside = os.path.dirname(_folder(package))
    for name in package, package + "-pymc":
        for distribution in distributions(name=name, path=[beside]):
            return distribution.version
    return None


def _version_from_source(package):
    path = os.path.join(_folder(package), "__init__.py")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        source = file.read()
    # Only a whole literal tells: Theano's is put together while it runs.
    literal = r"^__version__ *= *(['\"])([^'\"]+)\1\s*(#.*)?$"
    match = re.search(literal, source, re.MULTILINE)
    return match and match.group(2)


def _in_range(version, first, end):
    key = _version_key(version)
    return _version_key(first) <= key and (
        end is None or key < _version_key(end)
    )


def _version_key(version):
    """Sorts as versions do: 1.0.dev2 < 1.0 <= 1.0+local < 1.0.1."""
    release, rest = re.match(r"(\d+(?:\.\d+)*)(.*)", version).groups()
    numbers = [int(number) for number in release.split(".")]
    return numbers, not re.match(r"[._-]?(a|b|c|dev|pre|rc)", rest)


def _check_pkg_resources():
    """Lasagne 0.1 imports it without asking pip for setuptools."""
    if "lasagne" in sys.modules or _exists("pkg_resources"):
        return
    version = _find_version("lasagne")
    if version and _in_range(version, "0.1", "0.2.dev0"):
        raise ImportError(
            "Lasagne {} needs the module pkg_resources, which setuptools "
            "had up to version 81 (and, without a warning, before 80.9). "
            "Type:\n{}".format(version, _pip_line()),
            name="pkg_resources",
        )


def _forget_failed_import():
    """
    Let Theano be imported afresh after an ``import theano`` that failed.

    Python drops a package whose import failed, but keeps its submodules, and
    on those Theano fails again. In a notebook the first failure is often what
    makes people import bnlasagne.
    """
    if "theano" not in sys.modules:
        for name in [
            name for name in sys.modules if name.startswith("theano.")
        ]:
            del sys.modules[name]


def _provide_blas_opt_info():
    if "theano" in sys.modules:
        return
    with warnings.catch_warnings():
        # NumPy >= 1.23 says that numpy.distutils ends with Python 3.12.
        warnings.simplefilter("ignore", DeprecationWarning)
        config = importlib.import_module("numpy.distutils.__config__")
    if not hasattr(config, "blas_opt_info"):
        # Empty, because NumPy's own BLAS is not one to link against: Theano
        # then looks for the system's.
        config.blas_opt_info = {}


def _import_theano():
    try:
        with _own_compile_directory(), _without_broken_mpi4py():
            importlib.import_module("theano")
    except Exception as error:
        # Theano hands on the compiler's complaint as a bare Exception.
        if "Python.h" not in str(error):
            raise
        raise ImportError(
            "Theano found a C++ compiler, but not the header Python.h of "
            "this Python. Install it (on Debian and Ubuntu: apt-get install "
            "python{}.{}-dev), or set the environment variable "
            "THEANO_FLAGS=cxx= to do without a compiler, slowly.".format(
                *sys.version_info[:2]
            )
        ) from error


# How launchers of MPI programs tell a process its number: MPICH and those that
# go back to it, Open MPI, and all that follow PMIx.
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
# Theano's own, and the rank.
_COMPILEDIR_FORMAT = (
    "compiledir_%(short_platform)s-%(processor)s-%(python_version)s-"
    "%(python_bitwidth)s-rank{}"
)


@contextlib.contextmanager
def _own_compile_directory():
    """
    Give each MPI process its own compile directory, unless the user did.

    Theano locks the directory while it compiles, and each process would wait
    for all others, again and again. It reads its flags while it is imported.
    """
    rank = next(filter(None, map(os.environ.get, _RANKS)), "")
    before = os.environ.get("THEANO_FLAGS")
    if not rank.isdigit() or "theano" in sys.modules or _is_format_set():
        yield
        return
    # Of flags that are given twice, the last one counts: the user's.
    os.environ["THEANO_FLAGS"] = "compiledir_format={},{}".format(
        _COMPILEDIR_FORMAT.format(rank), before or ""
    )
    try:
        yield
    finally:
        if before is None:
            del os.environ["THEANO_FLAGS"]
        else:
            os.environ["THEANO_FLAGS"] = before


def _is_format_set():
    """Whether a configuration file of Theano's names the directory."""
    paths = os.environ.get("THEANORC", "~/.theanorc").split(os.pathsep)
    for path in map(os.path.expanduser, paths):
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                if re.search(r"^\s*compiledir_format\b", file.read(), re.M):
                    return True
    return False


@contextlib.contextmanager
def _without_broken_mpi4py():
    """Let Theano find no mpi4py, rather than one without an MPI library."""
    name = "mpi4py.MPI"
    if "theano" in sys.modules or name in sys.modules or _loads(name):
        yield
        return
    sys.modules[name] = None
    try:
        yield
    finally:
        # Whoever asks for it gets mpi4py's own error.
        sys.modules.pop(name, None)


def _loads(name):
    """Whether a module can be imported, or is known not to be there."""
    try:
        importlib.import_module(name)
    except ImportError:
        return True  # Theano expects this one.
    except RuntimeError:
        return False
    return True


def _provide_downsample():
    signal = importlib.import_module("theano.tensor.signal")
    if hasattr(signal, "downsample") or _exists(_DOWNSAMPLE):
        return
    module = types.ModuleType(
        _DOWNSAMPLE,
        "What Lasagne 0.1 uses of a module that Theano 0.9 "
        "removed; provided by bnlasagne.",
    )
    module.__spec__ = importlib.machinery.ModuleSpec(_DOWNSAMPLE, None)
    module.max_pool_2d = max_pool_2d
    sys.modules[_DOWNSAMPLE] = signal.downsample = module


def _give_up_scan_extension():
    """Let theano.scan fall back on Python where its C code cannot compile.

    It does so by itself if the extension cannot be imported, but not if the
    compiler fails on it.
    """
    if sys.version_info >= (3, 11):
        sys.modules.setdefault("theano.scan_module.scan_perform_ext", None)


apply()
