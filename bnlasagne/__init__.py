"""Batch normalization for Lasagne."""

from . import compat  # isort: skip

compat.apply()  # First: it makes the next imports work.

from .averages import patched_theano  # isort: skip  # noqa: F401
from .accumulation.accumulator import GradientAccumulator
from .averages.explicit import get_batch_norm_updates
from .averages.schedules import CumulativeAverage
from .compat.glibc import keep_freed_memory
from .folding.fold import fold_batch_norm
from .kernels.dispatch import plain_expressions
from .kernels.moments import Moments
from .layers.freezing import freeze_batch_norm, unfreeze_batch_norm
from .layers.layer import BatchNormLayer
from .layers.wrapping import batch_norm
from .parallel.channel import RanksDisagree, world
from .parallel.training import average_gradients, broadcast_params
from .population.plots import plot_statistics
from .population.population import (
    PopulationStatistics,
    update_population_statistics,
)
from .weights.files import load_network, save_network
from .weights.keras import get_keras_weights, set_keras_weights
from .weights.lasagne import get_lasagne_values, set_lasagne_values
from .weights.torch import get_torch_state_dict, set_torch_state_dict

from . import moved  # isort: skip  # noqa: F401  # For old pickles.

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
    "keep_freed_memory",
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
