"""Tell which versions of Python, NumPy and Theano work, and check them."""

import contextlib
import importlib.util
import os
import sys

from .install import REQUIREMENTS, install_line, is_asked_for, main

__all__ = ["check", "explained"]

# Of Lasagne, every release works, and so do checkouts of any version.
_WHY = {
    "numpy": "1.17.3 is the oldest for Python 3.8; 3 is unknown",
    "theano": "older ones fail on current Pythons; newer ones are "
              "Theano-PyMC, to be uninstalled first",
}


def check():
    """Raise ImportError if Python or a package is missing or cannot work.

    The message names the versions that work, and the command that installs
    them. Versions are those of imported packages: only these are known to be
    the ones that are used.
    """
    refusal = (_refusal_of_python() or _refusal_of_missing()
               or _refusal_of_version(_imported_version))
    if refusal is None:
        return
    if is_asked_for():
        sys.exit(main(sys.argv[1:]))
    raise refusal


@contextlib.contextmanager
def explained():
    """Explain import errors that a version causes."""
    try:
        yield
    except Exception as error:
        refusal = _refusal_of_python() or _refusal_of_version(
            lambda package: (_imported_version(package)
                             or _installed_version(package)))
        if refusal is None and isinstance(error, ImportError):
            refusal = _refusal_of_missing()
        # Lasagne passes on what Theano's import raised: that is explained.
        if refusal is None or str(error) == str(refusal):
            raise
        raise refusal from error


def _refusal_of_python():
    # Later ones than those that are tested may work.
    if sys.version_info >= (3, 8):
        return None
    return ImportError(
        "bnlasagne needs Python 3.8 or later, but this is Python "
        f"{sys.version_info[0]}.{sys.version_info[1]}. Install Python 3.11, "
        f"say, and type:\n{install_line('python3.11')}")


def _refusal_of_missing():
    for package in ("numpy", "theano", "lasagne"):
        if _folder(package) is None:
            return _refusal(package, f"there is none for {sys.executable}")
    return None


def _refusal_of_version(version_of):
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    for package, why in _WHY.items():
        version = version_of(package)
        working = SpecifierSet(_requirement(package)[len(package):])
        # Nothing is known of a version that is none.
        with contextlib.suppress(InvalidVersion, TypeError):
            if not working.contains(Version(version), prereleases=True):
                return _refusal(
                    package, f"found {version} in {_folder(package)} ({why})")
    return None


def _refusal(package, found):
    return ImportError(f"bnlasagne needs {_requirement(package)}, but {found}."
                       f" Type:\n{install_line()}", name=package)


def _requirement(package):
    return next(line for line in REQUIREMENTS
                if line.lower().startswith(package))


def _imported_version(package):
    return getattr(sys.modules.get(package), "__version__", None)


def _installed_version(package):
    import importlib.metadata  # Here, for it takes 20 ms.

    for name in (package, package + "-pymc"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def _folder(package):
    """Find the folder that a package lies in, or None."""
    spec = importlib.util.find_spec(package)
    # A mere folder of that name, say of data, has no origin.
    return os.path.dirname(spec.origin) if spec and spec.origin else None
