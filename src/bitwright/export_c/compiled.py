"""The C file compiled and run here, where there is a compiler."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from torch import Tensor

from bitwright.errors import InputError

FLAGS = ("-std=c99", "-O2")


def compiler() -> str | None:
    """The program that CC names, else cc, gcc or clang."""
    wanted = os.environ.get("CC")
    return next(
        (found for name in ([wanted] if wanted else ["cc", "gcc", "clang"]) if (found := shutil.which(name))), None
    )


def run(source: str, header: str, stem: str, function: str, x: Tensor, outputs: int) -> np.ndarray | None:
    """The answers [N, outputs] of a C file for a batch; None where there is no compiler."""
    program = compiler()
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{stem}.c"
        path.with_suffix(".h").write_text(header, "utf-8")
        path.write_text(source, "utf-8")
        library = Path(folder) / "net.so"
        made = subprocess.run(
            [program, *FLAGS, "-fPIC", "-shared", "-o", str(library), str(path)], capture_output=True, text=True
        )
        if made.returncode:
            said = made.stderr.strip().splitlines() or [f"exit status {made.returncode}"]
            first = next((line for line in said if "error" in line), said[0])
            raise InputError(f"export c: {program} does not compile the file: {first[:300]}", code="export-run")
        call = ctypes.CDLL(str(library))[function]
        given = np.ascontiguousarray(x.numpy())
        found = np.empty((len(given), outputs), np.float32)
        for one, answer in zip(given, found, strict=True):
            if call(ctypes.c_void_p(one.ctypes.data), ctypes.c_void_p(answer.ctypes.data)):
                answer[:] = np.nan
        return found
