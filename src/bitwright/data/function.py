"""The user's own data: `data.name = "file.py:fn"`, where fn(split) gives the images of "train" or "test"."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitwright import usercode
from bitwright.errors import InputError

from .dataset import Dataset
from .pixels import check_memory, moments, own

_FORMS = "a Dataset, a pair (images, labels), or a data set with len() and [i] -> (image, label)"
Facts = tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]  # classes, mean, std of training
_facts: dict[Any, Facts] = {}  # by function, so that the test split need not read the training images again


def read_function(spec: str, split: str, function: Callable[[str], Any] | None = None) -> Dataset:
    """What fn(split) gives, in memory; `function` where `spec` was looked up already.

    Dataset     as it is
    pair        images uint8, or float in 0..1, [N, C, H, W], [N, H, W] or [N, H, W, C]; labels integers [N]
    data set    items (image, label): image a tensor [C, H, W] or [H, W], an array [H, W] or [H, W, C], or a picture
                of Pillow; names of classes from its attribute `classes`

    Classes, mean and deviation are those of the training images, so fn("train") is also called for "test".
    """
    if function is None:
        function = usercode.find(spec, "data")
    assert function is not None
    found = _call(function, spec, split)
    if isinstance(found, Dataset):
        return found
    images, labels, names = _tensors(found, spec, split)
    if split == "train":
        facts = _facts[function] = _facts_of(images, labels, names)
    elif function in _facts:
        facts = _facts[function]
    else:
        train = _call(function, spec, "train")
        if isinstance(train, Dataset):
            facts = (train.classes, train.mean, train.std)
        else:
            facts = _facts[function] = _facts_of(*_tensors(train, spec, "train"))
    classes, mean, std = facts
    if images.shape[1] != len(mean):
        raise _wrong(spec, split, f"images have {images.shape[1]} channels, those of train {len(mean)}")
    if int(labels.max()) >= len(classes):
        raise _wrong(spec, split, f"label {int(labels.max())}, but train has labels 0 to {len(classes) - 1}")
    return own(spec, images, labels, classes, mean, std)


def _facts_of(images: Tensor, labels: Tensor, names: Sequence[str]) -> Facts:
    count = int(labels.max()) + 1
    classes = tuple(map(str, names)) if len(names) >= count else tuple(map(str, range(count)))
    return (classes, *moments(images))


def _call(function: Callable[[str], Any], spec: str, split: str) -> Any:
    try:
        return function(split)
    except InputError:
        raise
    except Exception as error:
        raise _wrong(spec, split, f"failed: {_first(error)}", code="own-call") from error


def _tensors(found: Any, spec: str, split: str) -> tuple[Tensor, Tensor, Sequence[str]]:
    names: Sequence[str] = ()
    if isinstance(found, tuple) and len(found) == 2:
        pixels, labels = found
    elif (
        hasattr(found, "__len__") and hasattr(found, "__getitem__") and not isinstance(found, (str, bytes, dict, tuple))
    ):
        pixels, labels = _read_all(found, spec, split)
        names = getattr(found, "classes", ())
    else:
        raise _wrong(spec, split, f"gave {type(found).__name__}; possible: {_FORMS}")
    images = _images(pixels, spec, split)
    return images, _labels(labels, len(images), spec, split), names


def _read_all(found: Any, spec: str, split: str) -> tuple[Tensor, list[Any]]:
    """Every item of a map-style data set, as one uint8 tensor and a list of labels."""
    count = len(found)
    if not count:
        raise _wrong(spec, split, "gave no image")
    images, labels = torch.empty(0), []
    for i in range(count):
        try:
            image, label = found[i]
        except Exception as error:
            raise _wrong(
                spec, split, f"item {i} is not a pair (image, label): {_first(error)}", code="own-call"
            ) from error
        one = _one(image, spec, split, i)
        if i == 0:
            check_memory(
                f"data {spec}", count, tuple(one.shape), "Make the images smaller in the function, or give fewer"
            )
            images = torch.empty(count, *one.shape, dtype=torch.uint8)
        if one.shape != images.shape[1:]:
            text = f"image {i} is {_sides(one)}, image 0 is {_sides(images[0])}; all need one size: resize them there"
            raise _wrong(spec, split, text)
        images[i] = one
        labels.append(label)
    return images, labels


def _one(image: Any, spec: str, split: str, i: int) -> Tensor:
    """uint8 [C, H, W] of one image."""
    if type(image).__module__.startswith("PIL."):
        from .pictures import plain

        image = np.asarray(plain(image))
    if not isinstance(image, (Tensor, np.ndarray)) or image.ndim not in (2, 3):
        form = f"{type(image).__name__}{list(image.shape) if hasattr(image, 'shape') else ''}"
        raise _wrong(spec, split, f"image {i} is {form}; possible: [C, H, W], [H, W], [H, W, C] or a Pillow picture")
    return _images(image[None], spec, split)[0]


def _images(pixels: Any, spec: str, split: str) -> Tensor:
    """uint8 [N, C, H, W], contiguous."""
    if isinstance(pixels, np.ndarray) and pixels.dtype == object:
        raise _wrong(spec, split, "images are an array of objects; possible: uint8, or float from 0 to 1")
    images = torch.from_numpy(np.array(pixels)) if isinstance(pixels, np.ndarray) else pixels  # a copy: ours to keep
    if not isinstance(images, Tensor):
        raise _wrong(spec, split, f"images are {type(images).__name__}; possible: a tensor or an array")
    images = images.detach().cpu()
    if images.dim() == 3:
        images = images[:, None]
    if images.dim() != 4 or not images.numel():
        raise _wrong(spec, split, f"images are {list(images.shape)}; possible: [N, C, H, W], [N, H, W], [N, H, W, C]")
    if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if images.dtype == torch.bool:
        images = images.to(torch.uint8) * 255
    if images.is_floating_point():
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):  # NaN is neither
            text = f"float pixels from {low:.3g} to {high:.3g}; possible: 0 to 1 (they are normalized later), or uint8"
            raise _wrong(spec, split, text)
        images = (images * 255).round().to(torch.uint8)
    if images.dtype != torch.uint8:
        raise _wrong(spec, split, f"images are {_kind(images)}; possible: uint8, or float from 0 to 1")
    return images.contiguous()


def _labels(values: Any, count: int, spec: str, split: str) -> Tensor:
    """int64 [N], at least 0."""
    try:
        labels = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except TypeError:
        raise _wrong(spec, split, f"labels are {type(values).__name__}; possible: integers from 0") from None
    labels = labels.detach().cpu()
    if labels.dim() != 1 or len(labels) != count:
        raise _wrong(spec, split, f"labels are {list(labels.shape)} for {count:,} images; possible: [{count}]")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise _wrong(spec, split, f"labels are {_kind(labels)}; possible: integers from 0")
    if int(labels.min()) < 0:
        raise _wrong(spec, split, f"label {int(labels.min())}; possible: integers from 0")
    return labels.to(torch.int64)


def _wrong(spec: str, split: str, text: str, code: str = "own-data") -> InputError:
    return InputError(f'data {spec}: {spec.rpartition(":")[2]}("{split}"): {text}', code=code, given=spec)


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _sides(image: Tensor) -> str:
    return "x".join(map(str, image.shape))
