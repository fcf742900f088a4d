"""A packed net as one C file: compiled here in several ways, it gives the packed net's bits."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import bitwright as bw

STRICT = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
COMPILERS = {"c99": ["gcc", "-std=c99"], "c++17": ["g++", "-std=c++17", "-x", "c++"], "clang": ["clang", "-std=c99"]}
SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compiler(name: str) -> list[str]:
    command = COMPILERS[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} on this machine")
    return command


def built(source: Path, *flags: str, with_: str = "c99") -> Path:
    out = source.with_suffix(".out")
    made = subprocess.run(
        [*compiler(with_), *STRICT, *flags, str(source), "-o", str(out)], capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stderr[:2000]
    return out


def self_check(source: Path, *flags: str, with_: str = "c99") -> int:
    program = built(source, "-DNET_SELF_CHECK", *flags, with_=with_)
    ran = subprocess.run([str(program)], capture_output=True, text=True, timeout=300)
    assert not ran.stderr, ran.stderr[:2000]
    return ran.returncode


def answers(source: Path, x: Tensor, outputs: int, function: str = "net_run") -> np.ndarray:
    """What the compiled file gives for each sample, through ctypes."""
    library = ctypes.CDLL(str(built(source, "-O2", "-shared", "-fPIC")))
    found = np.zeros((len(x), outputs), np.float32)
    for one, out in zip(np.ascontiguousarray(x.numpy()), found, strict=True):
        assert library[function](ctypes.c_void_p(one.ctypes.data), ctypes.c_void_p(out.ctypes.data)) == 0
    return found


def bits(x: np.ndarray | Tensor) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(x, np.float32)).view(np.uint32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The digits nets of the zoo as C files."""
    found = {}
    for name in ("digits-mlp-zero_one", "digits-mlp-dorefa-w2a2"):
        card, path = bw.zoo.card(name), tmp_path_factory.mktemp(name) / "net.c"
        data = bw.zoo.data(card)
        more = {"mean": data.mean, "std": data.std} if card.normalize else {}
        bw.export.c(bw.zoo.load(name), data.pictures(torch.arange(32)), path, **more)
        found[name] = path
    return found


@pytest.mark.parametrize("name", ["digits-mlp-zero_one", "digits-mlp-dorefa-w2a2"])
@pytest.mark.parametrize(("with_", "flags"), [
    *itertools.product(COMPILERS, (["-O0"], ["-O3"])),
    ("c99", SANITIZED), ("c++17", SANITIZED),
    ("c99", ["-std=gnu99", "-O3", "-march=native", "-ffp-contract=fast"]),  # must not fuse multiply and add
    ("c++17", ["-O3", "-march=native", "-ffp-contract=fast"]),
])  # fmt: skip
def test_self_check(exported: dict[str, Path], name: str, with_: str, flags: list[str]) -> None:
    assert self_check(exported[name], *flags, with_=with_) == 0


def test_self_check_finds_a_wrong_bit(exported: dict[str, Path], tmp_path: Path) -> None:
    """The third answer is changed by one bit: the check says 3."""
    source = exported["digits-mlp-zero_one"]
    text = source.read_text()
    start = text.index("{", text.index("net_check_out"))
    numbers = text[start + 1 : text.index("}", start)].split(",")
    numbers[2 * 10 + 4] = f" 0x{int(numbers[2 * 10 + 4].strip().rstrip('u'), 16) ^ 1:08X}u"
    changed = text[: start + 1] + ",".join(numbers) + text[text.index("}", start) :]
    (tmp_path / "net.c").write_text(changed)
    shutil.copy(source.with_suffix(".h"), tmp_path)
    assert self_check(tmp_path / "net.c") == 3


def test_all_test_images_and_random_pixels_have_the_nets_bits(exported: dict[str, Path]) -> None:
    name = "digits-mlp-zero_one"
    data, net = bw.zoo.data(bw.zoo.card(name)), bw.zoo.load(name)
    x = torch.cat([
        data.pictures(torch.arange(len(data))),
        torch.randint(0, 256, (500, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    ])  # fmt: skip
    assert np.array_equal(bits(answers(exported[name], x, 10)), bits(net(x)))


def test_the_same_net_gives_the_same_bytes(exported: dict[str, Path], tmp_path: Path) -> None:
    name = "digits-mlp-zero_one"
    x = bw.zoo.data(bw.zoo.card(name)).pictures(torch.arange(32))
    bw.export.c(bw.zoo.load(name), x, tmp_path / "net.c")
    for suffix in (".c", ".h"):
        assert (tmp_path / "net.c").with_suffix(suffix).read_bytes() == exported[name].with_suffix(suffix).read_bytes()
