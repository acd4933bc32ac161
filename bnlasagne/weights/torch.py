"""Take weights to and from PyTorch.

PyTorch need not be installed: weights come and go as NumPy arrays.
"""

import collections.abc
import reprlib

import numpy as np

from .table import Framework

__all__ = ["get_torch_state_dict", "set_torch_state_dict"]


def get_torch_state_dict(network, like=None, epsilon=1e-5):
    """Get the weights of a network as PyTorch's modules store them.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers of a network of dense, network-in-network,
        convolutional (transposed and dilated, too) and batch normalization
        layers, and of others without parameters.
    like : dict or None
        The ``state_dict()`` of the module that the weights are for. It gives
        names and types, and tells where a bias of zeros or a scale of ones is
        wanted. By default, modules have the names of the layers, and arrays
        the types of the parameters.
    epsilon : number
        The ``eps`` of the batch normalization modules, which is not among
        their weights.

    Returns
    -------
    OrderedDict of str to array
        Pass it to ``module.load_state_dict()``, as it is or with tensors made
        by ``torch.from_numpy()``. The module then computes in evaluation what
        the network does with ``deterministic=True``, to rounding. For a module
        of type bfloat16, which NumPy lacks, the arrays are of type float32,
        and PyTorch converts them.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers.
    ValueError
        If a layer with parameters is of another type or, without `like`, has
        no name; if `like` does not fit: the message then lists both sides; or
        if the type of an array in `like` cannot hold the values.

    See also
    --------
    set_torch_state_dict : The other way, with how layers find their modules.
    """
    return _Torch("get_torch_state_dict()", epsilon).get(network, like)


def set_torch_state_dict(network, state_dict, epsilon=1e-5):
    """Load the weights of a PyTorch module.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers of a network that computes the same, of
        layers as in :func:`get_torch_state_dict`.
    state_dict : dict of str to array
        The module's ``state_dict()``, with its tensors of any type and on any
        device, or with arrays.
    epsilon : number
        The ``eps`` of the module's batch normalization.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers, or `state_dict` no dict of
        arrays of numbers. If it is a whole checkpoint, the message says which
        of its keys to pass.
    ValueError
        If a layer with parameters is of another type; if names and shapes do
        not fit: the message lists both sides; if names or order are ambiguous;
        or if weights are NaN, or too large for the type of the parameter.
        Nothing is changed then.

    Notes
    -----
    A layer gets the weights of the module that has its name. The name of the
    module may have more before it: ``layer1.conv`` gets the weights of
    ``model.backbone.layer1.conv``, and ``conv`` those of ``model.conv``. A
    module goes to the layer with which its name has the longest end in common.
    If two modules remain for one layer, this is an error. If the names of all
    layers start alike, the modules may also lack that start.

    If any layers find their weights by name, all layers with a name must. The
    layers without names get the weights of the other modules, in order. In the
    ``state_dict``, that is the order in which the modules were made; in the
    network, that of :func:`lasagne.layers.get_all_layers`, from input to
    output. If these differ, name the layers. An order of the alphabet with
    ``conv10`` before ``conv2``, which files have, is refused. Batch
    normalization layers and the other layers are matched separately.

    Build layers without what a module lacks: ``b=None``, or ``beta=None,
    gamma=None`` where it is not affine. Single integers, such as
    ``num_batches_tracked`` and ``n_averaged``, are counts, and are left out.

    Filters are turned round for layers that compute true convolutions, as
    Lasagne's do by default: PyTorch computes cross-correlations. The bias of a
    convolution before batch normalization, which :func:`bnlasagne.batch_norm`
    leaves out, goes into the running mean.

    The deterministic output is what the module computes in evaluation, to
    rounding. Training does not continue identically: see
    :meth:`BatchNormLayer.set_statistics`. Momentum is not among the weights,
    either: PyTorch's is this package's `alpha`.
    """
    _Torch("set_torch_state_dict()", epsilon).set(network, state_dict)


class _TorchArray(np.ndarray):
    """Hold an array that PyTorch's functions take for a tensor.

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


class _Torch(Framework):
    """Describe PyTorch: cross-correlations, images with channels first."""

    what = "state_dict"
    how = "module.state_dict()"
    separator = "."
    names = {"W": "weight", "b": "bias", "gamma": "weight", "beta": "bias",
             "mean": "running_mean", "var": "running_var"}
    without = {"b": "bias=False", "gamma": "affine=False",
               "beta": "affine=False"}
    ignored = ("num_batches_tracked",)
    array = _TorchArray
    no_statistics = (
        "It may be a batch normalization module with track_running_stats="
        "False, which normalizes each batch by its own statistics, or another "
        "kind of normalization. Use a module with running statistics.")

    def axes(self, channels, taps):
        return channels + taps

    def flat(self, weights):
        if any(isinstance(value, collections.abc.Mapping) or
               _has_state_dict(value) for value in weights.values()):
            parts = " or ".join(self._paths("checkpoint", weights)) \
                or "one of its parts that has the weights"
            raise TypeError(
                f"{self.caller}: expected a state_dict, got a checkpoint with "
                f"the keys {reprlib.repr(list(weights))}. Pass {parts}.")
        return weights

    def _paths(self, path, checkpoint):
        """Yield expressions for the parts of a checkpoint with weights."""
        for key, value in checkpoint.items():
            inner = f"{path}[{key!r}]"
            if _has_state_dict(value):
                inner += ".state_dict()"
                value = value.state_dict()
            if not isinstance(value, collections.abc.Mapping):
                continue
            # The state of an optimizer has other names.
            if any(isinstance(name, str) and
                   self.split(name)[1] in self.names.values()
                   for name in value):
                yield inner
            else:
                yield from self._paths(inner, value)


def _has_state_dict(value):
    return callable(getattr(value, "state_dict", None))
