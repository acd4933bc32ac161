"""Run a script or a module with Theano and Lasagne repaired.

It also calls :func:`bnlasagne.keep_freed_memory`.

Where this package is installed, its start-up hook repairs them in every
program. ``python -m bnlasagne script.py`` is for folders that are not
installed but in ``PYTHONPATH``, and for programs that run with
``BNLASAGNE_NO_HOOK=1``.
"""

import argparse
import os
import runpy
import sys

from . import keep_freed_memory

_PARSER = argparse.ArgumentParser(
    prog="python -m bnlasagne",
    usage="%(prog)s [-h] script.py [argument ...]\n"
          "       %(prog)s [-h] -m module [argument ...]",
    description="Run a script (or, with -m, a module such as pytest) as "
    "Python itself would, after repairing what keeps Theano and Lasagne from "
    "being imported on a current machine. The process also keeps memory that "
    "arrays free, as after bnlasagne.keep_freed_memory().",
    epilog="Theano is imported before the script starts: set THEANO_FLAGS in "
    "the shell, not in the script.")
_PARSER.add_argument("-m", dest="is_module", action="store_true",
                     help="run a module")
_PARSER.add_argument("program", metavar="script.py")
_PARSER.add_argument("arguments", nargs=argparse.REMAINDER)


def main():
    """Run what the command line asks for, in place of this program."""
    options = _PARSER.parse_args()
    keep_freed_memory()
    # Modules and scripts find themselves and their arguments there.
    sys.argv[:] = [options.program] + options.arguments
    if options.is_module:
        runpy.run_module(options.program, run_name="__main__", alter_sys=True)
        return
    # `python -I` and `python -P` put no folder first, so none is replaced.
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        sys.path[0] = os.path.dirname(os.path.realpath(options.program))
    runpy.run_path(options.program, run_name="__main__")


if __name__ == "__main__":
    main()
