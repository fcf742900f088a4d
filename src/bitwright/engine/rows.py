"""The rows of convert's report, one per compute layer: of a graph, of the layer form, of a net whose gates stand in the way."""

from __future__ import annotations

import math

from torch import nn

from bitwright.engine.forms import listed
from bitwright.engine.graph import Graph, Node
from bitwright.engine.layer_form import LayerForm, stays
from bitwright.engine.packed import PackedModel
from bitwright.engine.packing import EMPTY, part_text
from bitwright.engine.prepare import Prepared
from bitwright.engine.report import REFUSE, ConvertReport, ReportRow
from bitwright.engine.rules import CODED, LAYERS
from bitwright.nn import is_slot_layer
from bitwright.nn.layers import KINDS, SlotLayer
from bitwright.parts import moment
from bitwright.transforms.geometry import describe
from bitwright.transforms.layers import candidates

UNCALLED = "never called in evaluation"
UNUSED = "nothing reads its result in evaluation"
READY = "would be packed, but for the gates of other layers"


def graph_rows(
    prepared: Prepared, graph: Graph, packed: PackedModel, refused: dict[str, str]
) -> tuple[list[ReportRow], list[ReportRow]]:
    """(rows of the graph's layers, rows of layers that it goes without because no run reaches them)."""
    runtime = {n.owner: n for n in packed.runtime.nodes if n.op in LAYERS}
    modules, found = dict(prepared.model.named_modules()), candidates(prepared.model)
    skipped = {c.name: c.reason for c in found}
    rows: dict[str, ReportRow] = {}
    for node in [n for n in graph.nodes if n.op in LAYERS]:
        name = node.owner
        if name in rows:  # called several times
            continue
        layer = modules.get(name)
        kind = describe(layer) if layer is not None else node.op
        rows[name] = row = packed_row(name, kind, graph, node, runtime.get(name, node))
        if why := refused.get(name, ""):
            frame = str(node.attrs.get("frame") or "")
            row.why = _joined(f"{why} ({frame})" if frame else why, row.why)
        elif row.runs_as == "float" and layer is not None and not is_slot_layer(layer):
            row.why = skipped.get(name) or EMPTY
    unused = [own_row(n, modules[n], "float", UNCALLED) for n in prepared.uncalled]
    lost = [c for c in found if c.name not in {*rows, *prepared.uncalled} and is_slot_layer(c.module)]
    unused += [own_row(c.name, c.module, "float", UNUSED) for c in lost]
    for row in unused:
        row.bytes_after = 0
    return list(rows.values()), unused


def layer_rows(prepared: Prepared, form: LayerForm) -> list[ReportRow]:
    """Packed layers, and the user's own where they stay."""
    rows: list[ReportRow] = []
    for c in candidates(prepared.model):
        packed, hook = form.packed.get(c.name), prepared.hooked.get(c.name)
        if packed is not None:
            runtime = next((n for n in packed.packed.runtime.nodes if n.op in LAYERS), packed.node)
            row = packed_row(c.name, describe(c.module), packed.packed.graph, packed.node, runtime)
            row.why = _joined(row.why, f"keeps your {hook}" if hook else "")
        else:
            own = c.name in prepared.own or (is_slot_layer(c.module) and type(c.module) not in KINDS.values())
            why = c.reason or form.refused.get(c.name, EMPTY)
            row = own_row(c.name, c.module, "your code" if own else "float", why)
        if c.name in prepared.uncalled:
            row.why = _joined(row.why, f"{UNCALLED} of the example")
        rows.append(row)
    return rows


def _joined(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))


def packed_row(name: str, kind: str, graph: Graph, node: Node, fused: Node) -> ReportRow:
    """One layer of a graph; `fused` is the same in the graph that runs."""
    floats = node.channels if graph.tensor(node, "bias") is not None or node.key("add") else 0
    after = sum(graph.tensors[k].nbytes for k in set(node.attrs.get("tensors", {}).values()))
    packed, runs, bits, why = graph.tensor(node, "bits"), "float", "float", ""
    if packed is None:
        count = graph.need(node, "weight").numel()
    else:
        info, runs, why = node.attrs["weight"], "bits on disk, float run", "its input is float"
        count, bits = math.prod(info["shape"]), f"{info['planes']}/32"
        if node.op in CODED:
            levels, why = int(graph.node(node.inputs[0]).attrs["levels"]), ""
            runs = "int8" if fused.attrs.get("x_form") == "bytes" else "bits"
            bits = f"{info['planes']}/{levels.bit_length()}"
        if not bool(packed.any()) and not any(int(term["zero"]) for term in info["terms"]):
            why = _joined(why, "all its weights are 0, so its output is a constant")
        elif node.op in CODED and listed(node, graph):
            why = _joined(why, "nearly all its weights are 0: runs on lists of the others")
    return ReportRow(name or "(net)", kind, runs, bits, 4 * (count + floats), after, why=why)


def own_row(name: str, layer: nn.Module, runs: str, why: str) -> ReportRow:
    size = 4 * sum(p.numel() for p in layer.parameters(recurse=False))
    return ReportRow(name or "(net)", describe(layer), runs, "float", size, size, why=why)


# -- gated layers: why such a net is not packed yet, and where their fast execution will enter ----------------
def gated_layers(model: nn.Module) -> dict[str, SlotLayer]:
    """Layers whose gate skips work; `xnor_k` only scales an output."""
    found = ((name, m) for name, m in model.named_modules() if is_slot_layer(m))
    return {name: layer for name, layer in found if moment(layer.gate, "spent") is not None}


def refusal(model: nn.Module, gated: dict[str, SlotLayer]) -> ConvertReport:
    """What stands in the way, and what would be packed without it; nothing is traced or written."""
    rows = []
    for c in candidates(model):
        why = (stays(c.module) or READY) if is_slot_layer(c.module) else EMPTY
        if c.name in gated:
            why = f"gate {part_text(gated[c.name].gate)}: its fast execution is not implemented yet; nothing else is wrong"
        rows.append(own_row(c.name, c.module, "float", why))
    ready = sum(r.why == READY for r in rows)
    first, layer = next(iter(gated.items()))
    more = f" and {len(gated) - 1} more" if len(gated) > 1 else ""
    rest = f" {ready} other layer{'s' if ready > 1 else ''} would be packed without it." if ready else ""
    verdict = (
        f"{first or '(net)'} ({describe(layer)}){more}: gate {part_text(layer.gate)} cannot run in a packed net yet; "
        f"nothing else is wrong.{rest} What gates save is counted by: bitwright eval RUN, or bw.count_macs"
    )
    return ConvertReport(rows, status=REFUSE, verdict=verdict)
