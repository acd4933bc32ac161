"""Data-parallel training: each rank has a part of the batch."""

import hashlib
import numbers

import lasagne
import numpy as np
import theano
import theano.tensor as T

from .channel import channel_of
from .collectives import Average, is_synchronized

__all__ = [
    "average_gradients",
    "broadcast_params",
    "outline",
]


def average_gradients(loss_or_grads, params, comm, size, outputs=None):
    """Compute the gradients of the whole batch from the parts of all ranks.

    Parameters
    ----------
    loss_or_grads : scalar Theano variable or list of Theano variables
        This rank's loss, the mean over its part of the batch; or the gradients
        of that.
    params : list of Theano shared variables
        What the gradients are taken with respect to.
    comm : mpi4py communicator
        The ranks, such as :func:`bnlasagne.world`.
    size : scalar Theano variable or number
        Number of examples in this rank's part, by which it is weighted, such
        as ``x.shape[0]``. If all parts are of one size, 1 will do. A rank of
        size 0 counts for nothing.
    outputs : list of scalar Theano variables or None
        Further means over this rank's part, to be averaged likewise, such as
        the loss itself or an accuracy.

    Returns
    -------
    list of Theano variables
        The gradients, alike on all ranks, for any function of
        ``lasagne.updates``. With `outputs`, a pair of lists: the gradients
        and the averages.

    Raises
    ------
    ValueError
        If the loss or an output is no scalar, or the numbers of gradients and
        parameters differ. When the function is called, on several ranks: if
        none has an example; or if gradients were given, batch normalization is
        synchronized and the sizes differ (then, and only then, the loss must
        be given).
    TypeError
        If an argument is of another type than stated.

    Notes
    -----
    All of it is one message. A step is, to rounding, what one process would do
    with the whole batch, if there is no batch normalization or if it has the
    same `comm`.

    Examples
    --------
    >>> import lasagne, theano, theano.tensor as T
    >>> from lasagne.layers import DenseLayer, InputLayer
    >>> from bnlasagne import average_gradients, batch_norm, world
    >>> comm = world()
    >>> layer = batch_norm(DenseLayer(InputLayer((None, 8)), 5), comm=comm)
    >>> x, target = T.matrix(), T.matrix()
    >>> output = lasagne.layers.get_output(layer, x)
    >>> loss = lasagne.objectives.squared_error(output, target).mean()
    >>> params = lasagne.layers.get_all_params(layer, trainable=True)
    >>> gradients = average_gradients(loss, params, comm, x.shape[0])
    >>> updates = lasagne.updates.adam(gradients, params)
    >>> train = theano.function([x, target], loss, updates=updates)
    """
    caller = "average_gradients()"
    params = _checked_params(params, caller)
    loss_or_grads = _checked_loss_or_grads(loss_or_grads, params, caller)
    size = _checked_size(size, caller)
    extra = [_as_mean(output, caller) for output in outputs or ()]
    channel = _required_channel(comm, caller)
    values, n_weighted = _values(loss_or_grads, params, size, channel)
    if channel is not None:
        op = Average(channel, "the gradients of " + outline(params),
                     n_weighted, not n_weighted and is_synchronized(values))
        averaged = op(size, *values + extra, return_list=True)
        values, extra = averaged[:len(params)], averaged[len(params):]
    return values if outputs is None else (values, extra)


def outline(params):
    """What ranks compare of a list of parameters."""
    shapes = [param.get_value(borrow=True).shape for param in params]
    text = "\n".join("%s %s" % pair for pair in zip(params, shapes))
    return "%d parameters with %d values (names and shapes: %s)" % (
        len(params), sum(int(np.prod(shape)) for shape in shapes),
        hashlib.sha256(text.encode()).hexdigest()[:8])


def _values(loss_or_grads, params, size, channel):
    """Gradients, and how many of them are multiplied by the size."""
    if isinstance(loss_or_grads, list):
        return loss_or_grads, 0
    if channel is None:
        return theano.grad(loss_or_grads, params), 0
    # Before the gradient is taken, as gradients that go through synchronized
    # batch normalization meet those of other ranks on their way.
    loss = loss_or_grads * T.cast(size, loss_or_grads.dtype)
    return theano.grad(loss, params), len(params)


def _required_channel(comm, caller):
    if comm is None:
        raise TypeError("%s: comm must be a communicator of mpi4py, such as "
                        "bnlasagne.world(), got None." % caller)
    return channel_of(comm, caller)


def _checked_params(params, caller):
    params = list(params)
    for param in params:
        if not isinstance(param, theano.compile.SharedVariable):
            raise TypeError("%s: params must be shared variables, got %r "
                            "among them." % (caller, param))
    if not params:
        raise ValueError("%s: params is empty." % caller)
    return params


