"""Have Theano's random streams draw the same numbers as with NumPy 1."""

import copy
import functools

__all__ = ["copy_random_states", "mask_in_64_bits"]


def copy_random_states(raw_random):
    """Copy the state of a random stream where a random Op asks for it.

    Since NumPy 2, `copy.copy()` gives two generators with one state, and an Op
    that is not in place changed the state that it was given.
    """
    state = raw_random.np.random.RandomState(0)
    if copy.copy(state)._bit_generator is state._bit_generator:
        raw_random.copy = copy.deepcopy


def mask_in_64_bits(rng_mrg):
    """Let MRG streams without C code draw what those with C code draw.

    They mask an int32 by 0xffffffff, which NumPy 1 did in int64. NumPy 2
    refuses a Python number that int32 cannot hold. This goes with Theano
    1.0.5.
    """
    next_value, np = rng_mrg.mrg_next_value, rng_mrg.np
    try:
        np.int32(0) & 0xffffffff
        return
    except OverflowError:
        pass

    @functools.wraps(next_value)
    def next_value_in_64_bits(rstate, new_rstate, NORM, mask, offset):
        return next_value(rstate, new_rstate, NORM, np.int64(mask), offset)

    rng_mrg.mrg_next_value = next_value_in_64_bits
