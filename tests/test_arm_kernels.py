"""The wheel for 64-bit ARM, and its kernels on an emulator: each table against the portable one, its numbers against this machine's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from machines import emulated

pytest.importorskip("ziglang", reason="no compiler for other machines: pip install bitwright[cross]")
needs_tools = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("g++")), reason="no cmake or g++ to build the core"
)
pytestmark = [pytest.mark.slow, needs_tools]

ROOT = Path(__file__).parents[1]
DRIVER, CORE = ROOT / "tests/native/sanitizer_main.cpp", ROOT / "src/bitwright/csrc"
ROUNDS = "12"
MOST = 3_000_000  # bytes of a wheel
SYSTEM = Path("/usr/aarch64-linux-gnu")
EMULATOR = ("qemu-aarch64", "-L", str(SYSTEM), "-cpu")
WITHOUT_DOT, WITH_DOT = (*EMULATOR, "cortex-a53"), (*EMULATOR, "cortex-a76")
ZIG = (sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu.2.28", "-fPIC")


def done(*command: str | Path, **environment: str) -> str:
    env = {**os.environ, **environment}
    made = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=1200, env=env)
    assert made.returncode == 0, made.stderr[-3000:] + made.stdout[-1000:]
    return made.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel for ARM, what it holds (`site`), and the object files of its library (`objects`)."""
    folder = tmp_path_factory.mktemp("arm")
    script = ROOT / "tests/native/wheel_aarch64.sh"
    done(script, folder, folder / "objects", PYTHON=sys.executable)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder


def driver(out: Path, *parts: Path) -> Path:
    """The program of the sanitizers' check with a core for ARM."""
    if not SYSTEM.is_dir():
        pytest.skip("no C library for ARM: apt-get install libc6-arm64-cross")
    done(*ZIG, "-std=c++17", "-O1", f"-I{CORE}", DRIVER, *parts, "-o", out)
    return out


@pytest.fixture(scope="module")
def program(build: Path) -> Path:
    """With the library of the wheel."""
    library = build / "site/bitwright/engine/libbitwright_core.so"
    return driver(build / "driver", library, Path(f"-Wl,-rpath,{library.parent}"))


def test_the_wheel_for_arm_is_built(build: Path) -> None:
    """On glibc 2.28 or newer, with zig's C++ library inside."""
    (wheel,) = build.glob("*.whl")
    assert wheel.stem.endswith("-py3-none-manylinux_2_28_aarch64") and wheel.stat().st_size < MOST
    library = (build / "site/bitwright/engine/libbitwright_core.so").read_bytes()
    assert library[:4] == b"\x7fELF" and library[4] == 2 and int.from_bytes(library[18:20], "little") == 183  # aarch64
    versions = {tuple(map(int, v.split(b"."))) for v in re.findall(rb"GLIBC_(2\.[0-9.]+)\0", library)}
    assert versions and max(versions) <= (2, 28)
    assert b"libstdc++" not in library and b"\0neon_dot\0" in library and b"\0bw_available_isas\0" in library


@pytest.mark.parametrize(("processor", "names"), [(WITHOUT_DOT, "portable neon"), (WITH_DOT, "portable neon neon_dot")])
def test_every_table_equals_the_portable_one(program: Path, processor: tuple[str, ...], names: str) -> None:
    ended = emulated(processor, program, ROUNDS)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"ok: {ROUNDS} rounds, {names}; results ")


def test_arm_gives_the_numbers_of_this_machine(program: Path, tmp_path: Path) -> None:
    others = ("avx", "amx", "neon", "ort")  # tables of one processor, and onnxruntime's side
    sources = [path for path in sorted(CORE.glob("*.cpp")) if not path.stem.startswith(others)]
    flags = (
        "-std=c++17",
        "-O2",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wno-psabi",
        "-pthread",
    )
    done("g++", *flags, f"-I{CORE}", DRIVER, *sources, "-o", tmp_path / "driver")
    here, there = done(tmp_path / "driver", ROUNDS), emulated(WITH_DOT, program, ROUNDS).stdout
    results = [text.partition("results ")[2].split()[0] for text in (here, there)]
    assert results[0] == results[1]


def test_a_wrong_sum_is_found(build: Path) -> None:
    """The check can fail: with one product less in the dot product, the driver says so."""
    wrong = build / "wrong"
    shutil.copytree(CORE, wrong)
    source = wrong / "neon_dot.cpp"
    text = source.read_text()
    assert "sum + 128 * of_weights" in text
    source.write_text(text.replace("sum + 128 * of_weights", "sum + 127 * of_weights"))
    flags = ("-std=c++17", "-O3", "-mcpu=generic+dotprod", "-DBITWRIGHT_ARM=1", "-ffp-contract=off", "-fno-exceptions")
    done(*ZIG, "-c", *flags, source, "-o", build / "wrong.o")
    others = [p for p in sorted((build / "objects").rglob("*.o")) if p.name != "neon_dot.cpp.o"]
    ended = emulated(WITH_DOT, driver(build / "driver.wrong", *others, build / "wrong.o"), ROUNDS)
    assert ended.returncode == 1 and "neon_dot" in ended.stderr and "differs from portable" in ended.stderr
