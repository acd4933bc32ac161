"""
Repair Theano 1.0.5 and Lasagne, so that they run on a current machine.

`prepare` has the modules of both packages repaired at the moment in which they
are imported, whoever imports them; `apply` also checks the installed versions,
and imports Theano. The repairs:

* NumPy >= 1.22 has no ``numpy.distutils.__config__.blas_opt_info``, which
  Theano reads to find a BLAS.
* Theano >= 0.9 has no ``theano.tensor.signal.downsample``, which Lasagne 0.1
  imports.
* Python >= 3.11 has no ``longintrepr.h``, which the C code of Theano's loops,
  and so each of Lasagne's recurrent layers, includes: they run in Python.
* Theano links what it compiles with Python's library, which many Pythons do
  not have, or not where they say: nothing is linked with it.
* Theano imports mpi4py, which may start MPI, hang, or raise an error that
  Theano does not expect: it finds mpi4py only in a program that ``mpiexec``
  started, or that has imported ``mpi4py.MPI`` before.
* The processes that ``mpiexec`` starts would wait for each other to compile
  anything: each gets a compile directory of its own.
* Lasagne 0.1 drops flags such as ``deterministic=True`` on the way to the
  layers in the loop of a ``CustomRecurrentLayer``: they are handed on.
* Two warnings that no user can act on are not shown: Theano's, that it found
  no BLAS, and its complaint about how Lasagne 0.1 calls it; and that of
  setuptools about Lasagne 0.1.

Where nothing is to be repaired, nothing is touched. The user's Theano flags
stay in force.
"""

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import re
import sys
import types
import warnings
from collections import namedtuple

__all__ = ["apply", "launched_rank", "max_pool_2d", "prepare"]

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
    Check the installed versions and import Theano; again is harmless.

    Raises
    ------
    ImportError
        If Python, NumPy, Theano, Lasagne or setuptools is missing or in a
        version that cannot work. The message names the versions that work
        and the command that installs them.
    """
    _check()
    prepare()
    importlib.import_module("theano")
    _check_version("theano")  # a checkout tells its version only now


def prepare():
    """
    Have Theano and Lasagne repaired as soon as they are imported.

    Raises nothing. If the installed versions cannot work, nothing is repaired;
    if the import of Theano or Lasagne then fails, its error tells why.
    """
    try:
        _check()
    except ImportError as refusal:
        during = {name: [functools.partial(_explained_by, refusal)]
                  for name in ("theano", "lasagne")}
        afterwards = {}
    else:
        during, afterwards = _DURING, _AFTERWARDS
        _forget_failed_import()
    for finder in sys.meta_path[:]:
        if isinstance(finder, _RepairingFinder):
            sys.meta_path.remove(finder)
    sys.meta_path.insert(0, _RepairingFinder(during, afterwards))
    for name in afterwards:
        if name in sys.modules:
            _repair(sys.modules[name], afterwards[name])


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


def _check():
    """Raise ImportError if the installed versions cannot work."""
    _check_python()
    for package in _NEEDS:
        _check_version(package)
    _check_pkg_resources()


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


# ---------------------------------------------------------------------------
# How modules are repaired while they are imported
# ---------------------------------------------------------------------------


class _RepairingFinder:
    """
    Finds some modules as they are found without it, and has them repaired.

    Parameters
    ----------
    during : dict of str to list of callable
        By the names of modules: functions that return a context manager. The
        module's code is executed within all of these.
    afterwards : dict of str to list of callable
        Functions that take the module when its code has been executed.
    """

    def __init__(self, during, afterwards):
        self._during = during
        self._afterwards = afterwards

    def find_spec(self, name, path=None, target=None):
        if name not in self._during and name not in self._afterwards:
            return None
        for finder in sys.meta_path[:]:
            find_spec = getattr(finder, "find_spec", None)
            if find_spec is None or finder is self:
                continue
            spec = find_spec(name, path, target)
            if spec is not None:
                # Not a mere folder, nor a loader of the old kind.
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _RepairingLoader(
                        spec.loader, self._during.get(name, ()),
                        self._afterwards.get(name, ()))
                return spec
        return None


class _RepairingLoader:
    """Executes a module's code by its own loader, with the repairs."""

    def __init__(self, loader, during, afterwards):
        self._loader = loader
        self._during = during
        self._afterwards = afterwards

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__loader__ = module.__spec__.loader = self._loader
        with contextlib.ExitStack() as stack:
            for context in self._during:
                stack.enter_context(context())
            self._loader.exec_module(module)
        _repair(module, self._afterwards)


def _repair(module, repairs):
    for repair in repairs:
        repair(module)


@contextlib.contextmanager
def _explained_by(refusal):
    """If an import fails, tell why it had to."""
    try:
        yield
    except Exception as error:
        if error is refusal:  # Lasagne passes on what Theano raised.
            raise
        raise refusal from error


# ---------------------------------------------------------------------------
# Theano
# ---------------------------------------------------------------------------


@contextlib.contextmanager
def _blas_opt_info():
    """Provide what NumPy has no more, and what Theano asks it for."""
    with warnings.catch_warnings():
        # NumPy >= 1.23 says that numpy.distutils ends with Python 3.12.
        warnings.simplefilter("ignore", DeprecationWarning)
        config = importlib.import_module("numpy.distutils.__config__")
    if not hasattr(config, "blas_opt_info"):
        # Empty, because NumPy's own BLAS is not one to link against: Theano
        # then looks for the system's.
        config.blas_opt_info = {}
    yield


