"""Read the user's batches, and keep what the next pass over them needs."""

import contextlib
import os
import tempfile

import numpy as np
import theano

from ..networks.labels import label

__all__ = ["CALLER", "Batches", "into_network", "keeping", "repeatable"]

CALLER = "update_population_statistics()"


def repeatable(batches, caller, passes, what="batches", remedy=""):
    """Check the user's batches; return a function that iterates over them.

    An iterator will do for a single pass.
    """
    if isinstance(batches, (np.ndarray, theano.Variable)) or not (
            callable(batches) or hasattr(batches, "__iter__")):
        raise TypeError(
            f"{caller}: {what} must be an iterable, or a function that returns"
            f" one, got {type(batches).__name__}. For a single batch, pass "
            "[batch].")
    if passes > 1 and hasattr(batches, "__next__"):
        raise ValueError(
            f"{caller}: {what} can be iterated only once, but {passes} passes "
            "are needed. Pass a list, or a function that returns a new "
            f"iterator, such as lambda: iterate(data){remedy}.")
    return batches if callable(batches) else lambda: batches


@contextlib.contextmanager
def into_network(batch, place=""):
    """Name the batch if its arrays do not fit a function of the network."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{batch} does not go through the network{place}: "
                         f"{error}") from error


class Batches:
    """Iterate over the user's batches, in so many passes, and check each.

    `inputs` maps the input layers to their variables.
    """

    def __init__(self, batches, inputs, passes):
        self.inputs = inputs
        self._iterate = repeatable(
            batches, CALLER, passes, remedy="; or let keep='memory' or a "
            "folder keep what the next pass needs")

    def read(self, progress, stage):
        """Yield the number and the arrays of each batch that is not empty."""
        for number, batch in _numbered(progress(self._iterate()), stage):
            name = f"{CALLER}: batch {number}"
            arrays = [
                _converted(array, layer, variable, name)
                for array, (layer, variable)
                in zip(self._in_order(batch, name), self.inputs.items())]
            if not arrays or any(array.size for array in arrays):
                yield number, arrays

    def _in_order(self, batch, name):
        """Return a batch's arrays in the order of the input layers."""
        wanted = len(self.inputs)
        if isinstance(batch, dict):
            if set(batch) != set(self.inputs):
                raise ValueError(
                    f"{name} must be a dict with the network's {wanted} input "
                    f"layers as keys, got the keys {list(batch)!r}.")
            return [batch[layer] for layer in self.inputs]
        # A list may be a single array, of a network with one input.
        is_several = isinstance(batch, tuple) or (
            isinstance(batch, list) and wanted > 1)
        arrays = list(batch) if is_several else [batch]
        if len(arrays) != wanted:
            raise ValueError(
                f"{name} must have an array for each of the network's {wanted}"
                f" input layers, got {len(arrays)} arrays. Leave out targets.")
        return arrays


def _numbered(batches, stage):
    """Number batches, and add to an error of theirs where it happened."""
    number = -1
    try:
        for number, batch in enumerate(batches):
            yield number, batch
    except Exception as error:
        if hasattr(error, "add_note"):  # From Python 3.11 on.
            error.add_note(f"This happened after {number + 1} batches, while "
                           f"measuring {stage}.")
        raise


def _converted(array, layer, variable, name):
    """Check an array, and give it the type of the input layer."""
    array, shape = np.asarray(array), layer.shape
    if not np.can_cast(array.dtype, variable.dtype, "same_kind"):
        raise ValueError(f"{name}: {label(layer)} takes arrays of "
                         f"{variable.dtype}, got {array.dtype}.")
    if array.ndim != len(shape) or any(
            known not in (None, size)
            for size, known in zip(array.shape[1:], shape[1:])):
        raise ValueError(f"{name}: {label(layer)} takes arrays of "
                         f"shape {shape}, got {array.shape}.")
    return np.asarray(array, variable.dtype)


class Kept:
    """Keep the frontiers of all batches, in memory or in a folder."""

    def __init__(self, folder=None):
        self.folder = folder
        self._batches = []
        self._files = 0

    def replace(self, progress):
        """Yield each batch's number and frontier; `append` a new one each."""
        batches, self._batches = self._batches, []
        for place in progress(range(len(batches))):
            (number, values), batches[place] = batches[place], None
            if self.folder is None:
                yield number, values
            else:
                yield number, [np.load(path, mmap_mode="r") for path in values]
                for path in values:
                    # Windows keeps files that are mapped. They are removed
                    # with the folder.
                    with contextlib.suppress(PermissionError):
                        os.remove(path)

    def append(self, number, values):
        if self.folder is not None:
            paths = [os.path.join(self.folder, f"{self._files + place}.npy")
                     for place in range(len(values))]
            for path, value in zip(paths, values):
                np.save(path, value)
            self._files += len(values)
            values = paths
        self._batches.append((number, values))


@contextlib.contextmanager
def keeping(keep):
    """Yield where to keep frontiers, or None."""
    if keep is None:
        yield None
    elif isinstance(keep, str) and keep == "memory":
        yield Kept()
    elif isinstance(keep, (str, os.PathLike)) and os.path.isdir(keep):
        with tempfile.TemporaryDirectory(dir=keep, prefix="frontier") as path:
            yield Kept(path)
    else:
        raise ValueError(
            f"{CALLER}: keep must be None, 'memory' or a folder that exists, "
            f"got {keep!r}.")
