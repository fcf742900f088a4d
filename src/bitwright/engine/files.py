"""One safetensors file: a trained net (weights + recipe), a packed net (bits + graph), or a net in layer form: a small
graph for each packed layer, put back into the user's own module."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.engine.aten_list import DTYPES, WORDS
from bitwright.engine.layer_form import KINDS, PackedLayer, packed_layers, sample
from bitwright.engine.packed import PackedModel
from bitwright.engine.rules import LAYERS
from bitwright.engine.store import check_runs, from_json, stored
from bitwright.engine.trace import put
from bitwright.errors import InputError
from bitwright.tensors import bytes_of, read_tensors, write_tensors
from bitwright.transforms import Recipe, apply, recipe_of
from bitwright.transforms.bake import bake
from bitwright.transforms.copying import copy_model
from bitwright.transforms.geometry import describe, steps_of
from bitwright.transforms.trained_file import load_trained, metadata_of, put_stored_widths
from bitwright.transforms.unwrap import unwrap

FORMAT = "1"
RESERVED = {"bitwright", "format", "recipe", "graph", "layers", "aliases", "channels_last", "shrunk", "compressed"}
ENTRY = {"graph": str, "norm": str, "dtype": str, "last": bool}  # what a file says of a packed layer
INSIDE = "packed."  # where a packed layer keeps its tensors
Path = str | os.PathLike[str]


def save(model: nn.Module, path: Path, **metadata: Any) -> int:
    """Writes a trained or a packed model; returns the bytes of the file.

    A trained model is its state dict (keys as in the float model, plus part parameters) and its recipe; extra
    keywords are stored as text. A packed model is bits, scales, float layers and the graph (docs/format.md); in layer form
    the state dict of the module with its packed layers, their small graphs, and the recipe. Masks take a bit for each
    weight, and of tensors with many zeros only the other numbers are written.

    Errors: `InputError` where the folder is missing or the disk is full; the old file stays.
    """
    if taken := sorted(set(metadata) & RESERVED):
        raise InputError(f"save {path}: metadata {taken[0]}=... is a name of the format itself", code="file-metadata")
    try:
        extra = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    except (TypeError, ValueError) as error:
        text = f"save {path}: metadata is text, numbers, lists and tables: {error}"
        raise InputError(text, code="file-metadata") from None
    tensors, own = _contents(model)
    return write_tensors(path, tensors, {**extra, **own}, compress=True)


def file_bytes(model: nn.Module, dense: bool = False) -> int:
    """The size of the file that `save` would write of `model`, without writing it.

    dense   as if zeros took as many bytes as other numbers, and equal tensors a place each

    >>> file_bytes(nn.Linear(8, 4)) > 4 * (8 * 4 + 4)
    True
    """
    return bytes_of(*_contents(model), dense)


def _contents(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata that make up a file of `model`."""
    if isinstance(model, PackedModel):
        text, tensors = stored(model.graph)
        return tensors, {"bitwright": "packed", "format": FORMAT, "graph": text}
    state = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    metadata = {"bitwright": "trained", "format": FORMAT, **metadata_of(model, state)}
    if layers := packed_layers(model):
        entries = {
            name: {"graph": stored(p.packed.graph)[0], "norm": p.norm, "dtype": WORDS[p.trained_dtype], "last": p.last}
            for name, p in layers.items()
        }
        metadata |= {"bitwright": "layers", "layers": json.dumps(entries, separators=(",", ":"))}
    return state, metadata


