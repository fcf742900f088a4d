"""Tensors and text in one safetensors file, written atomically; every defect of a file that is read is one `InputError`."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as in_memory
from safetensors.torch import save_file
from torch import Tensor

from bitwright.atomic import replacing
from bitwright.errors import InputError
from bitwright.zeros import KEY, compressed, expanded


def write_tensors(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str], compress: bool = False
) -> int:
    """Writes beside the target, flushes, renames: a full disk or a crash leaves the old file whole. Returns bytes.

    compress   masks and tensors with many zeros take fewer bytes; only `read_tensors` reads them then
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"save {target}: folder {target.parent} does not exist", code="file-write")
    kept, metadata = _stored(tensors, metadata, compress)
    try:
        with replacing(target) as beside:
            save_file(kept, str(beside), metadata)
            with open(beside, "rb+") as f:
                _sort_metadata(f)
    except (OSError, SafetensorError) as error:
        raise InputError(f"save {target}: {error}", code="file-write") from None
    return target.stat().st_size


def bytes_of(tensors: dict[str, Tensor], metadata: dict[str, str], dense: bool = False) -> int:
    """The size of the file that `write_tensors` would write, compressed; `dense`: with every number, equal tensors too."""
    if dense:
        return len(in_memory({key: value.detach().clone().contiguous() for key, value in tensors.items()}, metadata))
    return len(in_memory(*_stored(tensors, metadata, compress=True)))


def _stored(
    tensors: dict[str, Tensor], metadata: dict[str, str], compress: bool
) -> tuple[dict[str, Tensor], dict[str, str]]:
    kept, metadata = _stored_once(tensors, metadata)
    if compress:
        kept, more = compressed(kept)
        metadata = {**metadata, **more}
    return kept, metadata


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
    if KEY in metadata:
        try:
            tensors = expanded(tensors, metadata[KEY])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"load {target}: its compressed tensors are damaged", code="file-damaged") from None
    try:
        aliases = json.loads(metadata.get("aliases", "{}"))
        if not isinstance(aliases, dict):
            raise ValueError
        for key, source in aliases.items():
            tensors[key] = tensors[source]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"load {target}: its alias list is damaged", code="file-damaged") from None
    return tensors, metadata
