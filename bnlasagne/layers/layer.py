"""The batch normalization layer, and how to put it on another layer."""

import collections
import contextlib
import contextvars
import difflib
import inspect
import numbers
from functools import reduce
from operator import mul

import lasagne
import numpy as np
import theano
import theano.tensor as T

from ..averages.marker import track
from ..averages.schedules import CumulativeAverage
from ..graphs.flags import own_expressions
from ..graphs.switches import Switch
from ..kernels import expressions, ops
from ..networks.labels import label
from ..networks.setting import Setting, as_numbers, settable, value_of
from ..parallel import synchronized
from ..parallel.channel import channel_of
from .conventions import (
    Statistics,
    divisor_of,
    statistics_of,
    stored_std,
)

__all__ = [
    "Application",
    "BatchNormLayer",
    "applications",
    "batch_norm",
    "own_statistics",
]


Application = collections.namedtuple("Application", "layer, input, output")
Application.__doc__ = """A layer, what it was applied to, and what came out.

That is before the nonlinearity, unless the fused Ops include it.
"""

# Each thread has values of its own.
_recorders = contextvars.ContextVar("recorders", default=())


@contextlib.contextmanager
def applications():
    """Record all applications of :class:`BatchNormLayer`.

    Yields
    ------
    list of Application
        In order. Those by layers within other layers are included.
    """
    recorded = []
    before = _recorders.set(_recorders.get() + (recorded,))
    try:
        yield recorded
    finally:
        _recorders.reset(before)


# Within it, layers normalize by this process's batches alone.
own_statistics = Switch("own_statistics")


_UNIT_STD = lasagne.init.Constant(1)


