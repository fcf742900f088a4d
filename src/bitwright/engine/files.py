"""One safetensors file: a trained net (weights + recipe) or a packed net (bits + graph). Written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as in_memory
from safetensors.torch import save_file
from torch import Tensor, nn

from bitwright.atomic import replacing
from bitwright.engine.aten_list import DTYPES
from bitwright.engine.layer_file import described, restored
from bitwright.engine.packed import PackedModel
from bitwright.engine.packed_layer import packed_layers
from bitwright.engine.store import from_json, light, stored
from bitwright.errors import InputError
from bitwright.transforms import Recipe, apply, recipe_of
from bitwright.transforms.copying import copy_model
from bitwright.transforms.unwrap import unwrap

FORMAT = "1"
RESERVED = frozenset({"bitwright", "format", "recipe", "graph", "layers", "aliases", "channels_last"})
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> int:
    """Writes beside the target, flushes, renames: a full disk or a crash leaves the old file whole. Returns bytes."""
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"save {target}: folder {target.parent} does not exist", code="file-write")
    kept, metadata = _stored_once(tensors, metadata)
    try:
        with replacing(target) as beside:
            save_file(kept, str(beside), metadata)
            with open(beside, "rb+") as f:
                _sort_metadata(f)
    except (OSError, SafetensorError) as error:
        raise InputError(f"save {target}: {error}", code="file-write") from None
    return target.stat().st_size


def _stored_once(tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Equal tensors are stored once; `aliases` in the metadata names the others."""
    seen: dict[str, str] = {}
    aliases: dict[str, str] = {}
    kept: dict[str, Tensor] = {}
    for key, given in tensors.items():
        # a copy in plain row order: views of one storage and odd strides of size-1 axes are not for the file
        value = torch.empty(given.shape, dtype=given.dtype).copy_(given.detach())
        print_of = f"{value.dtype}{list(value.shape)}{_digest(value)}"
        if value.numel() > 16 and print_of in seen:
            aliases[key] = seen[print_of]
        else:
            seen[print_of] = key
            kept[key] = value
    if aliases:
        metadata = {**metadata, "aliases": json.dumps(aliases, separators=(",", ":"))}
    return kept, metadata


def _sort_metadata(f: BinaryIO) -> None:
    """Equal nets give equal files: safetensors writes the metadata in an order that changes from run to run."""
    size = int.from_bytes(f.read(8), "little")
    header = json.loads(f.read(size))
    metadata = dict(sorted(header.pop("__metadata__", {}).items()))
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) <= size:
        f.seek(8)
        f.write(text.ljust(size))


def _digest(value: Tensor) -> str:
    flat = torch.empty(value.numel(), dtype=value.dtype)  # a fresh one: axes of size 1 may carry any stride
    flat.copy_(value.reshape(-1))
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; every defect of the file is one `InputError`."""
    target = Path(path)
    if not target.is_file():
        raise InputError(f"load {target}: no such file", code="file-missing", given=str(target))
    try:
        with safe_open(str(target), framework="pt") as f:
            metadata = dict(f.metadata() or {})
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, OverflowError, MemoryError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"load {target}: not a readable safetensors file ({text[:200]})", code="file-damaged", given=str(target)
        ) from None
    try:
        aliases = json.loads(metadata.get("aliases", "{}"))
        if not isinstance(aliases, dict):
            raise ValueError
        for key, source in aliases.items():
            tensors[key] = tensors[source]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"load {target}: its alias list is damaged", code="file-damaged") from None
    return tensors, metadata


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
    tensors, own = _contents(model)
    return write_tensors(path, tensors, {**extra, **own})


def file_bytes(model: nn.Module) -> int:
    """The size of the file that `save` would write of `model`, without writing it.

    >>> file_bytes(nn.Linear(8, 4)) > 4 * (8 * 4 + 4)
    True
    """
    return len(in_memory(*_stored_once(*_contents(model))))


def _contents(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata that make up a file of `model`."""
    if isinstance(model, PackedModel):
        text, tensors = stored(model.graph)
        return tensors, {"bitwright": "packed", "format": FORMAT, "graph": text}
    state = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    metadata = {"bitwright": "trained", "format": FORMAT, "recipe": recipe_of(model).to_toml()}
    last = [key for key, value in state.items() if _is_channels_last(value)]
    if last:
        metadata["channels_last"] = json.dumps(last, separators=(",", ":"))
    if packed_layers(model):
        metadata |= {"bitwright": "layers", "layers": described(model)}
    return state, metadata


