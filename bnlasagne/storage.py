"""Parameters in files: names and arrays, which NumPy alone can read."""

import collections
import io
import os
import shutil
import tempfile

import lasagne
import numpy as np
import theano

from .comparison import Row, check_rows, described
from .networks import all_layers, checked_layers
from .values import Setting, as_numbers

__all__ = [
    "load_network",
    "save_network",
]


def save_network(network, file):
    """Save the values of all parameters of a network.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers.
    file : str, path or file object
        Where to; by convention, names end in ``.npz``. A file of that name is
        replaced once the new one is complete.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers.
    OSError
        If the file cannot be written.

    Notes
    -----
    ``numpy.load(file)`` reads it: a dict-like of arrays with names like
    ``'conv1.W'``, of the layer and its parameter. Those of layers without a
    name, or with the name of another, start with the layer's number in
    :func:`lasagne.layers.get_all_layers`: ``'3.DenseLayer.W'``.

    Only values of parameters are saved: running averages included, the
    network's structure, `epsilon` and the like not.

    See also
    --------
    load_network : The other way.
    """
    params = _named_params(network, "save_network()")
    values = {name: param.get_value() for name, param in params.items()}
    if hasattr(file, "write"):
        np.savez(file, **values)
        return
    path = os.path.realpath(os.fsdecode(file))
    try:
        _replace(path, values)
    except OSError as error:
        # It names the temporary file.
        raise type(error)(error.errno, error.strerror, path) from error


def _replace(path, values):
    """Write a file completely, and then put it in the place of another."""
    # On the same disk, so that it can take the other's place in one step.
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
        complete = os.path.join(folder, "parameters.npz")
        np.savez(complete, **values)
        if os.path.exists(path):
            shutil.copymode(path, complete)
        os.replace(complete, path)


def load_network(network, file):
    """Load the values of all parameters of a network.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers of a network that is built like the one
        saved, with the same names.
    file : str, path or file object
        That :func:`save_network` wrote.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers.
    ValueError
        If names or shapes in the file are not those of the network; the
        message lists both. Or if it is no sound file of arrays of numbers.
        Nothing is changed then.
    OSError
        If the file cannot be read.

    Notes
    -----
    Files with pickled objects, which could run any code, are refused.

    Examples
    --------
    >>> import io
    >>> from lasagne.layers import DenseLayer, InputLayer
    >>> from bnlasagne import load_network, save_network
    >>> layer = DenseLayer(InputLayer((None, 8)), 5, name="fc")
    >>> file = io.BytesIO()
    >>> save_network(layer, file)
    >>> layer.b.set_value(layer.b.get_value() + 1)
    >>> load_network(layer, io.BytesIO(file.getvalue()))
    >>> layer.b.get_value().tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0]
    """
    params = _named_params(network, "load_network()")
    values = _read(file)
    check_rows("load_network()", "file", [
        _row(name, params.get(name), values.get(name))
        for name in collections.OrderedDict.fromkeys([*params, *values])])
    setting = Setting()
    setting.add_all((param, values[name]) for name, param in params.items())
    setting.carry_out()


def _row(name, param, found):
    needed = None if param is None else param.get_value(borrow=True)
    return Row("" if found is None else described(name, found),
               "" if needed is None else described(name, needed),
               found is not None and needed is not None and
               found.shape == needed.shape)


def _read(file):
    """The arrays of a file."""
    # Read first: what is wrong with a file once it is read is damage, of
    # which NumPy would leave it open, and raise an OSError at times.
    if hasattr(file, "read"):
        content = file.read()
    else:
        with open(file, "rb") as stream:
            content = stream.read()
    try:
        arrays = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise ValueError("it has one array only, without a name")
        with arrays:
            return {name: as_numbers(name, arrays[name])
                    for name in arrays.files}
    # What is raised depends on where a file is damaged.
    except Exception as error:
        raise ValueError("load_network(): %s is no sound file of arrays of "
                         "numbers as save_network() writes it: %s"
                         % (file, error)) from error


def _named_params(network, caller):
    """All parameters, with names of their own, in Lasagne's order."""
    outputs = checked_layers(network, caller)
    layers = all_layers(outputs)
    counts = collections.Counter(_name_of(layer) for layer in layers)
    names = {}
    for number, layer in enumerate(layers):
        prefix = _name_of(layer)
        if prefix is None or counts[prefix] > 1:
            prefix = "%d.%s" % (number, prefix or type(layer).__name__)
        for attribute, param in _params_of(layer):
            names.setdefault(param, "%s.%s" % (prefix, attribute))
    params = lasagne.layers.get_all_params(outputs)
    # A layer may have parameters that only its get_params() knows.
    named = collections.OrderedDict(
        (names.get(param, "param%d" % number), param)
        for number, param in enumerate(params))
    if len(named) < len(params):
        raise ValueError("%s: some of %d parameters would have the same name "
                         "in the file, among %s. Give layers other names."
                         % (caller, len(params), ", ".join(named)))
    return named


def _name_of(layer):
    return getattr(layer, "name", None)


def _params_of(layer):
    """A layer's own parameters, by the names of its attributes."""
    attributes = {value: name for name, value in vars(layer).items()
                  if isinstance(value, theano.Variable)}
    for number, param in enumerate(layer.params):
        name = attributes.get(param, "param%d" % number)
        if isinstance(param, theano.compile.SharedVariable):
            yield name, param
            continue
        # An expression: it is what it is made of that is saved.
        sources = [source for source in theano.gof.graph.inputs([param])
                   if isinstance(source, theano.compile.SharedVariable)]
        for index, source in enumerate(sources):
            yield "%s.%d" % (name, index), source
