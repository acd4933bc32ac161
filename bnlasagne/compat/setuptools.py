"""Give Lasagne and Theano what setuptools has removed."""

import importlib
from types import SimpleNamespace

__all__ = ["pkg_resources"]


def pkg_resources():
    """Return what Lasagne 0.1 and Theano use of `pkg_resources`.

    Setuptools has no such module from 82 on, and warns of it from 80.9 on.
    Lasagne asks for its own version; Theano names an error.
    """
    return SimpleNamespace(get_distribution=_get_distribution,
                           DistributionNotFound=ImportError)


def _get_distribution(name):
    # Here, for it takes 20 ms.
    metadata = importlib.import_module("importlib.metadata")
    return SimpleNamespace(version=metadata.version(name))
