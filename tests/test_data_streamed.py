"""Sets that are read batch by batch: folders and LMDB, equal to the bit; the index; hostile files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigdata import blob, caffe_record, number, piece, write_folders, write_lmdb
from bitwright import data
from bitwright.cli.run import run
from bitwright.data import datum, index, lmdb_read, streamed, transform
from bitwright.data.images import Images
from bitwright.data.pack import pack
from bitwright.errors import InputError

pytest.importorskip("PIL")
pytest.importorskip("lmdb")
TRANSFORM = "squash36-crop32"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index cache of its own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "set")


def opened(root: Path, split: str = "train", name: str = TRANSFORM, format: str = "folder", workers: int = 0) -> Images:
    return data.load("folder", root, split, transform=name, format=format, workers=workers)


def passes(images: Images, **options: object) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(images.batches(5, shuffle=True, augment=True, seed=3, epoch=2, **options))  # type: ignore[arg-type]


def same(left: list[tuple[torch.Tensor, torch.Tensor]], right: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(left, right, strict=True)
    )


def one_line(caught: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


# ---- transforms ----


def test_squash_is_pillow_s_resize_and_a_crop(folders: Path):
    from PIL import Image

    train = opened(folders)
    x = next(iter(train.batches(18, normalize=False)))[0]
    assert x.shape == (18, 3, 32, 32) and train.shape == (3, 32, 32)
    path = Path(train.source.where(0))  # type: ignore[attr-defined]
    with Image.open(path) as image:
        image.draft(None, (36, 36))  # as coarse as the result allows
        expected = np.asarray(image.convert("RGB").resize((36, 36), Image.Resampling.BILINEAR))[2:34, 2:34]
    assert np.array_equal((x[0] * 255).round().byte().numpy(), expected.transpose(2, 0, 1))
    assert torch.equal(train.pictures(torch.tensor([0]))[0], (x[0] * 255).round().byte())
    normal = next(iter(train.batches(18)))[0]
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    assert torch.allclose(normal, (x - mean) * 255, atol=1e-3)  # std 1/255, as in the old script


def test_augmented_squash_is_a_crop_of_the_squashed_picture(folders: Path):
    train = opened(folders)
    whole = next(iter(opened(folders, name="squash36-crop36").batches(18, normalize=False)))[0]
    seen = set()
    for epoch in range(4):
        for k, picture in enumerate(next(iter(train.batches(18, normalize=False, augment=True, epoch=epoch)))[0]):
            crops = [(i, j, f) for f in (0, 1) for i in range(5) for j in range(5)
                     if torch.equal(picture.flip(-1) if f else picture, whole[k, :, i : i + 32, j : j + 32])]  # fmt: skip
            assert crops
            seen.add(crops[0])
    assert len(seen) > 20 and {f for _, _, f in seen} == {0, 1}


@pytest.mark.parametrize("name", ["resize40-crop32", "random-sized32"])
def test_shapes_are_kept(folders: Path, name: str):
    """A picture of one color gradient: a crop keeps its slope per source pixel, in both directions."""
    train = opened(folders, name=name)
    x = torch.cat([x for x, _ in train.batches(4, augment=True, normalize=False, epoch=1)])
    y = torch.cat([x for x, _ in train.batches(4, normalize=False)])
    assert x.shape == y.shape == (18, 3, 32, 32) and not torch.equal(x, y)
    again = torch.cat([x for x, _ in train.batches(9, augment=True, normalize=False, epoch=1)])
    assert torch.equal(x, again)  # chance does not depend on the batch size
    assert train.std == (0.229, 0.224, 0.225)


def test_random_parts_have_the_published_sizes():
    """Areas from 8 to 100 % and ratios from 3:4 to 4:3, seen through a picture that tells where it was cut."""
    side = 240
    ramp = np.zeros((side, side, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(side), np.arange(side)[:, None]
    form = transform.parse("random-sized64")
    areas, ratios = [], []
    for place in range(300):
        cut = form.pixels(ramp, "ramp", 7, place).astype(float)
        wide, tall = np.ptp(cut[..., 0]) * 64 / 63, np.ptp(cut[..., 1]) * 64 / 63
        areas.append(wide * tall / side**2)
        ratios.append(wide / tall)
    assert 0.06 < min(areas) < 0.15 and 0.85 < max(areas) < 1.06 and 0.45 < np.mean(areas) < 0.6
    assert 0.68 < min(ratios) < 0.85 and 1.2 < max(ratios) < 1.45 and abs(np.mean(np.log(ratios))) < 0.05


@pytest.mark.parametrize(
    "name", ["squash256", "squash200-crop227", "crop227", "resize0-crop0", "random-sized99999", "squash256-crop", ""]
)
def test_an_unknown_transform_is_one_line(tmp_path: Path, name: str):
    with pytest.raises(InputError) as caught:
        data.load("folder", tmp_path, transform=name)
    one_line(caught, "squash256-crop227, resize256-crop224, random-sized224")
    assert caught.value.code == "data-transform"


def test_transforms_are_for_large_sets(folders: Path):
    with pytest.raises(InputError) as caught:
        data.load("digits", transform=TRANSFORM)
    one_line(caught, "data digits", "held in memory")
    with pytest.raises(InputError) as caught:
        opened(folders).binarized()
    one_line(caught, "binarize")
    with pytest.raises(InputError) as caught:
        opened(folders, format="lmbd")
    one_line(caught, "lmdb", "folder, lmdb")


# ---- order, parts, workers ----


@pytest.mark.parametrize("name", [TRANSFORM, "resize40-crop32", "random-sized32"])
def test_workers_slices_and_starts_change_nothing(folders: Path, name: str):
    whole = passes(opened(folders, name=name))
    assert len(whole) == 4 and [len(y) for _, y in whole] == [5, 5, 5, 3]
    for workers in (1, 3):
        assert same(whole, passes(opened(folders, name=name, workers=workers)))
        assert same(whole[2:], passes(opened(folders, name=name, workers=workers), start=2))
    train = opened(folders, name=name)
    options = {"shuffle": True, "augment": True, "seed": 3, "epoch": 2, "world": 2}
    both = [list(train.batches(6, rank=rank, **options)) for rank in (0, 1)]
    alone = list(train.batches(6, shuffle=True, augment=True, seed=3, epoch=2))
    joined = [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in zip(*both, strict=True)]
    assert same(alone, joined)
    assert not same(whole, list(train.batches(5, shuffle=True, augment=True, seed=3, epoch=3)))


def test_limit_and_part_choose_as_in_memory(folders: Path):
    train = opened(folders)
    small = data.load("folder", folders, size=32)
    assert train.classes == small.classes == ("a", "b", "c")
    assert torch.equal(train.labels, small.labels)  # the same order of the same files
    for few, other in ((train.limit(7), small.limit(7)), (train.part("val", 4), small.part("val", 4))):
        assert torch.equal(few.labels, other.labels)
    held, rest = train.part("val", 4), train.part("train", 4)
    whole = train.pictures(torch.arange(18))
    parts = torch.cat([held.pictures(torch.arange(4)), rest.pictures(torch.arange(14))])
    assert sorted(map(hash, (p.numpy().tobytes() for p in whole))) == sorted(
        map(hash, (p.numpy().tobytes() for p in parts))
    )
    last = next(iter(train.batches(5, channels_last=True)))[0]
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_a_pass_left_early_leaves_no_thread(folders: Path):
    import threading

    for _ in opened(folders, workers=2).batches(4):
        break
    assert not [t for t in threading.enumerate() if t.name.startswith("bitwright-decode")]


def test_names_from_words(folders: Path):
    (folders / "words.txt").write_text("a\tgoldfish, Carassius\nb\ttabby\n")
    assert opened(folders).classes == ("goldfish", "tabby", "c")


# ---- the index ----


def old(folder: Path) -> None:
    """Times long past: what changed just now is not kept."""
    for place in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        os.utime(place, (1e9, 1e9))


def test_the_index_is_kept_and_made_anew(folders: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    opened(folders)
    assert not list(home.rglob("*.npz"))  # too fresh to be trusted
    old(folders)
    before = opened(folders)
    assert len(list(home.rglob("*.npz"))) == 1
    scans = []
    scan = index._scan
    monkeypatch.setattr(index, "_scan", lambda folder: scans.append(folder) or scan(folder))
    assert torch.equal(opened(folders).labels, before.labels) and not scans
    source = folders / "train" / "a" / "a_0.JPEG"
    source.rename(source.with_name("moved.JPEG"))
    after = opened(folders)
    assert len(scans) == 1 and len(after) == 18
    assert sum(len(y) for _, y in after.batches(6)) == 18  # the new name is found
    (folders / "train" / "a" / "more").mkdir()
    (folders / "train" / "a" / "more" / "x.png").write_bytes((folders / "train" / "b" / "b_1.JPEG").read_bytes())
    assert len(opened(folders)) == 19
    old(folders)
    opened(folders)
    (folders / "train" / "a" / "more" / "x.png").unlink()
    assert len(opened(folders)) == 18


def test_a_damaged_index_is_made_anew(folders: Path, home: Path):
    old(folders)
    opened(folders)
    (cache,) = home.rglob("*.npz")
    whole = cache.read_bytes()
    for content in (b"", b"PK", whole[:-30], bytes(len(whole))):
        cache.write_bytes(content)
        assert len(opened(folders)) == 18
    assert cache.read_bytes() == whole or len(opened(folders)) == 18
    cache.unlink()
    cache.parent.rmdir()
    cache.parent.write_text("a file where the folder belongs")
    assert len(opened(folders)) == 18  # no place for a cache


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda root: (root / "val" / "d").mkdir() or (root / "val" / "d" / "x.jpg").touch(),
            "has class 'd', train has not",
        ),
        (lambda root: (root / "train" / "d").mkdir(), "no picture in it"),
        (lambda root: (root / "val").rename(root / "other"), "has train but no test"),
        (lambda root: (root / "train").rename(root / "other"), "not found in"),
    ],
)
def test_wrong_folders_are_one_line(folders: Path, change, why: str):
    change(folders)
    with pytest.raises(InputError) as caught:
        opened(folders, "test")
    one_line(caught, why)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_named(folders: Path, workers: int):
    bad = folders / "train" / "b" / "b_2.JPEG"
    whole = bad.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"GIF89a", os.urandom(200)):
        bad.write_bytes(content)
        with pytest.raises(InputError) as caught:
            passes(opened(folders, workers=workers))
        one_line(caught, f"data folder: 1 picture cannot be read: {bad} (", "--skip-bad")
    bad.unlink()
    train = opened(folders)
    (folders / "train" / "a" / "a_1.JPEG").unlink()
    with pytest.raises(InputError) as caught:
        passes(train)
    one_line(caught, "1 picture cannot be read", "a_1.JPEG (No such file")


def test_a_bomb_is_not_opened(folders: Path):
    from PIL import Image

    bad = folders / "train" / "b" / "b_2.png"
    Image.new("1", (12_000, 12_000)).save(bad)
    with pytest.raises(InputError) as caught:
        passes(opened(folders))
    one_line(caught, f"{bad} (", "pixels")


@pytest.mark.parametrize("workers", [0, 2])
def test_all_damaged_pictures_are_named_at_once(folders: Path, workers: int, monkeypatch: pytest.MonkeyPatch):
    bad = [folders / "train" / name for name in ("a/a_0.JPEG", "b/b_2.JPEG", "c/c_5.JPEG")]
    for path in bad:
        path.write_bytes(b"no picture")
    with pytest.raises(InputError) as caught:
        passes(opened(folders, workers=workers))
    one_line(caught, "data folder: 3 pictures cannot be read: ", *(f"{path} (" for path in bad))
    monkeypatch.setattr(streamed, "LISTED", 2)  # of a very large set: the beginning, and the one that was met
    train: Any = opened(folders, workers=workers)
    place = [train.source.where(row) for row in train.rows.tolist()].index(str(bad[2]))
    with pytest.raises(InputError) as caught:
        train.pictures(torch.tensor([place]))
    one_line(caught, "of 2 that were looked at cannot be read", str(bad[2]))


# ---- pack ----


@pytest.mark.parametrize("name", [TRANSFORM, "resize40-crop32", "random-sized32"])
def test_packed_files_give_the_batches_of_the_folder(folders: Path, tmp_path: Path, name: str):
    done = pack(folders, tmp_path / "out", workers=2)
    assert [(d.folder.name, d.images, d.written) for d in done] == [("train_lmdb", 18, 18), ("val_lmdb", 9, 9)]
    for split in ("train", "test"):
        left, right = opened(folders, split, name), opened(tmp_path / "out", split, name, "lmdb", workers=2)
        assert left.classes == right.classes and torch.equal(left.labels, right.labels)
        assert same(passes(left), passes(right))
    assert [d.written for d in pack(folders, tmp_path / "out")] == [0, 0]


def test_raw_pixels_give_the_batches_of_the_folder_under_their_squash(folders: Path, tmp_path: Path):
    pack(folders, tmp_path / "raw", size=36, raw=True)
    assert same(passes(opened(folders)), passes(opened(tmp_path / "raw", format="lmdb")))
    pack(folders, tmp_path / "jpeg", size=36, quality=90)
    left = passes(opened(folders), normalize=False)
    right = passes(opened(tmp_path / "jpeg", format="lmdb"), normalize=False)
    worst = max(float((a - b).abs().mean()) for (a, _), (b, _) in zip(left, right, strict=True))
    assert 0 < worst < 0.03  # JPEG loses a little


KILLED = """
import os, sys
from bitwright.data import pack
pack.BATCH = 4
def progress(what, done, size):
    if what == "train" and done >= 8:
        os._exit(9)
