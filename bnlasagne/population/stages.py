"""Cut a network into stages, between its batch normalization layers.

A network is measured in stages, from its input upward. A stage starts from the
frontier that the stage before has computed. It computes the inputs of the
layers that it measures, and its own frontier: what later stages need and what
does not depend on statistics that are still to be measured. Kept between
passes or computed again, a frontier comes from the same functions, so that its
bits are the same.
"""

import itertools

import lasagne
import numpy as np
import theano
from theano.gof.graph import ancestors, io_toposort

from ..averages.applications import applications_in, without_markers
from ..averages.marker import last_application
from ..layers.layer import without_ranks
from ..layers.subclasses import uses_stored_statistics
from ..networks.labels import label, numbered_labels
from ..networks.walk import all_layers
from ..theano_tools.needed import inputs_by_value, needed
from .batches import CALLER, into_network

__all__ = ["MeasuredNetwork", "stages_of"]


class Group:
    """Group the applications of layers that share a mean and a deviation.

    Stand-ins take the place of these two shared variables in all functions, so
    that the layers stay as they are until all is measured.
    """

    def __init__(self, mean, std):
        self.applications = []
        self.labels = {}
        self.stored = mean, std
        self.stand_ins = tuple(
            theano.shared(variable.get_value(),
                          broadcastable=variable.broadcastable)
            for variable in self.stored)

    def __str__(self):
        return ", ".join(self.labels.values())

    @property
    def shape(self):
        return self.stored[0].get_value(borrow=True).shape

    def statistics(self, moments, ddof):
        """Compute mean and standard deviation, as the layers store them."""
        least = max(2, ddof + 1)
        if moments.count < least:
            raise ValueError(
                f"{CALLER}: {self}: the statistics of a training set, with "
                f"ddof={ddof}, take {least} values per channel or more, but "
                f"its batches have {moments.count} in all. Pass more data.")
        with np.errstate(over="ignore"):
            values = tuple(
                np.asarray(value, variable.dtype) for value, variable
                in zip((moments.mean, moments.std(ddof)), self.stored))
        if not all(np.isfinite(value).all() for value in values):
            raise ValueError(
                f"{CALLER}: {self}: the statistics are too large for "
                f"{self.stored[0].dtype}. Remove or clip large values.")
        return values


class MeasuredNetwork:
    """Find the applications of batch normalization layers in a network.

    `inputs` maps each input layer to its variable; `layers` each layer to its
    `Group`, in the order in which they are first applied. With `one_pass`,
    layers normalize by the statistics of the batch.
    """

    def __init__(self, outputs, one_pass, kwargs):
        self.inputs = _input_variables(outputs)
        found = _applications(outputs, self.inputs, one_pass, kwargs)
        self.layers = _grouped(found, numbered_labels(all_layers(outputs)))
        self.groups = list(dict.fromkeys(self.layers.values()))
        for group in self.groups:
            _check_roots(group, set(self.inputs.values()))


def _input_variables(outputs):
    """Find a variable for each input layer; its own if possible.

    Other parts of the network may refer to that variable, or be sized by it.
    """
    variables = {}
    for layer in lasagne.layers.get_all_layers(outputs):
        if isinstance(layer, lasagne.layers.InputLayer):
            # Layers on one variable may be given different arrays.
            variables[layer] = layer.input_var.type(name=layer.name) \
                if layer.input_var in variables.values() else layer.input_var
    return variables


def _applications(outputs, inputs, one_pass, kwargs):
    """Find the applications to measure, in order."""
    for name in ("inputs", "batch_norm_use_averages",
                 "batch_norm_update_averages"):
        if name in kwargs:
            raise TypeError(f"{CALLER} passes {name} to get_output() itself. "
                            "Leave it out.")
    before = last_application()
    with without_ranks():
        expressions = lasagne.layers.get_output(
            outputs, inputs=dict(inputs),
            batch_norm_use_averages=not one_pass,
            batch_norm_update_averages=False,
            **dict({"deterministic": True}, **kwargs))
    found = [application for application in applications_in(expressions)
             # Others are below the variable of an input layer, say.
             if application.number > before
             and not application.layer.frozen
             and uses_stored_statistics(application.layer)]
    if not found:
        raise ValueError(
            f"{CALLER}: there is no layer to measure: the network has no batch"
            " normalization layers, or all of them are frozen or do not use "
            "stored statistics. Unfreeze one by unfreeze_batch_norm().")
    unmarked = iter(without_markers(_measured(found), inputs.values()))
    for application in found:
        application.input = next(unmarked)
        if application.mask is not None:
            application.mask = next(unmarked)
    return found


