"""`export.onnx`: a packed net becomes one ONNX file that every onnxruntime runs, fast where our operators are registered."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.engine.convert import Converted
from bitwright.engine.packed import PackedModel
from bitwright.errors import InputError
from bitwright.export.checks import checked, compared, operators, tensors_of, write
from bitwright.ort import session
from bitwright.quiet import quiet, without_telemetry
from bitwright.transforms.twin import one_line
from bitwright.version import __version__

OPSET = 18
IR_VERSION = 9  # what onnxruntime 1.17 reads


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it was checked.

    path         the file
    bytes        its size
    operators    how often each operator stands in it; ours as `bitwright::NAME`
    images       samples that both programs were given
    largest      the largest difference of a value, as a share of the largest value
    differ       samples with a difference beyond 1e-3 of the largest value: a code near a threshold went the other way,
                 because a float layer in front of it rounds differently in onnxruntime
    """

    path: str
    bytes: int
    operators: dict[str, int]
    images: int
    largest: float
    differ: int

    def __str__(self) -> str:
        ours = sum(n for op, n in self.operators.items() if op.startswith("bitwright::"))
        said = f"largest difference {self.largest:.1e}" if self.largest else "equal to the bit"
        more = f", {self.differ} at the border of two codes" if self.differ else ""
        return (
            f"{self.path}: {self.bytes / 1000:,.1f} kB, {sum(self.operators.values())} operators, {ours} of them ours; "
            f"{self.images} samples in onnxruntime: {said}{more}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def onnx(
    model: nn.Module | Converted, example: Any, path: str | os.PathLike[str], *, packed: bool = True, qdq: bool = False
) -> ExportReport:
    """Writes an ONNX file with a dynamic batch and checks it on `example`.

    model    a packed net (`convert(...).model` or `bw.load`), or, with packed=False, also a trained net
    example  one input batch, or a tuple of them
    packed   True: layers with bits are operators of the domain `bitwright`, whose meaning the file carries as functions of
             standard operators: a plain onnxruntime gives the same numbers, slower; `bw.ort.session` runs our kernels.
             False: standard operators only
    qdq      True: standard operators, codes and weights as 8-bit integers between QuantizeLinear and DequantizeLinear, for the
             int8 kernels of onnxruntime and others. Sums are rounded their way, so codes may differ from the net's

    The file of a net for every size (`convert(..., dynamic_size=True)`) takes every height and width that the net takes.

    Weights stay bits in the file in both cases where the model is packed. Inputs with NaN, or numbers beyond 2^20, give NaN.

    Errors: `InputError` for an example or a path that cannot be, a net in layer form, an operator that ONNX has no form of,
    and for answers that differ; nothing is written then.

    Example: `bw.export.onnx(bw.load("net.packed.safetensors"), images, "net.onnx")`
    """
    if isinstance(model, Converted):
        if model.model is None:
            raise InputError(f"export onnx: nothing was converted: {model.report.verdict}", code="refused")
        model = model.model
    inputs, target = checked("export onnx", model, example, path)
    if isinstance(model, PackedModel):
        inputs = tuple(model.environment(*inputs).values())  # of the types that the file takes
        proto = _packed(model, inputs, qdq, kernels=packed)
        if qdq or not packed:
            proto = _standard(proto)
    elif packed or qdq:
        raise InputError(
            f"export onnx: {type(model).__name__} is not packed as one graph. Possible: a net from convert(form='graph'), "
            "or packed=False without qdq for the trained net in standard operators",
            code="export-form",
        )
    else:
        _try(model.eval(), inputs)
        proto = _exported(model, inputs)
    _lean(proto)
    images, largest, differ = _compare(proto, model, inputs)
    data = proto.SerializeToString()
    write("export onnx", target, data)
    return ExportReport(str(target), len(data), operators(proto), images, largest, differ)