def _checked_loss_or_grads(loss_or_grads, params, caller):
    if isinstance(loss_or_grads, (list, tuple)):
        for gradient in loss_or_grads:
            if not isinstance(gradient, theano.Variable):
                raise TypeError("%s: gradients must be Theano variables, got "
                                "%r among them." % (caller, gradient))
        if len(loss_or_grads) != len(params):
            raise ValueError("%s: got %d gradients for %d parameters."
                             % (caller, len(loss_or_grads), len(params)))
        return list(loss_or_grads)
    if not isinstance(loss_or_grads, theano.Variable):
        raise TypeError("%s: expected a loss or a list of gradients, got %r."
                        % (caller, loss_or_grads))
    if loss_or_grads.ndim != 0:
        raise ValueError(
            "%s: the loss must be a scalar, the mean over this rank's part of "
            "the batch, but it has %d dimensions."
            % (caller, loss_or_grads.ndim))
    return loss_or_grads


def _checked_size(size, caller):
    if not isinstance(size, (theano.Variable, numbers.Real)):
        raise TypeError("%s: size must be a number or a scalar Theano "
                        "variable, such as x.shape[0], got %r."
                        % (caller, size))
    size = T.as_tensor_variable(size)
    if size.ndim != 0:
        raise ValueError("%s: size must be a scalar, such as x.shape[0], but "
                         "it has %d dimensions." % (caller, size.ndim))
    return T.cast(size, "float64")


def _as_mean(output, caller):
    if not isinstance(output, theano.Variable):
        raise TypeError("%s: outputs must be Theano variables, got %r among "
                        "them." % (caller, output))
    if output.ndim != 0:
        raise ValueError("%s: outputs must be scalars, means over this rank's "
                         "part of the batch, but one has %d dimensions."
                         % (caller, output.ndim))
    if output.dtype in T.discrete_dtypes:
        return output.astype(theano.config.floatX)
    return output


def broadcast_params(params, comm, root=0):
    """Give all ranks the parameters of one.

    Call it on all ranks, after building the network or loading its weights,
    and before training.

    Parameters
    ----------
    params : Layer, list of Layer or list of Theano shared variables
        The output layer or layers of a network, for all of its parameters,
        running averages included; or the variables themselves.
    comm : mpi4py communicator
        The ranks, such as :func:`bnlasagne.world`.
    root : int
        The rank whose values all get.

    Raises
    ------
    RanksDisagree
        On all ranks, if names, shapes or types differ. Nothing is changed.
    ValueError
        If there is no such rank.
    TypeError
        If an argument is of another type than stated.

    Examples
    --------
    >>> from lasagne.layers import DenseLayer, InputLayer
    >>> from bnlasagne import batch_norm, broadcast_params, world
    >>> comm = world()
    >>> layer = batch_norm(DenseLayer(InputLayer((None, 8)), 5), comm=comm)
    >>> broadcast_params(layer, comm)
    """
    caller = "broadcast_params()"
    variables = _all_params(params, caller)
    channel = _required_channel(comm, caller)
    if not isinstance(root, numbers.Integral):
        raise TypeError("%s: root must be the number of a rank, got %r."
                        % (caller, root))
    if not 0 <= root < comm.size:
        raise ValueError("%s: root must be from 0 to %d, got %r."
                         % (caller, comm.size - 1, root))
    if channel is None:
        return
    values = [variable.get_value() for variable in variables]
    channel.agree((caller + " from rank %d" % root,) + tuple(
        "%s number %d, %s, of shape %s and type %s" % (
            caller, number, variable, value.shape, value.dtype)
        for number, (variable, value) in enumerate(zip(variables, values))))
    message = np.concatenate([np.zeros(0, np.uint8)] + [
        np.frombuffer(value.tobytes(), np.uint8) for value in values])
    channel.broadcast(message, root)
    start = 0
    for variable, value in zip(variables, values):
        part = message[start:start + value.nbytes]
        variable.set_value(np.frombuffer(
            part.tobytes(), value.dtype).reshape(value.shape))
        start += value.nbytes


def _all_params(params, caller):
    listed = params if isinstance(params, (list, tuple)) else [params]
    variables = []
    for item in listed:
        if isinstance(item, lasagne.layers.Layer):
            variables += lasagne.layers.get_all_params(item)
        elif isinstance(item, theano.compile.SharedVariable):
            variables.append(item)
        else:
            raise TypeError("%s: expected a Layer, or a list of layers or "
                            "shared variables, got %r." % (caller, item))
    unique = []
    for variable in variables:
        if variable not in unique:
            unique.append(variable)
    return unique
