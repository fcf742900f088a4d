"""onnxruntime as a peer: float32 and static int8 (uint8 x int8 per channel), inputs and outputs bound once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bitwright.engine.packed import PackedModel
from bitwright.quiet import without_telemetry
from bitwright.transforms.twin import FloatNet

Call = Callable[[], object]


def fp32(net: FloatNet, threads: int) -> dict[str, Call]:
    """The exported float net."""
    return {"plain": bound(*exported(net), threads)}


def int8(net: FloatNet, threads: int) -> dict[str, Call]:
    """Quantized by onnxruntime's own tool in QDQ form; a single convolution or linear layer as one integer operator.

    The input is uint8 before the clock runs.
    """
    if isinstance(net.single, nn.Conv2d):
        model, feeds = _conv(net.single, _contiguous(net)[0].numpy())
    elif isinstance(net.single, nn.Linear):
        model, feeds = _linear(net.single, _contiguous(net)[0].numpy())
    else:
        model, feeds = quantized(net)
    return {"plain": bound(model, feeds, threads)}


def _contiguous(net: FloatNet) -> tuple[torch.Tensor, ...]:
    return tuple(t.detach().contiguous() for t in net.inputs)


def export(net: FloatNet) -> Any:
    """ONNX of the float net, by the exporter that gives the plainer graph; the newer one where it has gone."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="bitwright-") as folder:
        path = str(Path(folder) / "net.onnx")
        try:
            torch.onnx.export(net.module, net.inputs, path, dynamo=False, opset_version=17)
        except (TypeError, ImportError, AttributeError):
            torch.onnx.export(net.module, net.inputs, path, dynamo=True, verbose=False)
        return onnx.load(path)


def exported(net: FloatNet) -> tuple[Any, dict[str, np.ndarray]]:
    """ONNX of the float net and its inputs by name."""
    model = export(net)
    return model, {i.name: t.numpy() for i, t in zip(model.graph.input, _contiguous(net), strict=True)}


def packed(model: PackedModel, inputs: tuple[torch.Tensor, ...], threads: int) -> Call:
    """Our packed net, exported, with our operators."""
    from bitwright.export.checks import compared, tensors_of
    from bitwright.export.to_onnx import packed_proto

    proto = packed_proto(model, inputs)
    feeds = {i.name: t.detach().contiguous().numpy() for i, t in zip(proto.graph.input, inputs, strict=True)}

    def same(got: list[Any]) -> None:
        compared("bench", [np.asarray(y) for y in got], tensors_of(model(*inputs)), inputs[0].shape[0], "")

    return bound(proto, feeds, threads, operators=True, check=same)


def bound(
    model: Any,
    feeds: dict[str, np.ndarray],
    threads: int,
    operators: bool = False,
    check: Callable[[list[Any]], None] | None = None,
) -> Call:
    """A call that runs the model on bound memory: no copies, no allocation. `operators`: with ours; `check` gets its answers."""
    without_telemetry()
    import onnxruntime as ort

    from bitwright.ort import register

    options = ort.SessionOptions()
    if operators:
        register(options)
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Its threads spin for a while after a run; in a round-robin they would spin through the next candidate's slice.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    kept = []
    for name, value in feeds.items():
        kept.append(ort.OrtValue.ortvalue_from_numpy(value))
        binding.bind_ortvalue_input(name, kept[-1])
    answers: Any = session.run(None, feeds)
    if check is not None:
        check(answers)
    for out, value in zip(session.get_outputs(), answers, strict=True):
        kept.append(ort.OrtValue.ortvalue_from_numpy(np.asarray(value)))
        binding.bind_ortvalue_output(out.name, kept[-1])
    # the default argument keeps the bound memory alive for as long as the call is
    return lambda _kept=kept: session.run_with_iobinding(binding)


def quantized(net: FloatNet) -> tuple[Any, dict[str, np.ndarray]]:
    """The float net in QDQ form, ranges from its own inputs, and these inputs as uint8."""
    without_telemetry()
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            return next(self.feeds, None)

    float_model, feeds = exported(net)
    with tempfile.TemporaryDirectory(prefix="bitwright-") as folder:
        plain, ready, done = (str(Path(folder) / f"{name}.onnx") for name in ("plain", "ready", "done"))
        onnx.save(float_model, plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            done,
            Reader([feeds]),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return _integer_inputs(onnx.load(done), feeds)


def _integer_inputs(model: Any, feeds: dict[str, np.ndarray]) -> tuple[Any, dict[str, np.ndarray]]:
    """Drops the quantize step of each input: the peer gets what it would compute, uint8, as its input."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
    feeds = dict(feeds)
    for value in list(model.graph.input):
        readers = [n for n in model.graph.node if value.name in n.input]
        if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
            continue
        node = readers[0]
        scale, zero = constants[node.input[1]], constants[node.input[2]]
        x = feeds.pop(value.name)
        feeds[node.output[0]] = np.clip(np.rint(x / scale) + float(zero), 0, 255).astype(np.uint8)
        model.graph.node.remove(node)
        model.graph.input.remove(value)
        model.graph.input.append(helper.make_tensor_value_info(node.output[0], TensorProto.UINT8, x.shape))
    return model, feeds


def _integers(weight: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """int8 weights and a scale per output channel."""
    scale = np.maximum(np.abs(weight).max(axes, keepdims=True), 1e-8) / 127
    return np.rint(weight / scale).astype(np.int8), scale.reshape(-1).astype(np.float32)


def _single(op: str, weight: np.ndarray, scale: np.ndarray, x: np.ndarray, top: float, **attrs: Any) -> Any:
    """A model of one integer operator, uint8 in and out."""
    from onnx import TensorProto, helper, numpy_helper

    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    x_scale = np.float32(max(float(np.abs(x).max()), 1e-6) / 127)
    values = [
        x_scale,
        np.uint8(128),
        weight,
        scale,
        np.zeros(len(scale), np.int8),
        np.float32(top / 127),
        np.uint8(128),
    ]
    node = helper.make_node(op, names, ["y"], **attrs)
    graph = helper.make_graph(
        [node],
        "single",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in zip(names[1:], values, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8  # newer writers default to versions that older runtimes refuse
    return model, {"x": np.clip(np.rint(x / x_scale) + 128, 0, 255).astype(np.uint8)}


def _top(op: nn.Module, x: np.ndarray) -> float:
    with torch.inference_mode():
        return max(float(op(torch.from_numpy(x)).abs().max()), 1e-6)


def _conv(op: nn.Conv2d, x: np.ndarray) -> tuple[Any, dict[str, np.ndarray]]:
    if op.padding_mode != "zeros" or isinstance(op.padding, str):
        raise NotImplementedError(f"padding {op.padding!r}, mode {op.padding_mode}")
    weight, scale = _integers(op.weight.detach().numpy(), (1, 2, 3))
    attrs = {
        "kernel_shape": list(op.kernel_size),
        "strides": list(op.stride),
        "pads": list(op.padding) * 2,
        "dilations": list(op.dilation),
        "group": op.groups,
    }
    return _single("QLinearConv", weight, scale, x, _top(op, x), **attrs)


def _linear(op: nn.Linear, x: np.ndarray) -> tuple[Any, dict[str, np.ndarray]]:
    weight, scale = _integers(op.weight.detach().numpy().T.copy(), (0,))
    return _single("QLinearMatMul", weight, scale, x, _top(op, x))
