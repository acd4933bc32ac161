"""Run the examples as a user runs them, on digits made up here."""

import os
from pathlib import Path

import numpy as np
import theano

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

# Steps without C are fastest in this mode, which fuses nothing.
FLAGS = "" if theano.config.cxx else "mode=FAST_COMPILE"


def environment():
    """Variables for a program that is to find this bnlasagne."""
    flags = ",".join(filter(None, [os.environ.get("THEANO_FLAGS"), FLAGS]))
    path = os.pathsep.join(filter(None, [
        str(ROOT), os.environ.get("PYTHONPATH")]))
    return dict(os.environ, THEANO_FLAGS=flags, PYTHONPATH=path,
                PYTHONUNBUFFERED="1")


def make_images(labels, rng):
    """Each class has a pattern of its own, under noise: easy to learn."""
    patterns = np.random.RandomState(0).randint(0, 2, (10, 28, 28)) * 150
    noise = rng.randint(0, 100, (len(labels), 28, 28))
    return (patterns[labels] + noise).astype("uint8")
