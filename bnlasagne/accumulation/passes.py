"""Pass over the micro-batches of a step several times."""

import functools

import numpy as np
from theano.gof.vm import VM_Linker

__all__ = ["CALLER", "Passes", "partial"]

CALLER = "GradientAccumulator's exact function"


def partial(function, wanted):
    """Compute only some outputs of a function.

    Parameters
    ----------
    function : Theano function
    wanted : list of int
        Places of the outputs.

    Returns
    -------
    callable
    """
    linker = function.maker.linker
    if isinstance(linker, VM_Linker) and linker.use_cloop:
        return functools.partial(function, output_subset=wanted)
    # Others of Theano's linkers compute all outputs in any case.
    def choose(*arrays):
        values = function(*arrays)
        return [values[index] for index in wanted]
    return choose


class Passes:
    """Iterate over the user's micro-batches, in the same way each time.

    Parameters
    ----------
    micro_batches : iterable or callable
        See :meth:`ExactFunction.__call__`.
    n_inputs : int
        Number of arrays of a micro-batch.
    random : list of Theano shared variables
        States of random layers. Each pass starts from their values now.

    Attributes
    ----------
    total : float
        Sum of the sizes, after :meth:`find_sizes`.
    """

    def __init__(self, micro_batches, n_inputs, random):
        if isinstance(micro_batches, np.ndarray) or not (
                callable(micro_batches) or hasattr(micro_batches, "__iter__")):
            raise TypeError(f"{CALLER}: expected a list of micro-batches, or "
                            "a function that returns an iterator of them, got "
                            f"{type(micro_batches).__name__}.")
        if hasattr(micro_batches, "__next__"):
            raise ValueError(
                f"{CALLER}: the micro-batches can be iterated only once, but "
                "several passes are needed. Pass a list, or a function that "
                "returns a new iterator.")
        self._micro_batches = micro_batches
        self._n_inputs = n_inputs
        self._random = [(state, state.get_value()) for state in random]
        self._sizes = None
        self.total = None

    def find_sizes(self, function):
        """Make the first pass, with a function that computes the sizes."""
        self._sizes = [
            float(_call(function, arrays, number))
            for number, arrays in self._arrays()]
        self.total = sum(self._sizes)
        if not self.total > 0:
            raise ValueError(f"{CALLER}: there are no examples in the "
                             "micro-batches.")

    def run(self, function):
        """Call a function with each micro-batch that is not empty.

        Yields
        ------
        values, size
            What the function returned, and the size of the micro-batch.
        """
        for state, value in self._random:
            state.set_value(value)
        sizes = iter(self._sizes)
        number = -1
        for number, arrays in self._arrays():
            size = next(sizes, 0)
            if size:
                yield _call(function, arrays, number), size
        if number + 1 != len(self._sizes):
            raise ValueError(
                f"{CALLER}: there were {len(self._sizes)} micro-batches in "
                f"the first pass and {number + 1} in a later one.")

    def _arrays(self):
        """Number the micro-batches, and yield the arrays of each."""
        batches = self._micro_batches
        for number, batch in enumerate(
                batches() if callable(batches) else batches):
            if not isinstance(batch, (tuple, list)):
                batch = (batch,)
            if len(batch) != self._n_inputs:
                raise ValueError(
                    f"{CALLER}: micro-batch {number} has {len(batch)} arrays, "
                    f"but the function takes {self._n_inputs} inputs.")
            yield number, batch


def _call(function, arrays, number):
    try:
        return function(*arrays)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{CALLER}: micro-batch {number} does not go through "
                         f"the network: {error}") from error
