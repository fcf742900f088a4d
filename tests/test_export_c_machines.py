"""C files on other machines: 64 and 32 bits, both orders of bytes, with and without a floating-point unit."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bitwright as bw
from machines import MACHINES, compiled, emulated
from native_programs import COMPILERS, ended, program
from test_export_c import packed, with_wrong_bit

pytestmark = pytest.mark.slow


def status(name: str, source: Path, *flags: str) -> int:
    """Of the file's self-check on a machine; 32-bit x86 is this one, where its kernel runs such programs."""
    made = compiled(MACHINES[name], source, *flags)
    return ended(made) if name == "x86" else emulated(MACHINES[name].emulator, made).returncode


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Digits nets of the zoo, and a small convolutional net with 8-bit pixels, bits, a shortcut and pooling."""
    found = {}
    for name in ("digits-mlp-zero_one", "digits-mlp-dorefa-w2a2"):
        card = bw.zoo.card(name)
        data = bw.zoo.data(card)
        more: dict[str, Any] = {"mean": data.mean, "std": data.std} if card.normalize else {}
        found[name] = tmp_path_factory.mktemp("net") / "net.c"
        bw.export.c(bw.zoo.load(name), data.pictures(torch.arange(8)), found[name], bare=True, **more)
    torch.manual_seed(0)
    for recipe in ("w1a1-8", "w8a8"):
        x = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
        net = packed(bw.models.create("cifarnet", 10, size=16), recipe, x.float() / 255)
        found[recipe] = tmp_path_factory.mktemp("net") / "net.c"
        bw.export.c(net, x, found[recipe], bare=True)
    return found


@pytest.mark.parametrize("flags", [["-Os"], ["-O3", "-ffp-contract=on"]], ids=["small", "fast"])
@pytest.mark.parametrize("net", ["digits-mlp-zero_one", "digits-mlp-dorefa-w2a2", "w1a1-8", "w8a8"])
@pytest.mark.parametrize("name", MACHINES)
def test_self_check(sources: dict[str, Path], net: str, name: str, flags: list[str], tmp_path: Path) -> None:
    for suffix in (".c", ".h"):
        shutil.copy(sources[net].with_suffix(suffix), tmp_path)
    assert status(name, tmp_path / "net.c", *flags) == 0


@pytest.mark.parametrize(("net", "flags"), [
    ("digits-mlp-zero_one", ["-std=c99", "-O0"]),
    ("digits-mlp-zero_one", ["-std=c++17", "-O3"]),
    ("digits-mlp-dorefa-w2a2", ["-std=c99", "-O3"]),
    ("w1a1-8", ["-std=c99", "-O2"]),
])  # fmt: skip
@pytest.mark.parametrize("compiler", COMPILERS)
def test_self_check_on_this_machine(
    sources: dict[str, Path], compiler: str, net: str, flags: list[str], tmp_path: Path
) -> None:
    """By clang, which also traps undefined behavior, and with 32 bits; no library of the machine is used."""
    for suffix in (".c", ".h"):
        shutil.copy(sources[net].with_suffix(suffix), tmp_path)
    assert ended(program(compiler, tmp_path / "net.c", *flags)) == 0


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_wrong_bit_is_found_on_this_machine(sources: dict[str, Path], compiler: str, tmp_path: Path) -> None:
    source = with_wrong_bit(sources["digits-mlp-zero_one"], tmp_path, 4)
    assert ended(program(compiler, source, "-std=c99", "-O1")) == 5


@pytest.fixture(scope="module")
def of_zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Nets of the zoo as C files, each checked on one image of noise."""

    @functools.cache
    def written(net: str) -> Path:
        path, shape = tmp_path_factory.mktemp("net") / "net.c", bw.zoo.card(net).input
        x = torch.randint(0, 256, (1, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        bw.export.c(bw.zoo.load(net), x, path, bare=True)
        return path

    return written


@pytest.mark.parametrize("net", bw.zoo.list("packed"))
@pytest.mark.parametrize("name", ["aarch64", "armv7", "cortex-m4", "powerpc, big-endian", "x86"])
def test_every_net_of_the_zoo(of_zoo: Callable[[str], Path], net: str, name: str, tmp_path: Path) -> None:
    for suffix in (".c", ".h"):
        shutil.copy(of_zoo(net).with_suffix(suffix), tmp_path)
    assert status(name, tmp_path / "net.c", "-O2") == 0


@pytest.mark.parametrize("name", MACHINES)
def test_a_wrong_bit_is_found_there(sources: dict[str, Path], name: str, tmp_path: Path) -> None:
    source = with_wrong_bit(sources["digits-mlp-zero_one"], tmp_path, 4)
    assert status(name, source, "-Os") == 5
