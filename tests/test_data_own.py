"""Own data: folders of pictures, functions in a file; and the parts, slices and resumption of passes."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitwright as bw
from bitwright import data
from bitwright.data import folder as folder_module
from bitwright.data import function as function_module
from bitwright.data import pixels
from bitwright.data.transform import parse
from bitwright.errors import InputError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "_seen", {})
    monkeypatch.setattr(function_module, "_facts", {})


def fails(call: Any, *parts: str) -> InputError:
    with pytest.raises(InputError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


# ---- folders of pictures ----


def put(path: Path, pixels: Any = (120, 60, 30), size: tuple[int, int] = (40, 30), **options: Any) -> Path:
    """A picture of one color, or of the given array; the format by the name."""
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not there: pip install 'bitwright[data]'")
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(pixels, np.ndarray):
        image = image_module.fromarray(pixels)
    else:
        image = image_module.new("L" if isinstance(pixels, int) else "RGB", size, pixels)
    image.save(path, **options)
    return path


def put_many(root: Path, per_class: int = 20, gray: bool = False) -> None:
    """Two classes: dark and light."""
    for name, level in (("dark", 40), ("light", 200)):
        for i in range(per_class):
            color = level + i if gray else (level + i, level, level // 2)
            put(root / name / f"{i:03}.jpg", color, quality=95)


def test_train_and_test_folders(tmp_path: Path) -> None:
    put(tmp_path / "train" / "b" / "1.jpg", (200, 0, 0), (64, 48))
    put(tmp_path / "train" / "b" / "deeper" / "2.PNG", (200, 0, 0), (20, 16))
    put(tmp_path / "train" / "a" / "3.jpeg", (0, 0, 100))
    put(tmp_path / "train" / "a" / ".4.png")
    put(tmp_path / "test" / "b" / "5.bmp", (200, 0, 0))
    put(tmp_path / "test" / "b" / "6.webp", (200, 0, 0), lossless=True)
    (tmp_path / "train" / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "train" / ".hidden").mkdir()
    train, test = (data.load("folder", tmp_path, split, size=16) for split in ("train", "test"))
    assert train.images.shape == (3, 3, 16, 16) and train.images.dtype == torch.uint8
    assert train.classes == test.classes == ("a", "b")
    assert sorted(train.labels.tolist()) == [0, 1, 1] and test.labels.tolist() == [1, 1]
    for image, label in zip(train.images, train.labels, strict=True):
        color = image.float().mean((1, 2))
        wanted = torch.tensor([200.0, 0, 0] if label == 1 else [0, 0, 100.0])
        torch.testing.assert_close(color, wanted, atol=4, rtol=0)  # JPEG
    assert train.mean == test.mean and train.std == test.std
    assert (train.pad, train.flip) == (2, True)
    for second in ("valid", "val"):
        (tmp_path / "test").rename(tmp_path / "x")
        (tmp_path / "x").rename(tmp_path / second)
        assert torch.equal(data.load("folder", tmp_path, "test", size=16).images, test.images)
        (tmp_path / second).rename(tmp_path / "test")


def test_moments_are_those_of_the_training_pictures(tmp_path: Path) -> None:
    put_many(tmp_path)
    train = data.load("folder", tmp_path, "train", size=8)
    folder_module._seen.clear()
    test = data.load("folder", tmp_path, "test", size=8)
    assert (train.mean, train.std) == (test.mean, test.std)
    for c in range(3):
        values = train.images[:, c].double() / 255
        assert train.mean[c] == pytest.approx(float(values.mean()), abs=1e-6)
        assert train.std[c] == pytest.approx(float(values.std(correction=0)), abs=1e-6)
    x, _ = next(iter(train.batches(len(train))))
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)


def test_the_split_depends_on_names_alone_and_is_about_a_fifth(tmp_path: Path) -> None:
    put_many(tmp_path, 40)

    def split() -> dict[Path, str]:
        train, test = folder_module._splits(tmp_path)
        return {
            path.relative_to(tmp_path): which
            for which, part in (("train", train), ("test", test))
            for files in part.values()
            for path in files
        }

    before = split()
    assert len(before) == 80
    for name in ("dark", "light"):
        held = sum(which == "test" for path, which in before.items() if path.parts[0] == name)
        assert 3 <= held <= 14
    (tmp_path / "dark" / "000.jpg").write_bytes((tmp_path / "light" / "000.jpg").read_bytes())
    put(tmp_path / "dark" / "new.jpg")
    put(tmp_path / "third" / "1.jpg")
    put(tmp_path / "third" / "2.jpg")
    after = split()
    assert {path: after[path] for path in before} == before
    assert sorted(which for path, which in after.items() if path.parts[0] == "third") == ["test", "train"]


def test_the_order_mixes_the_classes(tmp_path: Path) -> None:
    put_many(tmp_path)
    train = data.load("folder", tmp_path, size=4)
    assert set(train.limit(8).labels.tolist()) == {0, 1}
    assert torch.equal(train.images, data.load("folder", tmp_path, size=4).images)


def test_gray_stays_gray(tmp_path: Path) -> None:
    put_many(tmp_path, gray=True)
    train, test = data.load("folder", tmp_path, size=8), data.load("folder", tmp_path, "test", size=8)
    assert train.images.shape[1] == test.images.shape[1] == 1 and not train.flip
    put(tmp_path / "dark" / "zz.png", np.full((9, 9), 65535, np.uint16))  # 16 bits
    assert folder_module.read_picture(tmp_path / "dark" / "zz.png", 8).max() == 255
    for i in range(10):
        put(tmp_path / "dark" / f"color{i}.png", (10, 20, 30))
    mixed = data.load("folder", tmp_path, size=8)
    assert mixed.images.shape[1] == 3
    colored = {tuple(image[:, 0, 0].tolist()) for image in mixed.images if image[0, 0, 0] != image[1, 0, 0]}
    assert colored == {(10, 20, 30)}


def test_resizing_keeps_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, :10, 0] = wide[:, 10:20, 1] = wide[:, 20:, 2] = 255
    for size in (10, 5, 20):
        found = folder_module.read_picture(put(tmp_path / "wide.png", wide), size)
        assert found.shape == (size, size, 3) and found[size // 2, size // 2].tolist() == [0, 255, 0]
    assert folder_module.read_picture(put(tmp_path / "tall.png", wide.transpose(1, 0, 2).copy()), 7).shape == (7, 7, 3)
    thin = np.zeros((1, 200, 3), np.uint8)
    assert folder_module.read_picture(put(tmp_path / "thin.png", thin), 9).shape == (9, 9, 3)


def test_exif_orientation(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not there: pip install 'bitwright[data]'")
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32] = 255  # light above
    exif = image.Exif()
    exif[0x0112] = 6  # turn right to see it upright
    path = put(tmp_path / "turned.jpg", pixels, exif=exif, quality=95)
    found = folder_module.read_picture(path, 8)
    assert found[:, 6:].min() > 200 and found[:, :2].max() < 50


def test_a_large_jpeg_is_read_at_a_fraction_and_looks_the_same(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 512)[:, None, None], (512, 512, 3)).astype(np.uint8)
    jpeg, png = put(tmp_path / "a.jpg", ramp, quality=95), put(tmp_path / "a.png", ramp)
    a, b = (folder_module.read_picture(path, 16).astype(int) for path in (jpeg, png))
    assert np.abs(a - b).max() <= 4


@pytest.mark.parametrize("content", [b"", b"no picture", "half"])
def test_a_damaged_picture_is_named(tmp_path: Path, content: bytes | str) -> None:
    put_many(tmp_path, 4)
    path = put(tmp_path / "dark" / "001.jpg", RNG.integers(0, 256, (64, 64, 3), np.uint8))
    whole = path.read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])

    def both() -> None:
        data.load("folder", tmp_path, "train")
        data.load("folder", tmp_path, "test")

    error = fails(both, f"data folder {tmp_path}: 1 picture cannot be read: dark/001.jpg (", "--skip-bad")
    assert error.code == "data-damaged" and error.given == "dark/001.jpg"


def test_all_damaged_pictures_are_named_at_once_or_left_out(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            for i in range(3):
                put(tmp_path / split / name / f"{i}.png", (200, 0, 0) if name == "a" else (0, 90, 0))
    whole = data.load("folder", tmp_path, "train")
    for bad in ("train/a/1.png", "train/b/2.png", "test/b/0.png"):
        (tmp_path / bad).write_bytes(b"no picture")
    for split in ("train", "test"):
        fails(
            lambda split=split: data.load("folder", tmp_path, split), "3 pictures cannot be read", "train/a/1.png (",
            "train/b/2.png (", "test/b/0.png (",
        )  # fmt: skip
    for first in ("train", "test"):  # in either order
        folder_module._seen.clear()
        sets = {s: data.load("folder", tmp_path, s, skip_bad=True) for s in (first, "train", "test")}
        assert [len(sets[s]) for s in ("train", "test")] == [4, 5]
        assert {name for name, _ in sets["train"].skipped} == {"train/a/1.png", "train/b/2.png"}
        assert [name for name, _ in sets["test"].skipped] == ["test/b/0.png"]
        assert sets["train"].mean == sets["test"].mean == whole.mean  # all pictures of a class are alike
        assert sets["train"].limit(2).skipped == sets["train"].skipped
    for i in range(3):
        (tmp_path / "train" / "a" / f"{i}.png").write_bytes(b"")
    fails(lambda: data.load("folder", tmp_path, "train", skip_bad=True), "no picture of a can be read")


def test_damaged_pictures_of_a_streamed_folder_can_be_left_out(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            for i in range(3):
                put(tmp_path / split / name / f"{i}.png", (200, 0, 0))
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"no picture")
    (tmp_path / "train" / "b" / "0.png").write_bytes(b"")
    kept = data.load("folder", tmp_path, "train", transform="resize10-crop8", skip_bad=True, workers=2)
    assert len(kept) == 4 and len(torch.cat([x for x, _ in kept.batches(3)])) == 4
    assert {Path(name).relative_to(tmp_path).as_posix() for name, _ in kept.skipped} == {
        "train/a/1.png",
        "train/b/0.png",
    }
    other = data.load("folder", tmp_path, "train", transform="resize10-crop8")
    fails(
        lambda: list(other.batches(6)), "2 pictures cannot be read", "train/a/1.png (", "train/b/0.png (", "--skip-bad"
    )


def test_other_kinds_of_pictures_are_read_or_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i, kind in enumerate(("png", "tif", "TIFF", "gif", "ppm")):
            put(tmp_path / "train" / name / f"{i}.{kind}", (200, 0, 0))
            put(tmp_path / "test" / name / f"{i}.{kind}", (200, 0, 0))
    (tmp_path / "train" / "a" / "notes.txt").touch()
    assert [len(data.load("folder", tmp_path, split)) for split in ("train", "test")] == [10, 10]
    (tmp_path / "train" / "a" / "9.heic").touch()
    (tmp_path / "test" / "b" / "9.heic").touch()
    (tmp_path / "test" / "b" / "9.nef").touch()
    for transform in (None, "resize10-crop8"):
        with pytest.warns(bw.BitwrightWarning, match=r"files are left out \((2 \.heic, 1 \.nef|1 \.heic)\); read are"):
            data.load("folder", tmp_path, "train", transform=transform)


def test_a_thin_picture_is_refused_before_it_is_scaled(tmp_path: Path) -> None:
    path = put(tmp_path / "thin.png", size=(60_000, 1))
    assert path.stat().st_size < 1000
    fails(lambda: folder_module.read_picture(path, 64), "60000x1 pixels would become 3840000x64")
    item = path.read_bytes()
    fails(lambda: parse("resize256-crop224").pixels(item, "thin", None, 0), "15360000x256")
    fails(lambda: parse("resize256-crop224").pixels(item, "thin", 1, 0), "15360000x256")
    assert parse("random-sized64").pixels(item, "thin", 3, 0).shape == (64, 64, 3)  # cut first, scaled then
    assert parse("squash64-crop60").pixels(item, "thin", 3, 0).shape == (64, 64, 3)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not there: pip install 'bitwright[data]'")
    path = put(tmp_path / "big.png", size=(60, 60))
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 2000)
    fails(lambda: folder_module.read_picture(path, 8), "big.png is damaged: ", "decompression bomb")


def test_wrong_folders(tmp_path: Path) -> None:
    def load(split: str = "train", size: int = 8) -> Any:
        return lambda: data.load("folder", root, split, size=size)

    root: Path | None = None
    fails(load(), "data folder: no folder given; set data.root=FOLDER with root/train/CLASS/*.jpg")
    root = tmp_path / "none"
    fails(load(), f"data folder {root}: no such folder; possible: root/train/CLASS/*.jpg")
    root.write_text("x")
    fails(load(), "a file, not a folder")
    root = tmp_path / "r"
    root.mkdir()
    fails(load(), f"data folder {root}: no class folders in it")
    put(root / "1.jpg")
    assert fails(load(), "pictures, but no folder for each class").code == "data-folder"
    put(root / "a" / "1.jpg")
    fails(load(), "one class, a; possible: 2 or more class folders")
    (root / "b").mkdir()
    fails(load(), "no picture in b; read are .jpg, .jpeg, .jfif, .png, .bmp, .webp, .tif")
    put(root / "b" / "1.jpg")
    fails(load(), "1 picture cannot be in train and test; possible: 2 or more")
    root = tmp_path / "s"
    put(root / "train" / "a" / "1.jpg")
    put(root / "train" / "b" / "1.jpg")
    fails(load(), "has train but no test, val, valid")
    (root / "test").mkdir()
    fails(load("test"), f"data folder {root / 'test'}: no class folders in it")
    put(root / "test" / "c" / "1.jpg")
    fails(load("test"), "test has class 'c', train has not; train has: a, b")
    (root / "train").rename(root / "val")
    fails(load(), "has test but no train")
    fails(load("val"), "data folder: unknown split 'val'; possible: train, test")
    fails(load(size=0), "data folder: size=0; possible: at least 1")


def test_too_many_pictures_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_many(tmp_path, 10)
    monkeypatch.setattr(pixels, "LIMIT", 10_000)
    error = fails(
        lambda: data.load("folder", tmp_path, size=32), f"data folder {tmp_path}: ", "3x32x32 need", "Try data.size=16"
    )
    assert error.code == "data-large"
    assert len(data.load("folder", tmp_path, size=8))


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    real = builtins.__import__

    def no_pillow(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "PIL":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_pillow)
    fails(lambda: data.load("folder", tmp_path), "reading pictures needs Pillow. Run: pip install 'bitwright[data]'")


# ---- functions ----


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """Writes the body of fn(split) to a file; gives its spec. `calls` is the list of splits asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    count = 0

    def write(body: str) -> str:
        nonlocal count
        count += 1
        name = f"own_{abs(hash(request.node.nodeid))}_{count}"
        head = "import torch, numpy as np\nfrom bitwright.data import Dataset\ncalls = []\n"
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        (tmp_path / f"{name}.py").write_text(f"{head}def fn(which):\n    calls.append(which)\n{lines}")
        return f"{name}.py:fn"

    return write


