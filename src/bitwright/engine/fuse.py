"""From the folded graph of a file to the graph that runs: thresholds, pooling on bits, residual adds inside layers.

Made at load, never stored. Each pass rewrites one pattern and keeps every value equal (tests compare both graphs):

    unused         units that nothing reads, or that never change: not computed (`engine/unused.py`)
    formats        which kernel reads a code: bits or bytes, how many groups
    absorb         quantize(relu(x * s + a)) -> quantize'(x), thresholds by bisection of the composite
    pool_codes     quantize(max_pool(x))     -> max_pool(quantize(x)); quantizers never fall as x rises
    flatten_codes  quantize(flatten(x)) read by linear layers -> they become convolutions over the whole map
    thresholds     quantize(coded layer)     -> the layer compares its integers and emits codes
    residual       add(coded layer, x)       -> the layer adds
    relu           relu(coded layer)         -> the layer clips
    extra          one or two bits, or codes of an even ladder, of a coded layer beside other readers -> the layer emits both
    share          equal quantizers of one value run once
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bitwright.engine import reference, thresholds
from bitwright.engine.forms import bytes_pay, zeros_skipped
from bitwright.engine.gates import SplitOperator
from bitwright.engine.graph import Graph, Node, fresh
from bitwright.engine.operators import bounds, function, monotone
from bitwright.engine.rules import CODED, CODED_SPLITS
from bitwright.engine.unused import without_unused

LIMIT = float(1 << 20)  # of an input: beyond it, and for NaN, the folded graph itself runs
MAX_SEARCH = 1 << 24  # numbers looked at in each step of all searches for float thresholds together
MAX_COUNT = 1 << 28  # integers tried one by one, of all layers together; beyond it thresholds are bisected
MAX_TABLE = 1 << 22  # thresholds of one layer; beyond it the quantizer runs as it is stored
LADDER = 3  # levels of a ladder beside floats: two bits, which the kernels compare in registers
FUSED_LEVELS = 15  # a popcount layer is done before it has searched a longer ladder; packing floats is faster there


def fuse(folded: Graph, pays: Callable[[Node, Graph], bool] = bytes_pay, smaller: bool = True) -> Graph:
    """A runtime graph; the given one is left alone. `pays(layer, graph)`: whether it reads bytes. `smaller`: without unused units."""
    graph = without_unused(folded.copy(), LIMIT) if smaller and zeros_skipped() else folded.copy()
    bound = bounds(graph, LIMIT)
    formats(graph, pays)
    changed, budget = True, [MAX_SEARCH]
    while changed:
        changed = _absorb(graph, bound, budget) or _pool_codes(graph, bound) or _flatten_codes(graph)
    _share(graph)
    _grids(graph)
    emit_codes(graph)
    join_floats(graph)
    graph.prune()
    return graph


def join_floats(graph: Graph) -> None:
    """What follows the floats of a layer, and what else is read of them, becomes part of it."""
    _residual(graph)
    _relu(graph)
    _extra(graph)


def formats(graph: Graph, pays: Callable[[Node, Graph], bool]) -> None:
    """Each reader keeps what it must know of its input's grid; readers that want another layout get a quantizer of their own."""
    users = graph.users()
    for q in [n for n in graph.nodes if n.op == "quantize"]:
        info = {k: q.attrs[k] for k in ("levels", "mult", "zero")}
        made: dict[tuple[str, int], Node] = {}
        for reader in users[q.name]:
            reader.attrs["x"] = info
            form, groups = "plain", 1
            if reader.op in CODED_SPLITS:
                reader.attrs["x_form"] = form = "bytes"
            if reader.op in CODED:
                as_bytes = pays(reader, graph) and _fits_bytes(reader, q)
                reader.attrs["x_form"] = form = "bytes" if as_bytes else "bits"
                groups = int(reader.attrs.get("groups", 1)) if form == "bits" else 1
            if (form, groups) not in made:
                mine = q
                if made:
                    mine = Node(q.op, fresh(f"{q.name}^", graph.by_name(), "^"), list(q.inputs), dict(q.attrs))
                    graph.nodes.insert(graph.nodes.index(q) + 1, mine)
                mine.attrs |= {"form": form, "groups": groups}
                made[form, groups] = mine
            reader.inputs = [made[form, groups].name]
        if not made:
            q.attrs |= {"form": "plain", "groups": 1}


def _fits_bytes(layer: Node, q: Node) -> bool:
    """The byte kernel multiplies codes by whole weights of -255..255."""
    for term in layer.attrs["weight"]["terms"]:
        ends = [int(term["zero"])] * 2
        for m in term["mult"]:
            ends[m > 0] += int(m)
        if max(abs(e) for e in ends) * int(q.attrs["mult"]) > 255:
            return False
    return True


