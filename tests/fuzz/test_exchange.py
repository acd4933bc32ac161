"""Weights to and from PyTorch, Keras and Lasagne's later layer, in NumPy."""

import collections

from bnlasagne import (
    BatchNormLayer,
    get_keras_weights,
    get_lasagne_values,
    get_torch_state_dict,
    set_keras_weights,
    set_lasagne_values,
    set_torch_state_dict,
)

import numpy as np
import pytest
from helpers.folded import randomize
from helpers.fuzzing import many
from helpers.weights import bits, chain, to_keras
from hypothesis import assume, event, given, note
from hypothesis import strategies as st
from lasagne.layers import (
    Conv2DLayer,
    DenseLayer,
    InputLayer,
    NINLayer,
    get_all_params,
)
from numpy.testing import assert_allclose

SEEDS = st.integers(0, 2 ** 32 - 1)
NAMES = {"torch": ("weight", "bias", "weight", "bias", "running_mean",
                   "running_var"),
         "keras": ("kernel", "bias", "gamma", "beta", "moving_mean",
                   "moving_variance")}
FUNCTIONS = {"torch": (set_torch_state_dict, get_torch_state_dict),
             "keras": (set_keras_weights, get_keras_weights)}
# The kind of a module, its layer, and whether it has a bias or is affine.
Module = collections.namedtuple("Module", "kind, layer, first, second")


@st.composite
def networks(draw):
    """An output layer, and the modules of the network in order."""
    named, modules = draw(st.booleans()), []
    shape = draw(st.sampled_from([(None, 3), (None, 3, 2, 4)]))
    layer = InputLayer(shape)

    def new(kind, build, first, second):
        name = f"l{draw(st.integers(0, 9))}.{len(modules)}" if named else None
        modules.append(Module(kind, build(name), first, second))
        return modules[-1].layer

    def linear(kind, build):
        wraps, has_bias = draw(st.booleans()), draw(st.booleans())
        own = {} if has_bias and not wraps else {"b": None}
        lower = new(kind, lambda name: build(
            layer, draw(st.integers(1, 4)), name=name, nonlinearity=None,
            **own), has_bias, False)
        return norm(lower) if wraps else lower

    def norm(layer):
        affine = draw(st.booleans()), draw(st.booleans())
        leave_out = {name: None for name, there in zip(
            ("gamma", "beta"), affine) if not there}
        return new("norm", lambda name: BatchNormLayer(
            layer, name=name, epsilon=draw(st.sampled_from([1e-4, 1e-2])),
            **leave_out), *affine)

    def conv(incoming, filters, **options):
        return Conv2DLayer(incoming, filters, (1, 3), pad="same", **options)

    for kind in draw(st.lists(st.sampled_from(
            ["dense", "nin", "conv", "norm"]), min_size=1, max_size=5)):
        if kind == "norm":
            layer = norm(layer)
        elif kind == "dense" or len(layer.output_shape) == 2:
            layer = linear("dense", DenseLayer)
        else:
            layer = linear(kind, {"nin": NINLayer, "conv": conv}[kind])
    return randomize(layer, np.random.RandomState(draw(SEEDS))), modules


def drawn_weights(module, rng):
    """Weights of a module, in PyTorch's layout, by the roles of names."""
    if module.kind == "norm":
        size = module.layer.get_statistics().mean.size
        found = {2: rng.normal(size=size), 3: rng.normal(size=size),
                 4: rng.normal(size=size), 5: rng.uniform(0.1, 4, size)}
        return {role: value for role, value in found.items()
                if role > 3 or (module.first, module.second)[role - 2]}
    W = module.layer.W.get_value()
    shape = {"dense": W.shape[::-1], "nin": W.shape[::-1] + (1, 1),
             "conv": W.shape}[module.kind]
    found = {0: rng.normal(size=shape)}
    if module.first:
        found[1] = rng.normal(size=shape[0])
    return found


def laid_out(module, role, value, framework):
    """A weight of PyTorch's layout, as the framework has it."""
    if framework == "torch" or role:
        return value
    value, below = to_keras(value), module.layer.input_shape
    if module.kind == "dense" and len(below) > 2:
        # Channels are last in the features there.
        value = np.moveaxis(value.reshape(below[1:] + (-1,)), 0, 2)
        value = value.reshape(-1, value.shape[-1])
    return value


def weights_of(modules, found, framework, names):
    separator = {"torch": ".", "keras": "/"}[framework]
    return {f"{name}{separator}{NAMES[framework][role]}": laid_out(
        module, role, value, framework)
        for name, module, weights in zip(names, modules, found)
        for role, value in weights.items()}


