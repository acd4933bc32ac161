"""Take weights to and from PyTorch and Keras.

Neither needs to be installed: weights come and go as NumPy arrays.
"""

import collections

import lasagne
import numpy as np

from ..networks.setting import Setting, as_numbers, converted
from ..networks.walk import checked_layers, inputs_of
from .frameworks import Keras, Torch
from .matching import check, match
from .slots import LinearSlot, distinct, params_of, slots_of

__all__ = [
    "get_keras_weights",
    "get_torch_state_dict",
    "set_keras_weights",
    "set_torch_state_dict",
]

def get_torch_state_dict(network, like=None, epsilon=1e-5):
    """Weights of a network as PyTorch's modules have them.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers of a network of dense, network-in-network,
        convolutional (transposed and dilated, too) and batch normalization
        layers, and of others without parameters.
    like : dict or None
        The ``state_dict()`` of the module that they are for. It tells names
        and types, and where a bias of zeros or a scale of ones is wanted. By
        default, modules have the names of the layers, and arrays the types of
        the parameters.
    epsilon : number
        The ``eps`` of the batch normalization modules, which is not among
        their weights.

    Returns
    -------
    OrderedDict of str to array
        What ``module.load_state_dict()`` takes, as it is or with tensors that
        ``torch.from_numpy()`` makes of the arrays. The module then computes in
        evaluation what the network does with ``deterministic=True``, to
        rounding. For a module of type bfloat16, which NumPy lacks, the arrays
        are of type float32, and PyTorch converts them.

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
    return _get(Torch(), network, like, epsilon, "get_torch_state_dict()")


def set_torch_state_dict(network, state_dict, epsilon=1e-5):
    """Load the weights of a PyTorch module.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers of a network that computes the same, built
        of dense, network-in-network, convolutional (transposed and dilated,
        too) and batch normalization layers, and others without parameters.
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
        If a layer with parameters is of another type; if the names and shapes
        on one side are not those that the other side needs: the message lists
        both; if names or order are ambiguous; or if weights are NaN, or too
        large for the type of the parameter. Nothing is changed then.

    Notes
    -----
    A layer with the name of a module gets the weights of that module. More may
    come before it in the name of the module: ``layer1.conv`` gets the weights
    of ``model.backbone.layer1.conv``, and ``conv`` those of ``model.conv``. A
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
    Lasagne's do by default, while PyTorch computes cross-correlations. The
    bias of a convolution before batch normalization, which
    :func:`bnlasagne.batch_norm` leaves out, goes into the running mean.

    The deterministic output is what the module computes in evaluation, to
    rounding. Training does not continue identically: see
    :meth:`BatchNormLayer.set_statistics`. Momentum is not among the weights,
    either: PyTorch's is this package's `alpha`.
    """
    _set(Torch(), network, state_dict, epsilon, "set_torch_state_dict()")


def get_keras_weights(network, like=None, epsilon=1e-3,
                      data_format=None):
    """Weights of a network as Keras' layers have them.

    Parameters
    ----------
    network : Layer or list of Layer
        As in :func:`get_torch_state_dict`.
    like : dict or None
        The weights of the model that they are for, as in
        :func:`set_keras_weights`. It tells names and types, and where a bias
        of zeros or a scale of ones is wanted. By default, names are those of
        the layers, and types those of the parameters.
    epsilon : number
        The `epsilon` of the batch normalization layers there.
    data_format : None, 'channels_last' or 'channels_first'
        Where the model has the channels of images. By default, last, for what
        convolution, pooling or batch normalization tells to be images.

    Returns
    -------
    OrderedDict of str to array
        From names such as ``'conv/kernel'``, or those of `like`.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers.
    ValueError
        If a layer with parameters is of another type or, without `like`, has
        no name; if `like` does not fit: the message then lists both sides; or
        if the order of features cannot be told.

    See also
    --------
    set_keras_weights : The other way, with more on names and on features.
    """
    return _get(Keras(data_format), network, like, epsilon,
                "get_keras_weights()")


def set_keras_weights(network, weights, epsilon=1e-3, data_format=None):
    """Load the weights of a Keras model.

    Parameters
    ----------
    network : Layer or list of Layer
        As in :func:`set_torch_state_dict`.
    weights : dict of str to array, dict or list
        Such as ``{w.path: w.numpy() for w in model.weights}``, with names like
        ``'model/conv/kernel'``, or with ``w.name`` in Keras 2, like
        ``'conv/kernel:0'``. The weights of a layer may also come as a dict, or
        as a list: ``{layer.name: layer.get_weights() for layer in
        model.layers}``. Dicts may hold dicts, as the groups of HDF5 files do.
    epsilon : number
        The `epsilon` of the model's batch normalization layers.
    data_format : None, 'channels_last' or 'channels_first'
        Where the model has the channels of images. By default, last, for what
        convolution, pooling or batch normalization tells to be images.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers, or `weights` no dict of
        arrays of numbers.
    ValueError
        If a layer with parameters is of another type; if the names and shapes
        on one side are not those that the other side needs: the message lists
        both; if names, the order of layers or that of features are ambiguous;
        or if weights are NaN, or too large for the type of the parameter.
        Nothing is changed then.

    Notes
    -----
    Layers find their weights as in :func:`set_torch_state_dict`, with slashes
    for dots. What does not carry over is the same, too.

    Build layers without what a model lacks: ``gamma=None`` for
    ``scale=False``, ``beta=None`` for ``center=False``, and ``b=None`` for
    ``use_bias=False``.

    Where the model has channels last and flattens images, it has the features
    in another order than Lasagne, where channels come first. Weights of dense
    layers, and parameters of batch normalization layers, are put in order, if
    they follow on a flattening directly, or through dropout, nonlinearities,
    batch normalization, sums or concatenation. Other ways from images to
    features or back are refused. If nothing tells whether what is flattened
    are images, `data_format` must.
    """
    _set(Keras(data_format), network, weights, epsilon, "set_keras_weights()")


def _get(framework, network, like, epsilon, caller):
    _check_epsilon(epsilon, caller)
    slots = slots_of(checked_layers(network, caller), framework, caller)
    if like is None:
        return _named_by_layers(framework, slots, epsilon, caller)
    pairs = match(framework, slots, like, caller)
    check(pairs, {slot: slot.neutral() for slot in slots}, framework, caller)
    # What is ignored stays as it is.
    found = {key: np.array(as_numbers(key, value))
             for key, value in framework.flat(like).items()}
    for pair in pairs:
        values = pair.slot.weights(epsilon)
        for role, (key, value) in pair.weights.items():
            weights = values[role].reshape(value.shape) if role in values \
                else np.full(value.shape, _NEUTRAL[role])
            found[key] = converted("%s: %s" % (caller, key), weights,
                                   value.dtype)
    return framework.restored({key: value.view(framework.array)
                               for key, value in found.items()}, like)


def _check_epsilon(epsilon, caller):
    # The layers check its value, but take None for statistics of data.
    if epsilon is None:
        raise ValueError("%s: epsilon must be a number, got None." % caller)


_NEUTRAL = {"b": 0, "beta": 0, "gamma": 1}


def _named_by_layers(framework, slots, epsilon, caller):
    slots = distinct(slots)
    names = collections.Counter(slot.layer.name for slot in slots)
    for slot in slots:
        if slot.layer.name is None or names[slot.layer.name] > 1:
            raise ValueError("%s: %s has no name, or that of another. Name "
                             "all layers with parameters, or pass `like`."
                             % (caller, slot.label))
    return collections.OrderedDict(
        (slot.layer.name + framework.separator + slot.names[role],
         value.view(framework.array))
        for slot in slots for role, value in slot.weights(epsilon).items())


def _set(framework, network, weights, epsilon, caller):
    _check_epsilon(epsilon, caller)
    outputs = checked_layers(network, caller)
    slots = slots_of(outputs, framework, caller)
    pairs = match(framework, slots, weights, caller)
    absorbing = _absorbing(slots, pairs, outputs)
    check(pairs, {slot: slot.neutral() for slot in absorbing}, framework,
          caller)
    setting, biases = Setting(caller), {}
    for pair in pairs:
        values = {role: value for role, (_, value) in pair.weights.items()}
        if pair.slot in absorbing and "b" in values:
            bias = values.pop("b")
            biases.update((norm, bias) for norm in absorbing[pair.slot])
        pair.slot.set(setting, values, epsilon, biases.get(pair.slot.layer, 0))
    setting.carry_out()


def _absorbing(slots, pairs, outputs):
    """Linear layers without a bias, and what could absorb one.

    Returns
    -------
    dict of LinearSlot to list of BatchNormLayer
    """
    consumers = collections.defaultdict(list)
    for layer in lasagne.layers.get_all_layers(outputs):
        for below in inputs_of(layer):
            consumers[below].append(layer)
    matched = [pair.slot for pair in pairs]
    found = {}
    for slot in matched:
        if isinstance(slot, LinearSlot) and slot.layer.b is None:
            # A module that is applied several times has one bias for all.
            uses = [slot] + [other for other in slots if other not in matched
                             and params_of(other) == params_of(slot)]
            absorb = [use.absorbed_by(consumers[use.layer], outputs)
                      for use in uses]
            if all(absorb):
                found[slot] = sum(absorb, [])
    return found
