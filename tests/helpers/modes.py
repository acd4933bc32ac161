"""Fixtures for the mode in which functions are compiled."""

import contextlib

from bnlasagne import plain_expressions

import pytest
import theano


@contextlib.contextmanager
def default_mode(mode):
    """Compile functions in a mode, unless they ask for another."""
    with pytest.MonkeyPatch.context() as patch:
        # Setting Theano's flag would not do: the default mode is made once.
        patch.setattr(theano.compile.mode, "instantiated_default_mode",
                      theano.compile.mode.get_mode(mode))
        yield


@pytest.fixture
def quick():
    """The test's functions are compiled without C, which takes seconds."""
    with default_mode("FAST_COMPILE"):
        yield


MODES = {
    "FAST_RUN": theano.Mode("cvm", "fast_run"),
    "FAST_RUN without C": theano.Mode("py", "fast_run"),
    "FAST_COMPILE": "FAST_COMPILE",
    "no optimization": theano.Mode("py", None),
}


def mode_fixture(*pairs):
    """A fixture of modes, each with fused Ops or with plain expressions.

    Compiling takes long, so that few tests run with all pairs.

    Parameters
    ----------
    *pairs : tuple (str, str)
        A key of `MODES`, and 'fused' or 'plain'.
    """
    @pytest.fixture(params=pairs, ids="-".join)
    def mode(request):
        name, kind = request.param
        if name == "FAST_RUN" and not theano.config.cxx:
            pytest.skip("needs a C++ compiler")
        with plain_expressions() if kind == "plain" \
                else contextlib.nullcontext():
            yield MODES[name]
    return mode


every_mode = pytest.mark.parametrize("mode", [
    ("FAST_RUN", "fused"), ("FAST_RUN without C", "fused"),
    ("FAST_RUN without C", "plain"), ("FAST_COMPILE", "plain"),
    ("no optimization", "fused")], indirect=True, ids="-".join)
