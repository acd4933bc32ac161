"""Repair Lasagne: 0.1, the release on PyPI, and the later 0.2.dev1."""

import functools
import warnings
from types import FunctionType, SimpleNamespace

from .importing import view

__all__ = [
    "count_grid_points",
    "hand_flags_into_loops",
    "ignore_image_shape_warning",
]


def count_grid_points(special):
    """Let `TPSTransformerLayer` give the width of its grid as a float.

    NumPy 1.18 takes integers only. Lasagne 0.1 has neither layer nor module.
    """
    np = special.np
    try:
        np.linspace(-1, 1, 2.0)
    except TypeError:
        special.np = view(np, linspace=lambda start, stop, num: np.linspace(
            start, stop, int(num)))


def ignore_image_shape_warning(lasagne):
    """Silence a complaint about a name that Theano has changed since."""
    warnings.filterwarnings(
        "ignore", "The `image_shape` keyword argument to `tensor.nnet.conv2d`",
        UserWarning, r"lasagne\.",
    )


def hand_flags_into_loops(recurrent):
    """Have the layers in a recurrent layer's loop get the flags it gets."""
    layer_class = recurrent.CustomRecurrentLayer
    method = layer_class.get_output_for
    if not _drops_flags(method):
        return

    @functools.wraps(method)
    def get_output_for(self, inputs, **flags):
        # The same code, which finds this call's flags in what it calls.
        helper = SimpleNamespace(**{
            **vars(recurrent.helper), "get_output": functools.partial(
                recurrent.helper.get_output, **flags)})
        function = FunctionType(
            method.__code__, dict(vars(recurrent), helper=helper),
            method.__name__, method.__defaults__, method.__closure__)
        return function(self, inputs, **flags)

    layer_class.get_output_for = get_output_for


def _drops_flags(method):
    """Tell whether the step of the loop, a function within, has no flags."""
    return any(
        getattr(constant, "co_name", "") == "step"
        and "kwargs" not in constant.co_freevars
        for constant in getattr(method, "__code__", method).co_consts
    )