pack.pack(sys.argv[1], sys.argv[2], progress=progress)
"""


def test_a_killed_pack_goes_on(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folders), str(out)], capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr
    with pytest.raises(InputError) as caught:
        opened(out, format="lmdb")
    one_line(caught, "is not complete", f"bitwright data pack {folders} {out}")
    assert pack(folders, out)[0].written == 10  # 8 of 18 were there
    assert same(passes(opened(folders)), passes(opened(out, format="lmdb")))


def test_pack_says_what_does_not_fit(folders: Path, tmp_path: Path):
    out = tmp_path / "out"
    pack(folders, out)
    with pytest.raises(InputError) as caught:
        pack(folders, out, size=36)
    one_line(caught, "was started with other options (size None -> 36)")
    (folders / "train" / "a" / "a_0.JPEG").rename(folders / "train" / "a" / "z.JPEG")
    with pytest.raises(InputError) as caught:
        pack(folders, out)
    one_line(caught, "the files of the source changed")
    write_lmdb(tmp_path / "other" / "train_lmdb", {b"0": caffe_record(np.zeros((2, 2, 3), np.uint8), 0)})
    with pytest.raises(InputError) as caught:
        pack(folders, tmp_path / "other")
    one_line(caught, "an LMDB that pack did not write")
    wrongs: list[dict[str, Any]] = [{"raw": True}, {"quality": 90}, {"size": 0}, {"size": 8, "quality": 101}]
    for wrong in wrongs:
        with pytest.raises(InputError) as caught:
            pack(folders, tmp_path / "new", **wrong)
        one_line(caught, "data pack: --")
    (folders / "train" / "b" / "b_2.JPEG").write_bytes(b"no picture")
    with pytest.raises(InputError) as caught:
        pack(folders, tmp_path / "new")
    one_line(caught, "1 picture cannot be read: ", "b_2.JPEG (", "--skip-bad")


def test_pack_goes_on_without_damaged_pictures(folders: Path, tmp_path: Path):
    bad = [folders / "train" / name for name in ("a/a_0.JPEG", "b/b_2.JPEG")]
    for path in bad:
        path.write_bytes(b"no picture")
    with pytest.raises(InputError) as caught:
        pack(folders, tmp_path / "out")
    one_line(
        caught,
        "2 pictures cannot be read: ",
        *(f"{path} (cannot identify image file it)" for path in bad),
        "--skip-bad",
    )
    train, test = pack(folders, tmp_path / "new", skip_bad=True)
    assert (train.images, train.written, test.images) == (16, 16, 9) and test.skipped == ()
    assert [name for name, _ in train.skipped] == [str(path) for path in bad]
    again, _ = pack(folders, tmp_path / "new", skip_bad=True)
    assert (again.images, again.written, again.skipped) == (16, 0, train.skipped)
    whole: Any = opened(folders)
    assert same(passes(whole.without_bad()), passes(opened(tmp_path / "new", format="lmdb")))


def test_the_map_grows(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from bitwright.data import pack as module

    monkeypatch.setattr(module, "_FIRST", 1 << 15)
    assert pack(folders, tmp_path / "out", size=64, raw=True)[0].bytes > 18 * 64 * 64 * 3
    assert same(
        passes(opened(folders, name="squash64-crop60")),
        passes(opened(tmp_path / "out", name="squash64-crop60", format="lmdb")),
    )


def test_pack_reads_back(folders: Path, tmp_path: Path):
    from bitwright.data import pack as module

    pack(folders, tmp_path / "out")
    lmdb_read.close(tmp_path / "out" / "train_lmdb")
    env = lmdb_read.module().open(str(tmp_path / "out" / "train_lmdb"), map_size=1 << 24)
    with env, env.begin(write=True) as txn:
        cursor = txn.cursor()
        cursor.first()
        key, value = bytes(cursor.key()), bytearray(cursor.value())
        value[len(value) // 2] ^= 1
        txn.put(key, bytes(value))
    with pytest.raises(InputError) as caught:
        module._verify(tmp_path / "out" / "train_lmdb", opened(folders).labels.tolist(), "train", lambda *a: None)
    one_line(caught, "is not what was written")


# ---- Caffe ----


@pytest.fixture
def caffe(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Three classes in ilsvrc12_train_lmdb and ilsvrc12_val_lmdb, each record in another of Caffe's ways."""
    rgb = np.random.default_rng(1).integers(0, 256, (6, 36, 36, 3), np.uint8)
    ways = ("", "packed", "single", "", "", "")
    for word in ("train", "val"):
        records = {f"{i:08d}_x.JPEG".encode(): caffe_record(rgb[i], i % 3, ways[i]) for i in range(6)}
        write_lmdb(tmp_path / f"ilsvrc12_{word}_lmdb", records)
    return tmp_path, rgb