def test_a_pair(own: Any) -> None:
    spec = own(
        "n = 12 if which == 'train' else 3\n"
        "return torch.arange(n * 64, dtype=torch.float64).view(n, 8, 8) / 767, [i % 3 for i in range(n)]"
    )
    train, test = data.load(spec), data.load(spec, split="test")
    assert train.images.shape == (12, 1, 8, 8) and test.images.shape == (3, 1, 8, 8)
    assert train.images.flatten().tolist() == [round(k * 255 / 767) for k in range(768)]
    assert train.classes == test.classes == ("0", "1", "2") and train.name == spec
    assert (train.mean, train.std) == (test.mean, test.std) and train.mean[0] == pytest.approx(0.5, abs=1e-3)
    assert (train.pad, train.flip) == (1, False)


def test_the_training_images_are_asked_for_once(own: Any) -> None:
    import importlib

    spec = own("return torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])")
    test = data.load(spec, split="test")
    module = importlib.import_module(spec.partition(".py")[0])
    assert module.calls == ["test", "train"]
    data.load(spec, split="test")
    assert module.calls == ["test", "train", "test"]
    assert test.std == (1.0, 1.0, 1.0) and test.flip  # constant images divide by no zero


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("return np.zeros((4, 5, 6, 3), np.uint8), np.arange(4)", (4, 3, 5, 6)),
        ("return np.zeros((4, 5, 6), bool), np.arange(4)", (4, 1, 5, 6)),
        ("return torch.zeros(4, 7, 5, 6), torch.arange(4, dtype=torch.int16)", (4, 7, 5, 6)),
        ("return torch.zeros(4, 3, 5, 3), torch.arange(4)", (4, 3, 5, 3)),
        ("return [(torch.zeros(3, 5, 6), i) for i in range(4)]", (4, 3, 5, 6)),
        ("return [(np.zeros((5, 6, 3), np.uint8), np.int64(i)) for i in range(4)]", (4, 3, 5, 6)),
        ("return [(torch.zeros(5, 6), torch.tensor(i)) for i in range(4)]", (4, 1, 5, 6)),
        ("return torch.utils.data.TensorDataset(torch.zeros(4, 1, 5, 6), torch.arange(4))", (4, 1, 5, 6)),
    ],
)
def test_forms(own: Any, body: str, shape: tuple[int, ...]) -> None:
    found = data.load(own(body))
    assert found.images.shape == shape and found.labels.tolist() == [0, 1, 2, 3]


