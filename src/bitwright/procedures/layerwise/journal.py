"""Finished layers on disk, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bitwright.atomic import replacing
from bitwright.errors import InputError

if TYPE_CHECKING:
    from bitwright.procedures.layerwise.select import Unit
    from bitwright.procedures.layerwise.work import LayerRow, Solved

SUFFIX = ".layer.safetensors"


class Journal:
    """A folder with a file per finished layer: its weight and bias, its mask, its row.

    Files of another procedure, other options or other weights are refused: the run they belong to was not this one.
    """

    def __init__(
        self, folder: str | os.PathLike[str], who: str, options: dict[str, Any], before: Iterable[tuple[Tensor, Tensor]]
    ) -> None:
        self.folder, self.who = Path(folder), who
        digest = hashlib.sha256(json.dumps([who, options], sort_keys=True, default=str).encode())
        for _, value in before:
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.mark = digest.hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, unit: Unit, solved: Solved, row: LayerRow) -> None:
        tensors = {"weight": unit.layer.weight.detach()}
        if unit.bias is not None:
            tensors["bias"] = unit.bias.detach()
        if solved.keep is not None:
            tensors["keep"] = solved.keep.to(torch.uint8)
        tensors |= {f"tensors.{key}": value for key, value in solved.tensors.items()}
        words = {
            "mark": self.mark, "row": json.dumps(asdict(row)), "method": solved.method, "damping": repr(solved.damping),
        }  # fmt: skip
        with replacing(self._file(name)) as beside:
            save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, beside, words)

    def resume(
        self,
        units: list[Unit],
        rows: dict[str, LayerRow],
        found: dict[str, tuple[Unit, Solved]],
        row_type: type[LayerRow],
        solved_type: type[Solved],
    ) -> list[Unit]:
        """Puts the finished layers into the net and their rows into the tables; returns the units that are left."""
        left = []
        for unit in units:
            if not self._file(unit.name).is_file():
                left.append(unit)
                continue
            with safe_open(self._file(unit.name), "pt") as file:
                words = file.metadata() or {}
                if words.get("mark") != self.mark:
                    raise InputError(
                        f"{self.who}: the journal {self.folder} belongs to other weights or options; remove it, or name "
                        "another folder",
                        code="journal",
                        given=str(self.folder),
                    )
                kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
            with torch.no_grad():
                unit.layer.weight.copy_(kept["weight"])
                if unit.bias is not None:
                    unit.bias.copy_(kept["bias"])
            device = unit.layer.weight.device
            more = {key[8:]: value.to(device) for key, value in kept.items() if key.startswith("tensors.")}
            keep = kept["keep"].bool().to(device) if "keep" in kept else None
            found[unit.name] = (unit, solved_type([], keep, words["method"], float(words["damping"]), more))
            rows[unit.name] = row_type(**json.loads(words["row"]))
        return left

    def remove(self) -> None:
        """After the last layer: its own files, and the folder if nothing else is in it."""
        for path in self.folder.glob(f"*{SUFFIX}"):
            path.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name or 'model'}{SUFFIX}"