class BatchNormLayer(lasagne.layers.Layer):
    """Normalize each channel of the input over the batch.

    .. math::
        y = f\\left(\\frac{x - \\mu}{\\sigma + \\epsilon} \\gamma
            + \\beta\\right)

    In training, :math:`\\mu` and :math:`\\sigma` are the mean and the standard
    deviation of the current batch, and stored running averages of both follow
    along. For testing (``deterministic=True``), they are the stored averages.

    Parameters
    ----------
    incoming : Layer or tuple
        The layer feeding into this layer, or the expected input shape. The
        sizes of the axes that are not normalized over must be known.
    axes : None, 'auto', int or tuple of int
        The axis or axes to normalize over; negative ones count from the end.
        By default, all but the second: the batch for dense layers, the batch
        and all positions for convolutional layers.
    epsilon : float or scalar Theano variable
        Small constant added to the standard deviation before dividing by it.
    alpha : float, scalar Theano variable or CumulativeAverage
        Weight of the current batch in the running averages, from 0 to 1.
        Pass a shared variable to change it without compiling again.
    nonlinearity : callable or None
        Applied to the normalized, scaled and shifted input; by default, or if
        None, it is the identity.
    beta : Theano shared variable, array, number, callable or None
        Initial value of the shift :math:`\\beta`; None leaves it out. All
        four parameters have the input's number of dimensions and are of
        size 1 along the `axes`; an array may also leave these out.
    gamma : Theano shared variable, array, number, callable or None
        Initial value of the scale :math:`\\gamma`; None leaves it out.
    mean : Theano shared variable, array, number or callable
        Initial value of the running average of the batch means.
    std : Theano shared variable, array, number or callable
        Initial value of the running average of the batch standard deviations.
    r_max : float or scalar Theano variable
        Batch renormalization [2]_: how far, as a factor of 1 or more, the
        statistics of the batch may be corrected towards the running averages
        in scale. By default not at all. Pass a shared variable to let it grow
        during training.
    d_max : float or scalar Theano variable
        The same for the mean: how many standard deviations.
    inv_std : array, number, callable, another layer's `inv_std` or None
        In place of `std`, as for the layer of Lasagne's later versions: what
        deviations from the mean are multiplied by, ``1 / (std + epsilon)``.
        Given another layer's `inv_std`, the two layers share their `std`.
    comm : mpi4py communicator or None
        Processes that share each batch, such as :func:`bnlasagne.world` has
        them: the statistics are then those of all their parts together. By
        default, of this process alone.
    **kwargs
        Passed on to :class:`lasagne.layers.Layer`, such as ``name``.

    Raises
    ------
    ValueError
        If an axis is out of range or named twice, if the size of an axis that
        is not normalized over is unknown, if a parameter's value does not
        have the right shape, or another number is out of range.
    TypeError
        If an argument is of another type than stated.

    Attributes
    ----------
    mean, std, beta, gamma : Theano shared variables, or None where left out
        In the order of :meth:`get_params`. `mean` and `std` are neither
        trainable nor regularizable and are tagged ``batch_norm_stat``; `beta`
        is trainable and regularizable; `gamma` is trainable only.
    inv_std : Theano expression
        ``1 / (std + epsilon)``. Its method ``get_value()`` returns its value;
        it cannot be set. See :meth:`set_statistics`.
    channel : Channel or None
        To the other ranks, where there are any.
    frozen : bool
        Whether outputs that are built from now on are normalized by the stored
        statistics and leave them as they are, in training, too, and whatever
        the flags. See :func:`freeze_batch_norm`.

    Notes
    -----
    The standard deviation is the biased one (divided by the number of
    values), in training and in the running averages alike. Where it is zero,
    the gradient with respect to it is taken to be zero.

    The averages are updated by every Theano function that computes an output
    that was built for training, or a gradient through one; nothing has to be
    passed to :func:`theano.function`. If the layer was applied several times
    in what a function computes, the updates follow each other in the order in
    which the layer was applied. An update that is passed for `mean` or `std`
    explicitly replaces them, and ``no_default_updates=True`` turns them off.
    A batch with statistics that are not finite, or with fewer than two values
    per channel, leaves the averages of the layer as they are.
    :func:`get_batch_norm_updates` collects the updates for those who would
    rather pass them.

    With batch renormalization, training computes

    .. math::
        y = f\\left(\\left(\\frac{x - \\mu}{\\sigma + \\epsilon} r
            + d\\right) \\gamma + \\beta\\right)

    with :math:`r`, the ratio of the batch's :math:`\\sigma + \\epsilon` to
    that of the running averages, clipped to [1 / `r_max`, `r_max`], and
    :math:`d`, the difference of the means divided by the latter, clipped to
    [-`d_max`, `d_max`]. Gradients take both to be constants. The averages
    are those before the function is called.

    With `comm`, each rank has its part of the batch, of any size, and all
    must build the same layers and call the same functions. Statistics,
    running averages and gradients with respect to the input are then what one
    process would have with the whole batch, for a loss that is the sum of the
    ranks' losses; gradients with respect to parameters are those by this
    rank's part, to be put together by :func:`average_gradients`. One message
    is exchanged forward and one backward. A communicator with one process
    makes no difference.

    References
    ----------
    .. [1] Ioffe, Sergey and Szegedy, Christian (2015): Batch Normalization:
           Accelerating Deep Network Training by Reducing Internal Covariate
           Shift, section 3. http://arxiv.org/abs/1502.03167.
    .. [2] Ioffe, Sergey (2017): Batch Renormalization: Towards Reducing
           Minibatch Dependence in Batch-Normalized Models, section 3 and
           algorithm 1. http://arxiv.org/abs/1702.03275.

    Examples
    --------
    >>> from lasagne.layers import InputLayer, get_output
    >>> from bnlasagne import BatchNormLayer
    >>> layer = BatchNormLayer(InputLayer((None, 3)), alpha=0.1)
    >>> [param.name for param in layer.get_params()]
    ['mean', 'std', 'beta', 'gamma']
    >>> output = get_output(layer)
    >>> test_output = get_output(layer, deterministic=True)
    """

    # What pickled layers of the original class, or of older versions of this
    # one, do not have.
    epsilon = 0.01
    alpha = 0.5
    nonlinearity = staticmethod(lasagne.nonlinearities.identity)
    beta = gamma = None
    r_max, d_max = 1, 0
    channel = None
    frozen = False

    def __init__(self, incoming, axes=None, epsilon=0.01, alpha=0.5,
                 nonlinearity=None, beta=lasagne.init.Constant(0),
                 gamma=lasagne.init.Constant(1),
                 mean=lasagne.init.Constant(0), std=_UNIT_STD,
                 r_max=1, d_max=0, comm=None, inv_std=None, **kwargs):
        _check_incoming(incoming)
        with _named_arguments(kwargs):
            super().__init__(incoming, **kwargs)
        self.axes = self._check_axes(axes)
        self.epsilon = self._check_scalar("epsilon", epsilon, 0, np.inf)
        if isinstance(alpha, CumulativeAverage):
            alpha = alpha.alpha
        self.alpha = self._check_scalar("alpha", alpha, 0, 1)
        self.r_max = self._check_scalar("r_max", r_max, 1, np.inf)
        self.d_max = self._check_scalar("d_max", d_max, 0, np.inf)
        self.nonlinearity = self._check_nonlinearity(nonlinearity)
        self.channel = channel_of(comm, label(self))
        self.mean = self._add_param(
            "mean", mean, trainable=False, regularizable=False,
            batch_norm_stat=True)
        if inv_std is not None:
            if std is not _UNIT_STD:
                raise ValueError("%s: std and inv_std cannot both be given. "
                                 "Leave out one." % label(self))
            std = self._std_of(inv_std)
        self.std = self._add_param(
            "std", std, trainable=False, regularizable=False,
            batch_norm_stat=True)
        self.beta = None if beta is None else self._add_param(
            "beta", beta, trainable=True, regularizable=True)
        self.gamma = None if gamma is None else self._add_param(
            "gamma", gamma, trainable=True, regularizable=False)

    def get_output_for(self, input, deterministic=False,
                       batch_norm_use_averages=None,
                       batch_norm_update_averages=None, **kwargs):
        """Normalize an input.

        Parameters
        ----------
        input : Theano variable
            Of the shape that the layer was built for.
        deterministic : bool
            Whether the output is for testing.
        batch_norm_use_averages : bool or None
            Whether to normalize by the stored averages, rather than by the
            statistics of `input`. By default, as `deterministic` says.
        batch_norm_update_averages : bool, 'explicit' or None
            Whether functions that compute the output update the stored
            averages. By default, if not `deterministic`. 'explicit': only
            those that the updates are passed to which
            :func:`get_batch_norm_updates` collects from the output.

        Returns
        -------
        Theano variable
            Of the shape of `input`.

        Raises
        ------
        ValueError
            If `input` has a wrong number of dimensions, averages are to be
            updated that are no shared variables, or a flag is a wrong word.
        TypeError
            If a flag is no truth value, or if the name of another keyword
            argument looks like a misspelled flag.

        Notes
        -----
        A frozen layer uses its averages and does not update them.
        """
        _check_flags(self, kwargs, deterministic=deterministic,
                     batch_norm_use_averages=batch_norm_use_averages)
        use, update = self._flags(deterministic, batch_norm_use_averages,
                                  batch_norm_update_averages)
        with own_expressions(test_values=True):
            x = self._prepare(input)
            output = self._apply(x, use, update)
        for recorded in _recorders.get():
            recorded.append(Application(self, x, output))
        return output if self._rectifies() else self.nonlinearity(output)

    def _apply(self, x, use, update):
        """The normalized input, with what its application leaves in a graph.

        Before the nonlinearity, so that its shape is that of the input; but
        rectified, as the fused Ops rectify in passing.
        """
        params = [self.gamma, self.beta]
        for param in _present(self.mean, self.std, *params):
            self._check_axes_of(param)
        found = None
        if use:
            output = self._normalize(x, self.mean, self.std, *params)
            if update:
                found = self._statistics(x)
        elif self._renormalizes():
            found = self._normalize_batch(x, None, None)[1:]
            output = self._normalize_batch(
                x, *self._corrected(*found[:2], *params))[0]
        else:
            output, *found = self._normalize_batch(x, *params)
        if found:
            output = self._track(output, x, params, found, not use, update)
        return output

    def get_statistics(self, epsilon=None):
        """The stored averages, in this layer's and in others' conventions.

        Parameters
        ----------
        epsilon : number or None
            The constant of the layer that they go to: `std` and `var` are then
            such that its deterministic output, with `epsilon` added to the
            standard deviation or to the variance, is that of this layer. By
            default, `std` is what is stored, and `var` its square.

        Returns
        -------
        namedtuple (mean, std, var, inv_std) of arrays
            Of the shape of the input without the `axes`. `inv_std` is what
            deviations from the mean are multiplied by.

        Raises
        ------
        ValueError
            If `epsilon` is no finite number from zero on, or the averages are
            expressions that have no value of their own.

        Notes
        -----
        Where the layer divides by less than the root of the other's
        `epsilon`, no variance is small enough, and `var` is negative. The
        other layer's sum of both is right nonetheless.

        See also
        --------
        set_statistics : The other way.

        Examples
        --------
        >>> from bnlasagne import BatchNormLayer
        >>> layer = BatchNormLayer((None, 2), epsilon=0.5, std=1.5)
        >>> layer.get_statistics().std.tolist()
        [1.5, 1.5]
        >>> layer.get_statistics(epsilon=1).var.tolist()
        [3.0, 3.0]
        """
        mean, std = (self._value(name).reshape(self._short_shape())
                     for name in ("mean", "std"))
        with self._named_errors():
            return statistics_of(mean, std, float(self._value("epsilon")),
                                 epsilon)

    def set_statistics(self, mean, std=None, var=None, inv_std=None,
                       epsilon=None):
        """Set the stored averages to those of another layer, or of data.

        Parameters
        ----------
        mean : array or number
            Means. Arrays may be of the shape of the parameters, or leave out
            the `axes`.
        std, var, inv_std : array or number
            One of them: standard deviations, variances, or inverse standard
            deviations as of Lasagne's later layer.
        epsilon : number or None
            The constant that the layer which they come from adds to `std`, or
            to `var`: the deterministic output is then that layer's, to
            rounding. `inv_std` has it in it, whatever is given here. By
            default, they are taken for statistics of data, to which this layer
            adds its own `epsilon`.

        Raises
        ------
        ValueError
            If not one of `std`, `var` and `inv_std` is given, one is of the
            wrong shape, not finite, or negative; if what was divided by is so
            much smaller than this layer's `epsilon` that their difference
            would not be precise to 1e-5; or if the averages are expressions.
            Nothing is changed then.
        TypeError
            If something is not numeric.

        Notes
        -----
        What is stored is ``sqrt(var + epsilon) - self.epsilon``, say, which
        is negative where that layer divides by less than this layer's
        `epsilon`. The output is right nonetheless.

        What does not carry over is how a layer trains. This one adds its own
        `epsilon` to the standard deviation of a batch, and its running
        averages follow that, the biased one, from the stored value on.
        Lasagne's later layer averages inverse standard deviations, and PyTorch
        unbiased variances (divided by the number of values less one); both,
        and Keras, add their epsilon to the variance.

        See also
        --------
        get_statistics : The other way.

        Examples
        --------
        >>> from bnlasagne import BatchNormLayer
        >>> layer = BatchNormLayer((None, 2), epsilon=0.5)
        >>> layer.set_statistics(mean=[1, 2], var=[3, 8], epsilon=1)
        >>> layer.std.get_value().tolist()
        [[1.5, 2.5]]
        """
        setting = Setting()
        setting.add_all(
            self.converted_statistics(mean, std, var, inv_std, epsilon))
        setting.carry_out()

    def converted_statistics(self, mean, std=None, var=None, inv_std=None,
                             epsilon=None):
        """What :meth:`set_statistics` sets, checked.

        Returns
        -------
        list of (Theano shared variable, float64 array)
        """
        for name, param in (("mean", self.mean), ("std", self.std)):
            if not isinstance(param, theano.compile.SharedVariable):
                raise ValueError("%s: %s is an expression and cannot be set. "
                                 "Set what it is made of." %
                                 (label(self), name))
        mean, std, var, inv_std = (
            None if value is None else self._full(name, value)
            for name, value in zip(Statistics._fields,
                                   (mean, std, var, inv_std)))
        own_epsilon = float(self._value("epsilon"))
        with self._named_errors():
            if mean is None or not np.all(np.isfinite(mean)):
                raise ValueError("mean must be finite, got %s" % (mean,))
            divisor = divisor_of(std, var, inv_std, epsilon, own_epsilon)
            stored = stored_std(divisor, own_epsilon, self.std.dtype)
        return [(self.mean, mean), (self.std, stored)]

    def normalize_as_in_training(self, x, mean, std, *params):
        """Normalize a part of a batch by the statistics of all of it.

        Parameters
        ----------
        x : Theano variable
            The part.
        mean, std : Theano variables
            Statistics of the batch.
        *params : Theano variables
            In the place of `gamma` and `beta`, those that are not None.

        Returns
        -------
        Theano variable
            Of the shape of `x`, before the nonlinearity (but rectified). Its
            gradients with respect to `x`, the statistics and the parameters
            take these to be independent.
        """
        params = iter(params)
        gamma, beta = (None if param is None else next(params)
                       for param in (self.gamma, self.beta))
        if self._renormalizes():
            gamma, beta = self._corrected(mean, std, gamma, beta)
        return self._normalize(x, mean, std, gamma, beta)

    def set_values(self, **values):
        """Set parameters to arrays that may leave out the `axes`.

        Parameters
        ----------
        **values : array or number
            By the parameters' names: `mean`, `std`, `beta`, `gamma`. Arrays
            are of the shape of the parameters, or leave out the `axes`: for a
            dense or convolutional layer, they are vectors with one value per
            channel, as PyTorch and Keras have them.

        Raises
        ------
        ValueError
            If the layer has no such parameter, if it is an expression, or if
            an array is of the wrong shape. Nothing is changed then.
        TypeError
            If something is not numeric.

        Examples
        --------
        >>> from bnlasagne import BatchNormLayer
        >>> layer = BatchNormLayer((None, 2, 8, 8))
        >>> layer.set_values(gamma=[1, 2], beta=0.5)
        >>> layer.gamma.get_value().shape
        (1, 2, 1, 1)
        """
        setting = Setting()
        for name, value in values.items():
            if name not in _PARAMS or getattr(self, name) is None:
                raise ValueError(
                    "%s: there is no parameter %s to set. It has %s. For "
                    "variances and inverse standard deviations, use "
                    "set_statistics()." % (label(self), name, ", ".join(
                        each for each in _PARAMS
                        if getattr(self, each) is not None)))
            param = settable(getattr(self, name),
                             "%s: %s" % (label(self), name))
            setting.add(param, self._full(name, value))
        setting.carry_out()

    @property
    def inv_std(self):
        with own_expressions(test_values=True):
            std, = self._aligned(T.as_tensor_variable(self.std))
            inverse = 1 / (std + T.cast(self.epsilon, std.dtype))
        # A layer that gets it as its `inv_std` shares this layer's `std`.
        # Lasagne's later layer has a shared variable here, with two methods.
        inverse.name = self._full_name("inv_std")
        inverse.tag.of_layer = self
        inverse.get_value = self._get_inv_std
        inverse.set_value = self._set_inv_std
        return inverse

    @inv_std.setter
    def inv_std(self, value):
        self._set_inv_std(value)

    def _get_inv_std(self, borrow=False, return_internal_type=False):
        return (1 / (self._value("std") + self._value("epsilon"))).astype(
            self.std.dtype)

    def _set_inv_std(self, value, borrow=False):
        raise AttributeError(
            "%s: inv_std cannot be set, as std is what is stored. Use "
            "set_statistics(mean, inv_std=...), or set_lasagne_values() for "
            "the parameters of a whole network." % label(self))

    def _std_of(self, inv_std):
        """The standard deviation for the argument `inv_std`."""
        if isinstance(inv_std, theano.Variable):
            other = getattr(inv_std.tag, "of_layer", None)
            if other is None or other.epsilon is not self.epsilon and (
                    other.epsilon != self.epsilon):
                raise ValueError(
                    "%s: inv_std must be an array, a number, a callable, or "
                    "the inv_std of a BatchNormLayer with the same epsilon, "
                    "got %s. To share or give a standard deviation, pass "
                    "std=." % (label(self), inv_std))
            return other.std
        value = self._initial_value("inv_std", inv_std)
        with self._named_errors():
            return stored_std(
                divisor_of(None, None, np.asarray(value, "float64"), None,
                           self.epsilon),
                float(self._value("epsilon")), theano.config.floatX)

    def _flags(self, deterministic, use, update):
        """Whether to use averages, and whether and how to update them."""
        if not (_is_flag(update) or update == "explicit"):
            raise ValueError(
                "%s: batch_norm_update_averages must be True, False, None or "
                "'explicit', got %r." % (label(self), update))
        if self.frozen:
            return True, False
        return (deterministic if use is None else use,
                not deterministic if update is None else update)

    # The output, from whichever can be used of the fused Ops and the plain
    # expressions.

    def _normalize_batch(self, x, gamma, beta):
        """The output, and mean, standard deviation and size of the batch."""
        if self._is_synchronized():
            return synchronized.normalize_batch(
                x, gamma, beta, self.epsilon, self.axes, self.channel,
                self._sized_label(), self._rectifies())
        return self._normalize_own_batch(x, gamma, beta) + (self._count(x),)

    def _normalize_own_batch(self, x, gamma, beta):
        if not ops.are_usable(x, *_present(gamma, beta)):
            output, mean, std = expressions.normalize_batch(
                x, *self._aligned(gamma, beta), self.epsilon, self.axes)
            return self._rectified(output), mean, std
        return ops.normalize_batch(
            x, gamma, beta, self.epsilon, self.axes, self._rectifies())

    def _statistics(self, x):
        """Mean, standard deviation and size of the batch."""
        if self._is_synchronized():
            return synchronized.statistics(x, self.axes, self.channel,
                                           self._sized_label())
        return expressions.batch_statistics(x, self.axes) + (self._count(x),)

    def _is_synchronized(self):
        return self.channel is not None and not own_statistics.is_on

    def _count(self, x):
        """Number of values per channel."""
        return reduce(mul, (x.shape[axis] for axis in self.axes))

    def _sized_label(self):
        return "%s of %d channels" % (label(self), np.prod(self.param_shape()))

    def _normalize(self, x, mean, std, gamma, beta):
        """The output, by the given statistics."""
        if not ops.are_usable(x, mean, std, *_present(gamma, beta)):
            return self._rectified(expressions.normalize(
                x, *self._aligned(mean, std, gamma, beta), self.epsilon))
        return ops.normalize(x, mean, std, gamma, beta, self.epsilon,
                             self.axes, self._rectifies())

    def _rectifies(self):
        return self.nonlinearity in (lasagne.nonlinearities.rectify,
                                     T.nnet.relu)

    def _rectified(self, output):
        return self.nonlinearity(output) if self._rectifies() else output

    # Batch renormalization

    def _renormalizes(self):
        return self.r_max != 1 or self.d_max != 0

    def _corrected(self, batch_mean, batch_std, gamma, beta):
        """Scale and shift with the correction towards the averages in them.

        So the fused Ops, which know nothing of it, do the rest.
        """
        mean, std, r_max, d_max, epsilon = (
            T.cast(value, batch_std.dtype) for value in (
                *self._aligned(self.mean, self.std),
                self.r_max, self.d_max, self.epsilon))
        r = T.clip((batch_std + epsilon) / (std + epsilon), 1 / r_max, r_max)
        d = T.clip((batch_mean - mean) / (std + epsilon), -d_max, d_max)
        r, d = map(theano.gradient.disconnected_grad, (r, d))
        if gamma is not None:
            r, d = r * gamma, d * gamma
        return r, d if beta is None else d + beta

    def _track(self, output, x, params, found, by_batch, update):
        """Tie the application to the output, with averages to update."""
        averages = (self.mean, self.std) if update else ()
        for average in averages:
            if not isinstance(average, theano.compile.SharedVariable):
                raise ValueError(
                    "%s cannot update its running averages: %s is an "
                    "expression. Give a shared variable for it, or pass "
                    "batch_norm_update_averages=False to get_output()."
                    % (label(self), average))
        *statistics, count = found
        return track(output, x, _present(*params), statistics, count, self,
                     averages, self.alpha, by_batch,
                     automatic=update != "explicit")

    def _prepare(self, input):
        """The input as a floating-point tensor, checked."""
        x = T.as_tensor_variable(input)
        if x.ndim != len(self.input_shape):
            raise ValueError(
                "%s expects an input with %d dimensions, like its input_shape "
                "%s, but got one with %d."
                % (label(self), len(self.input_shape), self.input_shape,
                   x.ndim))
        if x.dtype in T.discrete_dtypes:
            x = x.astype(theano.config.floatX)
        return x

    def _aligned(self, *params):
        """Parameters, broadcastable where they must be; None stays None."""
        return [None if param is None
                else T.patternbroadcast(param, self._broadcastable())
                for param in params]

    def _check_axes_of(self, param):
        """Raise an error if a parameter does not go with the axes."""
        if not isinstance(param, theano.compile.SharedVariable):
            return
        shape = np.shape(param.get_value(
            borrow=True, return_internal_type=True))
        if any(shape[axis] != 1 for axis in self.axes):
            raise ValueError(
                "%s: parameter %s has shape %s, but with axes=%s it must have "
                "size 1 on these. Pass axes= when the layer is made, and do "
                "not change layer.axes afterwards."
                % (label(self), param, shape, tuple(self.axes)))

    # Checks of the constructor's arguments

    def _check_axes(self, axes):
        ndim = len(self.input_shape)
        if axes is None or (isinstance(axes, str) and axes == "auto"):
            axes = (0,) + tuple(range(2, ndim))
        elif isinstance(axes, numbers.Integral):
            axes = (axes,)
        elif (not isinstance(axes, (tuple, list)) or
              not all(isinstance(axis, numbers.Integral) for axis in axes)):
            raise TypeError("%s: axes must be None, 'auto', an int or a tuple "
                            "of int, got %r." % (label(self), axes))
        return _positive_axes(axes, ndim, label(self))

    def _check_scalar(self, name, value, least, largest):
        if isinstance(value, theano.Variable):
            if value.ndim != 0:
                raise ValueError("%s: %s must be a scalar, got a Theano "
                                 "variable with %d dimensions."
                                 % (label(self), name, value.ndim))
            return value
        if not isinstance(value, (numbers.Real, np.ndarray)):
            raise TypeError("%s: %s must be a number or a scalar Theano "
                            "variable, got %r." % (label(self), name, value))
        if np.ndim(value) != 0 or not least <= value <= largest:
            raise ValueError("%s: %s must be a number from %s to %s, got %r."
                             % (label(self), name, least, largest, value))
        return float(value)

    def _check_nonlinearity(self, nonlinearity):
        if nonlinearity is None:
            return lasagne.nonlinearities.identity
        if not callable(nonlinearity):
            raise TypeError("%s: nonlinearity must be None or a callable such "
                            "as lasagne.nonlinearities.rectify, got %r."
                            % (label(self), nonlinearity))
        return nonlinearity

    # Parameters

    def _add_param(self, name, spec, **tags):
        """Add a parameter and return it."""
        return self.add_param(self._shared(name, spec), self.param_shape(),
                              name, **tags)

    def _shared(self, name, spec):
        """A shared variable for a parameter's initial value.

        Its type does not say that sizes along the axes are 1. Otherwise,
        Theano would refuse updates and replacements that are made of plain
        shared variables, such as the state of an optimizer.
        """
        if isinstance(spec, theano.Variable):
            if spec.ndim != len(self.input_shape):
                raise ValueError(
                    "%s: %s must have %d dimensions, like the input, but the "
                    "Theano variable given has %d."
                    % (label(self), name, len(self.input_shape), spec.ndim))
            return spec
        return theano.shared(self._initial_value(name, spec),
                             self._full_name(name))

    def _full_name(self, name):
        return name if self.name is None else self.name + "." + name

    def _initial_value(self, name, spec):
        """A parameter's initial value, in its full shape."""
        value = spec(self.param_shape()) if callable(spec) else spec
        if not np.issubdtype(np.asarray(value).dtype, np.number):
            raise TypeError("%s: %s must be an array, a number, a Theano "
                            "shared variable or a callable that returns an "
                            "array, got %r." % (label(self), name, spec))
        return self._full(name, value, theano.config.floatX)

    def _full(self, name, value, dtype="float64"):
        """An array of numbers, in the full shape of the parameters."""
        value = as_numbers("%s: %s" % (label(self), name), value)
        value = value.astype(dtype)
        shape, short = self.param_shape(), self._short_shape()
        if value.shape not in (shape, short, ()):
            raise ValueError("%s: %s must have shape %s or %s, got %s."
                             % (label(self), name, shape, short, value.shape))
        if value.ndim == 0:
            return np.full(shape, value)
        return value.reshape(shape)

    def _value(self, name):
        """The value of an attribute, which may be an expression."""
        return value_of(getattr(self, name), "%s: %s" % (label(self), name))

    @contextlib.contextmanager
    def _named_errors(self):
        """Errors about values name the layer."""
        try:
            yield
        except ValueError as error:
            raise ValueError("%s: %s." % (label(self), error)) from None

    def _short_shape(self):
        return tuple(size for axis, size in enumerate(self.param_shape())
                     if axis not in self.axes)

    def param_shape(self):
        shape = tuple(1 if axis in self.axes else size
                      for axis, size in enumerate(self.input_shape))
        for axis, size in enumerate(shape):
            if size is None:
                raise ValueError(
                    "%s needs specified input sizes for all axes not "
                    "normalized over, but axis %d of the input shape %s is "
                    "None. Give its size, or name the axis in axes=%s."
                    % (label(self), axis, self.input_shape,
                       tuple(sorted(self.axes + (axis,)))))
        return shape

    def _broadcastable(self):
        return tuple(axis in self.axes
                     for axis in range(len(self.input_shape)))


