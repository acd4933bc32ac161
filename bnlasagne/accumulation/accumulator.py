"""Gradient accumulation: one step from several micro-batches.

One kind of function takes a micro-batch and adds its gradients and the moments
of its batch normalization to what is accumulated (`_Store`, all of it in
shared variables). Another kind takes all micro-batches of a step and adds what
the full batch would give (:mod:`bnlasagne.accumulation.exact`). The step's
function makes one update of the parameters and of the running averages of what
there is, and starts over.
"""

import collections
import contextlib

import lasagne
import numpy as np
import theano
import theano.tensor as T

from ..averages.marker import application_of
from ..averages.updates import (
    check_applied,
    combined,
    find_steps,
    scheduled_updates,
    wanted_averages,
)
from ..graphs.flags import own_expressions
from ..kernels import expressions
from ..networks.labels import label
from ..parallel.channel import channel_of
from ..parallel.collectives import Average, is_synchronized
from ..parallel.training import outline
from .exact import ExactFunction

__all__ = ["GradientAccumulator"]


class GradientAccumulator:
    """Make one training step of several micro-batches.

    For batches that do not fit in memory. Gradients of micro-batches are
    averaged, weighted by size, for any update rule of Lasagne; and running
    averages follow the statistics of all micro-batches taken together. Until
    a step is made, parameters and averages stay as they are, in all bits.

    Parameters
    ----------
    params : list of Theano shared variables
        The parameters to train, as by
        ``lasagne.layers.get_all_params(network, trainable=True)``.
    layers : Layer, list of Layer or None
        The batch normalization layers to update the running averages of; by
        default, all that the losses depend on.
    combine : 'pool', 'chain' or 'error'
        What to do where a layer was applied several times in a step; see
        :func:`get_batch_norm_updates`. By default, one update by the
        statistics of all that it was applied to.
    comm : mpi4py communicator or None
        Processes that share each batch, such as :func:`bnlasagne.world` has
        them: the step averages the gradients over them, too, weighted by size,
        in one message for each term. Each has micro-batches of its own; with
        synchronized batch normalization, equally many.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as stated.

    Notes
    -----
    With :meth:`function`, micro-batches are normalized by their own
    statistics. The running averages of the first batch normalization layers
    are those of the full batch; layers above see other inputs than in the full
    batch, and gradients are means of micro-batches' gradients. With
    :meth:`exact_function`, all is as with the full batch.

    A loss is taken to be a mean over the micro-batch, as is usual in Lasagne:
    the weighted mean is then that of the full batch. Each function's loss is a
    term of its own: it is averaged over its own micro-batches, and the terms
    are added up. Functions with the same `term` share one average.

    Functions must not be run in parallel. An error within one, such as
    of arrays that do not fit, may leave a part of a micro-batch behind; then
    :meth:`reset`.

    Examples
    --------
    >>> import lasagne, theano.tensor as T
    >>> from lasagne.layers import DenseLayer, InputLayer
    >>> from bnlasagne import GradientAccumulator, batch_norm
    >>> layer = batch_norm(DenseLayer(InputLayer((None, 8)), 5))
    >>> x, target = T.matrix(), T.matrix()
    >>> output = lasagne.layers.get_output(layer, x)
    >>> loss = lasagne.objectives.squared_error(output, target).mean()
    >>> params = lasagne.layers.get_all_params(layer, trainable=True)
    >>> accumulator = GradientAccumulator(params)
    >>> accumulate = accumulator.function([x, target], loss)
    >>> step = accumulator.step_function(lasagne.updates.adam)

    For each batch::

        for micro_batch in micro_batches:
            accumulate(*micro_batch)
        step()
    """

    def __init__(self, params, layers=None, combine="pool", comm=None):
        if isinstance(params, lasagne.layers.Layer):
            raise TypeError(
                "GradientAccumulator: params must be a list of shared "
                "variables, got the layer %s. Pass get_all_params(network, "
                "trainable=True)." % label(params))
        if isinstance(params, (theano.Variable, dict)):
            raise TypeError(
                "GradientAccumulator: params must be a list of shared "
                "variables, got %r." % (params,))
        self.params = list(params)
        for param in self.params:
            if not isinstance(param, theano.compile.SharedVariable):
                raise TypeError("GradientAccumulator: params must be a list "
                                "of shared variables, got %r in it."
                                % (param,))
        if not self.params:
            raise ValueError("GradientAccumulator: params is empty.")
        if combine not in ("chain", "pool", "error"):
            raise ValueError("GradientAccumulator: combine must be 'pool', "
                             "'chain' or 'error', got %r." % (combine,))
        self._wanted = wanted_averages(layers, "GradientAccumulator")
        self._combine = combine
        self._channel = channel_of(comm, "GradientAccumulator")
        self._terms = collections.OrderedDict()
        self._moments = _Moments()
        self._has_step = False

    @own_expressions()
    def function(self, inputs, loss, size=None, outputs=None, term=None,
                 **kwargs):
        """Compile a function that takes a micro-batch.

        Parameters
        ----------
        inputs : list of Theano variables
        loss : scalar Theano variable
            Mean over the micro-batch. Its network is built for training.
        size : Theano variable or None
            Weight of the micro-batch, the number of examples that `loss` is
            the mean of; a scalar. By default, the size of the first axis of
            the first of `inputs`. A micro-batch of size 0 counts for nothing.
        outputs : Theano variable, list of Theano variables or None
            What the function returns; by default `loss`.
        term : str or None
            Functions with the same term are of one loss. By default, each has
            its own.
        **kwargs
            Passed on to :func:`theano.function`, such as ``givens``.

        Returns
        -------
        callable
            A Theano function. It updates neither parameters nor averages.

        Raises
        ------
        ValueError
            If `loss` depends on none of the parameters or is no scalar, if
            statistics of batch normalization are out of reach in a loop, or
            if there is a step function already.
        TypeError
            If an argument is of another type than stated.
        """
        with self._all_or_nothing():
            part = self._part("function", inputs, loss, size, outputs, term,
                              kwargs)
            # Without any example, a mean is not a number.
            is_there = T.gt(part.size, 0)
            weighted = [T.switch(is_there, gradient, 0)
                        for gradient in part.gradients]
            updates = part.term.after(part.params, weighted, part.size)
            for steps in part.steps.values():
                for move in steps:
                    updates.update(self._moments.after(move, is_there))
            return part.compile(part.inputs, part.outputs, updates)

    @own_expressions()
    def exact_function(self, inputs, loss, size=None, outputs=None, term=None,
                       **kwargs):
        """Compile a function that takes all micro-batches of a step.

        It accumulates the gradients, and the moments, of the full batch that
        the micro-batches are cut from. For that it passes over them several
        times, layer by layer: 2 D + 1 times for a network with D batch
        normalization layers on top of each other. D of these passes go
        forward up to a layer, D forward and back to a layer, and one is a
        whole step; before them, the sizes are added up. Memory is needed as
        for the largest micro-batch, and for the statistics.

        Parameters
        ----------
        inputs, loss, size, outputs, term, **kwargs
            As for :meth:`function`; but `outputs` are added to what is
            returned.

        Returns
        -------
        ExactFunction
            To be called with the micro-batches.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`function`; and if `loss` has gradients through batch
            normalization in it, or a loop with batch normalization.

        Notes
        -----
        Random layers, such as dropout, draw the same in each pass.

        Examples
        --------
        With the accumulator of the class's example, for each batch::

            accumulate = accumulator.exact_function([x, target], loss)
            accumulate([(x_1, target_1), (x_2, target_2)])
            step()
        """
        with self._all_or_nothing():
            part = self._part("exact_function", inputs, loss, size, outputs,
                              term, kwargs)
            return ExactFunction(part, self._moments)

    @own_expressions()
    def step_function(self, rule, inputs=(), mode=None, **kwargs):
        """Compile the function that makes a step.

        Parameters
        ----------
        rule : callable
            Such as :func:`lasagne.updates.momentum`, called with the list of
            averaged gradients, the parameters, and `kwargs`. Returns the
            updates.
        inputs : list of Theano variables
            What `kwargs` depend on, or a layer's `alpha`.
        mode : str, Theano mode or None
            Passed on to :func:`theano.function`.
        **kwargs
            Passed on to `rule`, such as ``learning_rate``.

        Returns
        -------
        callable
            It takes the values of `inputs`, updates parameters and running
            averages, and starts accumulating anew. Without any micro-batch
            since the last step, it raises a ValueError and changes nothing.

        Raises
        ------
        ValueError
            If there are no functions that accumulate, or a parameter takes
            part in none of their losses.
        """
        if not callable(rule):
            raise TypeError(
                "GradientAccumulator.step_function(): rule must be a function "
                "that returns updates, such as lasagne.updates.adam, got %r."
                % (rule,))
        if not isinstance(inputs, (list, tuple)):
            raise TypeError(
                "GradientAccumulator.step_function(): inputs must be a list "
                "of Theano variables, got %r. Pass arguments of the rule by "
                "name, such as step_function(sgd, learning_rate=0.1)."
                % (inputs,))
        gradients = self._gradients()
        check_applied(self._wanted, self._moments.steps,
                      "GradientAccumulator.step_function()")
        updates = collections.OrderedDict(rule(gradients, self.params,
                                               **kwargs))
        updates.update(self._moments.updates(self._combine))
        for variable in self._state():
            updates[variable] = T.zeros_like(variable)
        step = theano.function(list(inputs), [], updates=updates, mode=mode)
        self._has_step = True

        def checked(*args, **kwargs):
            if not self._size_of_all():
                raise ValueError(
                    "GradientAccumulator: there is no micro-batch since the "
                    "last step. Call a function that accumulates first.")
            step(*args, **kwargs)
        return checked

    @property
    def size(self):
        """Number of examples that are accumulated; a float."""
        return float(sum(term.size.get_value()
                         for term in self._terms.values()))

    def _size_of_all(self):
        """Number of examples that are accumulated on all ranks."""
        if self._channel is None:
            return self.size
        self._channel.agree(("GradientAccumulator: a step of %d parameters"
                             % len(self.params),))
        return self._channel.sum(np.array([self.size]))[0]

    def reset(self):
        """Forget what is accumulated."""
        for variable in self._state():
            variable.set_value(np.zeros_like(variable.get_value()))

    @contextlib.contextmanager
    def _all_or_nothing(self):
        """Forget a function that cannot be compiled."""
        moments = self._moments.copy()
        terms = collections.OrderedDict(
            (name, term.copy()) for name, term in self._terms.items())
        try:
            yield
        except BaseException:
            self._terms, self._moments = terms, moments
            raise

    def _state(self):
        """All shared variables that accumulate."""
        return [variable for term in self._terms.values()
                for variable in term.state()] + self._moments.state()

    def _gradients(self):
        """The averaged gradients, summed over the terms."""
        if not self._terms:
            raise ValueError(
                "GradientAccumulator.step_function(): there is nothing to "
                "make a step of. Call function() or exact_function() first.")
        means = _means(self._terms.values(), self._channel)
        gradients = []
        for param in self.params:
            parts = [mean[param] for mean in means if param in mean]
            if not parts:
                raise ValueError(
                    "GradientAccumulator.step_function(): no loss depends on "
                    "the parameter %s. Leave it out of params." % param)
            gradients.append(sum(parts[1:], parts[0]))
        return gradients

    def _part(self, caller, inputs, loss, size, outputs, term, kwargs):
        """What a function accumulates, checked."""
        caller = "GradientAccumulator.%s()" % caller
        if self._has_step:
            raise ValueError(
                "%s: there is a step function already, which would not know "
                "of this one. Make all functions that accumulate before."
                % caller)
        _check_loss(loss, caller)
        if isinstance(inputs, theano.Variable):
            raise TypeError("%s: inputs must be a list of Theano variables, "
                            "got %r." % (caller, inputs))
        inputs = list(inputs)
        size = _size(size, inputs, caller)
        params, gradients = self._gradients_of(loss, size, caller)
        steps = find_steps([loss], self._wanted)
        _check_steps(steps, caller)
        # All is well: from here on, there are places for it.
        if term is None:
            term = len(self._terms)
        stored = self._terms.setdefault(term, _Term())
        stored.add(params)
        for average, taken in steps.items():
            for move in taken:
                self._moments.add(average, move)
        return _Part(inputs, loss, size, outputs, params, gradients, stored,
                     steps, kwargs)

    def _gradients_of(self, loss, size, caller):
        """Parameters that a loss depends on; its gradients, times the size."""
        roots = set(theano.gof.graph.inputs([loss]))
        params = [param for param in self.params if param in roots]
        if is_synchronized([loss]):
            if self._channel is None:
                raise ValueError(
                    "%s: the network's batch normalization is synchronized. "
                    "Pass the same comm to GradientAccumulator." % caller)
            # They meet those of other ranks, with the weights of these.
            loss = loss * T.cast(size, loss.dtype)
            size = None
        gradients = theano.grad(loss, params, disconnected_inputs="ignore",
                                return_disconnected="None") if params else []
        connected = [pair for pair in zip(params, gradients)
                     if pair[1] is not None]
        if not connected:
            raise ValueError("%s: loss depends on none of the parameters."
                             % caller)
        params, gradients = map(list, zip(*connected))
        if size is not None:
            gradients = [gradient * T.cast(size, gradient.dtype)
                         for gradient in gradients]
        return params, gradients


