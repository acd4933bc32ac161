"""Follow a batch normalization layer in NumPy: outputs, gradients, averages.

The layer tells its settings and parameters; its running averages are followed
here, and all arithmetic is that of :mod:`helpers.reference`.
"""

import numpy as np

from helpers import reference
from helpers.full_batch import DERIVATIVES, FUNCTIONS, value_of

__all__ = ["Application", "LayerModel", "number"]


def number(value):
    """A setting of a layer, which may be a shared variable."""
    return float(value.get_value() if hasattr(value, "get_value") else value)


class LayerModel:
    """The running averages of a layer, and what it does with them.

    They are vectors of one number for each channel.
    """

    def __init__(self, layer):
        self.layer = layer
        self.read()

    def read(self):
        """Take over what the layer stores."""
        self.mean, self.std = (
            param.get_value().astype("float64").ravel()
            for param in (self.layer.mean, self.layer.std))

    def apply(self, x, mask=None, use=False):
        return Application(self, x, mask, use)

    def move(self, statistics, alpha):
        """Follow batches: count, mean and standard deviation of each."""
        for count, mean, std in statistics:
            if count > 1 and np.isfinite(mean).all() and (
                    np.isfinite(std).all()):
                self.mean, self.std = (
                    new if alpha == 1 else (1 - alpha) * old + alpha * new
                    for old, new in ((self.mean, mean), (self.std, std)))


class Application:
    """Apply a layer to a batch, by running averages or by its statistics.

    Attributes
    ----------
    y : array
    statistics : list
        Count, mean and standard deviation of each virtual batch.
    """

    def __init__(self, model, x, mask=None, use=False):
        layer = self.layer = model.layer
        self.shape, self.use = x.shape, use
        self.averages = model.mean, model.std
        self.epsilon = number(layer.epsilon)
        self.gamma, self.beta = (np.ravel(value_of(param, default))
                                 for param, default in (
                                     (layer.gamma, 1), (layer.beta, 0)))
        self.x = self._flat(x).astype("float64")
        full = np.ones(x.shape, bool) if mask is None else (
            np.broadcast_to(mask, x.shape))
        self.parts = self._parts(self._flat(full).all(1))
        self.statistics = [self._statistics(part) for part in self.parts]
        self.before = np.zeros(self.x.shape)
        self.after = np.zeros(self.x.shape)
        self._derivative = DERIVATIVES[layer.nonlinearity]
        for part, (mean, std, scale, shift) in self._normalizing():
            self.before[part] = reference.normalize(
                self.x[part], mean, std, scale, shift, self.epsilon)
            self.after[part] = FUNCTIONS[layer.nonlinearity](
                self.before[part])
        self.y = self._back(self.after)

    def _order(self):
        axes = self.layer.axes
        return (*axes, *(axis for axis in range(len(self.shape))
                         if axis not in axes))

    def _flat(self, array):
        """An array as (values, channels)."""
        values = int(np.prod([self.shape[axis] for axis in self.layer.axes]))
        channels = int(np.prod([size for axis, size in enumerate(self.shape)
                                if axis not in self.layer.axes]))
        return array.transpose(self._order()).reshape(values, channels)

    def _back(self, flat):
        order = self._order()
        return flat.reshape([self.shape[axis] for axis in order]).transpose(
            np.argsort(order))

    def _parts(self, counts):
        """The places of the values that count, for each virtual batch."""
        size, examples = self.layer.virtual_batch_size, self.shape[0]
        if not size:
            return [np.flatnonzero(counts)]
        each = len(counts) // max(examples, 1)
        starts = list(range(0, examples, size)) or [0]
        if len(starts) > 1 and (examples - starts[-1]) * max(each, 1) < 2:
            starts.pop()
        return [start * each + np.flatnonzero(counts[start * each:end * each])
                for start, end in zip(starts, starts[1:] + [examples])]

    def _statistics(self, part):
        if not part.size:
            return 0, self.averages[0] * 0, self.averages[1] * 0
        return (part.size, *map(np.ravel, reference.statistics(
            self.x[part], (0,))))

    def _normalizing(self):
        """For each part, its statistics to use, scale and shift."""
        if self.use:
            return [(np.concatenate(self.parts),
                     (*self.averages, self.gamma, self.beta))]
        found = []
        for part, (_, mean, std) in zip(self.parts, self.statistics):
            r, d = self._correction(mean, std)
            found.append((part, (mean, std, self.gamma * r,
                                 self.beta + self.gamma * d)))
        return found

    def _correction(self, mean, std):
        """Batch renormalization; 1 and 0 without."""
        r_max, d_max = number(self.layer.r_max), number(self.layer.d_max)
        stored = self.averages[1] + self.epsilon
        return (np.clip((std + self.epsilon) / stored, 1 / r_max, r_max),
                np.clip((mean - self.averages[0]) / stored, -d_max, d_max))

    def gradients(self, dy):
        """Gradients of ``sum(dy * y)`` by the batch, gamma and beta."""
        dy, dx = self._flat(dy), np.zeros(self.x.shape)
        by_gamma, by_beta = np.zeros((2, self.x.shape[1]))
        for part, (mean, std, scale, _) in self._normalizing():
            own = dy[part] * self._derivative(self.after[part])
            if self.use:
                dx[part] = own * scale / (std + self.epsilon)
                by_gamma += (own * (self.x[part] - mean)).sum(0) / (
                    std + self.epsilon)
                by_beta += own.sum(0)
            elif part.size:
                dx[part], dscale, dshift = (
                    reference.gradient_of_normalize_batch(
                        self.x[part], own, (0,), scale, self.epsilon))
                r, d = self._correction(mean, std)
                by_gamma += np.ravel(dscale * r + dshift * d)
                by_beta += np.ravel(dshift)
        return self._back(dx), by_gamma, by_beta
