"""Class folders into one LMDB per split: one large file instead of a million small ones.

Records are Caffe's Datum, in the order in which the folder is read; the key has the number, the CRC-32 of the record
and the file's name. A run that was killed goes on behind its last transaction.
"""

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.atomic import replacing
from bitwright.errors import InputError

from . import datum
from .imagenet import SIDECAR, FolderSource, find_root, open_streamed, part_of, sidecar
from .index import Names
from .lmdb_read import close, environment, module
from .streamed import Streamed
from .transform import Item, parse, quiet

CHECK = "squash1-crop1"  # the transform that decodes and does little else
BATCH = 256  # records of one transaction: what a kill costs
_FIRST = 1 << 28  # bytes of the map; it doubles when it is full
_LONGEST = 400  # bytes of a key; LMDB takes 511
Progress = Callable[[str, int, int], None]  # what, images so far, images in all


@dataclass(frozen=True)
class Packed:
    """One split: images in it, how many of them this call wrote, bytes of its file, (name, why) of what was left out."""

    folder: Path
    images: int
    written: int
    bytes: int
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Form:
    """What a record holds: the file as it is, or (with `size`) the picture squashed to size x size; raw: as pixels,
    else as JPEG of `quality`."""

    size: int | None = None
    quality: int | None = None
    raw: bool = False

    def check(self) -> None:
        if self.size is not None and not 1 <= self.size <= 4096:
            raise _usage(f"--size {self.size}; possible: 1 to 4096")
        if self.quality is not None and (self.size is None or self.raw or not 1 <= self.quality <= 100):
            raise _usage(f"--quality {self.quality}; possible: 1 to 100, with --size and without --raw")
        if self.raw and self.size is None:
            raise _usage("--raw needs --size, e.g. --size 256")

    def record(self, content: Item, where: str) -> Item:
        """Errors: `InputError` for a damaged picture."""
        if self.size is None:
            assert isinstance(content, bytes)
            parse(CHECK).pixels(content, where, None, 0)  # a damaged file is found now, not in training
            return content
        pixels = parse(f"squash{self.size}-crop{self.size}").pixels(content, where, None, 0)
        if self.raw:
            return pixels
        from PIL import Image

        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=self.quality or 95, subsampling=0)
        return out.getvalue()


def pack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: int | None = None,
    quality: int | None = None,
    raw: bool = False,
    skip_bad: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Packed]:
    """Writes out/train_lmdb and out/val_lmdb from source/train/CLASS/* and source/val/CLASS/*, and reads all back.

    source   a folder, or "imagenet", which is looked for below BITWRIGHT_DATA
    size     squash each picture to size x size, and store JPEG of `quality`, or pixels if `raw`. [default: the files
             as they are: batches are then bit for bit those of the folder, under every transform; with `raw` they
             are so under squashSIZE-cropN]
    skip_bad pictures that cannot be read are left out and named in `Packed.skipped`; else they are an error that names all
    """
    form = Form(size, quality, raw)
    form.check()
    module()
    quiet()
    named = str(source) == "imagenet" and not Path(source).is_dir()
    base = find_root("imagenet" if named else "folder", None if named else source, "folder")
    done = []
    for split in ("train", "test"):
        if part_of(base, split, "folder") is not None:
            target = Path(out).expanduser() / ("train_lmdb" if split == "train" else "val_lmdb")
            count = workers or os.cpu_count() or 1
            found = open_streamed("folder", base, split, CHECK, workers=count, skip_bad=skip_bad)
            done.append(_pack(base, found, split, target, form, progress or (lambda *a: None)))
    return done