def test_caffe_s_records_are_read(caffe: tuple[Path, np.ndarray]):
    root, rgb = caffe
    train = opened(root, format="lmdb")
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2] and train.classes == ("0", "1", "2")
    assert np.array_equal(train.pictures(torch.arange(6)).numpy(), rgb[:, 2:34, 2:34].transpose(0, 3, 1, 2))
    found = data.load("imagenet", root, transform=TRANSFORM, format="lmdb")
    assert torch.equal(found.labels, train.labels)


@pytest.mark.parametrize("form", ["old", "new", "npy", "channels"])
def test_a_mean_file_is_subtracted(caffe: tuple[Path, np.ndarray], form: str):
    root, rgb = caffe
    bgr = np.random.default_rng(2).uniform(0, 255, (3, 36, 36)).astype(np.float32)
    if form in ("old", "new"):
        (root / "imagenet_mean.binaryproto").write_bytes(blob(bgr, form == "old"))
    else:
        np.save(root / "mean.npy", bgr if form == "npy" else bgr.mean((1, 2)))
    train = opened(root, format="lmdb")
    average = bgr[::-1] if form != "channels" else np.broadcast_to(bgr.mean((1, 2))[::-1, None, None], bgr.shape)
    expected = rgb.transpose(0, 3, 1, 2).astype(np.float32) - average
    x = next(iter(train.batches(6)))[0]
    assert np.allclose(x.numpy(), expected[:, :, 2:34, 2:34], atol=1e-3)
    assert np.allclose(train.mean, bgr.mean((1, 2))[::-1] / 255, atol=1e-6)
    moved = next(iter(train.batches(6, augment=True)))[0].numpy()  # the mean moves with its pixels
    for k in range(6):
        assert any(
            np.allclose(moved[k][:, :, ::step], expected[k, :, i : i + 32, j : j + 32], atol=1e-3)
            for step in (1, -1) for i in range(5) for j in range(5)
        )  # fmt: skip
    plain = next(iter(train.batches(6, normalize=False)))[0]
    assert float(plain.min()) >= 0 and float(plain.max()) <= 1
    other = opened(root, name="squash40-crop32", format="lmdb")  # another size: by channels
    assert other.mean == train.mean


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        number(1, 1),
        piece(5, b"abc"),
        blob(np.full((3, 2, 2), 300.0), True),
        blob(np.zeros((2, 2, 2)), False),
    ],
)
def test_a_damaged_mean_file_is_one_line(caffe: tuple[Path, np.ndarray], content: bytes):
    (caffe[0] / "mean.binaryproto").write_bytes(content)
    with pytest.raises(InputError) as caught:
        opened(caffe[0], format="lmdb")
    one_line(caught, "mean.binaryproto is damaged")


