"""Why is it not faster? Sentences from the times of the packed net's steps here; each one has a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from bitwright import numbers
from bitwright.measure.table import BenchTable

if TYPE_CHECKING:
    from bitwright.engine.packed import PackedModel

ENOUGH = 1.5  # times the fastest other program; from here on no reason is given
SHARE = 0.10  # of the time, below which a layer is not worth a sentence
OTHER = 0.25  # the same for all steps between the layers together
TINY_MS = 0.005  # per layer: below it, calling costs more than computing
WORD = 32  # channels in one word of the kernels
LAYERS = ("coded_conv", "coded_linear", "conv", "float_conv", "linear", "conv_transpose")
GATED = ("gated_conv", "skipped_gate", "channel_gate", "coded_channel_gate", "precision_gate")


@dataclass(frozen=True)
class TimedStep:
    """A layer of the packed net, or all that lies between the layers (name "").

    channels   input channels (features) of one group; 0 where there are none
    share      of the time of all steps
    window     taps of a depthwise layer, k * k products for each output; 0 for any other
    """

    name: str
    runs_as: str
    channels: int
    share: float
    window: int = 0


def reasons(table: BenchTable, packed: PackedModel, x: Sequence[Tensor]) -> tuple[str, ...]:
    """What keeps a packed net below 1.5 times the fastest other program; nothing where it is not below."""
    best = table.fastest
    if best is None or best.ratio is None or best.ratio >= ENOUGH:
        return ()
    return explain(steps_of(packed, x), table.ours.median_ms, table.batch)


def explain(steps: Sequence[TimedStep], median_ms: float | None, batch: int) -> tuple[str, ...]:
    """The sentences; the last one says what would help, where that is known.

    >>> explain([TimedStep("conv1", "int8", 3, 0.4), TimedStep("conv2", "bits", 64, 0.6)], 1.0, 1)
    ('conv1 takes 40 % (3 input channels, runs as int8)',)
    """
    layers = [s for s in steps if s.name]
    depthwise, others = [s for s in layers if s.window], [s for s in layers if not s.window]
    said = _not_bits(others)
    if sum(s.share for s in depthwise) >= SHARE:
        said.append(_depthwise(depthwise))
    narrow = [s for s in others if s.runs_as == "bits" and s.channels < WORD]
    if sum(s.share for s in narrow) >= SHARE:
        said.append(_narrow(narrow))
    other = sum(s.share for s in steps if not s.name)
    if other >= OTHER:
        said.append(f"what lies between the layers (adds, pooling, norms, activations) takes {other * 100:.0f} %")
    each = median_ms / len(layers) if median_ms and layers else None
    tiny = each is not None and each < TINY_MS
    if each is not None and tiny:
        said.append(
            f"the net is tiny: {numbers.ms(each)} ms per layer; below {TINY_MS} ms the call costs more than the work"
        )
    if not said and layers:
        top = max(layers, key=lambda s: s.share)
        said.append(f"no single reason: the largest layer, {top.name}, takes {top.share * 100:.0f} %")
    if batch == 1 and (tiny or narrow):
        said.append("more gain: wider layers or --batch 32")
    return tuple(said)


def _not_bits(layers: Sequence[TimedStep]) -> list[str]:
    """The two slowest layers that do not run on bits, and the rest of their kind in one number."""
    slow = sorted((s for s in layers if s.runs_as != "bits" and s.share >= SHARE), key=lambda s: -s.share)
    said = [
        f"{s.name} takes {s.share * 100:.0f} % ({s.channels} input channel{'s' if s.channels != 1 else ''}, runs as "
        f"{s.runs_as})"
        for s in slow[:2]
    ]
    rest = [s for s in layers if s.runs_as != "bits" and s not in slow[:2]]
    share = sum(s.share for s in rest)
    if share >= SHARE:
        said.append(f"{len(rest)} {'more ' if said else ''}layers that are not bits take {share * 100:.0f} %")
    return said


def _depthwise(layers: Sequence[TimedStep]) -> str:
    top = max(layers, key=lambda s: s.share)
    names = top.name if len(layers) == 1 else f"{top.name} and {len(layers) - 1} more depthwise layers"
    verb, share = "takes" if len(layers) == 1 else "take", sum(s.share for s in layers) * 100
    kinds = "/".join(sorted({s.runs_as for s in layers}))
    return (
        f"{names} {verb} {share:.0f} % (depthwise, run as {kinds}): a window of {top.window} products is too little work "
        'for bits; a rule with kind = "depthwise" leaves such layers float or gives them 8 bits'
    )


def _narrow(layers: Sequence[TimedStep]) -> str:
    low, high = min(s.channels for s in layers), max(s.channels for s in layers)
    width = f"{low}" if low == high else f"{low} to {high}"
    names = layers[0].name if len(layers) == 1 else f"{layers[0].name} and {len(layers) - 1} more bits layers"
    verb = "has" if len(layers) == 1 else "have"
    share = sum(s.share for s in layers) * 100
    return f"{names} {verb} {width} channels, less than a word of {WORD} per tap, and take{'s' if verb == 'has' else ''} {share:.0f} %"


def steps_of(packed: PackedModel, x: Sequence[Tensor]) -> list[TimedStep]:
    """Each layer with its input's quantizer, timed on the inputs `x`; then everything else as one step."""
    from bitwright.engine.layer_times import median_ms

    graph = packed.graph
    env = packed.environment(*x)
    spent: dict[str, float] = {}
    runs: dict[str, str] = {}
    for node, step, _ in packed.steps:
        owner = node.owner.removesuffix(".x")
        spent[owner] = spent.get(owner, 0.0) + median_ms(lambda step=step: step(env))
        if node.op in GATED:
            runs[owner] = "gated"
        elif node.op in LAYERS:
            coded = node.op.startswith("coded")
            runs[owner] = ("int8" if node.attrs.get("x_form") == "bytes" else "bits") if coded else "float"
    total = sum(spent.values())
    widths: dict[str, int] = {}
    windows: dict[str, int] = {}
    for node in graph.nodes:
        if node.op in (*LAYERS, *GATED):
            weight = graph.tensor(node, "weight")
            shape = node.attrs["weight"]["shape"] if node.key("bits") else [] if weight is None else weight.shape
            owner = node.owner
            widths[owner] = int(shape[1]) if len(shape) > 1 else 0
            if node.op.endswith("conv") and node.attrs["groups"] > 1 and shape[1] == 1:
                windows[owner] = math.prod(shape[2:])
    found = [
        TimedStep(name or "(net)", kind, widths.get(name, 0), spent[name] / total, windows.get(name, 0))
        for name, kind in runs.items()
    ]
    rest = sum(ms for name, ms in spent.items() if name not in runs)
    return [*found, TimedStep("", "", 0, rest / total)]
