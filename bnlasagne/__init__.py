"""Batch normalization for Lasagne."""

from . import compat  # isort: skip

compat.apply()  # First: it makes the next imports work.

from . import copies  # isort: skip  # noqa: F401  # It mends function.copy().
from .accumulation import GradientAccumulator
from .communication import RanksDisagree, world
from .distributed import average_gradients, broadcast_params
from .exchange import (
    get_keras_weights,
    get_torch_state_dict,
    set_keras_weights,
    set_torch_state_dict,
)
from .folding import fold_batch_norm
from .freezing import freeze_batch_norm, unfreeze_batch_norm
from .layer import BatchNormLayer, batch_norm
from .moments import Moments
from .ops import plain_expressions
from .parameter_lists import get_lasagne_values, set_lasagne_values
from .plots import plot_statistics
from .population import PopulationStatistics, update_population_statistics
from .schedules import CumulativeAverage
from .storage import load_network, save_network
from .updates import get_batch_norm_updates

__all__ = [
    "BatchNormLayer",
    "CumulativeAverage",
    "GradientAccumulator",
    "Moments",
    "PopulationStatistics",
    "RanksDisagree",
    "average_gradients",
    "batch_norm",
    "broadcast_params",
    "compat",
    "fold_batch_norm",
    "freeze_batch_norm",
    "get_batch_norm_updates",
    "get_keras_weights",
    "get_lasagne_values",
    "get_torch_state_dict",
    "load_network",
    "plain_expressions",
    "plot_statistics",
    "save_network",
    "set_keras_weights",
    "set_lasagne_values",
    "set_torch_state_dict",
    "unfreeze_batch_norm",
    "update_population_statistics",
    "world",
]

__version__ = "0.1.0"
