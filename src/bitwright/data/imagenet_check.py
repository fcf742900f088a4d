"""What is there of ImageNet: counted, since no checksums of its single pictures are published."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitwright.errors import InputError

from .imagenet import SPLITS, candidates, part_of, sidecar
from .index import folder_index
from .lmdb_read import lmdb_index

IMAGES = {"train": 1_281_167, "test": 50_000}
CLASSES = 1000


@dataclass(frozen=True)
class FileStatus:
    """A row of `bitwright.data.check`. status: "ok", "missing", "partial" or "damaged"; detail is empty when ok."""

    name: str
    path: str
    status: str
    detail: str = ""


def check_imagenet(root: str | os.PathLike[str] | None) -> list[FileStatus]:
    """A row per split and format that is there, or one that says where it was looked for."""
    tried = candidates("imagenet", root)
    rows: list[FileStatus] = []
    for base in tried:
        for format in ("folder", "lmdb"):
            parts = {split: part_of(base, split, format) for split in SPLITS}
            if any(parts.values()):
                rows += [_row(base, split, part, format) for split, part in parts.items()]
        if rows:
            return rows
    looked = ", ".join(map(str, tried))
    return [FileStatus("imagenet", looked, "missing", "how to get it: bitwright data get imagenet")]


def _row(base: Path, split: str, part: Path | None, format: str) -> FileStatus:
    word = SPLITS[split][0]
    if part is None:
        place = base / (word if format == "folder" else f"{word}_lmdb")
        return FileStatus("imagenet", str(place), "partial", f"no {word} images")
    try:
        index = folder_index(part) if format == "folder" else lmdb_index(part)
        facts = sidecar(part) if format == "lmdb" else {}
    except InputError as error:
        status = "partial" if error.code == "extra-missing" else "damaged"
        return FileStatus("imagenet", str(part), status, str(error))
    count, classes = len(index.labels), len(np.unique(index.labels))
    if facts and not facts.get("done"):
        return FileStatus("imagenet", str(part), "partial", f"{count:,} of {facts['images']:,} images packed")
    if (count, classes) == (IMAGES[split], CLASSES):
        return FileStatus("imagenet", str(part), "ok")
    return FileStatus(
        "imagenet", str(part), "partial",
        f"{count:,} of {IMAGES[split]:,} {word} images; {classes:,} of {CLASSES:,} classes{_lacking(base, part, format)}",
    )  # fmt: skip


def _lacking(base: Path, part: Path, format: str) -> str:
    """Class folders that the other split has and this one lacks."""
    if format != "folder":
        return ""
    others = {name for s in SPLITS if (p := part_of(base, s, format)) for name in folder_index(p).facts["classes"]}
    lacking = sorted(others - set(folder_index(part).facts["classes"]))
    return (
        f", no {', '.join(lacking[:3])}{f' and {len(lacking) - 3} more' if len(lacking) > 3 else ''}" if lacking else ""
    )