def _coding(graph: Graph) -> list[Node]:
    """Quantizers whose codes are read as bits or bytes."""
    return [n for n in graph.nodes if n.op == "quantize" and n.attrs["form"] != "plain"]


def _same_axis(q: Node, source: Node, graph: Graph) -> bool:
    """Whether the numbers per channel of `source` lie along the quantizer's channels."""
    if len(q.shape) == 1 or source.op not in ("affine", "prelu"):
        return True
    if source.op == "affine":
        return bool(q.attrs["last"]) == bool(source.attrs["last"])
    return not q.attrs["last"] or graph.need(source, "slope").numel() == 1  # prelu's channels are axis 1


def _there_anyway(graph: Graph, source: Node, chain: list[Node]) -> bool:
    """Whether a float operator computes this value for readers outside the chain too. A quantizer then reads it as it is, and
    what writes it keeps one reader; layers with bits write codes beside their floats instead."""
    if all(reader.op == "quantize" or reader in chain for reader in graph.users()[source.name]):
        return False
    by_name = graph.by_name()
    while source.op == "max_pool" or monotone(source, graph):
        source = by_name[source.inputs[0]]
    return source.op not in CODED


def _absorb(graph: Graph, bound: dict[str, float], budget: list[int]) -> bool:
    by_name = graph.by_name()
    done = False
    for q in [n for n in _coding(graph) if "apart" not in n.attrs]:
        chain: list[Node] = []
        source = by_name[q.inputs[0]]
        while monotone(source, graph) and _same_axis(q, source, graph) and not _there_anyway(graph, source, chain):
            if (
                source.op == "affine"
                and by_name[source.inputs[0]].op in CODED_SPLITS
                and q.attrs["levels"] > FUSED_LEVELS
            ):
                break  # a norm and an even ladder are less work there than so many thresholds for each channel
            chain.append(source)
            source = by_name[source.inputs[0]]
        if not chain:
            continue
        old = graph.need(q, "thresholds")
        keys = [k for n in chain for k in n.attrs.get("tensors", {}).values()]
        # one row serves all channels
        alike = old.dim() == 1 and all(graph.tensors[k].numel() == 1 for k in keys) and not q.key("flip")
        channels, levels = 1 if alike else q.channels, int(q.attrs["levels"])
        work = channels * levels * len(chain)
        if channels * levels > MAX_TABLE or work > budget[0]:
            continue
        budget[0] -= work
        code = thresholds.code_after([function(n, graph) for n in reversed(chain)], old, graph.tensor(q, "flip"))
        found, flip = thresholds.float_thresholds(code, levels, channels)
        if bound[source.name] == math.inf and not (_tame(code, channels) and not bool(flip.any())):
            q.attrs["apart"] = True
            continue
        if bool((found == found[:1]).all()) and not bool(flip.any()):
            found = found[0].clone()
        elif alike:
            found, flip = found.expand(q.channels, levels), flip.expand(q.channels)
        graph.put(q, "thresholds", found)
        if bool(flip.any()):
            graph.put(q, "flip", flip)
        else:
            q.attrs["tensors"].pop("flip", None)
        q.inputs = [source.name]
        done = True
    graph.prune()
    return done


def _tame(code: Callable[[Tensor], Tensor], channels: int) -> bool:
    """Whether an infinity has the code of the largest finite number: no 0 * inf on the way."""
    most = torch.finfo(torch.float32).max
    ends = torch.tensor([[-torch.inf], [-most], [most], [torch.inf]]).expand(4, channels)
    got = code(ends)
    return torch.equal(got[0], got[1]) and torch.equal(got[2], got[3])


def _pool_codes(graph: Graph, bound: dict[str, float]) -> bool:
    by_name = graph.by_name()
    for q in _coding(graph):
        pool = by_name[q.inputs[0]]
        if pool.op != "max_pool" or pool.attrs["rank"] != 2 or q.key("flip") or q.attrs["last"]:
            continue
        if bound[pool.inputs[0]] == math.inf:  # codes of NaN are the lowest, but NaN wins a pooling
            continue
        if _there_anyway(graph, pool, []):
            continue
        source = by_name[pool.inputs[0]]
        tensors = dict(q.attrs["tensors"])
        attrs = {**q.attrs, "shape": list(source.shape), "tensors": tensors}
        before = Node("quantize", fresh(f"{q.name}^", by_name, "^"), [source.name], attrs)
        graph.nodes.insert(graph.nodes.index(q), before)
        keep = {k: q.attrs[k] for k in ("owner", "shape", "levels", "form", "groups", "last")}
        keep |= {"units": q.attrs["units"]} if "units" in q.attrs else {}
        keep |= {k: pool.attrs[k] for k in ("rank", "kernel", "stride", "padding", "dilation", "ceil")}
        q.op, q.inputs, q.attrs = "max_pool_codes", [before.name], keep
        graph.prune()
        return True
    return False


