"""Fold a trained network, save it, and take it to PyTorch and back.

Trains the network of cnn.py on handwritten digits, folds its batch
normalization into the layers before it, saves the result and loads it again.
With PyTorch, the trained weights then go into the same network there, and from
there back into a new network here, which is folded. Prints for each network
how accurate it is, and how long an image takes::

    python examples/deploy.py
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time

import options  # isort: skip  # First: it has Ctrl-C end in one line.

from bnlasagne import (  # isort: skip  # First: repairs imports.
    fold_batch_norm,
    get_torch_state_dict,
    keep_freed_memory,
    load_network,
    save_network,
    set_torch_state_dict,
)

import cnn
import digits
import lasagne
import numpy as np
import theano
import theano.tensor as T
from lasagne.layers import get_output

try:
    import torch
except ImportError:
    torch = None


def compile_prediction(x, network):
    """Compile the function from images to probabilities of the digits."""
    return theano.function([x], get_output(network, deterministic=True))


def train(x, network, data, args):
    """Train a network, as cnn.py does."""
    step, _ = cnn.compile_functions(x, network, args.learning_rate)
    for epoch in range(1, args.epochs + 1):
        cnn.train_epoch(step, data, args, epoch)


def saved_and_loaded(x, network):
    """Save a folded network, load it into a new one, and return this one."""
    # Built and folded in the same way, it has the same layers.
    loaded = fold_batch_norm(cnn.build_network(x, True))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "digits.npz")
        save_network(network, path)
        load_network(loaded, path)
    return loaded


def build_torch_network():
    """Build the network of cnn.py in PyTorch, for testing."""
    nn = torch.nn
    network = nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU(),
        nn.Linear(128, 10), nn.Softmax(dim=1))
    # As precise as here, to compare.
    return network.to(getattr(torch, theano.config.floatX)).eval()


def predict_by_torch(network):
    """Return a function of arrays that calls a module of PyTorch."""
    def predict(images):
        images = torch.from_numpy(images.astype(theano.config.floatX))
        with torch.no_grad():
            return network(images).numpy()
    return predict


def from_torch(x, network):
    """Load the weights of a PyTorch network into a new one, and fold it."""
    loaded = cnn.build_network(x, True)
    set_torch_state_dict(loaded, network.state_dict())
    return fold_batch_norm(loaded)


def variants(x, network):
    """Return the network and all that it is turned into, as functions."""
    folded = fold_batch_norm(network)
    loaded = saved_and_loaded(x, folded)
    found = {
        "as trained": compile_prediction(x, network),
        "folded": compile_prediction(x, folded),
        "folded, saved, loaded": compile_prediction(x, loaded),
    }
    if torch is not None:
        module = build_torch_network()
        weights = get_torch_state_dict(network, like=module.state_dict())
        module.load_state_dict({key: torch.from_numpy(value)
                                for key, value in weights.items()})
        found["in PyTorch"] = predict_by_torch(module)
        found["from PyTorch, folded"] = compile_prediction(
            x, from_torch(x, module))
    return found


def predict_all(predict, images):
    """Compute the probabilities of all images, 500 at a time."""
    return np.concatenate([predict(images[start:start + 500])
                           for start in range(0, len(images), 500)])


def time_per_image(predictions, images, rounds):
    """Time functions in turns, as the machine may be busy now and then.

    Returns the median of each function, in microseconds per image.
    """
    times = {name: [] for name in predictions}
    turns = random.Random(0)
    for _ in range(rounds):
        # What ran before a function leaves it more or less of the cache.
        for name, predict in turns.sample(list(predictions.items()),
                                          len(predictions)):
            start = time.perf_counter()
            predict(images)
            times[name].append(time.perf_counter() - start)
    return {name: 1e6 * statistics.median(each) / len(images)
            for name, each in times.items()}


def print_table(predictions, data, rounds):
    """Print how accurate, different and fast the variants are."""
    one = time_per_image(predictions, data.x_test[:1], 10 * rounds)
    many = time_per_image(predictions, data.x_test[:500], rounds)
    reference = predict_all(predictions["as trained"], data.x_test)
    print("""\
                          test      largest   microseconds per image,
                        accuracy  difference  one by one, 500 at once""")
    for name, predict in predictions.items():
        found = predict_all(predict, data.x_test)
        accuracy = np.mean(found.argmax(axis=1) == data.y_test)
        difference = np.abs(found - reference).max()
        print(f"{name:22}  {accuracy:8.4f}  {difference:10.1e}  "
              f"{one[name]:10.0f} {many[name]:12.1f}")


def parse_arguments():
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description="A network is trained on handwritten digits, folded, "
        "saved, loaded, and taken to PyTorch and back.")
    parser.add_argument(
        "--epochs", type=options.at_least(1), default=1, metavar="N",
        help="pass over the training digits N times (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=options.at_least(1), default=20, metavar="N",
        help="measure times N times (default: %(default)s)")
    options.add_seed(parser)
    options.add_data(parser)
    # As cnn.py has them.
    parser.set_defaults(batch_size=100, learning_rate=0.05)
    return parser.parse_args()


def main():
    """Train a network, and print what it is turned into."""
    args = parse_arguments()
    keep_freed_memory()
    data = digits.load_or_exit(args.data)
    lasagne.random.set_rng(np.random.RandomState(args.seed))
    options.announce_compiling(args.quiet)
    x = T.tensor4("x")
    network = cnn.build_network(x, True)
    train(x, network, data, args)
    print_table(variants(x, network), data, args.rounds)
    if torch is None:
        print("With PyTorch installed (pip install torch), this compares with "
              "that, too.")


if __name__ == "__main__":
    sys.exit(main())
