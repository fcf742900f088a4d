"""What every export asks of its arguments, and how it compares the file's answers with the net's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bitwright.atomic import replacing
from bitwright.errors import InputError

CLOSE = 1e-3  # of the largest value; beyond it a code on the border of two went the other way
FAR = 0.25  # likewise


def checked(what: str, model: object, example: Any, path: object) -> tuple[tuple[Tensor, ...], Path]:
    """The example as a tuple, and where the file goes. Errors: `InputError` before the long work begins."""
    if not isinstance(model, nn.Module):
        text = f"{what}: got {type(model).__name__}; possible: what bw.convert or bw.load returns, or a module"
        raise InputError(text, code="export-form", given=type(model).__name__)
    inputs = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    wrong = next((x for x in inputs if not isinstance(x, Tensor) or x.dim() == 0 or x.shape[0] == 0), None)
    if wrong is not None or not inputs or not isinstance(inputs[0], Tensor):
        given = "no sample" if isinstance(wrong, Tensor) else type(example if wrong is None else wrong).__name__
        possible = "a tensor with at least one sample, batch first, or a tuple of them"
        raise InputError(f"{what}: the example is {given}; possible: {possible}", code="example", possible=possible)
    if not isinstance(path, (str, os.PathLike)) or not (target := Path(path)).name or target.is_dir():
        raise InputError(f"{what}: {str(path)!r} is no file name; possible: net.onnx", code="file-write")
    if not target.parent.is_dir():
        raise InputError(f"{what}: folder {target.parent} does not exist", code="file-write")
    return inputs, target


def compared(
    what: str, got: Sequence[np.ndarray], want: Sequence[Tensor], samples: int, then: str = "; nothing was written"
) -> tuple[float, int]:
    """(largest difference as a share of the largest value, samples beyond `CLOSE`). Errors: `InputError` where more than 1 %
    of the samples differ, and more than one, or one by more than `FAR`: a code that is rounded the other way does not do that."""
    off, largest = np.zeros(samples, bool), 0.0
    for a, b in zip(got, [np.asarray(t.detach()) for t in want], strict=True):
        scale = float(np.abs(b[np.isfinite(b)]).max(initial=0.0)) or 1.0
        gap = np.where(a == b, 0.0, np.abs(np.asarray(a, np.float64) - b)) / scale
        gap = np.where(np.isnan(a) & np.isnan(b), 0.0, gap)
        gap = np.nan_to_num(gap, nan=np.inf)
        largest = max(largest, float(gap.max(initial=0.0)))
        rows = (
            gap.reshape(len(gap), -1).max(1, initial=0.0) if gap.ndim and len(gap) == samples else gap.max(initial=0.0)
        )
        off |= rows > CLOSE
    differ = int(off.sum())
    if differ > max(1, samples // 100) or largest > FAR:
        raise InputError(
            f"{what}: {differ} of {samples} samples differ from the net, by up to {largest:.1e} of the largest value"
            f"{then}",
            code="export-differs",
        )
    return largest, differ


def write(what: str, path: Path, data: bytes) -> None:
    """All of the file, or none of it."""
    try:
        with replacing(path) as target:
            target.write_bytes(data)
    except OSError as error:
        raise InputError(f"{what}: {path}: {error.strerror or error}", code="file-write") from None


def operators(proto: Any) -> dict[str, int]:
    """How often each operator stands in a file, also in lists that run as one; those of other domains as `DOMAIN::NAME`."""
    found: dict[str, int] = {}
    lists = {f.name: list(f.node) for f in proto.functions if f.name.startswith("Run")}
    for node in (n for listed in proto.graph.node for n in lists.get(listed.op_type, [listed])):
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))


def tensors_of(answer: Any) -> list[Tensor]:
    """The tensors of an answer, in order."""
    return [t for t in tree_leaves(answer) if isinstance(t, Tensor)]
