"""What `apply` would do, per layer, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from bitwright.errors import InputError
from bitwright.nn.layers import SlotLayer
from bitwright.numbers import in_one_unit, kb_unit, macs
from bitwright.parts.traits import traits_of
from bitwright.tabular import csv_text, fit, markdown
from bitwright.transforms.apply import constant_input
from bitwright.transforms.clips import clips_itself
from bitwright.transforms.decide import Decision, build_layer, check_any, check_skipped, check_tied, decide, slot_layers
from bitwright.transforms.facts import part_text
from bitwright.transforms.flow import Flow
from bitwright.transforms.norms import inherit, plan_norms
from bitwright.transforms.packs import runs_as, why_not
from bitwright.transforms.recipe import RecipeLike, as_recipe
from bitwright.transforms.unwrap import unwrap
from bitwright.transforms.walk import Seen, info_of, untie
from bitwright.types import LayerInfo


@dataclass(frozen=True)
class PlanRow:
    """One layer. rule = numbers of the deciding rules, from 0; macs None = not known without example.

    runs   once it is packed: "bits", "int8", "float" (also weights that are bits only in the file), "your code" (a
           forward of its own)
    why    what keeps a layer with parts float, as `convert` will say; "" where nothing does
    """

    name: str
    kind: str
    shape: str
    rule: str
    w: str
    x: str
    b: str
    g: str
    gate: str
    bits: str
    runs: str
    macs: int | None
    note: str
    w_bits: int | None = 32
    x_bits: int | None = 32
    weights: int = 0
    weight_bytes: float = 0.0
    float_bytes: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """The table; prints as text: `.rows`, `.to_markdown()`, `.to_csv()`, `.to_dict()`.

    refused   what `apply` raises instead of following the plan; None where it follows it
    """

    rows: tuple[PlanRow, ...]
    matches: tuple[tuple[str, int], ...] = ()
    refused: InputError | None = None
    untouched: str = ""

    @property
    def warnings(self) -> list[str]:
        """What `apply` refuses, in words."""
        return [str(self.refused)] if self.refused is not None else []

    @property
    def totals(self) -> dict[str, Any]:
        """Layers by bits of weight, MACs, those with 1-bit weights and inputs, bytes before and after."""
        known = [r.macs for r in self.rows if r.macs is not None]
        macs = sum(known) if known else None
        one = sum(r.macs or 0 for r in self.rows if r.bits == "1/1")
        return {
            "layers": len(self.rows),
            "by_bits": _by_bits(self.rows),
            "macs": macs,
            "one_bit_macs": one if macs else None,
            "float_weight_bytes": 4 * sum(r.weights for r in self.rows),
            "weight_bytes": sum(r.weight_bytes for r in self.rows),
            "float_bytes": sum(r.float_bytes for r in self.rows),
        }

    def to_dict(self) -> dict[str, Any]:
        """Raw values: MACs and bytes as numbers."""
        return {
            "rows": [asdict(r) for r in self.rows],
            "totals": self.totals,
            "rules": [{"match": m, "layers": n} for m, n in self.matches],
            "warnings": list(self.warnings),
        }

    def to_csv(self) -> str:
        return csv_text([asdict(r) for r in self.rows], PlanRow.__dataclass_fields__)

    def to_markdown(self) -> str:
        head, *body = self._cells()
        return markdown(head, [[cell.replace("\n", " ") for cell in row] for row in body])

    def cells(self, limit: int | None = None) -> list[list[str] | str]:
        """The head, then the rows as texts; with `limit` a run of more than that many like layers is one text."""
        cells = list(self._cells())
        keep: list[int | str] = list(range(1, len(cells)))
        if limit is not None:
            keep = _shorten(self.rows, limit)
        return [cells[0], *(item if isinstance(item, str) else cells[item] for item in keep)]

    def _cells(self) -> Iterator[list[str]]:
        extra = [s for s in ("b", "g", "gate") if any(getattr(r, s) for r in self.rows)]
        unit, counts = in_one_unit([r.macs for r in self.rows])
        head = f"MACs, {unit}" if unit else "MACs"
        yield ["layer", "kind", "shape", "rule", "w", "x", *extra, "bits", "runs", head, "note"]
        for r, count in zip(self.rows, counts, strict=True):
            slots = [getattr(r, s) or "-" for s in extra]
            yield [
                r.name or "(model)",
                r.kind,
                r.shape,
                r.rule,
                r.w,
                r.x,
                *slots,
                r.bits,
                r.runs,
                count,
                r.note,
            ]

    def text(self, limit: int | None = None) -> str:
        """The table; with `limit` a run of more than that many like layers is cut short."""
        head, *items = self.cells(limit)
        assert not isinstance(head, str)
        lines = fit(head, items, right=(len(head) - 2,))
        lines += self.summary()
        lines += [f"apply refuses this plan: {w.removeprefix('plan: ')}" for w in self.warnings]
        return "\n".join(lines)

    def summary(self) -> list[str]:
        """Lines below the table: totals, bytes, rules."""
        t = self.totals
        text = f"total    {t['layers']} layers: " + ", ".join(f"{n} {k}" for k, n in t["by_bits"].items())
        if t["macs"]:
            share = 100 * t["one_bit_macs"] / t["macs"]
            text += f"   {macs(t['macs'])} MACs" + (f", {share:.1f} % of them at 1 bit" if share else "")
        before, after = t["float_weight_bytes"], t["weight_bytes"]
        size = f"weights  {kb_unit(before)} -> {kb_unit(after)}, computed; time is not predicted: "
        size += "use bench"
        rules = [f'{i} "{m}"' + ("" if n else " (no layer, optional)") for i, (m, n) in enumerate(self.matches)]
        lines = [text, size]
        if stuck := [r for r in self.rows if r.why and r.weight_bytes < 4 * r.weights]:
            names = ", ".join(r.name for r in stuck[:3]) + (f" and {len(stuck) - 3} more" if len(stuck) > 3 else "")
            sizes = [kb_unit(sum(each)) for each in ((4 * r.weights for r in stuck), (r.weight_bytes for r in stuck))]
            lines.append(f"packed   {names}: float, {sizes[0]} and not {sizes[1]}")
        words = ["rules   ", *rules] + ([f"untouched: {self.untouched}"] if self.untouched else [])
        line = words.pop(0) if rules or self.untouched else ""
        for i, word in enumerate(words):
            if len(line) + len(word) > 97:
                lines.append(line)
                line = " " * 8
            line += ("   " if i else " ") + word
        return [*lines, line] if line else lines

    def __str__(self) -> str:
        return self.text()


def plan(model: nn.Module, recipe: RecipeLike, example: Any = None) -> Plan:
    """Per layer: deciding rule, slots, bits, MACs, notes. The model is not touched.

    Without `example` there are no MACs, no look at ReLUs (before signs, behind gates), and `first`, `last` need a Sequential.
    Errors: `InputError` for a rule without a layer, a bad option value, a layer that cannot be replaced.

    >>> table = plan(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), [{"match": "last", "w": "bwn"}])
    >>> [(r.name, r.rule, r.w, r.bits, r.note) for r in table.rows]
    [('0', '-', 'float', '32/32', ''), ('1', '0', 'bwn', '1/32', 'last')]
    """
    model = unwrap(model)
    resolved = decide(model, as_recipe(recipe), example, "plan")
    check_skipped(resolved, "plan")
    with torch.random.fork_rng(devices=[]):  # parts that draw their start values must not move the user's stream
        shadows = {d.name: build_layer(d, "plan", share=False) for d in resolved.decisions if d.replaces}
    built = [(d, shadows[d.name]) for d in resolved.decisions if d.name in shadows]
    for decision, new in built:
        if isinstance(old := decision.layer.module, SlotLayer):
            inherit(decision.name, old, new)  # a part of the same kind has its norm already
    _check_tied(model, built)
    nothing = check_any(resolved, "plan")
    refused = InputError(nothing, code="apply-nothing") if nothing else None
    said = [_fused(model, built)]
    computes = {d.name: shadows.get(d.name, d.layer.module) for d in resolved.decisions}
    if resolved.flow is not None:
        refused = refused or constant_input(resolved.flow, built, "plan")
        said.append(_without_relu(resolved.flow, computes))
    takes = plan_norms(model, [(d.name, d.norm, new) for d, new in built], resolved.flow, "plan")
    said.insert(0, {t.layer: f"takes over {t.norm}" for t in takes})
    ran = resolved.seen is not None
    layers = list(computes.values())
    saw = [(resolved.seen or {}).get(id(d.layer.module), Seen()) for d in resolved.decisions]
    found = [d.layer for d in resolved.decisions]
    infos = untie(found, [info_of(*each) for each in zip(found, layers, saw, strict=True)])
    rows = [_row(d, layer, info, ran, said) for d, layer, info in zip(resolved.decisions, layers, infos, strict=True)]
    matches = tuple((r.match, len(h)) for r, h in zip(as_recipe(recipe).rules, resolved.hits, strict=True))
    return Plan(tuple(rows), matches, refused, _untouched(model))


def _row(d: Decision, layer: nn.Module, info: LayerInfo, ran: bool, said: list[dict[str, str]]) -> PlanRow:
    slots = {s: getattr(layer, s) if isinstance(layer, SlotLayer) else None for s in ("b", "g", "gate")}
    numbers = sorted(set(d.rules.values())) if not d.layer.reason else []
    notes = list(d.words)
    if len(d.layer.names) > 1:
        notes.append(f"shared: {', '.join(d.layer.names[1:])}")
    notes += [n for n in info.notes if ran or n != "not called"]
    notes += [words[d.name] for words in said if d.name in words]
    notes += d.said
    return PlanRow(
        name=d.name,
        kind=d.layer.kind,
        shape=shape_text(d.layer.module),
        rule=",".join(map(str, numbers)) or "-",
        w=info.w_part,
        x=info.x_part,
        bits=f"{_bits(info.w_bits)}/{_bits(info.x_bits)}",
        runs=runs_as(layer),
        macs=info.macs if ran and "MACs not counted" not in info.notes else None,
        note="; ".join(notes),
        w_bits=info.w_bits,
        x_bits=info.x_bits,
        weights=info.weights,
        weight_bytes=info.weight_bytes,
        float_bytes=info.float_bytes,
        why=why_not(layer) if isinstance(layer, SlotLayer) else "",
        **{s: "" if p is None else part_text(p) for s, p in slots.items()},
    )


def _check_tied(model: nn.Module, built: list[tuple[Decision, SlotLayer]]) -> None:
    """Parts are built by now, so these layers may hold the model's own Parameters: tied weights show by identity."""
    layers = slot_layers(model)
    for d, new in built:
        new._parameters = dict(d.layer.module._parameters)
        layers[d.name] = new
    check_tied(layers, "plan")


