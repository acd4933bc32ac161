"""Statistics over a whole training set.

Running averages follow the last batches. What a network should be tested with
are the statistics of all its training data, as if that were one batch. For the
first batch normalization layers of a network these are pooled moments. Those
of a layer above depend on how the layers below normalize, so they are found
layer by layer:

1. The applications of layers are recorded while Lasagne builds the output,
   normalized by stored statistics that stand-ins replace (`_Graph`).
2. They are put in stages by their depth. A stage's function starts from what
   the stage before left, its frontier, and stops at what is to be measured and
   what later stages need (`_Stage`). So what is above is not computed; and
   kept or computed again, a frontier comes from the same functions.
3. Each stage makes a pass over the data and pools moments (`_measure`); then
   its stand-ins get the statistics, and the next stage's turn has come.
4. The layers themselves are changed when all is done.

With several ranks, each makes the passes over its part of the data, and what
they find is put together at the end of each pass. Moments are added up without
rounding, so that the result does not depend on who had which batch.
"""

import collections
import contextlib
import os
import tempfile

import lasagne
import numpy as np
import theano
from theano.gof.graph import ancestors, io_toposort

from ..graphs.flags import own_expressions
from ..graphs.needed import inputs_by_value, needed
from ..kernels.moments import Moments
from ..layers.layer import applications, own_statistics
from ..layers.subclasses import uses_stored_statistics
from ..networks.labels import label, numbered_labels
from ..networks.walk import all_layers, checked_layers
from ..parallel.channel import channel_of

__all__ = [
    "PopulationStatistics",
    "update_population_statistics",
]


class PopulationStatistics(collections.OrderedDict):
    """For each batch normalization layer, the moments of its input.

    Layers come in the order in which they are applied.

    Attributes
    ----------
    replaced : dict
        For each layer, the pair of arrays (mean, std) that it had before.
    """

    def __init__(self):
        super(PopulationStatistics, self).__init__()
        self.replaced = collections.OrderedDict()


