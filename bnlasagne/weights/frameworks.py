"""Translate names and axes of weights to those of PyTorch and Keras."""

import collections
import collections.abc

import numpy as np

from ..networks.linear import Dense, NetworkInNetwork, TransposedConvolution
from .features import check_images, order_with_channels_last

__all__ = [
    "Keras",
    "Torch",
]


class Framework(object):
    """What the frameworks have in common.

    Attributes
    ----------
    what, how : str
        Its word for a dict of weights, and a sentence on how to get one.
    separator : str
        Between the name of a layer and that of its weights.
    names : dict of str to str
        Its names for `W`, `b`, `gamma`, `beta`, `mean` and `var`.
    ignored : tuple of str
        Names of counts of batches, which have no equivalent here.
    no_statistics : str
        Sentences on normalization layers without running averages.
    array : type
        Of the arrays for there.
    """

    ignored = ()
    array = np.ndarray

    def split(self, key):
        """The name of a layer, in full, and that of its weights."""
        layer, _, name = key.rpartition(self.separator)
        return layer, name

    def flat(self, weights):
        """Weights by their full names."""
        return weights

    def within(self, weights):
        """Where a checkpoint that was given for weights has them.

        Returns
        -------
        None or list of str
            Expressions like ``"['model']"``, to append to the name of the
            checkpoint. None if it is no checkpoint, but weights.
        """

    def lacking(self, slot, role):
        """The argument there that leaves a parameter out."""
        raise NotImplementedError

    def restored(self, found, like):
        """Weights by their full names, in the form of others."""
        return collections.OrderedDict((key, found[key]) for key in like)

    def axes(self, linear):
        """The axes of Lasagne's `W` in this framework's order."""
        raise NotImplementedError

    def with_taps(self, W, count):
        """Weights as filters of a single position."""
        raise NotImplementedError

    def feature_order(self, layer):
        """For each feature of a layer's input there, its number here.

        None if they are the same.
        """

    def check(self, layers):
        """Refuse layers that compute something else there."""

    def to_theirs(self, linear, W):
        """Weights for this framework, from Lasagne's."""
        order = self._row_order(linear)
        W = W if order is None else W[order]
        W = np.flip(W, linear.taps) if linear.flips() else W
        W = W.transpose(self.axes(linear))
        if isinstance(linear, NetworkInNetwork):
            W = self.with_taps(W, len(linear.layer.input_shape) - 2)
        return W

    def to_ours(self, linear, weights, shape):
        """Lasagne's weights, of the given shape, from this framework's."""
        axes = self.axes(linear)
        # Filters of a single position may come with or without its axes.
        weights = weights.reshape([shape[axis] for axis in axes])
        W = weights.transpose(np.argsort(axes))
        W = np.flip(W, linear.taps) if linear.flips() else W
        order = self._row_order(linear)
        return W if order is None else W[np.argsort(order)]

    def _row_order(self, linear):
        return self.feature_order(linear.layer) if isinstance(linear, Dense) \
            else None


class TorchArray(np.ndarray):
    """An array that PyTorch's functions take for a tensor.

    ``module.load_state_dict()`` takes nothing but tensors and objects that
    make tensors of themselves in this way.
    """

    def __reduce_ex__(self, protocol):
        # A file with it is read where this package is not installed.
        return np.asarray(self).__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        # Called by PyTorch, so that it is there.
        import torch

        def tensor(value):
            return torch.from_numpy(np.asarray(value)) \
                if isinstance(value, cls) else value

        return function(*[tensor(value) for value in args],
                        **{name: tensor(value)
                           for name, value in (kwargs or {}).items()})


