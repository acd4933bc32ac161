"""Keep Theano's checks of the user's expressions off the package's own."""

import contextlib

import theano
from theano.compile.function_module import FunctionMaker
from theano.tensor.var import TensorVariable

__all__ = ["quiet_checks"]


@contextlib.contextmanager
def quiet_checks(test_values=False):
    """Keep Theano's checks of new variables quiet, whatever the user's flags.

    Those are ``warn_float64``, as some variables are of double precision on
    purpose, and ``compute_test_value``, as some variables have no test value.
    With `test_values`, test values are computed all the same.
    """
    flags = {"warn_float64": "ignore"}
    if not test_values:
        flags["compute_test_value"] = "off"
    # Mostly there is nothing to change, and so nothing that another thread
    # could see. Theano's own context manager cannot be entered twice.
    changed = {name: value for name, value in flags.items()
               if getattr(theano.config, name) != value}
    with theano.configparser.change_flags(**changed) if changed \
            else contextlib.nullcontext():
        yield


def _keep_quiet(cls, name):
    """Keep ``warn_float64`` off the copies that a method of Theano makes."""
    function = getattr(cls, name)
    if not hasattr(function, "is_quiet"):
        wrapped = quiet_checks(test_values=True)(function)
        wrapped.is_quiet = True
        setattr(cls, name, wrapped)


# Theano checks each new variable, also those that it makes itself while it
# copies and compiles what the user built. The user is asked about the latter.
_keep_quiet(TensorVariable, "clone")
_keep_quiet(FunctionMaker, "__init__")
