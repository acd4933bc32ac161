"""Make batch normalization by ours and by others, ready to be called.

All are treated alike. Inputs lie in memory before the call and are not
copied: shared variables, and tensors on the same memory. No peer may
overwrite them. Each call allocates its outputs and frees them again. A
training step takes x and dy and returns dx, dgamma, dbeta and y, and it
updates the running averages with the same weight. Theano's peers do without
the checks and copies of arguments that a function with inputs makes, and
PyTorch's inference without its bookkeeping for gradients.
"""

import functools
from typing import Callable, NamedTuple, Optional

from bnlasagne import BatchNormLayer

import lasagne
import numpy as np
import theano
import theano.tensor as T
from theano.tensor.nnet import bn

from . import limit
from .agreement import Convention, stored_statistic
from .cases import ALPHA


class Program(NamedTuple):
    """What is timed, and what it takes to check it.

    `call` does the work. `outputs` does it too and returns NumPy arrays,
    `averages` the running averages (mean, and what `convention` says). The
    limit, which computes nothing, has only a `call`.
    """

    call: Callable
    convention: Optional[Convention] = None
    outputs: Optional[Callable] = None
    averages: Optional[Callable] = None


OURS = Convention(0.01, within=False, stored="std")
LASAGNE = Convention(1e-4, within=True, stored="inv_std")
THEANO = Convention(1e-4, within=True, stored="variance")
TORCH = Convention(1e-5, within=True, stored="variance")
CONVENTIONS = [OURS, LASAGNE, THEANO, TORCH]


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


def _theano_program(variables, y, convention, training, updates=None):
    """Compile a training step, or inference, from its output `y`."""
    outputs = [y]
    if training:
        outputs = theano.grad(
            None, [variables.x, variables.gamma, variables.beta],
            known_grads={y: variables.dy}) + outputs
    function = theano.function(
        [], [theano.Out(output, borrow=True) for output in outputs],
        updates=updates)
    return Program(function, convention, function, lambda: [
        average.get_value() for average in (variables.mean, variables.spread)])


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
    return _theano_program(variables, y, OURS, training)


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
    return _theano_program(variables, _rectified(y, rectify), OURS, training)


def later_lasagne(case, data, rectify, training):
    """Build the graph of the `BatchNormLayer` of Lasagne 0.2."""
    variables = _Variables(case, data, LASAGNE, training)
    x, mean, inv_std = variables.x, variables.mean, variables.spread
    if training:
        mean = _follow(mean, x.mean(case.axes, keepdims=True))
        inv_std = _follow(inv_std, T.inv(T.sqrt(
            x.var(case.axes, keepdims=True) + LASAGNE.epsilon)))
    y = (x - mean) * (variables.gamma * inv_std) + variables.beta
    return _theano_program(variables, _rectified(y, rectify), LASAGNE,
                           training)


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
    return _theano_program(variables, _rectified(y, rectify), THEANO,
                           training, updates)


# PyTorch

def _torch(case, data, rectify, training, compiled=False, inplace=False):
    import torch  # An extra, and slow to import.
    from torch.nn import functional

    def forward(x, gamma, beta, mean, variance):
        y = functional.batch_norm(
            x, mean, variance, gamma, beta, training=training,
            momentum=ALPHA, eps=TORCH.epsilon)
        return functional.relu(y, inplace=inplace) if rectify else y

    if compiled:
        # What was compiled for another case counts against a limit.
        torch._dynamo.reset()
        forward = torch.compile(forward, dynamic=False)
    x, dy = (_channels_second(torch.from_numpy(array), case)
             for array in (data.x, data.dy))
    gamma, beta, mean, variance = (
        torch.tensor(array.ravel()) for array in (
            data.gamma, data.beta, data.mean, data.variance))
    if training:
        mean.zero_(), variance.fill_(1)
        wrt = [tensor.requires_grad_() for tensor in (x, gamma, beta)]

        def call():
            y = forward(x, gamma, beta, mean, variance)
            return (*torch.autograd.grad(y, wrt, dy), y)
    else:
        def call():
            with torch.inference_mode():
                return (forward(x, gamma, beta, mean, variance),)

    def outputs():
        return [_as_in(case, output.detach()).numpy() for output in call()]
    return Program(call, TORCH, outputs,
                   lambda: [mean.numpy(), variance.numpy()])


def _channels_second(tensor, case):
    """Move channels to the second axis; in memory, they stay in place."""
    return tensor.permute(0, 3, 1, 2) if case.kind == "sequence" else tensor


def _as_in(case, tensor):
    """Move the channels of a batch back."""
    is_batch = tensor.ndim == len(case.shape) and case.kind == "sequence"
    return tensor.permute(0, 2, 3, 1) if is_batch else tensor


# The limit

def _limit(case, data, rectify, training, times):
    call = limit.training(data, times) if training else limit.inference(data)
    return Program(call)


class Peer(NamedTuple):
    """A label for the report, and a function that makes a Program.

    `measures(rectify, training)` says what the peer is measured in.
    """

    label: str
    build: Callable
    measures: Callable = lambda rectify, training: True


PEERS = {
    "ours": Peer("bnlasagne", ours),
    "gist": Peer("gist's graph", gist),
    "theano": Peer("Theano's bn", theano_bn),
    "lasagne": Peer("later Lasagne's graph", later_lasagne),
    "torch": Peer("PyTorch eager", _torch),
    "torch-inplace": Peer(
        "PyTorch eager, relu in place",
        functools.partial(_torch, inplace=True),
        lambda rectify, training: rectify),
    "torch-compile": Peer(
        "torch.compile", functools.partial(_torch, compiled=True)),
    # Without and with the rectifier, traffic is the same.
    "limit-twice": Peer(
        "limit (x twice)", functools.partial(_limit, times="twice"),
        lambda rectify, training: training),
    "limit-once": Peer(
        "limit (x once)", functools.partial(_limit, times="once")),
}