def _flatten_codes(graph: Graph) -> bool:
    by_name = graph.by_name()
    users = graph.users()
    for q in _coding(graph):
        if q.key("flip") or len(q.shape) != 1:
            continue
        flat = by_name[q.inputs[0]]
        table = graph.need(q, "thresholds")
        if flat.op != "flatten" or flat.attrs["start"] != 1 or table.dim() != 1 or len(q.attrs["zero"]) != 1:
            continue
        source = by_name[flat.inputs[0]]
        if len(source.shape) != 3 or any(r.op != "coded_linear" for r in users[q.name]):
            continue
        q.inputs, q.attrs["shape"], q.attrs["last"] = [source.name], list(source.shape), False
        for reader in users[q.name]:
            outputs = reader.attrs["weight"]["shape"][0]
            reader.op = "coded_conv"
            # [O, C*H*W] in flatten order is [O, C, H, W]: the same bits, read as one window over the whole map
            reader.attrs["weight"] = {**reader.attrs["weight"], "shape": [outputs, *source.shape]}
            reader.attrs |= {"rank": 2, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
            reader.attrs["flat"] = True
        graph.prune()
        return True
    return False


def _share(graph: Graph) -> None:
    """Codes of one value by equal thresholds, read in one form, are made once; so are poolings of them."""
    seen: dict[Any, str] = {}
    says = ("form", "groups", "last", "kernel", "stride", "padding", "dilation", "ceil")
    for q in [n for n in graph.nodes if n.op in ("quantize", "max_pool_codes")]:
        tables = [t for role in ("thresholds", "flip") if (t := graph.tensor(q, role)) is not None]
        numbers = [(t.shape, t.double().contiguous().numpy().tobytes()) for t in tables]
        key = (q.op, q.inputs[0], *numbers, *(str(q.attrs.get(k)) for k in says))
        if key in seen:
            graph.replace_uses(q.name, seen[key])
            graph.nodes.remove(q)
        else:
            seen[key] = q.name


def integer_range(graph: Graph, node: Node) -> tuple[Tensor, Tensor]:
    """Smallest and largest integer a coded layer can produce, per output channel: int64 [O] each."""
    gated = node.op in CODED_SPLITS  # its base is a part of this sum
    w = SplitOperator(node, graph).weight if gated else reference.weight_integers(graph, node)[0]
    w = w.to(torch.int64)
    info = node.attrs["x"]
    low = reference.seen_by_outputs(info["zero"], w, int(node.attrs.get("groups", 1)))
    high = low + int(info["mult"]) * int(info["levels"])
    ends = torch.stack([w * low, w * high, torch.zeros_like(w)])  # 0: a tap in the padding
    shift = graph.tensor(node, "shift")
    always = 0 if shift is None else shift
    return ends.amin(0).flatten(1).sum(1) + always, ends.amax(0).flatten(1).sum(1) + always


def _grids(graph: Graph) -> None:
    """Byte codes of an even ladder need no search: one multiply or divide gives them."""
    for q in _coding(graph):
        fits = q.attrs["form"] == "bytes" and not q.key("flip")
        if grid := thresholds.even_grid(graph.need(q, "thresholds")) if fits else None:
            q.attrs["grid"] = grid


def _put_integer_thresholds(graph: Graph, layer: Node, q: Node, left: list[int]) -> bool:
    """Thresholds of the quantizer on the integers of the layer it reads; False where there are none. `left`: integers that may
    still be tried one by one."""
    scale, add = graph.need(layer, "scale"), graph.need(layer, "add")
    table, flip = graph.need(q, "thresholds"), graph.tensor(q, "flip")
    levels, most = int(q.attrs["levels"]), thresholds.ENUMERATE
    low, high = integer_range(graph, layer)
    if int(max(-low.min(), high.max())) >= 2**31 - 1 or low.numel() * levels > MAX_TABLE:
        return False
    work = min(int((high - low).max()) + 1, most + 1) * low.numel()
    one_by_one = work <= left[0]
    left[0] -= work if one_by_one else 0

    def code(i: Tensor) -> Tensor:
        """The real operations between the layer's integer [n, O] and the code its reader wants."""
        return reference.quantize(reference.epilogue([i], scale, add, True), table, flip, True)

    try:
        found, turned = thresholds.integer_thresholds(code, levels, low, high, most if one_by_one else 0)
    except thresholds.NotMonotone:
        return False
    graph.put(layer, "int_thresholds", found)
    if bool(turned.any()):
        graph.put(layer, "int_flip", turned)
    return True


def _one_sum(layer: Node) -> bool:
    """Whether a kernel computes one whole number for each output; of a gated layer where `fuse_gates` has said so."""
    return "way" in layer.attrs or (layer.op in CODED and len(layer.attrs["weight"]["terms"]) == 1)


def _convolves(layer: Node) -> bool:
    return layer.op == "coded_conv" or ("way" in layer.attrs and not layer.last)


def emit_codes(graph: Graph) -> None:
    """A layer whose only reader is a quantizer compares its integers and writes the codes."""
    left = [MAX_COUNT]
    for q in _coding(graph):
        layer = graph.node(q.inputs[0])
        if (
            not _one_sum(layer)
            or len(graph.users()[layer.name]) != 1
            or (layer.key("norm_scale") and "grid" not in q.attrs)
        ):
            continue
        if int(q.attrs["levels"]) > FUSED_LEVELS and layer.attrs["x_form"] == "bits" and "grid" not in q.attrs:
            continue
        image = _convolves(layer) and len(layer.shape) == 3 and not q.attrs["last"]
        if not image and len(layer.shape) != 1:
            continue
        if "grid" not in q.attrs and not _put_integer_thresholds(graph, layer, q, left):
            continue  # stays float: slower, but correct
        layer.attrs["emit"] = {k: q.attrs[k] for k in ("levels", "form", "groups", "grid") if k in q.attrs}
        graph.nodes.remove(q)
        rename(graph, layer, q.name)


def rename(graph: Graph, node: Node, name: str) -> None:
    """`node` gives the value that was called `name`."""
    graph.replace_uses(node.name, name)
    node.name = name


def _residual(graph: Graph) -> None:
    for add in [n for n in graph.nodes if n.op == "add" and n.inputs[0] != n.inputs[1]]:
        users, by_name = graph.users(), graph.by_name()
        for mine, other in (add.inputs, add.inputs[::-1]):
            layer = by_name[mine]
            fits = _writes_floats(layer) and len(layer.inputs) == 1 and len(users[mine]) == 1
            if fits and layer.shape == by_name[other].shape == add.shape:
                graph.nodes.remove(layer)
                layer.inputs.append(other)
                graph.nodes[graph.nodes.index(add)] = layer
                layer.name = add.name
                break


def _relu(graph: Graph) -> None:
    """The larger of y and 0 is written by the layer. Quantizers that read y, and cannot tell values below 0, read it too."""
    for node in [n for n in graph.nodes if n.op == "relu"]:
        layer = graph.node(node.inputs[0])
        others = [n for n in graph.users()[layer.name] if n is not node]
        if not _writes_floats(layer) or "relu" in layer.attrs or not all(blind_below_zero(graph, n) for n in others):
            continue
        graph.nodes.remove(node)
        layer.attrs["relu"] = True
        rename(graph, layer, node.name)


def _writes_floats(layer: Node) -> bool:
    """A convolution that writes its floats itself, and nothing else yet."""
    fits = _one_sum(layer) and _convolves(layer) and not layer.attrs.get("flat")
    return fits and not {"emit", "extra"} & set(layer.attrs)


def blind_below_zero(graph: Graph, q: Node) -> bool:
    """Whether it is a quantizer that cannot tell values below 0 from 0."""
    if q.op != "quantize" or q.attrs["form"] == "plain" or q.key("flip"):
        return False
    table = graph.need(q, "thresholds")
    return bool(((table > 0) | (table == -torch.inf)).all())


def _extra(graph: Graph) -> None:
    by_name = graph.by_name()
    for q in _coding(graph):
        # a Linear layer reads along the last axis, a convolution along axis 1
        if q.attrs["groups"] != 1 or (q.attrs["last"] and len(q.shape) > 1):
            continue
        layer = by_name[q.inputs[0]]
        table, flip = graph.need(q, "thresholds"), graph.tensor(q, "flip")
        levels = table.shape[-1]
        few = levels == 1 or (levels <= LADDER and q.attrs["form"] == "bits" and flip is None)
        if not _writes_floats(layer) or not ("grid" in q.attrs or few):
            continue
        layer.attrs |= {"extra": q.name, "extra_form": q.attrs["form"]}
        if "grid" in q.attrs:
            layer.attrs["grid"] = q.attrs["grid"]
        else:
            graph.put(layer, "cuts", table.reshape(-1, levels).T.expand(levels, layer.shape[0]))
            if flip is not None:
                graph.put(layer, "flip", flip)
        q.op = "emitted"
