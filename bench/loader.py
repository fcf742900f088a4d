"""How fast sets too large for memory are read, by format, transform and workers; and their memory over five epochs.

    python bench/loader.py ROOT [--out docs/results/loader.csv] [--transform squash108-crop96] [--seconds 4]

ROOT has train/CLASS/*.JPEG and val/CLASS/*.JPEG. One row per case; the median of three passes of --seconds each, taken
in turn. `threads` is what the loader does; `processes` is an alternative that the loader does not use: it decodes the same pictures
in a pool of forked processes, which return the pixels through shared memory. Anonymous memory in use is measured in a process
of its own, in MB after each of five whole epochs with two workers. Load is that of the machine at the start: other work on
it slows all rows down.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import torch

from bitwright import data
from bitwright.data.pack import pack
from bitwright.data.streamed import Streamed
from bitwright.measure.machine import machine

ROOT = Path(__file__).resolve().parent.parent
BATCH = 128
_set: Streamed | None = None
_memory: SharedMemory | None = None


def threads(images: Streamed, workers: int, seconds: float) -> float:
    from dataclasses import replace

    return data.loader_rate(replace(images, workers=workers), BATCH, seconds=seconds)


def _decode(task: tuple[int, list[int]]) -> None:
    """In a worker process: pictures into the shared memory from row `task[0]` on."""
    assert _set is not None and _memory is not None
    side = _set.transform.side()
    out: np.ndarray = np.ndarray((BATCH, side, side, 3), np.uint8, _memory.buf)
    for k, i in enumerate(task[1]):
        row = int(_set.rows[i])
        out[task[0] + k] = _set.transform.pixels(_set.source.read(row), _set.source.where(row), 1, i)


def processes(images: Streamed, workers: int, seconds: float) -> float:
    """The same steps except for the shuffle: decode, copy out, crop and mirror, to float."""
    global _set, _memory
    side, size = images.transform.side(), images.transform.size
    _set, _memory = images, SharedMemory(create=True, size=BATCH * side * side * 3)
    done, place = 0, (torch.zeros(BATCH, 2, dtype=torch.int64), torch.zeros(BATCH, dtype=torch.bool))
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            first = done % (len(images) - BATCH)
            tasks = [(k, list(range(first + k, first + k + 8))) for k in range(0, BATCH, 8)]
            pool.map(_decode, tasks, chunksize=1)
            block = np.array(np.ndarray((BATCH, side, side, 3), np.uint8, _memory.buf))
            x, _ = images.put(torch.from_numpy(block).permute(0, 3, 1, 2), place)
            assert x.float().mul_(0.01).shape[-1] == size
            done += BATCH
        rate = done / (time.perf_counter() - start)
    _memory.close()
    _memory.unlink()
    _set = _memory = None
    return rate


MEMORY = """
import ctypes, sys
from bitwright import data
images = data.load("folder", sys.argv[1], transform=sys.argv[2], format=sys.argv[3], workers=2)
for epoch in range(5):
    for x, y in images.batches(128, shuffle=True, augment=True, epoch=epoch):
        pass
    x = y = None
    ctypes.CDLL(None).malloc_trim(0)  # what is in use, not what the C library keeps for later
    with open("/proc/self/status") as file:
        print(next(int(line.split()[1]) // 1024 for line in file if line.startswith("RssAnon")))
"""


def memory(root: Path, transform: str, format: str) -> str:
    command = [sys.executable, "-c", MEMORY, str(root), transform, format]
    return " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def main() -> None:
    parser = argparse.ArgumentParser(description="Images per second of large sets, by format and workers.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "loader.csv")
    parser.add_argument("--transform", default="squash108-crop96")
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    facts = {**machine(1), "load": f"{os.getloadavg()[0]:.1f}", "cores": os.cpu_count()}
    side = int(args.transform.split("-")[0].removeprefix("squash")) if args.transform.startswith("squash") else None
    with tempfile.TemporaryDirectory() as place:
        roots = {"folder": args.root, "lmdb, files as they are": Path(place) / "files"}
        pack(args.root, roots["lmdb, files as they are"])
        if side:
            roots["lmdb, raw pixels"] = Path(place) / "raw"
            pack(args.root, roots["lmdb, raw pixels"], size=side, raw=True)
        measures: dict[tuple[str, str, int], Callable[[], float]] = {}
        for name, root in roots.items():
            images = data.load("folder", root, transform=args.transform, format=name.split(",")[0])
            assert isinstance(images, Streamed)
            for workers in (0, 1, 2, 4):
                measures[name, "threads", workers] = lambda i=images, w=workers: threads(i, w, args.seconds)
            if name == "folder":
                for workers in (1, 2, 4):
                    measures[name, "processes", workers] = lambda i=images, w=workers: processes(i, w, args.seconds)
        found: dict[tuple[str, str, int], list[float]] = {key: [] for key in measures}
        for _ in range(3):
            for key, measure in measures.items():
                found[key].append(measure())
        used = {name: memory(root, args.transform, name.split(",")[0]) for name, root in roots.items()}
    columns = ("format", "transform", "by", "workers", "images_per_s", "low", "high", "anonymous_mb_per_epoch")
    with open(args.out, "a" if args.out.exists() else "w", newline="", encoding="utf-8") as file:
        more = ("batch", "cores", "load", "cpu", "torch", "bitwright", "date")
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow((*columns, *more))
        for (name, how, workers), rates in found.items():
            middle = f"{statistics.median(rates):.0f}"
            row = (name, args.transform, how, workers, middle, f"{min(rates):.0f}", f"{max(rates):.0f}")
            flat = used[name] if (how, workers) == ("threads", 2) else ""
            writer.writerow((*row, flat, BATCH, *(facts[key] for key in more[1:])))
            print(f"{name:25} {how:9} {workers} workers  {middle:>6} img/s  {flat}", flush=True)


if __name__ == "__main__":
    main()
