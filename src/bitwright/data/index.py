"""The list of a large set's pictures: made once, kept in a cache file, made anew when the set has changed.

The cache is an .npz of plain arrays (nothing in it can run) below ~/.cache/bitwright/index. Without a place to
write, the list is made each time.
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.atomic import replacing
from bitwright.errors import InputError

from .pictures import SUFFIXES, left_out

FORMAT = 2  # of the cache
RACY = 2_000_000_000  # ns: a folder that changed this recently may change again without a new time


class Names:
    """Many names as one piece of bytes: a million Python strings would take ten times the memory."""

    def __init__(self, blob: bytes, ends: np.ndarray) -> None:
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, names: Iterable[bytes]) -> "Names":
        found = list(names)
        return cls(b"".join(found), np.cumsum([len(n) for n in found], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> bytes:
        return self.blob[int(self.ends[i - 1]) if i else 0 : int(self.ends[i])]


@dataclass(frozen=True, eq=False)
class Index:
    """names (of files or keys) and labels (int64) in order; facts: JSON values, among them what shows a change."""

    names: Names
    labels: np.ndarray
    facts: dict[str, Any]


def cached(what: Path, fresh: Callable[[dict[str, Any]], bool], make: Callable[[], tuple[Index, bool]]) -> Index:
    """The list of `what` from the cache, if `fresh` says that its facts still hold; else made and kept.

    make   gives the list, and whether it may be kept
    """
    path = cache_file(what)
    found = _read(path)
    if found is not None and fresh(found.facts):
        return found
    index, keep = make()
    if keep:
        _write(path, index)
    return index


def cache_file(what: Path) -> Path:
    """Named by the whole path of the set."""
    digest = hashlib.sha256(os.fsencode(what.resolve())).hexdigest()
    return Path.home() / ".cache" / "bitwright" / "index" / f"{digest[:32]}.npz"


def _read(path: Path) -> Index | None:
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            facts = json.loads(file["facts"].tobytes())
            names = Names(file["blob"].tobytes(), file["ends"].astype(np.int64))
            labels = file["labels"].astype(np.int64)
        whole = (
            facts["format"] == FORMAT
            and len(names) == len(labels)
            and (not len(names) or int(names.ends[-1]) == len(names.blob))
        )
    except Exception:  # not there, or damaged: it is made anew
        return None
    return Index(names, labels, facts) if whole else None


def _write(path: Path, index: Index) -> None:
    facts = np.frombuffer(json.dumps({**index.facts, "format": FORMAT}).encode(), np.uint8)
    blob = np.frombuffer(index.names.blob, np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside, open(beside, "wb") as file:
            np.savez(file, facts=facts, blob=blob, ends=index.names.ends, labels=index.labels.astype(np.int32))
    except OSError:
        pass  # only a cache


def folder_index(folder: Path) -> Index:
    """Pictures below each class folder of `folder`, at any depth, in an order that mixes the classes and depends on
    names alone. facts["classes"] are the folders, sorted.

    It is made anew when a folder below has another time: a file came, went or was renamed.
    """

    def fresh(facts: dict[str, Any]) -> bool:
        try:
            return all(os.stat(folder / name).st_mtime_ns == when for name, when in facts["folders"])
        except OSError:
            return False

    return cached(folder, fresh, lambda: _scan(folder))


def _scan(folder: Path) -> tuple[Index, bool]:
    started = time.time_ns()
    try:
        with os.scandir(folder) as entries:
            classes = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__")))
        times = [("", os.stat(folder).st_mtime_ns)]
        rows: list[tuple[bytes, bytes, int]] = []
        others: Counter[str] = Counter()
        for label, name in enumerate(classes):
            for place, _, files in os.walk(folder / name):
                below = os.path.relpath(place, folder)
                times.append((below, os.stat(place).st_mtime_ns))
                others += left_out(files)
                for file in files:
                    if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                        full = os.fsencode(f"{below}/{file}")
                        rows.append((hashlib.sha256(os.fsencode(f"{name}/{file}")).digest(), full, label))
    except OSError as error:
        raise InputError(f"data: {error.filename or folder} cannot be read: {error.strerror or error}") from None
    rows.sort()
    labels = np.array([row[2] for row in rows], np.int64)
    facts = {"classes": classes, "folders": times, "left_out": dict(others)}
    return Index(Names.of(row[1] for row in rows), labels, facts), max(t for _, t in times) < started - RACY
