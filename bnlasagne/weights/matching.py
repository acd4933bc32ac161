"""Find the layer for the weights of each module of another framework."""

import collections
import collections.abc
import logging
import re
import reprlib

from ..networks.setting import as_numbers
from .comparison import Row, check_rows, described
from .slots import BatchNormSlot, LinearSlot, distinct

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
    ValueError
        If the name of a layer fits several modules, or if the order decides
        and is that of an alphabet.
    """
    groups = _groups(framework, weights, caller)
    if len(groups) < len(slots):
        slots = distinct(slots)
    kinds = {module: _kinds_of(group, framework.names)
             for module, group in groups.items()}
    found = _matched_by_names(slots, kinds, framework, caller)
    for kind in (LinearSlot, BatchNormSlot):
        _match_in_order([slot for slot in slots if isinstance(slot, kind)],
                        [module for module in groups
                         if kinds[module][0] is kind],
                        found, framework, caller)
    for module, slot in found.items():
        _log.info("%s gets the weights of %s", slot.label, module)
    modules = {slot: module for module, slot in found.items()}
    return [_pair(slot, groups.get(modules.get(slot), {})) for slot in slots
            ] + [_pair(None, groups[module]) for module in groups
                 if module not in found]


def _groups(framework, weights, caller):
    """Weights by the layers that they belong to."""
    if not isinstance(weights, collections.abc.Mapping):
        # A module's representation has many lines.
        found = " ".join(reprlib.repr(weights).split())
        raise TypeError("%s: expected a %s, got %s. %s" % (
            caller, framework.what, found, framework.how))
    inner = framework.within(weights)
    if inner is not None:
        raise TypeError(
            "%s: expected a %s, got a checkpoint with the keys %s. Pass %s."
            % (caller, framework.what, reprlib.repr(list(weights)),
               " or ".join("checkpoint" + path for path in inner)
               or "one of its parts that has the weights"))
    groups = collections.OrderedDict()
    for key, value in framework.flat(weights).items():
        if not isinstance(key, str):
            raise TypeError("%s: expected a %s, with names of weights, got "
                            "the name %r. %s" % (caller, framework.what, key,
                                                 framework.how))
        module, name = framework.split(key)
        if name not in framework.ignored:
            array = as_numbers("%s: %s" % (caller, key), value)
            # A single integer is a count, such as of the models averaged.
            if array.ndim or array.dtype.kind == "f":
                groups.setdefault(module, {})[name] = key, array
    return groups


def _kinds_of(group, names):
    """The kinds of layers that a group of weights may be for, likely first."""
    flat = all(value.ndim < 2 for _, value in group.values())
    if all(name.isdigit() for name in group):
        return [BatchNormSlot if flat else LinearSlot]
    only_norms = {names[role] for role in ("gamma", "beta", "mean", "var")}
    only_norms -= {names["W"], names["b"]}
    if not only_norms.isdisjoint(group):
        return [BatchNormSlot]
    if not flat:
        return [LinearSlot]
    # A scale and a shift, say; or a dense layer with weights that do not fit.
    kinds = [LinearSlot, BatchNormSlot]
    return kinds[::-1] if names["gamma"] in group else kinds


def _matched_by_names(slots, kinds, framework, caller):
    """Layers whose names are those of modules, or ends of these.

    Returns
    -------
    dict of str to slot
        Modules that were found.
    """
    counts = collections.Counter((type(slot), slot.layer.name)
                                 for slot in slots)
    names = {slot: slot.layer.name for slot in slots
             if slot.layer.name is not None and
             counts[type(slot), slot.layer.name] == 1}
    claims = _claims(names, kinds, framework.separator)
    if not _complete(names, claims):
        # The layers may be part of a larger network than the modules.
        for shorter in _without_common_start(names, framework.separator):
            without = _claims(shorter, kinds, framework.separator)
            if _complete(names, without):
                claims = without
                break
    for slot, modules in claims.items():
        if len(modules) > 1:
            raise ValueError(
                "%s: the name of %s is the end of several names in the %s: "
                "%s. Give the layer the whole name of its module, or pass "
                "fewer weights."
                % (caller, slot.label, framework.what,
                   " and ".join("%r" % module for module in modules)))
    # In the order of the modules.
    found = {modules[0]: slot for slot, modules in claims.items()}
    return collections.OrderedDict(
        (module, found[module]) for module in kinds if module in found)


def _claims(names, kinds, separator):
    """For each layer, the modules that have its name.

    A module has the name of the layer with which it has the longest end in
    common: ``model.block.conv`` that of ``block.conv``, not that of ``conv``.
    """
    slots = {(type(slot), name): slot for slot, name in names.items()}
    claims = collections.OrderedDict()
    for module, possible in kinds.items():
        parts = module.split(separator)
        ends = [separator.join(parts[start:]) for start in range(len(parts))]
        slot = next((slots[kind, end] for end in ends for kind in possible
                     if (kind, end) in slots), None)
        if slot is not None:
            claims.setdefault(slot, []).append(module)
    for slot, modules in claims.items():
        if names[slot] in modules:
            claims[slot] = [names[slot]]
    return claims


def _complete(names, claims):
    return len(claims) == len(names) and all(
        len(modules) == 1 for modules in claims.values())


def _without_common_start(names, separator):
    """Names without what they all start with, ever more of it."""
    parts = {slot: name.split(separator) for slot, name in names.items()}
    if len(parts) < 2:
        return
    for count in range(1, min(map(len, parts.values()))):
        if len({tuple(each[:count]) for each in parts.values()}) > 1:
            return
        yield {slot: separator.join(each[count:])
               for slot, each in parts.items()}


def _match_in_order(slots, modules, found, framework, caller):
    """Add those that are left to what was found by names."""
    taken = [slot for slot in slots if slot in found.values()]
    slots = [slot for slot in slots if slot not in taken and
             not (taken and slot.layer.name is not None)]
    modules = [module for module in modules if module not in found]
    if len(slots) == len(modules):
        _check_order(modules, framework, caller)
    found.update(zip(modules, slots))


def _check_order(modules, framework, caller):
    """Refuse an order that files make, and not models."""
    # Files sort whole names, or the names of groups within groups.
    for names in ([[module] for module in modules],
                  [module.split(framework.separator) for module in modules]):
        if names != sorted(names):
            continue
        for number in range(1, len(names)):
            if _natural(names[number - 1]) > _natural(names[number]):
                raise ValueError(
                    "%s: the names in the %s are in the order of the alphabet,"
                    " with %r before %r. The order of the model is needed, as "
                    "the layers here have no names that tell. Name the layers,"
                    " or %s" % (
                        caller, framework.what, modules[number - 1],
                        modules[number],
                        framework.how[0].lower() + framework.how[1:]))


def _natural(names):
    """A key for sorting that has 2 before 10."""
    return [[int(part) if number % 2 else part for number, part
             in enumerate(re.split("([0-9]+)", name))] for name in names]


def _pair(slot, group):
    roles = {} if slot is None else {
        name: role for role, name in slot.names.items()}
    if slot is not None and all(name.isdigit() for name in group):
        # Only the layer tells what an unnamed one may be.
        roles = {str(number): role for number, role
                 in enumerate(slot.in_order(len(group)))
                 if role is not None}
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
    rows, hints = [], []
    for slot, weights, others in pairs:
        expected = slot.weights() if slot else {}
        for role in expected if slot else ():
            rows.append(_row(slot, role, weights.get(role), expected[role]))
        may_be = optional.get(slot, {})
        extra = [role for role in weights if role not in expected]
        for role in extra:
            rows.append(_row(slot, role, weights[role], may_be.get(role)))
        rows += [Row(described(*found), "", False) for found in others]
        if slot and (weights or others):
            hints += _hints(slot, [role for role in expected
                                   if role not in weights],
                            [role for role in extra if role not in may_be],
                            [key for key, _ in [*weights.values(), *others]],
                            framework)
    check_rows(caller, framework.what, rows, hints)


def _row(slot, role, found, expected):
    theirs = "" if found is None else described(*found)
    ours = "" if expected is None else "%s, %s: %s" % (
        slot.label, role, expected.shape)
    fits = found is not None and expected is not None and slot.fits(
        role, found[1].shape, expected.shape)
    return Row(theirs, ours, fits)


def _hints(slot, missing, extra, keys, framework):
    """How to build a layer or a module so that it has what the other has."""
    module = framework.split(keys[0])[0]
    options = [role for role in missing if role in ("b", "beta", "gamma")]
    if options:
        # Of three arrays without names, one may be either.
        joint = " or " if len(keys) + len(options) > len(slot.weights()) \
            else " and "
        yield "%r has no %s (%s). Build %s with %s." % (
            module, (joint + "no ").join(
                slot.names[role] for role in options),
            joint.join(_distinct(framework.lacking(slot, role)
                                 for role in options)),
            slot.label, joint.join("%s=None" % role
                                          for role in options))
    if extra:
        yield "%r has a %s. Build %s without %s." % (
            module, " and a ".join(slot.names[role] for role in extra),
            slot.label,
            " and ".join("%s=None" % role for role in extra))
    if "mean" in missing and "var" in missing:
        yield "%r has no %s and no %s. %s" % (
            module, slot.names["mean"], slot.names["var"],
            framework.no_statistics)


def _distinct(texts):
    return list(collections.OrderedDict.fromkeys(texts))
