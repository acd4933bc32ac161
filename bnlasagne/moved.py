"""Load what earlier versions pickled, whose modules had other names."""

import sys
import types

from .averages.schedules import CumulativeAverage
from .folding.fold import Folding, fold_batch_norm
from .kernels.moments import Moments
from .layers.conventions import Statistics
from .layers.layer import BatchNormLayer
from .layers.wrapping import batch_norm
from .parallel.channel import RanksDisagree, channel_of_world
from .population.population import PopulationStatistics

__all__ = []

_MOVED = {
    "communication": [RanksDisagree, channel_of_world],
    "conventions": [Statistics],
    "folding": [Folding, fold_batch_norm],
    "layer": [BatchNormLayer, batch_norm],
    "moments": [Moments],
    "population": [PopulationStatistics],
    "schedules": [CumulativeAverage],
}

for _name, _objects in _MOVED.items():
    _name = "bnlasagne." + _name
    _module = sys.modules.setdefault(_name, types.ModuleType(_name))
    for _object in _objects:
        setattr(_module, _object.__name__, _object)