def _fused(model: nn.Module, built: list[tuple[Decision, SlotLayer]]) -> dict[str, str]:
    """Layer name -> note, for layers inside transformer encoder layers."""
    names = [d.name for d, _ in built]
    inside = [n for n, m in model.named_modules() if isinstance(m, nn.TransformerEncoderLayer)]
    text = "fused encoder kernel is switched off"
    return {n: text for n in names for e in inside if n.startswith(f"{e}." if e else "")}


def _one_sided(layer: nn.Module) -> bool:
    """Whether its gate leaves negative sums as they are."""
    return isinstance(layer, SlotLayer) and traits_of(layer.gate).one_sided


def _without_relu(flow: Flow, layers: dict[str, nn.Module]) -> dict[str, str]:
    """Layer name -> note, where the negative sums of a one-sided gate are read; an x part may act as the ReLU."""
    text, relu = "no ReLU behind the gate: negative sums count, and stay partial", nn.ReLU()
    found = {name: flow.signed.get(name, set()) for name, layer in layers.items() if _one_sided(layer)}
    return {n: text for n, who in found.items() if not all(r and clips_itself(layers[r], relu) for r in who)}


def _untouched(model: nn.Module) -> str:
    count: dict[str, int] = {}
    inside = {id(m) for layer in model.modules() if isinstance(layer, SlotLayer) for m in layer.modules()}
    for module in model.modules():
        if id(module) not in inside and isinstance(
            module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm
        ):
            count[type(module).__name__] = count.get(type(module).__name__, 0) + 1
    return ", ".join(f"{n} {k}" for k, n in count.items())


