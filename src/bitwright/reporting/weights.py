"""Histograms of the latent weights, read from model.safetensors without building the model."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.errors import InputError
from bitwright.reporting.sections import Histogram
from bitwright.toml import read_toml

BINS = 20


def metadata(path: Path) -> dict[str, str]:
    """The texts in a safetensors file's header; {} where there is no such file."""
    if not path.is_file():
        return {}
    with opened(path) as f:
        return dict(f.metadata() or {})


def histograms(path: Path, layers: list[str] | None) -> tuple[Histogram, ...]:
    """One per named layer whose weight is in the file; without names, one per weight matrix or kernel."""
    if not path.is_file():
        return ()
    found = []
    with opened(path) as f:
        keys, middles = list(f.keys()), _middles(str((f.metadata() or {}).get("recipe", "")))
        if layers is None:
            layers = [k.removesuffix(".weight") for k in keys if k.endswith("weight") and len(_shape(f, k)) > 1]
        for name in layers:
            key = f"{name}.weight" if f"{name}.weight" in keys else "weight"
            if key in keys and (made := histogram(name, f.get_tensor(key), middles.get(name, 0.0))) is not None:
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
    """Of the distances from `middle`. None where there is nothing to divide by: no weights, all of them there, or not a
    number.

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


def _shape(f: Any, key: str) -> list[int]:
    return f.get_slice(key).get_shape()


def opened(path: Path) -> Any:
    """An open safetensors file; its library has no types for it."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(f"report: {path} cannot be read: {error}", code="run-damaged", given=str(path)) from None
