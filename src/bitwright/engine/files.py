"""One safetensors file: a trained net (weights + recipe) or a packed net (bits + graph)."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.engine.aten_list import DTYPES
from bitwright.engine.layer_file import described, restored
from bitwright.engine.packed import PackedModel
from bitwright.engine.packed_layer import packed_layers
from bitwright.engine.store import check_runs, from_json, stored
from bitwright.errors import InputError
from bitwright.tensors import read_tensors, write_tensors
from bitwright.transforms.trained_file import load_trained, metadata_of
from bitwright.transforms.unwrap import unwrap

FORMAT = "1"
RESERVED = frozenset({"bitwright", "format", "recipe", "graph", "layers", "aliases", "channels_last"})


def save(model: nn.Module, path: str | os.PathLike[str], **metadata: Any) -> int:
    """Writes a trained or a packed model; returns the bytes of the file.

    A trained model is its state dict (keys as in the float model, plus part parameters) and its recipe; extra
    keywords are stored as text. A packed model is bits, scales, float layers and the graph (docs/format.md); in layer form
    the state dict of the module with its packed layers, their small graphs, and the recipe.

    Errors: `InputError` where the folder is missing or the disk is full; the old file stays.
    """
    taken = sorted(set(metadata) & RESERVED)
    if taken:
        raise InputError(f"save {path}: metadata {taken[0]}=... is a name of the format itself", code="file-metadata")
    try:
        extra = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    except (TypeError, ValueError) as error:
        raise InputError(
            f"save {path}: metadata is text, numbers, lists and tables: {error}", code="file-metadata"
        ) from None
    if isinstance(model, PackedModel):
        text, tensors = stored(model.graph)
        return write_tensors(path, tensors, {**extra, "bitwright": "packed", "format": FORMAT, "graph": text})
    state = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    kind = {"bitwright": "trained", "format": FORMAT, **metadata_of(model, state)}
    if packed_layers(model):
        kind |= {"bitwright": "layers", "layers": described(model)}
    return write_tensors(path, state, {**extra, **kind})


def load(path: str | os.PathLike[str], model: nn.Module | None = None, device: str = "cpu") -> nn.Module:
    """Reads what `save` wrote.

    A packed file in graph form loads as a plain callable module, without the model's code. A trained file needs `model`,
    the float model (or one with the same recipe applied): the file's recipe is applied where it is missing, then the
    weights load strictly. A packed file in layer form needs it, too: its packed layers go into the places of the model's.

    Errors: `InputError` for an unreadable, truncated, foreign or hostile file, and for keys that do not match; `model` is
    then unchanged.
    """
    tensors, metadata = read_tensors(path)
    kind = metadata.get("bitwright")
    if kind is None:
        raise InputError(f"load {path}: a safetensors file, but not one of bitwright's", code="file-foreign")
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"load {path}: format {metadata.get('format')!r}; this version reads {FORMAT}", code="file-format"
        )
    if kind == "packed":
        if device != "cpu":
            raise InputError(f"load {path}: packed nets run on the CPU, not on {device!r}", code="device")
        packed = PackedModel(from_json(metadata.get("graph", ""), tensors))
        zeros = [torch.zeros(1, *n.shape, dtype=DTYPES[n.attrs["dtype"]]) for n in packed.inputs]
        check_runs(packed.graph, lambda: packed(*zeros), f"load {path}")
        return packed
    if model is None:
        what = "packed layers of a model, which runs with its own code" if kind == "layers" else "a trained net"
        raise InputError(f"load {path}: holds {what}; give the model, bw.load(path, model)", code="load-model")
    if kind == "layers" and device != "cpu":
        raise InputError(f"load {path}: packed layers run on the CPU, not on {device!r}", code="device")
    if kind == "layers":
        return restored(unwrap(model), tensors, metadata, path)
    return load_trained(model, tensors, metadata, path).to(device)