def test_pillow_items_and_class_names(own: Any) -> None:
    pytest.importorskip("PIL.Image", reason="Pillow is not there: pip install 'bitwright[data]'")
    spec = own(
        "from PIL import Image\n"
        "class Set(torch.utils.data.Dataset):\n"
        "    classes = ['cat', 'dog']\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return Image.new('RGB', (6, 5), (i, 2, 3)), i % 2\n"
        "return Set()"
    )
    found = data.load(spec)
    assert found.images.shape == (4, 3, 5, 6) and found.images[2, :, 0, 0].tolist() == [2, 2, 3]
    assert found.classes == ("cat", "dog")


def test_a_dataset_is_taken_as_it_is(own: Any) -> None:
    spec = own(
        "x = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)\n"
        "return Dataset('mine', x, torch.tensor([0, 1]), ('a', 'b'), (0.25,), (0.5,), pad=3, flip=True)"
    )
    found = data.load(spec, split="test")
    assert (found.name, found.mean, found.pad, found.flip) == ("mine", (0.25,), 3, True)


OK = "torch.zeros(2, 1, 4, 4, dtype=torch.uint8)"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 3", "gave int; possible: a Dataset, a pair (images, labels), or a data set with len() and [i]"),
        ("return None", "gave NoneType; possible: "),
        ("return iter([])", "gave list_iterator; possible: "),
        (f"return {OK}, [0, 1], [2]", "gave tuple; possible: "),
        ("raise KeyError('lost')", "failed: KeyError: 'lost'"),
        ("return []", "gave no image"),
        ("return [1, 2]", "item 0 is not a pair (image, label): TypeError: cannot unpack"),
        ("return [('x', 1)]", "image 0 is str; possible: [C, H, W], [H, W], [H, W, C] or a Pillow picture"),
        (
            "return [(torch.zeros(3, 4, 4), 0), (torch.zeros(3, 4, 5), 0)]",
            "image 1 is 3x4x5, image 0 is 3x4x4; all need",
        ),
        ("return 'ab', [0, 1]", "images are str; possible: a tensor or an array"),
        ("return torch.zeros(2, 4), [0, 1]", "images are [2, 4]; possible: [N, C, H, W]"),
        ("return torch.zeros(2, 1, 4, 4) - 1, [0, 1]", "float pixels from -1 to -1; possible: 0 to 1"),
        ("return torch.full((2, 1, 4, 4), float('nan')), [0, 1]", "float pixels from nan to nan; possible: 0 to 1"),
        ("return torch.zeros(2, 1, 4, 4, dtype=torch.int64), [0, 1]", "images are int64; possible: uint8, or float"),
        (f"return {OK}, [0, 1, 2]", "labels are [3] for 2 images; possible: [2]"),
        (f"return {OK}, [0.0, 1.0]", "labels are float64; possible: integers from 0"),
        (f"return {OK}, ['a', 'b']", "labels are list; possible: integers from 0"),
        (f"return {OK}, [0, -1]", "label -1; possible: integers from 0"),
    ],
)
def test_wrong_functions(own: Any, body: str, said: str) -> None:
    spec = own(body)
    error = fails(lambda: data.load(spec), f'data {spec}: fn("train"): ', said)
    assert error.code in ("own-data", "own-call")


