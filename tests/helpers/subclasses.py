"""Subclasses of the batch normalization layer, as users write them."""

from bnlasagne import BatchNormLayer

import numpy as np


class Unchanged(BatchNormLayer):
    """Overrides a method, which makes no difference."""

    def get_output_for(self, input, **kwargs):
        return super().get_output_for(input, **kwargs)


class ByBatch(BatchNormLayer):
    """Normalizes by the batch, in tests as well."""

    def get_output_for(self, input, **kwargs):
        kwargs.update(batch_norm_use_averages=False,
                      batch_norm_update_averages=False)
        return super().get_output_for(input, **kwargs)


class Scaled(BatchNormLayer):
    """Has a parameter of its own."""

    def __init__(self, incoming, **kwargs):
        super().__init__(incoming, **kwargs)
        shape = self.input_shape[1:2]
        self.scale = self.add_param(np.full(shape, 2.0), shape, "scale")

    def get_output_for(self, input, **kwargs):
        return self.scale * super().get_output_for(input, **kwargs)
