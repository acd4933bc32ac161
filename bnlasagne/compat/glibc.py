"""Keep memory that arrays free, for the arrays of the next call."""

import ctypes
import os

__all__ = ["keep_freed_memory", "raise_malloc_thresholds"]

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
# What users set themselves wins.
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_",
             "MALLOC_MMAP_THRESHOLD_")

# The largest array for which glibc raises its thresholds, less its own bytes.
_LARGEST = 2 ** 25 - 2 ** 13


def raise_malloc_thresholds(theano):
    """Have malloc keep up to 64 MiB of freed memory, as it does in the end.

    The first array of up to 32 MiB that is freed raises a threshold to its
    size: from then on, malloc keeps freed memory of less than twice as much.
    Two arrays of one size, such as the output of batch normalization and the
    gradient of its input, are just that much, and would be given back to the
    system in each step. So this frees the largest such array, once. No page of
    it is ever used. Where the environment sets malloc, nothing happens.
    """
    import numpy as np  # Here, so that the start-up hook does not wait for it.

    np.empty(_LARGEST, "uint8")


def keep_freed_memory():
    """Have the whole process keep freed memory, rather than give it back.

    By default, the malloc of Linux gives arrays of some sizes back to the
    system as soon as they are freed, and a Theano function frees its arrays in
    each call. The next call then waits until the system has filled their pages
    with zeros again. Call this function before the first step, best at the
    start of a program.

    Returns
    -------
    bool
        Whether freed memory is kept from now on. It is not where malloc is not
        that of glibc, such as on macOS and Windows; nothing has to be done
        there. Nor is it changed where the environment sets malloc
        (``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES`` …).

    Notes
    -----
    The process does not grow beyond its peak, but stays as large as that:
    other programs do not get the memory, unless this one calls glibc's
    ``malloc_trim(0)``.

    Examples
    --------
    >>> import bnlasagne
    >>> kept = bnlasagne.keep_freed_memory()
    """
    if any(name in os.environ for name in _SETTINGS) or (
            "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return False
    # The second has large arrays come from the same memory. It returns 0 if it
    # fails.
    return bool(mallopt(_M_TRIM_THRESHOLD, -1) and mallopt(_M_MMAP_MAX, 0))
