"""The fastest exact way of each layer with codes, measured on this CPU: `packed.explain(measure=True)`.

A layer may count bits or multiply bytes, with the same answers. Without a plan `engine/forms.py` says which, from limits that were
measured once. A plan holds the times of both for the layers of a net, in a file of the user's cache for this CPU and this
instruction set. Every net that is loaded later uses it; BITWRIGHT_PLAN=0 ignores it. The time of torch's float layer is
shown beside them: where it is faster than both, the row says WARN. Layers of floats have no choice here: `engine/fuse_floats.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.atomic import replacing
from bitwright.engine import native
from bitwright.engine.forms import LOOKED_UP_PLANES, planes_read
from bitwright.engine.graph import Graph, Node
from bitwright.engine.rules import CODED, place_of
from bitwright.engine.run_native import conv_plans
from bitwright.errors import InputError
from bitwright.numbers import us
from bitwright.tabular import columns
from bitwright.timing import clock_for, interleave
from bitwright.transforms.forward import torch_threads
from bitwright.version import __version__

if TYPE_CHECKING:
    from bitwright.engine.packed import PackedModel

WAYS = ("bits", "bytes", "gated", "float")
# products per nanosecond of wide layers (bits: of two planes): docs/results/forms.csv; for float: speed.csv
RATES = {"avx512": (1000.0, 220.0, 58.0), "avx2": (350.0, 100.0, 29.0)}
ROUNDS, SLICE = 9, 0.002
_read: dict[Path, tuple[float, dict[str, dict[str, float]]]] = {}  # files by the time they were written


def cpu() -> str:
    """The model of this CPU, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "cpu family", "model\t")
    found = [line.partition(":")[2].strip() for line in lines if line.startswith(wanted)]
    return " ".join(dict.fromkeys(found)) or platform.processor() or platform.machine()


def plan_file() -> Path:
    """The plan of this CPU, instruction set and version."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    identity = "|".join([cpu(), native.isa(), __version__])
    return root / "bitwright" / "plans" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"


def plan() -> dict[str, dict[str, float]]:
    """Seconds of each way by layer; empty where none was made, or the file is damaged."""
    if os.environ.get("BITWRIGHT_PLAN") == "0" or not native.available():
        return {}
    path = plan_file()
    try:
        written = path.stat().st_mtime
        if _read.get(path, (None,))[0] != written:
            found = json.loads(path.read_text(encoding="utf-8"))
            _read[path] = written, {k: {w: float(v[w]) for w in v if w in WAYS} for k, v in found.items()}
        return _read[path][1]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def key(layer: Node) -> str:
    """What the time of a layer depends on."""
    a, info = layer.attrs, layer.attrs["weight"]
    planes = [t["planes"] for t in info["terms"]]
    even = all(2 * int(t["zero"]) == -sum(t["mult"]) for t in info["terms"])
    place = [a.get(k) for k in ("stride", "padding", "dilation", "groups")]
    shape = list(info["shape"])
    if a.get("flat"):  # a linear layer that fusing made a window over the whole map
        place, shape = [None] * 4, [shape[0], math.prod(shape[1:])]
    return json.dumps([shape, list(layer.shape), place, planes_read(layer), planes, even], separators=(",", ":"))


def measured(layer: Node) -> dict[str, float]:
    """Times of a layer in the plan of this CPU."""
    return plan().get(key(layer), {})


@dataclass(frozen=True)
class LayerWays:
    """A layer with codes. Times in seconds, by way; a way that cannot be exact has none."""

    layer: str
    runs_as: str
    predicted: dict[str, float]
    measured: dict[str, float]

    @property
    def warning(self) -> str:
        mine, floats = self.measured.get(self.runs_as), self.measured.get("float")
        slower = mine is not None and floats is not None and mine > floats
        return "WARN slower than torch's float layer" if slower else ""


@dataclass(frozen=True)
class Explanation:
    """`str()` is the table: predicted and measured time of each way, in microseconds, and which one runs."""

    rows: list[LayerWays]
    note: str

    def __str__(self) -> str:
        gated = any("gated" in {r.runs_as, *r.predicted, *r.measured} for r in self.rows)
        ways = [way for way in WAYS if way != "gated" or gated]
        head = ["layer", "runs as", *(f"{way}, {said} us" for said in ("predicted", "measured") for way in ways), ""]
        rows = [
            [r.layer, r.runs_as, *(us(t.get(way)) for t in (r.predicted, r.measured) for way in ways), r.warning]
            for r in self.rows
        ]
        return "\n".join([*columns(head, rows), self.note])


def explain(packed: PackedModel, measure: bool = False) -> Explanation:
    """See `PackedModel.explain`."""
    from bitwright.engine import plan_gates, plan_splits  # imported here: they measure with this file

    if not native.available():
        return Explanation([], f"{native.notice()}: plain torch runs every layer, there is nothing to choose")
    layers = [n for n in packed.runtime.nodes if n.op in CODED]
    if measure:
        found = {key(n): _times(n, packed.runtime) for n in layers}
        found |= plan_gates.times(packed.runtime) | plan_splits.times(packed.runtime)
        path = plan_file()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as beside:
                beside.write_text(json.dumps({**plan(), **found}, indent=1), encoding="utf-8")
        except OSError as error:
            text = f"explain: the times cannot be kept in {path.parent}: {error.strerror or error}"
            raise InputError(f"{text}. XDG_CACHE_HOME names another folder", code="file-write") from None
        _read.clear()
        packed.forget_steps()
        layers = [n for n in packed.runtime.nodes if n.op in CODED]
    rows = [LayerWays(n.owner or n.name, str(n.attrs["x_form"]), _predicted(n), measured(n)) for n in layers]
    rows += [LayerWays(*row) for row in (*plan_gates.rows(packed.runtime), *plan_splits.rows(packed.runtime))]
    known = sum(bool(r.measured) for r in rows)
    note = f"{known} of {len(rows)} layers measured on this CPU ({cpu()}, {native.isa()})"
    return Explanation(rows, note if known == len(rows) else f"{note}; packed.explain(measure=True) measures them")


def _predicted(layer: Node) -> dict[str, float]:
    info = layer.attrs["weight"]
    rates = RATES.get(native.isa())
    if rates is None:
        return {}
    pixels = math.prod(layer.shape) // info["shape"][0] if layer.shape else 1
    products = math.prod(info["shape"]) * pixels
    filled = 32 * -(-info["shape"][1] // 32) / info["shape"][1]  # a word of bits holds 32 channels
    passes, planes = sum(len(t["planes"]) for t in info["terms"]), planes_read(layer)
    if native.isa() == "avx2":
        planes = -(-planes // LOOKED_UP_PLANES)
    work = (products * planes * passes * filled, products * len(info["terms"]), products)
    return {way: 1e-9 * w / rate for way, w, rate in zip(("bits", "bytes", "float"), work, rates, strict=True)}


def in_turn(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each call, one thread, in turn."""
    with torch_threads(1), torch.inference_mode():
        found = interleave(calls, rounds=ROUNDS, slice_seconds=SLICE, clock=clock_for(1)[0])
    return {way: timing.median for way, timing in found.items()}


