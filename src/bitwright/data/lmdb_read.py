"""Pictures in an LMDB of Caffe's Datum records, in the order of their keys.

LMDB maps its file into memory. A file that is cut short, or is no LMDB, is refused. LMDB itself does not withstand a
file made to attack it: open only files that you trust.
"""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.errors import InputError

from .datum import parse, picture
from .index import Index, Names, cached
from .transform import Item

_open: dict[tuple[Any, ...], Any] = {}  # LMDB must not be opened twice in one process
_lock = threading.Lock()


def module() -> Any:
    """The module `lmdb`, or how to get it."""
    try:
        import lmdb
    except ImportError:
        remedy = "pip install 'bitwright[data]'"
        raise InputError(f"data: reading LMDB needs lmdb. Run: {remedy}", code="extra-missing", remedy=remedy) from None
    return lmdb


class LmdbSource:
    """One LMDB folder. Read from any thread, and from a process forked after it was opened."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder, self.names = folder, index.names

    def read(self, i: int) -> Item:
        try:
            with environment(self.folder).begin(buffers=True) as txn:
                value = txn.get(self.names[i])
                if value is None:
                    raise ValueError("the record is not there any more")
                return picture(parse(memoryview(value)))
        except (ValueError, module().Error) as error:
            raise _damaged(self.where(i), error) from None

    def where(self, i: int) -> str:
        return f"{self.folder}: record {self.names[i].decode(errors='replace')}"


def environment(folder: Path) -> Any:
    """Read-only, shared by all threads of this process."""
    file = folder / "data.mdb"
    try:
        status = file.stat()
    except OSError as error:
        raise InputError(f"data: {file}: {error.strerror}", code="data-missing", given=str(file)) from None
    key = (os.getpid(), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    with _lock:
        if key not in _open:
            _open[key] = _environment(folder, status.st_size)
        return _open[key]


def _environment(folder: Path, size: int) -> Any:
    lmdb = module()
    try:
        env = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False, max_spare_txns=64)
        need = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    except (lmdb.Error, OSError, ValueError) as error:
        raise _damaged(str(folder / "data.mdb"), error) from None
    if need > size:  # reading behind the end of a map kills the process
        env.close()
        raise _damaged(str(folder / "data.mdb"), ValueError(f"{size:,} bytes where {need:,} belong"))
    return env


def close(folder: Path) -> None:
    """Lets go of the LMDB, so that it can be opened for writing."""
    try:
        status = (folder / "data.mdb").stat()
    except OSError:
        return
    with _lock:
        for key in [k for k in _open if k[:3] == (os.getpid(), status.st_dev, status.st_ino)]:
            _open.pop(key).close()


def lmdb_index(folder: Path) -> Index:
    """Keys and labels, from the cache while the file has the same size and time."""
    file = folder / "data.mdb"
    env = environment(folder)
    status = file.stat()
    stamp = [status.st_size, status.st_mtime_ns]

    def make() -> tuple[Index, bool]:
        keys, labels = [], []
        try:
            with env.begin(buffers=True) as txn:
                for key, value in txn.cursor():
                    keys.append(bytes(key))
                    labels.append(parse(memoryview(value)).label)  # touches the ends of a record alone
        except (ValueError, module().Error) as error:
            name = keys[-1].decode(errors="replace") if keys else "the first"
            raise _damaged(f"{folder}: record {name}", error) from None
        return Index(Names.of(keys), np.array(labels, np.int64), {"stamp": stamp}), True

    return cached(folder, lambda facts: facts.get("stamp") == stamp, make)


def _damaged(where: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"data: {where} is damaged: {reason:.160}", code="data-damaged", given=where)