def _present(*variables):
    return [variable for variable in variables if variable is not None]


_PARAMS = "mean", "std", "beta", "gamma"

# Arguments of other frameworks' layers, and what to write here.
_OTHER_NAMES = {
    "momentum": "alpha, the weight of the new batch: 1 - momentum in Keras, "
                "momentum itself in PyTorch",
    "eps": "epsilon, which is added to the standard deviation, not to the "
           "variance",
    "axis": "axes, the axes to normalize over (the others are channels)",
    "center": "beta=None to leave out the shift",
    "scale": "gamma=None to leave out the scale",
    "affine": "beta=None, gamma=None to leave out shift and scale",
    "track_running_stats": "get_output(..., batch_norm_update_averages=False)",
    "var": "std; or set_statistics(mean, var=...) on the layer",
    "decay": "alpha, the weight of the new batch: 1 - decay",
    "mode": "nothing for it: there is one way to compute",
    "trainable": "nothing for it; see freeze_batch_norm(layer, params=True)",
}


@contextlib.contextmanager
def _named_arguments(kwargs):
    """Have the error about an unknown argument say which one to use."""
    try:
        yield
    except TypeError as error:
        for name in kwargs:
            if "unexpected keyword argument '%s'" % name in str(error):
                raise TypeError("BatchNormLayer has no argument %s. %s" % (
                    name, _what_to_pass(name))) from None
        raise


