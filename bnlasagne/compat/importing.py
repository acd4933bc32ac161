"""Repair modules while they are imported."""

import contextlib
import sys

__all__ = ["repair_on_import"]


def repair_on_import(during, afterwards):
    """Have modules repaired as they are imported, whoever imports them.

    Both arguments map names of modules to lists of functions. Those of
    `during` return context managers, within all of which the module's code is
    executed, the first outermost. Those of `afterwards` then take the module.
    A module that is imported already is repaired at once.
    """
    for finder in sys.meta_path[:]:
        # By name: it may be that of another copy of this module.
        if type(finder).__name__ == _RepairingFinder.__name__:
            sys.meta_path.remove(finder)
    sys.meta_path.insert(0, _RepairingFinder(during, afterwards))
    for name, repairs in afterwards.items():
        if sys.modules.get(name):
            _repair(sys.modules[name], repairs)


class _RepairingFinder:
    """Find some modules as the other finders do, and have them repaired."""

    def __init__(self, during, afterwards):
        self._during = during
        self._afterwards = afterwards

    def find_spec(self, name, path=None, target=None):
        if name not in self._during and name not in self._afterwards:
            return None
        others = (getattr(finder, "find_spec", None)
                  for finder in sys.meta_path[:] if finder is not self)
        for find_spec in filter(None, others):
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
    """Execute a module's code by its own loader, with the repairs."""

    def __init__(self, loader, during, afterwards):
        self._loader = loader
        self._during = during
        self._afterwards = afterwards

    def __getattr__(self, name):
        return getattr(self._loader, name)

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
