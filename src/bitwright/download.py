"""Downloads with a checksum, by pooch: a file gets its name when it is complete, and an interrupted one resumes."""

from __future__ import annotations

import http.client
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitwright.errors import InputError

Progress = Callable[[str, int, int], None]  # file, bytes so far, bytes in all (0: not told)
TIMEOUT = 30  # seconds without a byte


class DownloadError(Exception):
    """Why the download failed, in a few words."""


def download(
    address: str,
    checksum: str,
    target: Path,
    progress: Progress = lambda file, done, size: None,
    room: Callable[[int], None] = lambda needed: None,
) -> Path:
    """The file of `address` at `target`, which is not fetched again if it exists with the right checksum.

    checksum   `md5:...` or `sha256:...`
    room       told how many bytes will come; it raises where they do not fit
    Errors: `DownloadError`; the next call resumes from the bytes in `target.part`.
    """
    import pooch

    logging.getLogger("pooch").setLevel(logging.WARNING)  # otherwise it prints where it saves
    part = target.with_name(target.name + ".part")
    loader = _Loader(part, target.name, progress, room)
    while True:
        went_on = part.exists()
        try:
            pooch.retrieve(address, checksum, fname=target.name, path=target.parent, downloader=loader)
            return target
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise DownloadError(_why(error)) from None
        except InputError:  # from `room`
            raise
        except ValueError as error:
            if not loader.done:
                raise DownloadError(str(error)) from None
            if not went_on:  # a resumed file that is wrong is fetched once more from the start
                raise DownloadError(f"its {checksum.partition(':')[0].upper()} is not the published one") from None


class _Loader:
    """What pooch calls: appends to `part` what is missing, or writes it anew where the server only sends the whole."""

    def __init__(self, part: Path, file: str, progress: Progress, room: Callable[[int], None]) -> None:
        self.part, self.file, self.progress, self.room, self.done = part, file, progress, room, False

    def __call__(self, fname: str, action: Any, pooch: Any, *, check_only: bool | None = None) -> None:
        """fname: the address; action: where pooch wants the bytes."""
        self.done = False
        self.fetch(fname)
        os.replace(self.part, action)
        self.done = True

    def fetch(self, address: str) -> None:
        have = self.part.stat().st_size if self.part.exists() else 0
        request = urllib.request.Request(address, headers={"User-Agent": "bitwright", "Accept-Encoding": "identity"})
        if have:
            request.add_header("Range", f"bytes={have}-")
        try:
            answer = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code != 416:  # no bytes after our last one: it is complete, or another file
                raise
            return
        with answer:
            goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            have = have if goes_on else 0
            length = answer.headers.get("Content-Length", "")
            size = have + int(length) if length.isdecimal() else 0
            self.room(size - have)
            with open(self.part, "ab" if goes_on else "wb") as target:
                while block := answer.read(1 << 16):
                    target.write(block)
                    have += len(block)
                    self.progress(self.file, have, size)
        if have < size:
            raise ConnectionError(f"broken off after {have:,} of {size:,} bytes")


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {reason}"
    return " ".join(str(reason if reason is not None else error).split()) or type(error).__name__