def assert_set(modules, found, epsilon, rtol):
    """The parameters are what the weights of PyTorch mean."""
    bias = 0
    for module, weights in zip(modules, found):
        layer = module.layer
        if module.kind == "norm":
            shape = layer.mean.get_value().shape
            expected = {
                "mean": weights[4] - bias, "gamma": weights.get(2),
                "std": np.sqrt(weights[5] + epsilon) - layer.epsilon,
                "beta": weights.get(3)}
            expected = {name: value.reshape(shape)
                        for name, value in expected.items()
                        if value is not None}
        else:
            W = weights[0]
            W = np.flip(W, (2, 3)) if module.kind == "conv" \
                else W.reshape(W.shape[:2]).T
            expected = {"W": W}
            if layer.b is not None:
                expected["b"] = weights[1]
        bias = weights.get(1, 0) if module.kind != "norm" and \
            layer.b is None else 0
        for name, value in expected.items():
            assert_allclose(getattr(layer, name).get_value(), value,
                            rtol=rtol, atol=rtol, err_msg=name)


def without_bias(modules, found):
    """The weights after biases have gone into the means that follow."""
    found = [dict(weights) for weights in found]
    for lower, upper, module in zip(found, found[1:], modules):
        if module.kind != "norm" and module.layer.b is None and 1 in lower:
            upper[4] = upper[4] - lower[1]
            lower[1] = 0 * lower[1]
    return found


def names_of(draw, modules, framework):
    """Names of modules; those of layers, with the same before all of them."""
    separator = {"torch": ".", "keras": "/"}[framework]
    if modules[0].layer.name is None:
        return [f"m{number}" for number in range(len(modules))]
    for module in modules:
        module.layer.name = module.layer.name.replace(".", separator)
    start = draw(st.sampled_from(["", "model", "module.net"]))
    return [start.replace(".", separator) + separator * bool(start) +
            module.layer.name for module in modules]


def misfits(module, found, following):
    """Whether a bias has no place: no norm follows that would absorb it."""
    return module.kind != "norm" and module.layer.b is None and \
        1 in found and (following is None or following.kind != "norm")


@many(8, quick=25)
@given(st.data(), st.sampled_from(["torch", "keras"]), networks(), SEEDS)
def test_weights(data, framework, drawn, seed):
    network, modules = drawn
    rng = np.random.RandomState(seed)
    found = [drawn_weights(module, rng) for module in modules]
    names = names_of(data.draw, modules, framework)
    weights = weights_of(modules, found, framework, names)
    dtype, rtol = data.draw(st.sampled_from([
        ("float64", 1e-9), ("float32", 1e-5), (">f8", 1e-9)]))
    weights = {key: value.astype(dtype) for key, value in weights.items()}
    order = list(weights)
    if modules[0].layer.name is not None:
        order = data.draw(st.permutations(order))
    weights = {key: weights[key] for key in order}
    epsilon = data.draw(st.sampled_from([1e-5, 1e-3]))
    options = {"epsilon": epsilon}
    if framework == "keras":
        options["data_format"] = "channels_last"
    set_weights, get_weights = FUNCTIONS[framework]
    if any(misfits(*each) for each in zip(
            modules, found, [*modules[1:], None])):
        event("misfit")
        refused(network, lambda: set_weights(network, weights, **options))
        return
    set_weights(network, weights, **options)
    assert_set(modules, found, epsilon, rtol)
    like = get_weights(network, like=weights, **options)
    assert list(like) == list(weights)
    expected = weights_of(modules, without_bias(modules, found), framework,
                          names)
    for key, value in like.items():
        assert value.dtype == weights[key].dtype
        assert_allclose(value, expected[key], rtol=10 * rtol, atol=10 * rtol)


def refused(network, call, error=ValueError):
    before = bits(network)
    with pytest.raises(error, match=r"set_\w+\(\)"):
        call()
    assert bits(network) == before


