"""Compute the loss of a micro-batch, and its gradients."""

import theano
import theano.tensor as T

from ..averages.aliases import application_of
from ..parallel.collectives import is_exchanged, is_synchronized
from ..parallel.training import checked_loss, checked_size

__all__ = ["MicroBatch"]


class MicroBatch:
    """Hold the graph that the user has of a micro-batch, checked.

    For the arguments, see :meth:`GradientAccumulator.function`. The attribute
    `size` is of double precision, and `outputs` are those without the loss.
    """

    def __init__(self, caller, inputs, loss, size, outputs, kwargs):
        self.caller = caller
        if isinstance(inputs, theano.Variable):
            raise TypeError(f"{caller}: inputs must be a list of Theano "
                            f"variables, got {inputs!r}.")
        self.inputs = list(inputs)
        self.loss = checked_loss(loss, caller, "micro-batch")
        self.size = checked_size(self._first_size() if size is None else size,
                                 caller)
        self.has_outputs = outputs is not None
        self.outputs = [] if outputs is None else (
            list(outputs) if isinstance(outputs, (list, tuple))
            else [outputs])
        self.returned = outputs if self.has_outputs else loss
        self._kwargs = kwargs

    def _first_size(self):
        if not self.inputs or getattr(self.inputs[0], "ndim", 0) < 1:
            raise ValueError(
                f"{self.caller}: size must be given, as the first of inputs is"
                " no array of examples; say, size=x.shape[0].")
        return self.inputs[0].shape[0]

    def gradients(self, params, channel):
        """Map parameters that the loss depends on to gradients times size."""
        roots = set(theano.gof.graph.inputs([self.loss]))
        params = [param for param in params if param in roots]
        loss, is_weighted = self.loss, is_synchronized([self.loss])
        if channel is None and is_exchanged([loss]):
            raise ValueError(
                f"{self.caller}: the network's batch normalization is "
                "synchronized. Pass the same comm to GradientAccumulator.")
        if is_weighted:
            # Gradients of all ranks meet, each with the weight of its rank.
            loss = loss * T.cast(self.size, loss.dtype)
        gradients = theano.grad(loss, params, disconnected_inputs="ignore",
                                return_disconnected="None") if params else []
        found = {param: gradient if is_weighted
                 else gradient * T.cast(self.size, gradient.dtype)
                 for param, gradient in zip(params, gradients)
                 if gradient is not None}
        if not found:
            raise ValueError(f"{self.caller}: loss depends on none of the "
                             "parameters.")
        return found

    def compile(self, outputs, updates=None, **more):
        """Compile a function that leaves running averages as they are.

        Updates that the user gave are made along with `updates`, in each call.
        """
        kwargs = dict(self._kwargs, **more)
        given = kwargs.pop("updates", None)
        if updates is not None:
            updates.update(given or {})
        held = kwargs.pop("no_default_updates", False)
        if held is not True:
            held = list(held or []) + self.held_back()
        kwargs.setdefault("name", self.caller)
        return theano.function(self.inputs, outputs, updates=updates,
                               no_default_updates=held, **kwargs)

    def held_back(self):
        """List the aliases, which move with the step, not the micro-batch."""
        given = dict(self._kwargs.get("updates") or {})
        roots = theano.gof.graph.inputs([self.loss] + self.outputs + [
            value for value in given.values()
            if isinstance(value, theano.Variable)])
        return [root for root in roots if application_of(root) is not None]