def _what_to_pass(name):
    if name in _OTHER_NAMES:
        return "Pass %s." % _OTHER_NAMES[name]
    names = [each for each in inspect.signature(BatchNormLayer).parameters
             if each not in ("incoming", "kwargs")] + ["name"]
    meant = difflib.get_close_matches(name, names, 1)
    return "Did you mean %s?" % meant[0] if meant else (
        "It has %s." % ", ".join(names))


_FLAGS = "batch_norm_use_averages", "batch_norm_update_averages"


def _check_flags(layer, others, **flags):
    """Raise an error for flags that are misspelled, or of a wrong type.

    They would change nothing, or the wrong thing, and nobody would notice.
    """
    for name in others:
        meant = _meant_by(name)
        if meant:
            raise TypeError("%s: there is no flag %s. Did you mean %s?"
                            % (label(layer), name, meant))
    for name, value in flags.items():
        if not _is_flag(value):
            raise TypeError(
                "%s: %s must be True or False, got %r. It says which output "
                "is built; to choose later, build both outputs."
                % (label(layer), name, value))


def _meant_by(name):
    """The flag that a keyword argument is likely to stand for, or None."""
    if name.replace("_", "").startswith("batchnorm") or (
            name.endswith("averages")):
        return " or ".join(difflib.get_close_matches(name, _FLAGS, 1)
                           or _FLAGS)
    # Other layers may have flags with names that are somewhat alike.
    return next(iter(difflib.get_close_matches(
        name, ["deterministic"], 1, cutoff=0.9)), None)