@contextlib.contextmanager
def _words_for_a_missing_header():
    """Name the package that brings Python.h, where the compiler misses it."""
    try:
        yield
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


def launched_rank():
    """The number of this process, as text; empty without ``mpiexec``."""
    return next(filter(None, map(os.environ.get, _RANKS)), "")


@contextlib.contextmanager
def _own_compile_directory():
    """
    Give each MPI process its own compile directory, unless the user did.

    Theano locks the directory while it compiles, and each process would wait
    for all others, again and again. It reads its flags while it is imported.
    """
    rank = launched_rank()
    before = os.environ.get("THEANO_FLAGS")
    if not rank.isdigit() or _is_format_set():
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
def _hidden_mpi4py():
    """
    Have Theano's import of mpi4py fail as if there were none.

    Importing ``mpi4py.MPI`` starts MPI. That is wanted by programs that
    ``mpiexec`` started, and in all others by those that ask for it.
    """
    if "mpi4py.MPI" in sys.modules or (launched_rank() and _can_start_mpi()):
        yield
        return
    # The package itself may fail, too.
    name = "mpi4py.MPI" if "mpi4py" in sys.modules else "mpi4py"
    sys.modules[name] = None
    try:
        yield
    finally:
        # Whoever asks for it gets mpi4py, or its own error.
        sys.modules.pop(name, None)


def _can_start_mpi():
    """Whether MPI can be started; it is then."""
    try:
        importlib.import_module("mpi4py.MPI")
    except Exception:
        # Without an MPI library, or with another than mpi4py was made for:
        # ImportError, RuntimeError, OSError, AttributeError.
        return False
    return True


@contextlib.contextmanager
def _without_blas_warning():
    """Keep Theano from saying at each start that it uses NumPy's BLAS."""
    def is_other(record):
        return "Using NumPy C-API based implementation" not in record.msg

    logger = logging.getLogger("theano.tensor.blas")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _provide_downsample(theano):
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


def _give_up_scan_extension(theano):
    """Let theano.scan fall back on Python where its C code cannot compile.

    It does so by itself if the extension cannot be imported, but not if the
    compiler fails on it.
    """
    if sys.version_info >= (3, 11):
        sys.modules.setdefault("theano.scan_module.scan_perform_ext", None)


def _link_without_libpython(cmodule):
    """
    Link what Theano compiles as Python itself links extension modules.

    Python has the symbols that they need. Its library is missing beside a
    Python that was built without, or lies elsewhere than the Python says after
    it was moved; the static one must not be linked at all. Theano knows this
    of macOS. Windows and Cygwin do need the library.
    """
    if sys.platform.startswith("linux"):
        cmodule.std_libs = list


# ---------------------------------------------------------------------------
# Lasagne
# ---------------------------------------------------------------------------


@contextlib.contextmanager
def _without_pkg_resources_warning():
    """Keep setuptools 80.9 and later from warning of Lasagne's import."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")
        yield


def _ignore_image_shape_warning(lasagne):
    """Lasagne 0.1 calls Theano by a name that Theano has changed since."""
    warnings.filterwarnings(
        "ignore", "The `image_shape` keyword argument to `tensor.nnet.conv2d`",
        UserWarning, r"lasagne\.",
    )


def _hand_flags_into_loops(recurrent):
    """Have the layers in a recurrent layer's loop get the flags it gets."""
    layer_class = recurrent.CustomRecurrentLayer
    method = layer_class.get_output_for
    if not _drops_flags(method):
        return

    @functools.wraps(method)
    def get_output_for(self, inputs, **flags):
        # The same code, which finds this call's flags in what it calls.
        names = dict(vars(recurrent),
                     helper=_HelperWithFlags(recurrent.helper, flags))
        function = types.FunctionType(
            method.__code__, names, method.__name__, method.__defaults__,
            method.__closure__)
        return function(self, inputs, **flags)

    layer_class.get_output_for = get_output_for


def _drops_flags(method):
    """Whether the step of the loop, a function within, knows no flags."""
    return any(
        getattr(constant, "co_name", "") == "step"
        and "kwargs" not in constant.co_freevars
        for constant in getattr(method, "__code__", method).co_consts
    )


class _HelperWithFlags:
    """The module ``lasagne.layers.helper`` as one call's code sees it."""

    def __init__(self, helper, flags):
        self._helper = helper
        self._flags = flags

    def __getattr__(self, name):
        return getattr(self._helper, name)

    def get_output(self, layers, inputs=None, **flags):
        return self._helper.get_output(
            layers, inputs, **dict(self._flags, **flags))


# ---------------------------------------------------------------------------
# What is repaired where
# ---------------------------------------------------------------------------

_DURING = {
    "theano": [
        _blas_opt_info,
        _own_compile_directory,
        _words_for_a_missing_header,
    ],
    "theano.tensor.io": [_hidden_mpi4py],
    "theano.tensor.blas_headers": [_without_blas_warning],
    "lasagne": [_without_pkg_resources_warning],
}
_AFTERWARDS = {
    "theano": [_provide_downsample, _give_up_scan_extension],
    "theano.gof.cmodule": [_link_without_libpython],
    # Not of the module that causes it: the context above ends later.
    "lasagne": [_ignore_image_shape_warning],
    "lasagne.layers.recurrent": [_hand_flags_into_loops],
}
