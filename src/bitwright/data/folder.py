"""Pictures in folders, one folder per class: `data.name = "folder"`, `data.root = "photos"`."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bitwright.errors import InputError

from .dataset import Dataset
from .pictures import SUFFIXES, bad_pictures, left_out, pillow, read_picture, same_colors, tell_left_out
from .pixels import check_memory, moments, own

_TEST = ("test", "val", "valid")
_FORMS = "root/train/CLASS/*.jpg with root/test/CLASS/*.jpg, or root/CLASS/*.jpg"
Files = dict[str, list[Path]]  # class -> its pictures
_seen: dict[tuple[object, ...], tuple[bool, tuple[float, ...], tuple[float, ...]]] = {}  # of training pictures


def read_folder(root: str | os.PathLike[str] | None, split: str, size: int, skip_bad: bool = False) -> Dataset:
    """One split in memory, each picture at size x size; RGB, or gray where all training pictures are gray.

    root/train/CLASS/* and root/test/CLASS/* (or val, valid), or root/CLASS/* alone: then about a fifth of each
    class is for test, chosen by the hash of "CLASS/file", so that a file stays in its split when others come.
    Classes are the folders of training, by name. The order is mixed but fixed, so that `limit` sees all classes.
    Mean and deviation are those of the training pictures. Hidden files are skipped, other kinds of files too, with a
    warning. Pictures that cannot be read are an error that names all of both splits; with `skip_bad` they are left out
    and named in `skipped`.
    """
    folder = _root(root)
    pillow()
    train, test = _splits(folder)
    classes = tuple(train)
    train_rows = _rows(train)
    rows = train_rows if split == "train" else _rows(test)
    check_memory(
        f"data folder {folder}",
        len(rows),
        (3, size, size),
        f"Try data.size={max(1, size // 2)}, or data.transform, which reads them batch by batch",
    )
    if split == "train":
        tell_left_out(folder, left_out(path.name for path in _files(folder)))
    # what was read may not have changed since: place, size in bytes and time of each training picture
    key = (size, *((str(path), path.stat().st_size, path.stat().st_mtime_ns) for _, path in train_rows))
    found, bad = _read(folder, rows, size)
    others: list[tuple[str, np.ndarray]] = []
    if (bad and not skip_bad) or (split == "test" and key not in _seen):
        others, more = _read(folder, _rows(test) if split == "train" else train_rows, size)
        if not skip_bad and (bad or more):
            raise bad_pictures(f"data folder {folder}", bad + more)
    if split == "train" or key not in _seen:
        seen = [picture for _, picture in (found if split == "train" else others)]
        gray = bool(seen) and all(picture.ndim == 2 for picture in seen)
        _seen.clear()
        _seen[key] = (gray, *moments(torch.from_numpy(same_colors(seen, gray)))) if seen else (gray, (), ())
    empty = [name for name in classes if split == "train" and name not in {name for name, _ in found}]
    if empty or not found:
        raise _wrong(f"data folder {folder}: no picture of {empty[0] if empty else split} can be read")
    gray, mean, std = _seen[key]
    images = torch.from_numpy(same_colors([picture for _, picture in found], gray))
    labels = torch.tensor([classes.index(name) for name, _ in found])
    return replace(own("folder", images, labels, classes, mean, std), skipped=tuple(bad))


def _read(
    folder: Path, rows: list[tuple[str, Path]], size: int
) -> tuple[list[tuple[str, np.ndarray]], list[tuple[str, str]]]:
    """(class, pixels) of what can be read, (name, why) of the rest."""
    found, bad = [], []
    for name, path in rows:
        try:
            found.append((name, read_picture(path, size)))
        except InputError as error:
            if error.code != "data-damaged":
                raise
            bad.append((str(path.relative_to(folder)), str(error).partition(" is damaged: ")[2]))
    return found, bad


def _files(folder: Path) -> Iterable[Path]:
    """Every file below a class folder of any split."""
    splits = [p for p in _folders(folder) if p.name in ("train", *_TEST)]
    whole = any(p.name == "train" for p in splits)
    return (p for part in (splits if whole else [folder]) for c in _folders(part) for p in c.rglob("*") if p.is_file())


def _root(root: str | os.PathLike[str] | None) -> Path:
    if root is None:
        raise _wrong(f"data folder: no folder given; set data.root=FOLDER with {_FORMS}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise _wrong(
            f"data folder {folder}: {'a file, not a' if folder.exists() else 'no such'} folder; possible: {_FORMS}"
        )
    return folder


def _splits(folder: Path) -> tuple[Files, Files]:
    """Files of training and of test; every complaint about the layout is here."""
    names = {p.name for p in _folders(folder)}
    second = [name for name in _TEST if name in names]
    if "train" not in names:
        if second and len(names) == len(second):
            raise _wrong(f"data folder {folder}: has {second[0]} but no train; possible: {_FORMS}")
        everything = _classes(folder)
        parts = {name: _cut(name, files) for name, files in everything.items()}
        return {n: part[0] for n, part in parts.items()}, {n: part[1] for n, part in parts.items()}
    if not second:
        raise _wrong(f"data folder {folder}: has train but no {', '.join(_TEST)}; possible: {_FORMS}")
    train, test = _classes(folder / "train"), _classes(folder / second[0], 1)
    for name in test:
        if name not in train:
            known = ", ".join(list(train)[:10])
            raise _wrong(f"data folder {folder}: {second[0]} has class {name!r}, train has not; train has: {known}")
    return train, test


def _classes(folder: Path, least: int = 2) -> Files:
    """Pictures below each class folder, at any depth."""
    found = {place.name: sorted(_pictures(place)) for place in _folders(folder)}
    if not found:
        loose = any(_pictures(folder))
        what = "pictures, but no folder for each class" if loose else "no class folders in it"
        raise _wrong(f"data folder {folder}: {what}; possible: {_FORMS}")
    empty = [name for name, files in found.items() if not files]
    if empty:
        raise _wrong(f"data folder {folder}: no picture in {empty[0]}; read are {', '.join(SUFFIXES)}")
    if len(found) < least:
        raise _wrong(f"data folder {folder}: one class, {next(iter(found))}; possible: 2 or more class folders")
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _pictures(folder: Path) -> Iterable[Path]:
    return (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())


def _cut(name: str, files: list[Path]) -> tuple[list[Path], list[Path]]:
    """(train, test) of one class: by hash, but neither side stays empty."""
    if len(files) < 2:
        raise _wrong(f"data folder {files[0].parent}: 1 picture cannot be in train and test; possible: 2 or more")
    order = sorted(files, key=lambda path: _hash(name, path))
    # the lower fifth of all hashes
    count = sum(_hash(name, path) < b"\x33" * 32 for path in order)
    count = min(max(count, 1), len(order) - 1)
    return order[count:], order[:count]


def _rows(files: Files) -> list[tuple[str, Path]]:
    """(class, picture) in an order that mixes the classes and depends on names alone."""
    rows = [(name, path) for name, paths in files.items() for path in paths]
    return sorted(rows, key=lambda row: _hash(*row))


def _hash(name: str, path: Path) -> bytes:
    return hashlib.sha256(f"{name}/{path.name}".encode(errors="surrogateescape")).digest()


def _wrong(message: str) -> InputError:
    return InputError(message, code="data-folder")
