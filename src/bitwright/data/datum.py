"""Caffe's messages by hand: `Datum`, one picture with its label, and `BlobProto`, a mean file.

Protocol buffers: a field is a varint (number * 8 + kind), then kind 0 a varint, 1 eight bytes, 2 a varint length and
that many bytes, 5 four bytes. Unknown fields are skipped.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .pictures import LARGEST

Value = int | memoryview
_DATUM = {1: "channels", 2: "height", 3: "width", 5: "label", 7: "encoded"}


@dataclass
class Datum:
    """data: a picture file where `encoded`, else planes [channels, height, width] of bytes, in the order B, G, R."""

    channels: int = 0
    height: int = 0
    width: int = 0
    data: memoryview | bytes = b""
    label: int = 0
    floats: tuple[memoryview, ...] = ()
    encoded: int = 0


def fields(message: memoryview) -> Iterator[tuple[int, int, Value]]:
    """(number, kind, value) of each field. Errors: `ValueError`.

    >>> [(n, v) for n, _, v in fields(memoryview(bytes([8, 3, 40, 172, 2])))]
    [(1, 3), (5, 300)]
    """
    at, end = 0, len(message)

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise ValueError("it ends inside a number")
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of more than 10 bytes")

    while at < end:
        tag = varint()
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            yield number, kind, varint()
            continue
        if kind not in (1, 2, 5) or not number:
            raise ValueError(f"field {number} of kind {kind}")
        size = varint() if kind == 2 else 8 if kind == 1 else 4
        if size > end - at:
            raise ValueError(f"field {number} promises {size:,} bytes, {end - at:,} are left")
        yield number, kind, message[at : at + size]
        at += size


def parse(message: memoryview) -> Datum:
    """Errors: `ValueError` in few words."""
    found, floats = Datum(), []
    for number, _, value in fields(message):
        if number in _DATUM and isinstance(value, int):
            setattr(found, _DATUM[number], value if value < 1 << 31 else -1)
        elif number == 4 and not isinstance(value, int):
            found.data = value
        elif number == 6 and not isinstance(value, int):  # packed, or one at a time
            floats.append(value)
    found.floats = tuple(floats)
    if found.label < 0:
        raise ValueError("a negative label")
    return found


def picture(datum: Datum) -> bytes | np.ndarray:
    """The picture file, or uint8 RGB [H, W, 3]; a copy. Errors: `ValueError`."""
    if datum.encoded:
        if not len(datum.data):
            raise ValueError("an encoded picture of no bytes")
        return bytes(datum.data)
    shape = (datum.channels, datum.height, datum.width)
    if datum.channels not in (1, 3) or min(shape) < 1 or datum.height * datum.width > LARGEST:
        raise ValueError(f"pixels {'x'.join(map(str, shape))}; possible: 1 or 3 channels, at most {LARGEST:,} pixels")
    count = shape[0] * shape[1] * shape[2]
    if datum.floats:
        planes = _bytes_of(np.frombuffer(b"".join(datum.floats), "<f4"), count)
    else:
        if len(datum.data) != count:
            raise ValueError(f"{len(datum.data):,} bytes of pixels for {'x'.join(map(str, shape))}")
        planes = np.frombuffer(datum.data, np.uint8)
    blue = planes.reshape(shape)
    rgb = blue[::-1] if datum.channels == 3 else np.broadcast_to(blue, (3, *shape[1:]))
    return np.array(rgb.transpose(1, 2, 0), order="C")


def _bytes_of(values: np.ndarray, count: int) -> np.ndarray:
    if len(values) != count:
        raise ValueError(f"{len(values):,} float pixels where {count:,} belong")
    if not ((values >= 0) & (values <= 255)).all():  # NaN is neither
        raise ValueError("float pixels outside 0 to 255")
    return np.rint(values).astype(np.uint8)


def write(label: int, content: bytes | np.ndarray) -> bytes:
    """A Datum: of a picture file, or of RGB pixels [H, W, 3], which Caffe reads too.

    >>> datum = parse(memoryview(write(7, bytes([1, 2]))))
    >>> datum.label, picture(datum)
    (7, b'\\x01\\x02')
    """
    if isinstance(content, bytes):
        head, data, encoded = b"", content, b"\x38\x01"
    else:
        height, width, channels = content.shape
        head = b"\x08" + _varint(channels) + b"\x10" + _varint(height) + b"\x18" + _varint(width)
        data, encoded = content[:, :, ::-1].transpose(2, 0, 1).tobytes(), b""
    return head + b"\x22" + _varint(len(data)) + data + b"\x28" + _varint(label) + encoded


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def read_blob(content: bytes) -> np.ndarray:
    """float32 [C, H, W] of a BlobProto, in the old form (num, channels, height, width) or the new (shape).

    Errors: `ValueError`.
    """
    sides, shape, floats, doubles = {}, [], [], []
    for number, kind, value in fields(memoryview(content)):
        if isinstance(value, int):
            if number in (1, 2, 3, 4):
                sides[number] = value
        elif number == 5:
            floats.append(value)
        elif number == 8:
            doubles.append(value)
        elif number == 7 and kind == 2:
            for inner, how, dim in fields(value):
                if inner == 1:
                    shape += [dim] if isinstance(dim, int) else _varints(dim) if how == 2 else []
    wanted = shape or [sides.get(k, 1) for k in (1, 2, 3, 4)]
    while len(wanted) > 3 and wanted[0] == 1:
        wanted = wanted[1:]
    values = np.frombuffer(b"".join(doubles), "<f8") if doubles else np.frombuffer(b"".join(floats), "<f4")
    if len(wanted) != 3 or len(values) != wanted[0] * wanted[1] * wanted[2] or not len(values):
        raise ValueError(f"{len(values):,} values for the shape {wanted}")
    return values.reshape(wanted).astype(np.float32)


def _varints(packed: memoryview) -> list[int]:
    """Numbers one after another, each as a field of kind 0 would have it."""
    found, value, shift = [], 0, 0
    for byte in packed:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            found.append(value)
            value = shift = 0
        elif shift > 63:
            raise ValueError("a number of more than 10 bytes")
    return found
