"""Data: tiny files of each layout, damaged and hostile ones, batches against a slow oracle, the real sets."""

import gzip
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bitwright import data
from bitwright.data import known_files
from bitwright.data.cifar import read_pickle
from bitwright.errors import InputError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_system_data(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Synthetic tests see neither BITWRIGHT_DATA nor the cache nor the Debian package."""
    if "data" in request.keywords:
        return
    monkeypatch.delenv("BITWRIGHT_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setitem(known_files.LAYOUTS, "fashion-mnist", _without_fallback(known_files.LAYOUTS["fashion-mnist"]))


def _without_fallback(layout: known_files.Layout) -> known_files.Layout:
    return known_files.Layout(layout.folder, layout.md5, layout.zipped)


# --- writers of each layout


def write_idx(path: Path, array: np.ndarray, zipped: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.tobytes()
    if zipped:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


Arrays = tuple[np.ndarray, np.ndarray]


def write_mnist(root: Path, zipped: bool = False, folder: str = "MNIST/raw") -> Arrays:
    x, y = RNG.integers(0, 256, (12, 28, 28), np.uint8), np.arange(12, dtype=np.uint8) % 10
    for stem, rows in (("train", slice(0, 8)), ("t10k", slice(8, 12))):
        write_idx(root / folder / f"{stem}-images-idx3-ubyte", x[rows], zipped)
        write_idx(root / folder / f"{stem}-labels-idx1-ubyte", y[rows], zipped)
    return x, y


def python2_pickle(value: Any) -> bytes:
    """Protocol-2 bytes as Python 2 wrote them: strings are SHORT_BINSTRING or BINSTRING, names are GLOBAL."""

    def put(v: Any) -> bytes:
        if isinstance(v, bytes):
            size = b"U" + bytes([len(v)]) if len(v) < 256 else b"T" + struct.pack("<i", len(v))
            return size + v
        if isinstance(v, int):
            return b"J" + struct.pack("<i", v)
        if isinstance(v, list):
            return b"](" + b"".join(map(put, v)) + b"e"
        if isinstance(v, dict):
            return b"}(" + b"".join(put(k) + put(x) for k, x in v.items()) + b"u"
        assert isinstance(v, np.ndarray) and v.dtype == np.uint8
        empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
        shape = b"".join(map(put, v.shape)) + b"\x86"
        return empty + b"(K\x01" + shape + dtype + b"\x89" + put(v.tobytes()) + b"tb"

    return b"\x80\x02" + put(value) + b"."


def write_cifar10(root: Path, dump: Any = python2_pickle) -> tuple[np.ndarray, list[int]]:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    x, y = RNG.integers(0, 256, (12, 3072), np.uint8), [int(i) % 10 for i in range(12)]
    for i, file in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        rows = slice(2 * i, 2 * i + 2)
        (folder / file).write_bytes(dump({b"batch_label": b"x", b"labels": y[rows], b"data": x[rows]}))
    return x, y


def write_cifar100(root: Path) -> tuple[np.ndarray, list[int]]:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    x, y = RNG.integers(0, 256, (6, 3072), np.uint8), [99, 0, 50, 1, 2, 3]
    for file, rows in (("train", slice(0, 4)), ("test", slice(4, 6))):
        batch = {b"fine_labels": y[rows], b"coarse_labels": [0] * len(y[rows]), b"data": x[rows]}
        (folder / file).write_bytes(python2_pickle(batch))
    names = [f"class{i}".encode() for i in range(100)]
    (folder / "meta").write_bytes(python2_pickle({b"fine_label_names": names, b"coarse_label_names": []}))
    return x, y


def one_line(caught: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


# --- reading


def test_digits_are_always_there():
    train, test = data.load("digits"), data.load("digits", split="test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape == (1437, 1, 8, 8) and train.images.dtype == torch.uint8
    levels = torch.cat([train.images, test.images]).unique().tolist()
    assert levels == [round(k * 255 / 16) for k in range(17)]
    assert train.labels.bincount().tolist() == [142, 146, 141, 147, 144, 146, 145, 143, 139, 144]
    assert test.labels.bincount().tolist() == [36, 36, 36, 36, 37, 36, 36, 36, 35, 36]
    assert_constants(train)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")])
def test_idx(tmp_path: Path, name: str, folder: str, zipped: bool):
    x, y = write_mnist(tmp_path, zipped, folder)
    train, test = data.load(name, tmp_path), data.load(name, str(tmp_path), split="test")
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.int64
    assert np.array_equal(torch.cat([train.images, test.images])[:, 0].numpy(), x)
    assert torch.cat([train.labels, test.labels]).tolist() == y.tolist()
    assert len(train.classes) == 10


@pytest.mark.parametrize("dump", [python2_pickle, lambda v: pickle.dumps(v, 2), lambda v: pickle.dumps(v, 4)])
def test_cifar10(tmp_path: Path, dump: Any):
    x, y = write_cifar10(tmp_path, dump)
    train, test = data.load("cifar10", tmp_path), data.load("cifar10", tmp_path, "test")
    assert np.array_equal(torch.cat([train.images, test.images]).numpy(), x.reshape(-1, 3, 32, 32))
    assert torch.cat([train.labels, test.labels]).tolist() == y
    assert train.images.dtype == torch.uint8 and train.classes[0] == "airplane"


def test_cifar100_has_fine_labels(tmp_path: Path):
    x, y = write_cifar100(tmp_path)
    train, test = data.load("cifar100", tmp_path), data.load("cifar100", tmp_path, "test")
    assert np.array_equal(torch.cat([train.images, test.images]).numpy(), x.reshape(-1, 3, 32, 32))
    assert torch.cat([train.labels, test.labels]).tolist() == y
    assert train.classes[99] == "class99" and len(train.classes) == 100


def test_debian_folder_is_the_last_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    x, _ = write_mnist(tmp_path, zipped=True, folder="debian")
    layout = known_files.LAYOUTS["fashion-mnist"]
    moved = known_files.Layout(layout.folder, layout.md5, layout.zipped, fallback=tmp_path / "debian")
    monkeypatch.setitem(known_files.LAYOUTS, "fashion-mnist", moved)
    assert np.array_equal(data.load("fashion-mnist").images[:, 0].numpy(), x[:8])
    with pytest.raises(InputError):  # an explicit root means that root
        data.load("fashion-mnist", tmp_path / "elsewhere")
    y, _ = write_mnist(tmp_path / "a", folder="FashionMNIST/raw")
    monkeypatch.setenv("BITWRIGHT_DATA", str(tmp_path / "a"))
    assert np.array_equal(data.load("fashion-mnist").images[:, 0].numpy(), y[:8])


def test_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "home" / ".cache" / "bitwright"
    in_b, _ = write_mnist(b)
    in_c, _ = write_mnist(c)
    assert np.array_equal(data.load("mnist").images[:, 0].numpy(), in_c[:8])
    monkeypatch.setenv("BITWRIGHT_DATA", f"{a}{os.pathsep}{b}")
    assert np.array_equal(data.load("mnist").images[:, 0].numpy(), in_b[:8])
    with pytest.raises(InputError) as caught:
        data.load("cifar10")
    assert str(caught.value) == (
        f"data cifar10: not found in {a}/cifar-10-batches-py, {b}/cifar-10-batches-py. "
        "Set BITWRIGHT_DATA or --data-root, or run: bitwright data get cifar10"
    )
    with pytest.raises(InputError) as caught:
        data.load("mnist", a)
    one_line(caught, f"not found in {a}/MNIST/raw. ")


def test_unknown_names():
    with pytest.raises(InputError) as caught:
        data.load("cifar-10")
    one_line(caught, "data: unknown set 'cifar-10'; did you mean 'cifar10'? Known: digits, mnist,")
    with pytest.raises(InputError) as caught:
        data.load("digits", split="val")
    one_line(caught, "data digits: unknown split 'val'; possible: train, test")


# --- damaged and hostile files


def idx_bytes(shape: tuple[int, ...], count: int, magic: bytes | None = None) -> bytes:
    return (magic or bytes([0, 0, 8, len(shape)])) + struct.pack(f">{len(shape)}I", *shape) + bytes(count)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "ends inside the header"),
        (idx_bytes((8, 28, 28), 0)[:15], "ends inside the header"),
        (idx_bytes((8, 28, 28), 8 * 784 - 1), "the header promises 6,272 bytes, the file has 6,271"),
        (idx_bytes((8, 28, 28), 8 * 784 + 1), "the header promises 6,272 bytes, the file has more"),
        (idx_bytes((8, 28, 28), 8 * 784, b"\0\0\x08\x01"), "it begins with 00000801, not 00000803"),
        (idx_bytes((8, 28, 28), 8 * 784, b"\x80\x02}."), "it begins with 80027d2e, not 00000803"),
        (idx_bytes((2**31, 2**31, 28), 5), "impossible shape"),
        (idx_bytes((0, 28, 28), 0), "impossible shape"),
        (idx_bytes((7, 28, 28), 7 * 784), "8 labels for 7 images"),
    ],
)
def test_damaged_idx(tmp_path: Path, content: bytes, text: str):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        data.load("mnist", tmp_path)
    one_line(caught, "data mnist: ", str(path.parent), text, "Delete it and run: bitwright data get mnist")


def test_every_truncation_of_a_zipped_idx_is_an_error(tmp_path: Path):
    write_mnist(tmp_path, zipped=True)
    path = tmp_path / "MNIST/raw/train-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            data.load("mnist", tmp_path)
        one_line(caught, str(path), "is damaged")
    path.write_bytes(b"no gzip file at all")
    with pytest.raises(InputError) as caught:
        data.load("mnist", tmp_path)
    one_line(caught, str(path), "Not a gzipped file")


def test_labels_beyond_the_classes_and_missing_files(tmp_path: Path):
    write_mnist(tmp_path)
    labels = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    write_idx(labels, np.full(8, 10, np.uint8))
    with pytest.raises(InputError) as caught:
        data.load("mnist", tmp_path)
    one_line(caught, str(labels), "label 10 in a set of 10 classes")
    labels.unlink()
    with pytest.raises(InputError) as caught:
        data.load("mnist", tmp_path)
    one_line(caught, "has no train-labels-idx1-ubyte or train-labels-idx1-ubyte.gz")


class Payload:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function: Any, *args: Any):
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # LONG_BINPUT 2^31 - 1: an unpickler makes a table of 32 GB for it
        b"\x80\x04\x8e\x00\x00\x00\x00\x10\x00\x00\x00abc.",  # 64 GB of bytes are promised
        b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00abc.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\x00\x00}.",  # a frame
        # one string of 10 kB, encoded 1,000 times
        b"\x80\x02](c_codecs\nencode\nq\x00X\x10\x27\x00\x00" + b"a" * 10000 + b"q\x01X\x06\x00\x00\x00latin1q\x02\x87R0"
        + b"(h\x00h\x01h\x02\x86R" * 1000 + b"e.",
    ],
    ids=["put", "bytes", "bytearray", "frame", "copies"],
)  # fmt: skip
def test_memory_does_not_follow_a_number_in_a_pickle(tmp_path: Path, content: bytes):
    import tracemalloc

    path = tmp_path / "batch"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="is damaged or unsafe"):
            read_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_hostile_pickles_run_nothing(tmp_path: Path):
    write_cifar10(tmp_path)
    path, mark = tmp_path / "cifar-10-batches-py" / "data_batch_1", tmp_path / "executed"
    command = f"touch {mark}"
    text = command.encode()
    hostile = {
        "system": pickle.dumps(Payload(os.system, command), 2),
        "inside the dict": pickle.dumps({b"data": Payload(os.system, command)}, 2),
        "protocol 0": b"cos\nsystem\n(S'" + text + b"'\ntR.",
        "eval": pickle.dumps(Payload(eval, f"open({str(mark)!r}, 'w')"), 2),
        "open": pickle.dumps(Payload(open, str(mark), "w"), 2),
        "INST": b"(S'" + text + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + text + b"'\no.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(text)]) + text + b"\x85R.",
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__new__\x93.",
        "numpy.load": b"cnumpy\nload\n(S'x'\ntR.",
        "set state of a name": b"cnumpy\ndtype\n(N}S'what'\nS'x'\nstb.",
        "object array": b"cnumpy\ndtype\n(S'O8'\nK\x00K\x01tR.",
        "new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
        "persistent": b"\x80\x02U\x01xQ.",
    }
    for label, content in hostile.items():
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            data.load("cifar10", tmp_path)
        one_line(caught, str(path), "is damaged or unsafe")
        assert not mark.exists(), label
    path.write_bytes(hostile["system"])
    with pytest.raises(InputError) as caught:
        data.load("cifar10", tmp_path)
    one_line(caught, f"names {os.system.__module__}.system, which no CIFAR file holds; nothing in it was run")


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ([], "it holds a list where a dict belongs"),
        ({}, "data is not a uint8 array of rows of 3,072"),
        (
            {b"data": np.zeros((2, 3071), np.uint8), b"labels": [0, 1]},
            "data is not a uint8 array of rows of 3,072",
        ),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "1 labels for 2 images"),
        (
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]},
            "labels is not a list of integers in 0..9",
        ),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": b"01"}, "labels is not a list of integers in 0..9"),
    ],
)
def test_damaged_cifar(tmp_path: Path, batch: Any, text: str):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(python2_pickle(batch))
    with pytest.raises(InputError) as caught:
        data.load("cifar10", tmp_path)
    one_line(caught, "data cifar10: ", str(path), text, "Delete it and run: bitwright data get cifar10")


def test_truncated_cifar(tmp_path: Path):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    whole = path.read_bytes()
    for length in [*range(0, 200), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            data.load("cifar10", tmp_path, "test")
        one_line(caught, str(path), "is damaged")


def test_a_float_array_is_refused(tmp_path: Path):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps({"data": np.zeros((1, 3072)), "labels": [0]}, 2))
    with pytest.raises(InputError) as caught:
        data.load("cifar10", tmp_path, "test")
    one_line(caught, str(path), "numpy.dtype")


def test_check_and_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert [row.status for row in data.check("mnist", tmp_path)] == ["missing"]
    write_mnist(tmp_path, zipped=True)
    assert [row.status for row in data.check("mnist", tmp_path)] == ["damaged"] * 4  # not the published bytes
    with pytest.raises(InputError) as caught:
        data.load("mnist", tmp_path, verify=True)
    one_line(caught, "MD5 differs from the published one")
    folder = tmp_path / "MNIST/raw"
    md5 = {name: known_files.md5(folder / f"{name}.gz") for name in known_files.LAYOUTS["mnist"].md5}
    monkeypatch.setitem(known_files.LAYOUTS, "mnist", known_files.Layout("MNIST/raw", md5, zipped=True))
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    assert [row.status for row in data.check("mnist", tmp_path)] == ["ok", "ok", "ok", "missing"]
    assert len(data.load("mnist", tmp_path, verify=True)) == 8


# --- batches


def tiny(n: int = 23, channels: int = 3, size: int = 8, pad: int = 4, flip: bool = True) -> data.Dataset:
    # Pixels of at least 1: a 0 can only come from padding.
    pixels = torch.from_numpy(RNG.integers(1, 256, (n, channels, size, size), np.uint8))
    mean, std = (0.5, 0.4, 0.3)[:channels], (0.2, 0.25, 0.3)[:channels]
    return data.Dataset("tiny", pixels, torch.arange(n), tuple(map(str, range(n))), mean, std, pad, flip)


def collect(batches: data.Batches) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_plain_batches():
    d = tiny()
    x, y = collect(d.batches(5))
    assert y.tolist() == list(range(23)) and x.dtype == torch.float32
    mean, std = torch.tensor(d.mean).view(3, 1, 1), torch.tensor(d.std).view(3, 1, 1)
    torch.testing.assert_close(x, (d.images / 255 - mean) / std, rtol=1e-5, atol=1e-6)
    assert [len(b) for b, _ in d.batches(5)] == [5, 5, 5, 5, 3] and len(d.batches(5)) == 5
    whole = d.batches(5, drop_last=True)
    assert [len(b) for b, _ in whole] == [5, 5, 5, 5] and len(whole) == 4
    assert len(d.limit(7)) == 7 and torch.equal(d.limit(7).images, d.images[:7]) and len(d.limit(99)) == 23


def test_unnormalized_is_exactly_k_over_255():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    d = data.Dataset("levels", levels, torch.tensor([0]), ("a",), (0.5,), (0.5,))
    x, _ = next(iter(d.batches(1, normalize=False)))
    assert x.flatten().tolist() == [float(np.float32(k) / np.float32(255)) for k in range(256)]
    assert torch.equal((x * 255).round().to(torch.uint8), levels)


def test_order_and_augmentation_depend_on_seed_and_epoch_alone():
    d = tiny()
    first = collect(d.batches(5, shuffle=True, augment=True, seed=3, epoch=2))
    torch.manual_seed(99)  # the global state plays no part
    np.random.seed(99)  # noqa: NPY002
    batches = d.batches(5, shuffle=True, augment=True, seed=3, epoch=2)
    for again in (collect(batches), collect(batches)):
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    other_size = collect(d.batches(7, shuffle=True, augment=True, seed=3, epoch=2))
    assert torch.equal(first[0], other_size[0]) and torch.equal(first[1], other_size[1])
    assert sorted(first[1].tolist()) == list(range(23))
    for seed, epoch in ((3, 3), (2, 2), (2, 3)):  # (2, 3): the two numbers are not just added
        assert not torch.equal(first[1], collect(d.batches(5, shuffle=True, seed=seed, epoch=epoch))[1])
        plain = collect(d.batches(5, augment=True, seed=seed, epoch=epoch))[0]
        assert not torch.equal(plain, collect(d.batches(5, augment=True, seed=3, epoch=2))[0])


def shifted(image: Tensor, dy: int, dx: int, mirror: bool) -> Tensor:
    """Slow oracle: what is at (i + dy, j + dx) comes to (i, j), 0 from outside; then mirrored."""
    _, h, w = image.shape
    out = torch.zeros_like(image)
    for i in range(h):
        for j in range(w):
            if 0 <= i + dy < h and 0 <= j + dx < w:
                out[:, i, w - 1 - j if mirror else j] = image[:, i + dy, j + dx]
    return out


@pytest.mark.few(every=3)
@pytest.mark.parametrize(("channels", "pad", "flip"), [(3, 4, True), (1, 2, False), (1, 1, False)])
def test_augmentation_is_a_shift_and_a_mirror(channels: int, pad: int, flip: bool):
    d = tiny(n=40, channels=channels, pad=pad, flip=flip)
    x, _ = collect(d.batches(16, augment=True, normalize=False))
    assert x.shape == d.images.shape and x.dtype == torch.float32
    pixels = (x * 255).round().to(torch.uint8)
    shifts, mirrors = range(-pad, pad + 1), (False, True) if flip else (False,)
    seen = set()
    for image, result in zip(d.images, pixels, strict=True):
        cases = [
            (dy, dx, m)
            for dy in shifts for dx in shifts for m in mirrors
            if torch.equal(result, shifted(image, dy, dx, m))
        ]  # fmt: skip
        assert len(cases) == 1  # random pixels: exactly one shift explains the result
        seen.add(cases[0])
    assert {m for *_, m in seen} == set(mirrors)
    assert {dy for dy, *_ in seen} == {dx for _, dx, _ in seen} == set(shifts)


def test_uint8_stays_in_memory_and_unchanged():
    d = tiny()
    before = d.images.clone()
    for x, _ in d.batches(8, augment=True, shuffle=True):
        x.zero_()
    assert d.images.dtype == torch.uint8 and torch.equal(d.images, before)


def test_channels_last():
    d = tiny()
    for x, _ in d.batches(8, channels_last=True, augment=True):
        assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(collect(d.batches(8, channels_last=True))[0], collect(d.batches(8))[0])


def test_which_sets_mirror():
    digits = data.load("digits")
    assert (digits.pad, digits.flip) == (1, False)
    assert data._FACTS["mnist"].pad == 2 and not data._FACTS["mnist"].flip
    assert data._FACTS["cifar10"].pad == 4 and data._FACTS["cifar10"].flip


def test_wrong_arguments():
    d = tiny()
    x, y = d.images, d.labels
    for call, text in (
        (lambda: d.batches(0), "data tiny: batch_size=0; possible: at least 1"),
        (lambda: d.batches(1, seed=-1), "seed=-1, epoch=0; possible: 0 and above"),
        (lambda: d.limit(0), "data tiny: limit=0; possible: at least 1"),
        (lambda: data.Dataset("x", x.float(), y, (), d.mean, d.std), "images are float32 [23, 3, 8, 8]"),
        (
            lambda: data.Dataset("x", x, y[:3], (), d.mean, d.std),
            "labels are int64 [3]; possible: int64 [23]",
        ),
        (lambda: data.Dataset("x", x, y, (), (0.5,), (0.5,)), "mean and std need 3 values"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        one_line(caught, text)


def test_loader_rate_is_a_rate():
    assert data.loader_rate(tiny(200), batch_size=32, seconds=0.02) > 0


# --- the real sets


def assert_constants(d: data.Dataset) -> None:
    for c in range(d.images.shape[1]):
        counts = sum(np.bincount(part[:, c].flatten().numpy(), minlength=256) for part in d.images.split(5000))
        share, levels = counts / np.sum(counts), np.arange(256) / 255
        mean = float(share @ levels)
        assert mean == pytest.approx(d.mean[c], abs=5e-4)
        assert float(share @ (levels - mean) ** 2) ** 0.5 == pytest.approx(d.std[c], abs=5e-4)


@pytest.mark.slow
@pytest.mark.few(every=2)
@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "counts", "shape", "classes"),
    [
        ("cifar10", (50_000, 10_000), (3, 32, 32), 10),
        ("cifar100", (50_000, 10_000), (3, 32, 32), 100),
        ("mnist", (60_000, 10_000), (1, 28, 28), 10),
        ("fashion-mnist", (60_000, 10_000), (1, 28, 28), 10),
    ],
)
def test_real_sets(name: str, counts: tuple[int, int], shape: tuple[int, ...], classes: int):
    if not os.environ.get("BITWRIGHT_DATA"):
        pytest.skip("BITWRIGHT_DATA is not set")
    try:
        train, test = data.load(name), data.load(name, split="test")
    except InputError as error:
        if error.code != "data-missing":
            raise
        pytest.skip(str(error))
    assert (len(train), len(test)) == counts
    assert train.images.shape[1:] == shape and len(train.classes) == classes
    for d in (train, test):
        histogram = d.labels.bincount(minlength=classes)
        if name == "mnist":
            assert histogram[0] == (5923 if d is train else 980)
        else:
            assert histogram.unique().tolist() == [len(d) // classes]
    assert_constants(train)
    assert {row.status for row in data.check(name)} == {"ok"}
