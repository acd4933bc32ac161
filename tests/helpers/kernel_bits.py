"""Train batch normalization such that only the kernels round.

All other Ops are computed by NumPy, value by value, so that their results
are the same on any machine.
"""

import contextlib

from bnlasagne import BatchNormLayer, CumulativeAverage
from bnlasagne.kernels.compiled import CompiledOp

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from lasagne.layers import InputLayer, get_all_params, get_output
from lasagne.nonlinearities import rectify
from theano.gof.vm import VM_Linker

from helpers.digests import Digest

__all__ = ["columns", "digest_of_training", "only_kernels_in_c", "rows"]


@contextlib.contextmanager
def only_kernels_in_c(**options):
    """Make a mode in which no Ops but those of the package are in C."""
    original = CompiledOp.make_thunk

    def make_thunk(self, *args, **kwargs):
        return original(self, *args, **dict(kwargs, impl="c"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledOp, "make_thunk", make_thunk)
        yield theano.Mode(VM_Linker(c_thunks=False, **options),
                          "fast_compile")


def numbers(rng, *shape):
    """Draw numbers without a logarithm, whose rounding differs."""
    return (rng.randint(-512, 512, shape) / 128).astype(theano.config.floatX)


def rows(rng):
    """Virtual batches of images, and a layer that is applied twice."""
    l_in = InputLayer((None, 6, 35, 37))
    first = BatchNormLayer(l_in, nonlinearity=rectify, virtual_batch_size=5)
    second = BatchNormLayer(first, nonlinearity=rectify,
                            alpha=CumulativeAverage())
    x = l_in.input_var
    outputs = get_output(second, x), get_output(second, -x[::2])
    return second, [x], outputs, [numbers(rng, 24, 6, 35, 37)]


def columns(rng):
    """Sequences, with a mask that leaves out rows."""
    l_in, l_mask = InputLayer((None, 37, 45)), InputLayer((None, 37))
    layer = l_in
    for _ in range(2):
        layer = BatchNormLayer(layer, axes=(0, 1), mask_input=l_mask,
                               nonlinearity=rectify)
    mask = rng.randint(0, 2, (84, 37)).astype(theano.config.floatX)
    return (layer, [l_in.input_var, l_mask.input_var], [get_output(layer)],
            [numbers(rng, 84, 37, 45), mask])


def digest_of_training(build, mode, steps=4):
    """Make some steps; return the digest of all outputs and parameters."""
    rng, digest = np.random.RandomState(5), Digest()
    layer, variables, outputs, values = build(rng)
    loss = sum(T.sum(T.sqr(output)) for output in outputs)
    trained = get_all_params(layer, trainable=True)
    for param in trained:
        param.set_value(1 + numbers(rng, *param.get_value().shape) / 16)
    step = theano.function(variables, outputs, mode=mode, on_unused_input=
                           "ignore", updates=lasagne.updates.sgd(
                               loss, trained, 2. ** -14))
    kept = []  # Or else arrays would have the same addresses in all steps.
    for _ in range(steps):
        kept.append(step(*values))
        digest.add(*kept[-1])
    digest.add(*(param.get_value() for param in get_all_params(layer)))
    return str(digest)
