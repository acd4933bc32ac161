"""Read and set the statistics and parameters that a layer stores."""

import numpy as np
import theano.tensor as T

from ..networks.labels import label
from ..networks.setting import Setting, settable
from ..theano_tools.quiet_checks import quiet_checks
from .conventions import divisor_of, errors_of, statistics_of, stored_std
from .parameters import (
    full_name,
    in_full_shape,
    shape_without_axes,
    value_in,
)

__all__ = ["StoredValues"]


class StoredValues:
    """Read and set the parameters of a :class:`BatchNormLayer`."""

    def get_statistics(self, epsilon=None):
        """Return the running averages, in this layer's and other conventions.

        Parameters
        ----------
        epsilon : number or None
            Epsilon of another layer that gets the statistics. Its
            deterministic output is that of this layer if it adds `epsilon` to
            the returned `std`, or to `var`. By default, `std` is what this
            layer stores, and `var` is its square.

        Returns
        -------
        namedtuple (mean, std, var, inv_std) of arrays
            Their shape is that of the input without the `axes`. `inv_std` is
            ``1 / (self.std + self.epsilon)``.

        Raises
        ------
        ValueError
            If `epsilon` is no finite number from zero on, or the averages are
            expressions that depend on an input.

        Notes
        -----
        `var` is negative where this layer divides by less than the root of
        the other layer's `epsilon`. The sum ``var + epsilon`` is right
        nonetheless.

        See also
        --------
        set_statistics : The other direction.

        Examples
        --------
        >>> from bnlasagne import BatchNormLayer
        >>> layer = BatchNormLayer((None, 2), epsilon=0.5, std=1.5)
        >>> layer.get_statistics().std.tolist()
        [1.5, 1.5]
        >>> layer.get_statistics(epsilon=1).var.tolist()
        [3.0, 3.0]
        """
        shape = shape_without_axes(self)
        mean, std = (value_in(self, name).reshape(shape)
                     for name in ("mean", "std"))
        with errors_of(self):
            return statistics_of(mean, std, float(value_in(self, "epsilon")),
                                 epsilon)

    def set_statistics(self, mean, std=None, var=None, inv_std=None,
                       epsilon=None):
        """Set the running averages to statistics of another layer or of data.

        Parameters
        ----------
        mean : array or number
            Means. An array has the shape of the parameters, with or without
            the `axes`.
        std, var, inv_std : array or number
            Exactly one of them: standard deviations, variances, or the
            inverse standard deviations that Lasagne's later layer stores.
        epsilon : number or None
            Epsilon of the layer that the statistics come from, which adds it
            to `std` or `var`. The deterministic output is then the same, up
            to rounding. Not used with `inv_std`, which includes it. By
            default, the statistics are those of data.

        Raises
        ------
        ValueError
            If not exactly one of `std`, `var` and `inv_std` is given; if an
            array is of the wrong shape, not finite, or negative; if the
            divisor is so much smaller than this layer's `epsilon` that it
            would not be precise to 1e-5; or if the averages are expressions.
            Nothing is changed then.
        TypeError
            If a value is not numeric.

        Notes
        -----
        For variances, the stored `std` is
        ``sqrt(var + epsilon) - self.epsilon``. It is negative where the other
        layer divides by less than this layer's `epsilon`. The output is right
        nonetheless.

        Training does not continue identically. This layer adds its own
        `epsilon` to the standard deviation of a batch, and its running
        average moves from the stored value towards the biased standard
        deviation. Lasagne's later layer averages inverse standard deviations;
        PyTorch averages unbiased variances (divided by the number of values
        less one). Both, and Keras, add epsilon to the variance.

        See also
        --------
        get_statistics : The other direction.

        Examples
        --------
        >>> from bnlasagne import BatchNormLayer
        >>> layer = BatchNormLayer((None, 2), epsilon=0.5)
        >>> layer.set_statistics(mean=[1, 2], var=[3, 8], epsilon=1)
        >>> layer.std.get_value().tolist()
        [[1.5, 2.5]]
        """
        setting = Setting()
        for variable, value in self.converted_statistics(
                mean, std, var, inv_std, epsilon):
            setting.add(variable, value)
        setting.carry_out()

    def converted_statistics(self, mean, std=None, var=None, inv_std=None,
                             epsilon=None, text=None):
        """List the averages with the values that they would be set to.

        See :meth:`set_statistics`. Errors start with `text`.
        """
        for name in ("mean", "std"):
            settable(getattr(self, name), f"{label(self)}: {name}")
        given = {name: in_full_shape(self, name, value) for name, value in
                 (("mean", mean), ("std", std), ("var", var),
                  ("inv_std", inv_std)) if value is not None}
        own_epsilon = float(value_in(self, "epsilon"))
        with errors_of(self, text):
            mean = given.pop("mean", None)
            if mean is None or not np.all(np.isfinite(mean)):
                raise ValueError(f"mean must be finite, got {mean}")
            if len(given) != 1:
                raise ValueError("expected one of std, var and inv_std, got "
                                 + (" and ".join(given) or "none of them"))
            divisor = divisor_of(*given.popitem(), epsilon, own_epsilon)
            stored = stored_std(divisor, own_epsilon, self.std.dtype)
        return [(self.mean, mean), (self.std, stored)]

    def set_values(self, **values):
        """Set parameters to arrays that may leave out the `axes`.

        Parameters
        ----------
        **values : array or number
            By the parameters' names: `mean`, `std`, `beta`, `gamma`. An array
            has the shape of the parameters, with or without the `axes`.
            Without, those of a dense or convolutional layer are vectors with
            one value per channel, as in PyTorch and Keras.

        Raises
        ------
        ValueError
            If the layer has no such parameter, if it is an expression, or if
            an array is of the wrong shape. Nothing is changed then.
        TypeError
            If a value is not numeric.

        Examples
        --------
        >>> from bnlasagne import BatchNormLayer
        >>> layer = BatchNormLayer((None, 2, 8, 8))
        >>> layer.set_values(gamma=[1, 2], beta=0.5)
        >>> layer.gamma.get_value().shape
        (1, 2, 1, 1)
        """
        own = [name for name in ("mean", "std", "beta", "gamma")
               if getattr(self, name) is not None]
        setting = Setting()
        for name, value in values.items():
            if name not in own:
                raise ValueError(
                    f"{label(self)}: there is no parameter {name} to set. It "
                    f"has {', '.join(own)}. For variances and inverse "
                    "standard deviations, use set_statistics().")
            param = settable(getattr(self, name), f"{label(self)}: {name}")
            setting.add(param, in_full_shape(self, name, value))
        setting.carry_out()

    @property
    def inv_std(self):
        """The Theano expression ``1 / (std + epsilon)``."""
        with quiet_checks(test_values=True):
            std = T.patternbroadcast(
                T.as_tensor_variable(self.std),
                [axis in self.axes for axis in range(len(self.input_shape))])
            inverse = 1 / (std + T.cast(self.epsilon, std.dtype))
        inverse.name = full_name(self, "inv_std")
        # A layer that gets it as its `inv_std` shares this layer's `std`.
        inverse.tag.of_layer = self
        # Lasagne's later layer has a shared variable here.
        inverse.get_value = self._get_inv_std
        inverse.set_value = self._set_inv_std
        return inverse

    @inv_std.setter
    def inv_std(self, value):
        self._set_inv_std(value)

    def _get_inv_std(self, borrow=False, return_internal_type=False):
        divisor = value_in(self, "std") + value_in(self, "epsilon")
        return (1 / divisor).astype(self.std.dtype)

    def _set_inv_std(self, value, borrow=False):
        raise AttributeError(
            f"{label(self)}: inv_std cannot be set, because the layer "
            "stores std. Use set_statistics(mean, inv_std=...), or "
            "set_lasagne_values() for the parameters of a whole network.")
