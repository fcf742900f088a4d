"""Downloads of the published sets: only when asked, checked by MD5, moved into place when complete."""

import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bitwright.download import DownloadError, Progress, download
from bitwright.errors import InputError, unknown

from .known_files import LAYOUTS, md5, roots

LARGEST = 4 << 30  # bytes of one unpacked file; the largest of the sets has 2.8 billion


@dataclass(frozen=True)
class Archive:
    """One file to download: its name, its MD5, the addresses to try in order.

    members   files to take out of it -> their MD5, name in the archive as in the set's folder; a .gz holds one,
              and a download that is not an archive is the file itself
    """

    name: str
    md5: str
    addresses: tuple[str, ...]
    members: dict[str, str]


def _gz(name: str, folders: tuple[str, ...], digests: dict[str, str]) -> tuple[Archive, ...]:
    """The four files of an idx set, each packed by itself."""
    return tuple(
        Archive(f"{file}.gz", digest, tuple(f"{f}{file}.gz" for f in folders), {file: LAYOUTS[name].md5[file]})
        for file, digest in digests.items()
    )


def _tar(name: str, file: str, digest: str, more: dict[str, str]) -> tuple[Archive, ...]:
    folders = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
    return (Archive(file, digest, tuple(f + file for f in folders), {**LAYOUTS[name].md5, **more}),)


_SVHN = ("https://ufldl.stanford.edu/housenumbers/", "http://ufldl.stanford.edu/housenumbers/")
_STL10 = ("https://cs.stanford.edu/~acoates/stl10/", "http://ai.stanford.edu/~acoates/stl10/")


def _mat(*splits: str) -> tuple[Archive, ...]:
    """Files of SVHN, which are not packed."""
    found = []
    for split in splits:
        file = f"{split}_32x32.mat"
        digest = LAYOUTS["svhn"].md5[file]
        found.append(Archive(file, digest, tuple(f + file for f in _SVHN), {file: digest}))
    return tuple(found)


SOURCES: dict[str, tuple[Archive, ...]] = {
    "mnist": _gz(
        "mnist",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": _gz(
        "fashion-mnist",
        (
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        {
            "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": _tar(  # batches.meta is for torchvision; we do not read it
        "cifar10", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a",
        {"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
    ),
    "cifar100": _tar("cifar100", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", {}),
    "svhn": _mat("train", "test"),
    "svhn-extra": _mat("extra"),  # 1.3 GB that most trainings do without
    "stl10": (Archive(
        "stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb",
        tuple(f + "stl10_binary.tar.gz" for f in _STL10), LAYOUTS["stl10"].md5,
    ),),
}  # fmt: skip


def get(name: str, root: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """Downloads a set below `root` (else the last folder of BITWRIGHT_DATA, else ~/.cache/bitwright).

    Returns the folder of the set, laid out as torchvision's. Complete files are not fetched again; an
    interrupted download goes on where it stopped, if the server can. Files get their names only after their MD5 and
    that of their archive were right; nothing else of the archive is unpacked.
    Errors: `InputError`, in one line, without a network, with a wrong MD5, or on a full disk.
    """
    if name == "imagenet":
        raise InputError(
            "data get imagenet: its terms allow no download without an account: get the archives of ILSVRC 2012 from "
            "image-net.org and unpack them into ROOT/imagenet/train/WNID/*.JPEG and ROOT/imagenet/val/WNID/*.JPEG",
            code="data-manual",
            given=name,
        )
    if name not in SOURCES:
        raise unknown(f"data get: cannot get {name!r}", name, SOURCES, code="data-unknown", word="Possible")
    base, archives, name = roots(root)[-1], SOURCES[name], name.removesuffix("-extra")
    folder = base / LAYOUTS[name].folder
    try:
        base.mkdir(parents=True, exist_ok=True)
        for archive in archives:
            if not all(_whole(name, folder, file, digest) for file, digest in archive.members.items()):
                _fetch(name, archive, base, folder, progress or (lambda file, done, size: None))
    except OSError as error:
        raise InputError(
            f"data get {name}: {error.filename or folder}: {error.strerror or error}",
            code="data-write",
            given=str(folder),
        ) from None
    return folder


def _whole(name: str, folder: Path, file: str, digest: str) -> bool:
    """Whether the file that `load` would read is there and right."""
    packed = folder / f"{file}.gz"
    path = packed if LAYOUTS[name].zipped and packed.is_file() and not (folder / file).exists() else folder / file
    return path.is_file() and md5(path) == digest


def _fetch(name: str, archive: Archive, base: Path, folder: Path, progress: Progress) -> None:
    """One archive: download, check, unpack beside the target, check, move."""
    packed = base / f".{name}-{archive.name}"  # not in the folder of the set: half a set would hide another root's
    reasons = []
    for address in archive.addresses:
        try:
            download(
                address,
                f"md5:{archive.md5}",
                packed,
                lambda _, done, size: progress(archive.name, done, size),
                lambda needed: _check_space(name, base, needed),
            )
        except DownloadError as error:
            reasons.append(f"{address}: {error}")
            continue
        _unpack(name, archive, packed, base, folder)
        packed.unlink()
        return
    raise InputError(
        f"data get {name}: could not get {archive.name} ({'; '.join(reasons)}). "
        f"Online, the same command goes on; or put the files into {folder}",
        code="data-offline",
        given=name,
        remedy=f"bitwright data get {name}",
    )


def _check_space(name: str, base: Path, needed: int) -> None:
    free = shutil.disk_usage(base).free
    if needed * 2 > free:  # the archive and what comes out of it
        raise InputError(
            f"data get {name}: {base} has {free / 1e6:,.0f} MB free; about {needed * 2 / 1e6:,.0f} MB are needed. "
            "Give another --root",
            code="data-space",
            given=str(base),
        )


def _unpack(name: str, archive: Archive, part: Path, base: Path, folder: Path) -> None:
    """The expected members, checked, then moved; a crash leaves either the old or the new file."""
    with tempfile.TemporaryDirectory(dir=base, prefix=".bitwright-") as temporary:
        try:
            if archive.name.endswith(".tar.gz"):
                with tarfile.open(part, "r:gz") as tar:
                    for member in tar:
                        file = member.name.removeprefix("./").removeprefix(f"{folder.name}/")
                        if file in archive.members and member.isreg() and (source := tar.extractfile(member)):
                            _copy(source, Path(temporary) / file)
            elif archive.name.endswith(".gz"):
                with gzip.open(part) as source:
                    _copy(source, Path(temporary) / next(iter(archive.members)))
            else:
                with open(part, "rb") as source:
                    _copy(source, Path(temporary) / next(iter(archive.members)))
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _bad(name, archive, f"cannot be unpacked ({' '.join(str(error).split())})") from None
        for file, digest in archive.members.items():
            path = Path(temporary) / file
            if not path.is_file() or md5(path) != digest:
                raise _bad(name, archive, f"holds no {file} with the published MD5")
        folder.mkdir(parents=True, exist_ok=True)
        for file in archive.members:
            os.replace(Path(temporary) / file, folder / file)


class _Readable(Protocol):
    """A member of an archive, whichever module opened it."""

    def read(self, size: int, /) -> bytes: ...


def _copy(source: _Readable, target: Path) -> None:
    left = LARGEST
    with open(target, "wb") as file:
        while left > 0 and (block := source.read(1 << 20)):
            left -= len(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _bad(name: str, archive: Archive, what: str) -> InputError:
    return InputError(f"data get {name}: {archive.name} {what}; nothing was changed", code="data-damaged", given=name)
