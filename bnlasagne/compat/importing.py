"""Repair modules while they are imported."""

import builtins
import contextlib
import functools
import importlib
import sys
import types
import warnings
from importlib.machinery import SourceFileLoader

__all__ = ["repair_on_import", "view"]

# Where a module holds the names of its repairs.
_DONE = "__bnlasagne_repairs__"


def repair_on_import(during, afterwards, instead):
    """Have modules repaired as they are imported, whoever imports them.

    The first two arguments map names of modules to lists of functions. Those
    of `during` return context managers, within all of which the module's code
    is executed, the first outermost. Those of `afterwards` then take the
    module. A module that is imported already is repaired at once, unless it
    was repaired before.

    `instead` maps names of packages to what their modules, and nobody else,
    get for an import: a table from the name of a module without a dot to a
    function that returns it, or raises ImportError.
    """
    for finder in sys.meta_path[:]:
        # By name: it may be that of another copy of this module.
        if type(finder).__name__ == _RepairingFinder.__name__:
            sys.meta_path.remove(finder)
    sys.meta_path.insert(0, _RepairingFinder(during, afterwards, instead))
    for name, repairs in afterwards.items():
        if sys.modules.get(name):
            _repair(sys.modules[name], repairs)


def view(module, **names):
    """Return a copy of a module in which some names are added or replaced.

    The copy holds the same objects, so that it costs no time to use.
    """
    copy = types.ModuleType(module.__name__)
    vars(copy).update(vars(module))
    # What the module makes or imports at its first use.
    copy.__getattr__ = lambda name: getattr(module, name)
    vars(copy).update(names)
    return copy


class _RepairingFinder:
    """Find some modules as the other finders do, and have them repaired."""

    def __init__(self, during, afterwards, instead):
        self._during = during
        self._afterwards = afterwards
        self._builtins = {
            package: {**vars(builtins), "__import__": _import_instead(table)}
            for package, table in instead.items() if table}

    def find_spec(self, name, path=None, target=None):
        own_builtins = self._builtins.get(name.partition(".")[0])
        if not (own_builtins or name in self._during
                or name in self._afterwards):
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
                        self._afterwards.get(name, ()), own_builtins)
                return spec
        return None


class _RepairingLoader:
    """Execute a module's code by its own loader, with the repairs."""

    def __init__(self, loader, during, afterwards, own_builtins):
        self._loader = loader
        self._during = during
        self._afterwards = afterwards
        self._builtins = own_builtins

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def exec_module(self, module):
        module.__loader__ = module.__spec__.loader = self._loader
        vars(module).pop(_DONE, None)  # It may be executed again.
        if self._builtins:
            # Python looks here for `__import__`, for functions too.
            module.__builtins__ = self._builtins
        with contextlib.ExitStack() as stack:
            for context in self._during:
                stack.enter_context(context())
            self._execute(module)
        _repair(module, self._afterwards)

    def _execute(self, module):
        if type(self._loader) is not SourceFileLoader:
            self._loader.exec_module(module)
            return
        # Python compiles the source, unless somebody did before. It warns of
        # code that was fine when it was written.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = self._loader.get_code(module.__name__)
        exec(code, vars(module))


def _repair(module, repairs):
    done = vars(module).setdefault(_DONE, set())
    for repair in repairs:
        # By name: it may be that of another copy of this package.
        if repair.__name__ not in done:
            done.add(repair.__name__)
            repair(module)


def _import_instead(table):
    """Make an `__import__` that takes some modules from a table."""
    make = functools.lru_cache(maxsize=None)(lambda name: table[name]())

    def import_(name, globals=None, locals=None, fromlist=(), level=0):
        first, *parts = name.split(".")
        if level or first not in table:
            return builtins.__import__(name, globals, locals, fromlist, level)
        package = module = make(first)
        for part in parts:
            module = _part(module, part)
        # As `import a.b` gives the name `a`, and `from a.b import c` needs b.
        return module if fromlist else package

    return import_


def _part(module, name):
    if not hasattr(module, name):
        # NumPy 1.17 warns of one that Theano imports.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(f"{module.__name__}.{name}")
    return getattr(module, name)
