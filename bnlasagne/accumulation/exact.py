"""The gradients of a full batch, computed from micro-batches.

What couples the examples of a batch are the statistics of batch normalization.
Once these are known, for the full batch, and the derivatives of the loss with
respect to them, every micro-batch can be worked on by itself. Both are found
layer by layer, in passes over the micro-batches:

1. Forward, with the statistics :math:`s_j` = (mean, std) as inputs of the
   graph: for depth 1 … D, a pass pools the moments of the layers at that
   depth, with the statistics of those below fed in.
2. Backward: let :math:`c_i` be a micro-batch's part of statistic i (of its
   mean, and of its variance about that mean), and :math:`\\lambda_i` the total
   derivative of the loss by statistic i. For depth D … 1, a pass sums, over
   the micro-batches, the gradient of the loss +
   :math:`\\sum_{i>j} \\lambda_i c_i` with respect to :math:`s_j`: that is
   :math:`\\lambda_j`.
3. A last pass sums the gradient of the loss + :math:`\\sum_i \\lambda_i c_i`
   with respect to the parameters.

Three functions serve all passes; of the first two, each pass has only those
outputs computed that it wants.
"""

import numpy as np
import theano
import theano.tensor as T
from theano.gof.graph import io_toposort
from theano.gof.vm import VM_Linker
from theano.scan_module.scan_op import Scan

from ..averages.marker import TrackAverages, application_of
from ..graphs.needed import inputs_by_value, needed
from ..kernels.moments import Moments
from ..networks.labels import label

__all__ = ["ExactFunction"]


class ExactFunction:
    """Accumulates the gradients of a full batch.

    Made by :meth:`GradientAccumulator.exact_function`.
    """

    def __init__(self, part, stored):
        self._part = part
        self._stored = stored
        outputs = part.extra() if part.has_outputs else []
        graph = _Graph([part.loss, part.size] + outputs, part)
        self._applications = graph.applications
        self._random = _random_states(graph.outputs, part)
        loss, size, *outputs = graph.outputs
        self._total = theano.shared(np.ones((), "float64"), "total")
        cost = loss * T.cast(size / self._total, loss.dtype)
        cost += sum(application.contribution()
                    for application in self._by_batch())
        self._size = part.compile(part.inputs, size,
                                  on_unused_input="ignore")
        self._forward = _Partial(part, [
            variable for application in self._applications
            for variable in application.moments])
        self._backward = _Partial(part, theano.grad(
            cost, [variable for application in self._by_batch()
                   for variable in application.statistics],
            disconnected_inputs="ignore") if self._by_batch() else [])
        gradients = theano.grad(cost, part.params)
        updates = part.term.after(part.params, [
            gradient * T.cast(self._total, gradient.dtype)
            for gradient in gradients], size)
        self._last = part.compile(
            part.inputs, [loss] + outputs, updates)

    def __call__(self, micro_batches, *others):
        """Accumulate.

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
                "%s takes all micro-batches of a step in one list, got %d "
                "arguments. For a single one, write accumulate([(data, "
                "labels)]); for several, accumulate([(data_1, labels_1), "
                "(data_2, labels_2)])." % (_CALLER, 1 + len(others)))
        passes = _Passes(micro_batches, self._part, self._random)
        state = self._part.term.state() + self._random
        before = [variable.get_value() for variable in state]
        try:
            loss, outputs = self._accumulate(passes)
        except BaseException:
            for variable, value in zip(state, before):
                variable.set_value(value)
            raise
        self._store_moments()
        return (loss, outputs) if self._part.has_outputs else loss

    def _by_batch(self):
        return [application for application in self._applications
                if application.by_batch]

    def _accumulate(self, passes):
        self._sum_sizes(passes)
        depths = sorted({application.depth
                         for application in self._applications})
        for depth in depths:
            self._find_statistics(passes, depth)
        for application in self._by_batch():
            application.set_derivatives(0, 0)
        for depth in reversed(depths):
            self._find_derivatives(passes, depth)
        loss, outputs = 0, []
        for arrays, size in passes.run():
            value, *rest = passes.call(self._last, arrays)
            loss += float(value) * size / passes.total
            outputs.append(rest)
        return loss, outputs

    def _sum_sizes(self, passes):
        passes.find_sizes(self._size)
        self._total.set_value(np.asarray(passes.total, "float64"))

    def _find_statistics(self, passes, depth):
        """A pass that pools the moments of the layers at a depth."""
        chosen = [index for index, application
                  in enumerate(self._applications)
                  if application.depth == depth]
        wanted = [3 * index + i for index in chosen for i in range(3)]
        found = {}
        for arrays, _ in passes.run():
            values = passes.call(self._forward, arrays, wanted)
            for place, index in enumerate(chosen):
                count, mean, std = values[3 * place:3 * place + 3]
                moments = _moments(count, mean, std)
                found[index] = (found[index].merge(moments)
                                if index in found else moments)
        for index in chosen:
            self._applications[index].set_moments(found[index])

    def _find_derivatives(self, passes, depth):
        """A pass that sums derivatives by the statistics at a depth."""
        chosen = [(index, application) for index, application
                  in enumerate(self._by_batch()) if application.depth == depth]
        if not chosen:
            return
        wanted = [2 * index + i for index, _ in chosen for i in range(2)]
        sums = [0] * len(wanted)
        for arrays, _ in passes.run():
            values = passes.call(self._backward, arrays, wanted)
            sums = [total + np.asarray(value, "float64")
                    for total, value in zip(sums, values)]
        for place, (_, application) in enumerate(chosen):
            application.set_derivatives(*sums[2 * place:2 * place + 2])

    def _store_moments(self):
        """Leave the moments for the step's update of running averages."""
        for steps in self._part.steps.values():
            for move in steps:
                moments = next(application.found for application
                               in self._applications if application.move_key
                               == tuple(move.statistics))
                stored = self._stored.stored(move)
                count, mean, std = (variable.get_value()
                                    for variable in stored)
                stored_before = _moments(count, mean, std)
                pooled = stored_before.merge(moments)
                for variable, value in zip(
                        stored, (pooled.count, pooled.mean, pooled.std())):
                    variable.set_value(np.asarray(value, variable.dtype))


