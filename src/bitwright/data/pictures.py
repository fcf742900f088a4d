"""One picture file as pixels. Pillow is imported here only, and only when a picture is read."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
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
    """uint8 [H, W] of a gray file or [H, W, 3] of any other: turned as EXIF says, first frame, without alpha.

    The shorter side becomes `size` (bilinear over all pixels that fall together), the middle is cut out.
    """
    opener = pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on odd but readable files
            warnings.simplefilter("error", opener.DecompressionBombWarning)
            with opener.open(path) as image:
                image.draft(None, (size, size))  # a large JPEG is decoded at a half, quarter or eighth
                return _fit(image, size)
    except Exception as error:  # a damaged file raises nearly anything
        reason = " ".join(str(error).replace(str(path), "it").split()) or type(error).__name__
        raise InputError(f"data: {path} is damaged: {reason:.160}", code="data-damaged", given=str(path)) from None


def _fit(image: "Image", size: int) -> np.ndarray:
    from PIL import Image, ImageOps

    image = plain(ImageOps.exif_transpose(image))
    width, height = image.size
    ratio = size / min(width, height)
    width, height = max(size, round(width * ratio)), max(size, round(height * ratio))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


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
