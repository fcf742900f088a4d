"""`bitwright data check|get|show`: what is there, how to get what is not, what is in it."""

from __future__ import annotations

import time
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
}
Root = Annotated[
    str | None, typer.Option("--root", "--data-root", help="Where the sets lie. [default: BITWRIGHT_DATA]")
]

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look for data sets, download them, describe them.")


@app.command()
def check(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="One set. [default: all]")] = None,
    root: Root = None,
) -> None:
    """List the data sets: which are there, whole, and where. Each file's MD5 is compared with the published one.

    Exit code 1 where a file is damaged, or where the set asked for is not there.
    """
    out: Output = ctx.obj
    out.note("data check: reading the files")
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
        where = f"{_folder(rows[0].path)}  md5 as published"
    elif len(rows) == 1:
        where = f"looked in {rows[0].path}. get it: bitwright data get {name}"
    else:
        where = f"{bad[0].path} is {bad[0].status}" + (f", and {len(bad) - 1} more" if len(bad) > 1 else "")
    worst = {r.status for r in bad}
    status = "ok" if not bad else "damaged" if "damaged" in worst else "missing" if len(rows) == 1 else "partial"
    return {"status": status, "where": where, "files": files}


def _folder(path: str) -> str:
    from pathlib import Path

    return str(Path(path).parent)


def _count(name: str) -> str:
    return " / ".join(f"{n:,}" for n in IMAGES.get(name, ()))


@app.command()
def get(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="mnist, fashion-mnist, cifar10 or cifar100.")],
    root: Root = None,
) -> None:
    """Download a data set from its published address: checked by MD5, and in place only when complete.

    What is there and whole is not fetched again; after a break the same command goes on where it stopped.
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

    bad = [row for row in data.check(name, folder_root(folder, name)) if row.status != "ok"]
    if bad:
        raise Negative(f"data get {name}: {bad[0].path} is {bad[0].status} after all", code="data-damaged", given=name)
    out.data["get"] = {"name": name, "folder": str(folder), "downloaded": bool(shown.file)}
    out.verdict(f"done  {name}: {_count(name)} images in {folder}" + ("" if shown.file else ", was there already"))
    out.next(f"bitwright data show {name}{'' if root is None else f' --root {root}'}", "what is in it")


def folder_root(folder: Any, name: str) -> str:
    """The root above the folder of a set."""
    from bitwright.data.files import LAYOUTS

    return str(folder).removesuffix(LAYOUTS[name].folder) or "."


class _Shown:
    """Progress: one moving line for a person, a line per file and every 30 s in a pipe."""

    def __init__(self, out: Output) -> None:
        self.out, self.said, self.file, self.drawn = out, 0.0, "", False

    def __call__(self, file: str, done: int, size: int) -> None:
        new = file != self.file
        self.file = file
        now = time.monotonic()
        if new or now - self.said >= (0.2 if self.out.live else 30) or done == size:
            self.said = now
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


@app.command()
def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A set, `folder` with --root, or file.py:fn.")],
    root: Root = None,
    size: Annotated[int, typer.Option(min=1, help="Side to which the pictures of a folder are resized.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Images per batch, for the speed of the loader.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.01, help="How long to measure it.")] = 1.0,
) -> None:
    """Print counts, shape, classes, mean and standard deviation of a data set, and how fast it loads."""
    out: Output = ctx.obj
    out.note(f"data show {name}: reading")
    import torch

    from bitwright import data

    train, test = (data.load(name, root, split, size=size) for split in ("train", "test"))
    rate = data.loader_rate(train, min(batch, len(train)), seconds=seconds)
    classes = train.labels.bincount(minlength=len(train.classes)).tolist()
    shape = list(train.images.shape[1:])
    out.data["set"] = {
        "name": name,
        "train_images": len(train),
        "test_images": len(test),
        "shape": shape,
        "classes": list(train.classes),
        "train_images_per_class": classes,
        "mean": list(train.mean),
        "std": list(train.std),
        "bytes": train.images.numel() + test.images.numel(),
        "loader_images_per_s": rate,
        "threads": torch.get_num_threads(),
    }
    out.result(f"{name}  {len(train):,} train / {len(test):,} test images of {'x'.join(map(str, shape))}, uint8")
    few, many = min(classes, default=0), max(classes, default=0)
    per = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    out.prose(f"classes  {len(train.classes)}, {per} training images each: {', '.join(train.classes)}", 9)
    out.result(
        f"mean     {', '.join(f'{v:.4f}' for v in train.mean)}     std  {', '.join(f'{v:.4f}' for v in train.std)}"
    )
    out.result(f"augment  shift by up to {train.pad} pixels{', mirror' if train.flip else ''}")
    out.result(
        f"loader   {rate:,.0f} img/s, batches of {min(batch, len(train))}, augmented, {torch.get_num_threads()} threads"
    )
