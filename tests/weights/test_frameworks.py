"""Weights to and from PyTorch, Keras and ONNX: the real ones.

The other tests need none of them.
"""

from bnlasagne import (
    BatchNormLayer,
    batch_norm,
    fold_batch_norm,
    get_keras_weights,
    get_torch_state_dict,
    set_keras_weights,
    set_torch_state_dict,
)

import lasagne
import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.common import later, needs_compiler
from helpers.folded import inputs_of, randomize
from helpers.weights import assert_close, batch_for, linear, norm
from lasagne.layers import (
    ConcatLayer,
    Conv1DLayer,
    Conv2DLayer,
    DenseLayer,
    DropoutLayer,
    ElemwiseSumLayer,
    FlattenLayer,
    InputLayer,
    MaxPool2DLayer,
    NINLayer,
    NonlinearityLayer,
    get_all_params,
    get_output,
)
from lasagne.nonlinearities import rectify

pytestmark = needs_compiler


# --- the frameworks --------------------------------------------------------

@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip(
        "torch", reason="needs PyTorch: pip install .[frameworks]")


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    """Keras, on PyTorch."""
    with pytest.MonkeyPatch.context() as patch:
        # Both are read on import.
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        pytest.importorskip(
            "torch", reason="needs PyTorch: pip install .[frameworks]")
        return pytest.importorskip(
            "keras", reason="needs Keras: pip install .[frameworks]")


@pytest.fixture
def keras(backend, floatX):
    before = backend.config.floatx()
    backend.config.set_floatx(floatX)
    backend.config.set_dtype_policy(floatX)
    yield backend
    backend.config.set_floatx(before)
    backend.config.set_dtype_policy(before)


@pytest.fixture(scope="module")
def onnx():
    return pytest.importorskip(
        "onnx", reason="needs ONNX: pip install .[frameworks]")


# --- what the tests share --------------------------------------------------

def compiled(network):
    """The network's output, and that of the same without batch norm."""
    return theano.function(
        inputs_of(network), get_output([network, fold_batch_norm(network)],
                                       deterministic=True),
        mode=theano.Mode("cvm", "fast_compile"))


def random(rng, shape, is_variance):
    return rng.uniform(0.2, 1.5, shape) if is_variance \
        else 0.5 * rng.normal(size=shape)


def images(*shape):
    return InputLayer((None,) + shape, T.TensorType(
        theano.config.floatX, (False,) * (1 + len(shape)))())


SHAPE = (3, 12, 10)


def cnn():
    """Padding, stride, pooling, a residual sum, flattening."""
    layer = batch_norm(Conv2DLayer(images(*SHAPE), 6, 3, stride=2, pad=1,
                                   name="conv1"), name="bn1")
    pooled = MaxPool2DLayer(layer, 2)
    layer = batch_norm(Conv2DLayer(pooled, 6, 3, pad=1, nonlinearity=None,
                                   name="conv2"), name="bn2")
    layer = NonlinearityLayer(ElemwiseSumLayer([pooled, layer]), rectify)
    layer = batch_norm(DenseLayer(layer, 7, name="fc1"), name="bn3")
    return DenseLayer(layer, 4, nonlinearity=None, name="fc2")


# --- PyTorch ---------------------------------------------------------------

def torch_cnn(torch):
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
            self.bn1 = nn.BatchNorm2d(6)
            self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(6)
            self.fc1 = nn.Linear(36, 7)
            self.bn3 = nn.BatchNorm1d(7)
            self.fc2 = nn.Linear(7, 4)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            pooled = nn.functional.max_pool2d(x, 2)
            x = torch.relu(pooled + self.bn2(self.conv2(pooled)))
            x = torch.relu(self.bn3(self.fc1(torch.flatten(x, 1))))
            return self.fc2(x)

    return Net()


