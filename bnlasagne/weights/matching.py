"""Match weights to layers, and compare their names and shapes.

The comparison serves other frameworks, files and parameter lists alike.
"""

import collections
import collections.abc
import logging
import re
import reprlib

from ..networks.values import as_numbers

__all__ = ["Pair", "check_pairs", "compare", "distinct", "match"]

_log = logging.getLogger(__name__)

Pair = collections.namedtuple("Pair", "entry, weights, others")
Pair.__doc__ = """Hold a layer, or None, and the weights that go to it.

`weights` are (key, array) by roles: the names of the layer's parameters.
`others` lists those that the layer has no parameters for.
"""


def match(framework, entries, weights):
    """Pair each layer with its weights, by names and then in order.

    Pairs with the weights that are left come last. A layer that shares all
    parameters with an earlier layer is a second application of the same
    module; unless there are weights for each of them.
    """
    groups = _groups(framework, weights)
    if len(groups) < len(entries):
        entries = distinct(entries)
    kinds = {module: _kinds_of(group, framework.names)
             for module, group in groups.items()}
    found = _by_name(framework, entries, kinds)
    for kind in ("linear", "batch norm"):
        found.update(_in_order(
            framework, [entry for entry in entries if entry.kind == kind],
            [module for module in groups if kinds[module][0] == kind], found))
    for module, entry in found.items():
        _log.info("%s gets the weights of %s", entry.label, module)
    modules = {entry: module for module, entry in found.items()}
    return [_pair(entry, groups.get(modules.get(entry), {}))
            for entry in entries] + [
                _pair(None, group) for module, group in groups.items()
                if module not in found]


def distinct(entries):
    """List the first of the layers that share all parameters."""
    found = {}
    for entry in entries:
        found.setdefault(entry.params(), entry)
    return list(found.values())


def _groups(framework, weights):
    """Group weights by modules, in dicts of names to (key, array)."""
    expected = f"{framework.caller}: expected a {framework.what}, "
    if not isinstance(weights, collections.abc.Mapping):
        # A module's representation has many lines.
        found = " ".join(reprlib.repr(weights).split())
        raise TypeError(f"{expected}got {found}. Pass {framework.how}.")
    groups = {}
    for key, value in framework.flat(weights).items():
        if not isinstance(key, str):
            raise TypeError(f"{expected}with names of weights, got the name "
                            f"{key!r}. Pass {framework.how}.")
        module, name = framework.split(key)
        if name not in framework.ignored:
            array = as_numbers(f"{framework.caller}: {key}", value)
            # A single integer is a count, such as of the models averaged.
            if array.ndim or array.dtype.kind == "f":
                groups.setdefault(module, {})[name] = key, array
    return groups


def _kinds_of(group, names):
    """Tell the kinds of layers that a module may be, the likely one first."""
    flat = all(value.ndim < 2 for _, value in group.values())
    if all(name.isdigit() for name in group):
        return ["batch norm" if flat else "linear"]
    only_norms = {names[role] for role in ("gamma", "beta", "mean", "var")}
    only_norms -= {names["W"], names["b"]}
    if not only_norms.isdisjoint(group):
        return ["batch norm"]
    if not flat:
        return ["linear"]
    # A scale and a shift, say; or a dense layer with weights that do not fit.
    kinds = ["linear", "batch norm"]
    return kinds[::-1] if names["gamma"] in group else kinds


def _by_name(framework, entries, kinds):
    """Find layers by the names of modules, or by the ends of these names."""
    counts = collections.Counter((entry.kind, entry.layer.name)
                                 for entry in entries)
    names = {entry: entry.layer.name for entry in entries
             if entry.layer.name is not None and
             counts[entry.kind, entry.layer.name] == 1}
    attempts = [_claims(shorter, kinds, framework.separator)
                for shorter in _shortened(names, framework.separator)]
    claims = next((claims for claims in attempts
                   if len(claims) == len(names) and
                   all(len(modules) == 1 for modules in claims.values())),
                  attempts[0])
    for entry, modules in claims.items():
        if len(modules) > 1:
            raise ValueError(
                f"{framework.caller}: the name of {entry.label} is the end of "
                f"several names in the {framework.what}: "
                f"{' and '.join(map(repr, modules))}. Give the layer the whole"
                " name of its module, or pass fewer weights.")
    found = {modules[0]: entry for entry, modules in claims.items()}
    return {module: found[module] for module in kinds if module in found}


def _shortened(names, separator):
    """Yield the names of layers, and then without what they all start with.

    The network may be part of a larger one than the modules are.
    """
    parts = {entry: name.split(separator) for entry, name in names.items()}
    while True:
        yield {entry: separator.join(each) for entry, each in parts.items()}
        if len(parts) < 2 or len({each[0] for each in parts.values()}) > 1 \
                or any(len(each) == 1 for each in parts.values()):
            return
        parts = {entry: each[1:] for entry, each in parts.items()}


def _claims(names, kinds, separator):
    """Find the modules for each layer that has the end of their names.

    A module goes to the layer with which its name has the longest end in
    common: ``model.block.conv`` to ``block.conv``, not to ``conv``.
    """
    entries = {(entry.kind, name): entry for entry, name in names.items()}
    claims = {}
    for module, possible in kinds.items():
        parts = module.split(separator)
        ends = [separator.join(parts[start:]) for start in range(len(parts))]
        entry = next((entries[kind, end] for end in ends for kind in possible
                      if (kind, end) in entries), None)
        if entry is not None:
            claims.setdefault(entry, []).append(module)
    return {entry: [names[entry]] if names[entry] in modules else modules
            for entry, modules in claims.items()}


