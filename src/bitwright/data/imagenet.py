"""Opening a streamed set: which folder, which format, which classes."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitwright.errors import InputError, unknown

from . import transform as transforms
from .index import Index, Names, folder_index
from .known_files import roots
from .lmdb_read import LmdbSource, lmdb_index
from .mean_file import find_mean, read_mean
from .pictures import tell_left_out
from .streamed import Source, Streamed
from .transform import Item

FORMATS = ("folder", "lmdb")
SPLITS = {"train": ("train",), "test": ("val", "test", "valid")}
DEFAULT = "random-sized224"
SIDECAR = "bitwright.json"  # beside data.mdb, written by pack: classes, and whether it is complete
_FORMS = {
    "folder": "ROOT/train/CLASS/*.JPEG with ROOT/val/CLASS/*.JPEG",
    "lmdb": "ROOT/train_lmdb and ROOT/val_lmdb, which bitwright data pack SOURCE ROOT writes",
}


class FolderSource:
    """Picture files below one folder."""

    def __init__(self, folder: Path, names: Names) -> None:
        self.folder, self.names = folder, names

    def read(self, i: int) -> Item:
        try:
            with open(self.where(i), "rb") as file:
                return file.read()
        except OSError as error:
            raise InputError(
                f"data: {self.where(i)} cannot be read: {error.strerror or error}",
                code="data-damaged",
                given=self.where(i),
            ) from None

    def where(self, i: int) -> str:
        return f"{self.folder}/{os.fsdecode(self.names[i])}"


Root = str | os.PathLike[str] | None


def open_streamed(
    name: str,
    root: Root,
    split: str,
    transform: str | None = None,
    format: str = "folder",
    workers: int = 0,
    skip_bad: bool = False,
) -> Streamed:
    """One split of "imagenet", or of a "folder" of any size, as the transform's name says."""
    chosen = transforms.parse(DEFAULT if transform is None else transform)
    if format not in FORMATS:
        raise unknown(
            f"data {name}: format={format!r}: unknown", format, FORMATS, code="data-transform", word="Possible"
        )
    base = find_root(name, root, format)
    source, labels, classes = (_folders if format == "folder" else _lmdbs)(base, split)
    mean, average = chosen.mean, None
    if format == "lmdb" and (file := find_mean(base)):
        mean, average = read_mean(file, chosen.side())
    count = torch.arange(len(labels))
    found = Streamed(
        name, source, count, torch.from_numpy(labels), classes, chosen, mean, chosen.std, workers, average
    )  # fmt: skip
    return found.without_bad() if skip_bad else found


def candidates(name: str, root: Root) -> list[Path]:
    """Folders that may hold the set, in the order tried."""
    if name != "imagenet":
        return [Path(root).expanduser()] if root is not None else []
    found = []
    for place in roots(root):
        found += [place / "imagenet", *([place] if root is not None else [])]
    return found


def part_of(base: Path, split: str, format: str) -> Path | None:
    """The folder of a split: base/train, or the first of base/*train_lmdb (as Caffe's ilsvrc12_train_lmdb)."""
    for word in SPLITS[split]:
        if format == "folder":
            if (base / word).is_dir():
                return base / word
            continue
        for place in [*sorted(base.glob(f"*{word}_lmdb")), base / word]:
            if (place / "data.mdb").is_file():
                return place
    return None


def find_root(name: str, root: Root, format: str) -> Path:
    """The first candidate with a training part. Errors: `InputError` with the places tried."""
    tried = candidates(name, root)
    for base in tried:
        if part_of(base, "train", format) is not None:
            return base
    if not tried:
        raise InputError(
            f"data {name}: no folder given; set data.root=ROOT with {_FORMS[format]}", code="data-folder", given=name
        )
    remedy = f"Needed: {_FORMS[format]}"
    if name == "imagenet":
        remedy = f"Set BITWRIGHT_DATA or --data-root. {remedy}"
    raise InputError(
        f"data {name}: not found in {', '.join(map(str, tried))}. {remedy}", code="data-missing", given=name
    )