def _moments(count, mean, std):
    mean, std = (np.asarray(value, "float64") for value in (mean, std))
    return Moments(int(count), mean, np.square(std) * count)


class _Graph(object):
    """The user's graph, with statistics as inputs in it.

    Parameters
    ----------
    outputs : list of Theano variables
    part : _Part
        For messages, and the averages to measure for.

    Attributes
    ----------
    outputs : list of Theano variables
    applications : list of _Application
        In an order in which none depends on later ones.
    """

    def __init__(self, outputs, part):
        self.applications = []
        self._copies = {}
        self._depths = {}
        measured = {tuple(move.statistics) for steps in part.steps.values()
                    for move in steps}
        computed = needed(outputs)
        for node in io_toposort([], outputs):
            self._depths.update(dict.fromkeys(node.outputs, max(
                [self._depths.get(variable, 0)
                 for variable in inputs_by_value(node)] or [0])))
            is_computed = not computed.isdisjoint(node.outputs)
            if is_computed:
                _check(node)
            if is_computed and isinstance(node.op, TrackAverages):
                self._apply(node, measured)
            else:
                self._copy(node)
        self.outputs = self._of(outputs)

    def _of(self, variables):
        return [self._copies.get(variable, variable)
                for variable in variables]

    def _copy(self, node):
        inputs = self._of(node.inputs)
        if inputs != node.inputs:
            copy = node.clone_with_new_inputs(inputs, strict=False)
            self._copies.update(zip(node.outputs, copy.outputs))

    def _apply(self, node, measured):
        op, output = node.op, node.outputs[0]
        x, = self._of([op.input(node)])
        depth = self._depths.get(op.input(node), 0)
        key = tuple(op.moments(node)[1:])
        if not op.by_batch:
            self._copies[output], = self._of(node.inputs[:1])
            self._depths[output] = self._depths.get(node.inputs[0], 0)
        if op.by_batch or key in measured:
            application = _Application(
                x, self._of(op.moments(node)), key, op.by_batch, depth + 1,
                op.layer.param_shape())
            self.applications.append(application)
        if op.by_batch:
            normalized = op.layer.normalize_as_in_training(
                x, *application.statistics + self._of(op.params(node)))
            self._copies[output] = output.type.filter_variable(normalized)
            self._depths[output] = depth + 1


def _check(node):
    """Raise an error if a node cannot be worked on."""
    if isinstance(node.op, TrackAverages) and node.op.of_gradient:
        raise ValueError(
            "GradientAccumulator.exact_function(): the loss or the outputs "
            "have a gradient through batch normalization in them, which "
            "micro-batches do not give exactly. Use function().")
    if isinstance(node.op, TrackAverages) and (
            node.op.layer.channel is not None):
        raise ValueError(
            "GradientAccumulator.exact_function(): %s has a communicator, and "
            "what the ranks exchange is not divided into micro-batches. Build "
            "it without comm, or use function()." % label(node.op.layer))
    if isinstance(node.op, Scan) and any(
            variable.owner and isinstance(variable.owner.op, TrackAverages)
            for variable in needed(node.op.outputs)):
        raise ValueError(
            "GradientAccumulator.exact_function(): there is batch "
            "normalization in a loop, where its statistics are out of reach. "
            "Use function().")


