"""What a file holds of a graph, reading it back, and the check that a graph is one that we could have written.

What passes `check` cannot ask for more memory than its tensors and its declared sizes say, and no number of it reaches a
kernel unchecked. Shapes come from torch's own operators on the meta device: no values, no memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bitwright.engine import aten_list
from bitwright.engine.attributes import MAX_RANK, MAX_VALUES, listed, need, whole
from bitwright.engine.graph import Graph, Node
from bitwright.engine.operators import OPERATORS, function
from bitwright.engine.rules import LAYERS, SPLITS, weight_shape
from bitwright.errors import InputError

INLINE = 3  # up to so many thresholds stand in the graph itself: a tensor of its own takes more bytes
MAX_NODES, MAX_TEXT = 5_000, 1 << 24
MAX_TOTAL = 1 << 31  # of all values together, per sample
MAX_TRIAL_VALUES, MAX_TRIAL_MACS = 1 << 24, 1 << 33
COMMON = frozenset({"shape", "tensors", "owner", "frame"})  # attributes of every node


def usual_owner(op: str, name: str) -> str:
    """The owner where a file names none: layers and quantizers have their module's name, calls numbered by #."""
    return name.split("#")[0] if op in (*LAYERS, "quantize") else ""


def stored(graph: Graph) -> tuple[str, dict[str, Tensor]]:
    """What a file holds: the graph without what the reader can work out, and the tensors it names.

    Left out: lines of the user's code, owners and tensor keys that follow from the name, shapes (worked out
    again on load), attributes at their usual value. A threshold or three stand in the graph itself.
    """
    nodes, tensors = [], dict(graph.tensors)
    for n in graph.nodes:
        skip = {"frame"} | ({"owner"} if n.owner == usual_owner(n.op, n.name) else set())
        skip |= set() if n.op == "input" else {"shape"}
        known = OPERATORS[n.op].attrs
        usual = {k: a.usual(n.attrs) for k, a in known.items() if a.usual is not None}
        attrs = {k: v for k, v in n.attrs.items() if k not in skip and usual.get(k, ...) != v}
        roles = dict(attrs.pop("tensors", {}))
        table = graph.tensor(n, "thresholds")
        if table is not None and table.dim() == 1 and table.numel() <= INLINE and bool(table.isfinite().all()):
            tensors.pop(roles.pop("thresholds"), None)
            attrs["thresholds"] = table.tolist()
        if roles:
            plain = all(key == f"{n.name}.{role}" for role, key in roles.items())
            attrs["tensors"] = list(roles) if plain else roles
        nodes.append({"op": n.op, "name": n.name, "inputs": n.inputs, "attrs": attrs})
    return json.dumps(nodes, separators=(",", ":")), tensors


def from_json(text: str, tensors: dict[str, Tensor]) -> Graph:
    """Reads and checks a graph; `InputError` says what is wrong. Nothing in it is ever executed."""
    if len(text) > MAX_TEXT:
        raise InputError(f"packed file: graph of more than {MAX_TEXT} characters", code="file-graph")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"packed file: graph is not JSON ({error})", code="file-graph") from None
    if not isinstance(data, list) or not data or len(data) > MAX_NODES:
        raise InputError(f"packed file: graph is not a list of 1 to {MAX_NODES} nodes", code="file-graph")
    nodes, tensors = [], dict(tensors)
    for i, d in enumerate(data):
        if not isinstance(d, dict) or set(d) != {"op", "name", "inputs", "attrs"}:
            raise InputError(f"packed file: node {i} needs op, name, inputs, attrs", code="file-graph")
        node = Node(d["op"], d["name"], d["inputs"], d["attrs"])
        if isinstance(node.attrs, dict) and isinstance(node.name, str) and isinstance(node.op, str):
            node.attrs = _spelled_out(i, node, tensors)
        nodes.append(node)
    graph = Graph(nodes, tensors)
    check_graph(graph)
    return graph