def shape_text(layer: nn.Module) -> str:
    """`16>16 3x3`, `64>10`.

    >>> shape_text(nn.Conv2d(16, 32, 3)), shape_text(nn.Linear(64, 10))
    ('16>32 3x3', '64>10')
    """
    if isinstance(layer, nn.Linear):
        return f"{layer.in_features}>{layer.out_features}"
    if isinstance(layer, nn.modules.conv._ConvNd):
        groups = f" g{layer.groups}" if layer.groups > 1 else ""
        return f"{layer.in_channels}>{layer.out_channels} {'x'.join(map(str, layer.kernel_size))}{groups}"
    return "-"


def _bits(bits: int | None) -> str:
    return "unknown" if bits is None else str(bits)


def _by_bits(rows: tuple[PlanRow, ...]) -> dict[str, int]:
    count: dict[str, int] = {}
    for r in sorted(rows, key=lambda r: 99 if r.w_bits is None else r.w_bits):
        word = "unknown" if r.w_bits is None else {1: "binary", 32: "float"}.get(r.w_bits, f"{r.w_bits}-bit")
        count[word] = count.get(word, 0) + 1
    return count


def _shorten(rows: tuple[PlanRow, ...], limit: int) -> list[int | str]:
    out: list[int | str] = []
    i = 0
    while i < len(rows):
        j = i
        while j < len(rows) and _alike(rows[i], rows[j]):
            j += 1
        shown = (
            j if j - i <= limit + 1 else i + limit
        )  # hiding a single line saves nothing, because the note takes a line too
        out += list(range(i + 1, shown + 1))
        if shown < j:
            out.append(f"...  {j - shown} more like these (--all)")
        i = j
    return out


def _alike(a: PlanRow, b: PlanRow) -> bool:
    keys = ("kind", "rule", "w", "x", "b", "g", "gate", "bits", "note")
    return all(getattr(a, k) == getattr(b, k) for k in keys)
