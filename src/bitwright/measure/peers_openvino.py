"""OpenVINO's CPU plugin as a peer: float32, bfloat16, and the int8 model of `peers_ort`, on the same ONNX files."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from torch import nn

from bitwright.measure import peers_ort
from bitwright.transforms.twin import FloatNet

Call = Callable[[], object]
Feeds = dict[str, np.ndarray]


def fp32(net: FloatNet, threads: int) -> dict[str, Call]:
    """The exported float net."""
    return _float(net, threads, "f32")


def bf16(net: FloatNet, threads: int) -> dict[str, Call]:
    """The same file; the plugin converts inside, its input and output stay float32."""
    return _float(net, threads, "bf16")


def int8(net: FloatNet, threads: int) -> dict[str, Call]:
    """What onnxruntime's tool quantized, in QDQ form; the input is uint8 before the clock runs.

    A single layer gives uint8 too. It stays in QDQ form: the plugin runs QLinearConv in float.
    """
    model, feeds = peers_ort.quantized(net)
    if net.single is not None:
        _integer_output(model)
    return _layouts(net, model, feeds, threads, "f32")


def _float(net: FloatNet, threads: int, precision: str) -> dict[str, Call]:
    return _layouts(net, *peers_ort.exported(net), threads, precision)


def _layouts(net: FloatNet, model: Any, feeds: Feeds, threads: int, precision: str) -> dict[str, Call]:
    """A lone convolution is tried in the plugin's own layout too; in a whole net the conversion of the image is small."""
    variants = {"plain": bound(model, feeds, threads, precision)}
    if isinstance(net.single, nn.Conv2d):
        variants["channels_last"] = bound(*_channels_last(model, feeds), threads, precision)
    return variants


def runtime() -> Any:
    """The package `openvino`, imported without its telemetry.

    With telemetry, the import alone sends data out, from a process that it forks while others are being measured.
    """
    name, modules = "openvino_telemetry", cast("dict[str, Any]", sys.modules)
    masked = name not in modules and "openvino" not in modules
    if masked:
        modules[name] = None  # "not installed": openvino has a stub for that case
    try:
        return importlib.import_module("openvino")
    finally:
        if masked:
            del modules[name]


def bound(model: Any, feeds: Feeds, threads: int, precision: str) -> Call:
    """A call that runs the model on memory set beforehand: no copies.

    precision   the inference precision, "f32" or "bf16"
    Errors: RuntimeError where the plugin does not take the model, has not that many threads or not that precision.
    """
    ov = runtime()
    asked = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "ENABLE_HYPER_THREADING": True,  # a thread is a logical processor, as it is for the other peers
        "ENABLE_CPU_PINNING": False,  # the other programs are not tied to one core either
    }
    core = ov.Core()
    try:
        compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", asked)
    except Exception as error:
        raise RuntimeError(f"OpenVINO: {_reason(str(error))}") from error
    got = compiled.get_property("INFERENCE_NUM_THREADS")
    if got != threads:
        raise RuntimeError(f"OpenVINO runs {got} of {threads} threads: it takes no more than this process has CPUs")
    if compiled.get_property("INFERENCE_PRECISION_HINT") != getattr(ov.Type, precision):
        raise RuntimeError(f"OpenVINO has no {precision} on this CPU")
    request = compiled.create_infer_request()
    kept = {name: np.array(value, order="C") for name, value in feeds.items()}
    for name, value in kept.items():
        request.set_tensor(name, ov.Tensor(value, shared_memory=True))
    # the default argument keeps the inputs alive: a shared tensor does not; the results are views of the request's memory
    return lambda _kept=kept: request.infer(share_outputs=True)


def _reason(text: str) -> str:
    """The line of an error of OpenVINO that says why: the first of its summary, else the last; the others say where."""
    _, summary, rest = text.rpartition("Summary:")
    lines = [line.strip("- ") for line in rest.splitlines() if line.strip("- ")]
    return (lines[0] if summary else lines[-1]) if lines else ""


def _integer_output(model: Any) -> None:
    """Drops the dequantize step of the output: the result is uint8, as for the other int8 peers of a single layer."""
    from onnx import TensorProto

    (output,) = model.graph.output
    last = next(n for n in model.graph.node if output.name in n.output)
    if last.op_type == "DequantizeLinear":
        model.graph.node.remove(last)
        output.name = last.input[0]
        output.type.tensor_type.elem_type = TensorProto.UINT8


def _channels_last(model: Any, feeds: Feeds) -> tuple[Any, Feeds]:
    """The same convolution with input and output [N, H, W, C]: transposed next to it, where the plugin drops both steps."""
    from onnx import helper

    model = copy.deepcopy(model)
    nodes = list(model.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.op_type == "Conv")
    conv = nodes[at]
    before = helper.make_node("Transpose", [conv.input[0]], ["plain_x"], perm=(0, 3, 1, 2))
    after = helper.make_node("Transpose", ["plain_y"], [conv.output[0]], perm=(0, 2, 3, 1))
    conv.input[0], conv.output[0] = "plain_x", "plain_y"
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend([*nodes[:at], before, conv, after, *nodes[at + 1 :]])
    for value in (*model.graph.input, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        n, c, h, w = (d.dim_value for d in sizes)
        for dim, size in zip(sizes, (n, h, w, c), strict=True):
            dim.dim_value = size
    return model, {name: x.transpose(0, 2, 3, 1) for name, x in feeds.items()}
