"""`convert`: a trained net becomes a packed one, with proof, or a report that says why not."""

from __future__ import annotations

import copy
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.engine import native
from bitwright.engine.files import save
from bitwright.engine.fold import fold
from bitwright.engine.gates import gated_layers, refusal
from bitwright.engine.graph import Graph, Node
from bitwright.engine.packed import PackedModel
from bitwright.engine.packing import describe
from bitwright.engine.report import PASS, REFUSE, WARN, ConvertReport, ReportRow
from bitwright.engine.trace import trace
from bitwright.engine.verify import Proof, remember
from bitwright.engine.verify import verify as prove
from bitwright.errors import InputError
from bitwright.nn import is_slot_layer

LAYERS = ("coded_conv", "coded_linear", "conv", "linear", "conv_transpose")
TIMED = (nn.Linear, nn.Conv1d, nn.Conv2d)
PASS_SHARE, WARN_SHARE = 0.999, 0.99


@dataclass
class Converted:
    """`.model` the packed net, or None where the answer is REFUSE; `.report` why; `.source` the trained net."""

    model: PackedModel | None
    report: ConvertReport
    source: nn.Module
    example: Tensor

    def save(self, path: str | os.PathLike[str], **metadata: Any) -> int:
        """Writes the packed file; returns its bytes. Errors: nothing is written for a refused net."""
        if self.model is None:
            raise InputError(f"save {path}: nothing was converted: {self.report.verdict}", code="refused")
        self.report.file_bytes = save(self.model, path, **metadata)
        return self.report.file_bytes

    def __str__(self) -> str:
        return str(self.report)


def convert(
    model: nn.Module,
    example: Tensor,
    *,
    backend: str = "auto",
    threads: int | None = None,
    verify: bool | Iterable[Any] = True,
    force: bool = False,
) -> Converted:
    """Packs a trained net, proves it equal, and says what it gained.

    model     any module; its slot layers (from `bw.apply` or `bw.nn`) are packed where they encode; left unchanged
    example   one input batch, [N, ...]; any batch size runs later
    backend   "native" kernels, "reference" (plain torch), "auto"
    verify    True: on the example; batches of inputs or (input, target) pairs: on all of them; False: not at all
    force     True: with nothing to pack, a WARN and a float graph that runs without the model's code; answers that
              differ are refused all the same

    Status (contract 3.2): PASS where every layer is exact and at least 99.9 % of images keep their class, and the net
    is faster than the float one; WARN from 99 %, or where it is only smaller; REFUSE below, with nothing to pack, or
    with gates that skip work (`fbs`, `channel_gate`, `precision_gate`), which packed nets cannot run yet.

    >>> import bitwright as bw
    >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), bw.nn.Conv2d(32, 32, 3, w="bwn", x="sign"))
    >>> done = convert(net.eval(), torch.randn(2, 3, 8, 8))
    >>> done.report.layers_exact, [r.runs_as for r in done.report.rows]
    (True, ['float', 'bits'])
    """
    if isinstance(model, PackedModel):
        raise InputError("convert: this net is packed already; run it, or bench it", code="convert-packed")
    example = _example(example)
    if gated := gated_layers(model):
        return Converted(None, refusal(model, gated), model, example)
    traced = trace(model, example)
    graph = fold(traced.graph)
    packed = PackedModel(graph, backend, threads)
    rows = _rows(model, graph, packed, traced.refused)
    report = ConvertReport(rows, backend=packed.backend, isa=native.isa() if packed.backend == "native" else "torch")
    useful = [r for r in rows if r.runs_as != "float"]
    if not useful and not force:
        report.status, report.verdict = REFUSE, _nothing(model, rows)
        return Converted(None, report, model, example)
    if verify is not False:
        _check(report, prove(model, packed, [example] if verify is True else verify))
    _time(report, model, packed, example, threads)
    _verdict(report, verified=verify is not False)
    return Converted(packed if report.status != REFUSE else None, report, model, example)


def _example(example: Any) -> Tensor:
    if not isinstance(example, Tensor) or example.dim() < 2 or example.shape[0] < 1:
        what = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise InputError(f"convert: the example is one batch of inputs [N, ...], got {what}", code="convert-example")
    if example.dtype != torch.uint8 and not example.is_floating_point():
        raise InputError(
            f"convert: the example holds {str(example.dtype).removeprefix('torch.')}, packed nets read floats or uint8 "
            "pixels. Convert the part of the model behind its embedding, with that part's input",
            code="convert-example",
            given=str(example.dtype),
        )
    return example.float() / 255 if example.dtype == torch.uint8 else example.float()