def _pack(base: Path, found: Streamed, split: str, target: Path, form: Form, progress: Progress) -> Packed:
    lmdb = module()
    assert isinstance(found.source, FolderSource)
    names, labels = Names.of(found.source.names[i] for i in found.rows.tolist()), found.labels.tolist()
    digest = hashlib.sha256(names.blob + np.asarray(labels, np.int64).tobytes()).hexdigest()
    plan = {
        "format": 1, "source": str(base.resolve()), "images": len(labels), "classes": list(found.classes),
        "size": form.size, "quality": form.quality, "raw": form.raw, "files": digest,
    }  # fmt: skip
    before = _same(target, plan)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if before.get("done"):
            return Packed(target, len(labels), 0, (target / "data.mdb").stat().st_size, found.skipped)
        _note(target, {**plan, "done": False})
        close(target)
        start = _write(target, found, form, split, progress)
        _verify(target, labels, split, progress)
        _note(target, {**plan, "done": True})
        size = (target / "data.mdb").stat().st_size
        return Packed(target, len(labels), len(labels) - start, size, found.skipped)
    except (OSError, lmdb.Error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(
            f"data pack: {target}: {reason}. What is written is whole; the same command goes on",
            code="data-write",
            given=str(target),
        ) from None


def _same(target: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call noted; it must have been about the same pictures and form."""
    before = sidecar(target)
    if not before and (target / "data.mdb").exists():
        raise InputError(
            f"data pack: {target} holds an LMDB that pack did not write. Give another OUT",
            code="file-exists",
            given=str(target),
        )
    for key in ("format", "size", "quality", "raw", "images", "classes", "files"):
        if before and before.get(key) != plan[key]:
            says = {"classes": "the classes", "files": "the files of the source"}.get(key)
            what = f"{says} changed" if says else f"{key} {before.get(key)} -> {plan[key]}"
            raise InputError(
                f"data pack: {target} was started with other options ({what}). Delete it, or give another OUT",
                code="file-exists",
                given=str(target),
            )
    return before


def _note(target: Path, facts: dict[str, Any]) -> None:
    with replacing(target / SIDECAR) as beside:
        beside.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _write(target: Path, found: Streamed, form: Form, split: str, progress: Progress) -> int:
    """Appends what is missing; returns how many records were there."""
    lmdb, source, rows, labels = module(), found.source, found.rows.tolist(), found.labels.tolist()
    assert isinstance(source, FolderSource)
    env = lmdb.open(str(target), map_size=max(_FIRST, _size(target) * 2), max_dbs=0)
    try:
        start = at = env.stat()["entries"]
        if at > len(labels):
            raise _damaged(target, f"{at:,} records of {len(labels):,}")

        def record(i: int) -> tuple[bytes, bytes]:
            value = datum.write(labels[i], form.record(source.read(rows[i]), source.where(rows[i])))
            key = b"%08d_%08x_%s" % (i, zlib.crc32(value), source.names[rows[i]])
            return key[:_LONGEST], value

        with ThreadPoolExecutor(found.workers, "bitwright-pack") as pool:
            while at < len(labels):
                try:
                    made = list(pool.map(record, range(at, min(at + BATCH, len(labels)))))
                except InputError as error:
                    raise found.all_bad(error) if error.code == "data-damaged" else error from None
                try:
                    with env.begin(write=True) as txn:
                        for key, value in made:
                            if not txn.put(key, value, append=True):
                                raise _damaged(target, f"record {key[:8].decode()} is there before its turn")
                except lmdb.MapFullError:
                    env.set_mapsize(env.info()["map_size"] * 2)
                    continue
                at += len(made)
                progress(split, at, len(labels))
        return start
    finally:
        env.close()


def _verify(target: Path, labels: list[int], split: str, progress: Progress) -> None:
    """Every record again: its number, its label, its checksum."""
    lmdb = module()
    count = 0
    try:
        with environment(target).begin(buffers=True) as txn:
            for count, (key, value) in enumerate(txn.cursor(), 1):
                number, crc = bytes(key[:8]), bytes(key[9:17])
                record = memoryview(value)
                right = count <= len(labels) and number == b"%08d" % (count - 1)
                if not right or crc != b"%08x" % zlib.crc32(record) or datum.parse(record).label != labels[count - 1]:
                    raise _damaged(target, f"record {bytes(key).decode(errors='replace')} is not what was written")
                if count % 4096 == 0 or count == len(labels):
                    progress(f"{split} check", count, len(labels))
    except (ValueError, lmdb.Error) as error:
        raise _damaged(target, f"record {count}: {error}") from None
    if count != len(labels):
        raise _damaged(target, f"{count:,} records of {len(labels):,}")


def _size(target: Path) -> int:
    file = target / "data.mdb"
    return file.stat().st_size if file.exists() else 0


def _damaged(target: Path, what: str) -> InputError:
    return InputError(
        f"data pack: {target} is damaged: {what}. Delete it and run the command again",
        code="data-damaged",
        given=str(target),
    )


def _usage(text: str) -> InputError:
    return InputError(f"data pack: {text}", code="usage")
