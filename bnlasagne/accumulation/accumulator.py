"""Make one training step of several micro-batches.

A function that accumulates takes a micro-batch (`micro_batch.MicroBatch`). It
adds the gradients and the moments of its batch normalization to those of the
step (`sums`). An exact function takes all micro-batches of a step, and adds
what the full batch would give (`exact`). The step's function makes one update
of the parameters and one move of the running averages, and starts over.
"""

import collections

import numpy as np
import theano
import theano.tensor as T

from ..averages.explicit import check_applied, find_moves, wanted_averages
from ..parallel.channel import channel_of
from ..parallel.training import checked_params
from ..theano_tools.quiet_checks import quiet_checks
from .exact import ExactFunction
from .micro_batch import MicroBatch
from .sums import StepMoments, Term, emptied, mean_gradients

__all__ = ["GradientAccumulator"]


class GradientAccumulator:
    """Make one training step of several micro-batches.

    Split a batch that does not fit in memory into micro-batches. Their
    gradients are averaged, weighted by size, for any update rule of Lasagne;
    and running averages follow the statistics of all micro-batches taken
    together. Until a step is made, parameters and averages stay as they are,
    in all bits.

    Parameters
    ----------
    params : list of Theano shared variables
        The parameters to train, as by
        ``lasagne.layers.get_all_params(network, trainable=True)``.
    layers : Layer, list of Layer or None
        The batch normalization layers whose running averages move. By
        default, all that the losses depend on.
    combine : 'pool', 'chain' or 'error'
        What to do where a layer was applied several times in a step; see
        :func:`get_batch_norm_updates`. By default, one update by the
        statistics of all that it was applied to.
    comm : mpi4py communicator or None
        Ranks that share each batch, such as :func:`bnlasagne.world` has them.
        The step averages the gradients over the ranks, too, weighted by size,
        in one message. Each rank has micro-batches of its own; with
        synchronized batch normalization, all have equally many.

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

    Run one function at a time. If an error ends one early, as by arrays that
    do not fit, it may leave a part of a micro-batch behind: call
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
        self.params = checked_params(params, "GradientAccumulator")
        if combine not in ("chain", "pool", "error"):
            raise ValueError("GradientAccumulator: combine must be 'pool', "
                             f"'chain' or 'error', got {combine!r}.")
        self._wanted = wanted_averages(layers, "GradientAccumulator")
        self._combine = combine
        self._channel = channel_of(comm, "GradientAccumulator")
        self._terms = {}
        self._moments = StepMoments()
        self._has_step = False

    @quiet_checks()
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
        micro_batch = MicroBatch("GradientAccumulator.function()", inputs,
                                 loss, size, outputs, kwargs)
        gradients, moves = self._accumulated(micro_batch)
        term, moments = self._places(term, gradients, moves)
        # Without any example, a mean is not a number.
        is_there = T.gt(micro_batch.size, 0)
        updates = term.after(
            {param: T.switch(is_there, gradient, 0)
             for param, gradient in gradients.items()}, micro_batch.size)
        updates.update(moments.after(moves, is_there))
        function = micro_batch.compile(micro_batch.returned, updates)
        self._keep(term, moments)
        return function

    @quiet_checks()
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
        micro_batch = MicroBatch("GradientAccumulator.exact_function()",
                                 inputs, loss, size, outputs, kwargs)
        gradients, moves = self._accumulated(micro_batch)
        term, moments = self._places(term, gradients, moves)
        function = ExactFunction(micro_batch, list(gradients), moves, term,
                                 moments)
        self._keep(term, moments)
        return function

    @quiet_checks()
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
                "that returns updates, such as lasagne.updates.adam, got "
                f"{rule!r}.")
        if not isinstance(inputs, (list, tuple)):
            raise TypeError(
                "GradientAccumulator.step_function(): inputs must be a list "
                f"of Theano variables, got {inputs!r}. Pass arguments of the "
                "rule by name, such as step_function(sgd, "
                "learning_rate=0.1).")
        gradients = self._mean_gradients()
        check_applied(self._wanted, self._moments.moves,
                      "GradientAccumulator.step_function()")
        updates = collections.OrderedDict(rule(gradients, self.params,
                                               **kwargs))
        updates.update(self._moments.updates(self._combine))
        for variable in self._state():
            updates[variable] = emptied(variable, variable)
        step = theano.function(
            list(inputs), [], updates=updates, mode=mode,
            name="GradientAccumulator.step_function()")
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
        """Add up the sizes of all ranks."""
        if self._channel is None:
            return self.size
        self._channel.agree((f"GradientAccumulator: a step of "
                             f"{len(self.params)} parameters",))
        return self._channel.sum(np.array([self.size]))[0]

    def reset(self):
        """Forget what is accumulated."""
        for variable in self._state():
            variable.set_value(emptied(variable, variable.get_value()))

    def _state(self):
        return [variable for term in self._terms.values()
                for variable in term.state()] + self._moments.state()

    def _accumulated(self, micro_batch):
        """Find the weighted gradients and the moves that are accumulated."""
        caller = micro_batch.caller
        if self._has_step:
            raise ValueError(
                f"{caller}: there is a step function already, which would not "
                "know of this one. Make all functions that accumulate before.")
        gradients = micro_batch.gradients(self.params, self._channel)
        moves = find_moves([micro_batch.loss], self._wanted)
        for average, taken in moves.items():
            if not all(hasattr(move, "statistics") for move in taken):
                raise ValueError(
                    f"{caller}: the running average {average} is updated in a "
                    "loop, where the statistics are out of reach. Build the "
                    "output with batch_norm_update_averages=False.")
        return gradients, moves

    def _places(self, name, params, moves):
        """Return a term and moments with places for a function.

        They are copies, so that one that fails to compile leaves nothing.
        """
        name = len(self._terms) if name is None else name
        term = self._terms.get(name) or Term(name)
        return term.extended(params), self._moments.extended(moves)

    def _keep(self, term, moments):
        self._terms[term.name], self._moments = term, moments

    def _mean_gradients(self):
        """Return the step's gradients in the order of the parameters."""
        if not self._terms:
            raise ValueError(
                "GradientAccumulator.step_function(): there is nothing to "
                "make a step of. Call function() or exact_function() first.")
        gradients = mean_gradients(list(self._terms.values()), self._channel)
        for param in self.params:
            if param not in gradients:
                raise ValueError(
                    "GradientAccumulator.step_function(): no loss depends on "
                    f"the parameter {param}. Leave it out of params.")
        return [gradients[param] for param in self.params]
