"""Small stand-ins for large sets: class folders of JPEGs, Caffe's records written by an independent hand."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np


def write_folders(root: Path, train: int = 6, val: int = 3, classes: tuple[str, ...] = ("a", "b", "c")) -> Path:
    """root/train/CLASS/*.JPEG and root/val/CLASS/*.JPEG, each picture of its own size, some of them gray."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for c, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = int(rng.integers(40, 90)), int(rng.integers(40, 90))
                coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
                image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
                (image.convert("L") if (c + i) % 5 == 0 else image).save(folder / f"{name}_{i}.JPEG", quality=90)
    return root


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + varint(value // 128)


def number(field: int, value: int) -> bytes:
    return varint(field * 8) + varint(value)


def piece(field: int, content: bytes) -> bytes:
    return varint(field * 8 + 2) + varint(len(content)) + content


def caffe_record(rgb: np.ndarray, label: int, floats: str = "") -> bytes:
    """What convert_imageset writes: planes in the order B, G, R. floats: "packed" or "single" float_data instead."""
    planes = np.ascontiguousarray(rgb.transpose(2, 0, 1)[::-1])
    head = number(1, 3) + number(2, rgb.shape[0]) + number(3, rgb.shape[1])
    if floats == "packed":
        return head + number(5, label) + piece(6, planes.astype("<f4").tobytes())
    if floats == "single":
        return head + b"".join(varint(6 * 8 + 5) + struct.pack("<f", v) for v in planes.ravel()) + number(5, label)
    return head + piece(4, planes.tobytes()) + number(5, label) + number(7, 0)


def write_lmdb(folder: Path, records: dict[bytes, bytes]) -> Path:
    import lmdb

    folder.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(folder), map_size=1 << 24) as env, env.begin(write=True) as txn:
        for key, value in records.items():
            txn.put(key, value)
    return folder


def blob(values: np.ndarray, old: bool) -> bytes:
    """A BlobProto of [C, H, W], in the old or the new form."""
    content = piece(5, values.astype("<f4").tobytes())
    if old:
        return (
            number(1, 1)
            + number(2, values.shape[0])
            + number(3, values.shape[1])
            + number(4, values.shape[2])
            + content
        )
    return content + piece(7, piece(1, b"".join(varint(d) for d in (1, *values.shape))))