def _times(layer: Node, graph: Graph) -> dict[str, float]:
    """Each way on one image of random codes, one thread, in turn."""
    a = layer.attrs
    shape = 1, *graph.node(layer.inputs[0]).image, a["weight"]["shape"][1] * int(a.get("groups", 1))
    codes = torch.randint(0, int(a["x"]["levels"]) + 1, shape, dtype=torch.uint8)
    calls: dict[str, Callable[[], object]] = {}
    for way in ("bits", "bytes"):
        if (call := _native_call(layer, graph, way, codes)) is not None:
            calls[way] = call
    calls["float"] = _float_call(layer, codes.permute(0, 3, 1, 2).float())
    return in_turn(calls)


def _native_call(layer: Node, graph: Graph, way: str, codes: Tensor) -> Callable[[], object] | None:
    node = Node(layer.op, layer.name, list(layer.inputs), {**layer.attrs, "x_form": way})
    groups = int(layer.attrs.get("groups", 1))
    try:
        plans = conv_plans(node, graph)
    except InputError:  # weights beyond what bytes hold
        return None
    x = codes if way == "bytes" else native.to_words(codes, planes_read(layer), groups)
    scale, add = graph.need(layer, "scale"), graph.need(layer, "add")
    output = native.FloatOutput(scale[0], add) if len(plans) == 1 else native.KernelOutput()
    return lambda: [plan.run(x, output, None, 1) for plan in plans]


def _float_call(layer: Node, x: Tensor) -> Callable[[], object]:
    shape = list(layer.attrs["weight"]["shape"])
    if layer.op == "coded_linear":
        rows, weight = x.flatten(2).transpose(1, 2).reshape(-1, shape[1]), torch.randn(shape)
        return lambda: F.linear(rows, weight)
    place = place_of(layer)
    weight = torch.randn(shape[:2] + place.pop("kernel"))
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    return lambda: F.conv2d(x, weight, **place)
