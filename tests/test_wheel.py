"""The wheel: one file for every Python of a platform, small, and its kernels run on another Python than built it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST = 3_000_000  # bytes
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


def others() -> list[str]:
    """Interpreters of other versions than this one: on PATH, or kept by pyenv."""
    mine = f"python3.{sys.version_info.minor}"
    found = [p for name in NAMES if name != mine and (p := shutil.which(name))]
    for folder in sorted((Path.home() / ".pyenv" / "versions").glob("3.1[1-4].*")):
        if not folder.name.startswith(f"3.{sys.version_info.minor}."):
            found.append(str(folder / "bin" / "python"))
    return found


@pytest.mark.slow
def test_the_wheel_runs_on_another_python(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("src", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / "source").mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "-w", str(tmp_path / "wheels")]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = (tmp_path / "wheels").iterdir()
    name, _, python, abi, platform = wheel.stem.split("-")
    assert (name, python, abi) == ("bitwright", "py3", "none")
    assert wheel.stat().st_size < MOST
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    native = (tmp_path / "site" / "bitwright" / "engine" / "libbitwright_core.so").is_file()
    assert native == (shutil.which("c++") is not None) == (platform != "any")
    assert not list((tmp_path / "site").rglob("*.cpp"))
    if not native or not others():
        pytest.skip("no compiler, or no other Python here")
    for interpreter in others():
        done = subprocess.run(
            [interpreter, "-c", RUN, str(tmp_path / "site")], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
