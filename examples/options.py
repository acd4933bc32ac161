"""Read the options of examples, announce compiling, and end by Ctrl-C.

Importing this module has Ctrl-C end a program in one line, with the status
130 that a shell reports for it, while it imports or compiles as well.
"""

import argparse
import contextlib
import math
import os
import sys

from tqdm import tqdm

__all__ = [
    "INTERRUPTED",
    "add_batch_size",
    "add_data",
    "add_learning_rate",
    "add_output",
    "add_seed",
    "add_steps",
    "announce_compiling",
    "at_least",
    "has_compiler",
    "say",
    "steps_of",
]

# What a shell reports for a program that Ctrl-C ended.
INTERRUPTED = 130


def _end_in_one_line(kind, error, trace, show=sys.excepthook):
    """Show an error that ends the program, but not where Ctrl-C hit it."""
    if not issubclass(kind, KeyboardInterrupt):
        return show(kind, error, trace)
    print("Interrupted.", file=sys.stderr, flush=True)
    raise SystemExit(INTERRUPTED)


sys.excepthook = _end_in_one_line


def has_compiler():
    """Tell whether Theano has a C++ compiler."""
    # Not at the top: the package repairs this import.
    import theano

    return bool(theano.config.cxx)


def announce_compiling(quiet):
    """Say what the program does before it prints anything else."""
    if not quiet:
        print("Compiling; about a minute the first time, a few seconds from "
              "then on." if has_compiler() else
              "Without a C++ compiler, Python computes all, a hundred times "
              "as slowly.\n(On Debian and Ubuntu: apt-get install g++. "
              "THEANO_FLAGS=mode=FAST_COMPILE\nmakes it less slow.)",
              file=sys.stderr, flush=True)


@contextlib.contextmanager
def steps_of(args):
    """Yield the numbers of the steps to make, 1 to `args.steps`.

    There is a progress bar. Ctrl-C ends the ``with`` statement early.
    """
    number = 0

    def numbers():
        nonlocal number
        for number in tqdm(range(1, args.steps + 1), unit=" steps",
                           disable=args.quiet):
            yield number

    try:
        yield numbers()
    except KeyboardInterrupt:
        say(f"Interrupted at step {number}.")


# Print a line above the progress bar.
say = tqdm.write


def at_least(least, reason=""):
    """Return the type of an option that takes a whole number from `least` on.

    It goes to ``add_argument(type=...)``. `reason` is part of the message.
    """
    def convert(text):
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(
                f"expected {least} or more{reason}")
        return number
    convert.__name__ = "int"  # argparse names it: "invalid int value"
    return convert


def _positive(text):
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("expected a positive number")
    return number


def _seed(text):
    number = int(text)
    if not 0 <= number < 2 ** 32:
        raise argparse.ArgumentTypeError("expected 0 to 2**32 - 1")
    return number


def _png(text):
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError("expected a name that ends in .png")
    if not os.path.isdir(os.path.dirname(text) or "."):
        raise argparse.ArgumentTypeError("expected a folder that exists")
    return text


_positive.__name__, _seed.__name__ = "float", "int"


def add_steps(parser, default, more=""):
    """Add ``--steps``."""
    parser.add_argument(
        "--steps", type=at_least(1), default=default, metavar="N",
        help=f"train for N steps (default: %(default)s{more})")


def add_batch_size(parser, default, of=""):
    """Add ``--batch-size``."""
    parser.add_argument(
        "--batch-size", type=at_least(2, ", for one digit has no variance"),
        default=default, metavar="N",
        help=f"digits in a batch{of} (default: %(default)s)")


def add_learning_rate(parser, default, rule):
    """Add ``--learning-rate``, of a rule to update parameters by."""
    parser.add_argument(
        "--learning-rate", type=_positive, default=default, metavar="RATE",
        help=f"of {rule} (default: %(default)s)")


def add_seed(parser, drawn="the weights and of the batches"):
    """Add ``--seed``, with what is drawn by it."""
    parser.add_argument(
        "--seed", type=_seed, default=1, metavar="N",
        help=f"of {drawn} (default: %(default)s)")


def add_data(parser):
    """Add ``--data`` and ``--quiet``."""
    parser.add_argument(
        "--data", metavar="PATH",
        help="your copy of the digits: an mnist.npz as Keras has it (default: "
        "fetch them once, with pip)")
    parser.add_argument(
        "--quiet", action="store_true", help="show no progress bar")


def add_output(parser, default, what):
    """Add ``--output``, the name of a picture."""
    parser.add_argument(
        "--output", type=_png, default=default, metavar="FILE",
        help=f"save {what} (default: %(default)s)")
