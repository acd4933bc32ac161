"""Collect the updates of running averages from a graph.

They are those that functions apply by themselves
(:mod:`bnlasagne.averages.automatic`), for the user to pass on.
"""

import collections
import warnings

import lasagne
import theano
from theano.gof.graph import inputs, io_toposort

from ..kernels import expressions
from ..networks.labels import label
from ..networks.walk import all_layers
from ..theano_tools.needed import needed
from ..theano_tools.next_values import moving_variables, next_value
from .aliases import aliases_among, application_of, average_of
from .automatic import resolve
from .chains import Chains, chain
from .loops import Loop, LoopMoves, is_marked_loop
from .moves import ScheduledMove, are_equal

__all__ = ["check_applied", "combined", "find_moves",
           "get_batch_norm_updates", "scheduled_updates", "wanted_averages"]


def get_batch_norm_updates(outputs, layers=None, combine="chain"):
    """Collect the updates of running averages from a graph.

    They are those that functions apply by themselves, as expressions to pass
    to :func:`theano.function`, change, or leave out.

    Parameters
    ----------
    outputs : Theano variable or list of Theano variables
        Outputs of layers, losses, gradients, or anything computed from
        outputs that were built for training.
    layers : Layer, list of Layer or None
        Batch normalization layers to collect the updates of; by default all.
    combine : 'chain', 'pool' or 'error'
        What to do where a layer was applied several times, or shares its
        averages with others. 'chain': the updates follow each other in the
        order of application, as they do by default; copies of one application
        that :func:`theano.clone` made, in the order in which `outputs` depend
        on them. 'pool': one update, by the statistics of all that the layer
        was applied to, taken together. 'error': it is an error.

    Returns
    -------
    OrderedDict
        Shared variable → its new value, in order of application. What a
        schedule of a layer's `alpha` moves on comes last; see
        :class:`CumulativeAverage`.

    Raises
    ------
    ValueError
        If one of the `layers` is not applied in the graph, with averages to
        update; if statistics are out of reach in another Op's graph; if
        applications cannot be combined as `combine` says.
    TypeError
        If an argument is of another type than stated.

    Notes
    -----
    An update that is passed for an average takes the place of the automatic
    one, so none is applied twice, with ``no_default_updates=True`` or without.
    Other layers in the function still update their averages by themselves. To
    have none do that, build the outputs with
    ``batch_norm_update_averages='explicit'``. (With
    ``no_default_updates=True``, random layers would repeat themselves.)

    Examples
    --------
    >>> import theano
    >>> from lasagne.layers import InputLayer, get_output
    >>> from bnlasagne import BatchNormLayer, get_batch_norm_updates
    >>> layer = BatchNormLayer(InputLayer((None, 3)))
    >>> x = theano.tensor.matrix()
    >>> output = get_output(layer, x, batch_norm_update_averages='explicit')
    >>> updates = get_batch_norm_updates(output)
    >>> list(updates)
    [mean, std]
    >>> train = theano.function([x], output, updates=updates)
    """
    caller = "get_batch_norm_updates()"
    if combine not in ("chain", "pool", "error"):
        raise ValueError(f"{caller}: combine must be 'chain', 'pool' or "
                         f"'error', got {combine!r}.")
    wanted = wanted_averages(layers, caller)
    moves = find_moves(_checked_outputs(outputs, caller), wanted)
    check_applied(wanted, moves, caller)
    if wanted is None and not moves:
        warnings.warn(
            f"{caller}: there is nothing to update, as no training output of "
            "a batch normalization layer is part of `outputs`. Pass "
            "get_output(network), or a loss computed from it, built without "
            "deterministic=True.", stacklevel=2)
    updates = collections.OrderedDict(
        (average, combined(average, own, combine))
        for average, own in moves.items())
    for variable, value in scheduled_updates(moves).items():
        updates.setdefault(variable, value)
    return updates


def find_moves(outputs, wanted=None):
    """Map each running average that moves in a graph to its moves, in order.

    `wanted` are the :func:`wanted_averages`; None: all.
    """
    aliases = aliases_among(inputs(outputs))
    originals = {alias: average_of(alias) for alias in aliases}
    chains = _chains(outputs, aliases, originals, wanted)
    found = {}
    for group in chains.groups():
        average = average_of(group[-1])
        moves = [move if isinstance(move, LoopMoves) else move._replace(
                     alpha=theano.clone(move.alpha, replace=originals))
                 for move in chains.of(group)
                 if not isinstance(move, ScheduledMove)]
        if moves and (wanted is None or average in wanted):
            found[average] = moves
    return found