def _check_loss(loss, caller):
    if not isinstance(loss, theano.Variable):
        raise TypeError("%s: loss must be a Theano variable, got %r."
                        % (caller, loss))
    if loss.ndim != 0:
        raise ValueError(
            "%s: loss must be a scalar, the mean over the micro-batch, but it "
            "has %d dimensions." % (caller, loss.ndim))


def _check_steps(steps, caller):
    for average, taken in steps.items():
        if not all(hasattr(step, "statistics") for step in taken):
            raise ValueError(
                "%s: the running average %s is updated in a loop, where the "
                "statistics of the steps are out of reach. Build the output "
                "with batch_norm_update_averages=False." % (caller, average))


def _size(size, inputs, caller):
    """Weight of a micro-batch, a scalar of floatX."""
    if size is None:
        if not inputs or getattr(inputs[0], "ndim", 0) < 1:
            raise ValueError(
                "%s: size must be given, as the first of inputs is no array "
                "of examples; say, size=x.shape[0]." % caller)
        size = inputs[0].shape[0]
    size = T.as_tensor_variable(size)
    if size.ndim != 0:
        raise ValueError("%s: size must be a scalar, but it has %d dimensions."
                         % (caller, size.ndim))
    return size.astype("float64")


class _Part(object):
    """What a function takes and computes; see `GradientAccumulator.function`.

    Attributes
    ----------
    params : list of Theano shared variables
        Those that `loss` depends on.
    gradients : list of Theano variables
        Times the size.
    term : _Term
    steps : dict
        Running average → list of moves.
    kwargs : dict
        For :func:`theano.function`.
    """

    def __init__(self, inputs, loss, size, outputs, params, gradients, term,
                 steps, kwargs):
        self.inputs = inputs
        self.loss = loss
        self.size = size
        self.outputs = loss if outputs is None else outputs
        self.has_outputs = outputs is not None
        self.params = params
        self.gradients = gradients
        self.term = term
        self.steps = steps
        self.kwargs = kwargs

    def compile(self, inputs, outputs, updates=None, **more):
        """A Theano function that leaves running averages as they are."""
        kwargs = dict(self.kwargs, **more)
        given = kwargs.pop("updates", None)
        if updates is not None:
            # Those of the user come with ours, once for each micro-batch.
            updates.update(given or {})
        held = kwargs.pop("no_default_updates", False)
        if held is not True:
            held = list(held or []) + self.held_back()
        return theano.function(inputs, outputs, updates=updates,
                               no_default_updates=held, **kwargs)

    def extra(self):
        """The outputs as a list."""
        if isinstance(self.outputs, (list, tuple)):
            return list(self.outputs)
        return [self.outputs]

    def held_back(self):
        """Shared variables that move with the step, not the micro-batch.

        These are aliases, of running averages and of what their weights
        depend on.
        """
        given = collections.OrderedDict(self.kwargs.get("updates") or {})
        roots = theano.gof.graph.inputs(
            [self.loss] + self.extra() + [
                value for value in given.values()
                if isinstance(value, theano.Variable)])
        return [root for root in roots if application_of(root) is not None]


