"""Reading a `.pth` or `.pth.tar` file as data: no class of it is looked up, no function of it is called."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
AGAIN = "Save it again where it was made: torch.save({'state_dict': model.state_dict()}, 'new.pth')"


@dataclass(frozen=True)
class Checkpoint:
    """tensors: key -> tensor, `module.` of DataParallel taken out; facts: the numbers and texts saved beside them."""

    tensors: dict[str, Tensor]
    facts: dict[str, float | str] = field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike[str], who: str = "import") -> Checkpoint:
    """The weights in a file of torch.save, old or new format, wrapped in a dict or bare; always on the CPU.

    who   heads the messages
    """
    target = Path(path)
    found = _load(target, who)
    if not isinstance(found, Mapping):
        raise _damaged(who, target, f"holds a {type(found).__name__}, not a dict of weights")
    inner = next((found[k] for k in WRAPPERS if isinstance(found.get(k), Mapping)), found)
    beside = {} if inner is found else found  # in a bare state dict, single numbers are weights and counters
    facts = {str(k): f for k, v in beside.items() if (f := _fact(v)) is not None}
    named = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}
    if not named or (inner is not found and len(named) < len(inner)):
        what = next((f"{k!r} is a {type(v).__name__}" for k, v in inner.items() if not isinstance(v, Tensor)), "")
        raise _damaged(who, target, f"holds no dict of weights{': ' if what else ''}{what}")
    tensors: dict[str, Tensor] = {}
    for key, value in named.items():
        plain = plain_key(key)
        if plain in tensors:
            raise _damaged(who, target, f"holds {plain} twice, with and without `module.`")
        tensors[plain] = _checked(who, target, key, value)
    return Checkpoint(tensors, facts)


def plain_key(key: str) -> str:
    """A key without what `DataParallel` and `torch.compile` add.

    >>> plain_key("module._orig_mod.conv1.weight")
    'conv1.weight'
    """
    return ".".join(piece for piece in key.split(".") if piece not in ("module", "_orig_mod"))


def _load(target: Path, who: str) -> Any:
    """torch.load in its data-only mode; each way it fails as one line."""
    if not target.is_file():
        kind = "is a folder" if target.is_dir() else "no such file"
        raise InputError(f"{who} {target}: {kind}", code="file-missing", given=str(target))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about its own old formats
            return torch.load(target, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        named = re.search(r"GLOBAL ([\w.]+)|class(?:es)? ([\w.]+)|Unsupported (?:global|class) ([\w.]+)", text)
        if named is None or "eights only load failed" not in text:
            raise _damaged(who, target, "is cut short or no checkpoint of torch.save") from None
        name = next(filter(None, named.groups())).rstrip(".")
        raise InputError(
            f"{who} {target}: the file wants {name} to be run, which plain weights never need; nothing was run. {AGAIN}",
            code="import-unsafe",
            given=name,
            remedy=AGAIN,
        ) from None
    except MemoryError:
        raise _damaged(who, target, "asks for more memory than there is") from None
    except Exception as error:  # a damaged file raises nearly anything
        if "legacy .tar format" in str(error):
            raise InputError(
                f"{who} {target}: a .tar file of torch before 0.1.10, which cannot be read without running it. {AGAIN}",
                code="import-unsafe",
                given=str(target),
                remedy=AGAIN,
            ) from None
        raise _damaged(who, target, "is cut short or no checkpoint of torch.save") from None


def _checked(who: str, target: Path, key: str, value: Tensor) -> Tensor:
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        raise _damaged(who, target, f"holds {key} as a {value.layout} tensor on {value.device}, not as plain numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise _damaged(who, target, f"holds {key} with {value.numel():,} values, of which most are not in the file")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise InputError(
            f"{who} {target}: {key} holds nan or infinite values: the training had diverged. Take an earlier checkpoint",
            code="import-nan",
            layer=key,
        )
    return value.detach()


def _fact(value: Any) -> float | str | None:
    """Epoch, accuracy, name of the net: plain values only."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 and value.dim() == 0 else None
    if isinstance(value, (bool, dict)) or not isinstance(value, (int, float, str)):
        return None
    return value[:80] if isinstance(value, str) else value


def _damaged(who: str, target: Path, what: str) -> InputError:
    return InputError(f"{who} {target}: {what}", code="file-damaged", given=str(target))
