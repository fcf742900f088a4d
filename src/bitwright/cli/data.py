"""`bitwright data check|get|show|pack`: what is there, how to get what is not, what is in it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitwright.cli.output import Output
from bitwright.errors import Negative

if TYPE_CHECKING:
    from bitwright.data import FileStatus

IMAGES = {  # in the published files: (train, test)
    "digits": (1437, 360),
    "mnist": (60000, 10000),
    "fashion-mnist": (60000, 10000),
    "cifar10": (50000, 10000),
    "cifar100": (50000, 10000),
    "svhn": (73257, 26032),
    "stl10": (5000, 8000),
    "imagenet": (1281167, 50000),
}
Root = Annotated[
    str | None, typer.Option("--root", "--data-root", help="Where the sets lie. [default: BITWRIGHT_DATA]")
]

app = typer.Typer(rich_markup_mode=None, invoke_without_command=True)


@app.callback()
def data(ctx: typer.Context) -> None:
    """Look for data sets, download them, describe them."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command(short_help="Which data sets are there, whole, and where.")
def check(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="One set. [default: all]")] = None,
    root: Root = None,
) -> None:
    """List the data sets: which are there, whole, and where. Each file's MD5 is compared with the published one.

    Exit code 1 where a file is damaged, or where the set asked for is not there.
    """
    out: Output = ctx.obj
    out.head("data check: reading the files")
    from bitwright import data

    names = (name,) if name is not None else data.names()
    found = {n: _summary(n, data.check(n, root)) for n in names}
    out.data["sets"] = [{"name": n, **row} for n, row in found.items()]
    lines = [(n, r["status"], _count(n) if r["status"] == "ok" else "", r["where"]) for n, r in found.items()]
    out.table(("set", "status", "train / test", "where"), lines)
    missing = [n for n, r in found.items() if r["status"] == "missing"]
    broken = [n for n, r in found.items() if r["status"] in ("damaged", "partial")]
    if broken or (name is not None and missing):
        out.exit_code = 1
        out.status = found[(broken or missing)[0]]["status"]
    for n in broken + missing[:1]:
        out.next(f"bitwright data get {n}", "downloads it, checked")


def _summary(name: str, rows: list[FileStatus]) -> dict[str, Any]:
    """One status for all files of a set; `where` says what a person needs."""
    files = [{"path": r.path, "status": r.status, "detail": r.detail} for r in rows]
    bad = [r for r in rows if r.status != "ok"]
    if name == "digits":
        where = "embedded"
    elif not bad:
        where = f"{_folder(rows[0].path)}  {'counted' if name == 'imagenet' else 'md5 as published'}"
    elif len(rows) == 1:
        where = f"looked in {rows[0].path}. get it: bitwright data get {name}"
    elif name == "imagenet":
        where = "; ".join(f"{r.path}: {r.detail}" for r in bad)
    else:
        where = f"{bad[0].path} is {bad[0].status}" + (f", and {len(bad) - 1} more" if len(bad) > 1 else "")
    worst = {r.status for r in bad}
    status = "ok" if not bad else "damaged" if "damaged" in worst else "missing" if len(rows) == 1 else "partial"
    return {"status": status, "where": where, "files": files}


def _folder(path: str) -> str:
    return str(Path(path).parent)


def _count(name: str) -> str:
    return " / ".join(f"{n:,}" for n in IMAGES.get(name, ()))


@app.command(short_help="Download a data set, checked by MD5.")
def get(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="mnist, fashion-mnist, cifar10, cifar100, svhn, svhn-extra or stl10.")],
    root: Root = None,
) -> None:
    """Download a data set from its published address: checked by MD5, and in place only when complete.

    Complete files are not fetched again; after an interruption the same command goes on where it stopped.
    """
    out: Output = ctx.obj
    from bitwright.data.get import get as fetch

    if name == "digits":
        out.verdict("done  digits is embedded: nothing to download")
        return
    shown = _Shown(out)
    folder = fetch(name, root, shown)
    shown.end()
    from bitwright import data

    kind = name.removesuffix("-extra")
    bad = [row for row in data.check(kind, folder_root(folder, kind)) if row.status != "ok" and kind == name]
    if bad:
        raise Negative(f"data get {name}: {bad[0].path} is {bad[0].status} after all", code="data-damaged", given=name)
    out.data["get"] = {"name": name, "folder": str(folder), "downloaded": bool(shown.file)}
    out.verdict(
        f"done  {name}: {_count(name) or '531,131'} images in {folder}" + ("" if shown.file else ", was there already")
    )
    out.next(f"bitwright data show {kind}{'' if root is None else f' --root {root}'}", "what is in it")


def folder_root(folder: Any, name: str) -> str:
    """The root above the folder of a set."""
    from bitwright.data.known_files import LAYOUTS

    return str(folder).removesuffix(LAYOUTS[name].folder) or "."