class Torch(Framework):
    """PyTorch: cross-correlations, of images with channels first."""

    what = "state_dict"
    how = "Pass module.state_dict()."
    separator = "."
    names = {"W": "weight", "b": "bias", "gamma": "weight", "beta": "bias",
             "mean": "running_mean", "var": "running_var"}
    ignored = ("num_batches_tracked",)
    array = TorchArray
    no_statistics = (
        "It may be a batch normalization module with track_running_stats="
        "False, which normalizes each batch by its own statistics, or another "
        "kind of normalization. Use a module with running statistics.")

    def within(self, weights):
        if any(isinstance(value, collections.abc.Mapping) or
               _has_state_dict(value) for value in weights.values()):
            return list(self._paths(weights))
        return None

    def _paths(self, checkpoint):
        for key, value in checkpoint.items():
            path = "[%r]" % (key,)
            if _has_state_dict(value):
                path += ".state_dict()"
                value = value.state_dict()
            if not isinstance(value, collections.abc.Mapping):
                continue
            # The state of an optimizer has other names.
            if any(isinstance(name, str) and
                   self.split(name)[1] in self.names.values()
                   for name in value):
                yield path
            else:
                for inner in self._paths(value):
                    yield path + inner

    def lacking(self, slot, role):
        return "bias=False" if role == "b" else "affine=False"

    def axes(self, linear):
        if isinstance(linear, TransposedConvolution):
            return (linear.inputs, linear.outputs) + linear.taps
        return (linear.outputs, linear.inputs) + linear.taps

    def with_taps(self, W, count):
        return W.reshape(W.shape + (1,) * count)


def _has_state_dict(value):
    return callable(getattr(value, "state_dict", None))


class Keras(Framework):
    """Keras: cross-correlations, of images with channels last or first.

    Parameters
    ----------
    data_format : None, 'channels_last' or 'channels_first'
        None: last, for what the network tells to be images.

    Raises
    ------
    ValueError
        If it is something else.
    """

    what = "dict of weights"
    how = "Pass {w.path: w.numpy() for w in model.weights}."
    separator = "/"
    names = {"W": "kernel", "b": "bias", "gamma": "gamma", "beta": "beta",
             "mean": "moving_mean", "var": "moving_variance"}
    no_statistics = ("It is another kind of normalization than "
                     "BatchNormalization.")

    def __init__(self, data_format):
        if data_format not in (None, "channels_last", "channels_first"):
            raise ValueError("data_format must be None, 'channels_last' or "
                             "'channels_first', got %r." % (data_format,))
        self._data_format = data_format

    def split(self, key):
        # Keras 2 numbers its variables, as in conv/kernel:0.
        return super(Keras, self).split(key.partition(":")[0])

    def flat(self, weights):
        return collections.OrderedDict(
            leaf for key, value in weights.items()
            for leaf in self._leaves(key, value))

    def _leaves(self, path, value):
        if isinstance(value, collections.abc.Mapping):
            for key, part in value.items():
                yield from self._leaves("%s/%s" % (path, key), part)
        elif isinstance(value, (list, tuple)):
            # Of get_weights(): by their numbers.
            for number, part in enumerate(value):
                yield "%s/%d" % (path, number), part
        else:
            yield path, value

    def restored(self, found, like):
        return collections.OrderedDict(
            (key, self._restored(found, key, value))
            for key, value in like.items())

    def _restored(self, found, path, like):
        if isinstance(like, collections.abc.Mapping):
            return collections.OrderedDict(
                (key, self._restored(found, "%s/%s" % (path, key), part))
                for key, part in like.items())
        if isinstance(like, (list, tuple)):
            return [found["%s/%d" % (path, number)]
                    for number in range(len(like))]
        return found[path]

    def lacking(self, slot, role):
        return {"b": "use_bias=False", "beta": "center=False",
                "gamma": "scale=False"}[role]

    def axes(self, linear):
        if isinstance(linear, TransposedConvolution):
            return linear.taps + (linear.outputs, linear.inputs)
        return linear.taps + (linear.inputs, linear.outputs)

    def with_taps(self, W, count):
        return W.reshape((1,) * count + W.shape)

    def feature_order(self, layer):
        if self._data_format == "channels_first":
            return None
        return order_with_channels_last(
            layer, assumed=self._data_format == "channels_last")

    def check(self, layers):
        if self._data_format != "channels_first":
            check_images(layers)
