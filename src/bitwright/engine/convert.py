"""`convert`: a trained net becomes a packed one, with proof, or a report that says why not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bitwright.engine import native
from bitwright.engine.any_size import free_size
from bitwright.engine.files import file_bytes, save
from bitwright.engine.fold import fold
from bitwright.engine.layer_form import layer_form, packed_layers
from bitwright.engine.layer_times import time_layers
from bitwright.engine.packed import PackedModel
from bitwright.engine.packing import check_finite
from bitwright.engine.plan_splits import note_shares
from bitwright.engine.prepare import Prepared, first_line, prepare, without_hooks
from bitwright.engine.report import PASS, REFUSE, STAYS, WARN, ConvertReport, ReportRow
from bitwright.engine.rows import EMPTY, OTHERS, PRUNED, gated_layers, graph_rows, layer_rows, refusal
from bitwright.engine.trace import Traced, trace
from bitwright.engine.verify import Proof
from bitwright.engine.verify import verify as prove
from bitwright.errors import InputError
from bitwright.nn import is_slot_layer
from bitwright.parts.split_gate import SplitGate
from bitwright.transforms.call import as_floats, as_pixels
from bitwright.transforms.copying import copy_model
from bitwright.transforms.decide import slot_layers
from bitwright.transforms.twin import float_twin

FORMS = ("auto", "graph", "layers")
BY_LAYERS = 'form="layers" (--form layers on the command line)'
PASS_SHARE, WARN_SHARE = 0.999, 0.99


@dataclass
class Converted:
    """`.model` the packed net, or None where the answer is REFUSE; `.report` why; `.source` the trained net."""

    model: nn.Module | None
    report: ConvertReport
    source: nn.Module
    example: Any

    @property
    def form(self) -> str:
        """ "graph" (runs without the model's code) or "layers" (packed layers in the user's module)."""
        return self.report.form

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
    example: Any,
    *,
    form: str = "auto",
    backend: str = "auto",
    threads: int | None = None,
    verify: bool | Iterable[Any] = True,
    force: bool = False,
    dynamic_size: bool = False,
) -> Converted:
    """Packs a trained net, proves it equal, and says what it gained.

    model     any module; its slot layers (from `bw.apply` or `bw.nn`) are packed where they encode; left unchanged.
              Wrappers that only call the net they hold (`DataParallel`, `torch.compile`, ...) are looked through
    example   one input batch, [N, ...]; any batch size runs later. A tuple: the positional arguments; a dict: the
              keyword arguments; another structure with tensors in it: the only argument
    form      "graph": one graph, fused, that needs none of the model's code; `InputError` where `forward` is none
              "layers": a copy of the module with packed layers in place, everything else as you wrote it
              "auto": the graph form, else the layer form, and the report says why
    backend   "native" kernels, "reference" (plain torch), "auto"
    verify    True: on the example; batches of inputs or (input, target) pairs: on all of them; False: not at all
    force     True: with nothing to pack, a WARN and a float graph that runs without the model's code; answers that
              differ are refused all the same
    dynamic_size  True: images of every height and width run later (rows of every length, for 1-D nets); `InputError` with the
              layer where one fixes the size. Each size is checked when it first comes. In layer form your code decides

    Status: PASS where every layer is exact, every value is the trained net's up to rounding (see `bw.engine.verify`), at
    least 99.9 % of images keep their class, and the net is faster than the float one; WARN from 99 %, where it is not
    faster, runs with your code (layer form), or the trained net gives one class or guesses; REFUSE below, with values that
    rounding cannot explain, with nothing to pack, or with a gate that a packed net cannot run (it says which and why;
    `form="layers"` leaves gated layers as they are).

    >>> import bitwright as bw
    >>> net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), bw.nn.Conv2d(64, 64, 3, w="bwn", x="sign"))
    >>> done = convert(net.eval(), torch.randn(2, 3, 8, 8))
    >>> done.report.layers_exact, done.report.form, [r.runs_as for r in done.report.rows]
    (True, 'graph', ['float', 'bits'])
    """
    if form not in FORMS:
        raise InputError(f"convert: form {form!r} is none of {', '.join(FORMS)}", code="convert-form", given=form)
    if isinstance(model, PackedModel) or packed_layers(model):
        raise InputError("convert: this net is packed already; run it, or bench it", code="convert-packed")
    _check_finite(model)
    prepared = prepare(model, example)
    if form != "layers" and (gated := gated_layers(prepared.model)):
        return Converted(None, refusal(prepared.model, gated), model, example)
    traced = _traced(prepared, form)
    if isinstance(traced, Traced):
        graph = fold(traced.graph)
        if dynamic_size:
            free_size(prepared, graph, lambda other: fold(_graph(other).graph))
        note_shares(graph, prepared.call.in_order(prepared.model).args)
        packed: nn.Module = PackedModel(graph, backend, threads)
        rows, unused = graph_rows(prepared, graph, packed, traced.refused)
        report = ConvertReport([*rows, *unused])
    else:
        layers = layer_form(prepared, backend, threads)
        packed, rows = layers.model, layer_rows(prepared, layers)
        report = ConvertReport(rows, form="layers", form_why=traced, lost=layers.lost)
    inside = [packed, *(p.packed for p in packed_layers(packed).values())]
    report.backend = next((m.backend for m in inside if isinstance(m, PackedModel)), "torch")
    report.isa = native.isa() if report.backend == "native" else "torch"
    if all(r.runs_as in STAYS for r in rows) and not (force and report.form == "graph"):
        report.status, report.verdict = REFUSE, _nothing(prepared.model, rows)
        return Converted(None, report, model, example)
    if verify is not False:
        given = [example] if verify is True else verify
        _check(report, prove(prepared.model, packed, given, example, prepared.change))
    time_layers(report, prepared, packed, threads)
    report.float_bytes, report.file_bytes = file_bytes(float_twin(prepared.model), dense=True), file_bytes(packed)
    report.status, report.verdict = _verdict(report, verified=verify is not False)
    if report.status == REFUSE:
        report.file_bytes = None
    return Converted(packed if report.status != REFUSE else None, report, model, example)


def _traced(prepared: Prepared, form: str) -> Traced | str:
    """The graph, or the reason for the layer form. Errors: the same as `InputError` where the graph form was asked for."""
    if form == "layers":
        return 'form="layers"'
    try:
        return _graph(prepared)
    except InputError as error:
        if form == "graph" or error.code == "convert-unbounded":
            raise
        text = str(error).split(" Convert a part, ")[0]
        return text.removeprefix("convert: ").removeprefix(f"convert {type(prepared.model).__name__}: ").rstrip(".")
    except Exception as error:  # the user's forward under an exporter: whatever it raises, it does not run there
        if form == "graph":
            raise InputError(f"convert: no graph: {first_line(error)}", code="convert-trace") from None
        return f"torch.export: {first_line(error).rstrip('.')}"


def _graph(prepared: Prepared) -> Traced:
    """Errors: `InputError` for what a graph would lose or cannot take."""
    for name, layer in slot_layers(prepared.model).items():
        if name in prepared.own and (layer.w is not None or layer.x is not None):
            text = f"convert: {name or 'the layer'}: {prepared.own[name]}; a graph has no place for it. {BY_LAYERS} keeps it"
            raise InputError(text, code="convert-hook", layer=name)
    call = prepared.call.in_order(prepared.model)
    if call.kwargs:
        raise InputError("convert: keyword arguments that have no place in the order", code="convert-inputs")
    model = without_hooks(copy_model(prepared.model), prepared.watched).float()
    call = call.map(as_floats)
    try:
        return trace(model, call.args)
    except InputError:
        if all(t.dtype != torch.uint8 for t in call.tensors):
            raise
        return trace(model, call.map(as_pixels).args)  # its first layer reads pixels as k / 255


def _check_finite(model: nn.Module) -> None:
    """A net with nan or infinite weights has no codes: convert refuses it and says where they are."""
    norm = nn.modules.batchnorm._BatchNorm
    own = {id(b) for m in model.modules() if is_slot_layer(m) or isinstance(m, norm) for b in m.buffers()}
    shut = {id(m.threshold) for m in model.modules() if isinstance(m, SplitGate)}  # may be infinite: never, or always
    named = [
        *((n, p) for n, p in model.named_parameters() if id(p) not in shut),
        *((n, b) for n, b in model.named_buffers() if id(b) in own),
    ]
    for name, value in named:  # other buffers may hold any number: a mask of -inf, the best loss so far
        check_finite(name, name.rpartition(".")[0], value)


def _nothing(model: nn.Module, rows: list[ReportRow]) -> str:
    refused = next((r for r in rows if r.why and r.why != EMPTY), rows[0] if rows else None)
    head = f"nothing to pack: {len(rows)} of {len(rows)} layers stay float."
    if refused is None:
        return f"{head} The model has no Linear or convolution layer"
    slots = any(is_slot_layer(m) for m in model.modules())
    advice = ' Try: a recipe (bw.apply(model, "w1a1", example); bitwright train), then convert'
    remedy = "" if slots or refused.why != EMPTY else advice
    return f"{head} First: {refused.layer} ({refused.kind}): {refused.why}.{remedy}{_zeros(rows)}"


def _zeros(rows: list[ReportRow]) -> str:
    """What zeros in float weights are good for, and what not; "" where there are hardly any."""
    if not any(PRUNED in r.why for r in rows):
        return ""
    return (
        " bw.save stores zeros in fewer bytes; a CPU multiplies by them as fast as by anything else, except in linear layers with at least"
        " 80 % zeros: convert(..., force=True) runs these on their other weights"
    )


def _check(report: ConvertReport, proof: Proof) -> None:
    report.images, report.same, report.largest_difference = proof.images, proof.same, proof.largest
    report.layers_exact, report.inexact, report.beyond = not proof.inexact, proof.inexact, proof.beyond
    report.outputs, report.codes_checked = list(proof.outputs.values()), len(proof.layers)
    report.disagreements = proof.disagreements
    for row in report.rows:
        row.max_abs_diff = proof.layer_difference.get("" if row.layer == "(net)" else row.layer)


def _verdict(report: ConvertReport, verified: bool) -> tuple[str, str]:
    """(PASS, WARN or REFUSE, why)."""
    if verified and (why := _refused(report)):
        return REFUSE, why
    size = report.smaller
    faster = report.ms_before / report.ms_after if report.ms_before and report.ms_after else None
    noise = f"; its times are {report.noisy}" if report.noisy else ""
    if all(r.runs_as in STAYS for r in report.rows):
        if not _zeros(report.rows):
            return WARN, "forced: nothing is packed, so neither smaller nor faster"
        gain = faster is not None and faster > 1 and not report.level and any(OTHERS in r.why for r in report.rows)
        speed = f"{faster:.1f}x the speed of its float net in torch{noise}" if gain else "but not faster"
        return WARN, f"forced: nothing is packed, {size} by its zeros, {speed}"
    speed = "" if faster is None else f", {faster:.1f}x the speed of its float net in torch{noise}"
    if report.level:
        speed = ", as fast as its float net in torch within noise"
    share, kind = report.share
    ifs = [report.form_line()] if report.form == "layers" else []
    if verified and report.blind:
        ifs.append(report.blind)
    if verified and share < PASS_SHARE:
        ifs.append(f"{report.same:,} of {report.images:,} same {kind}")
    if not any(r.runs_as in ("bits", "int8", "gated") for r in report.rows):
        ifs.append(f"its bits save bytes, not time: {size}{speed}; weights are bits on disk and float in the run")
    elif report.level:
        ifs.append(f"not faster: {size}{speed}")
    elif faster is not None and faster < 1:
        slower = f"{faster:.2f}x the speed of its float net in torch (slower){_where(report)}{noise}"
        ifs.append(f"not faster: {size}, {slower}")
    elif ifs:
        ifs.append(f"{size}{speed}")
    return (WARN, "; ".join(ifs)) if ifs else (PASS, f"{size}{speed}{'' if verified else ' (not verified)'}")


def _where(report: ConvertReport) -> str:
    """The layer that loses most against its float operator."""
    lost = [(r.ms_after - r.ms_before, r) for r in report.rows if r.ms_after is not None and r.ms_before is not None]
    most, row = max(lost, key=lambda pair: pair[0], default=(0.0, None))
    if row is None or most <= 0:
        return ""
    return f", most at {row.layer} ({row.runs_as}): {row.ms_after:.3f} ms against {row.ms_before:.3f}"


def _refused(report: ConvertReport) -> str:
    if not report.layers_exact:
        return f"{', '.join(report.inexact)}: packed codes differ from the trained layer's; please report this"
    if report.beyond:
        b, hint = report.beyond[0], f"; {BY_LAYERS} may hold" if report.form == "graph" else ""
        off = f"{b.where} is off by {b.difference:.1e}, and rounding explains {b.bound:.1e}"
        return f"{off} (image {b.image}){hint}; please report this"
    share, kind = report.share
    below = kind == "class" and share < WARN_SHARE
    return f"{report.same:,} of {report.images:,} same class: below {WARN_SHARE:.0%}" if below else ""
