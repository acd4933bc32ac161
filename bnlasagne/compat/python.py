"""Give Theano what Python has removed."""

import importlib.util
import io
import os
import shutil
import sysconfig
from types import SimpleNamespace

from .importing import view

__all__ = ["distutils_for_theano", "imp_for_theano", "name_pickled_arrays"]


def distutils_for_theano():
    """Return what Theano uses of `distutils`, gone since Python 3.12.

    With older Pythons too: setuptools puts its own in place of Python's, and
    takes 0.1 s to import it.
    """
    return SimpleNamespace(
        spawn=SimpleNamespace(find_executable=shutil.which),
        sysconfig=SimpleNamespace(
            get_config_h_filename=sysconfig.get_config_h_filename,
            get_config_var=sysconfig.get_config_var,
            get_python_inc=_include_folder,
            get_python_lib=_library_folder,
            get_python_version=sysconfig.get_python_version,
        ))


def _include_folder(plat_specific=False):
    return sysconfig.get_path("platinclude" if plat_specific else "include")


def _library_folder(plat_specific=False, standard_lib=False):
    # Not that of a virtual environment, which has no libraries of Python.
    return os.path.dirname(os.__file__)


def imp_for_theano():
    """Return what Theano uses of `imp`, gone since Python 3.12.

    Theano asks for debuggers there.
    """
    return SimpleNamespace(find_module=_find_module)


def _find_module(name):
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ImportError(f"No module named {name!r}", name=name)
    return spec


def name_pickled_arrays(pkl_utils):
    """Let `theano.misc.pkl_utils` keep arrays beside what it pickles.

    Since Python 3.13, picklers take the function that names the arrays, and
    unpicklers the one that loads them, only if they are of a subclass.
    """
    pickle = pkl_utils.pickle
    try:
        pickle.Pickler(io.BytesIO()).persistent_id = id
    except AttributeError:
        pkl_utils.pickle = view(pickle, **{
            name: type(name, (getattr(pickle, name),), {})
            for name in ("Pickler", "Unpickler")})