def _is_flag(value):
    return value is None or isinstance(
        value, (bool, np.bool_, numbers.Integral))


def _check_incoming(incoming):
    if not isinstance(incoming, (lasagne.layers.Layer, tuple)):
        raise TypeError("BatchNormLayer: incoming must be a Layer instance or "
                        "a tuple with the input shape, got %r." % (incoming,))


def _positive_axes(axes, ndim, label):
    """Axes counted from the start, in order; checked."""
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError("%s: axis %d is out of range for an input with "
                             "%d dimensions." % (label, axis, ndim))
    positive = tuple(sorted(int(axis) % ndim for axis in axes))
    if not positive:
        raise ValueError("%s: axes must name at least one axis." % label)
    if len(set(positive)) < len(positive):
        raise ValueError("%s: axes %s name an axis twice."
                         % (label, tuple(axes)))
    return positive


def batch_norm(layer, **kwargs):
    """Apply batch normalization to an existing layer.

    The :class:`BatchNormLayer` goes between the layer's linear part and its
    nonlinearity: it takes over the nonlinearity, and the bias is removed, as
    the normalization would undo it and `beta` takes its place.

    Parameters
    ----------
    layer : Layer
        The layer to normalize the output of. It is changed for good.
    **kwargs
        Passed on to :class:`BatchNormLayer`. A `nonlinearity` given here is
        used in place of the layer's own, and a `name` in place of the layer's
        name with ``_bn`` appended.

    Returns
    -------
    BatchNormLayer
        Stacked on `layer`. Use it in the place of `layer`.

    Raises
    ------
    TypeError
        If `layer` is no layer, or one with a recurrence.
    ValueError
        If an earlier call took over the layer's nonlinearity, or an argument
        does not fit the layer. As with all errors, `layer` is as it was.

    Notes
    -----
    A bias that is shared with other layers is removed from this layer only. A
    bias that differs from position to position (``untie_biases=True``, locally
    connected layers) is removed as well, although the normalization would undo
    its mean over the positions only. To keep it, stack a `BatchNormLayer` on
    the layer by hand.

    References
    ----------
    .. [1] Ioffe, Sergey and Szegedy, Christian (2015): Batch Normalization:
           Accelerating Deep Network Training by Reducing Internal Covariate
           Shift, section 3.2. http://arxiv.org/abs/1502.03167.

    Examples
    --------
    >>> from lasagne.layers import DenseLayer, InputLayer
    >>> from lasagne.nonlinearities import rectify
    >>> from bnlasagne import batch_norm
    >>> dense = DenseLayer(InputLayer((None, 8)), 5, nonlinearity=rectify)
    >>> layer = batch_norm(dense)
    >>> layer.nonlinearity is rectify
    True
    >>> dense.b is None
    True
    """
    _check_wrappable(layer)
    name = getattr(layer, "name", None)
    if kwargs.get("name") is None and name is not None:
        kwargs["name"] = name + "_bn"
    wrapper = BatchNormLayer(layer, **kwargs)
    _remove_bias(layer)
    nonlinearity = _remove_nonlinearity(layer, wrapper)
    if "nonlinearity" not in kwargs:
        wrapper.nonlinearity = nonlinearity
    return wrapper


