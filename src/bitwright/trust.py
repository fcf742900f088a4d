"""Whose run directory this is: its Python code runs only where this user trained it, or said `--trust` once.

A run directory is data that people mail to each other. What makes it one's own is therefore not in it but in the user's
configuration folder: a small JSON file per run, named by the run's path, with a digest of its experiment and Python files. A run
that was moved or changed, or that came from somebody else, has no such record. Where nothing can be written there is
none either, and `--trust` is asked for each time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bitwright.atomic import replacing

_asked = False  # whether the command at hand was given --trust


@contextmanager
def asked(wanted: bool) -> Iterator[None]:
    """Inside the block, if `wanted`, every run whose code is asked for is trusted, and remembered."""
    global _asked
    before, _asked = _asked, wanted
    try:
        yield
    finally:
        _asked = before


def remember(run: Path, folders: tuple[Path, ...] = ()) -> None:
    """From now on the code of this run, as it is now, may run; `folders` are where it was found in training."""
    with suppress(OSError, RuntimeError):  # where nothing can be written, --trust is asked for again
        path = _record(run)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = json.dumps(
            {"run": str(run.resolve()), "digest": digest(run), "folders": [str(f.resolve()) for f in folders]}
        )
        with replacing(path) as beside:
            beside.write_text(text, encoding="utf-8")


def folders_of(run: Path) -> tuple[Path, ...] | None:
    """Where the code of a trusted run was found in training; None where the run is not trusted."""
    try:
        found = json.loads(_record(run).read_text(encoding="utf-8"))
        if found["run"] == str(run.resolve()) and found["digest"] == digest(run):
            return tuple(Path(folder) for folder in found["folders"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        pass  # no record, or a damaged one
    if _asked:
        remember(run)
        return ()
    return None


def digest(run: Path) -> str:
    """SHA-256 of the experiment and all Python files below the run, which decide what code runs."""
    whole = hashlib.sha256()
    for path in [run / "experiment.toml", *sorted(run.rglob("*.py"))]:
        if path.is_file():
            with open(path, "rb") as file:
                whole.update(f"{path.relative_to(run)}\n{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _record(run: Path) -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    name = hashlib.sha256(os.fsencode(run.resolve())).hexdigest()[:32]
    return Path(home) / "bitwright" / "trusted" / f"{name}.json"
