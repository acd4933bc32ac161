"""Compute the statistics of batch normalization over a whole data set.

For the first batch normalization layers of a network, these are the pooled
moments of all batches. The statistics of a layer above depend on how the
layers below it normalize. So all are measured layer by layer:

1. The network is built for testing, with stand-ins for what its layers store,
   and cut into stages (:mod:`bnlasagne.population.stages`).
2. For each stage, a pass over the data pools the moments of what its layers
   are applied to. Its stand-ins get the statistics, for the next stage.
3. At the end, all layers get their statistics, or none does.

After each pass, the ranks add up their exact sums. So the result does not
depend on which rank had which batch.
"""

import collections
import contextlib
import numbers

from ..kernels.moments import Moments
from ..networks.setting import all_or_nothing
from ..networks.walk import checked_layers
from ..parallel.channel import channel_of
from ..theano_tools.quiet_checks import quiet_checks
from .batches import CALLER, Batches, into_network, keeping
from .stages import MeasuredNetwork, stages_of

__all__ = ["PopulationStatistics", "update_population_statistics"]


class PopulationStatistics(collections.OrderedDict):
    """Map each batch normalization layer to the moments of its input.

    Layers come in the order in which they are applied.

    Attributes
    ----------
    replaced : dict
        For each layer, the pair of arrays (mean, std) that it had before.
    labels : dict
        For each layer, a name that tells it from the others.
    """

    def __init__(self):
        super().__init__()
        self.replaced = collections.OrderedDict()
        self.labels = {}


@quiet_checks()
def update_population_statistics(network, batches, method="layerwise", ddof=0,
                                 keep=None, progress=None, comm=None,
                                 **kwargs):
    """Set `mean` and `std` of all layers to the statistics of all data.

    Each :class:`BatchNormLayer` of a network gets the statistics of its input
    over a whole training set. Afterwards, by default, outputs with
    ``deterministic=True`` are what training would compute from the whole set
    as one batch, to rounding.

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
        'layerwise' is exact: it makes as many passes over the data as there
        are batch normalization layers on top of each other. 'one_pass' makes
        one pass. In it, layers normalize by the statistics of the batch, as in
        training. It is an approximation, and worse for smaller batches.
    ddof : int
        Divide sums of squares by the number of values less this. By default
        0: the biased variance is the one that training normalizes by.
    keep : None, 'memory' or str
        What to do with what one pass computes and the next needs. By default,
        it is computed again: pass number n computes the network up to its
        n-th batch normalization. 'memory' keeps it in memory, for all of the
        data. A folder keeps it in files there, which are removed in the end.
        Then all passes together compute the network once and iterate over
        `batches` once. The result is the same in all bits. (Random layers
        that a keyword argument switched on draw anew in each pass.)
    progress : callable or None
        Wraps each pass's iterable, such as :func:`tqdm.tqdm`.
    comm : mpi4py communicator or None
        Ranks that share the data, such as :func:`bnlasagne.world` has them.
        All call this with the same network, and each with its own part of the
        data as `batches`, which may be empty. All get the statistics of all
        data. These are the same in all bits, however many ranks there are and
        whichever rank has which batch. With 'one_pass', layers normalize by
        the statistics of each rank's batches, synchronized layers included.
    **kwargs
        Passed on to :func:`lasagne.layers.get_output`. By default, layers are
        ``deterministic``.

    Returns
    -------
    PopulationStatistics
        For each layer, the :class:`Moments` of its input. A layer that is
        applied several times, or shares its `mean` and `std` with others, has
        the moments of all these inputs together.

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
        If the ranks of `comm` do not call it alike.

    Notes
    -----
    If it ends early, by an error of `batches` or by Ctrl-C, say, all layers
    stay as they were. An error on one rank is raised on all ranks: on the
    others as an error of the same type, or of the nearest type of Python's
    own. Ctrl-C on one rank is a RuntimeError on the others.
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
    channel = channel_of(comm, CALLER)
    with contextlib.ExitStack() as stack:
        with _together(channel, CALLER):
            _check_arguments(method, ddof, progress)
            measured = MeasuredNetwork(checked_layers(network, CALLER),
                                       method == "one_pass", kwargs)
            stages = stages_of(measured)
            batches = Batches(batches, measured.inputs,
                              len(stages) if keep is None else 1)
            kept = stack.enter_context(keeping(keep))
        if channel is not None:
            channel.agree(_outline(stages, method, ddof))
        found = {}
        for number in range(1, len(stages) + 1):
            with _together(channel, f"{CALLER}, pass number {number}"):
                sums = _measure(stages[:number], batches, kept,
                                progress or iter)
            for group, total in sums.items():
                if channel is not None:
                    total = channel.sum_objects(total)
                found[group] = _statistics(group, total, ddof, number)
    return _store(measured, found, ddof, channel)


def _together(channel, *lines):
    """Have all ranks finish a block, or none; see `Channel.together`."""
    if channel is None:
        return contextlib.nullcontext()
    return channel.together(*lines)


def _check_arguments(method, ddof, progress):
    if not isinstance(method, str) or method not in ("layerwise", "one_pass"):
        raise ValueError(f"{CALLER}: method must be 'layerwise' or "
                         f"'one_pass', got {method!r}.")
    if not (isinstance(ddof, numbers.Integral) and ddof >= 0):
        raise ValueError(f"{CALLER}: ddof must be a whole number, 0 or more, "
                         f"got {ddof!r}.")
    if progress is not None and not callable(progress):
        raise TypeError(f"{CALLER}: progress must be None or a callable such "
                        f"as tqdm.tqdm, got {progress!r}.")


def _outline(stages, method, ddof):
    """Describe what ranks must have in common."""
    return (f"{CALLER} with method={method!r}, ddof={ddof!r}",) + tuple(
        f"{CALLER}, pass number {number}, {group} of shape {group.shape}"
        for number, stage in enumerate(stages, 1) for group in stage.groups)


def _measure(stages, batches, kept, progress):
    """Make a pass over the data; return the exact sums of each group."""
    last = stages[-1]
    sums = {group: Moments.empty(group.shape).exact_sums()
            for group in last.groups}
    for number, values in _starts(stages, batches, kept, progress):
        measured, frontier = last.run(values, number)
        for group, axes, values_and_mask in measured:
            moments = _moments(group, axes, values_and_mask, number)
            sums[group] = sums[group] + moments.exact_sums()
        if kept is not None:
            kept.append(number, frontier)
    return sums


def _starts(stages, batches, kept, progress):
    """Yield each batch's number, and what the last stage starts from."""
    *before, last = stages
    if kept is not None and before:
        yield from kept.replace(progress)
        return
    for number, values in batches.read(progress, last):
        for stage in before:
            _, values = stage.run(values, number)
        yield number, values