TORCH = {
    "cnn": (SHAPE, torch_cnn, lambda i: cnn()),
    "dense": (
        (7,), lambda t: t.nn.Sequential(t.nn.Linear(7, 5),
                                        t.nn.BatchNorm1d(5, affine=False)),
        lambda i: batch_norm(DenseLayer(i, 5, nonlinearity=None), beta=None,
                             gamma=None)),
    "nin": (
        (3, 4, 5), lambda t: t.nn.Sequential(t.nn.Conv2d(3, 5, 1),
                                             t.nn.BatchNorm2d(5)),
        lambda i: norm("NINLayer", i, 5)),
    "conv 1D": (
        (3, 9), lambda t: t.nn.Sequential(
            t.nn.Conv1d(3, 5, 3, stride=2), t.nn.BatchNorm1d(5)),
        lambda i: norm("Conv1DLayer", i, 5, 3, stride=2)),
}
TORCH_LATER = {
    "groups": (
        (6, 5, 4), lambda t: t.nn.Sequential(
            t.nn.Conv2d(6, 4, (3, 2), groups=2), t.nn.BatchNorm2d(4)),
        lambda i: norm("Conv2DLayer", i, 4, (3, 2), num_groups=2)),
    "not flipped": (
        (3, 5, 4), lambda t: t.nn.Sequential(
            t.nn.Conv2d(3, 4, (3, 2)), t.nn.BatchNorm2d(4)),
        lambda i: norm("Conv2DLayer", i, 4, (3, 2), flip_filters=False)),
    "dilated": (
        (3, 6, 5), lambda t: t.nn.Sequential(
            t.nn.Conv2d(3, 4, (3, 2), dilation=2), t.nn.BatchNorm2d(4)),
        lambda i: norm("DilatedConv2DLayer", i, 4, (3, 2), dilation=2)),
    "transposed": (
        (3, 4, 5), lambda t: t.nn.Sequential(
            t.nn.ConvTranspose2d(3, 4, (3, 2), stride=2, padding=1),
            t.nn.BatchNorm2d(4)),
        lambda i: norm("TransposedConv2DLayer", i, 4, (3, 2), stride=2,
                       crop=1)),
    "transposed, flipped": (
        (3, 4, 5), lambda t: t.nn.Sequential(
            t.nn.ConvTranspose2d(3, 4, (3, 2)), t.nn.BatchNorm2d(4)),
        lambda i: norm("TransposedConv2DLayer", i, 4, (3, 2),
                       flip_filters=True)),
    "conv 3D": (
        (2, 4, 3, 3), lambda t: t.nn.Sequential(
            t.nn.Conv3d(2, 4, (3, 2, 1)), t.nn.BatchNorm3d(4)),
        lambda i: norm("Conv3DLayer", i, 4, (3, 2, 1))),
    "transposed 3D": (
        (2, 3, 2, 2), lambda t: t.nn.Sequential(
            t.nn.ConvTranspose3d(2, 4, (3, 2, 2), stride=2),
            t.nn.BatchNorm3d(4)),
        lambda i: norm("TransposedConv3DLayer", i, 4, (3, 2, 2), stride=2)),
}


def randomize_module(module, torch, rng):
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.from_numpy(np.asarray(random(
                rng, tuple(value.shape), key.endswith("var")))))


@pytest.mark.parametrize("kind", [*TORCH, *[
    pytest.param(kind, marks=later) for kind in TORCH_LATER]])
def test_torch(rng, torch, floatX, kind):
    shape, make_module, make_network = dict(TORCH, **TORCH_LATER)[kind]
    module = make_module(torch).to(getattr(torch, floatX)).eval()
    randomize_module(module, torch, rng)
    incoming = images(*shape)
    network, batch = make_network(incoming), batch_for(incoming, rng)

    def logits():
        with torch.no_grad():
            return module(torch.from_numpy(batch)).numpy()

    expected = logits()
    set_torch_state_dict(network, module.state_dict())
    for output in compiled(network)(batch):
        assert_close(output, expected)
    found = get_torch_state_dict(network, like=module.state_dict())
    for value in module.state_dict().values():
        value.zero_()
    module.load_state_dict({key: torch.from_numpy(value)
                            for key, value in found.items()})
    assert_close(logits(), expected)


def test_torch_by_names(rng, torch, float64):
    """As it is without `like`, from a network that was not set before."""
    network = randomize(cnn(), rng)
    module = torch_cnn(torch).to(torch.float64).eval()
    module.conv1.bias = module.fc1.bias = None
    for each in (module.bn1, module.bn2, module.bn3):
        each.eps = 0.25
    found = get_torch_state_dict(network, epsilon=0.25)
    module.load_state_dict({key: torch.from_numpy(value)
                            for key, value in found.items()})
    batch = batch_for(images(*SHAPE), rng)
    with torch.no_grad():
        expected = module(torch.from_numpy(batch)).numpy()
    for output in compiled(network)(batch):
        assert_close(output, expected)


