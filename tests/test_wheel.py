"""The wheel: one file for every Python of a platform, small, and its kernels run on another Python than built it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST = 3_000_000  # bytes
CORE = "bitwright/engine/libbitwright_core.so"
NAMES = [f"python3.{minor}" for minor in range(11, 15)]

RUN = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
import bitwright
library = ctypes.CDLL(sys.argv[1] + "/bitwright/engine/libbitwright_core.so")
library.bw_isa.restype = ctypes.c_char_p
codes = (ctypes.c_uint8 * 3)(1, 0, 1)
words = (ctypes.c_uint32 * 1)()
call = library.bw_bytes_to_bits
call.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 4, ctypes.c_void_p]
assert call(codes, 1, 1, 3, 1, words) == 0 and words[0] == 0b101
print(bitwright.__version__, library.bw_isa().decode(), sys.version_info[:2])
"""

PLAIN = """
import sys
sys.path.insert(0, sys.argv[1])
import warnings
import torch
import bitwright as bw
assert bw.__file__.startswith(sys.argv[1])
conv = bw.nn.Conv2d(3, 4, 3, bias=False, w="bwn", x="sign").eval()
x = torch.randn(2, 3, 6, 6)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    done = bw.convert(conv, x)
assert done.model.backend == "reference" and torch.equal(done.model(x), conv(x))
assert sum("native core not found" in str(w.message) for w in said) == 1
"""


def others() -> list[str]:
    """Interpreters of other versions than this one, on PATH or kept by pyenv; a name that does not run is none."""
    mine = sys.version_info[:2]
    asked = [p for name in NAMES if (p := shutil.which(name))]
    asked += [str(p) for p in sorted((Path.home() / ".pyenv" / "versions").glob("3.1[1-4].*/bin/python"))]
    found: dict[str, str] = {}
    for path in asked:
        text = "import sys; print(*sys.version_info[:2])"
        done = subprocess.run([path, "-c", text], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.split() != [str(n) for n in mine]:
            found.setdefault(done.stdout, path)
    return list(found.values())


def built(folder: Path, **environment: str) -> tuple[Path, Path]:
    """The wheel of this source, and a folder with what it holds."""
    source = folder / "source"
    source.mkdir()
    for name in ("src", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "-w", str(folder / "wheels")]
    done = subprocess.run(build, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = (folder / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    name, _, python, abi, _ = wheel.stem.split("-")
    assert (name, python, abi) == ("bitwright", "py3", "none")
    assert wheel.stat().st_size < MOST
    assert not list((folder / "site").rglob("*.cpp"))
    return wheel, folder / "site"


@pytest.mark.slow
def test_the_wheel_runs_on_another_python(tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no compiler here")
    wheel, site = built(tmp_path)
    assert not wheel.stem.endswith("-any") and (site / CORE).is_file()
    if not others():
        pytest.skip("no other Python here")
    for interpreter in others():
        done = subprocess.run([interpreter, "-c", RUN, str(site)], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_without_a_compiler_the_wheel_computes_in_plain_torch(tmp_path: Path) -> None:
    _, site = built(tmp_path, CXX="/nonexistent/c++")
    assert not (site / CORE).exists()
    environment = {k: v for k, v in os.environ.items() if k not in ("BITWRIGHT_LIBRARY", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(site)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
