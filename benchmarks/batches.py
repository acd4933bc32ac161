"""Time layers with masks, and with virtual batches, beside the same without.

``OMP_NUM_THREADS=1 python -m benchmarks.batches`` prints milliseconds for a
training step of one layer, and how many times as long a step with a mask or
with virtual batches takes: the median over rounds.
"""

import argparse
import contextlib
import random
import statistics
import sys
from operator import truediv

import bnlasagne  # isort: skip  # First: it repairs imports.

import numpy as np
import theano

from .cases import ALPHA, CASES, Case, random_data
from .speed import ENOUGH, is_quiet, medians_in_turns
from .tables import milliseconds, table

# Cases, each with the shape of its mask.
MASKED = [
    (Case("64x200x256", "sequence", (64, 200, 256), (0, 1)), (64, 200)),
    (Case("64x256x200", "convolutional", (64, 256, 200), (0, 2)), (64, 200)),
    (Case("64x128x28x28", "convolutional", (64, 128, 28, 28), (0, 2, 3)),
     (64,)),
    (Case("32x64x56x56", "convolutional", (32, 64, 56, 56), (0, 2, 3)),
     (32, 56, 56)),
]
PADDING = 0.4
SIZES = [8, 16, 32, 64]


def main():
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batches",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, metavar="N",
                        help="quiet rounds to measure (default: %(default)s)")
    rounds = parser.parse_args().rounds
    bnlasagne.keep_freed_memory()
    theano.config.floatX = "float32"
    rows = [_timed(case, _masked_steps(case, mask), rounds)
            for case, mask in MASKED]
    print(_table(f"{PADDING:.0%} of the positions are padding", rows))
    rows = [_timed(case, _virtual_steps(case), rounds) for case in CASES]
    print(_table("virtual batches, by their number of examples", rows))


def _timed(case, steps, rounds):
    found = medians_in_turns(steps, rounds, random.Random(0))
    print(case.name, file=sys.stderr)
    return dict(found, case=case.name)


def _table(title, rows):
    variants = list(dict.fromkeys(
        name for row in rows for name in row["seconds"]))[1:]
    return f"{title}\n\n" + table(
        ["shape", "ordinary, ms", *(f"{name} / ordinary"
                                    for name in variants)],
        [_cells(row, variants) for row in rows])


def _cells(row, variants):
    seconds = row["seconds"]
    settled = sum(map(is_quiet, row["others"])) >= ENOUGH
    return [row["case"] + ("" if settled else " ?"),
            milliseconds(seconds["ordinary"]),
            *(statistics.median(map(truediv, seconds[name],
                                    seconds["ordinary"]))
              if name in seconds else None for name in variants)]


def _masked_steps(case, mask_shape):
    data, mask = random_data(case), _draw_mask(mask_shape)
    return {"ordinary": _step(case, data), "masked": _step(case, data, mask),
            "masked, plain Theano": _step(case, data, mask, plain=True)}


def _virtual_steps(case):
    data = random_data(case)
    steps = {"ordinary": _step(case, data)}
    for size in SIZES:
        if size < len(data.x):
            steps[str(size)] = _step(case, data, virtual_batch_size=size)
    return steps


def _draw_mask(shape):
    """Sequences that end early; or images that lack positions here and there.

    A mask of examples lacks some of them.
    """
    rng = np.random.RandomState(0)
    if len(shape) != 2:
        return (rng.uniform(size=shape) >= PADDING).astype("float32")
    least = 1 - 2 * PADDING
    lengths = np.rint(rng.uniform(least, 1, shape[0]) * shape[1])
    return (np.arange(shape[1]) < lengths[:, np.newaxis]).astype("float32")


def _step(case, data, mask=None, plain=False, **kwargs):
    """Compile a training step, whose inputs lie in memory."""
    x, dy = (theano.shared(array, borrow=True) for array in (data.x, data.dy))
    layer = bnlasagne.BatchNormLayer(
        case.shape, axes=case.axes, alpha=ALPHA, gamma=data.gamma,
        beta=data.beta, mask_input=mask if mask is None else mask.shape,
        **kwargs)
    with bnlasagne.plain_expressions() if plain else contextlib.nullcontext():
        y = layer.get_output_for(
            x if mask is None else [x, theano.shared(mask)])
        outputs = [y, *theano.grad(None, [x, layer.gamma, layer.beta],
                                   known_grads={y: dy})]
    return theano.function([], [theano.Out(output, borrow=True)
                                for output in outputs])


if __name__ == "__main__":
    main()
