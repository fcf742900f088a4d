"""One training at a time in a run directory.

`train.lock` is held by the kernel (flock) for as long as its process lives, so a process that was killed leaves a file but no
lock, and the next training takes over. Its text says who holds it. File systems of several machines do not all share
such locks: a file that another machine left is believed, and the user told what to remove.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bitwright.errors import InputError
from bitwright.runs.file_list import LOCK

try:
    import fcntl
except ImportError:  # not on this system: only the text of the file speaks
    fcntl = None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While it lasts, this process trains in `folder`, which is made. Errors: `InputError` while another does."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    handle = _taken(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def _taken(path: Path) -> int:
    """An open file that holds the lock."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            host, process = _holder(handle)
            if host not in ("", socket.gethostname()):
                raise InputError(
                    f"train: process {process} on {host} trains in {path.parent}, or was killed there. "
                    f"If it is gone, remove {path}; else give another folder: --out DIR",
                    code="run-locked",
                    given=str(path),
                )
            if not _is(handle, path):  # its owner removed it between our two steps: once more, with the new one
                os.close(handle)
                continue
            os.truncate(handle, 0)
            os.pwrite(handle, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)
            return handle
        except OSError as error:
            host, process = _holder(handle)
            os.close(handle)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise OSError(error.errno, error.strerror, str(path)) from None
            raise InputError(
                f"train: process {process} is training in {path.parent}. Wait for it, stop it (kill -INT {process} saves), "
                "or give another folder: --out DIR",
                code="run-locked",
                given=str(path),
            ) from None
        except InputError:
            os.close(handle)
            raise


def _is(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(handle: int) -> tuple[str, str]:
    """Machine and process in the file; empty where it says nothing."""
    try:
        found = json.loads(os.pread(handle, 4096, 0))
        return str(found["host"]), str(int(found["process"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "", "?"
