"""Histograms of the latent weights, read from model.safetensors without building the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bitwright.errors import InputError
from bitwright.reporting.sections import Histogram

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
        keys = list(f.keys())
        if layers is None:
            layers = [k.removesuffix(".weight") for k in keys if k.endswith("weight") and len(_shape(f, k)) > 1]
        for name in layers:
            key = f"{name}.weight" if f"{name}.weight" in keys else "weight"
            if key in keys and (made := histogram(name, f.get_tensor(key))) is not None:
                found.append(made)
    return tuple(found)


def histogram(layer: str, weight: np.ndarray) -> Histogram | None:
    """None where there is nothing to divide by: no weights, only zeros, or not a number.

    >>> h = histogram("a", np.array([-2.0, 0.1, 2.0, 2.0]))
    >>> h.counts[0], h.counts[-1], h.undecided, h.largest
    (1, 2, 0.25, 2.0)
    """
    flat = np.asarray(weight, dtype=np.float64).ravel()
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