@own_expressions()
def update_population_statistics(network, batches, method="layerwise", ddof=0,
                                 keep=None, progress=None, comm=None,
                                 **kwargs):
    """Set the statistics of batch normalization to those of all data.

    Sets `mean` and `std` of every :class:`BatchNormLayer` of a network to
    the statistics of its input over a whole training set. Afterwards, by
    default, outputs with ``deterministic=True`` are what training would
    compute from the whole set as one batch, to rounding.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers.
    batches : iterable or callable
        The data, in batches of any and unequal sizes: a list, something else
        that can be iterated several times, or a function without arguments
        that returns a new iterator. A batch is an array, for a network with
        one input layer; or a tuple of arrays, in the order of the input layers
        in :func:`lasagne.layers.get_all_layers`; or a dict of them with the
        input layers as keys. Only one batch is in memory at a time.
    method : 'layerwise' or 'one_pass'
        'layerwise' is exact: as many passes over the data are made as there
        are batch normalization layers on top of each other. 'one_pass' makes
        one, in which layers normalize by the statistics of the batch, so that
        those above are measured on what they were trained on; an
        approximation, and the smaller the batches, the worse.
    ddof : int
        Divide sums of squares by the number of values less this. By default
        0: the biased variance is the one that training normalizes by.
    keep : None, 'memory' or str
        What to do with what one pass computes and the next needs. By default,
        it is computed again: pass number n computes the network up to its
        n-th batch normalization. 'memory' keeps it, for all of the data; a
        folder keeps it in files there, removed in the end. Then all passes
        together compute the network once and iterate over `batches` once. The
        result is the same, in all bits, but for a network with random layers
        that a keyword argument switched on: these draw anew in each pass.
    progress : callable or None
        Wraps each pass's iterable, such as :func:`tqdm.tqdm`.
    comm : mpi4py communicator or None
        Processes that share the data, such as :func:`bnlasagne.world` has
        them. All call this with the same network, each with its own part of
        the data as `batches`, none at all included, and all get the statistics
        of all data. These are the same in all bits, however many processes
        there are and whichever has which batch. With 'one_pass', layers
        normalize by the statistics of each rank's batches, synchronized layers
        included.
    **kwargs
        Passed on to :func:`lasagne.layers.get_output`. By default, layers are
        ``deterministic``.

    Returns
    -------
    PopulationStatistics
        For each layer, the :class:`Moments` of its input. A layer that is
        applied several times, or shares its `mean` and `std` with others, has
        those of all these inputs together.

    Raises
    ------
    ValueError
        If there is no data, or fewer than two values per channel; if values
        are not finite; if the batches do not fit the network, or can be
        iterated only once and several passes are needed; if the network has
        no batch normalization, or has a layer whose statistics are
        expressions, or depend on themselves.
    TypeError
        If an argument is of another type than stated.
    RanksDisagree
        If the processes of `comm` do not call it alike.

    Notes
    -----
    Whatever ends it early, an error of `batches` or Ctrl-C included, leaves
    all layers as they were. An error on one rank is raised on all: where it
    did not happen, as one of the same type, or of the nearest that is Python's
    own; Ctrl-C as a RuntimeError.
    Frozen layers keep their statistics.

    References
    ----------
    .. [1] Ioffe, Sergey and Szegedy, Christian (2015): Batch Normalization:
           Accelerating Deep Network Training by Reducing Internal Covariate
           Shift, section 3.1 and algorithm 2. http://arxiv.org/abs/1502.03167.

    Examples
    --------
    >>> import numpy as np
    >>> from lasagne.layers import DenseLayer, InputLayer
    >>> from bnlasagne import batch_norm, update_population_statistics
    >>> layer = batch_norm(DenseLayer(InputLayer((None, 8)), 5))
    >>> data = np.random.RandomState(0).normal(size=(100, 8))
    >>> batches = [data[:60], data[60:]]
    >>> found = update_population_statistics(layer, batches)
    >>> found[layer].count
    100
    """
    channel = channel_of(comm, _CALLER)
    with contextlib.ExitStack() as stack:
        with _together(channel, _CALLER):
            one_pass = _is_one_pass(method)
            _check_arguments(network, progress)
            graph = _Graph(network, one_pass, kwargs)
            stages = _stages(graph)
            source = _Source(batches, graph.inputs,
                             len(stages) if keep is None else 1)
            kept = stack.enter_context(_kept(keep))
        if channel is not None:
            channel.agree(_outline(stages, method, ddof))
        found = {}
        for number in range(len(stages)):
            with _together(channel, "%s, pass number %d"
                           % (_CALLER, number + 1)):
                measured = _measure(stages[:number + 1], source, kept,
                                    progress or iter)
            if channel is not None:
                measured = {group: channel.sum_objects(measured[group])
                            for group in stages[number].groups}
            for group, total in measured.items():
                found[group] = _checked(total, group, stages, number)
                group.set_stand_ins(found[group], ddof)
    return _store(graph, found, ddof, channel)


_CALLER = "update_population_statistics()"


def _together(channel, *lines):
    """All ranks finish a block, or none; see `Channel.together`."""
    if channel is None:
        return contextlib.nullcontext()
    return channel.together(*lines)


def _outline(stages, method, ddof):
    """What ranks must have in common."""
    return ("%s with method=%r, ddof=%r" % (_CALLER, method, ddof),) + tuple(
        "%s, pass number %d, %s of shape %s"
        % (_CALLER, number, group, group.shape)
        for number, stage in enumerate(stages, 1) for group in stage.groups)


def _checked(total, group, stages, number):
    """The moments of all data."""
    moments = Moments.from_exact_sums(total)
    if not moments.count:
        raise ValueError(
            "%s: there is no data: batches are empty in pass %d. A function "
            "must return a new iterator each time."
            % (stages[number], number + 1))
    if not moments.is_finite():
        raise ValueError("%s: the values are too large." % group)
    return moments


def _is_one_pass(method):
    if method not in ("layerwise", "one_pass"):
        raise ValueError("update_population_statistics(): method must be "
                         "'layerwise' or 'one_pass', got %r." % (method,))
    return method == "one_pass"


def _check_arguments(network, progress):
    checked_layers(network, _CALLER)
    if progress is not None and not callable(progress):
        raise TypeError("update_population_statistics(): progress must be "
                        "None or a callable such as tqdm.tqdm, got %r."
                        % (progress,))


