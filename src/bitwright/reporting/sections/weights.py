"""What do the latent weights look like? Histograms, read from model.safetensors without building the model."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections.section import Gap, Section
from bitwright.reporting.sections.training import RESUME
from bitwright.reporting.tensor_files import opened
from bitwright.runs.result_tables import Layer
from bitwright.runs.tables import Health
from bitwright.toml import read_toml

BINS = 20
SHOWN = 24


@dataclass(frozen=True)
class Histogram:
    """Latent weights of a layer that no mask removes, divided by their largest magnitude, in 20 equal bins from -1 to 1;
    latents of 0/1 weights less their threshold."""

    layer: str
    counts: tuple[int, ...]
    largest: float

    @property
    def weights(self) -> int:
        return sum(self.counts)

    @property
    def undecided(self) -> float:
        """Share in the two middle bins: below a tenth of the layer's largest weight."""
        middle = len(self.counts) // 2
        return sum(self.counts[middle - 1 : middle + 1]) / self.weights


class Weights(Section):
    name, title, place = "weights", "Weights", 60
    key, tables = "histograms", (Layer, Health)

    def read(self, run: RunData) -> tuple[Histogram, ...]:
        """Histograms of the layers with low-bit weights; of all where no file tells which."""
        coded = [layer.name for layer in run.layers if layer.w_bits is None or layer.w_bits < 32]
        if not run.layers:
            coded = list(dict.fromkeys(row.layer for row in run.rows(Health)))
        return histograms(run.path("model.safetensors"), coded if run.layers or coded else None)

    def view(self, run: RunData) -> dict[str, Any]:
        return {"shown_histograms": SHOWN}

    def json(self, run: RunData) -> dict[str, Any]:
        return {"histograms": [asdict(h) for h in run["histograms"]]}

    def gaps(self, run: RunData) -> Iterator[tuple[str, Gap]]:
        if not run["histograms"]:
            yield "weights", Gap("There are no latent weights of a low-bit layer to look at.", RESUME)


def histograms(path: Path | None, layers: list[str] | None) -> tuple[Histogram, ...]:
    """One per named layer whose weight is in the file; without names, one per weight matrix or kernel."""
    if path is None:
        return ()
    found = []
    with opened(path) as f:
        keys, middles = list(f.keys()), _middles(str((f.metadata() or {}).get("recipe", "")))
        if layers is None:
            layers = [
                k.removesuffix(".weight") for k in keys if k.endswith("weight") and len(f.get_slice(k).get_shape()) > 1
            ]
        for name in layers:
            key = f"{name}.weight" if f"{name}.weight" in keys else "weight"
            if key not in keys:
                continue
            weight = f.get_tensor(key)
            mask = next((f.get_tensor(k) for k in keys if k.startswith(f"{name}.w.") and k.endswith(".mask")), None)
            if mask is not None and mask.shape == weight.shape:
                weight = weight[mask != 0]
            if (made := histogram(name, weight, middles.get(name, 0.0))) is not None:
                found.append(made)
    return tuple(found)


def _middles(recipe: str) -> dict[str, float]:
    """Where the weights of a layer turn over, if not at 0: zero_one compares its latents with a threshold."""
    try:
        rules = read_toml(recipe).get("rule", [])
    except tomllib.TOMLDecodeError:
        return {}
    found: dict[str, float] = {}
    for rule in rules if isinstance(rules, list) else []:
        slot = rule.get("w") if isinstance(rule, dict) else None
        for part in slot if isinstance(slot, list) else [slot]:
            options = part if isinstance(part, dict) else {"part": part}
            if options.get("part") == "zero_one" and isinstance(at := options.get("threshold", 0.5), (int, float)):
                found[str(rule.get("match"))] = float(at)
    return found


def histogram(layer: str, weight: np.ndarray, middle: float = 0.0) -> Histogram | None:
    """The histogram of the distances from `middle`. None where there is nothing to divide by: no weights, all of them at
    `middle`, or one that is not a number.

    >>> h = histogram("a", np.array([-2.0, 0.1, 2.0, 2.0]))
    >>> h.counts[0], h.counts[-1], h.undecided, h.largest
    (1, 2, 0.25, 2.0)
    >>> histogram("a", np.array([0.0, 0.0, 0.52, 1.0]), middle=0.5).undecided  # latents of 0/1 weights
    0.25
    """
    flat = np.asarray(weight, dtype=np.float64).ravel() - middle
    largest = float(np.abs(flat).max()) if flat.size else 0.0
    if not np.isfinite(largest) or largest == 0.0:
        return None
    counts, _ = np.histogram(flat / largest, bins=BINS, range=(-1.0, 1.0))
    return Histogram(layer, tuple(int(n) for n in counts), largest)
