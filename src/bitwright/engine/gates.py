"""Gated layers and packing: why such a net is not packed yet, layer by layer. Where their fast execution will enter."""

from __future__ import annotations

from torch import nn

from bitwright.engine.layer_form import stays
from bitwright.engine.packing import EMPTY, part_text
from bitwright.engine.report import REFUSE, ConvertReport
from bitwright.engine.rows import own_row
from bitwright.nn import is_slot_layer
from bitwright.nn.layers import SlotLayer
from bitwright.parts import moment
from bitwright.transforms.geometry import describe
from bitwright.transforms.layers import candidates

READY = "would be packed, but for the gates of other layers"


def gated_layers(model: nn.Module) -> dict[str, SlotLayer]:
    """Layers whose gate skips work; `xnor_k` scales an output, and is no such gate."""
    found = ((name, m) for name, m in model.named_modules() if is_slot_layer(m))
    return {name: layer for name, layer in found if moment(layer.gate, "spent") is not None}


def refusal(model: nn.Module, gated: dict[str, SlotLayer]) -> ConvertReport:
    """What stands in the way, and what would be packed without it; nothing is traced or written."""
    rows = []
    for c in candidates(model):
        why = (stays(c.module) or READY) if is_slot_layer(c.module) else EMPTY
        if c.name in gated:
            why = f"gate {part_text(gated[c.name].gate)}: its fast execution is not there yet; nothing else is wrong"
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
