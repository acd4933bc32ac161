"""Make batch normalization by PyTorch, ONNX Runtime and oneDNN."""

import os

from . import onednn
from .agreement import TORCH, TRAINING, Program
from .cases import ALPHA


def with_torch(case, data, rectify, training, compiled=False, inplace=False,
               channels_last=False):
    """Call PyTorch's functions, and its gradients of them."""
    import torch  # An extra, and slow to import.

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    forward = _torch_forward(training, rectify, compiled, inplace)
    x, dy = (_channels_second(torch.from_numpy(array), case)
             for array in (data.x, data.dy))
    if channels_last:
        x, dy = (tensor.contiguous(memory_format=torch.channels_last)
                 for tensor in (x, dy))
    gamma, beta, mean, variance = (
        torch.tensor(array.ravel()) for array in (
            data.gamma, data.beta, data.mean, data.variance))
    if training:
        mean.zero_(), variance.fill_(1)
        wrt = [tensor.requires_grad_() for tensor in (x, gamma, beta)]

        def call():
            y = forward(x, gamma, beta, mean, variance)
            return (*torch.autograd.grad(y, wrt, dy), y)
    else:
        def call():
            with torch.inference_mode():
                return (forward(x, gamma, beta, mean, variance),)

    def results():
        found = [_channels_back(output.detach().numpy(), case)
                 for output in call()]
        found += [mean.numpy(), variance.numpy()]
        return dict(zip(TRAINING if training else ["y"], found))
    return Program(call, results)


def _torch_forward(training, rectify, compiled, inplace):
    import torch
    from torch.nn import functional

    def forward(x, gamma, beta, mean, variance):
        y = functional.batch_norm(
            x, mean, variance, gamma, beta, training=training,
            momentum=ALPHA, eps=TORCH.epsilon)
        return functional.relu(y, inplace=inplace) if rectify else y

    return torch.compile(forward, dynamic=False) if compiled else forward


def _channels_second(array, case):
    """Move channels to the second axis; in memory, they stay in place."""
    if case.kind != "sequence":
        return array
    axes = 0, 3, 1, 2
    return array.permute(axes) if hasattr(array, "permute") \
        else array.transpose(axes)


def _channels_back(array, case):
    """Move the channels of a batch back."""
    is_batch = array.ndim == len(case.shape) and case.kind == "sequence"
    return array.transpose(0, 2, 3, 1) if is_batch else array


def with_onnxruntime(case, data, rectify, training):
    """Run a model of one node or two by ONNX Runtime; inference only.

    It allocates its output in each call, as the others do.
    """
    import onnxruntime

    # ONNX wants channels on the second axis: a sequence is one of rows.
    x = data.x.reshape(-1, data.x.shape[-1]) if case.kind == "sequence" \
        else data.x
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    session = onnxruntime.InferenceSession(
        _onnx_model(x, data, rectify).SerializeToString(), options,
        providers=["CPUExecutionProvider"])
    inputs = {"x": onnxruntime.OrtValue.ortvalue_from_numpy(x)}

    def call():
        return session.run_with_ort_values(["y"], inputs)
    return Program(call, lambda: {"y": call()[0].numpy()})


def _onnx_model(x, data, rectify):
    from onnx import TensorProto, helper, numpy_helper

    names = ["gamma", "beta", "mean", "variance"]
    nodes = [helper.make_node("BatchNormalization", ["x", *names],
                              ["z" if rectify else "y"],
                              epsilon=TORCH.epsilon)]
    if rectify:
        nodes.append(helper.make_node("Relu", ["z"], ["y"]))
    graph = helper.make_graph(
        nodes, "batch_norm",
        *([helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape)]
          for name in ("x", "y")),
        initializer=[numpy_helper.from_array(getattr(data, name).ravel(), name)
                     for name in names])
    # Which older versions of ONNX Runtime know as well.
    return helper.make_model(graph, ir_version=8, opset_imports=[
        helper.make_opsetid("", 15)])


def with_onednn(case, data, rectify, training, layout):
    """Run oneDNN's primitive, in memory that is allocated before."""
    there = data._replace(**{
        name: _channels_second(getattr(data, name), case)
        for name in ("x", "dy")})
    primitive = onednn.Primitive(
        there, layout, rectify, training, TORCH.epsilon, ALPHA)

    def results():
        primitive.call()
        y, dx, *others = primitive.results()
        y, dx = (_channels_back(array, case) for array in (y, dx))
        dgamma, dbeta, mean, spread = others
        found = dx, dgamma, dbeta, y, mean, spread
        return dict(zip(TRAINING, found)) if training else {"y": y}
    return Program(primitive.call, results)