def _check_wrappable(layer):
    if not isinstance(layer, lasagne.layers.Layer):
        raise TypeError("batch_norm() expects a Layer instance such as a "
                        "DenseLayer, got %r." % (layer,))
    if isinstance(layer, _recurrent_layers()):
        raise TypeError(
            "batch_norm() cannot wrap %s: its nonlinearity is inside of the "
            "recurrence, and its output is fed back to it. Normalize its "
            "input with BatchNormLayer(incoming, axes=(0, 1)) below it, or "
            "the input-to-hidden layer of a CustomRecurrentLayer with "
            "batch_norm()." % label(layer))
    wrapper = getattr(layer, "_normalized_by", None)
    if wrapper is not None:
        raise ValueError(
            "batch_norm() has wrapped %s before, and its nonlinearity has "
            "gone to %s. Use that one in its place; or stack another "
            "BatchNormLayer(layer, nonlinearity=...) on the layer."
            % (label(layer), wrapper))


def _recurrent_layers():
    """Lasagne's layers that feed their output back to themselves."""
    names = ("CustomRecurrentLayer", "LSTMLayer", "GRULayer")
    return tuple(getattr(lasagne.layers, name) for name in names
                 if hasattr(lasagne.layers, name))


def _remove_bias(layer):
    """Remove a layer's bias, where it has one."""
    bias = getattr(layer, "b", None)
    if bias is not None and bias in layer.params:
        del layer.params[bias]
        layer.b = None


def _remove_nonlinearity(layer, wrapper):
    """Make a layer linear and return the nonlinearity that it had."""
    identity = lasagne.nonlinearities.identity
    nonlinearity = getattr(layer, "nonlinearity", None)
    if nonlinearity is None or nonlinearity is identity:
        return identity
    layer.nonlinearity = identity
    # Tells a layer that lost its nonlinearity from one that never had any.
    layer._normalized_by = label(wrapper)
    return nonlinearity
