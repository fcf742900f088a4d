"""SVHN and STL-10 in their official layout, small; damaged and hostile files of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from bitwright import data
from bitwright.data import get
from bitwright.data.get import SOURCES
from bitwright.errors import InputError

RNG = np.random.default_rng(0)


def write_mat(path: Path, count: int, compressed: bool = False, **more: Any) -> tuple[np.ndarray, np.ndarray]:
    """X [32, 32, 3, N] and y [N, 1] with labels 1 to 10, as the published files have them."""
    x = RNG.integers(0, 256, (32, 32, 3, count), np.uint8)
    y = (np.arange(count, dtype=np.uint8) % 10 + 1).reshape(-1, 1)
    savemat(path, {"X": x, "y": y, **more}, do_compression=compressed)
    return x, y


@pytest.mark.parametrize("compressed", [False, True])
def test_svhn(tmp_path: Path, compressed: bool):
    parts = {
        s: write_mat(tmp_path / f"{s}_32x32.mat", n, compressed) for s, n in (("train", 12), ("test", 3), ("extra", 4))
    }
    found = data.load("svhn", tmp_path)
    x, _ = parts["train"]
    assert found.images.shape == (12, 3, 32, 32) and found.images.dtype == torch.uint8
    assert all(np.array_equal(found.images[i].numpy(), x[:, :, :, i].transpose(2, 0, 1)) for i in range(12))
    assert found.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]  # 10 is the digit 0
    assert found.classes == tuple("0123456789") and not found.flip
    assert len(data.load("svhn", tmp_path, "test")) == 3
    both = data.load("svhn", tmp_path, "train+extra")
    assert len(both) == 16 and torch.equal(both.images[:12], found.images)
    with pytest.raises(InputError, match="possible: train, test, extra"):
        data.load("svhn", tmp_path, "val")


def test_a_root_with_other_things_is_not_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """SVHN has no folder of its own: the first root may hold other sets."""
    first, second = tmp_path / "a", tmp_path / "b"
    (first / "MNIST").mkdir(parents=True)
    second.mkdir()
    write_mat(second / "test_32x32.mat", 2)
    monkeypatch.setenv("BITWRIGHT_DATA", f"{first}:{second}")
    assert len(data.load("svhn", split="test")) == 2
    status = {Path(r.path).name: r.status for r in data.check("svhn")}
    assert status == {
        "train_32x32.mat": "missing",
        "test_32x32.mat": "damaged",
    }  # not the published bytes; extra optional


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, "not X and y"),
        ({"X": np.zeros((32, 32, 3, 2), np.float32), "y": np.ones((2, 1))}, "X is single"),
        ({"X": np.zeros((32, 31, 3, 2), np.uint8), "y": np.ones((2, 1))}, "not uint8 [32, 32, 3, N]"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones((3, 1))}, "y is double [3, 1] for 2 images"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [11]])}, "other values than 1 to 10"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [0.5]])}, "other values than 1 to 10"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([["a"], ["b"]], object)}, "y is cell"),
    ],
)
def test_a_wrong_mat_is_one_line(tmp_path: Path, content: dict[str, Any], why: str):
    savemat(tmp_path / "train_32x32.mat", content)
    with pytest.raises(InputError) as caught:
        data.load("svhn", tmp_path)
    assert why in str(caught.value) and "train_32x32.mat is damaged" in str(caught.value)
    assert "\n" not in str(caught.value) and "bitwright data get svhn" in str(caught.value)


def test_a_broken_mat_is_one_line_wherever_it_is_cut(tmp_path: Path):
    path = tmp_path / "train_32x32.mat"
    write_mat(path, 2, compressed=True)
    whole = path.read_bytes()
    for end in (0, 3, 100, 128, 140, 1000, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError) as caught:
            data.load("svhn", tmp_path)
        assert "train_32x32.mat" in str(caught.value) and "\n" not in str(caught.value)
    for at in range(128, 600, 13):  # a changed byte is refused, or is a changed pixel; never a traceback
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            assert data.load("svhn", tmp_path).images.shape == (2, 3, 32, 32)
        except InputError as error:
            assert "\n" not in str(error)


def write_stl10(root: Path, train: int = 20, test: int = 3, unlabeled: int = 4) -> dict[str, np.ndarray]:
    """Row-major images, written column by column."""
    folder = root / "stl10_binary"
    folder.mkdir()
    images = {}
    for stem, count in (("train", train), ("test", test), ("unlabeled", unlabeled)):
        images[stem] = RNG.integers(0, 256, (count, 3, 96, 96), np.uint8)
        (folder / f"{stem}_X.bin").write_bytes(images[stem].transpose(0, 1, 3, 2).tobytes())
        if stem != "unlabeled":
            (folder / f"{stem}_y.bin").write_bytes((np.arange(count, dtype=np.uint8) % 10 + 1).tobytes())
    lines = [" ".join(str((i + k) % train) for k in range(5)) for i in range(10)]
    (folder / "fold_indices.txt").write_text("\n".join(lines) + "\n")
    return images


def test_stl10(tmp_path: Path):
    images = write_stl10(tmp_path)
    train = data.load("stl10", tmp_path)
    assert np.array_equal(train.images.numpy(), images["train"]) and train.images.is_contiguous()
    assert train.labels.tolist() == [i % 10 for i in range(20)] and train.classes[7] == "monkey" and train.flip
    assert np.array_equal(data.load("stl10", tmp_path, "test").images.numpy(), images["test"])
    free = data.load("stl10", tmp_path, "unlabeled")
    assert np.array_equal(free.images.numpy(), images["unlabeled"]) and free.labels.tolist() == [-1] * 4
    fold = data.load("stl10", tmp_path, "fold3")
    assert fold.labels.tolist() == [3, 4, 5, 6, 7]
    assert np.array_equal(fold.images.numpy(), images["train"][3:8])


@pytest.mark.parametrize(
    ("file", "content", "split", "why"),
    [
        ("train_X.bin", b"", "train", "0 bytes"),
        ("train_X.bin", bytes(27_647), "train", "not a multiple of 27,648"),
        ("train_y.bin", bytes([1] * 19), "train", "19 labels for 20 images"),
        ("train_y.bin", bytes([0] * 20), "train", "other labels than 1 to 10"),
        ("train_y.bin", bytes([11] * 20), "train", "other labels than 1 to 10"),
        ("fold_indices.txt", b"1 2\n", "fold1", "line 2 holds no places"),
        ("fold_indices.txt", b"1 20\n", "fold0", "line 1 holds no places from 0 to 19"),
        ("fold_indices.txt", b"a b\n", "fold0", "line 1 holds no places"),
    ],
)
def test_a_wrong_stl10_file_is_one_line(tmp_path: Path, file: str, content: bytes, split: str, why: str):
    write_stl10(tmp_path)
    (tmp_path / "stl10_binary" / file).write_bytes(content)
    with pytest.raises(InputError) as caught:
        data.load("stl10", tmp_path, split)
    assert why in str(caught.value) and file in str(caught.value) and "\n" not in str(caught.value)


def test_get_knows_the_new_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert {a.name for a in SOURCES["svhn"]} == {"train_32x32.mat", "test_32x32.mat"}
    assert [a.name for a in SOURCES["svhn-extra"]] == ["extra_32x32.mat"]
    with pytest.raises(InputError, match=r"image-net\.org") as caught:
        get.get("imagenet", tmp_path)
    assert caught.value.code == "data-manual"
