"""Accumulate the gradients of a full batch, computed from micro-batches.

The statistics of batch normalization couple the examples of a batch. Once the
statistics of the full batch are known, and the derivatives of the loss with
respect to them, each micro-batch can be worked on by itself. Both are found
layer by layer, in passes over the micro-batches:

1. Forward, with the statistics :math:`s_j` = (mean, std) as inputs of the
   graph: for depth 1 … D, a pass pools the moments of the layers at that
   depth, with the statistics of the layers below fed in.
2. Backward: let :math:`c_i` be a micro-batch's contribution to the mean and to
   the variance i (its mean as given), and :math:`\\lambda_i` the total
   derivative of the loss by statistic i. For depth D … 1, a pass sums, over
   the micro-batches, the gradient of the loss +
   :math:`\\sum_{i>j} \\lambda_i c_i` with respect to :math:`s_j`: that is
   :math:`\\lambda_j`. For a standard deviation, :math:`\\lambda` of the
   variance is :math:`\\lambda / (2 std)`, and zero where std is zero.
3. A last pass sums the gradient of the loss + :math:`\\sum_i \\lambda_i c_i`
   with respect to the parameters.

Three functions serve all passes. Of the first two, each pass has only those
outputs computed that it wants.
"""

import collections
import itertools

import numpy as np
import theano
import theano.tensor as T

from ..averages.aliases import application_of
from ..networks.setting import all_or_nothing
from .exact_graph import ExactGraph, set_values, together
from .passes import CALLER, Passes, partial
from .sums import applied

__all__ = ["ExactFunction"]


class ExactFunction:
    """Accumulate the gradients of a full batch.

    Made by :meth:`GradientAccumulator.exact_function`.
    """

    def __init__(self, micro_batch, params, moves, term, moments):
        self._micro_batch, self._averaged = micro_batch, applied(moves)
        self._term, self._moments = term, moments
        graph = ExactGraph(
            [micro_batch.loss, micro_batch.size] + micro_batch.outputs,
            self._averaged)
        self._applications = graph.applications
        self._normalizing = [application for application in graph.applications
                          if application.normalizes]
        self._depths = sorted({application.depth
                               for application in graph.applications})
        held = micro_batch.held_back()
        # They move on with each micro-batch.
        self._random = [
            root for root in theano.gof.graph.inputs(graph.outputs)
            if getattr(root, "default_update", None) is not None
            and application_of(root) is None and root not in held]
        self._total = theano.shared(np.ones((), "float64"), "total")
        self._compile(params, *graph.outputs)

    def _compile(self, params, loss, size, *outputs):
        compile = self._micro_batch.compile
        cost = loss * T.cast(size / self._total, loss.dtype) + sum(
            application.contribution() for application in self._normalizing)
        self._size = compile(size, on_unused_input="ignore")
        self._forward = compile(
            [variable for application in self._applications
             for variable in application.moments], on_unused_input="ignore")
        statistics = [variable for application in self._normalizing
                      for variable in application.statistics]
        self._backward = compile(
            theano.grad(cost, statistics, disconnected_inputs="ignore")
            if statistics else [], on_unused_input="ignore")
        gradients = {
            param: gradient * T.cast(self._total, gradient.dtype)
            for param, gradient in zip(params, theano.grad(cost, params))}
        self._last = compile([loss, *outputs],
                             self._term.after(gradients, size))

    def __call__(self, micro_batches, *others):
        """Accumulate all micro-batches of a step.

        Parameters
        ----------
        micro_batches : iterable or callable
            A list of tuples of arrays, in the order of the function's inputs;
            or something else that can be iterated several times; or a
            function without arguments that returns a new iterator. For a
            single input, arrays will do.

        Returns
        -------
        loss : float
            Of the full batch.
        outputs : list of list of array
            Only if asked for: for each micro-batch, the outputs.

        Raises
        ------
        ValueError
            If there are no examples; if micro-batches do not fit; if they can
            be iterated only once, or differ from pass to pass.

        Notes
        -----
        Whatever ends it early leaves all as it was.
        """
        if others:
            raise TypeError(
                f"{CALLER} takes all micro-batches of a step in one list, got "
                f"{1 + len(others)} arguments. For a single one, write "
                "accumulate([(data, labels)]); for several, "
                "accumulate([(data_1, labels_1), (data_2, labels_2)]).")
        # One for the sizes, and one for a step.
        n_passes = 2 + len(self._depths) + len(
            {application.depth for application in self._normalizing})
        passes = Passes(micro_batches, n_passes,
                        len(self._micro_batch.inputs), self._random)
        with all_or_nothing() as changes:
            changes.keep_values(self._term.state() + self._random)
            loss, outputs = self._accumulate(passes)
            self._store_moments(changes)
        return (loss, outputs) if self._micro_batch.has_outputs else loss

    def _accumulate(self, passes):
        passes.find_sizes(self._size)
        self._total.set_value(np.asarray(passes.total, "float64"))
        for depth in self._depths:
            self._find_moments(passes, depth)
        for application in self._normalizing:
            application.set_derivatives(0, 0)
        for depth in reversed(self._depths):
            self._find_derivatives(passes, depth)
        total, outputs = 0, []
        for (loss, *rest), size in passes.run(self._last):
            total += float(loss) * size / passes.total
            outputs.append(rest)
        return total, outputs

    def _find_moments(self, passes, depth):
        """Make a pass that pools the moments of the layers at a depth."""
        found = {}
        for application, own in _at_depth(
                depth, passes, self._forward, self._applications, 3):
            found.setdefault(application, []).append(own)
        for application, parts in found.items():
            application.found = together(parts)
            if application.normalizes:
                set_values(application.statistics, application.found[1:])

    def _find_derivatives(self, passes, depth):
        """Make a pass that sums derivatives by the statistics at a depth."""
        sums = collections.defaultdict(int)
        for application, own in _at_depth(
                depth, passes, self._backward, self._normalizing, 2):
            sums[application] += np.asarray(own, "float64")
        for application, own in sums.items():
            application.set_derivatives(*own)

    def _store_moments(self, changes):
        """Leave the moments for the move of running averages."""
        found = {application.key: application.found
                 for application in self._applications}
        for key in self._averaged:
            stored = self._moments.stored(key)
            values = [variable.get_value() for variable in stored]
            changes.keep_values(stored)
            set_values(stored, together([values, found[key]]))


def _at_depth(depth, passes, function, applications, size):
    """Make a pass; yield each application at a depth with its outputs.

    The function has `size` outputs for each application.
    """
    chosen = {application: range(size * place, size * (place + 1))
              for place, application in enumerate(applications)
              if application.depth == depth}
    wanted = list(itertools.chain(*chosen.values()))
    for values, _ in passes.run(partial(function, wanted)) if chosen else ():
        values = iter(values)
        for application in chosen:
            yield application, list(itertools.islice(values, size))