# The network as a graph

class _Group(object):
    """Applications of layers that share a mean and a standard deviation.

    Parameters
    ----------
    mean, std : Theano shared variables
        For which there are stand-ins while their values are not settled.
    """

    def __init__(self, mean, std):
        self.applications = []
        self.labels = []
        self.stored = mean, std
        self.stand_ins = tuple(
            theano.shared(variable.get_value(),
                          broadcastable=variable.broadcastable)
            for variable in self.stored)

    def __str__(self):
        return ", ".join(collections.OrderedDict.fromkeys(self.labels))

    @property
    def shape(self):
        return self.stored[0].get_value(borrow=True).shape

    def statistics(self, moments, ddof):
        """Mean and standard deviation, as they are stored."""
        needed = max(2, ddof + 1)
        if moments.count < needed:
            raise ValueError(
                "%s: the statistics of a training set, with ddof=%r, take %d "
                "values per channel or more, but its batches have %d in all."
                % (self, ddof, needed, moments.count))
        with np.errstate(over="ignore"):
            values = tuple(
                np.asarray(value, variable.dtype) for value, variable
                in zip((moments.mean, moments.std(ddof)), self.stored))
        if not all(np.isfinite(value).all() for value in values):
            raise ValueError("%s: the statistics are too large for %s."
                             % (self, self.stored[0].dtype))
        return values

    def set_stand_ins(self, moments, ddof):
        for variable, value in zip(self.stand_ins,
                                   self.statistics(moments, ddof)):
            variable.set_value(value)


class _Graph(object):
    """Where the batch normalization layers of a network are applied.

    Parameters
    ----------
    network, kwargs
        See :func:`update_population_statistics`.
    one_pass : bool
        Whether layers normalize by the statistics of the batch.

    Attributes
    ----------
    inputs : dict
        The input layers, each with its variable: its own, as other parts of
        the network may refer to that, or be sized by it.
    groups : list of _Group
    layers : list of BatchNormLayer
        In the order in which they are first applied.
    """

    def __init__(self, network, one_pass, kwargs):
        self.inputs = _input_variables(network)
        for name in ("inputs", "batch_norm_use_averages",
                     "batch_norm_update_averages"):
            if name in kwargs:
                raise TypeError("update_population_statistics() passes %s to "
                                "get_output() itself." % name)
        kwargs = dict({"deterministic": True}, **kwargs)
        with applications() as recorded, own_statistics():
            outputs = lasagne.layers.get_output(
                network, inputs=dict(self.inputs),
                batch_norm_use_averages=not one_pass,
                batch_norm_update_averages=False, **kwargs)
        recorded = [application for application in _computed(recorded, outputs)
                    if not application.layer.frozen
                    and uses_stored_statistics(application.layer)]
        if not recorded:
            raise ValueError(
                "update_population_statistics(): the network has no batch "
                "normalization layer that uses its stored statistics, or "
                "frozen ones only.")
        self.groups = _groups(recorded, numbered_labels(
            all_layers(checked_layers(network, _CALLER))))
        self.layers = list(dict.fromkeys(
            application.layer for application in recorded))
        for group in self.groups:
            for application in group.applications:
                self._check_roots(application, group)

    def _check_roots(self, application, group):
        inputs = set(self.inputs.values())
        for variable in ancestors([application.input], blockers=inputs):
            if variable.owner is None and variable not in inputs and not (
                    isinstance(variable, (theano.Constant,
                                          theano.compile.SharedVariable))):
                raise ValueError(
                    "%s: its input depends on %s, for which batches have no "
                    "value: they have those of the input layers. Refer to the "
                    "`input_var` of an input layer instead, also for sizes. "
                    "(In a loop of theano.scan, what a layer is applied to is "
                    "out of reach.)" % (group, variable))


def _input_variables(network):
    """The input layers of a network, and a variable for each."""
    variables = {}
    for layer in lasagne.layers.get_all_layers(network):
        if isinstance(layer, lasagne.layers.InputLayer):
            # Layers on one variable may be given different arrays.
            variables[layer] = layer.input_var.type(name=layer.name) \
                if layer.input_var in variables.values() else layer.input_var
    return variables