def _rows(model: nn.Module, graph: Graph, packed: PackedModel, refused: dict[str, str]) -> list[ReportRow]:
    by_name = graph.by_name()
    runtime = {n.owner: n for n in packed.runtime.nodes if n.op in LAYERS}
    modules = dict(model.named_modules())
    rows: list[ReportRow] = []
    done: set[str] = set()
    for node in graph.nodes:
        if node.op not in LAYERS or node.owner in done:
            continue
        done.add(node.owner)
        name = node.owner.removesuffix(".plain")
        layer = modules.get(name)
        weight = _weight_count(graph, node)
        extra = 4 * _outputs(graph, node) if (graph.tensor(node, "bias") is not None or node.key("add")) else 0
        after = sum(_bytes(graph.tensors[k]) for k in set(node.attrs.get("tensors", {}).values()))
        bits = "float"
        runs = "float"
        if node.key("bits"):
            planes = int(node.attrs["weight"]["planes"])
            fused = runtime.get(node.owner, node)
            if node.op.startswith("coded"):
                levels = int(by_name[node.inputs[0]].attrs["levels"])
                runs = "int8" if fused.attrs.get("x_form") == "bytes" else "bits"
                bits = f"{planes}/{levels.bit_length()}"
            else:
                runs, bits = "bits on disk, float run", f"{planes}/32"
        why = refused.get(name, "")
        if why:
            why = why.split(": ", 1)[-1]
            frame = str(node.attrs.get("frame") or "")
            why += f" ({frame})" if frame else ""
        elif runs == "float":
            why = "" if layer is None or is_slot_layer(layer) else "its slots are empty"
        elif runs == "bits on disk, float run":
            why = "its input is float"
        if not _any_weight(graph, node):
            why = "; ".join(filter(None, (why, "all its weights are 0, so its output is a constant")))
        kind = describe(layer) if layer is not None else node.op
        rows.append(ReportRow(name or "(net)", kind, runs, bits, 4 * weight + extra, after, why=why))
    return rows


def _any_weight(graph: Graph, node: Node) -> bool:
    """Whether some weight is not 0; of a weight stored as bits, so that what it says is what was packed."""
    bits = graph.tensor(node, "bits")
    if bits is None:
        return True
    return bool(bits.any()) or any(int(term["zero"]) for term in node.attrs["weight"]["terms"])


def _weight_count(graph: Graph, node: Node) -> int:
    if node.key("bits"):
        return math.prod(node.attrs["weight"]["shape"])
    weight = graph.tensor(node, "weight")
    return 0 if weight is None else weight.numel()


def _outputs(graph: Graph, node: Node) -> int:
    return int(node.shape[-1] if node.op.endswith("linear") or len(node.shape) == 1 else node.shape[0])


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def _nothing(model: nn.Module, rows: list[ReportRow]) -> str:
    refused = next((r for r in rows if r.why and r.why != "its slots are empty"), rows[0] if rows else None)
    head = f"nothing to pack: {len(rows)} of {len(rows)} layers stay float."
    if refused is None:
        return f"{head} The model has no Linear or convolution layer"
    slots = any(is_slot_layer(m) for m in model.modules())
    remedy = "" if slots else ' Try: bw.apply(model, "w1a1", example), train, convert'
    return f"{head} First: {refused.layer} ({refused.kind}): {refused.why}.{remedy}"


def _check(report: ConvertReport, proof: Proof) -> None:
    report.images, report.same, report.same_folded = proof.images, proof.same, proof.same_folded
    report.largest_difference = proof.largest
    report.layers_exact, report.inexact = not proof.inexact, proof.inexact
    report.codes_checked, report.disagreements = len(proof.layers), proof.disagreements
    for row in report.rows:
        row.max_abs_diff = proof.layer_difference.get(row.layer)


def median_ms(f: Callable[[], object], rounds: int = 7, slice_s: float = 0.004) -> float:
    """Median of `rounds` slices, after a warm-up call; a report line, not a benchmark (that is `bw.bench`)."""
    f()
    start = time.perf_counter()
    f()
    once = max(1e-7, time.perf_counter() - start)
    calls = max(1, min(200, int(slice_s / once)))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            f()
        times.append((time.perf_counter() - start) / calls)
    return 1e3 * statistics.median(times)


