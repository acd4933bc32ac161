"""Change Theano's functions, for users to name an average by its variable.

A function holds aliases of a running average, which users do not know. For
each change, importing this module replaces a function of Theano's:

- ``function.copy(swap={average: other})`` swaps the aliases with the average,
  and keeps the order of Ops that overwrite their inputs;
- ``theano.function(no_default_updates=[average])`` leaves the aliases alone.

For ``theano.scan``, see :mod:`bnlasagne.averages.loops`.
"""

import functools
import importlib

import theano
from theano.compile.function_module import Function, FunctionMaker
from theano.compile.sharedvalue import SharedVariable

from ..theano_tools.next_values import moving_variables
from .aliases import average_of

__all__ = []


def _with_aliases(copy):
    """Have ``copy(swap=...)`` swap the aliases of an average with it."""
    @functools.wraps(copy)
    def copy_with_aliases(self, share_memory=False, swap=None, *args,
                          **kwargs):
        if swap is not None:
            swap = _swap_of_aliases(self, swap)
        return copy(self, share_memory, swap, *args, **kwargs)
    return copy_with_aliases


def _swap_of_aliases(function, swap):
    # A schedule of weights is more than one variable.
    wanted = dict(swap)
    for old, new in swap.items():
        for one, other in zip(moving_variables(old), moving_variables(new)):
            wanted.setdefault(one, other)
    by_container = {id(old.container): old for old in wanted
                    if isinstance(old, SharedVariable)}
    variables = [spec.variable for spec in function.maker.inputs]
    found = dict(swap)
    for alias in variables:
        if isinstance(alias, SharedVariable) and (
                id(alias.container) in by_container):
            old = by_container[id(alias.container)]
            found[alias] = wanted[old]
            # Of an average, a function may hold nothing but aliases.
            if old not in variables:
                found.pop(old, None)
    return found


def _with_order(init):
    """Have a maker that gets a graph keep the order of in-place Ops.

    ``copy()`` makes the graph anew, without what tells that a value must be
    read before it is overwritten: here, a statistic by its average.
    """
    @functools.wraps(init)
    def init_with_order(self, inputs, outputs, mode=None,
                        accept_inplace=False, function_builder=Function,
                        profile=None, on_unused_input=None, fgraph=None,
                        **kwargs):
        if fgraph is not None and not hasattr(fgraph, "destroyers"):
            fgraph.attach_feature(theano.gof.DestroyHandler())
        init(self, inputs, outputs, mode, accept_inplace, function_builder,
             profile, on_unused_input, fgraph, **kwargs)
    return init_with_order


class _Averages(list):
    """Count the aliases of averages as elements."""

    def __contains__(self, variable):
        return super().__contains__(variable) or (
            super().__contains__(average_of(variable)))


def _without_aliases(rebuild):
    """Have ``no_default_updates=[average]`` leave out its aliases, too."""
    @functools.wraps(rebuild)
    def rebuild_without_aliases(*args, no_default_updates=False, **kwargs):
        if isinstance(no_default_updates, list):
            no_default_updates = _Averages(no_default_updates)
        return rebuild(*args, no_default_updates=no_default_updates, **kwargs)
    return rebuild_without_aliases


Function.copy = _with_aliases(Function.copy)
FunctionMaker.__init__ = _with_order(FunctionMaker.__init__)
# Theano has a function of the same name in the module's place.
pfunc = importlib.import_module("theano.compile.pfunc")
pfunc.rebuild_collect_shared = _without_aliases(pfunc.rebuild_collect_shared)
