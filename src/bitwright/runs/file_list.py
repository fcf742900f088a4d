"""The files of a run directory, each with what it holds: the one list that `--force`, the documentation and tests go by."""

from __future__ import annotations

import shutil
from pathlib import Path

from bitwright.runs import result_tables as result_tables
from bitwright.runs import tables as tables  # these two declare them
from bitwright.runs.cells import TABLES

LOCK = "train.lock"  # only while a training runs; see `lock.py`

FILES = {
    "experiment.toml": "the experiment as run: overrides and defaults filled in",
    "command.txt": "the command line",
    "machine.json": "CPU, instruction sets, versions",
    "last.ckpt": "everything needed to go on ([resume](resume.md))",
    "model.safetensors": "the weights of the **last** epoch: results quote these",
    "best.safetensors": "the best epoch on held-out images, with `data.val`",
    "compute.safetensors": "nets with gates: the images of least and most work",
    "hybrid.toml": "from `analyze pca`: the recipe that follows, where no other place was given",
    "worst.safetensors": "the surest mistakes",
    "compressed.safetensors": "from `compress`: the net that it left",
    "packed.safetensors": "from `convert`: the packed net",
    "packed.onnx": "from `export onnx`: the packed net as ONNX",
    "packed.qonnx.onnx": "from `export qonnx`: the net as QONNX",
    "packed.c": "from `export c`: the packed net as a C program",
    "packed.h": "from `export c`: the header of `packed.c`",
    "packed.v": "from `export circuit`: the packed net as gates, in Verilog",
    "report.html": "from `report`: the page",
    "error.txt": "details of an internal error",
} | {table.file: table.holds() for table in TABLES}
FOLDERS = {
    "stages": "the net as each stage left it",
    "tensorboard": "curves and histograms",
    "code": "the Python files that the experiment named, and those they import from beside them",
}


def clear(path: Path, keep: tuple[str, ...] = ()) -> None:
    """Removes what a run wrote; anything else in the folder is the user's."""
    for name in FILES:
        if name not in keep:
            (path / name).unlink(missing_ok=True)
    for name in FOLDERS:
        if name not in keep:
            shutil.rmtree(path / name, ignore_errors=True)
