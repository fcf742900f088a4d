"""Data sets by name, read from the files that torchvision's downloads leave, without torchvision; and own data.

`digits` is always there; the others are looked for below the root argument, else BITWRIGHT_DATA (a path
list), else ~/.cache/bitwright. Nothing is downloaded here. Own data is a "folder" of pictures or "file.py:fn".
`imagenet`, and a folder with a transform, are read and decoded batch by batch; all others are held in memory.
"""

import difflib
import os
from dataclasses import dataclass
from typing import overload

from bitwright import usercode
from bitwright.errors import InputError
from bitwright.fn.pixels import PIXELS

from .cifar import read_batches, read_names
from .dataset import Batches, Dataset, loader_rate
from .digits import read_digits
from .folder import read_folder
from .function import read_function
from .idx import read_pair
from .imagenet import open_streamed
from .imagenet_check import FileStatus, check_imagenet
from .images import Images
from .known_files import LAYOUTS, find, folders, md5, member
from .stl10 import SPLITS as STL10_SPLITS
from .stl10 import files_of, read_stl10
from .streamed import Streamed
from .svhn import FILES as SVHN_FILES
from .svhn import read_svhn

__all__ = ["Batches", "Dataset", "FileStatus", "Images", "Streamed", "check", "load", "loader_rate", "names"]

Root = str | os.PathLike[str] | None