@pytest.mark.parametrize("like", [None, "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("as_tensors", [False, True])
def test_torch_loads_what_it_gets(rng, torch, float64, like, as_tensors):
    """Arrays as they are, or as tensors that the user makes of them."""
    network = randomize(cnn(), rng)
    module = torch_cnn(torch)
    if like is None:
        module.conv1.bias = module.fc1.bias = None
        found = get_torch_state_dict(network)
    else:
        module = module.to(getattr(torch, like))
        found = get_torch_state_dict(network, like=module.state_dict())
    if as_tensors:
        found = {key: torch.from_numpy(value)
                 for key, value in found.items()}
    module.load_state_dict(found)
    precision = {"float16": 1e-3, "bfloat16": 1e-2, "float64": 1e-12}
    expected = get_torch_state_dict(network)
    for key, value in module.state_dict().items():
        if key in expected:
            assert_close(value.to(torch.float64).numpy(),
                         np.asarray(expected[key]),
                         precision.get(like, 1e-6))


@pytest.mark.parametrize("make", [
    lambda torch, value: torch.nn.Parameter(value),
    lambda torch, value: value.to(torch.bfloat16).requires_grad_(),
    lambda torch, value: value.to(torch.float16)],
    ids=["to be trained", "bfloat16", "float16"])
def test_torch_tensors(rng, torch, float64, make):
    network = BatchNormLayer((None, 4), name="n")
    module = torch.nn.BatchNorm1d(4)
    randomize_module(module, torch, rng)
    tensors = {"n." + key: make(torch, value)
               for key, value in module.state_dict().items()
               if value.is_floating_point()}
    set_torch_state_dict(network, tensors)
    found = get_torch_state_dict(network, like=tensors)
    for key, value in tensors.items():
        assert_close(np.asarray(found[key], "float64"),
                     value.detach().double().numpy(), 1e-3)


@pytest.mark.parametrize("layout", ["sparse", "meta"])
def test_torch_tensors_without_values(torch, float64, layout):
    network = DenseLayer(InputLayer((None, 4)), 4, name="fc")
    module = torch.nn.Linear(4, 4, device="meta" if layout == "meta" else None)
    weights = module.state_dict()
    if layout == "sparse":
        weights["weight"] = weights["weight"].to_sparse()
    with pytest.raises(TypeError, match="weight must be an array of numbers"):
        set_torch_state_dict(network, weights)


@pytest.mark.parametrize("options, hint", [
    ({"affine": False}, r"'1' has no weight and no bias \(affine=False\)\. "
     "Build BatchNormLayer 'n' with gamma=None and beta=None"),
    ({"track_running_stats": False}, "'1' has no running_mean and no "
     "running_var.*track_running_stats=False"),
])
def test_torch_modules_that_lack_something(torch, float64, options, hint):
    network = BatchNormLayer(DenseLayer(InputLayer((None, 4)), 4), name="n")
    module = torch.nn.Sequential(torch.nn.Linear(4, 4),
                                 torch.nn.BatchNorm1d(4, **options))
    with pytest.raises(ValueError, match=hint):
        set_torch_state_dict(network, module.state_dict())


def test_torch_checkpoints(torch, float64):
    """A module, wrapped, in a checkpoint with its optimizer."""
    network = DenseLayer(InputLayer((None, 4)), 3, name="fc")
    module = torch.nn.DataParallel(torch.nn.ModuleDict(
        {"fc": torch.nn.Linear(4, 3)}))
    optimizer = torch.optim.Adam(module.parameters())
    module.module["fc"](torch.ones(2, 4)).sum().backward()
    optimizer.step()
    checkpoint = {"epoch": 1, "optimizer": optimizer.state_dict(),
                  "model": module.state_dict()}
    with pytest.raises(TypeError, match=r"Pass checkpoint\['model'\]\.$"):
        set_torch_state_dict(network, checkpoint)
    with pytest.raises(TypeError, match=r"Pass module.state_dict\(\)\.$"):
        set_torch_state_dict(network, module)
    with pytest.raises(TypeError, match=r"checkpoint\['m'\].state_dict\("):
        set_torch_state_dict(network, {"m": module, "o": optimizer})
    set_torch_state_dict(network, checkpoint["model"])
    assert_close(network.W.get_value(), module.module[
        "fc"].weight.detach().double().numpy().T, 1e-12)


# --- Keras -----------------------------------------------------------------

# Keras computes products in single precision, whatever the layers' type is,
# except on TensorFlow: its type promotion makes float32 of two float64.
KERAS_CLOSE = 1e-5


def keras_cnn(k):
    layers = k.layers
    first = layers.Input(SHAPE[1:] + SHAPE[:1])
    # Lasagne pads on both sides, other than 'same' with a stride.
    x = layers.Conv2D(6, 3, strides=2, name="conv1")(
        layers.ZeroPadding2D(1)(first))
    x = layers.ReLU()(layers.BatchNormalization(name="bn1")(x))
    pooled = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv2")(
        pooled)
    x = layers.Add()([pooled, layers.BatchNormalization(name="bn2")(x)])
    x = layers.Dense(7, name="fc1")(layers.Flatten()(layers.ReLU()(x)))
    x = layers.ReLU()(layers.BatchNormalization(name="bn3")(x))
    return k.Model(first, layers.Dense(4, name="fc2")(x))


def sequential(*make):
    return lambda k: k.Sequential([k.layers.Input(make[0])] + [
        getattr(k.layers, kind)(*args, **kwargs)
        for kind, args, kwargs in make[1:]])


def flattened(i):
    layer = FlattenLayer(batch_norm(Conv2DLayer(i, 5, (3, 2))))
    layer = DropoutLayer(BatchNormLayer(layer))
    return DenseLayer(layer, 4, nonlinearity=None)


def keras_concatenated(k):
    first = k.layers.Input((5, 4, 3))
    parts = [k.layers.Flatten()(k.layers.Conv2D(
        filters, filters, name="conv%d" % filters)(first))
        for filters in (2, 3)]
    return k.Model(first, k.layers.Dense(4)(
        k.layers.Concatenate()(parts)))


def concatenated(i):
    parts = [FlattenLayer(Conv2DLayer(i, filters, filters, nonlinearity=None,
                                      name="conv%d" % filters))
             for filters in (2, 3)]
    return DenseLayer(ConcatLayer(parts), 4, nonlinearity=None)


NORM = ("BatchNormalization", (), {})
KERAS = {
    "cnn": (SHAPE, keras_cnn, lambda i: cnn()),
    "flattened": ((3, 5, 4), sequential(
        (5, 4, 3), ("Conv2D", (5, (3, 2)), {}), NORM, ("ReLU", (), {}),
        ("Flatten", (), {}), NORM, ("Dropout", (0.5,), {}),
        ("Dense", (4,), {})), flattened),
    "concatenated": ((3, 5, 4), keras_concatenated, concatenated),
    "neither scale nor shift": ((3, 4, 5), sequential(
        (4, 5, 3), ("Conv2D", (5, 1), {}),
        ("BatchNormalization", (), {"center": False, "scale": False})),
        lambda i: batch_norm(NINLayer(i, 5, nonlinearity=None), beta=None,
                             gamma=None)),
    "conv 1D": ((3, 9), sequential(
        (9, 3), ("Conv1D", (5, 3), {}), NORM, ("Flatten", (), {}),
        ("Dense", (4,), {})), lambda i: DenseLayer(batch_norm(Conv1DLayer(
            i, 5, 3, nonlinearity=None)), 4, nonlinearity=None)),
}
KERAS_LATER = {
    "groups": ((4, 5, 4), sequential(
        (5, 4, 4), ("Conv2D", (6, (3, 2)), {"groups": 2}), NORM),
        lambda i: norm("Conv2DLayer", i, 6, (3, 2), num_groups=2)),
    "dilated": ((3, 6, 5), sequential(
        (6, 5, 3), ("Conv2D", (4, (3, 2)), {"dilation_rate": 2}), NORM),
        lambda i: norm("DilatedConv2DLayer", i, 4, (3, 2), dilation=2)),
    "transposed": ((3, 4, 5), sequential(
        (4, 5, 3), ("Conv2DTranspose", (4, (3, 2)), {"strides": 2}), NORM),
        lambda i: norm("TransposedConv2DLayer", i, 4, (3, 2), stride=2)),
    "conv 3D": ((2, 4, 3, 3), sequential(
        (4, 3, 3, 2), ("Conv3D", (4, (3, 2, 1)), {}), NORM),
        lambda i: norm("Conv3DLayer", i, 4, (3, 2, 1))),
}


def by_path(model):
    return {weight.path: np.array(weight.numpy()) for weight in model.weights}


@pytest.mark.parametrize("kind", [*KERAS, *[
    pytest.param(kind, marks=later) for kind in KERAS_LATER]])
def test_keras(rng, keras, floatX, kind):
    shape, make_model, make_network = dict(KERAS, **KERAS_LATER)[kind]
    model = make_model(keras)
    for weight in model.weights:
        weight.assign(random(rng, weight.shape, "variance" in weight.path))
    incoming = images(*shape)
    network, batch = make_network(incoming), batch_for(incoming, rng)

    def logits():
        output = np.asarray(model.predict_on_batch(
            np.ascontiguousarray(np.moveaxis(batch, 1, -1))))
        return np.moveaxis(output, -1, 1)

    expected = logits()
    weights = by_path(model)
    set_keras_weights(network, weights)
    function = compiled(network)
    for output in function(batch):
        assert_close(output, expected, KERAS_CLOSE)
    found = get_keras_weights(network, like=weights)
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    for weight in model.weights:
        weight.assign(found[weight.path])
    assert_close(logits(), expected, KERAS_CLOSE)
    # The same, by layer.
    for param in get_all_params(network):
        param.set_value(0 * param.get_value())
    set_keras_weights(network, {layer.name: layer.get_weights()
                                for layer in model.layers})
    assert_close(function(batch)[0], expected, KERAS_CLOSE)


# --- ONNX ------------------------------------------------------------------

def onnx_output(onnx, nodes, arrays, batch, ndim):
    """Run a graph of (operator, inputs, output, attributes)."""
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    kind = helper.np_dtype_to_tensor_dtype(batch.dtype)
    graph = helper.make_graph(
        [helper.make_node(operator, inputs.split(), [output], **attributes)
         for operator, inputs, output, attributes in nodes], "network",
        [helper.make_tensor_value_info("x", kind, [None] * batch.ndim)],
        [helper.make_tensor_value_info(nodes[-1][2], kind, [None] * ndim)],
        [numpy_helper.from_array(array, name)
         for name, array in arrays.items()])
    model = helper.make_model(graph)
    onnx.checker.check_model(model)
    return ReferenceEvaluator(model).run(None, {"x": batch})[0]


# A number of 32 bits there, and exactly this one.
EPSILON = 2 ** -10


def onnx_norm(inputs, name, output):
    return ("BatchNormalization", inputs + " " + " ".join(
        name + "." + each for each in ("weight", "bias", "running_mean",
                                       "running_var")), output,
            {"epsilon": EPSILON})


def test_onnx(rng, onnx, floatX):
    network = randomize(cnn(), rng)
    batch = batch_for(images(*SHAPE), rng)
    actual = onnx_output(onnx, [
        ("Conv", "x conv1.weight", "c1",
         {"pads": [1] * 4, "strides": [2, 2]}),
        onnx_norm("c1", "bn1", "n1"),
        ("Relu", "n1", "r1", {}),
        ("MaxPool", "r1", "p1", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", "p1 conv2.weight", "c2", {"pads": [1] * 4}),
        onnx_norm("c2", "bn2", "n2"),
        ("Add", "p1 n2", "s", {}),
        ("Relu", "s", "r2", {}),
        ("Flatten", "r2", "f", {}),
        ("Gemm", "f fc1.weight", "c3", {"transB": 1}),
        onnx_norm("c3", "bn3", "n3"),
        ("Relu", "n3", "r3", {}),
        ("Gemm", "r3 fc2.weight fc2.bias", "y", {"transB": 1}),
    ], get_torch_state_dict(network, epsilon=EPSILON), batch, 2)
    for expected in compiled(network)(batch):
        assert_close(actual, expected)


ONNX = {
    "Conv1DLayer": ((3, 9), {"filter_size": 3, "stride": 2}, "Conv",
                    {"strides": [2]}),
    "NINLayer": ((3, 4, 2), {}, "Conv", {}),
    "DilatedConv2DLayer": ((3, 6, 5), {"filter_size": (3, 2), "dilation": 2},
                           "Conv", {"dilations": [2, 2]}),
    "TransposedConv2DLayer": (
        (3, 4, 3), {"filter_size": (3, 2), "stride": 2, "crop": 1},
        "ConvTranspose", {"strides": [2, 2], "pads": [1] * 4}),
    "Conv3DLayer": ((2, 4, 3, 3), {"filter_size": (3, 2, 1)}, "Conv", {}),
}


@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=[] if hasattr(lasagne.layers, kind) else later)
    for kind in ONNX])
def test_onnx_layers(rng, onnx, floatX, kind):
    shape, options, operator, attributes = ONNX[kind]
    incoming = images(*shape)
    layer = linear(kind, incoming, 5, name="a", **options)
    network = randomize(BatchNormLayer(layer, name="b"), rng)
    batch = batch_for(incoming, rng)
    actual = onnx_output(onnx, [
        (operator, "x a.weight a.bias", "c", attributes),
        onnx_norm("c", "b", "y")],
        get_torch_state_dict(network, epsilon=EPSILON), batch, batch.ndim)
    for expected in compiled(network)(batch):
        assert_close(actual, expected)
