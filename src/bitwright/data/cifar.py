"""Reader of CIFAR-10 and CIFAR-100 as pickled Python batches, without running anything a pickle asks for.

The published files are protocol-2 pickles of Python 2: a dict of lists, strings, integers, one uint8 array.
`_Reader` admits these and nothing else. The three numpy names that an array needs stand for inert objects of
this file; any other name ends the reading before anything is called.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import InputError


class _Room:
    """Bytes that may still be copied: a string that the file holds once may be asked for again and again."""

    def __init__(self, size: int) -> None:
        self.left = 2 * size

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise pickle.UnpicklingError("it asks for more bytes than it has")


class _Array:
    """What a pickled numpy array becomes: `state` is (version, shape, dtype, fortran order, bytes)."""

    __slots__ = ("room", "value")

    def __init__(self, room: _Room) -> None:
        self.room = room
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[int, tuple[int, ...], Any, bool, bytes]) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Uint8) or fortran or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array that is not plain uint8")
        self.room.take(len(raw))
        self.value = np.frombuffer(bytearray(raw), np.uint8).reshape(shape)


class _Uint8:
    """What the pickled dtype becomes; byte order and alignment mean nothing for bytes."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Name:
    """A name found in a pickle. Not a class or function itself: a pickle could set attributes on those."""

    __slots__ = ("room", "what")

    def __init__(self, what: str, room: _Room) -> None:
        self.what, self.room = what, room

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"a state for {self.what}")

    def __call__(self, *args: object) -> object:
        if self.what == "numpy.dtype" and args and args[0] in ("u1", b"u1"):
            return _Uint8()
        if self.what == "multiarray._reconstruct":
            return _Array(self.room)
        if self.what == "_codecs.encode" and len(args) == 2 and isinstance(args[0], str):
            self.room.take(len(args[0]))
            return args[0].encode("latin1")  # how Python 3 writes bytes in protocol 2
        raise pickle.UnpicklingError(f"a call of {self.what}{args!r:.40}")


_NAMES = {
    ("numpy", "ndarray"): "numpy.ndarray",
    ("numpy", "dtype"): "numpy.dtype",
    ("numpy.core.multiarray", "_reconstruct"): "multiarray._reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "multiarray._reconstruct",
    ("_codecs", "encode"): "_codecs.encode",
}


class _Reader(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.room = _Room(len(content))

    def find_class(self, module: str, name: str) -> Any:  # never imports anything
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR file holds")
        return _Name(_NAMES[module, name], self.room)


def _check_numbers(content: bytes) -> None:
    """Before anything is built: no number in the file may ask for more memory than the file has bytes.

    An unpickler makes room for the place that a PUT names and for the bytes that a string promises. Errors: `ValueError`.
    """
    for code, argument, _ in pickletools.genops(content):  # a promised length that the file lacks ends it
        if "PUT" in code.name and isinstance(argument, int) and argument > len(content):
            raise ValueError(f"place {argument:,} in a file of {len(content):,} bytes")


def read_pickle(path: Path) -> dict[bytes, Any]:
    """The dict in `path` with bytes keys; arrays as `numpy.ndarray`. Nothing in the file is executed."""
    try:
        content = path.read_bytes()
        _check_numbers(content)
        found = _Reader(content).load()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged pickle can raise almost any error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is damaged or unsafe: {reason:.200}; nothing in it was run") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: it holds a {type(found).__name__} where a dict belongs")
    plain = {key.encode() if isinstance(key, str) else key: value for key, value in found.items()}
    return {key: value.value if isinstance(value, _Array) else value for key, value in plain.items()}


def read_batches(paths: list[Path], key: bytes, classes: int) -> tuple[Tensor, Tensor]:
    """uint8 images [N, 3, 32, 32] and int64 labels [N] of the files in order; `key` finds the labels."""
    images, labels = zip(*(_read_batch(path, key, classes) for path in paths), strict=True)
    return torch.cat(images), torch.cat(labels)


def read_names(path: Path, key: bytes, classes: int) -> tuple[str, ...]:
    """The class names in a meta file."""
    names = read_pickle(path).get(key)
    if not isinstance(names, list) or [isinstance(n, bytes | str) for n in names] != [True] * classes:
        raise InputError(f"{path} is damaged: {key.decode()} is not a list of {classes} names")
    return tuple(n.decode(errors="replace") if isinstance(n, bytes) else n for n in names)


def _read_batch(path: Path, key: bytes, classes: int) -> tuple[Tensor, Tensor]:
    batch = read_pickle(path)
    data, labels = batch.get(b"data"), batch.get(key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
        raise InputError(f"{path} is damaged: data is not a uint8 array of rows of 3,072")
    if not isinstance(labels, list) or not all(type(y) is int and 0 <= y < classes for y in labels):
        raise InputError(f"{path} is damaged: {key.decode()} is not a list of integers in 0..{classes - 1}")
    if len(labels) != len(data):
        raise InputError(f"{path} is damaged: {len(labels):,} labels for {len(data):,} images")
    return torch.from_numpy(data).view(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64)
