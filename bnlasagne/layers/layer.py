"""Normalize the output of a layer: `BatchNormLayer`."""

import inspect
from functools import partial

import lasagne
import numpy as np
import theano.tensor as T

from ..averages.marker import TakenStatistics, mark
from ..averages.schedules import CumulativeAverage
from ..kernels import dispatch, expressions
from ..kernels.batch import Batch
from ..networks.labels import label
from ..parallel import synchronized
from ..parallel.channel import channel_of
from ..theano_tools.quiet_checks import quiet_checks
from ..theano_tools.switches import Switch
from . import checks, masks, renormalization
from .parameters import shared_param, std_from
from .stored import StoredValues

__all__ = ["BatchNormLayer", "without_ranks"]

# Within it, layers normalize by this rank's part of a batch alone. Population
# statistics switch it on: they pool the moments of all ranks themselves.
without_ranks = Switch("without_ranks")


class BatchNormLayer(StoredValues, lasagne.layers.Layer):
    """Normalize each channel of the input over the batch.

    .. math::
        y = f\\left(\\frac{x - \\mu}{\\sigma + \\epsilon} \\gamma
            + \\beta\\right)

    In training, :math:`\\mu` and :math:`\\sigma` are the mean and the standard
    deviation of the batch, and each batch moves the running averages of both.
    For testing (``deterministic=True``), they are the running averages.

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
        Weight of the current batch in the running averages, from 0 to 1:
        ``average = (1 - alpha) * average + alpha * batch``. Pass a shared
        variable to change it without compiling again.
    nonlinearity : callable or None
        Applied to the normalized, scaled and shifted input. None, the
        default, is the identity.
    beta : Theano shared variable, array, number, callable or None
        Initial value of the shift :math:`\\beta`; None leaves it out. All four
        parameters have the input's number of dimensions, and size 1 along the
        `axes`. An array may also leave these axes out.
    gamma : Theano shared variable, array, number, callable or None
        Initial value of the scale :math:`\\gamma`; None leaves it out.
    mean : Theano shared variable, array, number or callable
        Initial value of the running average of the batch means.
    std : Theano shared variable, array, number or callable
        Initial value of the running average of the batch standard deviations.
    r_max : float or scalar Theano variable
        Largest correction of the scale in batch renormalization, a
        factor of 1 or more. By default 1: no correction. Pass a shared
        variable to increase it during training.
    d_max : float or scalar Theano variable
        Largest correction of the mean, in standard deviations. By default 0.
    comm : mpi4py communicator or None
        The ranks that share each batch, as :func:`bnlasagne.world` returns
        them. Statistics are then those of the whole batch. By default, the
        batch is that of this process.
    inv_std : array, number, callable, another layer's `inv_std` or None
        Replaces `std`, as for the layer of Lasagne's later versions: initial
        value of ``1 / (std + epsilon)``. Given another layer's `inv_std`, the
        two layers share their `std`.
    mask_input : Layer, tuple or None
        A layer whose output tells which positions count: those where it is
        not zero. For sequences of unequal length, say, padding does not count.
        The mask has shape (batch,) or (batch, time, ...): its axes are the
        first of the `axes`, one or more. Or it has the input's number of
        dimensions, with size 1 along axes where it does not vary. By default,
        all positions count.
    virtual_batch_size : int or None
        Cut each batch along its first axis into virtual batches of so many
        examples, and normalize each by statistics of its own. By default, the
        batch is one.
    **kwargs
        Passed on to :class:`lasagne.layers.Layer`, such as ``name``.

    Raises
    ------
    ValueError
        If an axis is out of range or named twice, if the size of an axis that
        is not normalized over is unknown, if a parameter's value or the mask
        does not have the right shape, or another number is out of range.
    TypeError
        If an argument is of another type than stated, or unknown.

    Attributes
    ----------
    mean, std, beta, gamma : Theano shared variables, or None if left out
        In the order of :meth:`get_params`. `mean` and `std` are neither
        trainable nor regularizable and are tagged ``batch_norm_stat``; `beta`
        is trainable and regularizable; `gamma` is trainable only.
    inv_std : Theano expression
        ``1 / (std + epsilon)``, with a method ``get_value()``. It cannot be
        set; see :meth:`set_statistics`.
    channel : Channel or None
        Connects to the other ranks.
    frozen : bool
        Whether outputs that are built from now on use the running averages
        and leave them as they are, whatever the flags. See
        :func:`freeze_batch_norm`.

    Notes
    -----
    The standard deviation is the biased one (divided by the number of
    values), in training and in the running averages alike. Where it is zero,
    the gradient with respect to it is taken to be zero.

    Every Theano function that computes a training output, or a gradient
    through one, updates the running averages. Nothing has to be passed to
    :func:`theano.function`. If a function holds several applications of the
    layer, their updates follow each other in the order of the applications.
    An explicit update of `mean` or `std` replaces these, and
    ``no_default_updates=True`` turns them off.
    :func:`get_batch_norm_updates` collects them instead. A batch leaves the
    averages as they are if its statistics are not finite, or if it has fewer
    than two values per channel.

    With batch renormalization (Ioffe, 2017), training computes

    .. math::
        y = f\\left(\\left(\\frac{x - \\mu}{\\sigma + \\epsilon} r
            + d\\right) \\gamma + \\beta\\right)

    Here :math:`r` is the ratio of the batch's :math:`\\sigma + \\epsilon` to
    that of the running averages, clipped to [1 / `r_max`, `r_max`].
    :math:`d` is the difference of the means, divided by the
    :math:`\\sigma + \\epsilon` of the running averages and clipped to
    [-`d_max`, `d_max`]. Gradients take both to be constants. The averages
    are those before the function is called.

    With a mask, all of this is about the positions that count: statistics,
    gradients, running averages, and the two values that a batch must have to
    move them. At other positions, outputs and gradients with respect to the
    input are zero in training and testing, whatever the input holds there. A
    batch without any position that counts gives zeros. The layer has two
    :attr:`input_layers`, and :meth:`get_output_for` takes a list of two.

    With `virtual_batch_size`, which Hoffer et al. (2017) call ghost batch
    normalization, the examples that are left over at the end are a virtual
    batch of their own; but if they have a single value per channel, they
    belong to the virtual batch before. The running averages move as if the
    virtual batches had come one after the other, each with the weight `alpha`.
    For testing, a virtual batch size makes no difference.

    With `comm`, each rank has a part of the batch, of any size. All ranks
    must build the same layers and call the same functions. For a loss that is
    the sum of the ranks' losses, outputs, running averages and gradients with
    respect to the input are those of one process with the whole batch.
    Gradients with respect to parameters are those of this rank's part;
    :func:`average_gradients` combines them. The ranks exchange one message
    forward and one backward. A communicator of one process changes nothing.
    Virtual batches are cut from each rank's own part; then only the running
    averages take a message, and follow the virtual batches of all ranks, in
    the order of the ranks.

    References
    ----------
    .. [1] Ioffe, Sergey and Szegedy, Christian (2015): Batch Normalization:
           Accelerating Deep Network Training by Reducing Internal Covariate
           Shift, section 3. http://arxiv.org/abs/1502.03167.
    .. [2] Ioffe, Sergey (2017): Batch Renormalization: Towards Reducing
           Minibatch Dependence in Batch-Normalized Models, section 3 and
           algorithm 1. http://arxiv.org/abs/1702.03275.
    .. [3] Hoffer, Elad; Hubara, Itay; Soudry, Daniel (2017): Train longer,
           generalize better, algorithm 1. http://arxiv.org/abs/1705.08741.

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

    # For pickled layers of the original class and of older versions, which
    # lack these attributes.
    epsilon = 0.01
    alpha = 0.5
    nonlinearity = staticmethod(lasagne.nonlinearities.identity)
    beta = gamma = None
    r_max, d_max = 1, 0
    channel = None
    frozen = False
    virtual_batch_size = None

    def __init__(self, incoming, axes=None, epsilon=0.01, alpha=0.5,
                 nonlinearity=None, beta=lasagne.init.Constant(0),
                 gamma=lasagne.init.Constant(1),
                 mean=lasagne.init.Constant(0), std=lasagne.init.Constant(1),
                 r_max=1, d_max=0, comm=None, inv_std=None, *, mask_input=None,
                 virtual_batch_size=None, **kwargs):
        checks.check_incoming(incoming)
        if mask_input is not None:
            incoming = masks.incomings_with(self, incoming, mask_input)
            masks.make_masked(self)
        with checks.unknown_arguments_explained(BatchNormLayer, kwargs):
            super().__init__(incoming, **kwargs)
        if isinstance(alpha, CumulativeAverage):
            alpha = alpha.alpha
        self.axes = checks.checked_axes(self, axes)
        if mask_input is not None:
            masks.check_mask(self)
        self.virtual_batch_size = checks.checked_virtual_size(
            self, virtual_batch_size)
        self.epsilon = checks.checked_scalar(
            self, "epsilon", epsilon, 0, np.inf)
        self.alpha = checks.checked_scalar(self, "alpha", alpha, 0, 1)
        self.r_max = checks.checked_scalar(self, "r_max", r_max, 1, np.inf)
        self.d_max = checks.checked_scalar(self, "d_max", d_max, 0, np.inf)
        self.nonlinearity = checks.checked_nonlinearity(self, nonlinearity)
        self.channel = channel_of(comm, label(self))
        if inv_std is not None:
            parameters = inspect.signature(BatchNormLayer).parameters
            if std is not parameters["std"].default:
                raise ValueError(f"{label(self)}: std and inv_std cannot both "
                                 "be given. Leave out one.")
            std = std_from(self, inv_std)
        tags = {"trainable": False, "regularizable": False,
                "batch_norm_stat": True}
        self.mean = self._add_param("mean", mean, **tags)
        self.std = self._add_param("std", std, **tags)
        self.beta = None if beta is None else self._add_param(
            "beta", beta, trainable=True, regularizable=True)
        self.gamma = None if gamma is None else self._add_param(
            "gamma", gamma, trainable=True, regularizable=False)

    def param_shape(self):
        """Return the shape of the parameters: the input's, with 1 on `axes`.

        Raises
        ------
        ValueError
            If one of the other sizes is unknown.
        """
        shape = tuple(1 if axis in self.axes else size
                      for axis, size in enumerate(self.input_shape))
        for axis, size in enumerate(shape):
            if size is None:
                raise ValueError(
                    f"{label(self)} needs specified input sizes for all axes "
                    f"not normalized over, but axis {axis} of the input shape "
                    f"{self.input_shape} is None. Give its size, or name the "
                    f"axis in axes={tuple(sorted(self.axes + (axis,)))}.")
        return shape

    def _add_param(self, name, initial, **tags):
        return self.add_param(shared_param(self, name, initial),
                              self.param_shape(), name, **tags)

    def get_output_for(self, input, deterministic=False,
                       batch_norm_use_averages=None,
                       batch_norm_update_averages=None, **kwargs):
        """Normalize an input.

        Parameters
        ----------
        input : Theano variable or list of two
            Of the shape that the layer was built for. For a layer with a mask,
            the input and the mask.
        deterministic : bool
            Whether the output is for testing.
        batch_norm_use_averages : bool or None
            Whether to normalize by the running averages, rather than by the
            statistics of `input`. By default, `deterministic`.
        batch_norm_update_averages : bool, 'explicit' or None
            Whether functions that compute the output update the running
            averages. By default, ``not deterministic``. 'explicit': only
            functions that are given the updates, which
            :func:`get_batch_norm_updates` collects from the output.

        Returns
        -------
        Theano variable
            Of the shape of `input`.

        Raises
        ------
        ValueError
            If `input` has a wrong number of dimensions, or is not two
            variables for a layer with a mask; if running averages
            that are expressions would have to be updated, or if
            `batch_norm_update_averages` has another value than stated.
        TypeError
            If another flag is no truth value, or if the name of a keyword
            argument looks like a misspelled flag.

        Notes
        -----
        A frozen layer uses its running averages and does not update them,
        whatever the flags.
        """
        use, update = batch_norm_use_averages, batch_norm_update_averages
        checks.check_flags(self, deterministic, use, update, kwargs)
        if use is None:
            use = deterministic
        if update is None:
            update = not deterministic
        if self.frozen:
            use, update = True, False
        with quiet_checks(test_values=True):
            batch = self._batch(*masks.split_inputs(self, input))
            checks.check_params(self, update)
            taken = None
            if use:
                output = self._output_by(self.mean, self.std, batch,
                                         self.gamma, self.beta)
                if update:
                    taken = TakenStatistics(*synchronized.statistics(
                        batch, *self._channel_and_name()), normalizes=False)
            else:
                output, *statistics = self._output_and_statistics(batch)
                taken = TakenStatistics(*statistics, normalizes=True)
            # The marker computes nothing. A function with markers whose
            # `update` is True computes its outputs by the averages before,
            # and then moves them by one batch after another, in the order in
            # which this method was called.
            output = mark(output, self, batch, taken, update)
        return self._with_nonlinearity(output, batch)

    def normalize_as_in_training(self, x, mean, std, *params, mask=None):
        """Normalize a part of a batch by given statistics of the batch.

        Exact gradient accumulation calls this, for each micro-batch; see
        :mod:`bnlasagne.accumulation.exact_graph`.

        Parameters
        ----------
        x : Theano variable
            The part.
        mean, std : Theano variables
            Statistics of the whole batch. Gradients take them to be
            independent of `x`.
        *params : Theano variables
            Replace `gamma` and `beta`; only those that the layer has.
        mask : Theano variable or None
            Of the part, with the number of dimensions of `x`.

        Returns
        -------
        Theano variable
            Of the shape of `x`. A rectifier is applied, but no other
            nonlinearity.
        """
        params = iter(params)
        gamma, beta = (None if param is None else next(params)
                       for param in (self.gamma, self.beta))
        if renormalization.renormalizes(self):
            gamma, beta = renormalization.corrected_params(
                self, mean, std, gamma, beta)
        return self._output_by(mean, std, Batch(x, self.axes, mask), gamma,
                               beta)

    def _with_nonlinearity(self, output, batch):
        """Apply the nonlinearity, unless the fused Ops have done so."""
        if self._rectifies() or (
                self.nonlinearity is lasagne.nonlinearities.identity):
            return output
        # It may make something else of the zeros where nothing counts.
        return expressions.only_counted(self.nonlinearity(output), batch)

    def _batch(self, input, mask):
        x = checks.checked_input(self, input)
        return Batch(x, self.axes, masks.aligned_mask(self, x, mask),
                     self.virtual_batch_size)

    def _output_by(self, mean, std, batch, gamma, beta):
        """Return the output by the given statistics."""
        return dispatch.normalize(batch, mean, std, gamma, beta, self.epsilon,
                                  self._rectifies())

    def _output_and_statistics(self, batch):
        """Return the output, and mean, std and count of the batch."""
        correction = None
        if renormalization.renormalizes(self):
            correction = partial(renormalization.corrected_params, self)
        return synchronized.normalize_batch(
            batch, self.gamma, self.beta, self.epsilon, self._rectifies(),
            correction, *self._channel_and_name())

    def _channel_and_name(self):
        """Return the channel to use, if any, and the name for messages.

        Ranks that exchange messages must have layers of the same name.
        """
        return (None if without_ranks.is_on else self.channel,
                f"{label(self)} of {np.prod(self.param_shape())} channels")

    def _rectifies(self):
        """Tell whether the fused Ops apply the nonlinearity in passing."""
        return self.nonlinearity in (lasagne.nonlinearities.rectify,
                                     T.nnet.relu)