def test_a_test_split_that_does_not_fit_training(own: Any) -> None:
    spec = own(f"return {OK}, [0, 1 if which == 'train' else 2]")
    fails(lambda: data.load(spec, split="test"), 'fn("test"): label 2, but train has labels 0 to 1')
    spec = own("return torch.zeros(2, 1 if which == 'train' else 3, 4, 4), [0, 1]")
    fails(lambda: data.load(spec, split="test"), "images have 3 channels, those of train 1")


def test_a_name_that_is_not_there(own: Any) -> None:
    spec = own("return 1").replace(":fn", ":fun")
    fails(lambda: data.load(spec), "has no 'fun'. Nearest: fn.")
    fails(lambda: data.load("nothing.py:fn"), "data nothing.py:fn: no file nothing.py")
    fails(lambda: data.load("foldr"), "Known: digits, ", "own data: folder, file.py:fn")


# ---- parts, slices, resumption ----


def ramp(n: int = 23, size: int = 6) -> data.Dataset:
    images = torch.from_numpy(RNG.integers(1, 256, (n, 3, size, size), np.uint8))
    return data.Dataset("ramp", images, torch.arange(n), tuple(map(str, range(n))), (0.5,) * 3, (0.25,) * 3, 2, True)


def splitmix64(i: int) -> int:
    """The i-th number of the generator with state 0, as its authors write it; held-out images must never change."""
    mask = 2**64 - 1
    z = (i + 1) * 0x9E3779B97F4A7C15 & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return z ^ z >> 31


