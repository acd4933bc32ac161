"""Write digits in lines of unequal length, and cut lines into batches.

A line is a sequence: its columns, from left to right, of 14 pixels each. The
probability of n digits is in proportion to 1 / n**2. So most lines are short,
and few are long. The label of a line is its largest digit.
"""

import numpy as np
from network import batches

HEIGHT = 14
# Of a pixel, from 0 (paper) to 1.
INK = 0.1


def cut_out(images):
    """Halve the size of digits, and cut off the paper beside the ink.

    Takes images of shape (digits, 1, 28, 28). Returns a list of arrays of
    shape (14, columns).
    """
    halves = images.reshape(-1, HEIGHT, 2, HEIGHT, 2).mean(axis=(2, 4))
    return [_without_margins(image) for image in halves]


def _without_margins(image):
    columns = np.flatnonzero(image.max(axis=0) > INK)
    # Where there is no ink, it is a space.
    return image[:, columns[0]:columns[-1] + 1] if len(columns) else image


def write_lines(digits, labels, number, longest, seed):
    """Draw digits, and write so many lines of up to `longest` digits.

    `digits` are as :func:`cut_out` returns them. Returns a list of arrays of
    shape (14, columns), and the labels of the lines.
    """
    rng = np.random.RandomState(seed)
    lengths = np.arange(1, longest + 1)
    weights = 1 / lengths ** 2
    lengths = rng.choice(lengths, number, p=weights / weights.sum())
    chosen = [rng.randint(len(digits), size=length) for length in lengths]
    gap = np.zeros((HEIGHT, 1), "float32")
    lines = [np.hstack([part for index in line
                        for part in (digits[index], gap)]) for line in chosen]
    return lines, np.array([labels[line].max() for line in chosen], "int32")


def padded(lines):
    """Pad lines to the length of the longest.

    Returns them, of shape (lines, 14, columns), and a mask of shape (lines,
    columns): 1 for the columns of a line, 0 for padding.
    """
    lengths = np.array([line.shape[1] for line in lines])
    x = np.zeros((len(lines), HEIGHT, lengths.max()), "float32")
    for padded_line, line in zip(x, lines):
        padded_line[:, :line.shape[1]] = line
    mask = np.arange(lengths.max()) < lengths[:, np.newaxis]
    return x, mask.astype("float32")


def of_equal_length(lines):
    """Group lines by length: return indices of the lines of each."""
    lengths = np.array([line.shape[1] for line in lines])
    return [np.flatnonzero(lengths == length) for length in np.unique(lengths)]


def padded_batches(lines, labels, size, seed):
    """Shuffle, cut and pad lines, forever; with their masks and labels."""
    indices = np.arange(len(lines))
    for chosen, y in batches(indices, labels, size, seed):
        yield (*padded([lines[index] for index in chosen]), y)