def _computed(recorded, outputs):
    """Leave out the applications that only their shape is needed of."""
    outputs = outputs if isinstance(outputs, list) else [outputs]
    computed, present = needed(outputs), set(ancestors(outputs))
    return [application for application in recorded
            if application.output in computed
            or application.output not in present]


def _groups(recorded, labels):
    """Applications by the statistics that they share."""
    groups = {}
    owner = {}
    for application in recorded:
        layer = application.layer
        text = labels.get(layer) or label(layer)
        for variable in (layer.mean, layer.std):
            if not isinstance(variable, theano.compile.SharedVariable):
                raise ValueError(
                    "%s: its statistics cannot be set, as %s is an expression "
                    "and no shared variable." % (text, variable))
        key = layer.mean, layer.std
        if key not in groups:
            groups[key] = _Group(*key)
        groups[key].applications.append(application)
        groups[key].labels.append(text)
        for variable in key:
            if owner.setdefault(variable, key) != key:
                raise ValueError(
                    "%s shares %s, but not both its mean and its std, with "
                    "%s." % (text, variable, groups[owner[variable]]))
    return list(groups.values())


# Stages

class _Stage(object):
    """A part of the network, from the frontier of the stage before.

    Parameters
    ----------
    groups : list of _Group
        What it measures.
    start : list of Theano variables
        The frontier of the stage before.
    frontier : list of Theano variables
        What later stages need of this one and those before.
    stand_ins : dict
        For each stored statistic, the variable in its place.
    """

    def __init__(self, groups, start, frontier, stand_ins):
        self.groups = groups
        self.start = start
        self.frontier = frontier
        self.stand_ins = stand_ins
        self._function = None

    def __str__(self):
        return ", ".join(map(str, self.groups))

    def run(self, values):
        """Go from the frontier before to the inputs of layers, and on.

        Parameters
        ----------
        values : list of array

        Returns
        -------
        measured : list of (_Group, tuple of int, array)
            For each application, its group, the axes to normalize over, and
            its input.
        frontier : list of array
        """
        if self._function is None:
            self._function = self._compile()
        outputs = self._function(*values)
        places = [(group, application.layer.axes) for group in self.groups
                  for application in group.applications]
        measured = [place + (output,)
                    for place, output in zip(places, outputs)]
        return measured, outputs[len(places):]

    def _compile(self):
        outputs = [application.input for group in self.groups
                   for application in group.applications] + self.frontier
        # The variables of the start may be computed from others.
        inputs = [variable.type() for variable in self.start]
        givens = dict(self.stand_ins)
        givens.update(zip(self.start, inputs))
        return theano.function(inputs, outputs, givens=givens,
                               on_unused_input="ignore")


def _stages(graph):
    """Stages that measure all groups, one after the other."""
    depths = _depths(graph.groups)
    levels = _levels(graph, depths)
    stand_ins = {stored: stand_in for group in graph.groups for
                 stored, stand_in in zip(group.stored, group.stand_ins)}
    stages, start = [], list(graph.inputs.values())
    for depth in range(1, max(depths.values()) + 1):
        later = [application.input for group in graph.groups
                 if depths[group] > depth
                 for application in group.applications]
        frontier = _frontier(later, levels, depth)
        groups = [group for group in graph.groups if depths[group] == depth]
        stages.append(_Stage(groups, start, frontier, stand_ins))
        start = frontier
    return stages


def _depths(groups):
    """How many groups, one on the other, each group is the last of."""
    by_statistic = {variable: group for group in groups
                    for variable in group.stored}
    below = {group: {by_statistic[variable] for variable in needed(
        [application.input for application in group.applications])
        if variable in by_statistic} for group in groups}
    depths = {}
    while len(depths) < len(groups):
        ready = [group for group in groups if group not in depths
                 and all(other in depths for other in below[group])]
        if not ready:
            stuck = [group for group in groups if group not in depths]
            raise ValueError(
                "%s: a statistic is shared along a path through the network, "
                "so that it depends on itself, and there is no exact one. Use "
                "method='one_pass'." % "; ".join(map(str, stuck)))
        for group in ready:
            depths[group] = 1 + max(
                [depths[other] for other in below[group]] or [0])
    return depths