def _try(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """One run, so that an example that does not fit is told from a net that does not export."""
    try:
        with torch.no_grad():
            model(*inputs)
    except Exception as error:
        shapes = ", ".join("x".join(str(s) for s in x.shape) for x in inputs)
        text = f"export onnx: {type(model).__name__} does not take the example ({shapes}): {one_line(error)}"
        raise InputError(text, code="example", given=shapes) from error


def packed_proto(model: PackedModel, inputs: tuple[Tensor, ...]) -> Any:
    """The ONNX model of a packed net, not compared yet."""
    proto = _packed(model, inputs)
    _lean(proto)
    return proto


def _packed(model: PackedModel, inputs: tuple[Tensor, ...], qdq: bool = False, kernels: bool = True) -> Any:
    from onnx import helper

    from bitwright.export.functions import protos
    from bitwright.export.net import FusedNet
    from bitwright.export.qdq import QdqNet

    env = model.environment(*inputs)  # checks the example; a batch of 2, so that nothing is taken for constant
    net = QdqNet(model.graph) if qdq else FusedNet(model.runtime, kernels)
    two = tuple(x.repeat(2, *[1] * (x.dim() - 1))[:2].contiguous() for x in env.values())
    proto = _exported(net.eval(), two, model.any_size)
    if model.any_size:
        _name_sides(proto)
    proto.functions.extend(protos(net.used))
    if not any(o.domain == "bitwright" for o in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid("bitwright", 1))
    return proto


def _name_sides(proto: Any) -> None:
    """Names for the free axes of an image in place of the exporter's symbols."""
    (entry,) = proto.graph.input
    sides = entry.type.tensor_type.shape.dim[2:]
    names = {
        d.dim_param: n for d, n in zip(sides, ("height", "width") if len(sides) > 1 else ("length",), strict=False)
    }
    if "" in names:
        text = (
            "export onnx: torch's exporter fixes the size of this net's images. Possible: convert without dynamic_size"
        )
        raise InputError(text, code="export-operator")
    for value in (entry, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def _exported(module: nn.Module, inputs: tuple[Tensor, ...], any_size: bool = False) -> Any:
    """torch's exporter, with a dynamic batch; any_size: the sizes behind the channels are dynamic, too."""
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    sides = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC} if any_size else {}
    shapes = tuple({0: batch, **{axis: side for axis, side in sides.items() if axis < x.dim()}} for x in inputs)
    from bitwright.export.net import FusedNet

    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module, inputs, dynamo=True, opset_version=OPSET, verbose=False,
                dynamic_shapes=(shapes,) if isinstance(module, FusedNet) else shapes,
                input_names=["input" if len(inputs) == 1 else f"input_{i}" for i in range(len(inputs))],
            )  # fmt: skip
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter's own text names its steps, not what went wrong
            cause = cause.__cause__
        raise InputError(
            f"export onnx: torch's exporter does not take this net: {one_line(cause)}", code="export-operator"
        ) from error
    assert program is not None
    return program.model_proto


def _standard(proto: Any) -> Any:
    """Our operators replaced by what they mean."""
    from onnx import inliner

    plain = inliner.inline_local_functions(proto)
    kept = [o for o in plain.opset_import if o.domain != "bitwright"]
    del plain.opset_import[:]
    plain.opset_import.extend(kept)
    return plain


def _lean(proto: Any) -> None:
    """Removes what only the exporter needed: stack traces, module names, shapes of values that are codes; and our operators, where
    they are left, become one."""
    from bitwright.export.one_call import in_one_call

    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version, proto.doc_string = "bitwright", __version__, ""
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    in_one_call(proto)
    for holder in (*proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        del holder.metadata_props[:]
        holder.doc_string = ""
    for dim in (d for value in proto.graph.value_info for d in value.type.tensor_type.shape.dim):
        dim.Clear()
    for function in proto.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""


def _compare(proto: Any, model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[int, float, int]:
    """(samples, largest difference, samples that differ) of the file against the model: run by plain onnxruntime and, where the file
    has our operators and they are built here, by our kernels."""
    with torch.no_grad():
        want = tensors_of(model(*inputs))
    sessions: list[Any] = [_plain_session]
    if any(node.domain == "bitwright" for node in proto.graph.node):
        sessions.append(session)
    samples = inputs[0].shape[0]
    found: list[tuple[float, int]] = []
    for session_of in sessions:
        try:
            runs = session_of(proto.SerializeToString())
            names = [i.name for i in runs.get_inputs()]
            feeds = {n: np.ascontiguousarray(x.detach().numpy()) for n, x in zip(names, inputs, strict=True)}
            got = runs.run(None, feeds)
        except Exception as error:
            raise InputError(
                f"export onnx: onnxruntime does not run the file: {one_line(error)}", code="export-run"
            ) from error
        found.append(compared("export onnx", [np.asarray(y) for y in got], want, samples))
    return samples, max(largest for largest, _ in found), max(differ for _, differ in found)


def _plain_session(data: bytes) -> Any:
    without_telemetry()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
