"""Load what earlier versions pickled, whose modules lay elsewhere."""

import sys

from .kernels import moments
from .layers import layer
from .parallel import channel

__all__ = []

sys.modules.update({
    "bnlasagne.communication": channel,
    "bnlasagne.layer": layer,
    "bnlasagne.moments": moments,
})
