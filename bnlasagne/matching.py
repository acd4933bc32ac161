"""Which weights of another framework go to which layer."""

import collections
import collections.abc
import logging
import reprlib

from .comparison import Row, check_rows, described
from .layer import label
from .slots import BatchNormSlot, LinearSlot, distinct
from .values import as_numbers

__all__ = [
    "Pair",
    "check",
    "match",
]

_log = logging.getLogger(__name__)

Pair = collections.namedtuple("Pair", "slot, weights, others")
Pair.__doc__ = """A layer and its weights.

Attributes
----------
slot : LinearSlot, BatchNormSlot or None
weights : dict of str to (key, array)
    By the names of parameters here.
others : list of (key, array)
    What it has no parameters for.
"""


def match(framework, slots, weights, caller):
    """Bring layers and weights together, by names and then in order.

    Layers that share all parameters with one before are those of a module that
    is applied several times; unless there are weights for each.

    Parameters
    ----------
    framework : Framework
    slots : list of LinearSlot and BatchNormSlot
        In the order of the network.
    weights : dict of str to array
    caller : str
        Who asks, for messages.

    Returns
    -------
    list of Pair
        Of each slot; and then of weights that are left.

    Raises
    ------
    TypeError
        If `weights` is something else.
    """
    groups = _groups(framework, weights, caller)
    if len(groups) < len(slots):
        slots = distinct(slots)
    kinds = {module: _kind_of(group, framework.names)
             for module, group in groups.items()}
    found = {}
    for kind in (LinearSlot, BatchNormSlot):
        found.update(_match_kind(
            [slot for slot in slots if isinstance(slot, kind)],
            [module for module in groups if kinds[module] is kind],
            framework.separator))
    for module, slot in found.items():
        if slot is not None:
            _log.info("%s gets the weights of %s", label(slot.layer), module)
    modules = {slot: module for module, slot in found.items()}
    return [_pair(slot, groups.get(modules.get(slot), {})) for slot in slots
            ] + [_pair(None, groups[module]) for module in groups
                 if found[module] is None]


def _groups(framework, weights, caller):
    """Weights by the layers that they belong to."""
    if not isinstance(weights, collections.abc.Mapping):
        raise TypeError("%s: expected a %s, got %s. %s" % (
            caller, framework.what, reprlib.repr(weights), framework.how))
    groups = collections.OrderedDict()
    for key, value in framework.flat(weights).items():
        if not isinstance(key, str):
            raise TypeError("%s: expected a %s, with names of weights, got "
                            "the name %r. %s" % (caller, framework.what, key,
                                                 framework.how))
        module, name = framework.split(key)
        if name not in framework.ignored:
            groups.setdefault(module, {})[name] = key, as_numbers(key, value)
    return groups


def _kind_of(group, names):
    """What kind of layer a group of weights is for."""
    if all(name.isdigit() for name in group):
        flat = all(value.ndim < 2 for _, value in group.values())
        return BatchNormSlot if flat else LinearSlot
    only_norms = {names[role] for role in ("gamma", "beta", "mean", "var")}
    only_norms -= {names["W"], names["b"]}
    return LinearSlot if only_norms.isdisjoint(group) else BatchNormSlot


def _match_kind(slots, modules, separator):
    """For each module, the layer that it is for, or None."""
    found = collections.OrderedDict.fromkeys(modules)
    for slot in slots:
        module = _named_like(slot.layer.name, modules, separator)
        others = [other for other in slots
                  if other.layer.name == slot.layer.name]
        if module is not None and len(others) == 1:
            found[module] = slot
    taken = [slot for slot in found.values() if slot is not None]
    free = iter([slot for slot in slots if slot not in taken and
                 not (taken and slot.layer.name is not None)])
    for module in modules:
        if found[module] is None:
            found[module] = next(free, None)
    return found


def _named_like(name, modules, separator):
    """The module that has a layer's name, if there is one and only one."""
    if name is None or name in modules:
        return name
    same = [module for module in modules if module.endswith(separator + name)]
    return same[0] if len(same) == 1 else None


def _pair(slot, group):
    roles = {} if slot is None else {
        name: role for role, name in slot.names.items()}
    if slot is not None and all(name.isdigit() for name in group):
        # Only the layer tells what an unnamed one may be.
        roles = {str(number): role for number, role
                 in enumerate(slot.in_order(len(group)))}
    return Pair(slot, {roles[name]: found for name, found in group.items()
                       if name in roles},
                [found for name, found in group.items() if name not in roles])


def check(pairs, optional, framework, caller):
    """Raise a ValueError unless all weights fit.

    Parameters
    ----------
    pairs : list of Pair
    optional : dict of slot to (dict of str to array)
        What there may be, but need not.
    framework : Framework
    caller : str
    """
    rows = []
    for slot, weights, others in pairs:
        expected = slot.weights() if slot else {}
        for role in expected if slot else ():
            rows.append(_row(slot, role, weights.get(role), expected[role]))
        may_be = optional.get(slot, {})
        for role in weights:
            if role not in expected:
                rows.append(_row(slot, role, weights[role], may_be.get(role)))
        rows += [Row(described(*found), "", False) for found in others]
    check_rows(caller, framework.what, rows)


def _row(slot, role, found, expected):
    theirs = "" if found is None else described(*found)
    ours = "" if expected is None else "%s, %s: %s" % (
        label(slot.layer), role, expected.shape)
    fits = found is not None and expected is not None and slot.fits(
        role, found[1].shape, expected.shape)
    return Row(theirs, ours, fits)
