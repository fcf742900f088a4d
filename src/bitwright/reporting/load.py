"""A run directory -> `RunData`. Every file may be missing; a damaged one is an error in one line."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from bitwright.errors import InputError
from bitwright.reporting import parse
from bitwright.reporting.gates import gates_of
from bitwright.reporting.pictures import MOST, errors_of
from bitwright.reporting.sections import Layer, Origin, RunData
from bitwright.reporting.selfprune import selfprune_of
from bitwright.reporting.tables import Cells, rows
from bitwright.reporting.weights import histograms, metadata
from bitwright.runs.folder import Run
from bitwright.toml import read_toml

HASHED = ("model.safetensors", "packed.safetensors")


def load_run(path: str | os.PathLike[str]) -> RunData:
    """Everything a page needs, read once."""
    run = Run.open(path, "report")
    try:
        return _load(run)
    except UnicodeDecodeError:
        raise InputError(f"report {run.path}: a file in it is not text in UTF-8", code="run-damaged") from None


def _load(run: Run) -> RunData:
    layers = tuple(parse.layer(row) for row in rows(run.read_csv("layers.csv"), "layers.csv"))
    converted, bench = run.read_json("convert.json"), run.read_json("bench.json")
    if not layers and converted:
        found = Cells(converted, "convert.json").items("rows")
        layers = tuple(parse.report_layer(row) for row in found)
    analyzed = run.read_json("pca.json")
    training = parse.training(
        rows(run.read_csv("metrics.csv"), "metrics.csv"),
        rows(run.read_csv("health.csv"), "health.csv"),
        Cells(run.read_json("state.json"), "state.json"),
    )
    gates = gates_of(run)
    coded = _coded(layers, [h.layer for h in training.health] if training else [])
    return RunData(
        origin=_origin(run),
        layers=layers,
        conversion=parse.conversion(Cells(converted, "convert.json")) if converted else None,
        speed=parse.speed(Cells(bench, "bench.json")) if bench else None,
        nets=tuple(parse.net(row) for row in rows(run.read_csv("results.csv"), "results.csv")),
        training=training,
        histograms=histograms(run.file("model.safetensors"), coded),
        bits=parse.bits(Cells(analyzed, "pca.json")) if analyzed else None,
        errors=errors_of(run, MOST if gates is None else MOST - 2 * len(gates.cheapest)),
        gates=gates,
        selfprune=selfprune_of(run),
    )


def _coded(layers: tuple[Layer, ...], watched: list[str]) -> list[str] | None:
    """Names of the layers with low-bit weights; None where no file tells."""
    if layers:
        return [layer.name for layer in layers if layer.w_bits is None or layer.w_bits < 32]
    return list(dict.fromkeys(watched)) or None


def _origin(run: Run) -> Origin:
    text = run.read_text("experiment.toml")
    try:
        table: dict[str, Any] = read_toml(text)
    except ValueError as error:
        raise run.damaged("experiment.toml", " ".join(str(error).split())[:160]) from None
    seed = table.get("seed")
    return Origin(
        name=run.name,
        path=shown(run.path),
        command=run.read_text("command.txt").strip(),
        experiment=text,
        recipe=metadata(run.file("model.safetensors")).get("recipe", ""),
        seed=seed if isinstance(seed, int) else None,
        machine=run.read_json("machine.json"),
        files=tuple(_hashed(run.file(name)) for name in HASHED if run.has(name)),
    )


def shown(path: Path) -> str:
    """As a command can be given it here: below the current folder where possible, forward slashes."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


def _hashed(path: Path) -> tuple[str, int, str]:
    with path.open("rb") as f:
        return path.name, path.stat().st_size, hashlib.file_digest(f, "sha256").hexdigest()