class _Term(object):
    """Sums of gradients over micro-batches, weighted by size.

    Attributes
    ----------
    size : Theano shared variable
        Sum of the sizes.
    sums : OrderedDict
        Parameter → the sum of its gradients, a Theano shared variable.
    """

    def __init__(self):
        self.size = theano.shared(np.zeros((), "float64"), "size")
        self.sums = collections.OrderedDict()

    def add(self, params):
        """Have sums for parameters."""
        for param in params:
            if param not in self.sums:
                value = param.get_value(borrow=True)
                self.sums[param] = theano.shared(
                    np.zeros(value.shape, value.dtype),
                    broadcastable=param.broadcastable)

    def copy(self):
        term = _Term()
        term.size, term.sums = self.size, self.sums.copy()
        return term

    def state(self):
        return [self.size] + list(self.sums.values())

    def after(self, params, gradients, size):
        """Updates that add a micro-batch; its gradients are weighted."""
        updates = collections.OrderedDict([(self.size, self.size + size)])
        for param, gradient in zip(params, gradients):
            total = self.sums[param]
            updates[total] = T.patternbroadcast(
                T.cast(total + gradient, total.dtype), total.broadcastable)
        return updates



def _means(terms, channel):
    """For each term, its averaged gradients, by parameter.

    Zero where there was no micro-batch.
    """
    terms = list(terms)
    values = [[T.cast(term.size, list(term.sums.values())[0].dtype)]
              + list(term.sums.values()) for term in terms]
    if channel is not None:
        params = [param for term in terms for param in term.sums]
        values = _averaged(values, channel, outline(params))
    means = []
    for term, (size, *sums) in zip(terms, values):
        size = T.switch(T.gt(size, 0), size, 1)
        means.append(collections.OrderedDict(
            (param, total / T.cast(size, total.dtype))
            for param, total in zip(term.sums, sums)))
    return means