def _levels(graph, depths):
    """Greatest depth of the statistics that each variable depends on.

    Returns
    -------
    dict
        Without the variables that depend on no input of the network.
    """
    depth = {variable: depths[group] for group in graph.groups
             for variable in group.stored}
    levels = dict.fromkeys(graph.inputs.values(), 0)
    targets = [application.input for group in graph.groups
               for application in group.applications]
    for node in io_toposort([], targets):
        level = max([levels.get(variable, depth.get(variable, 0))
                     for variable in inputs_by_value(node)] or [0])
        # Without an input of the network: a statistic in another shape.
        known = levels if any(variable in levels for variable
                              in node.inputs) else depth
        for output in node.outputs:
            known.setdefault(output, level)
    return levels


def _frontier(targets, levels, depth):
    """What can be computed before statistics of a depth, and is needed after.

    Parameters
    ----------
    targets : list of Theano variables
        What is to be computed after.
    levels : dict
        See `_levels`.
    depth : int

    Returns
    -------
    list of Theano variables
    """
    frontier, seen, stack = [], set(), list(reversed(targets))
    while stack:
        variable = stack.pop()
        if variable in seen or variable not in levels:
            continue
        seen.add(variable)
        if levels[variable] < depth:
            frontier.append(variable)
        else:
            stack.extend(reversed(variable.owner.inputs))
    return frontier


# Data

class _Source(object):
    """The user's batches, checked.

    Parameters
    ----------
    batches
        See :func:`update_population_statistics`.
    inputs : dict
        Input layers and their variables.
    passes : int
        How often the batches will be iterated.
    """

    def __init__(self, batches, inputs, passes):
        self.inputs = inputs
        if isinstance(batches, np.ndarray) or not (
                callable(batches) or hasattr(batches, "__iter__")):
            raise TypeError(
                "update_population_statistics(): batches must be an iterable "
                "of batches, or a function that returns one, got %s. For a "
                "single batch, pass [batch]." % type(batches).__name__)
        if passes > 1 and hasattr(batches, "__next__"):
            raise ValueError(
                "update_population_statistics(): batches can be iterated only "
                "once, but the network takes %d passes. Pass a list, or a "
                "function that returns a new iterator, such as "
                "lambda: iterate(data); or let keep='memory' or a folder keep "
                "what the next pass needs." % passes)
        self._batches = batches

    def __call__(self):
        return self._batches() if callable(self._batches) else self._batches

    def arrays(self, batch, number):
        """A batch's arrays in the order of the input layers."""
        if isinstance(batch, dict):
            unknown = [key for key in batch if key not in self.inputs]
            if unknown or len(batch) < len(self.inputs):
                raise ValueError(
                    "Batch %d: the dict must have the network's %d input "
                    "layers as keys, got %r."
                    % (number, len(self.inputs), list(batch)))
            arrays = [batch[layer] for layer in self.inputs]
        elif isinstance(batch, (tuple, list)) and (
                isinstance(batch, tuple) or len(self.inputs) > 1):
            arrays = list(batch)
        else:
            arrays = [batch]
        if len(arrays) != len(self.inputs):
            raise ValueError(
                "Batch %d: the network has %d input layers, got %d arrays. A "
                "batch has inputs only, no targets."
                % (number, len(self.inputs), len(arrays)))
        return [self._array(array, layer, variable, number)
                for array, (layer, variable)
                in zip(arrays, self.inputs.items())]

    def _array(self, array, layer, variable, number):
        array = np.asarray(array)
        if not np.can_cast(array.dtype, variable.dtype, "same_kind"):
            raise ValueError("Batch %d: %s takes arrays of %s, got %s."
                             % (number, label(layer), variable.dtype,
                                array.dtype))
        array = np.asarray(array, variable.dtype)
        shape = layer.shape
        if array.ndim != len(shape) or any(
                known is not None and size != known
                for size, known in zip(array.shape[1:], shape[1:])):
            raise ValueError(
                "Batch %d: %s takes arrays of shape %s, got %s."
                % (number, label(layer), shape, array.shape))
        return array


