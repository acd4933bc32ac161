"""Train a small adversarial network on digits, with batch norm in both parts.

A generator makes digits from noise. A discriminator learns to tell them from
real digits, and the generator learns to deceive it (Goodfellow et al., 2014).
Prints how well the discriminator tells them apart while both learn, and saves
a grid of generated digits as a picture::

    python examples/gan.py
    python examples/gan.py --steps 20000

The discriminator sees real and generated digits in one function, as two
batches with statistics of their own. Here, explicit updates decide which
function moves which running averages: outputs are built with
``batch_norm_update_averages="explicit"``, and each function gets the updates
of one of the two networks.

Ctrl-C stops the training early and still saves the picture.

I. Goodfellow et al.: Generative adversarial nets. NIPS 2014.
A. Radford, L. Metz and S. Chintala: Unsupervised representation learning with
deep convolutional generative adversarial networks. ICLR 2016, for batch norm
in both parts and the settings of Adam.
"""

import argparse
import sys
from typing import Callable, NamedTuple

import options  # isort: skip  # First: it has Ctrl-C end in one line.

# First: repairs imports.
from bnlasagne import (  # isort: skip
    batch_norm,
    get_batch_norm_updates,
    keep_freed_memory,
)

import digits
import lasagne
import numpy as np
import theano
import theano.tensor as T
from lasagne.layers import DenseLayer, InputLayer, get_all_params, get_output
from lasagne.nonlinearities import LeakyRectify, linear, sigmoid
from network import batches
from PIL import Image

NOISE = 64
GRID = 10


class Networks(NamedTuple):
    """The output layers of both networks.

    The generator's are rows of 784 values from 0 to 1, the discriminator's one
    score for each digit: the higher, the more real.
    """

    generator: lasagne.layers.Layer
    discriminator: lasagne.layers.Layer


class Functions(NamedTuple):
    """The functions that train both networks, and make digits.

    `discriminate`, a step of the discriminator, takes real digits and noise
    and returns the parts of both that it got right, from 0 to 1. `generate`, a
    step of the generator, takes noise. `sample` makes digits from noise.
    """

    discriminate: Callable
    generate: Callable
    sample: Callable


def build_networks(seed):
    """Build a generator and a discriminator of dense layers."""
    lasagne.random.set_rng(np.random.RandomState(seed))
    leaky = LeakyRectify(0.2)
    generator = InputLayer((None, NOISE))
    for units in 128, 256:
        generator = batch_norm(
            DenseLayer(generator, units, nonlinearity=leaky), alpha=0.1)
    generator = DenseLayer(generator, 784, nonlinearity=sigmoid)
    # Without batch norm in its first layer, the discriminator sees how large
    # the values of single digits are.
    discriminator = DenseLayer(
        InputLayer((None, 784)), 128, nonlinearity=leaky)
    discriminator = batch_norm(
        DenseLayer(discriminator, 64, nonlinearity=leaky), alpha=0.1)
    discriminator = DenseLayer(discriminator, 1, nonlinearity=linear)
    return Networks(generator, discriminator)


def batch_norm_layers(network):
    """List the layers of a network that have running averages."""
    return [layer for layer in lasagne.layers.get_all_layers(network)
            if layer.get_params(batch_norm_stat=True)]


def compile_functions(networks, learning_rate):
    """Compile the functions that train both networks and make digits."""
    real, noise = T.matrices("real", "noise")
    flags = {"batch_norm_update_averages": "explicit"}
    fake = get_output(networks.generator, noise, **flags)
    of_real, of_fake = (get_output(networks.discriminator, seen, **flags)
                        for seen in (real, fake))

    loss = (T.nnet.softplus(-of_real) + T.nnet.softplus(of_fake)).mean()
    updates = step(loss, networks.discriminator, learning_rate)
    # Each layer is applied twice: both batches together make one update. The
    # layers of the generator are in this graph, too, but do not move here.
    updates.update(get_batch_norm_updates(
        loss, layers=batch_norm_layers(networks.discriminator),
        combine="pool"))
    discriminate = theano.function(
        [real, noise], [T.gt(of_real, 0).mean(), T.le(of_fake, 0).mean()],
        updates=updates)

    # Not the negative loss of the discriminator: its gradient vanishes if the
    # discriminator wins.
    loss = T.nnet.softplus(-of_fake).mean()
    updates = step(loss, networks.generator, learning_rate)
    updates.update(get_batch_norm_updates(
        loss, layers=batch_norm_layers(networks.generator)))
    generate = theano.function([noise], updates=updates)

    sample = theano.function([noise], get_output(
        networks.generator, noise, deterministic=True))
    return Functions(discriminate, generate, sample)


def step(loss, network, learning_rate):
    """Build the updates of a network alone, by Adam."""
    params = get_all_params(network, trainable=True)
    return lasagne.updates.adam(loss, params, learning_rate, beta1=0.5)


def train(functions, data, args):
    """Train, and print what the discriminator gets right.

    Returns False if the user interrupted it.
    """
    rng = np.random.RandomState(args.seed)
    stream = batches(data.x_train, data.y_train, args.batch_size, args.seed)
    every = max(1, args.steps // 10)
    right = []
    print("  steps   real digits told   generated ones told")
    with options.steps_of(args) as steps:
        for number in steps:
            real, _ = next(stream)
            right.append(functions.discriminate(
                real.reshape(len(real), -1), draw(rng, len(real))))
            functions.generate(draw(rng, len(real)))
            if number % every == 0:
                options.say("{:7d}   {:16.3f}   {:19.3f}".format(
                    number, *np.mean(right, axis=0)))
                right = []
        return True
    return False


def draw(rng, size):
    """Draw noise, for as many digits as `size`."""
    return rng.normal(size=(size, NOISE)).astype(theano.config.floatX)


def save_samples(functions, path, seed):
    """Save a grid of generated digits as a PNG file."""
    noise = draw(np.random.RandomState(seed), GRID ** 2)
    images = functions.sample(noise).reshape(GRID, GRID, 28, 28)
    rows = images.transpose(0, 2, 1, 3).reshape(GRID * 28, GRID * 28)
    pixels = np.rint(255 * rows).astype("uint8")
    Image.fromarray(pixels).resize((GRID * 56, GRID * 56)).save(path)


def parse_arguments():
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description="Train an adversarial network with batch norm on "
        "handwritten digits, and save digits that it makes.")
    options.add_steps(parser, 2500)
    options.add_batch_size(parser, 64)
    options.add_learning_rate(parser, 5e-4, "Adam")
    options.add_seed(parser, "the weights, the batches and the noise")
    options.add_data(parser)
    options.add_output(parser, "gan.png", "the samples as this PNG file")
    return parser.parse_args()


def main():
    """Train, and save samples."""
    args = parse_arguments()
    keep_freed_memory()
    data = digits.load_or_exit(args.data, {"--batch-size": args.batch_size})
    options.announce_compiling(args.quiet)
    functions = compile_functions(build_networks(args.seed),
                                  args.learning_rate)
    complete = train(functions, data, args)
    save_samples(functions, args.output, args.seed)
    print(f"Saved {GRID ** 2} generated digits as {args.output}.")
    return 0 if complete else options.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