class _Shown:
    """Progress: one moving line on a terminal, a line per file and every 30 s in a pipe."""

    def __init__(self, out: Output, unit: str = "MB") -> None:
        self.unit = unit
        self.out, self.said, self.file, self.drawn = out, 0.0, "", False

    def __call__(self, file: str, done: int, size: int) -> None:
        new = file != self.file
        self.file = file
        now = time.monotonic()
        if new or now - self.said >= (0.2 if self.out.live else 30) or done == size:
            self.said = now
            if self.unit == "images":
                bar = "#" * (20 * done // max(size, 1))
                share = f"[{bar:<20}] {done:,} of {size:,} images"
            else:
                share = f"{100 * done // size} % of {size / 1e6:.1f} MB" if size else f"{done / 1e6:.1f} MB"
            self._put(f"{file}  {share}")

    def _put(self, text: str) -> None:
        if self.out.live:
            import sys

            self.drawn = True
            print(f"\r{text:<70}", end="", file=sys.stderr, flush=True)
        else:
            self.out.note(text)

    def end(self) -> None:
        if self.drawn:
            import sys

            print(file=sys.stderr, flush=True)


@app.command(short_help="Counts, shape, classes, mean, and loader speed.")
def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A set, `folder` with --root, or file.py:fn.")],
    root: Root = None,
    size: Annotated[int, typer.Option(min=1, help="Side to which the pictures of a folder are resized.")] = 32,
    transform: Annotated[
        str | None, typer.Option(help="Of imagenet, or of a folder read batch by batch: squash256-crop227, ...")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Threads that decode pictures.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images per batch, for the speed of the loader.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.01, help="How long to measure it.")] = 1.0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out pictures that cannot be read.")] = False,
) -> None:
    """Print counts, shape, classes, mean and standard deviation of a data set, and how fast it loads.

    imagenet, and a folder with --transform: the speed of each format that is there, class folders and LMDB.
    """
    out: Output = ctx.obj
    out.head(f"data show {name}: reading")
    import torch

    from bitwright import data

    given = {"size": size, "transform": transform, "workers": workers, "skip_bad": skip_bad}
    formats = formats_of(name, root, transform)
    sets = {f: [data.load(name, root, s, format=f, **given) for s in ("train", "test")] for f in formats}
    train, test = sets[formats[0]]
    rates = {f: data.loader_rate(pair[0], min(batch, len(pair[0])), seconds=seconds) for f, pair in sets.items()}
    classes = train.labels.bincount(minlength=len(train.classes)).tolist()
    shape = list(train.shape)
    memory = isinstance(train, data.Dataset)
    out.data["set"] = {
        "name": name,
        "train_images": len(train),
        "test_images": len(test),
        "shape": shape,
        "classes": list(train.classes),
        "train_images_per_class": classes,
        "mean": list(train.mean),
        "std": list(train.std),
        "bytes": (len(train) + len(test)) * math.prod(shape) if memory else 0,
        "loader_images_per_s": rates[formats[0]],
        "threads": torch.get_num_threads(),
    }
    if not memory:
        out.data["set"] |= {"workers": workers, "formats": rates}
    out.result(f"{name}  {len(train):,} train / {len(test):,} test images of {'x'.join(map(str, shape))}, uint8")
    few, many = min(classes, default=0), max(classes, default=0)
    per = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    listed = train.classes if len(train.classes) <= 100 else (*train.classes[:20], "...")
    out.prose(f"classes  {len(train.classes)}, {per} training images each: {', '.join(listed)}", 9)
    out.result(
        f"mean     {', '.join(f'{v:.4f}' for v in train.mean)}     std  {', '.join(f'{v:.4f}' for v in train.std)}"
    )
    out.result(f"augment  {train.augmentation}")
    bad = [*train.skipped, *test.skipped]
    if bad:
        out.data["set"]["skipped"] = [{"picture": name, "why": why} for name, why in bad]
        out.prose(f"skipped  {len(bad):,}: {', '.join(name for name, _ in bad)}", 9)
    for form, rate in rates.items():
        how = "" if memory else f"{form}, {workers} workers, "
        out.result(
            f"loader   {rate:,.0f} img/s, {how}batches of {min(batch, len(train))}, augmented, "
            f"{torch.get_num_threads()} threads"
        )


def formats_of(name: str, root: str | None, transform: str | None) -> list[str]:
    """Formats of a streamed set that are there; ["folder"] where there is no choice."""
    from bitwright.data.imagenet import candidates, part_of

    if name != "imagenet" and (name != "folder" or transform is None):
        return ["folder"]
    for base in candidates(name, root):
        if found := [f for f in ("folder", "lmdb") if part_of(base, "train", f)]:
            return found
    return ["folder"]  # loading says what is missing


@app.command(short_help="Write class folders into LMDBs and read them back.")
def pack(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="A folder with train/CLASS/* and val/CLASS/*, or imagenet.")],
    out: Annotated[Path, typer.Argument(help="Where train_lmdb and val_lmdb go; may be the source.")],
    size: Annotated[int | None, typer.Option(help="Squash pictures to this side. [default: files as they are]")] = None,
    quality: Annotated[int | None, typer.Option(help="Of the JPEGs with --size. [default: 95]")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="With --size: pixels instead of JPEGs.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out pictures that cannot be read.")] = False,
) -> None:
    """Write class folders into LMDBs, one file per split, and read all back.

    After a break the same command goes on. Files as they are: batches bit for bit those of the folder. Records are
    Caffe's Datum.
    """
    screen: Output = ctx.obj
    import shlex

    from bitwright.data.pack import pack as write

    shown = _Shown(screen, "images")
    done = write(source, out, size=size, quality=quality, raw=raw, skip_bad=skip_bad, progress=shown)
    shown.end()
    screen.data["pack"] = [
        {
            "folder": str(d.folder),
            "images": d.images,
            "written": d.written,
            "bytes": d.bytes,
            "skipped": dict(d.skipped),
        }
        for d in done
    ]
    for d in done:
        how = "was there already" if not d.written else f"{d.written:,} written now"
        screen.result(f"{d.folder}  {d.images:,} images, {d.bytes / 1e6:,.1f} MB, {how}")
        if d.skipped:
            screen.prose(f"skipped  {len(d.skipped):,}: {', '.join(name for name, _ in d.skipped)}", 9)
    screen.verdict("done  every record read back: number, label, checksum")
    screen.next(
        f"bitwright data show folder --root {shlex.quote(str(out))} --transform squash256-crop227", "how fast it loads"
    )