GOOD = caffe_record(np.zeros((4, 4, 3), np.uint8), 1)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        GOOD[:-3],
        GOOD[:10],
        b"\xff" * 11,
        number(1, 3) + piece(4, bytes(48)) + number(5, 1),
        number(1, 3) + number(2, 4) + number(3, 5) + piece(4, bytes(48)) + number(5, 1),
        number(1, 3) + number(2, 1 << 30) + number(3, 1 << 30) + number(5, 1),
        number(1, 4) + number(2, 4) + number(3, 3) + piece(4, bytes(48)) + number(5, 1),
        piece(4, b"no picture") + number(5, 1) + number(7, 1),
        number(5, 1) + number(7, 1),
        number(5, (1 << 64) - 1) + piece(4, bytes(48)),
        b"\x22\xff\xff\xff\xff\x0f" + bytes(9),
        bytes([4 * 8 + 3]) + bytes(9),
        number(1, 1) + number(2, 1) + number(3, 1) + piece(6, np.array([np.nan], "<f4").tobytes()),
    ],
)
def test_a_hostile_record_is_one_line(tmp_path: Path, record: bytes):
    for word in ("train", "val"):
        write_lmdb(tmp_path / f"{word}_lmdb", {b"0": GOOD, b"1": record})
    with pytest.raises(InputError) as caught:
        list(opened(tmp_path, format="lmdb").batches(2))
    one_line(caught, "train_lmdb: record 1 ")


