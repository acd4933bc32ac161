"""Train on several ranks, each of which has a part of every batch."""

import hashlib
import numbers

import lasagne
import theano
import theano.tensor as T

from .channel import channel_of
from .collectives import Average, is_synchronized

__all__ = [
    "average_gradients",
    "broadcast_params",
    "checked_loss",
    "checked_params",
    "checked_size",
    "outline",
]


def average_gradients(loss_or_grads, params, comm, size, outputs=None):
    """Compute the gradients of the whole batch from the parts of all ranks.

    Parameters
    ----------
    loss_or_grads : scalar Theano variable or list of Theano variables
        The mean loss over the part of this rank; or its gradients.
    params : list of Theano shared variables
        The parameters that the gradients are taken with respect to.
    comm : mpi4py communicator
        The ranks, such as :func:`bnlasagne.world`.
    size : scalar Theano variable or number
        Number of examples in the part of this rank, such as ``x.shape[0]``. It
        is the weight of the part. If all parts have one size, 1 will do. A
        rank of size 0 counts for nothing.
    outputs : list of scalar Theano variables or None
        Other means over the part of this rank, to be averaged as well, such as
        the loss itself or an accuracy.

    Returns
    -------
    list of Theano variables
        The gradients, the same on all ranks, for any function of
        ``lasagne.updates``. With `outputs`, a pair of lists: the gradients
        and the averages.

    Raises
    ------
    ValueError
        If the loss or an output is not a scalar, or if there are more or fewer
        gradients than parameters. On several ranks, also when the compiled
        function is called: if no rank has an example; or if gradients were
        given, batch normalization is synchronized, and the sizes differ. In
        this one case the loss must be given.
    TypeError
        If an argument has another type than stated.

    Notes
    -----
    Gradients and outputs are one message. Up to rounding, the ranks make the
    step that one process would make with the whole batch. This holds for
    networks without batch normalization, or with the same `comm` in it.

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
    params = checked_params(params, caller)
    loss_or_grads = _checked_loss_or_grads(loss_or_grads, params, caller)
    size = checked_size(size, caller)
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
    """Describe a list of parameters in a line that ranks compare."""
    shapes = [param.get_value(borrow=True).shape for param in params]
    n_values = sum(param.get_value(borrow=True).size for param in params)
    text = "\n".join(f"{param} {shape}" for param, shape
                     in zip(params, shapes))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return (f"{len(params)} parameters with {n_values} values (names and "
            f"shapes: {digest})")


def _values(loss_or_grads, params, size, channel):
    """Compute gradients, and how many of them are multiplied by the size."""
    if isinstance(loss_or_grads, list):
        return loss_or_grads, 0
    if channel is None:
        return theano.grad(loss_or_grads, params), 0
    # Before the gradient is taken: gradients that pass synchronized batch
    # normalization meet those of other ranks on their way.
    loss = loss_or_grads * T.cast(size, loss_or_grads.dtype)
    return theano.grad(loss, params), len(params)


# Arguments

def _required_channel(comm, caller):
    if comm is None:
        raise TypeError(f"{caller}: comm must be a communicator of mpi4py, "
                        "such as bnlasagne.world(), got None.")
    return channel_of(comm, caller)


def checked_params(params, caller):
    """Return parameters as a list; raise an error if they are something else.

    `caller` is the function that the user called, here and below.
    """
    remedy = "Pass get_all_params(network, trainable=True)."
    expected = f"{caller}: params must be a list of shared variables"
    if isinstance(params, (lasagne.layers.Layer, theano.Variable, dict)):
        raise TypeError(f"{expected}, got {params!r}. {remedy}")
    params = list(params)
    _check_kind(params, theano.compile.SharedVariable, expected)
    if not params:
        raise ValueError(f"{caller}: params is empty. {remedy}")
    return params


def _checked_loss_or_grads(loss_or_grads, params, caller):
    if isinstance(loss_or_grads, (list, tuple)):
        _check_kind(loss_or_grads, theano.Variable,
                    f"{caller}: gradients must be Theano variables")
        if len(loss_or_grads) != len(params):
            raise ValueError(f"{caller}: got {len(loss_or_grads)} gradients "
                             f"for {len(params)} parameters.")
        return list(loss_or_grads)
    if not isinstance(loss_or_grads, theano.Variable):
        raise TypeError(f"{caller}: loss_or_grads must be a loss or a list of "
                        f"gradients, got {loss_or_grads!r}.")
    return checked_loss(loss_or_grads, caller, "part of this rank")


def checked_loss(loss, caller, whole):
    """Return a loss; raise an error unless it is a scalar variable."""
    if not isinstance(loss, theano.Variable):
        raise TypeError(
            f"{caller}: loss must be a Theano variable, got {loss!r}.")
    return _scalar(loss, f"{caller}: loss must be a scalar, the mean over the "
                   f"{whole}")


def checked_size(size, caller):
    """Return the size of a part or a micro-batch as a scalar of float64."""
    if not isinstance(size, (theano.Variable, numbers.Real)):
        raise TypeError(f"{caller}: size must be a number or a scalar Theano "
                        f"variable, such as x.shape[0], got {size!r}.")
    return T.cast(_scalar(
        T.as_tensor_variable(size),
        f"{caller}: size must be a scalar, such as x.shape[0]"), "float64")


def _as_mean(output, caller):
    _check_kind([output], theano.Variable,
                f"{caller}: outputs must be Theano variables")
    _scalar(output, f"{caller}: outputs must be scalars, means over the part "
            "of this rank")
    if output.dtype in T.discrete_dtypes:
        return output.astype(theano.config.floatX)
    return output


def _check_kind(variables, kind, wanted):
    for variable in variables:
        if not isinstance(variable, kind):
            raise TypeError(f"{wanted}, got {variable!r} among them.")


def _scalar(variable, wanted):
    if variable.ndim != 0:
        raise ValueError(f"{wanted}; got {variable.ndim} dimensions.")
    return variable


def broadcast_params(params, comm, root=0):
    """Give all ranks the parameters of one rank.

    Call it on all ranks, after the network is built or its weights are loaded,
    and before training.

    Parameters
    ----------
    params : Layer, list of Layer or list of Theano shared variables
        The output layer or layers of a network, which stand for all of its
        parameters and running averages; or the variables themselves.
    comm : mpi4py communicator
        The ranks, such as :func:`bnlasagne.world`.
    root : int
        The rank whose values all ranks get.

    Raises
    ------
    RanksDisagree
        On all ranks, if names, shapes or types differ. Nothing is changed.
    ValueError
        If there is no rank `root`.
    TypeError
        If an argument has another type than stated.

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
    _check_root(root, comm, caller)
    if channel is None:
        return
    values = [variable.get_value() for variable in variables]
    channel.agree((f"{caller} from rank {root}", *[
        f"{caller} number {number}, {variable}, of shape {value.shape} and "
        f"type {value.dtype}"
        for number, (variable, value) in enumerate(zip(variables, values))]))
    for variable, value in zip(variables, channel.broadcast(values, root)):
        variable.set_value(value)


def _check_root(root, comm, caller):
    if not isinstance(root, numbers.Integral):
        raise TypeError(f"{caller}: root must be the number of a rank, got "
                        f"{root!r}.")
    if not 0 <= root < comm.size:
        raise ValueError(f"{caller}: root must be from 0 to {comm.size - 1}, "
                         f"got {root!r}.")


def _all_params(params, caller):
    """List the variables of layers, and variables, each once."""
    variables = {}
    for item in params if isinstance(params, (list, tuple)) else [params]:
        if isinstance(item, lasagne.layers.Layer):
            variables.update(dict.fromkeys(
                lasagne.layers.get_all_params(item)))
        elif isinstance(item, theano.compile.SharedVariable):
            variables[item] = None
        else:
            raise TypeError(f"{caller}: expected a Layer, or a list of layers "
                            f"or shared variables, got {item!r}.")
    return list(variables)
