"""A training step on a full batch in NumPy, in float64.

The forward pass, the backward pass and the running averages of a network of
Lasagne's layers and :class:`BatchNormLayer`. It takes the layers' parameters
and settings from the network, and all else from :mod:`helpers.reference`.
"""

from bnlasagne import BatchNormLayer

import lasagne
import numpy as np
from lasagne import nonlinearities

from helpers import reference

# For each nonlinearity, its derivative, from what comes out of it.
DERIVATIVES = {
    nonlinearities.linear: lambda y: np.ones_like(y),
    nonlinearities.rectify: lambda y: (y > 0).astype(float),
    nonlinearities.sigmoid: lambda y: y * (1 - y),
    nonlinearities.tanh: lambda y: 1 - y ** 2,
}
FUNCTIONS = {
    nonlinearities.linear: lambda z: z,
    nonlinearities.rectify: lambda z: np.maximum(z, 0),
    nonlinearities.sigmoid: lambda z: 1 / (1 + np.exp(-z)),
    nonlinearities.tanh: np.tanh,
}


class Pass:
    """Go through a network forward, and then back.

    Parameters
    ----------
    network : Layer
    x : array, or dict of input layers to arrays
        Masks are of the shape (examples,), on inputs of two axes.
    by_batch : bool
        Whether layers normalize by the statistics of the batch, unless they
        are frozen.
    parts_of : callable or None
        Returns the parts of the batch that a layer normalizes one by one: a
        list of the indices of examples. By default, it is one part.

    Attributes
    ----------
    output : array
    inputs : dict
        Layer → what it is applied to.
    """

    def __init__(self, network, x, by_batch=True, parts_of=None):
        self.layers = lasagne.layers.get_all_layers(network)
        values = x if isinstance(x, dict) else {self.layers[0]: x}
        values = {layer: np.asarray(value, "float64")
                  for layer, value in values.items()}
        self.by_batch = by_batch
        size = len(next(iter(values.values())))
        self._parts_of = parts_of or (lambda layer: [np.arange(size)])
        self.inputs, self._back, self._parts = {}, {}, {}
        for layer in self.layers:
            if layer not in values:
                below = [values[each] for each in below_of(layer)]
                self.inputs[layer] = below[0]
                values[layer], self._back[layer] = self._apply(layer, below)
        self.output = values[network]

    def _apply(self, layer, below):
        """What comes out of a layer, and its backward pass."""
        function = getattr(self, "_" + type(layer).__name__)
        is_masked = isinstance(layer, BatchNormLayer) and len(below) > 1
        counts = below[1][:, np.newaxis] != 0 if is_masked else 1
        z, back = function(layer, *below)
        nonlinearity = getattr(layer, "nonlinearity", nonlinearities.linear)
        y = FUNCTIONS[nonlinearity](z) * counts
        return y, lambda dy: back(dy * counts * DERIVATIVES[nonlinearity](y))

    def gradients(self, dy):
        """Parameter → gradient, from that of the output."""
        by_value = dict.fromkeys(self.layers, 0)
        by_value[self.layers[-1]] = dy
        gradients = {}
        for layer in filter(self._back.get, reversed(self.layers)):
            by_inputs, by_params = self._back[layer](by_value[layer])
            for below, gradient in zip(below_of(layer), by_inputs):
                by_value[below] = by_value[below] + gradient
            gradients.update(by_params)
        return gradients

    def averages(self):
        """Running average → its value after a step that moves it."""
        found = {}
        for layer in filter(has_averages, self.layers):
            parts = self._parts[layer]
            if not layer.virtual_batch_size:
                parts = [np.concatenate(parts)] if parts else []
            x = self.inputs[layer]
            moves = [reference.statistics(x[part], layer.axes)
                     for part in parts if x[part].size > x.shape[1]]
            for param, values in zip((layer.mean, layer.std), zip(*moves)):
                found[param] = reference.running_average(
                    param.get_value(), values, alpha_of(layer))
        return found

    # Each kind of layer

    def _DenseLayer(self, layer, x):
        W = layer.W.get_value()
        flat = x.reshape(len(x), -1)

        def back(dy):
            params = {layer.W: flat.T @ dy}
            if layer.b is not None:
                params[layer.b] = dy.sum(0)
            return [(dy @ W.T).reshape(x.shape)], params
        return flat @ W + value_of(layer.b, 0), back

    def _NINLayer(self, layer, x):
        W = layer.W.get_value()

        def back(dy):
            return [np.einsum("nc...,dc->nd...", dy, W)], {
                layer.W: np.einsum("ndhw,nchw->dc", x, dy)}
        assert layer.b is None
        return np.einsum("nd...,dc->nc...", x, W), back

    def _ElemwiseSumLayer(self, layer, *xs):
        return sum(xs), lambda dy: ([dy] * len(xs), {})

    def _GlobalPoolLayer(self, layer, x):
        axes = tuple(range(2, x.ndim))
        size = np.prod([x.shape[axis] for axis in axes])
        return x.mean(axes), lambda dy: (
            [dy.reshape(dy.shape + (1,) * len(axes)) / size
             * np.ones_like(x)], {})

    def _BatchNormLayer(self, layer, x, mask=None):
        parts = self._parts_of(layer)
        if mask is not None:
            parts = [part[mask[part] != 0] for part in parts]
        self._parts[layer] = parts = [part for part in parts if len(part)]
        normalize = self._by_batch if self.by_batch and not layer.frozen \
            else self._by_stored
        found = [normalize(layer, x[part]) for part in parts]
        z = np.zeros(x.shape)
        for part, (own, _) in zip(parts, found):
            z[part] = own

        def back(dy):
            dx, dgamma, dbeta = np.zeros(x.shape), 0, 0
            for part, (_, back_of_part) in zip(parts, found):
                dx[part], *more = back_of_part(dy[part])
                dgamma, dbeta = dgamma + more[0], dbeta + more[1]
            return [dx], {layer.gamma: dgamma, layer.beta: dbeta}
        return z, back

    def _by_batch(self, layer, x):
        gamma, beta, mean, std = params_of(layer)
        axes, epsilon = layer.axes, layer.epsilon
        # Of batch renormalization; 1 and 0 without.
        found = reference.statistics(x, axes)
        r = np.clip((found[1] + epsilon) / (std + epsilon),
                    1 / layer.r_max, layer.r_max)
        d = np.clip((found[0] - mean) / (std + epsilon),
                    -layer.d_max, layer.d_max)

        def back(dy):
            dx, dscale, dshift = reference.gradient_of_normalize_batch(
                x, dy, axes, gamma * r, epsilon)
            return dx, dscale * r + dshift * d, dshift
        return reference.normalize_batch(
            x, axes, gamma * r, beta + gamma * d, epsilon), back

    def _by_stored(self, layer, x):
        gamma, beta, mean, std = params_of(layer)
        axes, epsilon = layer.axes, layer.epsilon

        def back(dy):
            return (dy * gamma / (std + epsilon),
                    (dy * (x - mean) / (std + epsilon)).sum(
                        axes, keepdims=True), dy.sum(axes, keepdims=True))
        return reference.normalize(x, mean, std, gamma, beta, epsilon), back


def params_of(layer):
    return (value_of(layer.gamma, 1), value_of(layer.beta, 0),
            layer.mean.get_value(), layer.std.get_value())


def alpha_of(layer):
    """The weight of the next batch, a number."""
    return getattr(layer.alpha, "get_value", lambda: layer.alpha)()


def below_of(layer):
    """The layers that a layer takes its input from."""
    return getattr(layer, "input_layers", None) or [layer.input_layer]


def has_averages(layer):
    return isinstance(layer, BatchNormLayer) and not layer.frozen


def value_of(param, default):
    return default if param is None else np.asarray(
        param.get_value(), "float64")


def squared_error(output, target):
    """The mean squared error, and its gradient by the output."""
    deviation = output - target
    return np.mean(deviation ** 2), 2 * deviation / deviation.size


def gradients_of_error(network, x, y):
    """Parameter → gradient of the mean squared error."""
    full = Pass(network, x)
    return full.gradients(squared_error(full.output, y)[1])