def load(path: Path, model: nn.Module | None = None, device: str | torch.device = "cpu") -> nn.Module:
    """Reads what `save` wrote.

    A packed file in graph form loads as a plain callable module, without the model's code. A trained file needs `model`,
    the float model (or one with the same recipe applied): the file's recipe is applied where it is missing, then the
    weights load strictly. A packed file in layer form needs it, too: its packed layers go into the places of the model's.

    Errors: `InputError` for an unreadable, truncated, foreign or hostile file, and for keys that do not match; `model` is
    then unchanged.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"load: got {type(path).__name__}; possible: the path of a file", code="file-missing")
    if model is not None and not isinstance(model, nn.Module):
        given = repr(model) if isinstance(model, (str, type)) else type(model).__name__
        text = f"load {path}: model={given[:80]}; possible: a module, as bw.models.create makes it"
        raise InputError(text, code="load-model")
    where = _device(device, path)
    tensors, metadata = read_tensors(path)
    kind, version = metadata.get("bitwright"), metadata.get("format")
    if kind is None:
        raise InputError(f"load {path}: a safetensors file, but not one of bitwright's", code="file-foreign")
    if version != FORMAT:
        raise InputError(f"load {path}: format {version!r}; this version reads {FORMAT}", code="file-format")
    if model is None and kind != "packed":
        what = "packed layers of a model, which runs with its own code" if kind == "layers" else "a trained net"
        raise InputError(f"load {path}: holds {what}; give the model, bw.load(path, model)", code="load-model")
    if where.type != "cpu" and kind in ("packed", "layers"):
        what = "nets" if kind == "packed" else "layers"
        raise InputError(f"load {path}: packed {what} run on the CPU, not on {str(where)!r}", code="device")
    _check_there(where, path)
    if kind == "packed":
        packed = PackedModel(from_json(metadata.get("graph", ""), tensors))
        zeros = [torch.zeros(1, *n.shape, dtype=DTYPES[n.attrs["dtype"]]) for n in packed.inputs]
        check_runs(packed.graph, lambda: packed(*zeros), f"load {path}")
        return packed
    assert model is not None
    if kind != "layers":
        return load_trained(model, tensors, metadata, path).to(where)
    model, entries = unwrap(model), _entries(metadata.get("layers", ""), path)
    recipe = Recipe.from_toml(metadata.get("recipe", ""))
    put_stored_widths(trial := copy_model(model), metadata, path)
    _fill(trial, entries, recipe, tensors, path)  # a trial on a copy: errors come here
    put_stored_widths(model, metadata, path)
    return _fill(model, entries, recipe, tensors, path)


def _device(device: Any, path: Path) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"load {path}: device={device!r}; possible: cpu, cuda, cuda:1", code="device") from None


def _check_there(device: torch.device, path: Path) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"load {path}: torch finds no device {str(device)!r} here", code="device") from None


# -- layer form ---------------------------------------------------------------------------------------------
def _entries(text: str, path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(text)
        for entry in found.values():
            fits = set(entry) == set(ENTRY) and all(isinstance(entry[k], kind) for k, kind in ENTRY.items())
            if not fits or not DTYPES[entry["dtype"]].is_floating_point:
                raise ValueError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(f"load {path}: its list of packed layers is damaged", code="file-damaged") from None
    return found


def _fill(
    model: nn.Module, entries: dict[str, dict[str, Any]], recipe: Recipe, tensors: dict[str, Tensor], path: Path
) -> nn.Module:
    """`model` with packed layers in the places that the file names, and all its numbers."""
    model.eval()
    bake(model)
    own = {rule.match: rule for rule in recipe_of(model).rules}
    missing = tuple(rule for rule in recipe.rules if own.get(rule.match) != rule)
    if missing:  # layers that the file does not hold as bits, with the parts that they were trained with
        apply(model, Recipe(missing))
    for module in model.modules():  # torch's fused encoder kernel would bypass these layers
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    modules = dict(model.named_modules())
    for name, entry in entries.items():
        layer, norm = modules.get(name), modules.get(entry["norm"]) if entry["norm"] else None
        if layer is None or not isinstance(layer, tuple(KINDS)) or (entry["norm"] and norm is None):
            text = f"this model has no Linear or convolution layer {name!r} as the file has"
            raise _of_another_model(path, text, name)
        model = put(model, layer, _packed(name, layer, entry, tensors, path))
        if norm is not None:
            put(model, norm, nn.Identity())
    wanted, have = model.state_dict(), set(tensors)
    off = sorted(set(wanted) ^ have) or sorted(k for k, v in wanted.items() if v.shape != tensors[k].shape)
    if off:
        raise _of_another_model(path, f"{len(off)} keys differ from this model's ({', '.join(off[:3])})")
    model.load_state_dict(tensors, assign=True)
    return model


def _of_another_model(path: Path, text: str, layer: str | None = None) -> InputError:
    return InputError(f"load {path}: {text}: made of another model", code="load-keys", layer=layer)


def _packed(name: str, layer: Any, entry: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> PackedLayer:
    head = f"{name}.{INSIDE}" if name else INSIDE
    inside = {k.removeprefix(head).replace("/", "."): v for k, v in tensors.items() if k.startswith(head)}
    graph, steps = from_json(entry["graph"], inside), steps_of(layer)
    nodes, wanted = [n for n in graph.nodes if n.op in LAYERS], {"weight": list(layer.weight.shape), **steps}
    fits = len(nodes) == 1 and graph.nodes[0].shape == tuple(sample(layer).shape[1:])
    if fits:
        have = {**nodes[0].attrs, "weight": nodes[0].attrs.get("weight", {}).get("shape")}
        fits = nodes[0].op.endswith("conv") == bool(steps) and all(have[key] == value for key, value in wanted.items())
    if not fits:
        raise _of_another_model(path, f"{name} is {describe(layer)} here and another layer in the file", name)
    packed = PackedLayer.build(layer, graph, entry["norm"])
    packed.trained_dtype, packed.last = DTYPES[entry["dtype"]], entry["last"]
    check_runs(graph, lambda: packed(sample(layer)), f"load {path}: {name}")
    return packed
