"""`export.qonnx`: a net with quantizers as a QONNX file, which FINN and hls4ml read; run by the qonnx package and compared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.engine.convert import Converted, convert
from bitwright.engine.graph import Graph
from bitwright.engine.packed import PackedModel
from bitwright.engine.packing import packing_of, part_text, split
from bitwright.errors import InputError
from bitwright.export.checks import checked, compared, operators, tensors_of, write
from bitwright.export.qonnx_graph import DOMAIN, QonnxGraph
from bitwright.export.qonnx_layers import emit
from bitwright.nn import SlotLayer, is_slot_layer
from bitwright.quiet import quiet, without_telemetry
from bitwright.transforms.forward import evaluating
from bitwright.transforms.twin import one_line
from bitwright.transforms.unwrap import unwrap

BATCH = 16  # samples of a run of the qonnx package, which keeps every value of it
AGREE = 0.99  # share of images that must keep the trained net's class


@dataclass(frozen=True)
class QonnxReport:
    """What was written, and how it was checked.

    path         the file, for batches of one sample
    bytes        its size
    operators    how often each operator stands in it; those of QONNX as `qonnx.custom_op.general::NAME`
    floats       layers whose weights have no quantizer
    ran          the version of the qonnx package that cleaned and ran the file; None: it is not installed, so nothing was compared
    images       samples that were compared
    largest      the largest difference from the packed net, as a share of the largest value
    differ       samples with a difference beyond 1e-3 of the largest value: a code near a threshold went the other way, because
                 a float layer in front of it adds in another order
    same         samples with the trained net's class, where a trained net was given and its answers are classes
    """

    path: str
    bytes: int
    operators: dict[str, int]
    floats: list[str]
    ran: str | None
    images: int
    largest: float
    differ: int
    same: int | None

    @property
    def quantizers(self) -> int:
        return sum(n for op, n in self.operators.items() if op.startswith(DOMAIN))

    def __str__(self) -> str:
        rest = f", {len(self.floats)} layers float" if self.floats else ""
        text = f"{self.path}: {self.bytes / 1000:,.1f} kB, {self.quantizers} quantizers{rest}; "
        if self.ran is None:
            return text + "not compared: the package is missing. Install it with: pip install qonnx"
        said = f"largest difference {self.largest:.1e}" if self.largest else "equal to the bit"
        more = f", {self.differ} at the border of two codes" if self.differ else ""
        kept = "" if self.same is None else f"; {self.same} keep the trained net's class"
        return f"{text}{self.images} samples in qonnx {self.ran}: {said}{more}{kept}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def qonnx(model: nn.Module | Converted, example: Any, path: str | os.PathLike[str]) -> QonnxReport:
    """Writes an ONNX file whose quantizers are nodes Quant and BipolarQuant of QONNX, and compares it on `example`.

    model    a trained net with quantizers in its slots (it is converted and verified first), or a packed net in graph form
    example  one input batch, or a tuple of them

    A quantizer of an input is `x` times its steps, then Quant (or BipolarQuant) with scale 1; a weight is its whole numbers
    behind Quant. Behind a layer come one Mul and one Add per channel: the steps, the BatchNorm and the bias. All zero points are
    0. A layer whose input is float has its weight behind a Quant with the weight's scale.

    The file is cleaned and run by the qonnx package on the example, and compared with the packed net, which `convert`
    has compared with the trained one. Without the package the file is written and not compared.

    Errors: `InputError` for a part that Quant cannot say (levels of several units as ttq's, a codebook's, or without even steps; a
    gate), with the layer; for an operator that has no form; and for answers that differ. Nothing is written then.

    Example: `bw.export.qonnx(net, images, "net.onnx")`
    """
    trained = None
    if not isinstance(model, (Converted, PackedModel)):
        checked("export qonnx", model, example, path)
        trained = unwrap(model)
        _sayable(trained)
        model = convert(model, example, form="graph")
    if isinstance(model, Converted):
        if model.model is None:
            raise InputError(f"export qonnx: nothing was converted: {model.report.verdict}", code="refused")
        trained, model = trained or model.source, model.model
    inputs, target = checked("export qonnx", model, example, path)
    if not isinstance(model, PackedModel):
        text = f"export qonnx: {type(model).__name__} is packed in layer form. Possible: convert(form='graph')"
        raise InputError(text, code="export-form")
    if not any(n.op == "quantize" or "weight" in n.attrs for n in model.graph.nodes):
        raise InputError("export qonnx: this net has no quantizer. Possible: bw.export.onnx", code="export-form")
    read = list(model.environment(*inputs).values())
    model = model.at_size(*read)
    written = _graph(model.graph, 1)
    proto = written.model()
    ran, found, same = _version(), (0.0, 0), None
    if ran is not None:
        got = _answers(model.graph, read)
        with torch.no_grad():
            found = compared("export qonnx", got, tensors_of(model(*inputs)), len(read[0]))
            if trained is not None:
                with evaluating(trained):
                    same = _same_class(got[0], trained(*read))
    data = proto.SerializeToString()
    write("export qonnx", target, data)
    images = len(read[0]) if ran is not None else 0
    return QonnxReport(str(target), len(data), operators(proto), written.plain, ran, images, *found, same)


def _graph(graph: Graph, batch: int) -> QonnxGraph:
    written = QonnxGraph(graph, batch)
    emit(written)
    return written


def _sayable(model: nn.Module) -> None:
    """Errors: `InputError` for a slot layer with a part that has no whole numbers: the file would show a float layer."""
    for name, layer in model.named_modules():
        if not is_slot_layer(layer):
            continue
        part = _unsaid(layer)
        if part is not None:
            raise InputError(
                f"export qonnx: {name or 'the layer'}: {part}, which Quant and BipolarQuant cannot say. Possible: a uniform "
                "quantizer (lsq, uniform, dorefa, bwn, sign), or bw.export.onnx",
                code="export-operator",
                layer=name,
            )


def _unsaid(layer: SlotLayer) -> str | None:
    if layer.gate is not None:
        return f"slot gate holds {part_text(layer.gate)}"
    why = packing_of(layer)
    quantizer = split(layer.x)[1]
    return why if isinstance(why, str) and (layer.w is not None or quantizer is not None) else None


def _version() -> str | None:
    """Of the qonnx package; None where it is not installed."""
    from importlib import metadata, util

    return metadata.version("qonnx") if util.find_spec("qonnx") else None


def _answers(graph: Graph, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    """What the qonnx package gives, after its clean-up, batch by batch. Errors: `InputError` where it does not run the file."""
    without_telemetry()
    samples = len(inputs[0])
    batch = min(BATCH, samples)
    found: list[list[np.ndarray]] = []
    try:
        with quiet():
            from qonnx.core.modelwrapper import ModelWrapper
            from qonnx.core.onnx_exec import execute_onnx
            from qonnx.util.cleanup import cleanup_model

            clean = cleanup_model(ModelWrapper(_graph(graph, batch).model()))
            names, outputs = [i.name for i in clean.graph.input], [o.name for o in clean.graph.output]
            for start in range(0, samples, batch):
                taken = [x[start : start + batch].contiguous().numpy() for x in inputs]
                filled = [np.concatenate([x, np.zeros((batch - len(x), *x.shape[1:]), x.dtype)]) for x in taken]
                run = execute_onnx(clean, dict(zip(names, filled, strict=True)))
                found.append([np.asarray(run[o])[: len(taken[0])] for o in outputs])
    except Exception as error:
        text = f"export qonnx: the qonnx package does not run the file: {one_line(error)}"
        raise InputError(text, code="export-run") from error
    return [np.concatenate(pieces) for pieces in zip(*found, strict=True)]


def _same_class(got: np.ndarray, answer: Any) -> int | None:
    """Samples of the same class. Errors: `InputError` where fewer than 99 % have it."""
    want = tensors_of(answer)[0]
    if want.dim() != 2 or want.shape[1] < 2:
        return None
    same = int((want.argmax(1).numpy() == got.argmax(1)).sum())
    if same < AGREE * len(want):
        text = f"export qonnx: {same} of {len(want)} samples keep the trained net's class; nothing was written"
        raise InputError(text, code="export-differs")
    return same
