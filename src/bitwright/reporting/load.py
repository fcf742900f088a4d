"""A run directory -> `RunData`. Every file may be missing; a damaged one is an error in one line."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from bitwright.reporting.run_data import Origin, RunData
from bitwright.reporting.sections import SECTIONS
from bitwright.reporting.tensor_files import metadata
from bitwright.runs.folder import Run
from bitwright.toml import read_toml

HASHED = (
    "model.safetensors",
    "packed.safetensors",
    "packed.onnx",
    "packed.qonnx.onnx",
    "packed.c",
    "packed.h",
    "packed.v",
)


def load_run(path: str | os.PathLike[str]) -> RunData:
    """Everything a page needs, read once."""
    run = Run.open(path, "report")
    return filled(RunData(_origin(run), run))


def filled(run: RunData) -> RunData:
    """The same, with all that its sections read: a damaged file is told now."""
    for section in SECTIONS:
        for table in section.tables:
            run.rows(table)
        if section.key:
            run.found[section.key] = section.read(run)
    return run


def _origin(run: Run) -> Origin:
    text = run.read_text("experiment.toml")
    try:
        table: dict[str, Any] = read_toml(text)
    except ValueError as error:
        raise run.damaged("experiment.toml", " ".join(str(error).split())[:160]) from None
    seed = table.get("seed")
    return Origin(
        run.name, shown(run.path), run.read_text("command.txt").strip(), text,
        metadata(run.file("model.safetensors")).get("recipe", ""), seed if isinstance(seed, int) else None,
        run.read_json("machine.json"), tuple(_hashed(run.file(name)) for name in HASHED if run.has(name)),
    )  # fmt: skip


def shown(path: Path) -> str:
    """A path as it can be given to a command here: below the current folder where possible, forward slashes."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


def _hashed(path: Path) -> tuple[str, int, str]:
    with path.open("rb") as f:
        return path.name, path.stat().st_size, hashlib.file_digest(f, "sha256").hexdigest()
