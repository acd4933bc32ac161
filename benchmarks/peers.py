"""Make batch normalization by ours and by others, ready to be called.

All are treated alike. Inputs lie in memory before the call and are not
copied: shared variables, and tensors on the same memory. No peer may
overwrite them. Each call allocates its outputs and frees them again, but for
oneDNN and the limit. A training step takes x and dy and returns dx, dgamma,
dbeta and y, and it updates the running averages with the same weight.
Theano's peers do without the checks and copies of arguments that a function
with inputs makes, and PyTorch's inference without its bookkeeping for
gradients.
"""

import functools
import importlib
import importlib.util
from typing import Callable, NamedTuple, Optional

from bnlasagne import BatchNormLayer

import lasagne
import numpy as np
import theano
import theano.tensor as T
from theano.gof.cc import get_module_cache
from theano.tensor.nnet import bn

from . import frameworks, limit, onednn
from .agreement import (
    LASAGNE,
    OURS,
    SINGLE_SUMS,
    THEANO,
    TOLERANCE,
    TORCH,
    TRAINING,
    Convention,
    Program,
    stored_statistic,
)
from .cases import ALPHA

# Theano

class _Variables:
    """Shared variables of a case: inputs, parameters, running averages."""

    def __init__(self, case, data, convention, training):
        pattern = [axis in case.axes for axis in range(len(case.shape))]
        self.x = theano.shared(data.x, borrow=True)
        self.dy = theano.shared(data.dy, borrow=True)
        if training:
            mean, spread = np.zeros_like(data.mean), np.ones_like(data.mean)
        else:
            mean = data.mean
            spread = stored_statistic(convention, data.variance)
        self.gamma, self.beta, self.mean, self.spread = (
            theano.shared(array, broadcastable=pattern)
            for array in (data.gamma, data.beta, mean, spread))


def _theano_program(variables, y, training, updates=None):
    """Compile a training step, or inference, from its output `y`."""
    outputs = [y]
    if training:
        outputs = theano.grad(
            None, [variables.x, variables.gamma, variables.beta],
            known_grads={y: variables.dy}) + outputs
    function = theano.function(
        [], [theano.Out(output, borrow=True) for output in outputs],
        updates=updates)

    def results():
        found = list(function())
        found += [average.get_value()
                  for average in (variables.mean, variables.spread)]
        return dict(zip(TRAINING if training else ["y"], found))
    return Program(function, results)


def _rectified(y, rectify):
    return T.nnet.relu(y) if rectify else y


def ours(case, data, rectify, training):
    """Apply a :class:`bnlasagne.BatchNormLayer`."""
    variables = _Variables(case, data, OURS, training)
    layer = BatchNormLayer(
        case.shape, axes=case.axes, epsilon=OURS.epsilon, alpha=ALPHA,
        nonlinearity=lasagne.nonlinearities.rectify if rectify else None,
        gamma=variables.gamma, beta=variables.beta, mean=variables.mean,
        std=variables.spread)
    y = layer.get_output_for(variables.x, deterministic=not training)
    return _theano_program(variables, y, training)


def _follow(average, batch):
    """Have functions of a batch's statistic update its running average.

    The average enters the graph as a clone on the same memory, times zero.
    """
    clone = theano.clone(average, share_inputs=False)
    clone.default_update = (1 - ALPHA) * clone + ALPHA * batch
    return batch + 0 * clone


def gist_output(x, gamma, beta, mean, std, axes, training,
                epsilon=OURS.epsilon):
    """Build the graph of the gist that bnlasagne goes back to.

    The averages are shared variables. In training, it normalizes by the batch
    and updates them.
    """
    if training:
        mean = _follow(mean, x.mean(axes, keepdims=True))
        std = _follow(std, x.std(axes, keepdims=True))
    return (x - mean) * (gamma / (std + epsilon)) + beta


def gist(case, data, rectify, training):
    """See :func:`gist_output`."""
    variables = _Variables(case, data, OURS, training)
    y = gist_output(variables.x, variables.gamma, variables.beta,
                    variables.mean, variables.spread, case.axes, training)
    return _theano_program(variables, _rectified(y, rectify), training)


