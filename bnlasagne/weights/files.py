"""Save parameters in files that NumPy can read, and load them."""

import collections
import contextlib
import io
import math
import os
import re
import reprlib
import struct
import warnings
import zipfile

import lasagne
import numpy as np
import theano

from ..averages.schedules import CumulativeAverage
from ..layers.layer import BatchNormLayer
from ..networks.labels import label
from ..networks.setting import Setting
from ..networks.values import converted
from ..networks.walk import all_layers, checked_layers, shared_in
from .matching import compare
from .replacing import replacing

__all__ = ["load_network", "save_network"]


def save_network(network, file):
    """Save the values of all parameters of a network.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers.
    file : str, path or file object
        Where to write. By convention, the name ends in ``.npz``. An older file
        is replaced once the new one is complete and on the disk; so it is
        never a piece, even after a power cut. A file object must be open for
        writing in binary mode.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers, `file` is neither a path
        nor a binary file object, the name of a layer is no text, or the value
        of a parameter is no array of numbers or truth values, such as a sparse
        matrix. Nothing is written then.
    ValueError
        If two parameters would have the same name in the file, or the name of
        a layer has a character that names in files cannot have. Nothing is
        written then.
    OSError
        If the file cannot be written, or is something else than a regular
        file: a directory, a pipe or a device, such as ``/dev/stdout``. Pass
        ``sys.stdout.buffer``, or another file object, to write to these.

    Warns
    -----
    RuntimeWarning
        If a parameter holds NaN. The file is written, but
        :func:`load_network` will refuse it.

    Notes
    -----
    ``numpy.load(file)`` reads the file. Arrays have names such as
    ``'conv1.W'``, of the layer and its parameter. If a layer has no name, or
    that of another layer, its arrays start with its number in
    :func:`lasagne.layers.get_all_layers`: ``'3.DenseLayer.W'``.

    Only values of parameters are saved, running averages included, and the
    `count` of each :class:`CumulativeAverage`, as ``'conv1_bn.count'``. The
    network's structure, `epsilon` and the like are not.

    See also
    --------
    load_network : The other way.
    """
    file = _checked_file(file, "write", "save_network()")
    params, schedules = _named(network, "save_network()")
    arrays = _values(params, "save_network()")
    diverged = [name for name, array in arrays.items()
                if array.dtype.kind in "fc" and np.any(np.isnan(array))]
    if diverged:
        warnings.warn(
            f"save_network(): there is NaN in {', '.join(diverged)}. "
            "load_network() will refuse the file.", RuntimeWarning,
            stacklevel=2)
    arrays.update((name, np.array(schedule.count, "int64"))
                  for name, schedule in schedules.items() if schedule)
    if not hasattr(file, "write"):
        with replacing(file, "save_network") as stream:
            _write(stream, arrays)
        return
    # At once: some file objects cannot go back, as NumPy would have them.
    content = io.BytesIO()
    _write(content, arrays)
    file.write(content.getvalue())


def _checked_file(file, method, caller):
    """Return a file object, or else the path of a file as text."""
    if hasattr(file, method) and not isinstance(file, io.TextIOBase):
        able = {"read": "readable", "write": "writable"}[method]
        if getattr(file, able, lambda: True)():
            return file
    if isinstance(file, (str, bytes, os.PathLike)):
        return os.fsdecode(file)
    raise TypeError(f"{caller}: file must be a path, or a file object that is "
                    f"open in binary mode to {method}, got "
                    f"{reprlib.repr(file)}.")


def _values(params, caller):
    """Read the values of parameters, if files can hold them."""
    values = {name: param.get_value(borrow=True)
              for name, param in params.items()}
    for name, value in values.items():
        if not isinstance(value, (np.ndarray, np.generic)) or \
                value.dtype.kind not in _NUMBERS:
            raise TypeError(
                f"{caller}: {name} must be an array of numbers or truth values"
                f", got a {type(value).__name__}. Make the parameter a shared "
                "variable of an array.")
    return values


# Truth values, integers, floats and complex numbers.
_NUMBERS = "biufc"


def _write(stream, arrays):
    """Write arrays as numpy.savez() does."""
    # That would leave its archive open if the disk is full.
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array),
                                          allow_pickle=False)


