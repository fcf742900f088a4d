"""last.ckpt: written beside the target, flushed, renamed; read without executing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from bitwright.atomic import PREFIX, replacing
from bitwright.errors import InputError


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's plugin point. At every instant the path holds a whole checkpoint: the old one or the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", *args: Any, **kwargs: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Errors: `InputError` (disk full, no permission); the file that was there stays whole, nothing else is left."""
    try:
        with replacing(path) as beside, open(beside, "wb") as f:
            torch.save(checkpoint, f)
    except (OSError, RuntimeError) as error:  # torch's own writer turns a short write into a RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _root(error)
        kept = (
            "The checkpoint before it is whole. Make room, then go on with: --resume"
            if path.exists()
            else "Nothing was saved yet. Make room, then give the same command again"
        )
        raise InputError(f"save {path}: {reason}. {kept}", code="file-write", given=str(path)) from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Errors: `InputError` where it is missing, damaged or not one of ours."""
    if not path.is_file():
        raise InputError(f"resume {path}: no such file", code="file-missing", given=str(path))
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise almost any error
        raise damaged(path, error) from None
    if not isinstance(found, dict) or not {"bitwright", "state_dict", "optimizer_states"} <= set(found):
        raise InputError(f"resume {path}: not a checkpoint of bitwright", code="file-foreign", given=str(path))
    return found


def damaged(path: Path, error: Exception) -> InputError:
    """One line for whatever a checkpoint cannot give."""
    return InputError(
        f"resume {path}: damaged or not a checkpoint ({type(error).__name__}: {' '.join(_root(error).split())[:120]}). "
        "Delete it to start from the beginning",
        code="file-damaged",
        given=str(path),
    )


def remove_leftovers(folder: Path) -> None:
    """Temporary files of a process that was killed while it wrote."""
    for place in (folder, folder / "stages"):
        for path in place.glob(f"{PREFIX}*"):
            path.unlink(missing_ok=True)


def _root(error: BaseException) -> str:
    """The first cause: `No space left on device`, however often it was wrapped."""
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OSError):
        return cause.strerror or str(cause)
    return next(iter(str(error).splitlines()), type(error).__name__)