def _spelled_out(i: int, node: Node, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The attributes of a stored node with what it left out; its inline thresholds become a tensor."""
    attrs = dict(node.attrs)
    table = attrs.pop("thresholds", None)
    roles = attrs.get("tensors", [])
    if isinstance(roles, list):
        attrs["tensors"] = roles = {str(r): f"{node.name}.{r}" for r in roles}
    if table is not None:
        key = f"{node.name}.thresholds"
        numbers = listed(lambda v: type(v) in (int, float) and abs(v) < 1e39, 1, INLINE)(table)
        if not numbers or key in tensors or not isinstance(roles, dict):
            where = f"packed file: node {i} {node.name[:60]!r}"
            raise InputError(f"{where}: thresholds are not up to {INLINE} numbers", code="file-graph")
        tensors[key] = torch.tensor([float(t) for t in table], dtype=torch.float64).float()
        attrs["tensors"] = {**roles, "thresholds": key}
    for name, attr in OPERATORS[node.op].attrs.items() if node.op in OPERATORS else ():
        if name not in attrs and attr.usual is not None and (value := attr.usual(attrs)) is not ...:
            attrs[name] = value
    attrs.setdefault("owner", usual_owner(node.op, node.name))
    return attrs


# -- checks -------------------------------------------------------------------------------------------------
SIZES = (2, 3)  # two batches on the meta device: a size that differs depends on the batch


def check_graph(graph: Graph, folded: bool = True) -> None:
    """`InputError` naming the first node that is not as `docs/format.md` says. `folded`: its numbers are float32 by now."""
    seen: dict[str, Node] = {}
    values: dict[str, list[Tensor]] = {}
    watches = [aten_list.Watch(MAX_VALUES, n) for n in SIZES]
    total = macs = 0
    for i, n in enumerate(graph.nodes):
        try:
            _form(n, seen, graph)
            _tensors(n, graph, folded)
            values[n.name] = made = _values(n, graph, seen, values, watches)
            shape = _shape(made)
            n.attrs.setdefault("shape", shape)  # a file may leave it to us
            need(list(n.shape) == shape, f"shape {list(n.shape)}, but it gives {shape}")
            need(made[0].numel() <= MAX_VALUES * SIZES[0], f"more than {MAX_VALUES} values a sample")
        except Exception as error:  # `Unfit`, or torch's own reasons on the meta device, which are of many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
            name, op = str(n.name)[:60], str(n.op)[:40]
            frame = f" ({str(n.attrs['frame'])[:100]})" if isinstance(n.attrs, dict) and n.attrs.get("frame") else ""
            raise InputError(f"packed file: node {i} {name!r} ({op}){frame}: {reason}", code="file-graph") from None
        total += made[0].numel() // SIZES[0]
        if n.op in LAYERS:
            macs += math.prod(weight_shape(n, graph)) * made[0][0, :1].numel()
        seen[n.name] = n
    ops = [n.op for n in graph.nodes]
    inputs = max(1, ops.count("input"))
    if ops[:inputs] != ["input"] * inputs or ops[-1] != "output" or ops.count("output") != 1:
        raise InputError("packed file: a graph begins with its inputs and ends with one output", code="file-graph")
    free = [n for n in graph.inputs() if n.attrs.get("any_size")]
    if free and (inputs > 1 or len(free[0].shape) not in (2, 3)):
        raise InputError("packed file: any_size is for one input, [C, H, W] or [C, L]", code="file-graph")
    if total > MAX_TOTAL:
        raise InputError(f"packed file: {total} values a sample, at most {MAX_TOTAL}", code="file-graph")
    graph.work = total, macs + watches[0].macs
    found = [values[name] for name in graph.nodes[-1].inputs]
    graph.answers = [(two.shape, three.shape, two.dtype) for two, three in found]


def sized(graph: Graph, shape: Sequence[int]) -> Graph:
    """The same graph, checked, with the shapes that an input of this shape gives. Errors: `InputError` where it does not go
    through, or asks for more than a file may."""
    made = graph.copy()
    for node in made.nodes:
        if node.op == "input":
            node.attrs["shape"] = [int(s) for s in shape]
        else:
            node.attrs.pop("shape", None)
    check_graph(made)
    before, after = graph.by_name(), made.by_name()
    for n in made.nodes:  # what fusing went by: which values have one shape, and how a flat value lies in its image
        (one, *rest), (new, *others) = ([g[i].shape for i in n.inputs] or [()] for g in (before, after))
        broadcast = n.op == "add" and (one == rest[0]) != (new == others[0])
        # kernels keep the lengths of two axes in front of a linear layer's
        many = n.op in ("coded_linear", *SPLITS) and not n.attrs.get("rank") and len(n.shape) > 3
        if broadcast or many or (n.op == "flatten" and n.shape == before[n.name].shape and one != new):
            raise InputError(f"packed file: {n.name[:60]!r} ({n.op}) works in another way there", code="file-graph")
    return made


def check_runs(graph: Graph, run: Callable[[], object], where: str) -> None:
    """A checked graph may still not run: one zero sample, where that takes little memory and less than seconds."""
    assert graph.work is not None
    if graph.work[0] > MAX_TRIAL_VALUES or graph.work[1] > MAX_TRIAL_MACS:
        return
    try:
        run()
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{where}: its graph does not run ({text[:200]})", code="file-graph") from None


def _shape(made: list[Tensor]) -> list[int | str]:
    """The axes behind the first; those that depend on the batch as text."""
    out: list[int | str] = []
    for a, b in zip(made[0].shape[1:], made[1].shape[1:], strict=True):
        rest = a - SIZES[0] * (b - a)
        out.append(int(a) if a == b else f"{f'{b - a}*' if b - a != 1 else ''}N{f'{rest:+d}' if rest else ''}")
    return out


def _form(n: Node, seen: dict[str, Node], graph: Graph) -> None:
    """Names, inputs and the keys every node may have."""
    need(isinstance(n.op, str) and n.op in OPERATORS, "unknown operator")
    need(isinstance(n.name, str) and 0 < len(n.name) <= 300 and n.name not in seen, "name missing, too long or taken")
    known = isinstance(n.inputs, list) and all(isinstance(s, str) and s in seen for s in n.inputs)
    need(known and len(n.inputs) <= MAX_NODES, "reads a value that does not exist yet")
    op = OPERATORS[n.op]
    fits = op.inputs is None or (len(n.inputs) == op.inputs if op.inputs >= 0 else len(n.inputs) > 0)
    need(fits, f"takes {op.inputs} inputs, has {len(n.inputs)}")
    need(isinstance(n.attrs, dict) and set(n.attrs) <= COMMON | set(op.attrs), "unknown attributes")
    for key in ("owner", "frame"):
        text = n.attrs.get(key, "")
        need(isinstance(text, str) and len(text) <= 1000, f"{key} is not a short text")
    shape = n.attrs.get("shape", None if n.op == "input" else [])
    size = whole(0, MAX_VALUES) if n.op == "input" else lambda v: isinstance(v, str) or whole(0, MAX_VALUES)(v)
    need(listed(size, 0, MAX_RANK)(shape), "shape is not a short list of sizes")
    sizes = [max(1, s) for s in n.shape if isinstance(s, int)]
    need(math.prod(sizes) <= MAX_VALUES, f"more than {MAX_VALUES} values a sample")
    for name, attr in op.attrs.items():
        need(name in n.attrs or not attr.required, f"{name} is missing")
        need(name not in n.attrs or attr.fits(n.attrs[name]), f"{name}={str(n.attrs.get(name))[:60]} is out of bounds")
    roles = n.attrs.get("tensors", {})
    found = isinstance(roles, dict) and all(isinstance(k, str) and k in graph.tensors for k in roles.values())
    need(found, "names a tensor that the file does not hold")
    for s in n.inputs:
        need((seen[s].op == "quantize") == op.codes, f"reads {s[:60]!r}, {seen[s].op}")


def _tensors(n: Node, graph: Graph, folded: bool) -> None:
    roles = n.attrs.get("tensors", {})
    wanted = OPERATORS[n.op].tensors
    if "weight" in n.attrs and wanted.startswith("weight "):
        wanted = wanted.replace("weight", "bits scale").replace("[scale]", "")
    must = {r for r in wanted.split() if r[0] != "["}
    may = {r.strip("[]") for r in wanted.split()} | ({f"c{i}" for i in range(len(roles))} if n.op == "aten" else set())
    need(must <= set(roles) <= may, f"has tensors {sorted(map(str, roles))}, takes {wanted or 'none'}")
    for role, key in roles.items():
        t = graph.tensors[key]
        fits = t.dtype == (torch.uint8 if role == "bits" else torch.float32) or (not folded and t.is_floating_point())
        fits = t.dtype in aten_list.WORDS if n.op == "aten" else fits
        need(fits and t.is_contiguous(), f"{role} is {t.dtype}")


def _values(
    n: Node, graph: Graph, seen: dict[str, Node], values: dict[str, list[Tensor]], watches: list[aten_list.Watch]
) -> list[Tensor]:
    """The node's value without its numbers, for both sizes of the batch."""
    op, own = OPERATORS[n.op], n.op not in ("aten", "output")
    if n.op == "input":
        dtype = aten_list.DTYPES[n.attrs["dtype"]]
        return [torch.empty((b, *n.shape), dtype=dtype, device="meta") for b in SIZES]
    inputs = [[values[s][i] for s in n.inputs] for i in range(len(SIZES))]
    for a, b in zip(*inputs, strict=True) if own else ():
        need(a.dim() > 0 and a.shape[1:] == b.shape[1:], "a size behind axis 0 depends on the batch")
        need(a.shape[0] == inputs[0][0].shape[0], "its inputs differ in axis 0")
        need(a.dtype == torch.float32, f"reads {a.dtype}")
    source = seen[n.inputs[-1 if op.inputs is None else 0]] if n.inputs else n
    if op.check is not None:
        op.check(n, graph, inputs[0], source)
    if op.shape is not None:
        return [op.shape(n, graph, x[0], source) for x in inputs]
    only = {k: graph.tensors[k].to("meta") for k in n.attrs.get("tensors", {}).values()}
    if own:  # float64 before the fold
        only = {k: t.float() if t.is_floating_point() else t for k, t in only.items()}
    run, made = function(n, replace(graph, tensors=only)), []
    for x, watch in zip(inputs, watches, strict=True):
        with nullcontext() if own else watch:  # a watch makes torch import its compiler, which takes seconds
            made.append(run(*x))
    return made