def load_network(network, file):
    """Load the values of all parameters of a network.

    Parameters
    ----------
    network : Layer or list of Layer
        The output layer or layers of a network that is built like the one
        saved, with the same names.
    file : str, path or file object
        A file that :func:`save_network` wrote. A file object must be open for
        reading in binary mode.

    Raises
    ------
    TypeError
        If `network` is no layer or list of layers, `file` is neither a path
        nor a binary file object, or the name of a layer is no text.
    ValueError
        If names or shapes in the file are not those of the network: the
        message lists both sides; if the type of a parameter cannot hold the
        numbers in the file, such as fractions in integers, or numbers that are
        too large; if NaN is among the numbers; or if the file is damaged, or
        has something else than arrays of numbers. Nothing is changed then.
    OSError
        If the file cannot be read.

    Notes
    -----
    Files with pickled objects, which could run any code, are refused. Names
    and shapes are compared before any array is unpacked.

    The `count` of a :class:`CumulativeAverage` is set if the file has it, and
    stays as it is otherwise. If it is 0 then, the next batch would replace the
    averages that were loaded, and a warning says so. If a layer has another
    kind of `alpha` here, its count in the file is left out: a network that is
    only used needs none.

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
    params, schedules = _named(network, "load_network()")
    needed = {name: value.shape for name, value
              in _values(params, "load_network()").items()}
    source = _checked_file(file, "read", "load_network()")
    content = _content(source)
    with _damage_named(source):
        archive, members, shapes = _headers(content)
    for name, schedule in schedules.items():
        if name in shapes and schedule is not None:
            needed[name] = ()
        elif name not in params:
            # A network that is only used needs no count.
            shapes.pop(name, None)
    numbered = shapes and all(re.fullmatch("arr_[0-9]+", name)
                              for name in shapes)
    compare("load_network()", "file", [
        tuple((name, side[name]) if name in side else None
              for side in (shapes, needed))
        for name in dict.fromkeys([*needed, *shapes])],
        [_NUMBERED] if numbered else [])
    with _damage_named(source):
        arrays = {name: _array(archive, members[name]) for name in needed}
    setting = Setting("load_network()")
    for name, value in arrays.items():
        if name in params:
            setting.add(params[name], value, name)
        else:
            _add_count(setting, schedules[name], value, name)
    setting.carry_out()
    lost = [name for name, schedule in schedules.items() if schedule
            is not None and name not in arrays and schedule.count == 0]
    if lost:
        warnings.warn(
            f"load_network(): the file has no {', '.join(lost)}: the next "
            "batch replaces the averages that were loaded. To go on from "
            "there, set the count of the CumulativeAverage.", stacklevel=2)


_NUMBERED = (
    "The arrays are numbered, as numpy.savez(file, *values) numbers arrays of "
    "a list. If these are from lasagne.layers.get_all_param_values(), pass "
    "[f['arr_%d' % i] for i in range(len(f.files))], with f = numpy.load(file)"
    ", to lasagne.layers.set_all_param_values().")


def _add_count(setting, schedule, value, name):
    count = int(converted(f"load_network(): {name}", value, "int64"))
    if count < 0:
        raise ValueError(f"load_network(): {name} must be a number of batches,"
                         f" 0 or more, got {count}.")
    setting.add_attribute(schedule, "count", count, name)


def _content(file):
    """Read a file as a whole, so that any later error means damage."""
    # NumPy would leave a damaged file open, and raise an OSError at times.
    if not hasattr(file, "read"):
        with open(file, "rb") as stream:
            return stream.read()
    content = file.read()
    if not isinstance(content, bytes):
        raise TypeError("load_network(): file must be open in binary mode, "
                        "mode 'rb'. Reading it gave "
                        f"{type(content).__name__}.")
    return content


@contextlib.contextmanager
def _damage_named(file):
    try:
        yield
    # What is raised depends on where a file is damaged.
    except Exception as error:
        raise ValueError(f"load_network(): {file} is damaged, or was not "
                         f"written by save_network(): {error}") from error


# At the end of an archive, before the number of its members.
_END = b"PK\5\6"


def _headers(content):
    """Find the arrays in a file, and their shapes; no array is unpacked."""
    if content.startswith(np.lib.format.MAGIC_PREFIX):
        raise ValueError("it has one array only, without a name")
    archive, members, shapes = zipfile.ZipFile(io.BytesIO(content)), {}, {}
    # One that is damaged may hide the next one. Of very many, it does not say.
    number, = struct.unpack_from("<H", content, content.rfind(_END) + 10)
    if number not in (len(archive.infolist()), 0xffff):
        raise ValueError(f"it must have {number} arrays, got "
                         f"{len(archive.infolist())}")
    for member in archive.infolist():
        # Folders have members of their own, if another program packed it.
        if not member.is_dir():
            name, suffix = os.path.splitext(member.filename)
            name = name if suffix == ".npy" else member.filename
            if name in members:
                raise ValueError(f"it has two arrays of the name {name}")
            members[name] = member
            shapes[name] = _shape(archive, member, name)
    return archive, members, shapes


def _shape(archive, member, name):
    with archive.open(member) as stream:
        # Headers of later versions can be of any length. NumPy writes them
        # for arrays of records.
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{name} must be an array of numbers")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.kind not in _NUMBERS:
            raise ValueError(f"{name} must be an array of numbers, got an "
                             f"array of type {dtype}")
        size = stream.tell() + dtype.itemsize * math.prod(shape)
        if size != member.file_size:
            raise ValueError(
                f"{name} takes {member.file_size} bytes, and must take {size} "
                f"to be an array of shape {shape} and type {dtype}")
    return shape


def _array(archive, member):
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _named(network, caller):
    """Name all parameters and all schedules of averages, each differently.

    The parameters come in Lasagne's order. The schedule of a layer is None if
    its `alpha` is no :class:`CumulativeAverage`; layers may share a schedule.
    """
    outputs = checked_layers(network, caller)
    prefixes = _prefixes(all_layers(outputs), caller)
    names, found, schedules = {}, {}, {}
    for layer, prefix in prefixes.items():
        for attribute, param in _params_of(layer):
            names.setdefault(param, f"{prefix}.{attribute}")
        if isinstance(layer, BatchNormLayer):
            schedules[prefix + ".count"] = found.setdefault(
                layer.alpha, CumulativeAverage.of(layer))
    # A layer may have parameters that only its get_params() knows.
    named = [(names.get(param, f"param{number}"), param) for number, param
             in enumerate(lasagne.layers.get_all_params(outputs))]
    counts = collections.Counter(
        [name for name, _ in named] +
        [name for name, schedule in schedules.items() if schedule])
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{caller}: two parameters would have the same name "
                         f"in the file: {', '.join(twice)}. Give layers other "
                         "names.")
    return dict(named), schedules


def _prefixes(layers, caller):
    """Name layers in a file, each differently."""
    names = {layer: _name_of(layer, caller) for layer in layers}
    counts = collections.Counter(names.values())
    return {layer: name if name is not None and counts[name] == 1
            else f"{number}.{name or type(layer).__name__}"
            for number, (layer, name) in enumerate(names.items())}


def _name_of(layer, caller):
    name = getattr(layer, "name", None)
    if not isinstance(name, (str, type(None))):
        raise TypeError(f"{caller}: {label(layer)} must have a name of text, "
                        "or none, for the names in the file.")
    # A NUL ends names in the file. Parts of surrogate pairs have no code.
    if re.search("[\0\ud800-\udfff]", name or ""):
        raise ValueError(f"{caller}: {label(layer)} has a character in its "
                         "name that the names in a file cannot have. Give the "
                         "layer another name.")
    return name


def _params_of(layer):
    """Yield a layer's own parameters, with the names of its attributes."""
    attributes = {value: name for name, value in vars(layer).items()
                  if isinstance(value, theano.Variable)}
    for number, param in enumerate(layer.params):
        name = attributes.get(param, f"param{number}")
        if isinstance(param, theano.compile.SharedVariable):
            yield name, param
        else:
            # An expression: its shared variables are saved.
            for index, source in enumerate(shared_in(param)):
                yield f"{name}.{index}", source