@dataclass(frozen=True)
class _Facts:
    """What the files do not say. mean and std are those of all training pixels, per channel, in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    classes: tuple[str, ...] = ()


_DIGITS = tuple("0123456789")
# Augmentation: color sets crop from 4 pixels of padding and mirror; a mirrored digit is not a digit, so gray
# sets only shift, by 2 pixels of 28 or 1 pixel of 8.
_FACTS = {
    "digits": _Facts(*PIXELS["digits"], pad=1, flip=False, classes=_DIGITS),
    "mnist": _Facts(*PIXELS["mnist"], pad=2, flip=False, classes=_DIGITS),
    "fashion-mnist": _Facts(
        *PIXELS["fashion-mnist"], pad=2, flip=False,
        classes=("T-shirt/top", "trouser", "pullover", "dress", "coat",
                 "sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    "cifar10": _Facts(
        *PIXELS["cifar10"], pad=4, flip=True,
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "cifar100": _Facts(*PIXELS["cifar100"], pad=4, flip=True),  # names: meta
    "svhn": _Facts(*PIXELS["svhn"], pad=4, flip=False, classes=_DIGITS),
    "stl10": _Facts(
        *PIXELS["stl10"], pad=12, flip=True,
        classes=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    ),
}  # fmt: skip
_CIFAR10_FILES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}


def names() -> tuple[str, ...]:
    """Sets that `load` knows.

    >>> names()
    ('digits', 'mnist', 'fashion-mnist', 'cifar10', 'cifar100', 'svhn', 'stl10', 'imagenet')
    """
    return (*_FACTS, "imagenet")


def splits(name: str) -> tuple[str, ...]:
    """The splits of a set. Those beyond train and test are for the Python interface.

    >>> splits("svhn")
    ('train', 'test', 'extra', 'train+extra')
    """
    return {"svhn": tuple(SVHN_FILES), "stl10": STL10_SPLITS}.get(name, ("train", "test"))


@overload
def load(
    name: str, root: Root = None, split: str = "train", *, verify: bool = False, size: int = 32, workers: int = 0,
    skip_bad: bool = False,
) -> Dataset: ...  # fmt: skip
@overload
def load(
    name: str, root: Root = None, split: str = "train", *, verify: bool = False, size: int = 32, workers: int = 0,
    transform: str | None, format: str = "folder", skip_bad: bool = False,
) -> Images: ...  # fmt: skip


def load(
    name: str,
    root: Root = None,
    split: str = "train",
    *,
    verify: bool = False,
    size: int = 32,
    workers: int = 0,
    transform: str | None = None,
    format: str = "folder",
    skip_bad: bool = False,
) -> Images:
    """One split ("train" or "test", see `splits`) of a set, in memory as uint8; CIFAR-100 with its 100 fine labels.

    name       one of `names()`; "folder": pictures below `root`, see `folder.read_folder`; "file.py:fn": what the
               user's fn(split) gives, see `function.read_function`
    verify     also compare the MD5 of each file of a named set with the published one (about 0.3 s for CIFAR)
    size       side in pixels to which the pictures of a folder in memory are resized
    transform  for "imagenet" [default: random-sized224], or for a folder that is to be read batch by batch: see
               `transform.Transform`; then also format "folder" or "lmdb", and `workers`, threads that decode. The
               result is a `Streamed`, which has everything of a `Dataset` but the pixels
    skip_bad   pictures of a folder or of imagenet that cannot be read are left out and named in `skipped`; else an error
               names all of them. Of what is read batch by batch, each picture is decoded once to find out

    >>> d = load("digits", split="test")
    >>> len(d), d.images.shape, d.images.dtype
    (360, torch.Size([360, 1, 8, 8]), torch.uint8)
    """
    streamed = name == "imagenet" or transform is not None or format != "folder"
    if streamed and name not in ("imagenet", "folder"):
        raise InputError(
            f"data {name}: transform and format are for imagenet and folder; {name} is held in memory",
            code="data-transform",
        )
    own = name == "folder" or usercode.is_own(name)
    if not own:
        _check_name(name)
    if split not in splits(name):
        raise InputError(f"data {name}: unknown split {split!r}; possible: {', '.join(splits(name))}")
    if streamed:
        return open_streamed(name, root, split, transform, format, workers, skip_bad)
    if size < 1:
        raise InputError(f"data {name}: size={size}; possible: at least 1")
    if own:
        return read_folder(root, split, size, skip_bad) if name == "folder" else read_function(name, split)
    facts = _FACTS[name]
    classes = facts.classes
    if name == "digits":
        images, labels = read_digits(split)
    else:
        folder = find(name, root)
        try:
            if name == "cifar10":
                paths = [member(name, folder, file) for file in _CIFAR10_FILES[split]]
                images, labels = read_batches(paths, b"labels", 10)
            elif name == "cifar100":
                paths = [member(name, folder, split), member(name, folder, "meta")]
                images, labels = read_batches(paths[:1], b"fine_labels", 100)
                classes = read_names(paths[1], b"fine_label_names", 100)
            elif name == "svhn":
                paths = [member(name, folder, f"{file}_32x32.mat") for file in SVHN_FILES[split]]
                images, labels = read_svhn(paths)
            elif name == "stl10":
                paths = [member(name, folder, file) for file in files_of(split)]
                images, labels = read_stl10(paths, split)
            else:
                stem = "train" if split == "train" else "t10k"
                parts = ("-images-idx3-ubyte", "-labels-idx1-ubyte")
                paths = [member(name, folder, stem + part) for part in parts]
                images, labels = read_pair(paths[0], paths[1], 10)
            if verify:
                for path in paths:
                    if md5(path) != LAYOUTS[name].md5[path.name.removesuffix(".gz")]:
                        raise InputError(f"{path} is damaged: its MD5 differs from the published one")
        except InputError as error:
            if error.code == "data-missing":
                raise
            remedy = f"Delete it and run: bitwright data get {name}"
            message = f"data {name}: {error}. {remedy}"
            raise InputError(message, code="data-damaged", given=name, remedy=remedy) from None
    return Dataset(name, images, labels, classes, facts.mean, facts.std, facts.pad, facts.flip)


def check(name: str, root: Root = None) -> list[FileStatus]:
    """Whether each file of a set is there and has the published MD5. Raises only for an unknown name.

    >>> check("digits")
    [FileStatus(name='digits', path='(scikit-learn)', status='ok', detail='')]
    """
    _check_name(name)
    if name == "digits":
        return [FileStatus(name, "(scikit-learn)", "ok")]
    if name == "imagenet":
        return check_imagenet(root)
    try:
        folder = find(name, root)
    except InputError:
        looked = ", ".join(map(str, folders(name, root)))
        return [FileStatus(name, looked, "missing", f"get it: bitwright data get {name}")]
    rows = []
    for file, expected in LAYOUTS[name].md5.items():
        try:
            path = member(name, folder, file)
        except InputError:
            if file in LAYOUTS[name].optional:
                continue
            rows.append(FileStatus(name, str(folder / file), "missing", f"get it: bitwright data get {name}"))
            continue
        found = md5(path)
        if found == expected:
            rows.append(FileStatus(name, str(path), "ok"))
        else:
            rows.append(FileStatus(name, str(path), "damaged", f"MD5 {found}, not {expected}"))
    return rows


def _check_name(name: str) -> None:
    if name not in names():
        close = difflib.get_close_matches(str(name), names(), 1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        own = "own data: folder, file.py:fn"
        raise InputError(f"data: unknown set {name!r}{hint} Known: {', '.join(names())}; {own}", code="data-unknown")