def test_parts() -> None:
    d = ramp(100)
    train, val = d.part("train", 30), d.part("val", 30)
    assert sorted(train.labels.tolist() + val.labels.tolist()) == list(range(100)) and len(val) == 30
    assert train.labels.tolist() == sorted(train.labels.tolist()) and torch.equal(val.images, d.images[val.labels])
    assert set(d.part("val", 10).labels.tolist()) < set(val.labels.tolist())
    assert val.labels.tolist() == sorted(sorted(range(100), key=splitmix64)[:30])
    assert len(d.part("train", 0)) == 100
    held = ramp(10_000, 1).part("val", 1000).labels  # spread over a sorted set
    assert (held < 5000).float().mean().item() == pytest.approx(0.5, abs=0.05)
    fails(lambda: d.part("val", 0), "data ramp: val=0 of 100 training images; possible: 1 to 99")
    fails(lambda: d.part("train", 100), "val=100 of 100 training images; possible: 0 to 99")
    fails(lambda: d.part("test", 1), "unknown part 'test'; possible: train, val")


def test_binarized_is_exactly_zero_and_one() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    d = data.Dataset("levels", levels, torch.tensor([0]), ("a",), (0.3,), (0.5,), pad=2)
    for normalize, augment in ((True, False), (False, False), (True, True)):
        x, _ = next(iter(d.binarized().batches(1, normalize=normalize, augment=augment)))
        assert set(x.unique().tolist()) == {0.0, 1.0}
    x, _ = next(iter(d.binarized().batches(1)))
    assert x.flatten().tolist() == [0.0] * 128 + [1.0] * 128
    assert d.images.max() == 255 and d.mean == (0.3,)