def _in_order(framework, entries, modules, found):
    """Pair the modules and layers of a kind that are left, in order."""
    taken = [entry for entry in entries if entry in found.values()]
    # If some names decide, a layer with a name gets no other weights.
    entries = [entry for entry in entries if entry not in taken and
               not (taken and entry.layer.name is not None)]
    modules = [module for module in modules if module not in found]
    if len(entries) == len(modules):
        _check_order(framework, modules)
    return dict(zip(modules, entries))


def _check_order(framework, modules):
    """Refuse an order that files make, and not models."""
    # Files sort whole names, or the names of groups within groups.
    for names in ([[module] for module in modules],
                  [module.split(framework.separator) for module in modules]):
        if names != sorted(names):
            continue
        for number in range(1, len(names)):
            if _natural(names[number - 1]) > _natural(names[number]):
                raise ValueError(
                    f"{framework.caller}: the names in the {framework.what} "
                    "are in the order of the alphabet, with "
                    f"{modules[number - 1]!r} before {modules[number]!r}. The "
                    "order of the model is needed, as the layers here have no "
                    "names that tell. Name the layers, or pass "
                    f"{framework.how}.")


def _natural(names):
    """Make a key for sorting that has 2 before 10."""
    return [[int(part) if number % 2 else part for number, part
             in enumerate(re.split("([0-9]+)", name))] for name in names]


def _pair(entry, group):
    roles = {} if entry is None else {
        name: role for role, name in entry.names.items()}
    if entry is not None and all(name.isdigit() for name in group):
        # Weights are numbered: only the layer tells what they may be.
        roles = {str(number): role for number, role
                 in enumerate(entry.in_order(len(group))) if role is not None}
    return Pair(entry, {roles[name]: found for name, found in group.items()
                        if name in roles},
                [found for name, found in group.items() if name not in roles])


def check_pairs(framework, pairs, optional):
    """Raise a ValueError unless all weights fit their layers.

    `optional` has the weights that layers can do without, by layers and roles.
    """
    rows, hints = [], []
    for entry, weights, others in pairs:
        expected = entry.get() if entry else {}
        allowed = {**optional.get(entry, {}), **expected}
        rows += [_row(entry, role, weights.get(role), allowed.get(role))
                 for role in dict.fromkeys([*expected, *weights])]
        rows += [((key, value.shape), None) for key, value in others]
        if entry and (weights or others):
            hints += _hints(framework, entry,
                            [role for role in expected if role not in weights],
                            [role for role in weights if role not in allowed],
                            [key for key, _ in [*weights.values(), *others]])
    compare(framework.caller, framework.what, rows, hints)


def _row(entry, role, found, expected):
    """Make the two sides of a comparison, for :func:`compare`."""
    theirs = None if found is None else (found[0], found[1].shape)
    if expected is None:
        return theirs, None
    shape = theirs[1] if theirs and entry.takes(role, theirs[1]) \
        else expected.shape
    return theirs, (f"{entry.label}, {role}", shape)


def _hints(framework, entry, missing, extra, keys):
    """Say how to build a layer or a module that has what the other has."""
    module = framework.split(keys[0])[0]
    options = [role for role in missing if role in framework.without]
    if options:
        # Of three arrays without names, one may be either.
        joint = " or " if len(keys) + len(options) > len(entry.get()) \
            else " and "
        theirs = (joint + "no ").join(entry.names[role] for role in options)
        without = dict.fromkeys(framework.without[role] for role in options)
        ours = joint.join(f"{role}=None" for role in options)
        yield (f"{module!r} has no {theirs} ({joint.join(without)}). Build "
               f"{entry.label} with {ours}.")
    if extra:
        theirs = " and a ".join(entry.names[role] for role in extra)
        ours = " and ".join(f"{role}=None" for role in extra)
        yield f"{module!r} has a {theirs}. Build {entry.label} without {ours}."
    if "mean" in missing and "var" in missing:
        yield (f"{module!r} has no {entry.names['mean']} and no "
               f"{entry.names['var']}. {framework.no_statistics}")


def compare(caller, what, rows, hints=()):
    """Raise a ValueError that lists both sides, unless all rows fit.

    A row is a pair of (name, shape): the one found, and the one that the
    network needs; None for nothing. It fits if the shapes are the same. `what`
    has the weights, such as a file. `hints` are sentences that say what to do.
    """
    rows = list(rows)
    fits = [None not in row and row[0][1] == row[1][1] for row in rows]
    if all(fits):
        return
    texts = [(what, "needed by the network")] + [
        tuple("-" if side is None else f"{side[0]}: {side[1]}" for side in row)
        for row in rows]
    width = max(len(theirs) for theirs, _ in texts)
    lines = [f"{' ' if fit else '!'} {theirs:{width}}  {ours}"
             for fit, (theirs, ours) in zip([True, *fits], texts)]
    raise ValueError("\n".join([
        f"{caller}: the {what} does not fit the network, where marked:",
        *lines, *hints]))