class _Application(object):
    """An application of a layer, with its statistics as shared variables.

    Attributes
    ----------
    x : Theano variable
        What the layer is applied to.
    moments : list of Theano variable
        Count, mean and standard deviation of a micro-batch.
    move_key : tuple of Theano variable
        The statistics in the user's graph.
    by_batch : bool
        Whether it normalizes by the statistics of the batch.
    depth : int
        Number of layers, one on the other, that this one is the last of.
    shape : tuple of int
        Of the statistics.
    statistics : list of Theano shared variables
        Mean and standard deviation of the full batch.
    found : Moments
        Those of the full batch.
    """

    def __init__(self, x, moments, move_key, by_batch, depth, shape):
        self.x = x
        self.moments = moments
        self.move_key = move_key
        self.by_batch = by_batch
        self.depth = depth
        self.found = None
        self.statistics, self._derivatives = (
            [_shared_like(variable, shape) for variable in moments[1:]]
            for _ in range(2))

    def contribution(self):
        """A micro-batch's part of the statistics, times the derivatives.

        The derivatives are divided by the number of values.
        """
        by_mean, by_variance = self._derivatives
        mean = theano.gradient.disconnected_grad(self.statistics[0])
        return T.sum(by_mean * self.x + by_variance * T.sqr(self.x - mean))

    def set_moments(self, moments):
        self.found = moments
        _set(self.statistics, [moments.mean, moments.std()])

    def set_derivatives(self, by_mean, by_std):
        """Set the derivatives of the loss by the statistics."""
        std = self.found.std()
        by_variance = np.divide(by_std, 2 * std, out=np.zeros_like(std),
                                where=std > 0)
        _set(self._derivatives, [
            (by_mean + np.zeros_like(std)) / self.found.count,
            by_variance / self.found.count])


def _shared_like(variable, shape):
    return theano.shared(np.zeros(shape, variable.dtype),
                         broadcastable=variable.broadcastable)


def _set(variables, values):
    for variable, value in zip(variables, values):
        variable.set_value(np.asarray(value, variable.dtype))


def _random_states(outputs, part):
    """Shared variables that move on with each micro-batch."""
    held = part.held_back()
    return [root for root in theano.gof.graph.inputs(outputs)
            if getattr(root, "default_update", None) is not None
            and application_of(root) is None and root not in held]


class _Partial(object):
    """A function of which only some outputs are computed at a time."""

    def __init__(self, part, outputs):
        self._function = part.compile(part.inputs, outputs,
                                      on_unused_input="ignore")
        linker = self._function.maker.linker
        # Others of Theano's linkers compute all outputs in any case.
        self._can_choose = isinstance(linker, VM_Linker) and linker.use_cloop

    def __call__(self, *arrays, output_subset):
        if self._can_choose:
            return self._function(*arrays, output_subset=output_subset)
        values = self._function(*arrays)
        return [values[index] for index in output_subset]


class _Passes(object):
    """Passes over the user's micro-batches, all of them alike."""

    def __init__(self, micro_batches, part, random):
        self._n_inputs = len(part.inputs)
        if not (callable(micro_batches) or hasattr(
                micro_batches, "__iter__")) or isinstance(
                    micro_batches, np.ndarray):
            raise TypeError("%s: expected a list of micro-batches, or a "
                            "function that returns an iterator of them, got "
                            "%s." % (_CALLER, type(micro_batches).__name__))
        if hasattr(micro_batches, "__next__"):
            raise ValueError(
                "%s: the micro-batches can be iterated only once, but several "
                "passes are needed. Pass a list, or a function that returns a "
                "new iterator." % _CALLER)
        self._micro_batches = micro_batches
        self._random = [(state, state.get_value()) for state in random]
        self._number = None
        self._sizes = None
        self.total = None

    def find_sizes(self, function):
        self._sizes = [
            float(self.call(function, arrays))
            for arrays in self._arrays()]
        self.total = sum(self._sizes)
        if not self.total > 0:
            raise ValueError("%s: there are no examples in the micro-batches."
                             % _CALLER)

    def run(self):
        """For each micro-batch that is not empty, its arrays and its size."""
        for state, value in self._random:
            state.set_value(value)
        number = 0
        for arrays in self._arrays():
            if number < len(self._sizes) and self._sizes[number]:
                yield arrays, self._sizes[number]
            number += 1
        if number != len(self._sizes):
            raise ValueError(
                "%s: there were %d micro-batches in the first pass and %d in "
                "a later one." % (_CALLER, len(self._sizes), number))

    def _arrays(self):
        iterable = self._micro_batches
        for self._number, batch in enumerate(
                iterable() if callable(iterable) else iterable):
            if not isinstance(batch, (tuple, list)):
                batch = (batch,)
            if len(batch) != self._n_inputs:
                raise ValueError(
                    "%s: micro-batch %d has %d arrays, but the function takes "
                    "%d inputs." % (_CALLER, self._number, len(batch),
                                    self._n_inputs))
            yield batch

    def call(self, function, arrays, outputs=None):
        try:
            if outputs is None:
                return function(*arrays)
            return function(*arrays, output_subset=outputs)
        except (TypeError, ValueError) as error:
            raise ValueError("%s: micro-batch %d does not go through the "
                             "network: %s" % (_CALLER, self._number, error)
                             ) from error


_CALLER = "GradientAccumulator's exact function"