def _part(base: Path, split: str, format: str) -> Path:
    part = part_of(base, split, format)
    if part is None:
        raise InputError(
            f"data {base}: has {'train' if split == 'test' else 'val'} but no {split}; possible: {_FORMS[format]}",
            code="data-folder",
            given=str(base),
        )
    return part


Found = tuple[Source, np.ndarray, tuple[str, ...]]


def _folders(base: Path, split: str) -> Found:
    """Classes are the folders of train, by name, also for the test split."""
    train = folder_index(_part(base, "train", "folder"))
    classes: list[str] = train.facts["classes"]
    _check_classes(base / "train", train)
    if split == "train":
        tell_left_out(base / "train", train.facts.get("left_out", {}))
        return FolderSource(base / "train", train.names), train.labels, named(base, classes)
    part = _part(base, "test", "folder")
    test = folder_index(part)
    strange = [name for name in test.facts["classes"] if name not in set(classes)]
    if strange:
        known = ", ".join(classes[:10])
        raise InputError(
            f"data folder {base}: {part.name} has class {strange[0]!r}, train has not; train has: {known}",
            code="data-folder",
            given=str(base),
        )
    if not len(test.names):
        raise InputError(f"data folder {part}: no picture in it", code="data-folder", given=str(part))
    place = {name: i for i, name in enumerate(classes)}
    labels = np.array([place[name] for name in test.facts["classes"]], np.int64)[test.labels]
    return FolderSource(part, test.names), labels, named(base, classes)


def _check_classes(folder: Path, index: Index) -> None:
    classes, counts = index.facts["classes"], np.bincount(index.labels, minlength=len(index.facts["classes"]))
    if len(classes) < 2:
        raise InputError(f"data folder {folder}: {len(classes)} class folders; possible: 2 or more", code="data-folder")
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        raise InputError(f"data folder {folder / classes[empty[0]]}: no picture in it", code="data-folder")


def named(base: Path, classes: list[str]) -> tuple[str, ...]:
    """Names for WordNet numbers, where base/words.txt ("n01443537<TAB>goldfish, ...") or ImageNet's own list has them."""
    found: dict[str, str] = {}
    for file, separator in (("words.txt", "\t"), ("LOC_synset_mapping.txt", " ")):
        try:
            lines = (base / file).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        found.update((key, words.split(",")[0].strip()) for key, _, words in (t.partition(separator) for t in lines))
    names = tuple(found.get(name) or name for name in classes)
    return names if len(set(names)) == len(names) else tuple(classes)  # two cranes, two maillots


def _lmdbs(base: Path, split: str) -> Found:
    part = _part(base, split, "lmdb")
    train = part_of(base, "train", "lmdb") or part
    about, first = sidecar(part), sidecar(train)
    for place, facts in ((part, about), (train, first)):
        if facts and not facts.get("done"):
            raise InputError(
                f"data: {place} is not complete. Go on: bitwright data pack {facts.get('source')} {base}",
                code="data-incomplete",
                given=str(place),
            )
    index = lmdb_index(part)
    if not len(index.names):
        raise InputError(f"data: {part} holds no record", code="data-damaged", given=str(part))
    count = int(index.labels.max()) + 1
    classes = [str(c) for c in first.get("classes", [])]
    if not classes:
        most = max(count, int(lmdb_index(train).labels.max()) + 1)
        if most > 1_000_000:
            raise InputError(f"data: {part} is damaged: label {most - 1:,}", code="data-damaged", given=str(part))
        classes = [str(i) for i in range(most)]
    if count > len(classes):
        raise InputError(
            f"data: {part} is damaged: label {count - 1} of {len(classes)} classes",
            code="data-damaged",
            given=str(part),
        )
    return LmdbSource(part, index), index.labels, tuple(classes)


def sidecar(folder: Path) -> dict[str, Any]:
    """What `pack` wrote beside the LMDB; empty for one of Caffe."""
    path = folder / SIDECAR
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"data: {path} is damaged: {' '.join(str(error).split())}", code="data-damaged") from None
    if not isinstance(found, dict) or not isinstance(found.get("classes"), list):
        raise InputError(f"data: {path} is damaged: it lists no classes", code="data-damaged")
    return found
