"""Load what earlier versions pickled, whose modules had other names."""

import sys
import types

from . import folding, population
from .folding.fold import Folding, fold_batch_norm
from .kernels import moments
from .layers.layer import BatchNormLayer
from .layers.wrapping import batch_norm
from .parallel import channel
from .population.population import PopulationStatistics

__all__ = []

vars(folding).update(Folding=Folding, fold_batch_norm=fold_batch_norm)
population.PopulationStatistics = PopulationStatistics

_layer = types.ModuleType("bnlasagne.layer")
vars(_layer).update(BatchNormLayer=BatchNormLayer, batch_norm=batch_norm)

sys.modules.update({
    "bnlasagne.communication": channel,
    "bnlasagne.layer": _layer,
    "bnlasagne.moments": moments,
})