class _Kept(object):
    """Frontiers of all batches, between two passes.

    Parameters
    ----------
    folder : str or None
        Where to keep them; by default in memory.
    """

    def __init__(self, folder=None):
        self.folder = folder
        self._batches = []
        self._files = 0

    def replace(self, progress):
        """Give back all batches, numbered, each to be followed by `append`."""
        batches, self._batches = self._batches, []
        for place in progress(range(len(batches))):
            (number, values), batches[place] = batches[place], None
            if self.folder is None:
                yield number, values
            else:
                yield number, [np.load(path, mmap_mode="r") for path in values]
                for path in values:
                    # Windows keeps files that are mapped; the folder's end is
                    # theirs, too.
                    with contextlib.suppress(PermissionError):
                        os.remove(path)

    def append(self, number, values):
        if self.folder is not None:
            values = [self._save(value) for value in values]
        self._batches.append((number, values))

    def _save(self, value):
        self._files += 1
        path = os.path.join(self.folder, "%d.npy" % self._files)
        np.save(path, value)
        return path


@contextlib.contextmanager
def _kept(keep):
    """Where frontiers are kept, or None."""
    if keep is None:
        yield None
    elif keep == "memory":
        yield _Kept()
    else:
        if not os.path.isdir(keep):
            raise ValueError("update_population_statistics(): keep must be "
                             "None, 'memory' or a folder that exists, got %r."
                             % (keep,))
        with tempfile.TemporaryDirectory(dir=keep, prefix="frontier") as path:
            yield _Kept(path)


# Passes

def _measure(stages, source, kept, progress):
    """Make a pass over the data and pool the moments of the last stage.

    Returns
    -------
    dict
        Group → exact sums; see `Moments.exact_sums`.
    """
    last = stages[-1]
    found = {group: Moments.empty(group.shape).exact_sums()
             for group in last.groups}
    for number, values in _values(stages, source, kept, progress):
        measured, frontier = _run(last, values, number)
        for group, axes, value in measured:
            moments = Moments.of(value, axes)
            if moments.mean.shape != group.shape:
                raise ValueError(
                    "%s: the statistics of batch %d are of shape %s, but "
                    "those that the layer stores of shape %s."
                    % (group, number, moments.mean.shape, group.shape))
            if not moments.is_finite():
                raise ValueError(
                    "%s: batch %d has values that are not finite, or too "
                    "large." % (group, number))
            found[group] = found[group] + moments.exact_sums()
        if kept is not None:
            kept.append(number, frontier)
    return found


def _values(stages, source, kept, progress):
    """For each batch, its number and what the last stage starts from."""
    if kept is not None and len(stages) > 1:
        for item in kept.replace(progress):
            yield item
        return
    for number, batch in _numbered(progress(source()), stages[-1]):
        values = source.arrays(batch, number)
        if values and all(value.size == 0 for value in values):
            continue
        for stage in stages[:-1]:
            _, values = _run(stage, values, number)
        yield number, values


def _numbered(batches, stage):
    """Number batches; an error of theirs gets a note on where it happened."""
    number = -1
    try:
        for number, batch in enumerate(batches):
            yield number, batch
    except Exception as error:
        if hasattr(error, "add_note"):  # From Python 3.11 on.
            error.add_note("This happened after %d batches, while measuring "
                           "%s." % (number + 1, stage))
        raise


def _run(stage, values, number):
    try:
        return stage.run(values)
    except (TypeError, ValueError) as error:
        raise ValueError("Batch %d does not go through the network up to %s: "
                         "%s" % (number, stage, error)) from error


def _store(graph, found, ddof, channel):
    """Set the statistics of all layers, or of none."""
    values = [(variable, value) for group in graph.groups
              for variable, value in zip(
                  group.stored, group.statistics(found[group], ddof))]
    before = [(variable, variable.get_value()) for variable, _ in values]
    result = PopulationStatistics()
    by_statistics = {group.stored: found[group] for group in graph.groups}
    for layer in graph.layers:
        result[layer] = by_statistics[layer.mean, layer.std]
        result.replaced[layer] = (layer.mean.get_value(),
                                  layer.std.get_value())
    try:
        with _together(channel, _CALLER + ", the end"):
            for variable, value in values:
                variable.set_value(value)
    except BaseException:
        for variable, value in before:
            variable.set_value(value)
        raise
    return result
