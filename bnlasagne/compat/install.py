"""Tell what the package needs, and install it on any Python."""

import importlib.util
import os
import shutil
import subprocess
import sys

__all__ = ["REQUIREMENTS", "install_line", "is_asked_for", "main"]

# What setup.py asks pip for (a test compares the two).
REQUIREMENTS = (
    "Theano==1.0.5",
    "Lasagne>=0.1",
    "numpy>=1.17.3,<3",
    "scipy>=1.3.2",
    "packaging",
)
_MODULE = "bnlasagne.compat"
_USAGE = f"""usage: python -m {_MODULE} install [option of pip install ...]

Install Theano, Lasagne and NumPy in versions that work, for this Python."""


def install_line(python=None):
    """Write the command that installs versions that work.

    It installs all of them at once: asked for one package alone, pip may pick
    another that does not fit, such as a NumPy too new for Theano.
    """
    python = python or sys.executable or "python"
    if sys.version_info >= (3, 12):  # pip cannot build Theano by itself.
        return f"    {python} -m {_MODULE} install"
    return f"    {python} -m pip install " + " ".join(
        f'"{line}"' for line in REQUIREMENTS)


def is_asked_for():
    """Tell whether this process starts as ``python -m bnlasagne.compat``.

    Python imports bnlasagne before it runs that module. Where Theano is
    missing, the import fails, so it has to look for this itself.
    """
    # While Python looks for a module, argv[0] is -m.
    return (sys.argv[:1] == ["-m"]
            and _MODULE in getattr(sys, "orig_argv", ())[1:])


def main(arguments):
    """Run pip, or uv where there is no pip, and return its exit code."""
    if arguments[:1] != ["install"]:
        print(_USAGE)
        return int(arguments[:1] not in (["-h"], ["--help"]))
    installer = _installer()
    if installer is None:
        print(f"{sys.executable} has no pip, and there is no uv. Type:\n"
              f"    {sys.executable} -m ensurepip", file=sys.stderr)
        return 1
    theano = os.path.join(os.path.dirname(__file__), "build_theano")
    return subprocess.call(
        [*installer, theano, *REQUIREMENTS[1:], *arguments[1:]])


def _installer():
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install"]
    uv = shutil.which("uv")
    return uv and [uv, "pip", "install", "--python", sys.executable]