def _moments(group, axes, values_and_mask, number):
    """Compute the moments of a batch, and check them."""
    values, *mask = values_and_mask
    with into_network(f"{CALLER}: batch {number}", f" up to {group}"):
        moments = Moments.of(values, axes, *mask)
    if moments.mean.shape != group.shape:
        raise ValueError(
            f"{CALLER}: {group}: the statistics of batch {number} have shape "
            f"{moments.mean.shape}, but the layer stores {group.shape}. Pass "
            "batches of the size that the layer was built for.")
    if not moments.is_finite():
        raise ValueError(
            f"{CALLER}: {group}: batch {number} has values that are not "
            "finite, or too large. Remove or clip these values.")
    return moments


def _statistics(group, total, ddof, number):
    """Have later stages normalize by the moments of all data."""
    moments = Moments.from_exact_sums(total)
    if not moments.count:
        raise ValueError(
            f"{CALLER}: {group}: there is no data: batches are empty in pass "
            f"{number}, or masks count nothing in them. A function must "
            "return a new iterator each time.")
    if not moments.is_finite():
        raise ValueError(
            f"{CALLER}: {group}: the values differ by 1e154 or more, and their"
            " squares are too large. Remove or clip these values.")
    for variable, value in zip(group.stand_ins,
                               group.statistics(moments, ddof)):
        variable.set_value(value)
    return moments


def _store(measured, found, ddof, channel):
    """Set the statistics of all layers, or of none."""
    result = PopulationStatistics()
    for layer, group in measured.layers.items():
        result[layer] = found[group]
        result.labels[layer] = group.labels[layer]
        result.replaced[layer] = (layer.mean.get_value(),
                                  layer.std.get_value())
    with all_or_nothing() as changes, _together(channel, f"{CALLER}, the end"):
        for group in measured.groups:
            for variable, value in zip(
                    group.stored, group.statistics(found[group], ddof)):
                changes.set_value(variable, value)
    return result
