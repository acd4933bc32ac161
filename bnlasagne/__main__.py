"""
Run a script or a module with Theano and Lasagne repaired.

``python -m bnlasagne script.py`` applies the repairs of `bnlasagne.compat`
and then does what ``python script.py`` does. Where this package is installed,
the start-up hook applies them as well, and programs need no other command.
This one is for folders that are not installed but in ``PYTHONPATH``, and for
programs that run with ``BNLASAGNE_NO_HOOK=1``.
"""

import builtins
import importlib.machinery
import importlib.util
import os
import sys
import types

_USAGE = """\
usage: python -m bnlasagne [-h] script.py [argument ...]
       python -m bnlasagne [-h] -m module [argument ...]
"""
_HELP = (
    _USAGE
    + """
Run a script (or, with -m, a module such as pytest) as Python itself would,
after repairing what keeps Theano and Lasagne from being imported on a current
machine. Needed only where bnlasagne is not installed by pip, or where the
environment variable BNLASAGNE_NO_HOOK is set: its start-up hook does the same.

Theano is imported before the script starts: set THEANO_FLAGS in the shell,
not in the script.
"""
)


def main(arguments):
    """Run what the command line asks for, in place of this program."""
    if not arguments:
        _quit(_USAGE.rstrip())
    first = arguments[0]
    if first in ("-h", "--help"):
        print(_HELP, end="")
    elif first == "-m" and len(arguments) > 1:
        _run_module(arguments[1], arguments[2:])
    elif first == "-m":
        _quit(_USAGE + "bnlasagne: -m needs the name of a module")
    elif first.startswith("-"):
        _quit(
            _USAGE
            + "bnlasagne: there is no option {}; options of the "
            "script come after its name".format(first)
        )
    else:
        _run_script(first, arguments[1:])


def _quit(message, status=2):
    print(message, file=sys.stderr)
    sys.exit(status)


def _run_script(path, arguments):
    sys.argv[:] = [path] + arguments
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    file = os.path.abspath(path)
    loader = importlib.machinery.SourceFileLoader("__main__", file)
    try:
        source = loader.get_data(file)
    except OSError as error:
        _quit(
            "{}: can't open file {!r}: [Errno {}] {}".format(
                sys.executable, file, error.errno, error.strerror
            )
        )
    _run(
        lambda: compile(source, file, "exec", dont_inherit=True),
        __file__=file,
        __loader__=loader,
        __package__=None,
        __spec__=None,
        __cached__=None,
    )


def _run_module(name, arguments):
    # As with `python -m`, the folder that Python was started in stays first
    # in sys.path.
    spec = _find_module(name)
    sys.argv[:] = [spec.origin] + arguments
    _run(
        lambda: spec.loader.get_code(spec.name),
        __file__=spec.origin,
        __loader__=spec.loader,
        __package__=spec.parent,
        __spec__=spec,
        __cached__=spec.cached,
    )


def _find_module(name):
    """The spec of what `python -m name` runs."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(name + ".__main__")
    except ModuleNotFoundError as error:
        if not (name + ".").startswith("{}.".format(error.name)):
            raise  # a package on the way to it misses another one
        spec = None
    if spec is None or not spec.has_location:
        _quit(
            "{}: No module named {}, or it cannot be run".format(
                sys.executable, name
            ),
            status=1,
        )
    return spec


def _set_first_path(folder):
    # `python -I` and `python -P` put no folder first, so none is replaced.
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        sys.path[0] = folder


def _run(make_code, **attributes):
    """
    Execute code as the main module, and leave the end of it to Python.

    Parameters
    ----------
    make_code : callable
        Returns the code; called late, so that a SyntaxError is shown in the
        way in which the code's own errors are.
    **attributes
        What the main module's dictionary holds before the code runs.
    """
    # A module of its own, not this one: the script must find nothing of ours
    # in its globals, and pickle looks its classes up in sys.modules.
    main_module = types.ModuleType("__main__")
    main_module.__dict__.update(
        attributes, __annotations__={}, __builtins__=builtins
    )
    sys.modules["__main__"] = main_module
    flags, code = os.environ.get("THEANO_FLAGS"), None
    try:
        code = make_code()
        exec(code, main_module.__dict__)
    except SystemExit:
        raise
    except BaseException:
        _hide_frames_above(code)
        raise
    finally:
        _warn_of_late_flags(flags)


def _hide_frames_above(code):
    """Show the traceback that is about to end Python from `code` onwards."""
    show = sys.excepthook

    def show_from_code(kind, error, traceback):
        while traceback and traceback.tb_frame.f_code is not code:
            traceback = traceback.tb_next
        sys.last_traceback = traceback
        show(kind, error.with_traceback(traceback), traceback)

    sys.excepthook = show_from_code


def _warn_of_late_flags(flags):
    late = os.environ.get("THEANO_FLAGS")
    if late != flags:
        print(
            "bnlasagne: THEANO_FLAGS was set to {!r} after Theano had been "
            "imported, and had no effect. Set it in the shell, before "
            "`python -m bnlasagne`.".format(late),
            file=sys.stderr,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
