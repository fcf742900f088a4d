"""The kernels for 64-bit ARM, on an emulator: each table against the portable one, and its numbers against this machine's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from linux_programs import emulated

pytest.importorskip("ziglang", reason="no compiler for other machines: pip install bitwright[cross]")
pytest.importorskip("unicorn", reason="no emulator of other machines: pip install bitwright[cross]")
needs_tools = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("g++")), reason="no cmake or g++ to build the core"
)
pytestmark = [pytest.mark.slow, needs_tools]

ROOT = Path(__file__).parents[1]
DRIVER, CORE = ROOT / "tests/native/sanitizer_main.cpp", ROOT / "src/bitwright/csrc"
ROUNDS = "12"
ZIG = f'#!/bin/sh\nexec "{sys.executable}" -m ziglang c++ -target aarch64-linux-musl "$@"\n'


def done(*command: str | Path) -> str:
    made = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=1200)
    assert made.returncode == 0, made.stderr[-3000:] + made.stdout[-1000:]
    return made.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core as a library for ARM, by the project's own build."""
    folder = tmp_path_factory.mktemp("arm")
    compiler = folder / "c++"
    compiler.write_text(ZIG)
    compiler.chmod(0o755)
    options = ("SYSTEM_NAME=Linux", "SYSTEM_PROCESSOR=aarch64", f"CXX_COMPILER={compiler}", "BUILD_TYPE=Release")
    done("cmake", "-S", ROOT, "-B", folder / "build", *(f"-DCMAKE_{option}" for option in options))
    done("cmake", "--build", folder / "build", "-j2")
    return folder


@pytest.fixture(scope="module")
def program(build: Path) -> Path:
    """The driver of the sanitizers' check, linked with the same object files."""
    objects = sorted((build / "build").rglob("*.o"))
    out = build / "driver"
    done(build / "c++", "-static", "-std=c++17", "-O1", f"-I{CORE}", DRIVER, *objects, "-o", out)
    return out


def test_the_library_for_arm_is_built(build: Path) -> None:
    header = (build / "build" / "libbitwright_core.so").read_bytes()[:20]
    assert header[:4] == b"\x7fELF" and header[4] == 2 and int.from_bytes(header[18:20], "little") == 183  # aarch64


@pytest.mark.parametrize(("dot", "names"), [(False, "portable neon"), (True, "portable neon neon_dot")])
def test_every_table_equals_the_portable_one(program: Path, dot: bool, names: str) -> None:
    code, said = emulated(program, ROUNDS, dot=dot)
    assert code == 0, said
    assert said.startswith(f"ok: {ROUNDS} rounds, {names}; results ")


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
    here = done(tmp_path / "driver", ROUNDS)
    assert here.partition("results ")[2] and emulated(program, ROUNDS, dot=True)[1].endswith(here.partition("; ")[2])


def test_a_wrong_sum_is_found(build: Path) -> None:
    """The check can fail: with one product less in the dot product, the driver says so."""
    wrong = build / "wrong"
    shutil.copytree(CORE, wrong)
    source = wrong / "neon_dot.cpp"
    text = source.read_text()
    assert "sum + 128 * of_weights" in text
    source.write_text(text.replace("sum + 128 * of_weights", "sum + 127 * of_weights"))
    flags = ("-std=c++17", "-O3", "-mcpu=generic+dotprod", "-DBITWRIGHT_ARM=1", "-ffp-contract=off", "-fno-exceptions")
    done(build / "c++", "-c", *flags, source, "-o", build / "wrong.o")
    others = [p for p in sorted((build / "build").rglob("*.o")) if p.name != "neon_dot.cpp.o"]
    out = build / "driver.wrong"
    done(build / "c++", "-static", "-std=c++17", "-O1", f"-I{CORE}", DRIVER, *others, build / "wrong.o", "-o", out)
    code, said = emulated(out, ROUNDS, dot=True)
    assert code == 1 and "neon_dot" in said and "differs from portable" in said