def later_lasagne_output(x, gamma, beta, mean, inv_std, axes, training,
                         epsilon=LASAGNE.epsilon):
    """Build the graph of the `BatchNormLayer` of Lasagne 0.2.

    See :func:`gist_output`.
    """
    if training:
        mean = _follow(mean, x.mean(axes, keepdims=True))
        inv_std = _follow(inv_std, T.inv(T.sqrt(
            x.var(axes, keepdims=True) + epsilon)))
    return (x - mean) * (gamma * inv_std) + beta


def later_lasagne(case, data, rectify, training):
    """See :func:`later_lasagne_output`."""
    variables = _Variables(case, data, LASAGNE, training)
    y = later_lasagne_output(
        variables.x, variables.gamma, variables.beta, variables.mean,
        variables.spread, case.axes, training)
    return _theano_program(variables, _rectified(y, rectify), training)


def theano_bn(case, data, rectify, training):
    """Call Theano's own functions, in :mod:`theano.tensor.nnet.bn`."""
    variables = _Variables(case, data, THEANO, training)
    parameters = variables.x, variables.gamma, variables.beta
    averages = variables.mean, variables.spread
    updates = None
    if training:
        y, _, _, *updated = bn.batch_normalization_train(
            *parameters, case.axes, THEANO.epsilon, ALPHA, *averages)
        updates = list(zip(averages, updated))
    else:
        y = bn.batch_normalization_test(
            *parameters, *averages, case.axes, THEANO.epsilon)
    return _theano_program(
        variables, _rectified(y, rectify), training, updates)


# The limit

def _limit(case, data, rectify, training):
    return Program(limit.training(data) if training else limit.inference(data))


class Peer(NamedTuple):
    """A label for the report, and a function that makes a Program.

    `convention` and `tolerance` are those of its results, if any.
    `measures(case, training, rectify)` says what the peer is measured in.
    `load` does what programs share. If not `allocates`, outputs go to memory
    that is there.
    """

    label: str
    build: Callable
    convention: Optional[Convention] = None
    measures: Callable = lambda case, training, rectify: True
    load: Callable = get_module_cache
    is_installed: Callable = lambda: True
    allocates: bool = True
    tolerance: float = TOLERANCE


def _of_module(name, **options):
    """Return what the peers of a Python module have in common."""
    return dict(options, convention=TORCH,
                load=lambda: importlib.import_module(name),
                is_installed=lambda: bool(importlib.util.find_spec(name)))


def _torch(label, measures=lambda *_: True, **options):
    return Peer(label, functools.partial(frameworks.with_torch, **options),
                **_of_module("torch", measures=measures))


def _onednn(layout):
    # An array of two axes has one layout.
    return Peer(
        f"oneDNN, {layout}",
        functools.partial(frameworks.with_onednn, layout=layout), TORCH,
        lambda case, *_: layout == "nchw" or case.kind != "dense",
        onednn.load, onednn.is_installed, allocates=False,
        tolerance=SINGLE_SUMS)


PEERS = {
    "ours": Peer("bnlasagne", ours, OURS),
    "gist": Peer("gist's graph", gist, OURS),
    "theano": Peer("Theano's bn", theano_bn, THEANO),
    "lasagne": Peer("later Lasagne's graph", later_lasagne, LASAGNE),
    "torch": _torch("PyTorch eager"),
    "torch-channels-last": _torch(
        "PyTorch, channels last",
        lambda case, *_: case.kind == "convolutional", channels_last=True),
    "torch-inplace": _torch(
        "PyTorch, relu in place", lambda case, training, rectify: rectify,
        inplace=True),
    "torch-compile": _torch("torch.compile", compiled=True),
    **{"onednn-" + layout: _onednn(layout) for layout in onednn.LAYOUTS},
    "onnxruntime": Peer(
        "ONNX Runtime", frameworks.with_onnxruntime, **_of_module(
            "onnxruntime",
            measures=lambda case, training, rectify: not training)),
    # Without and with the rectifier, traffic is the same.
    "limit-twice": Peer(
        "limit (x twice)", _limit,
        measures=lambda case, training, rectify: training, load=limit.load,
        allocates=False),
    "limit-once": Peer(
        "limit (x once)", _limit,
        measures=lambda case, training, rectify: not training,
        load=limit.load, allocates=False),
}