def test_labels_beyond_reason_are_refused(tmp_path: Path):
    for word in ("train", "val"):
        write_lmdb(tmp_path / f"{word}_lmdb", {b"0": number(5, 2_000_000_000) + piece(4, b"x")})
    with pytest.raises(InputError) as caught:
        opened(tmp_path, format="lmdb")
    one_line(caught, "label 2,000,000,000")


def test_random_records_never_raise_anything_else():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        record = bytearray(GOOD)
        for _ in range(int(rng.integers(1, 4))):
            record[int(rng.integers(len(record)))] = int(rng.integers(256))
        try:
            datum.picture(datum.parse(memoryview(bytes(record))))
        except ValueError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("keep", [0, 1, 100, 4096, 8192, -4096])
def test_an_lmdb_cut_short_is_one_line(folders: Path, tmp_path: Path, keep: int):
    pack(folders, tmp_path / "out")
    file = tmp_path / "out" / "train_lmdb" / "data.mdb"
    lmdb_read.close(file.parent)
    content = file.read_bytes()[:keep]
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        opened(tmp_path / "out", format="lmdb")
    one_line(caught, str(file), "damaged")


def test_no_lmdb_at_all_is_one_line(tmp_path: Path, folders: Path):
    for content in (b"no database" * 1000, bytes(20_000)):
        pack(folders, tmp_path / "out")
        file = tmp_path / "out" / "train_lmdb" / "data.mdb"
        lmdb_read.close(file.parent)
        whole = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(InputError) as caught:
            opened(tmp_path / "out", format="lmdb")
        one_line(caught, str(file))
        file.write_bytes(whole)
    (file.parent / "bitwright.json").write_text("{")
    with pytest.raises(InputError) as caught:
        opened(tmp_path / "out", format="lmdb")
    one_line(caught, "bitwright.json is damaged")


