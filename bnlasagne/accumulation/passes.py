"""Pass over the micro-batches of a step several times."""

import functools

from theano.gof.vm import VM_Linker

from ..population.batches import into_network, repeatable

__all__ = ["CALLER", "Passes", "partial"]

CALLER = "GradientAccumulator's exact function"


def partial(function, wanted):
    """Compute only those outputs of a function that have these places."""
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

    Each pass starts from the values that the states of `random` layers have
    now. `total` is the sum of the sizes, after :meth:`find_sizes`.
    """

    def __init__(self, micro_batches, n_passes, n_inputs, random):
        self._iterate = repeatable(micro_batches, CALLER, n_passes,
                                   "micro_batches")
        self._n_inputs = n_inputs
        self._random = [(state, state.get_value()) for state in random]
        self._sizes = None
        self.total = None

    def find_sizes(self, function):
        """Make the first pass, with a function that computes the sizes."""
        self._sizes = [float(_call(function, arrays, number))
                       for number, arrays in self._arrays()]
        self.total = sum(self._sizes)
        if not self.total > 0:
            raise ValueError(f"{CALLER}: there are no examples in "
                             "micro_batches.")

    def run(self, function):
        """Yield a function's values and the size for each micro-batch.

        Those that are empty are left out.
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
                f"the first pass and {number + 1} in a later one. Yield the "
                "same micro-batches in each pass.")

    def _arrays(self):
        """Number the micro-batches, and yield the arrays of each."""
        for number, batch in enumerate(self._iterate()):
            if not isinstance(batch, (tuple, list)):
                batch = (batch,)
            if len(batch) != self._n_inputs:
                raise ValueError(
                    f"{CALLER}: micro-batch {number} has {len(batch)} arrays, "
                    f"but the function takes {self._n_inputs} inputs.")
            yield number, batch


def _call(function, arrays, number):
    with into_network(f"{CALLER}: micro-batch {number}"):
        return function(*arrays)