@many(8, quick=25)
@given(st.data(), st.sampled_from(["torch", "keras"]), networks(), SEEDS)
def test_wrong_weights(data, framework, drawn, seed):
    network, modules = drawn
    rng = np.random.RandomState(seed)
    found = [drawn_weights(module, rng) for module in modules]
    names = names_of(data.draw, modules, framework)
    weights = weights_of(modules, found, framework, names)
    # A bias or so may be missing, or absorbed.
    key = data.draw(st.sampled_from([
        key for key in weights if not key.endswith("bias")]))
    kind = data.draw(st.sampled_from(["missing", "more", "shape", "NaN",
                                      "infinite", "text", "no array"]))
    error = TypeError if kind in ("text", "no array") else ValueError
    note((kind, key))
    value = weights[key]
    if kind == "missing":
        assume(len(weights) > 1)
        del weights[key]
    elif kind == "more":
        module = key[:max(key.rfind("."), key.rfind("/")) + 1]
        weights[module + "more"] = np.ones(3)
    elif kind == "shape":
        weights[key] = np.ones(value.shape + (2,)) if data.draw(
            st.booleans()) else np.concatenate([value, value])
    elif kind == "text":
        weights[key] = np.full(value.shape, "a")
    elif kind == "no array":
        weights[key] = object()
    else:
        # Too large for a parameter, where NumPy has wider numbers.
        weights[key] = value.astype(np.longdouble)
        weights[key].flat[-1] = np.nan if kind == "NaN" or \
            np.longdouble is np.double else np.longdouble(10) ** 400
    options = {"data_format": "channels_last"} if framework == "keras" else {}
    refused(network, lambda: FUNCTIONS[framework][0](
        network, weights, **options), error)


# --- names of modules ------------------------------------------------------

PARTS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join)


def pairs_by_name(layers, modules):
    """Each module's layer: with the longest common end; None if unclear."""
    claims = collections.defaultdict(list)
    for module in modules:
        ends = [name for name in layers
                if f".{module}".endswith(f".{name}")]
        if ends:
            claims[max(ends, key=len)].append(module)
    for name, claimed in claims.items():
        if name in claimed:
            claims[name] = [name]
    if set(claims) != set(layers) or any(
            len(claimed) > 1 for claimed in claims.values()):
        return None
    return {name: module for name, (module,) in claims.items()}


@many(20, quick=60)
@given(st.lists(PARTS, min_size=1, max_size=4, unique=True), st.data())
def test_names(names, data):
    modules = [data.draw(st.just("") | PARTS.map("{}.".format)) + name
               for name in data.draw(st.permutations(names))]
    pairs = pairs_by_name(names, modules)
    if len(set(modules)) < len(modules) or pairs is None:
        # What the names of layers start with may be left out, too.
        event("unclear")
        return
    layers = chain(*names)
    weights = {}
    for number, module in enumerate(modules):
        weights[f"{module}.weight"] = np.full((3, 3), number)
        weights[f"{module}.bias"] = np.full(3, number)
    set_torch_state_dict(layers[-1], weights)
    for layer in layers:
        number = modules.index(pairs[layer.name])
        assert np.all(layer.W.get_value() == number)
        assert np.all(layer.b.get_value() == number)


# --- parameter lists of Lasagne --------------------------------------------

def expected_list(network):
    """Values of a network with the later layer, from those of this one."""
    found, owners = [], {}
    for layer in [network, *_below(network)]:
        if isinstance(layer, BatchNormLayer):
            owners.update(dict.fromkeys(layer.get_params(), layer))
    params, done = get_all_params(network), set()
    for param in params:
        layer = owners.get(param)
        if layer is None:
            found.append(param.get_value())
        elif layer not in done:
            done.add(layer)
            size = layer.mean.get_value().size
            found += [value.get_value().reshape(size)
                      for value in (layer.beta, layer.gamma)
                      if value is not None]
            found += [layer.mean.get_value().reshape(size), 1 / (
                layer.std.get_value().reshape(size) + layer.epsilon)]
    return found


def _below(layer):
    below = getattr(layer, "input_layer", None)
    return [below, *_below(below)] if below is not None else []


@many(8, quick=25)
@given(networks(), SEEDS, st.sampled_from(
    ["right", "missing", "more", "shape", "NaN", "text", "no list"]),
    st.integers(0, 99))
def test_lists(drawn, seed, kind, place):
    network, _ = drawn
    expected = expected_list(network)
    found = get_lasagne_values(network)
    assert len(found) == len(expected)
    for value, wanted in zip(found, expected):
        assert_allclose(value, wanted, rtol=1e-6, atol=1e-9)
    randomize(network, np.random.RandomState(seed))
    if kind == "right":
        set_lasagne_values(network, expected)
        for value, wanted in zip(expected_list(network), expected):
            assert_allclose(value, wanted, rtol=1e-6, atol=1e-9)
        return
    values = [np.array(value) for value in expected]
    place %= len(values)
    if kind == "missing":
        del values[place]
    elif kind == "more":
        values.insert(place, np.ones((2, 1, 1)))
    elif kind == "shape":
        values[place] = values[place][..., np.newaxis]
    elif kind == "NaN":
        values[place].flat[-1] = np.nan
    elif kind == "text":
        values[place] = "text"
    else:
        values = iter(values)
    before = bits(network)
    with pytest.raises(TypeError if kind in ("text", "no list")
                       else ValueError, match=r"set_lasagne_values\(\): "):
        set_lasagne_values(network, values)
    assert bits(network) == before