def test_without_lmdb_the_line_says_what_to_type(tmp_path: Path, folders: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(InputError) as caught:
        pack(folders, tmp_path / "out")
    one_line(caught, "pip install 'bitwright[data]'")


# ---- imagenet ----


def test_imagenet_is_looked_for_in_order_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, second = tmp_path / "a", tmp_path / "b"
    monkeypatch.setenv("BITWRIGHT_DATA", f"{first}:{second}")
    with pytest.raises(InputError) as caught:
        data.load("imagenet")
    one_line(caught, f"not found in {first}/imagenet, {second}/imagenet", "BITWRIGHT_DATA")
    assert [r.status for r in data.check("imagenet")] == ["missing"]
    write_folders(second / "imagenet")
    found = data.load("imagenet")
    assert found.shape == (3, 224, 224) and len(found) == 18  # random-sized224
    assert len(data.load("imagenet", second / "imagenet", "test")) == 9
    import shutil

    shutil.rmtree(second / "imagenet" / "train" / "b")
    rows = data.check("imagenet")
    assert [r.status for r in rows] == ["partial", "partial"]
    assert rows[0].detail == "12 of 1,281,167 train images; 2 of 1,000 classes, no b"


def test_the_pack_command(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert run(["data", "pack", str(folders), str(out), "--json"]) == 0
    packed = json.loads(capsys.readouterr().out)["pack"]
    assert [(p["images"], p["written"]) for p in packed] == [(18, 18), (9, 9)] and packed[0]["bytes"] > 0
    assert run(["data", "pack", str(folders), str(out)]) == 0
    shown = capsys.readouterr()
    assert "train_lmdb  18 images" in shown.out and "was there already" in shown.out
    (folders / "val" / "a" / "a_0.JPEG").write_bytes(b"no picture")
    assert run(["data", "pack", str(folders), str(tmp_path / "less"), "--skip-bad"]) == 0
    shown = capsys.readouterr().out
    assert "val_lmdb  8 images" in shown and "skipped  1: " in shown
    assert run(["data", "pack", str(folders), str(out), "--raw"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: data pack: --raw needs --size, e.g. --size 256"
    assert run(["data", "show", "folder", "--root", str(out), "--transform", TRANSFORM, "--seconds", "0.02"]) == 0
    assert "img/s, lmdb, 0 workers" in capsys.readouterr().out
    assert run(["data", "check", "imagenet", "--root", str(out)]) == 1  # 27 pictures are not ImageNet
    shown = " ".join(capsys.readouterr().out.split())
    assert "partial" in shown and "18 of 1,281,167" in shown


def test_the_experiment_chooses_transform_and_format(folders: Path, tmp_path: Path):
    from bitwright.experiment import parse
    from bitwright.runs import dataset, example_of

    pack(folders, folders)
    text = f'[data]\nname = "folder"\nroot = "{folders}"\ntransform = "{TRANSFORM}"\nlimit = 12\nval = 4\n[[stage]]\nepochs = 1\n'
    one, other = parse(text), parse(text, ["data.format=lmdb", "data.workers=2"])
    assert same(passes(dataset(one, "train")), passes(dataset(other, "train")))
    assert len(dataset(one, "train")) == 8 and len(dataset(other, "val")) == 4
    assert example_of(one, dataset(one, "test")).shape == (2, 3, 32, 32)
    with pytest.raises(InputError) as caught:
        dataset(parse(text, ["data.binarize=true"]), "test")
    one_line(caught, "binarize = false")
