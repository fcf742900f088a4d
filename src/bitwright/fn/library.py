"""Finding and opening `libbitwright_core`. Each floor that calls it declares the functions it needs."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ABI = 11
NAME = "libbitwright_core.dylib" if sys.platform == "darwin" else "libbitwright_core.so"


def open_core(signatures: Mapping[str, tuple[Any, list[Any]]]) -> tuple[ctypes.CDLL | None, str]:
    """The library with these functions declared, or None and the reason. BITWRIGHT_LIBRARY names a development build."""
    override = os.environ.get("BITWRIGHT_LIBRARY")
    if override:
        candidates = [Path(override)]
    else:  # an editable install spreads the package over two folders
        candidates = [Path(folder) / "engine" / NAME for folder in sys.modules["bitwright"].__path__]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        return None, f"native core not found ({candidates[0]}); the package was built without a C++ compiler"
    try:
        lib = ctypes.CDLL(str(path))
        common = {
            "bw_abi_version": (ctypes.c_int, []),
            "bw_last_error": (ctypes.c_char_p, []),
            "bw_isa": (ctypes.c_char_p, []),
        }
        for name, (result, arguments) in common.items():
            getattr(lib, name).restype, getattr(lib, name).argtypes = result, arguments
        if lib.bw_abi_version() != ABI:  # first: an older library lacks functions
            return None, f"native core {path} has ABI {lib.bw_abi_version()}, this package needs {ABI}"
        for name, (result, arguments) in signatures.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return None, f"native core {path} cannot be used: {error}"
    if lib.bw_isa() is None:
        return None, f"native core: {lib.bw_last_error().decode()}"
    return lib, ""