def _is_channels_last(value: Tensor) -> bool:
    kind = CHANNELS_LAST.get(value.dim())
    return kind is not None and value.is_contiguous(memory_format=kind) and not value.is_contiguous()


def _restore_layout(model: nn.Module, metadata: dict[str, str]) -> None:
    """Puts the tensors that were channels_last when saved into that order of memory; the values stay."""
    try:
        names = set(json.loads(metadata.get("channels_last", "[]")))
    except (ValueError, TypeError, RecursionError):
        return  # an order of memory is no reason to refuse weights that are whole
    for key, value in model.state_dict(keep_vars=True).items():
        if key in names and value.dim() in CHANNELS_LAST:
            value.data = value.data.contiguous(memory_format=CHANNELS_LAST[value.dim()])


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
        check_runs(packed, path)
        return packed
    if model is None:
        what = "packed layers of a model, which runs with its own code" if kind == "layers" else "a trained net"
        raise InputError(f"load {path}: holds {what}; give the model, bw.load(path, model)", code="load-model")
    if kind == "layers" and device != "cpu":
        raise InputError(f"load {path}: packed layers run on the CPU, not on {device!r}", code="device")
    if kind == "layers":
        return restored(unwrap(model), tensors, metadata, path)
    recipe = Recipe.from_toml(metadata.get("recipe", ""))
    needed = bool(recipe.rules) and recipe_of(model).to_toml() != recipe.to_toml()
    trial = copy_model(model)  # the given model stays as it is unless everything fits
    if needed:
        try:
            apply(trial, recipe)
        except InputError as error:
            raise error.reworded(f"load {path}: its recipe does not fit this model: {error}") from None
    _load_strictly(trial, tensors, path, recipe)
    if needed:
        apply(model, recipe)
    _load_strictly(model, tensors, path, recipe)
    _restore_layout(model, metadata)
    return model.to(device)


def _load_strictly(model: nn.Module, tensors: dict[str, Tensor], path: str | os.PathLike[str], recipe: Recipe) -> None:
    wanted = set(model.state_dict())
    missing, extra = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted)
    if missing or extra:
        parts = [
            f"{len(keys)} keys {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("unexpected", extra))
            if keys
        ]
        keys = f"load {path}: {' and '.join(parts)}"
        own = recipe_of(model)
        if own.rules and own.rules != recipe.rules:  # the model came with parts of its own
            remedy = f"bitwright plan --diff {shlex.quote(str(path))} RECIPE"
            raise InputError(
                f"{keys} because the file was trained with {_in_words(recipe)}, this model has {_in_words(own)}: {remedy}",
                code="load-keys",
                given=_in_words(own),
                possible=_in_words(recipe),
                remedy=remedy,
            )
        raise InputError(f"{keys}: the file was trained with another model or recipe", code="load-keys")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        line = next((t.strip() for t in str(error).splitlines()[1:] if t.strip()), str(error))
        raise InputError(f"load {path}: {line}", code="load-keys") from None


def _in_words(recipe: Recipe) -> str:
    """The parts that a recipe puts into layers: `w=bwn, x=norm+sign`; `no recipe` where it is empty."""
    found: dict[str, list[str]] = {}
    for rule in recipe.rules:
        for slot, value in rule.slots.items():
            links = value if isinstance(value, list) else [value]
            names = "+".join(str(v["part"]) if isinstance(v, dict) else str(v) for v in links)
            if names != "float" and names not in found.setdefault(slot, []):
                found[slot].append(names)
    return ", ".join(f"{slot}={'/'.join(names)}" for slot, names in found.items() if names) or "no recipe"


def check_runs(packed: PackedModel, path: str | os.PathLike[str]) -> None:
    """A graph may be well formed and still not run: one zero image through it, if it is not too large to try."""
    if not light(packed.graph):
        return
    zeros = (torch.zeros(1, *n.shape, dtype=DTYPES[n.attrs["dtype"]]) for n in packed.inputs)
    try:
        packed(*zeros)
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"load {path}: its graph does not run ({text[:200]})", code="file-graph") from None
