"""Compare the names and shapes of weights with those that a network needs."""

import collections

import numpy as np

__all__ = [
    "Row",
    "check_rows",
    "described",
]

Row = collections.namedtuple("Row", "theirs, ours, fits")
Row.__doc__ = """A line of a comparison.

Attributes
----------
theirs, ours : str
    What there is, and what is needed; empty for nothing.
fits : bool
"""


def described(name, array):
    """A name and the shape of its array, for a row."""
    return "%s: %s" % (name, np.shape(array))


def check_rows(caller, what, rows, hints=()):
    """Raise a ValueError that lists both sides, unless all rows fit.

    Parameters
    ----------
    caller : str
        The function that the user called.
    what : str
        What holds their side.
    rows : list of Row
    hints : sequence of str
        Sentences that say what to do, for the end of the message.
    """
    if all(row.fits for row in rows):
        return
    rows = [Row(what, "needed by the network", True)] + rows
    width = max(len(row.theirs) for row in rows)
    lines = ["%s %-*s  %s" % (" " if row.fits else "!", width,
                              row.theirs or "-", row.ours or "-")
             for row in rows]
    raise ValueError("%s: the %s does not fit the network, where marked:\n%s"
                     % (caller, what, "\n".join([*lines, *hints])))
