"""
Have programs that import Theano or Lasagne first start on a current machine.

Python imports this module whenever it starts, because ``start_bnlasagne.pth``
is installed beside it. It does next to nothing until a program imports Theano
or Lasagne: they are then repaired as by ``import bnlasagne``, with no need for
that. Set the environment variable ``BNLASAGNE_NO_HOOK=1`` to switch it off.
"""

import os
import sys


class _Hook:
    """Is asked for each module before Python looks for it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in ("theano", "lasagne"):
            return None
        # Whatever happens here, it must not be this that ends the program.
        try:
            sys.meta_path.remove(_Hook)
            return _find_repaired(name)
        except Exception:
            return None


def _find_repaired(name):
    from importlib.util import find_spec, module_from_spec
    from importlib.util import spec_from_file_location as spec_of

    full_name = "bnlasagne.compat"
    if full_name not in sys.modules:
        # Without the package around it, which is Lasagne and all layers.
        folder, = find_spec("bnlasagne").submodule_search_locations
        folder = os.path.join(folder, "compat")
        spec = spec_of(full_name, os.path.join(folder, "__init__.py"),
                       submodule_search_locations=[folder])
        compat = module_from_spec(spec)
        sys.modules[full_name] = compat
        spec.loader.exec_module(compat)
        compat.prepare()
    return find_spec(name)


if not os.environ.get("BNLASAGNE_NO_HOOK"):
    sys.meta_path.insert(0, _Hook)
