"""Hold what a step accumulates: sums of gradients, and moments.

All of it is in shared variables, so that functions can add to it.
"""

import collections
import itertools

import numpy as np
import theano
import theano.tensor as T

from ..averages.explicit import combined, scheduled_updates
from ..kernels import expressions
from ..parallel.collectives import Average, is_exchanged
from ..parallel.training import outline

__all__ = ["StepMoments", "Term", "applied", "emptied", "mean_gradients"]


class Term:
    """Sum the gradients of one loss over micro-batches, weighted by size.

    `size` is the sum of the sizes, and `sums` maps each parameter to the sum
    of its gradients; all are shared variables.
    """

    def __init__(self, name):
        self.name = name
        self.size = theano.shared(np.zeros((), "float64"), "size")
        self.sums = {}

    def extended(self, params):
        """Copy the term, with sums for these parameters, too."""
        term = Term(self.name)
        term.size, term.sums = self.size, dict(self.sums)
        for param in params:
            if param not in self.sums:
                term.sums[param] = theano.shared(
                    np.zeros_like(param.get_value(borrow=True)),
                    broadcastable=param.broadcastable)
        return term

    def state(self):
        return [self.size] + list(self.sums.values())

    def after(self, gradients, size):
        """Return the updates that add a micro-batch.

        `gradients` maps parameters to their gradients times the size.
        """
        updates = collections.OrderedDict([(self.size, self.size + size)])
        for param, gradient in gradients.items():
            total = self.sums[param]
            updates[total] = T.patternbroadcast(
                T.cast(total + gradient, total.dtype), total.broadcastable)
        return updates


def mean_gradients(terms, channel):
    """Average gradients over micro-batches, and add them up over terms.

    If there is a channel, its ranks are averaged over as well, all in one
    message. Gradients are zero without any micro-batch.
    """
    states = [[T.cast(term.size, next(iter(term.sums.values())).dtype),
               *term.sums.values()] for term in terms]
    if channel is not None:
        params = [param for term in terms for param in term.sums]
        states = _over_ranks(states, channel, outline(params))
    gradients = {}
    for term, (size, *sums) in zip(terms, states):
        size = T.switch(T.gt(size, 0), size, 1)
        for param, total in zip(term.sums, sums):
            mean = total / T.cast(size, total.dtype)
            gradients[param] = gradients[param] + mean \
                if param in gradients else mean
    return gradients


def _over_ranks(lists, channel, what):
    """Average over all ranks, in one message."""
    op = Average(channel, f"the accumulated gradients of {what}",
                 n_weighted=0, only_even=False)
    averages = iter(op(T.constant(1.), *itertools.chain(*lists),
                       return_list=True))
    return [list(itertools.islice(averages, len(each))) for each in lists]


def applied(moves):
    """Map the statistics of applications to one of their moves.

    `moves` maps running averages to lists of moves: the mean and the standard
    deviation of an application have a move each.
    """
    return {tuple(move.statistics): move
            for taken in moves.values() for move in taken}


class StepMoments:
    """Pool the statistics of each application over micro-batches.

    Those of virtual batches are listed, not pooled: each moves the running
    averages. `moves` maps a running average to its moves, one for each
    application.
    """

    def __init__(self):
        self.moves = {}
        self._stored = {}

    def extended(self, moves):
        """Copy the moments, with places for the applications of moves."""
        moments = StepMoments()
        moments._stored = dict(self._stored)
        moments.moves = {average: list(known)
                         for average, known in self.moves.items()}
        for average, taken in moves.items():
            known = moments.moves.setdefault(average, [])
            for key, move in applied({average: taken}).items():
                if key not in moments._stored:
                    moments._stored[key] = _zeros(average, move.count.ndim)
                if key not in applied({average: known}):
                    known.append(move)
        return moments

    def stored(self, statistics):
        """Return the variables of an application: count, mean, deviation."""
        return self._stored[tuple(statistics)]

    def state(self):
        return [variable for stored in self._stored.values()
                for variable in stored]

    def after(self, moves, is_there):
        """Return the updates that add a micro-batch, if it has examples."""
        updates = collections.OrderedDict()
        for statistics, move in applied(moves).items():
            stored, count = self.stored(statistics), move.count
            # Other ranks may have examples where this one has none.
            if not is_exchanged([count]):
                count = T.switch(is_there, count, 0)
            add = _listed if count.ndim else _pooled
            values = add(stored, (count,) + statistics)
            for variable, value in zip(stored, values):
                updates[variable] = T.patternbroadcast(
                    value, variable.broadcastable)
        return updates

    def updates(self, combine):
        """Return the updates of the running averages."""
        updates = {}
        for average, moves in self.moves.items():
            moves = [move.by(*self.stored(move.statistics)) for move in moves]
            updates[average] = combined(average, moves, combine)
        return {**updates, **scheduled_updates(self.moves)}


def _pooled(stored, more):
    """Pool the statistics of a batch with those of others."""
    return expressions.pool([stored, more])


def _listed(stored, more):
    """Append the statistics of virtual batches to those of others."""
    return [T.concatenate([one, T.cast(other, one.dtype)])
            for one, other in zip(stored, more)]


def emptied(variable, value):
    """Return what a variable of a step holds at first, from its value."""
    if getattr(variable.tag, "is_list", False):
        return value[:0]
    return (T if isinstance(value, theano.Variable) else np).zeros_like(value)


def _zeros(average, is_list):
    """Make places for counts, means and standard deviations.

    They are those of one batch; or a list, of no virtual batches yet.
    """
    shape = average.get_value(borrow=True).shape
    pattern = average.broadcastable
    if is_list:
        shape, pattern = (0, *shape[1:]), (False, *pattern[1:])
    places = [theano.shared(np.zeros(shape[:is_list], "int64"))] + [
        theano.shared(np.zeros(shape), broadcastable=pattern)
        for _ in range(2)]
    for place in places:
        place.tag.is_list = bool(is_list)
    return places