def _grouped(found, labels):
    """Group applications by the statistics that they share, by layers."""
    layers, groups, owner = {}, {}, {}
    for application in found:
        layer = application.layer
        text = labels.get(layer) or label(layer)
        key = layer.mean, layer.std
        for variable in key:
            if not isinstance(variable, theano.compile.SharedVariable):
                raise ValueError(
                    f"{CALLER}: {text}: its statistics cannot be set, as "
                    f"{variable} is an expression. Make it a shared variable.")
        if key not in groups:
            groups[key] = Group(*key)
        layers[layer] = group = groups[key]
        group.applications.append(application)
        group.labels[layer] = text
        for variable in key:
            if owner.setdefault(variable, group) is not group:
                raise ValueError(
                    f"{CALLER}: {text} shares {variable}, but not both its "
                    f"mean and its std, with {owner[variable]}. Share both.")
    return layers


def _check_roots(group, inputs):
    """Raise an error if a layer depends on what batches do not have."""
    for variable in ancestors(_inputs_of([group]), blockers=inputs):
        if variable.owner is None and variable not in inputs and not (
                isinstance(variable, (theano.Constant,
                                      theano.compile.SharedVariable))):
            raise ValueError(
                f"{CALLER}: {group}: its input depends on {variable}, for "
                "which batches have no value: they have those of the input "
                "layers. Refer to the `input_var` of an input layer instead, "
                "also for sizes. (In a loop of theano.scan, what a layer is "
                "applied to is out of reach.)")


class Stage:
    """Measure groups, from the frontier of the stage before.

    Its own `frontier` is what later stages need of this one and those before.
    `stand_ins` maps each stored statistic to the variable in its place.
    """

    def __init__(self, groups, start, frontier, stand_ins):
        self.groups, self.start, self.frontier = groups, start, frontier
        self.stand_ins, self._function = stand_ins, None

    def __str__(self):
        return ", ".join(map(str, self.groups))

    def run(self, values, number):
        """Return what it measures of a batch, and the frontier.

        The former is, for each application, its group, the axes to normalize
        over, and a list of its input and, if it has one, the mask of it.
        """
        if self._function is None:
            self._function = self._compile()
        with into_network(f"{CALLER}: batch {number}", f" up to {self}"):
            outputs = iter(self._function(*values))
        measured = [
            (group, application.layer.axes, list(itertools.islice(
                outputs, len(_measured([application])))))
            for group in self.groups for application in group.applications]
        return measured, list(outputs)

    def _compile(self):
        # The variables of the start may be computed from others.
        inputs = [variable.type() for variable in self.start]
        return theano.function(
            inputs, _inputs_of(self.groups) + self.frontier,
            givens={**self.stand_ins, **dict(zip(self.start, inputs))},
            on_unused_input="ignore")


def _inputs_of(groups):
    return _measured(application for group in groups
                     for application in group.applications)


def _measured(applications):
    """List the inputs of applications, each with its mask if it has one."""
    return [variable for application in applications
            for variable in (application.input, application.mask)
            if variable is not None]


def stages_of(network):
    """List the stages that measure all groups, one after the other."""
    stand_ins = {stored: stand_in for group in network.groups for
                 stored, stand_in in zip(group.stored, group.stand_ins)}
    below = {group: needed(_inputs_of([group])).intersection(stand_ins)
             for group in network.groups}
    start = list(network.inputs.values())
    nodes = io_toposort(start, _inputs_of(network.groups))
    # Other variables are statistics in another shape, or constants.
    by_data = _dependents(start, nodes, lambda node: node.inputs)
    stages = []
    remaining = network.groups
    while remaining:
        unknown = {variable for group in remaining
                   for variable in group.stored}
        ready = [group for group in remaining
                 if below[group].isdisjoint(unknown)]
        if not ready:
            raise ValueError(
                f"{CALLER}: {'; '.join(map(str, remaining))}: a layer feeds "
                "itself, or one that has the same `mean` or `std`, so exact "
                "statistics do not exist. Use method='one_pass'.")
        remaining = [group for group in remaining if group not in ready]
        frontier = _frontier(
            _inputs_of(remaining), by_data,
            _dependents(unknown, nodes, inputs_by_value))
        stages.append(Stage(ready, start, frontier, stand_ins))
        start = frontier
    return stages


def _dependents(sources, nodes, inputs_of):
    """Find what nodes compute from sources, and the sources."""
    found = set(sources)
    for node in nodes:
        if not found.isdisjoint(inputs_of(node)):
            found.update(node.outputs)
    return found


def _frontier(targets, by_data, unknown):
    """Find what can be computed now, and is needed for the targets.

    `by_data` depends on the network's inputs, `unknown` on later statistics.
    """
    frontier, seen, stack = [], set(), list(reversed(targets))
    while stack:
        variable = stack.pop()
        if variable in seen or variable not in by_data:
            continue
        seen.add(variable)
        if variable in unknown:
            stack.extend(reversed(variable.owner.inputs))
        else:
            frontier.append(variable)
    return frontier
