"""Draw how data is cut into parts."""

from hypothesis import strategies as st


def cuts_of(size, parts=None):
    """Draw where to cut data of a size, for :func:`numpy.split`.

    Parts may be empty. Their number is drawn, too, unless it is given.
    """
    return st.lists(st.integers(0, size), min_size=(parts or 1) - 1,
                    max_size=8 if parts is None else parts - 1).map(sorted)
