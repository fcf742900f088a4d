"""safetensors files of a run, read without building the model: metadata, arrays, small pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bitwright.errors import InputError


def opened(path: Path) -> Any:
    """An open safetensors file; its library has no types for it."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(f"report: {path} cannot be read: {error}", code="run-damaged", given=str(path)) from None


def metadata(path: Path) -> dict[str, str]:
    """The texts in its header; {} where there is no such file."""
    if not path.is_file():
        return {}
    with opened(path) as f:
        return dict(f.metadata() or {})


def pictures(path: Path | None) -> list[tuple[int, np.ndarray]]:
    """(number of the test image, uint8 [C, H, W]) of a file that training wrote; [] where there is none."""
    if path is None:
        return []
    with opened(path) as f:
        if not {"images", "index"} <= set(f.keys()):
            raise InputError(f"report: {path} has no images and index", code="run-damaged", given=str(path))
        images, index = f.get_tensor("images"), f.get_tensor("index").tolist()
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(index):
        raise InputError(f"report: {path}: images are not uint8 [n, C, H, W]", code="run-damaged", given=str(path))
    return list(zip(index, images, strict=True))
