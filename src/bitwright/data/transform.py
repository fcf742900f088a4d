"""The named transforms of the ImageNet scripts: how a picture of any size becomes a square of pixels."""

import io
import math
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bitwright.errors import InputError, nearest
from bitwright.fn.pixels import PIXELS

from .draws import below, uniform
from .pictures import LARGEST, check_scaled, pillow

if TYPE_CHECKING:
    from PIL.Image import Image

NAMES = ("squash256-crop227", "resize256-crop224", "random-sized224")
_FORM = re.compile(r"(?:(squash|resize)(\d{1,4})-crop|(random-sized))(\d{1,4})")
_MEAN, _DEVIATION = PIXELS["imagenet"]
_STD = {"squash": (1 / 255,) * 3, "resize": _DEVIATION, "random-sized": _DEVIATION}
Item = bytes | np.ndarray  # a picture file, or its pixels, RGB [H, W, 3]


@dataclass(frozen=True)
class Transform:
    """kind, and two sides in pixels: `stage` before the crop, `size` after it; mean and std that go with it.

    squash         to stage x stage, whatever the shape was; in training a random crop and mirror, else the middle.
                   The old XNOR-Net script: mean of ImageNet, std 1/255, so that inputs span about -128 to 128
    resize         shorter side to `stage`; the same crops
    random-sized   in training a random part (8 to 100 % of the area, 3:4 to 4:3) scaled to `size`, mirrored or not;
                   else as resize, with `stage` 8/7 of `size`

    Pictures are scaled bilinearly, with antialiasing; a large JPEG is decoded at a half, quarter or
    eighth where that is enough. A rotation that EXIF asks for is not made, as in the old scripts.
    """

    name: str
    kind: str
    stage: int
    size: int

    @property
    def mean(self) -> tuple[float, ...]:
        return _MEAN

    @property
    def std(self) -> tuple[float, ...]:
        return _STD[self.kind]

    def side(self) -> int:
        """Side of what `pixels` gives. Squashed pictures are cropped later, a whole batch on the device."""
        return self.stage if self.kind == "squash" else self.size

    def pixels(self, item: Item, where: str, key: int | None, place: int) -> np.ndarray:
        """uint8 RGB [side, side, 3]; key None: nothing random. Errors: `InputError` naming `where`."""
        try:
            image = _open(item)
            if self.kind == "squash":
                image = _scaled(image, (self.stage, self.stage))
            elif self.kind == "random-sized" and key is not None:
                image = self._random_part(image, key, place)
            else:
                image = self._cropped(image, key, place)
            return np.asarray(image)
        except InputError:
            raise
        except Exception as error:  # a damaged file can raise almost any error
            reason = re.sub(r"<\S+ object at \w+>", "it", " ".join(str(error).split())) or type(error).__name__
            raise InputError(f"data: {where} is damaged: {reason:.160}", code="data-damaged", given=where) from None

    def _cropped(self, image: "Image", key: int | None, place: int) -> "Image":
        width, height = image.size
        ratio = self.stage / min(width, height)
        width, height = max(self.stage, round(width * ratio)), max(self.stage, round(height * ratio))
        check_scaled(image.size, (width, height))
        image = _scaled(image, (width, height))
        across, down = width - self.size, height - self.size
        left, top = (
            (across // 2, down // 2)
            if key is None
            else (below(key, place, 0, across + 1), below(key, place, 1, down + 1))
        )
        return image.crop((left, top, left + self.size, top + self.size))

    def _random_part(self, image: "Image", key: int, place: int) -> "Image":
        """Ten tries as the scripts make them, then the largest part in the middle that the shapes allow."""
        width, height = image.size
        low, high = math.log(3 / 4), math.log(4 / 3)
        for k in range(0, 40, 4):
            area = width * height * (0.08 + 0.92 * uniform(key, place, k))
            ratio = math.exp(low + (high - low) * uniform(key, place, k + 1))
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                left, top = below(key, place, k + 2, width - wide + 1), below(key, place, k + 3, height - tall + 1)
                break
        else:
            wide, tall = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
            left, top = (width - wide) // 2, (height - tall) // 2
        image.draft(None, (math.ceil(width * self.size / wide), math.ceil(height * self.size / tall)))
        across, down = image.size[0] / width, image.size[1] / height
        box = (left * across, top * down, (left + wide) * across, (top + tall) * down)
        return _scaled(image, (self.size, self.size), box)


def parse(name: str) -> Transform:
    """One of `NAMES`, or the same words with other sides.

    >>> parse("squash108-crop96").stage
    108
    >>> parse("random-sized64").stage
    73
    """
    found = _FORM.fullmatch(name)
    if not found:
        raise _wrong(name, f"unknown.{nearest(name, NAMES)}")
    squash, stage, random, size = found.groups()
    kind, side = squash or random, int(size)
    first = int(stage) if stage else round(side * 8 / 7)
    if not 1 <= side <= first <= 4096:
        raise _wrong(name, "the crop must be from 1 to the side before it, which is at most 4096")
    return Transform(name, kind, first, side)


def quiet_pillow() -> None:
    """No warnings of Pillow on odd EXIF data, of which ImageNet has some. For the whole process, since its threads share
    one list of filters: called before a pass, not for each picture."""
    warnings.filterwarnings("ignore", message="(Possibly c|C)orrupt EXIF", category=UserWarning)


def _wrong(name: str, what: str) -> InputError:
    possible = f"{', '.join(NAMES)}, or these with other sides"
    return InputError(
        f"data.transform={name!r}: {what} Possible: {possible}",
        code="data-transform",
        given=name,
        possible=possible,
    )


def _open(item: Item) -> "Image":
    opener = pillow()
    if isinstance(item, np.ndarray):
        return opener.fromarray(item)
    image = opener.open(io.BytesIO(item))
    if image.size[0] * image.size[1] > LARGEST:
        raise ValueError(f"{image.size[0]}x{image.size[1]} pixels, more than {LARGEST:,}")
    return image


def _scaled(image: "Image", size: tuple[int, int], box: tuple[float, float, float, float] | None = None) -> "Image":
    """RGB at `size`; a JPEG that is not decoded yet is decoded only as finely as that needs."""
    from PIL import Image

    if box is None:
        image.draft(None, size)
    image = image if image.mode == "RGB" else image.convert("RGB")
    if image.size == size and box is None:
        image.load()
        return image
    return image.resize(size, Image.Resampling.BILINEAR, box)
