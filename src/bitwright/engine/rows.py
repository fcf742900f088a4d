"""The rows of convert's report, one per compute layer: of a graph, of the layer form, of a net with a gate that no graph can hold."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from bitwright.engine.forms import listed
from bitwright.engine.fuse import LIMIT
from bitwright.engine.gate_packing import gate_packing_of, gated
from bitwright.engine.graph import Graph, Node
from bitwright.engine.layer_form import LayerForm, stays
from bitwright.engine.packed import PackedModel
from bitwright.engine.packing import EMPTY, part_text
from bitwright.engine.prepare import Prepared
from bitwright.engine.report import REFUSE, ConvertReport, ReportRow
from bitwright.engine.rules import CODED, CODED_SPLITS, LAYERS
from bitwright.engine.sparse_linear import CODED_ROWS, coded_list, runs_on_connections
from bitwright.engine.table_linear import rows_that_pay
from bitwright.engine.unused import left
from bitwright.nn import is_slot_layer
from bitwright.nn.layers import KINDS
from bitwright.transforms.decide import slot_layers
from bitwright.transforms.geometry import describe
from bitwright.transforms.layers import candidates
from bitwright.zeros import stored_bytes

UNCALLED = "never called in evaluation"
UNUSED = "nothing reads its result in evaluation"
SAME_TIME = "the same time"
OTHERS = "runs on the others alone"
PRUNED = "of its weights are 0: fewer bytes, "
MANY = 0.45  # fewer zeros are hardly worth a word
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
        rows[name] = row = packed_row(name, kind, graph, node, runtime.get(name, node), packed.runtime)
        if layer is not None and gated(layer):
            row.runs_as = row.runs_as if row.runs_as in ("bits", "int8") else "gated"
            inside = [n for n in graph.nodes if n.owner == name and n.op == "saliency"]
            row.bytes_after += sum(stored_bytes(graph.need(n, role)) for n in inside for role in ("weight", "bias"))
            row.why = _joined(f"gated: {part_text(layer.gate)}", row.why)  # type: ignore[arg-type]
        if why := refused.get(name, ""):
            frame = str(node.attrs.get("frame") or "")
            row.why = _joined(f"{why} ({frame})" if frame else why, row.why)
        elif row.runs_as == "float" and layer is not None and not is_slot_layer(layer):
            row.why = _joined(skipped.get(name) or EMPTY, row.why)
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
            row = packed_row(
                c.name, describe(c.module), packed.packed.graph, packed.node, runtime, packed.packed.runtime
            )
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


def packed_row(name: str, kind: str, graph: Graph, node: Node, fused: Node, runtime: Graph) -> ReportRow:
    """One layer of a graph; `fused` is the same in `runtime`, the graph that runs."""
    floats = node.channels if graph.tensor(node, "bias") is not None or node.key("add") else 0
    after = sum(stored_bytes(graph.tensors[k]) for k in set(node.attrs.get("tensors", {}).values()))
    packed, runs, bits, why = graph.tensor(node, "bits"), "float", "float", ""
    if packed is None:
        count, why = graph.need(node, "weight").numel(), _pruned(graph.need(node, "weight"))
        if why and runs_on_connections(fused, runtime, LIMIT):
            why = why.replace(SAME_TIME, OTHERS)
    else:
        info, runs, why = node.attrs["weight"], "bits on disk, float run", "its input is float"
        count, bits = math.prod(info["shape"]), f"{info['planes']}/32"
        if node.op in CODED:
            levels, why = int(graph.node(node.inputs[0]).attrs["levels"]), ""
            runs = "int8" if fused.attrs.get("x_form") == "bytes" else "bits"
            bits = f"{info['planes']}/{levels.bit_length()}"
        if node.op in CODED_SPLITS and "unit" not in node.attrs:
            levels, runs, why = int(graph.node(node.inputs[0]).attrs["levels"]), "int8", ""
            bits = f"{info['planes']}/{levels.bit_length()}"
        if not bool(packed.any()) and not any(int(term["zero"]) for term in info["terms"]):
            why = _joined(why, "all its weights are 0, so its output is a constant")
        elif rows_that_pay(fused, runtime):
            runs, why = "bits", "its input is float: sums of its inputs are looked up"
        elif fused.op in CODED and listed(fused, runtime):
            why = _joined(why, "most of its weights are 0: runs on lists of the others")
        elif coded_list(fused, runtime) is not None:
            why = _joined(why, f"most of its weights are 0: from {CODED_ROWS} rows on runs on a list of the others")
    run, have = left(node, fused)
    if run < have:
        why = _joined(
            why, f"{have - run:,} of its {have:,} outputs are left out: no weight reads them, or they never change"
        )
    return ReportRow(name or "(net)", kind, runs, bits, 4 * (count + floats), after, why=why)


def own_row(name: str, layer: nn.Module, runs: str, why: str) -> ReportRow:
    own, weight = list(layer.parameters(recurse=False)), layer._parameters.get("weight")
    before, after = 4 * sum(p.numel() for p in own), sum(map(stored_bytes, own))
    why = _joined(why, "" if weight is None else _pruned(weight.detach()))
    return ReportRow(name or "(net)", describe(layer), runs, "float", before, after, why=why)


def _pruned(weight: Tensor) -> str:
    share = 1 - float((weight != 0).float().mean()) if weight.numel() else 0.0
    return f"{share:.0%} {PRUNED}{SAME_TIME}" if share >= MANY else ""


# -- gated layers that no graph can hold --------------------------------------------------------------------------
def gated_layers(model: nn.Module) -> dict[str, str]:
    """Gated layers that cannot be packed, and why."""
    reasons = {name: gate_packing_of(layer) for name, layer in slot_layers(model).items() if gated(layer)}
    return {name: why for name, why in reasons.items() if isinstance(why, str)}


def refusal(model: nn.Module, gated: dict[str, str]) -> ConvertReport:
    """What stands in the way, and what would be packed without it; nothing is traced or written."""
    rows = []
    for c in candidates(model):
        why = (stays(c.module) or READY) if is_slot_layer(c.module) else EMPTY
        if c.name in gated:
            why = f"gate {part_text(c.module.gate)}: {gated[c.name]}"  # type: ignore[arg-type]
        rows.append(own_row(c.name, c.module, "float", why))
    first, why = next(iter(gated.items()))
    layer: Any = model.get_submodule(first)
    more = f" and {len(gated) - 1} more" if len(gated) > 1 else ""
    verdict = (
        f"{first or '(net)'} ({describe(layer)}){more}: gate {part_text(layer.gate)} cannot run in a packed net: {why}; "
        'form="layers" (--form layers on the command line) leaves such layers as they are'
    )
    return ConvertReport(rows, status=REFUSE, verdict=verdict)
