"""The one way a file is written: beside its target, flushed, renamed. A crash or a full disk leaves the old file whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".bitwright-"  # of temporary files; a killed process leaves one, which `training` removes at its next start


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path to write to; it becomes `target` when the block ends without an error, and is removed otherwise.

    Errors: OSError, as the system gives it; the file that was there is untouched.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.txt"
    ...     with replacing(path) as beside:
    ...         n = beside.write_text("new"), path.exists()
    ...     print(n[1], path.read_text(), len(os.listdir(folder)))
    False new 1
    """
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=PREFIX)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb+") as f:
            os.fsync(f.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are for one user alone
        os.replace(name, target)
        _sync_folder(target.parent)
    finally:
        if os.path.exists(name):
            os.unlink(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Flushes the folder, so that the rename survives a power cut; not every system can open a folder."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