def _chains(outputs, aliases, originals, wanted):
    """Chain the moves in a graph; raise an error if one is out of reach."""
    def substitute(variable, replacements):
        # A loop starts from all of its averages, not only the one in question.
        return theano.clone(variable, replace={**originals, **replacements})

    nodes, computed = io_toposort([], outputs), needed(outputs)
    loops = [Loop(node, aliases, resolve, substitute) for node in nodes
             if is_marked_loop(node)
             and not computed.isdisjoint(node.outputs)]
    computed.update(output for loop in loops for output in loop.outputs)
    chains = Chains(nodes, loops, computed, aliases)
    chains.check_reach(alias for alias, average in originals.items()
                       if application_of(alias) is not None
                       and (wanted is None or average in wanted))
    return chains


def scheduled_updates(moves):
    """Return the updates of variables that move on with the averages.

    Updates of loops include what moves on in them.
    """
    return {variable: next_value(variable)
            for own in moves.values() for move in own
            if not isinstance(move, LoopMoves)
            for variable in moving_variables(move.alpha)}


def check_applied(wanted, moves, caller):
    """Raise an error if there are no moves of an average."""
    for average, layer in (wanted or {}).items():
        if average not in moves:
            raise ValueError(
                f"{caller}: none of the outputs was built in training mode "
                f"from {label(layer)}, so there is no update for its "
                f"{average}. Build one with get_output(network), without "
                "deterministic=True or batch_norm_update_averages=False; a "
                "frozen layer has no updates.")


def _checked_outputs(outputs, caller):
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [
        outputs]
    for output in outputs:
        if not isinstance(output, theano.Variable):
            raise TypeError(f"{caller}: outputs must be a Theano variable or "
                            f"a list of them, got {output!r}.")
    return outputs


def wanted_averages(layers, caller):
    """Map each average of some layers to its layer; None: all averages.

    The layers are batch normalization layers; or networks, or all layers of
    networks, for all batch normalization layers in them that are not frozen.
    """
    if layers is None:
        return None
    if isinstance(layers, lasagne.layers.Layer):
        layers = [layers]
    given, layers = layers, list(layers)
    if not all(isinstance(layer, lasagne.layers.Layer) for layer in layers):
        raise TypeError(f"{caller}: layers must be batch normalization "
                        f"layers, or a network with some, got {given!r}.")
    chosen = [layer for layer in layers if _has_averages(layer)]
    if len(chosen) < len(layers):
        chosen = [layer for layer in chosen or all_layers(layers)
                  if _has_averages(layer) and not layer.frozen]
        if not chosen:
            raise TypeError(f"{caller}: layers must be batch normalization "
                            "layers, or a network with some that are not "
                            f"frozen, got {layers!r}.")
    return {average: layer for layer in chosen
            for average in (layer.mean, layer.std)}


def _has_averages(layer):
    return hasattr(layer, "mean") and hasattr(layer, "std")


def combined(average, moves, combine):
    """Return the value of an average after its moves."""
    if len(moves) > 1 and combine == "error":
        raise ValueError(
            f"The running average {average} is to be updated by {len(moves)} "
            "applications of layers. Choose combine='chain' or 'pool'.")
    if len(moves) > 1 and combine == "pool":
        _check_poolable(average, moves)
        moves = [moves[0].by(*expressions.pool([
            [move.count, *move.statistics] for move in moves]))]
    return chain(average, moves)


def _check_poolable(average, moves):
    reason = None
    if any(isinstance(move, LoopMoves) for move in moves):
        reason = "a loop is among them, whose iterations have moved it"
    elif not all(are_equal(move.alpha, moves[0].alpha) for move in moves):
        reason = "they have different weights, alpha"
    if reason:
        raise ValueError(
            f"The running average {average} is to be updated by several "
            f"applications of layers, and these cannot be pooled: {reason}. "
            "Choose combine='chain'.")
