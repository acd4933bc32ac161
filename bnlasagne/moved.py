"""Load what earlier versions pickled, whose modules had other names."""

import sys
import types

from .kernels import moments
from .layers.layer import BatchNormLayer
from .layers.wrapping import batch_norm
from .parallel import channel

__all__ = []

_layer = types.ModuleType("bnlasagne.layer")
vars(_layer).update(BatchNormLayer=BatchNormLayer, batch_norm=batch_norm)

sys.modules.update({
    "bnlasagne.communication": channel,
    "bnlasagne.layer": _layer,
    "bnlasagne.moments": moments,
})
