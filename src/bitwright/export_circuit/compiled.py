"""The C form, compiled and run here where there is a compiler."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from bitwright.errors import InputError
from bitwright.export_c.compiled import compiler
from bitwright.export_circuit.samples import columns

FLAGS = ("-std=c99", "-O1", "-fPIC", "-shared")


def run(source: bytes, name: str, bits: np.ndarray, outputs: int) -> tuple[list[int], str] | None:
    """(every output bit, a whole number whose bit k is sample k; the compiler's name); None where there is no compiler."""
    program = compiler()
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path, library = Path(folder) / f"{name}.c", Path(folder) / "circuit.so"
        path.write_bytes(source)
        made = subprocess.run([program, *FLAGS, "-o", str(library), str(path)], capture_output=True, text=True)
        if made.returncode:
            said = made.stderr.strip().splitlines() or [f"exit status {made.returncode}"]
            first = next((line for line in said if "error" in line), said[0])
            raise InputError(f"export circuit: {program} does not compile the file: {first[:300]}", code="export-run")
        call = ctypes.CDLL(str(library))[f"{name}_circuit"]
        samples, inputs = bits.shape
        words = np.zeros(((samples + 63) // 64 * 64, inputs), np.uint8)
        words[:samples] = bits
        given = np.packbits(words.reshape(-1, 64, inputs), axis=1, bitorder="little")
        given = np.ascontiguousarray(given.transpose(0, 2, 1)).view("<u8").astype(np.uint64)
        found = np.zeros((len(given), outputs, 1), np.uint64)
        for x, y in zip(given, found, strict=True):
            call(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data))
    rows = np.unpackbits(found.astype("<u8").view(np.uint8), axis=2, bitorder="little")
    return columns(rows.transpose(0, 2, 1).reshape(-1, outputs)[:samples]), Path(program).name