def _averaged(lists, channel, what):
    """Averages over all ranks, in one message."""
    flat = [value for values in lists for value in values]
    op = Average(channel, "the accumulated gradients of " + what, 0, False)
    averages = iter(op(T.constant(1.), *flat, return_list=True))
    return [[next(averages) for _ in values] for values in lists]


class _Moments(object):
    """Statistics of batch normalization over micro-batches.

    Attributes
    ----------
    steps : OrderedDict
        Running average → list of moves, one for each application.
    """

    def __init__(self):
        self.steps = collections.OrderedDict()
        self._stored = collections.OrderedDict()

    def copy(self):
        moments = _Moments()
        moments.steps = collections.OrderedDict(
            (average, list(moves)) for average, moves in self.steps.items())
        moments._stored = self._stored.copy()
        return moments

    def add(self, average, move):
        """Have place for the application of a move."""
        key = tuple(move.statistics)
        if key not in self._stored:
            zeros = np.zeros(average.get_value(borrow=True).shape)
            self._stored[key] = [theano.shared(np.zeros((), "int64"))] + [
                theano.shared(zeros, broadcastable=average.broadcastable)
                for _ in move.statistics]
        moves = self.steps.setdefault(average, [])
        if not any(tuple(other.statistics) == key for other in moves):
            moves.append(move)

    def stored(self, move):
        """Count, mean and standard deviation so far; shared variables."""
        return self._stored[tuple(move.statistics)]

    def state(self):
        return [variable for stored in self._stored.values()
                for variable in stored]

    def after(self, move, is_there):
        """Updates that add the statistics of a micro-batch, if it has any."""
        stored = self.stored(move)
        count = move.count
        # Of all ranks, others may have examples where this one has none.
        if not is_synchronized([count]):
            count = T.switch(is_there, count, 0)
        values = expressions.pool([stored, [count] + move.statistics])
        return collections.OrderedDict(
            (variable, T.patternbroadcast(value, variable.broadcastable))
            for variable, value in zip(stored, values))

    def updates(self, combine):
        """Updates of the running averages by what is stored."""
        updates = collections.OrderedDict()
        for average, moves in self.steps.items():
            moves = [move.by(*self.stored(move)) for move in moves]
            updates[average] = combined(average, moves, combine)
        updates.update(scheduled_updates(self.steps))
        return updates
