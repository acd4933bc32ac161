"""Masks, and the values that they count, as a batch without padding."""

import numpy as np

# Of shapes of inputs: the axes, and the shape of a mask.
SHAPES_AXES_MASKS = [
    ((6, 3), None, (6,)),
    ((6, 3), None, (6, 1)),
    ((5, 7, 3), (0, 1), (5, 7)),
    ((5, 7, 3), (0, 1), (5, 7, 1)),
    ((5, 7, 3), (0, 1), (1, 7, 1)),
    ((5, 3, 7), None, (5, 7)),
    ((5, 3, 7), None, (5,)),
    ((4, 3, 5, 2), None, (4,)),
    ((4, 3, 5, 2), None, (4, 5)),
    ((4, 3, 5, 2), None, (4, 5, 2)),
    ((4, 3, 5, 2), None, (1, 1, 5, 2)),
    ((4, 3, 5, 2), (0, 3), (4, 2)),
    ((4, 6), (0, 1), (4, 6)),
]


def axes_of(shape, axes):
    return (0, *range(2, len(shape))) if axes is None else axes


def in_full(mask, shape, axes):
    """A mask as truth values of the shape of the input."""
    axes = axes_of(shape, axes)
    if mask.ndim < len(shape):
        along = axes[:mask.ndim]
        mask = mask.reshape([shape[axis] if axis in along else 1
                             for axis in range(len(shape))])
    return np.broadcast_to(mask != 0, shape)


class Unpadded:
    """Take the values that a mask counts out of arrays, and put them back.

    Without padding, a batch is of shape (values, channels).
    """

    def __init__(self, mask, shape, axes):
        axes = axes_of(shape, axes)
        others = [axis for axis in range(len(shape)) if axis not in axes]
        self.shape, self.order = shape, (*axes, *others)
        self.n_channels = int(np.prod([shape[axis] for axis in others]))
        self.rows = self._flat(in_full(mask, shape, axes)).all(1)

    def _flat(self, array):
        return array.transpose(self.order).reshape(-1, self.n_channels)

    def take(self, array):
        return self._flat(array)[self.rows]

    def put_back(self, values):
        flat = np.zeros((len(self.rows), self.n_channels))
        flat[self.rows] = values
        moved = flat.reshape([self.shape[axis] for axis in self.order])
        return moved.transpose(np.argsort(self.order))


def draw_mask(rng, shape, share=0.6):
    """A mask that counts about a share of positions; the first always."""
    mask = (rng.uniform(size=shape) < share).astype("float32")
    mask[(0,) * mask.ndim] = mask[(-1,) * mask.ndim] = 1
    return mask


def lengths_mask(lengths, time):
    """The mask of sequences of these lengths."""
    return (np.arange(time) < np.reshape(lengths, (-1, 1))).astype("float32")
