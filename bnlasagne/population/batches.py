"""Read the user's batches, and keep what the next pass over them needs."""

import contextlib
import os
import tempfile

import numpy as np

from ..networks.labels import label

__all__ = ["Batches", "keeping"]


class Batches:
    """Iterate over the user's batches, and check each.

    Parameters
    ----------
    batches : iterable or callable
        See :func:`update_population_statistics`.
    inputs : dict
        Input layer → its variable.
    passes : int
        How often the batches will be iterated.
    """

    def __init__(self, batches, inputs, passes):
        self.inputs = inputs
        if isinstance(batches, np.ndarray) or not (
                callable(batches) or hasattr(batches, "__iter__")):
            raise TypeError(
                "update_population_statistics(): batches must be an iterable "
                "of batches, or a function that returns one, got "
                f"{type(batches).__name__}. For a single batch, pass [batch].")
        if passes > 1 and hasattr(batches, "__next__"):
            raise ValueError(
                "update_population_statistics(): batches can be iterated only "
                f"once, but the network takes {passes} passes. Pass a list, "
                "or a function that returns a new iterator, such as "
                "lambda: iterate(data); or let keep='memory' or a folder keep "
                "what the next pass needs.")
        self._batches = batches

    def read(self, progress, stage):
        """Yield the number and the arrays of each batch that is not empty."""
        batches = self._batches() if callable(self._batches) else self._batches
        for number, batch in _numbered(progress(batches), stage):
            arrays = self._arrays(batch, number)
            if not arrays or any(array.size for array in arrays):
                yield number, arrays

    def _arrays(self, batch, number):
        """Return a batch's arrays in the order of the input layers."""
        return [_converted(array, layer, variable, number)
                for array, (layer, variable)
                in zip(self._in_order(batch, number), self.inputs.items())]

    def _in_order(self, batch, number):
        wanted = len(self.inputs)
        if isinstance(batch, dict):
            if set(batch) != set(self.inputs):
                raise ValueError(
                    f"Batch {number}: the dict must have the network's "
                    f"{wanted} input layers as keys, got {list(batch)!r}.")
            return [batch[layer] for layer in self.inputs]
        # A list may be a single array, of a network with one input.
        is_several = isinstance(batch, tuple) or (
            isinstance(batch, list) and wanted > 1)
        arrays = list(batch) if is_several else [batch]
        if len(arrays) != wanted:
            raise ValueError(
                f"Batch {number}: the network has {wanted} input layers, got "
                f"{len(arrays)} arrays. A batch has inputs only, no targets.")
        return arrays


def _numbered(batches, stage):
    """Number batches; an error of theirs gets a note on where it happened."""
    number = -1
    try:
        for number, batch in enumerate(batches):
            yield number, batch
    except Exception as error:
        if hasattr(error, "add_note"):  # From Python 3.11 on.
            error.add_note(f"This happened after {number + 1} batches, while "
                           f"measuring {stage}.")
        raise


def _converted(array, layer, variable, number):
    """Check an array, and give it the type of the input layer."""
    array, shape = np.asarray(array), layer.shape
    if not np.can_cast(array.dtype, variable.dtype, "same_kind"):
        raise ValueError(f"Batch {number}: {label(layer)} takes arrays of "
                         f"{variable.dtype}, got {array.dtype}.")
    if array.ndim != len(shape) or any(
            known not in (None, size)
            for size, known in zip(array.shape[1:], shape[1:])):
        raise ValueError(f"Batch {number}: {label(layer)} takes arrays of "
                         f"shape {shape}, got {array.shape}.")
    return np.asarray(array, variable.dtype)


class Kept:
    """Keep the frontiers of all batches from one pass to the next.

    Parameters
    ----------
    folder : str or None
        Where to keep them; by default in memory.
    """

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
        """Keep a batch's frontier."""
        if self.folder is not None:
            values = [self._save(value) for value in values]
        self._batches.append((number, values))

    def _save(self, value):
        self._files += 1
        path = os.path.join(self.folder, f"{self._files}.npy")
        np.save(path, value)
        return path


@contextlib.contextmanager
def keeping(keep):
    """Yield where to keep frontiers, or None.

    Parameters
    ----------
    keep : None, 'memory' or str
        See :func:`update_population_statistics`.
    """
    if keep is None:
        yield None
    elif keep == "memory":
        yield Kept()
    elif os.path.isdir(keep):
        with tempfile.TemporaryDirectory(dir=keep, prefix="frontier") as path:
            yield Kept(path)
    else:
        raise ValueError(
            "update_population_statistics(): keep must be None, 'memory' or a "
            f"folder that exists, got {keep!r}.")
