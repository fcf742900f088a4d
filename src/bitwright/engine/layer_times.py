"""How long a converted net and its layers take here: lines of a report, not a benchmark (that is `bw.bench`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.engine.layer_form import packed_layers
from bitwright.engine.packed import PackedModel
from bitwright.engine.prepare import Prepared
from bitwright.engine.report import ConvertReport
from bitwright.engine.verify_runs import RecordedModel
from bitwright.timing import Timing, clock_for, interleave
from bitwright.transforms.call import Call, as_pixels
from bitwright.transforms.copying import copy_model
from bitwright.transforms.forward import reproducible, torch_threads
from bitwright.transforms.twin import float_twin

TIMED = (nn.Linear, nn.Conv1d, nn.Conv2d)


def median_ms(call: Callable[[], object]) -> float:
    return 1e3 * interleave({"": call}, rounds=3, slice_seconds=0.001)[""].median


def time_layers(report: ConvertReport, prepared: Prepared, model: nn.Module, threads: int | None) -> None:
    """ms of each layer's float operator and of ours, and of both whole nets side by side, on the example's batch.

    One thread unless told otherwise: on a busy machine two wait for each other and the figures mean nothing. What cannot
    be timed has no figure; a missing time is no reason to refuse a net.
    """
    try:
        with torch_threads(threads or 1), reproducible():
            _layers(report, prepared, model)
            _whole(report, prepared, model, threads or 1)
    except Exception as error:  # whatever the user's code does in another memory layout, or called many times
        report.untimed = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


def _layers(report: ConvertReport, prepared: Prepared, model: nn.Module) -> None:
    recorded = RecordedModel(prepared.model, [n for n, m in prepared.model.named_modules() if isinstance(m, TIMED)])
    recorded.run(prepared.call)
    inputs = {name: calls[0] for name, calls in recorded.inputs.items()}
    spent: dict[str, float] = {}
    if isinstance(model, PackedModel):
        env = model.environment(*prepared.call.in_order(prepared.model).args)
        for node, step, _ in model.steps:
            owner = node.owner.removesuffix(".x")
            spent[owner] = spent.get(owner, 0.0) + median_ms(lambda step=step: step(env))
    for name, layer in packed_layers(model).items():
        if name in inputs:
            spent[name] = median_ms(lambda layer=layer, x=inputs[name]: type(layer).forward(layer, x))
    modules = dict(prepared.model.named_modules())
    for row in report.rows:
        name = "" if row.layer == "(net)" else row.layer
        row.ms_after = spent.get(name)
        run = _float_call(modules.get(name), inputs.get(name))
        row.ms_before = None if run is None else median_ms(run)


def _whole(report: ConvertReport, prepared: Prepared, model: nn.Module, threads: int) -> None:
    twin, call = float_side(prepared.model, prepared.call.map(as_pixels))
    ours = prepared.call.in_order(prepared.model) if isinstance(model, PackedModel) else prepared.call
    both: dict[str, Callable[[], object]] = {"float": lambda: call(twin), "ours": lambda: ours(model)}
    times = interleave(both, rounds=9, slice_seconds=0.004, clock=clock_for(threads)[0])
    before, after = times["float"], times["ours"]
    report.ms_before, report.ms_after = 1e3 * before.median, 1e3 * after.median
    report.level, report.spread = level(before, after), max(before.spread, after.spread)


def level(a: Timing, b: Timing) -> bool:
    """Whether the middle halves of two samples overlap: then neither is faster.

    >>> level(Timing(1.0, 0.9, 1.2, 1.5, 9), Timing(1.3, 1.1, 1.4, 1.5, 9))
    True
    >>> level(Timing(1.0, 0.9, 1.1, 1.5, 9), Timing(1.3, 1.2, 1.4, 1.5, 9))
    False
    """
    return a.q1 <= b.q3 and b.q1 <= a.q3


def float_side(model: nn.Module, call: Call) -> tuple[nn.Module, Call]:
    """The float net of the same topology, and its call, in channels_last where it runs so: what the packed net is compared with."""
    twin = float_twin(model).eval()
    last = call.map(lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t)
    fast: Any = copy_model(twin)
    try:
        last(fast.to(memory_format=torch.channels_last))
    except Exception:  # x.view(x.size(0), -1) asks for plain order
        return twin, call
    return fast, last


def _float_call(layer: nn.Module | None, seen: Tensor | None) -> Callable[[], object] | None:
    if layer is None or seen is None or not isinstance(layer, TIMED):
        return None
    x, weight = as_pixels(seen).to(layer.weight.dtype), layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return lambda: F.linear(x, weight)
    conv, rest = layer._conv_forward, None
    if x.dim() == 4:
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    return lambda: conv(x, weight, rest)