@torch.no_grad()
def _time(report: ConvertReport, model: nn.Module, packed: PackedModel, example: Tensor, threads: int | None) -> None:
    """ms of each layer's float operator and of ours, and of both whole nets, on the example's batch.

    One thread unless told otherwise: on a busy machine two wait for each other and the figures mean nothing.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or 1)
    try:
        env = {"input": packed.prepare(example)}
        spent: dict[str, float] = {}
        for node, step, _ in packed.steps():
            owner = node.owner.removesuffix(".x").removesuffix(".plain")
            spent[owner] = spent.get(owner, 0.0) + median_ms(lambda step=step: step(env), 3, 0.001)
        shapes = _input_shapes(model, example)
        modules = dict(model.named_modules())
        for row in report.rows:
            name = "" if row.layer == "(net)" else row.layer
            row.ms_after = spent.get(name)
            run = _float_call(modules.get(name), shapes.get(name))
            row.ms_before = None if run is None else median_ms(run, 3, 0.001)
        twin = float_twin(model)
        x = example.contiguous(memory_format=torch.channels_last) if example.dim() == 4 else example
        report.ms_before = median_ms(lambda: twin(x))
        report.ms_after = median_ms(lambda: packed(example))
    finally:
        torch.set_num_threads(before)


def channels_last(model: nn.Module) -> nn.Module:
    """All 4-d parameters and buffers in the layout the kernels of torch like."""
    for t in (*model.parameters(), *model.buffers()):
        if t.dim() == 4:
            t.data = t.data.contiguous(memory_format=torch.channels_last)
    return model


def float_twin(model: nn.Module) -> nn.Module:
    """The same topology with empty slots, in channels_last: what the packed net is compared with."""
    twin = copy.deepcopy(model).eval()
    for m in twin.modules():
        if is_slot_layer(m):
            m.set_slots(w=None, b=None, x=None, g=None, gate=None)
    return channels_last(twin)


def _input_shapes(model: nn.Module, example: Tensor) -> dict[str, torch.Size]:
    shapes: dict[str, torch.Size] = {}
    hooks = [
        m.register_forward_pre_hook(remember(shapes, n, lambda x: x.shape))
        for n, m in model.named_modules()
        if isinstance(m, TIMED)
    ]
    was = model.training
    model.eval()
    try:
        model(example)
    finally:
        model.train(was)
        for h in hooks:
            h.remove()
    return shapes


def _float_call(layer: nn.Module | None, shape: torch.Size | None) -> Callable[[], object] | None:
    if layer is None or shape is None:
        return None
    if not isinstance(layer, TIMED):
        return None
    x, weight = torch.randn(shape), layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return lambda: F.linear(x, weight)
    if isinstance(layer, nn.Conv1d):
        return lambda: F.conv1d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    return lambda: F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def _verdict(report: ConvertReport, verified: bool) -> None:
    coded = [r for r in report.rows if r.runs_as in ("bits", "int8")]
    size = f"{report.bytes_before / max(1, report.bytes_after):.1f}x smaller"
    if verified and not report.layers_exact:
        report.status = REFUSE
        report.verdict = (
            f"{', '.join(report.inexact)}: packed codes differ from the trained layer's; please report this"
        )
        return
    share = report.same / report.images if report.images else 1.0
    agreement = f"{report.same:,} of {report.images:,} same class"
    if verified and share < WARN_SHARE:
        report.status, report.verdict = REFUSE, f"{agreement}: below {WARN_SHARE:.0%}"
        return
    if all(r.runs_as == "float" for r in report.rows):
        report.status, report.verdict = WARN, "forced: nothing is packed, so neither smaller nor faster"
        return
    if not coded:
        report.status = WARN
        report.verdict = f"smaller, not faster: {size}; weights are bits on disk and float in the run"
        return
    faster = report.ms_before / report.ms_after if report.ms_before and report.ms_after else None
    speed = "" if faster is None else f", {faster:.1f}x the float net's speed here"
    if verified and share < PASS_SHARE:
        report.status, report.verdict = WARN, f"{agreement}; {size}{speed}"
    elif faster is not None and faster < 1:
        report.status, report.verdict = WARN, f"not faster: {size}, {faster:.2f}x the float net's speed here (slower)"
    else:
        unverified = "" if verified else " (not verified)"
        report.status, report.verdict = PASS, f"{size}{speed}{unverified}"
