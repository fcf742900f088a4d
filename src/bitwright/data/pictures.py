"""One picture file as pixels. Pillow is imported here only, and only when a picture is read."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.errors import BitwrightWarning, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
# files beside pictures that are none: notes, labels, files of the operating system
_BESIDE = (".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html", ".log", ".py", ".db", ".ini")
LARGEST = 89_478_485  # pixels of one picture, also once it is scaled: Pillow's own limit, a quarter of a gigabyte
_GRAY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "F")


def pillow() -> Any:
    """The module `PIL.Image`, or how to get it."""
    try:
        import PIL.Image
    except ImportError:
        remedy = "pip install 'bitwright[data]'"
        raise InputError(
            f"data: reading pictures needs Pillow. Run: {remedy}", code="extra-missing", remedy=remedy
        ) from None
    return PIL.Image


def read_picture(path: Path, size: int) -> np.ndarray:
    """uint8 [H, W] of a gray file or [H, W, 3] of any other: rotated as EXIF says, first frame, without alpha.

    The shorter side becomes `size` (bilinear, antialiased), the middle is cut out.
    """
    opener = pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on odd but readable files
            warnings.simplefilter("error", opener.DecompressionBombWarning)
            with opener.open(path) as image:
                image.draft(None, (size, size))  # a large JPEG is decoded at a half, quarter or eighth
                return _fit(image, size)
    except Exception as error:  # a damaged file can raise almost any error
        reason = " ".join(str(error).replace(str(path), "it").split()) or type(error).__name__
        raise InputError(f"data: {path} is damaged: {reason:.160}", code="data-damaged", given=str(path)) from None


def _fit(image: "Image", size: int) -> np.ndarray:
    from PIL import Image, ImageOps

    image = plain(ImageOps.exif_transpose(image))
    width, height = image.size
    ratio = size / min(width, height)
    width, height = max(size, round(width * ratio)), max(size, round(height * ratio))
    check_scaled(image.size, (width, height))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


def check_scaled(before: tuple[int, int], after: tuple[int, int]) -> None:
    """A thin picture of few bytes becomes a huge one when its shorter side is scaled. Errors: `ValueError`."""
    if after[0] * after[1] > LARGEST:
        was, becomes = ("x".join(map(str, size)) for size in (before, after))
        raise ValueError(f"{was} pixels would become {becomes}, more than {LARGEST:,}")


def left_out(names: Iterable[str]) -> Counter[str]:
    """Endings of files that may be pictures and are not read -> how many.

    >>> dict(left_out(["a.jpg", "b.heic", ".c", "notes.txt"]))
    {'.heic': 1}
    """
    others = (n for n in names if not n.startswith(".") and not n.lower().endswith((*SUFFIXES, *_BESIDE)))
    return Counter(Path(n).suffix.lower() or n for n in others)


def tell_left_out(folder: Path, found: Mapping[str, int]) -> None:
    """One warning for all."""
    if found:
        kinds = ", ".join(
            f"{count:,} {end}" for end, count in sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:8]
        )
        text = f"data folder {folder}: {sum(found.values()):,} files are left out ({kinds}); read are {', '.join(SUFFIXES)}"
        warnings.warn(text, BitwrightWarning, stacklevel=2)


def bad_pictures(where: str, bad: Sequence[tuple[str, str]], looked: str = "") -> InputError:
    """The error that names all of them; (name, why) each. `looked`: behind their number."""
    names = ", ".join(f"{name} ({why})" for name, why in bad)
    many = "1 picture" if len(bad) == 1 else f"{len(bad):,} pictures"
    return InputError(
        f"{where}: {many}{looked} cannot be read: {names}. Repair or remove them, or go on without them: --skip-bad "
        "(data.skip_bad = true)",
        code="data-damaged",
        given=bad[0][0],
        remedy="--skip-bad",
    )


def plain(image: "Image") -> "Image":
    """Mode L for gray pictures, RGB for all others. 16 bits lose their lower 8; alpha is dropped."""
    from PIL import Image

    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("L" if image.mode in _GRAY else "RGB")


def same_colors(pictures: list[np.ndarray], gray: bool) -> np.ndarray:
    """uint8 [N, C, H, W]: one channel if `gray`, else three, whatever each picture has."""
    size = pictures[0].shape[:2]
    out = np.empty((len(pictures), 1 if gray else 3, *size), np.uint8)
    for row, picture in zip(out, pictures, strict=True):
        if picture.ndim == 2:
            row[:] = picture
        elif gray:
            row[0] = np.rint(picture @ np.array([0.299, 0.587, 0.114]))  # ITU-R 601, as Pillow
        else:
            row[:] = picture.transpose(2, 0, 1)
    return out
