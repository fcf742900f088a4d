"""A net in layer form in a file: a small graph for each packed layer, put back into the user's own module."""

from __future__ import annotations

import json
import os
from typing import Any, cast

from torch import Tensor, nn

from bitwright.engine.aten_list import DTYPES, WORDS
from bitwright.engine.layer_form import sample
from bitwright.engine.packed_layer import KINDS, PackedLayer, packed_layers
from bitwright.engine.rules import LAYERS
from bitwright.engine.store import check_runs, from_json, stored
from bitwright.engine.trace import put
from bitwright.errors import InputError
from bitwright.transforms import Recipe, apply, recipe_of
from bitwright.transforms.bake import bake
from bitwright.transforms.copying import copy_model
from bitwright.transforms.geometry import describe, padding_of

ENTRY = {"graph": str, "norm": str, "dtype": str, "last": bool}
INSIDE = "packed."  # where a packed layer keeps its tensors


def described(model: nn.Module) -> str:
    """The packed layers of a module as text: what `restored` needs beside the tensors of the state dict."""
    return json.dumps(
        {
            name: {
                "graph": stored(layer.packed.graph)[0],
                "norm": layer.norm,
                "dtype": WORDS[layer.trained_dtype],
                "last": layer.last,
            }
            for name, layer in packed_layers(model).items()
        },
        separators=(",", ":"),
    )


def restored(
    model: nn.Module, tensors: dict[str, Tensor], metadata: dict[str, str], path: str | os.PathLike[str]
) -> nn.Module:
    """`model` with packed layers in the places that the file names, and all its numbers; unchanged after an error."""
    entries = _entries(metadata.get("layers", ""), path)
    recipe = Recipe.from_toml(metadata.get("recipe", ""))
    _fill(copy_model(model), entries, recipe, tensors, path)  # a trial: whatever is wrong is wrong here
    return _fill(model, entries, recipe, tensors, path)


def _entries(text: str, path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(text)
        good = isinstance(found, dict) and all(
            isinstance(e, dict) and set(e) == set(ENTRY) and all(isinstance(e[k], t) for k, t in ENTRY.items())
            for e in found.values()
        )
        if not good or any(
            e["dtype"] not in DTYPES or not DTYPES[e["dtype"]].is_floating_point for e in found.values()
        ):
            raise ValueError
    except (ValueError, RecursionError):
        raise InputError(f"load {path}: its list of packed layers is damaged", code="file-damaged") from None
    return found


def _fill(
    model: nn.Module,
    entries: dict[str, dict[str, Any]],
    recipe: Recipe,
    tensors: dict[str, Tensor],
    path: str | os.PathLike[str],
) -> nn.Module:
    model.eval()
    bake(model)
    own = {rule.match: rule for rule in recipe_of(model).rules}
    missing = tuple(rule for rule in recipe.rules if own.get(rule.match) != rule)
    if missing:  # layers that the file does not hold as bits, with the parts that they were trained with
        apply(model, Recipe(missing))
    for module in model.modules():  # one eval kernel for a whole encoder layer reads weights past its layers
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    modules = dict(model.named_modules())
    for name, entry in entries.items():
        layer, norm = modules.get(name), modules.get(entry["norm"]) if entry["norm"] else None
        if layer is None or not isinstance(layer, tuple(KINDS)) or (entry["norm"] and norm is None):
            raise InputError(
                f"load {path}: this model has no Linear or convolution layer {name!r} as the file has: made of another model",
                code="load-keys",
                layer=name,
            )
        packed = _packed(name, layer, entry, tensors, path)
        model = put(model, layer, packed)
        if norm is not None:
            put(model, norm, nn.Identity())
    wanted, have = model.state_dict(), set(tensors)
    off = sorted(set(wanted) ^ have) or sorted(k for k, v in wanted.items() if v.shape != tensors[k].shape)
    if off:
        text = f"load {path}: {len(off)} keys differ from this model's ({', '.join(off[:3])}): made of another model"
        raise InputError(text, code="load-keys")
    model.load_state_dict(tensors, assign=True)
    return model


def _packed(
    name: str, layer: nn.Module, entry: dict[str, Any], tensors: dict[str, Tensor], path: str | os.PathLike[str]
) -> PackedLayer:
    head = f"{name}.{INSIDE}" if name else INSIDE
    inside = {k.removeprefix(head).replace("/", "."): v for k, v in tensors.items() if k.startswith(head)}
    graph, conv = from_json(entry["graph"], inside), not isinstance(layer, nn.Linear)
    nodes, weight = [n for n in graph.nodes if n.op in LAYERS], cast(Tensor, layer.weight)
    wanted: dict[str, Any] = {"weight": list(weight.shape)}
    if conv:
        wanted |= {key: list(getattr(layer, key)) for key in ("stride", "dilation")}
        wanted |= {"groups": layer.groups, "padding": padding_of(layer)}
    fits = len(nodes) == 1 and graph.nodes[0].shape == tuple(sample(layer).shape[1:])
    if fits:
        have = {**nodes[0].attrs, "weight": nodes[0].attrs.get("weight", {}).get("shape")}
        fits = nodes[0].op.endswith("conv") == conv and all(have[key] == value for key, value in wanted.items())
    if not fits:
        text = f"load {path}: {name} is {describe(layer)} here and another layer in the file: made of another model"
        raise InputError(text, code="load-keys", layer=name)
    packed = PackedLayer.build(layer, graph, entry["norm"])
    packed.trained_dtype, packed.last = DTYPES[entry["dtype"]], entry["last"]
    check_runs(graph, lambda: packed(sample(layer)), f"load {path}: {name}")
    return packed
