"""Where the files of each set lie, and what they should contain."""

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from bitwright.errors import InputError

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # apt-get install dataset-fashion-mnist


@dataclass(frozen=True)
class Layout:
    """A folder below a root (as torchvision downloads it; "" is the root itself), the MD5 of each file's content, unpacked.

    optional   files that the usual splits do not need: they may be missing
    """

    folder: str
    md5: dict[str, str]
    zipped: bool = False  # the files may also be there as .gz
    fallback: Path | None = None  # a system folder that is read in place when no root has the set
    optional: tuple[str, ...] = ()


LAYOUTS = {
    "mnist": Layout(
        "MNIST/raw",
        {
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
        zipped=True,
    ),
    "fashion-mnist": Layout(
        "FashionMNIST/raw",
        {
            "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
            "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
            "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
        },
        zipped=True,
        fallback=DEBIAN_FASHION,
    ),
    "cifar10": Layout(
        "cifar-10-batches-py",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
    ),
    "cifar100": Layout(
        "cifar-100-python",
        {
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
    "svhn": Layout(
        "",
        {
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
            "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
        },
        optional=("extra_32x32.mat",),
    ),
    "stl10": Layout(
        "stl10_binary",
        {
            "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
            "train_y.bin": "5a34089d4802c674881badbb80307741",
            "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
            "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
            "unlabeled_X.bin": "5242ba1fed5e4be9e1e742405eb56ca4",
            "fold_indices.txt": "4bbf8cd098ab9f87fe03fbcb37c06b28",
        },
        optional=("unlabeled_X.bin", "fold_indices.txt"),
    ),
}


def roots(root: str | os.PathLike[str] | None) -> list[Path]:
    """Folders to look in: the argument, else BITWRIGHT_DATA (a path list), else ~/.cache/bitwright."""
    if root is not None:
        return [Path(root).expanduser()]
    listed = [Path(p).expanduser() for p in os.environ.get("BITWRIGHT_DATA", "").split(os.pathsep) if p]
    return listed or [Path.home() / ".cache" / "bitwright"]


def folders(name: str, root: str | os.PathLike[str] | None) -> list[Path]:
    """Folders where the set may lie, in the order tried; a system folder last, and only without `root`."""
    layout = LAYOUTS[name]
    last = [layout.fallback] if layout.fallback and root is None else []
    return [r / layout.folder for r in roots(root)] + last


def find(name: str, root: str | os.PathLike[str] | None) -> Path:
    """The first of `folders` that exists and is not empty; without a folder of its own, the first with a file of the set."""
    tried = folders(name, root)
    layout = LAYOUTS[name]
    for folder in tried:
        if folder.is_dir() and (
            any(folder.iterdir()) if layout.folder else any((folder / file).is_file() for file in layout.md5)
        ):
            return folder
    raise InputError(
        f"data {name}: not found in {', '.join(map(str, tried))}. "
        f"Set BITWRIGHT_DATA or --data-root, or run: bitwright data get {name}",
        code="data-missing",
        given=name,
        remedy=f"bitwright data get {name}",
    )


def member(name: str, folder: Path, file: str) -> Path:
    """The path of one file, plain or, where that is allowed, as .gz."""
    paths = [folder / file] + ([folder / f"{file}.gz"] if LAYOUTS[name].zipped else [])
    for path in paths:
        if path.is_file():
            return path
    raise InputError(
        f"data {name}: {folder} has no {' or '.join(p.name for p in paths)}. Run: bitwright data get {name}",
        code="data-missing",
        given=name,
        remedy=f"bitwright data get {name}",
    )


def md5(path: Path) -> str:
    """MD5 of the content, unpacked if `.gz`. A checksum against damage, not against an attacker."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except (OSError, EOFError, zlib.error) as error:
        return f"unreadable: {' '.join(str(error).split())}"
    return digest.hexdigest()
