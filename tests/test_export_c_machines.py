"""C files on other machines: 64 and 32 bits, both orders of bytes, with and without a floating-point unit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import bitwright as bw
from machines import MACHINES, compiled, emulated
from test_export_c import packed, with_wrong_bit

pytest.importorskip("ziglang", reason="no compiler for other machines: pip install bitwright[cross]")
pytest.importorskip("unicorn", reason="no emulator of other machines: pip install bitwright[cross]")
pytestmark = pytest.mark.slow


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
    assert emulated(name, compiled(MACHINES[name], tmp_path / "net.c", *flags)) == 0


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-20 of the zoo, checked on two images of noise."""
    path = tmp_path_factory.mktemp("net") / "net.c"
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    bw.export.c(bw.zoo.load("cifar10-resnet20-bwn"), x, path, bare=True)
    return path


@pytest.mark.parametrize("name", ["aarch64", "cortex-m4", "powerpc, big-endian", "x86"])
def test_resnet20(resnet: Path, name: str, tmp_path: Path) -> None:
    for suffix in (".c", ".h"):
        shutil.copy(resnet.with_suffix(suffix), tmp_path)
    assert emulated(name, compiled(MACHINES[name], tmp_path / "net.c", "-O2")) == 0


@pytest.mark.parametrize("name", MACHINES)
def test_a_wrong_bit_is_found_there(sources: dict[str, Path], name: str, tmp_path: Path) -> None:
    source = with_wrong_bit(sources["digits-mlp-zero_one"], tmp_path, 4)
    assert emulated(name, compiled(MACHINES[name], source, "-Os")) == 5