def everything(batches: data.Batches) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(batches)


@pytest.mark.parametrize("drop_last", [True, False])
def test_start_goes_on_as_an_unbroken_pass(drop_last: bool) -> None:
    d, options = ramp(), {"shuffle": True, "augment": True, "seed": 3, "epoch": 1, "drop_last": drop_last}
    whole = everything(d.batches(4, **options))
    for start in range(len(whole) + 1):
        rest = d.batches(4, start=start, **options)
        assert len(rest) == len(whole) - start
        for (x, y), (x0, y0) in zip(everything(rest), whole[start:], strict=True):
            assert torch.equal(x, x0) and torch.equal(y, y0)


@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_share_each_batch(drop_last: bool) -> None:
    d, options = ramp(), {"shuffle": True, "augment": True, "seed": 1, "drop_last": drop_last}
    whole = everything(d.batches(6, **options))
    ranks = [everything(d.batches(6, rank=r, world=3, start=1, **options)) for r in range(3)]
    assert [len(r) for r in ranks] == [len(whole) - 1] * 3
    for i, (x, y) in enumerate(whole[1:]):
        assert torch.equal(torch.cat([r[i][0] for r in ranks]), x)
        assert torch.equal(torch.cat([r[i][1] for r in ranks]), y)
        sizes = [len(r[i][1]) for r in ranks]
        assert max(sizes) - min(sizes) <= (0 if len(y) == 6 else 1)


def test_wrong_slices() -> None:
    d = ramp()
    fails(lambda: d.batches(6, rank=2, world=2), "rank=2 of world=2; possible: 0 up to, not including, world")
    fails(lambda: d.batches(7, world=2), "a batch of 7 cannot be shared by 2 processes", "data.batch=8")
    fails(lambda: d.batches(6, start=5), "data ramp: start=5; possible: 0 to 4, the batches of a pass")
    fails(lambda: d.batches(6, start=-1), "start=-1; possible: 0 to 4")
