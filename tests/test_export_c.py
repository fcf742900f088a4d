"""A packed net as one C file: compiled here in several ways, it gives the packed net's bits."""

from __future__ import annotations

import ctypes
import itertools
import json
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright as bw
from bitwright.cli.run import run as command
from bitwright.engine.fuse_floats import here
from bitwright.errors import InputError
from bitwright.export_c import shared
from bitwright.export_c.oracle import fused_sum
from bitwright.export_c.plan import Value, place
from bitwright.export_c.to_c import FLOAT

STRICT = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
COMPILERS = {"c99": ["gcc", "-std=c99"], "c++17": ["g++", "-std=c++17", "-x", "c++"], "clang": ["clang", "-std=c99"]}
SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compiler(name: str) -> list[str]:
    command = COMPILERS[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} on this machine; the clang of ziglang is in test_export_c_machines.py")
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
        more: dict[str, Any] = {"mean": data.mean, "std": data.std} if card.normalize else {}
        bw.export.c(bw.zoo.load(name), data.pictures(torch.arange(32)), path, **more)
        found[name] = path
    return found


@pytest.mark.few(every=2)
@pytest.mark.parametrize("name", ["digits-mlp-zero_one", "digits-mlp-dorefa-w2a2"])
@pytest.mark.parametrize(("with_", "flags"), [
    *itertools.product(COMPILERS, (["-O0"], ["-O3"])),
    ("c99", SANITIZED), ("c++17", SANITIZED),
    ("c99", ["-std=gnu99", "-O3", "-march=native", "-ffp-contract=fast"]),  # must not fuse multiply and add
    ("c++17", ["-O3", "-march=native", "-ffp-contract=fast"]),
])  # fmt: skip
def test_self_check(exported: dict[str, Path], name: str, with_: str, flags: list[str]) -> None:
    assert self_check(exported[name], *flags, with_=with_) == 0


def with_wrong_bit(source: Path, folder: Path, number: int) -> Path:
    """A copy in which the stored answer of an input differs in one bit."""
    text = source.read_text()
    start = text.index("{", text.index("net_check_out["))
    numbers = text[start + 1 : text.index("}", start)].split(",")
    numbers[number * 10 + 4] = f" 0x{int(numbers[number * 10 + 4].strip().rstrip('u'), 16) ^ 1:08X}u"
    (folder / "net.c").write_text(text[: start + 1] + ",".join(numbers) + text[text.index("}", start) :])
    shutil.copy(source.with_suffix(".h"), folder)
    return folder / "net.c"


def test_self_check_finds_a_wrong_bit(exported: dict[str, Path], tmp_path: Path) -> None:
    """The check gives the number of the input, from 1."""
    assert self_check(with_wrong_bit(exported["digits-mlp-zero_one"], tmp_path, 2)) == 3


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


# -- every operator ------------------------------------------------------------------------------------------------
class Small(nn.Module):
    """Strides, groups, dilation, pooling, two shortcuts, means, a flattened image: each in one net."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.a = nn.Conv2d(12, 12, 3, padding=1, groups=2)
        self.b = nn.Conv2d(12, 40, 3, stride=2, padding=2, dilation=2)
        self.short = nn.Conv2d(12, 40, 1)
        self.c = nn.Linear(40 * 3 * 3, 33)
        self.d = nn.Linear(33, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.a(x))
        x = self.b(x) + self.short(torch.nn.functional.avg_pool2d(x, 2, ceil_mode=True))
        x = torch.max_pool2d(x, 3, 2, 1)
        return self.d(torch.relu(self.c(x.flatten(1))))


CODES: dict[str, dict[str, Any]] = {
    "one bit": {"w": "bwn", "x": ["norm", "sign"]},
    "two bits": {"w": {"part": "dorefa_w", "bits": 2}, "x": {"part": "dorefa_a", "bits": 2}},
    "bytes": {"w": {"part": "uniform", "bits": 8}, "x": ["norm", {"part": "uniform", "bits": 8, "signed": True}]},
    "bits times bytes": {"w": "bwn", "x": ["norm", {"part": "uniform", "bits": 8, "symmetric": False, "signed": True}]},
    "ternary": {"w": "ttq", "x": ["norm", {"part": "uniform", "bits": 4, "signed": True}]},
    "shifted": {"w": {"part": "uniform", "bits": 4, "symmetric": False}, "x": {"part": "uniform", "bits": 3, "symmetric": False}},
    "weights only": {"w": "ttq"},
    "two-bit weights only": {"w": {"part": "lsq", "bits": 2}},
}  # fmt: skip


def packed(net: nn.Module, recipe: Any, x: Tensor) -> Any:
    bw.apply(net, recipe, x)
    net.train()
    for m in net.modules():  # norms that stretch, turn and shift, as trained ones do
        if isinstance(m, nn.BatchNorm2d):
            with torch.no_grad():
                m.weight.copy_(torch.linspace(-1, 2, m.num_features))
                m.bias.copy_(torch.linspace(0.5, -0.5, m.num_features))
    with torch.no_grad():
        net(x)
    done = bw.convert(net.eval(), x, verify=False, force=True)
    assert done.model is not None, done.report.verdict
    return done.model


@pytest.mark.few("one bit")
@pytest.mark.parametrize("name", CODES)
def test_every_form_of_codes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 256, (24, 3, 11, 9), dtype=torch.uint8)
    net = packed(Small(), [{"match": "*", **CODES[name]}], x.float() / 255)
    report = bw.export.c(net, x, tmp_path / "net.c", batch=3)
    assert report.differ == 0 and report.largest < 1e-5 and report.compiled
    assert self_check(tmp_path / "net.c", *SANITIZED) == 0
    assert self_check(tmp_path / "net.c", "-O3", with_="c++17") == 0


@pytest.mark.few("demo-w8a8")
@pytest.mark.parametrize(("name", "recipe"), [
    ("cifarnet", "w1a1-8"), ("demo", "w8a8"), ("demo", "zero_one"), ("demo", "precision_gate-w8a3p2"), ("lenet5", "lsq-w4a4"),
    ("resnet20", "w8a8"), ("resnet20", "bwn-a8"), ("resnet20", "ttq-a8"), ("bireal_resnet20", "bireal"),
    ("bireal_resnet20", "react"), ("bireal_resnet20", "w1a1-8"), ("cifarnet", "dorefa-w2a2"), ("resnet20", "xnor"),
])  # fmt: skip
def test_topologies(name: str, recipe: str, tmp_path: Path) -> None:
    """Where all layers have codes, all bits are the packed net's."""
    torch.manual_seed(0)
    channels, size = {"demo": (1, 8), "lenet5": (1, 28)}.get(name, (3, 32))
    x = torch.randint(0, 256, (16, channels, size, size), dtype=torch.uint8)
    net = packed(bw.models.create(name, 10, in_channels=channels, size=size), recipe, x.float() / 255)
    report = bw.export.c(net, x, tmp_path / "net.c")
    whole = not any(n.op in FLOAT for n in net.graph.nodes)
    assert report.differ == 0 and report.largest <= (0 if whole else 1e-5)
    assert self_check(tmp_path / "net.c", "-O1") == 0


def test_fused_sums_are_rounded_once(tmp_path: Path) -> None:
    """a * b + c by exact fractions; random numbers and sums near the middle between two floats: in C, and in its definition."""
    random = np.random.default_rng(0)
    a, b, c = (random.standard_normal(6000).astype(np.float32) for _ in range(3))
    c[:2000] *= np.float32(2.0**-10)
    # 1 + 2^-23 k, plus or minus half of its last place, and more or less by 2^-57 or 2^-56, which double does not keep
    more = random.random(2000) < 0.5
    a[2000:4000] = 2.0**-24 * np.where(more, 1 + 2.0**-11, 1 + 2.0**-16)
    b[2000:4000] = np.where(more, 1 - 2.0**-11 + 2.0**-22, 1 - 2.0**-16) * random.choice([-1, 1], 2000)
    c[2000:4000] = 1 + 2.0**-23 * random.integers(1, 9, 2000)
    a[4000:], b[4000:] = (
        a[4000:] * np.float32(2.0**-70),
        b[4000:] * np.float32(2.0**-70),
    )  # results without all their bits
    c[4000:] *= np.float32(2.0**-139)
    want = np.array([nearest(*(Fraction(float(v)) for v in row)) for row in zip(a, b, c, strict=True)], np.float32)
    twice = (a.astype(np.float64) * b + c).astype(np.float32)
    assert int((twice != want)[2000:4000].sum()) > 500
    got = fused_sum(*(torch.from_numpy(v) for v in (a, b, c)))
    assert np.array_equal(bits(got + 0.0), bits(want + 0.0))
    text = f"#include <stdint.h>\n{shared.used('NET_FUSED(')}\n"
    text += "void sums(const float *a, const float *b, float *c, int n)\n{\n    int i;\n    for (i = 0; i < n; i++)\n"
    (tmp_path / "sums.c").write_text(text + "        c[i] = NET_FUSED(a[i], b[i], c[i]);\n}\n")
    for flags in (["-O0"], ["-O3"], ["-O3", "-march=native"]):
        library = ctypes.CDLL(str(built(tmp_path / "sums.c", *flags, "-shared", "-fPIC", "-Wno-unused-function")))
        out = c.copy()
        library.sums(*(ctypes.c_void_p(v.ctypes.data) for v in (a, b, out)), len(out))
        assert np.array_equal(bits(out + 0.0), bits(want + 0.0)), flags
        (tmp_path / "sums.out").unlink()


def nearest(a: Fraction, b: Fraction, c: Fraction) -> np.float32:
    """The float32 nearest to a * b + c, ties to even."""
    exact = a * b + c
    about = np.float32(float(exact))
    near = [np.nextafter(about, np.float32(-np.inf)), about, np.nextafter(about, np.float32(np.inf))]
    return min(near, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.uint32)) & 1))


class FloatEnds(nn.Module):
    """A float stem and head, floats beside codes, means: what stands between codes in binary nets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 20, 3, 2, 1), nn.Conv2d(20, 20, 3, padding=1)
        self.short, self.b, self.head = nn.Conv2d(20, 40, 1), nn.Conv2d(20, 40, 3, 2, 1), nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.a(x) + x
        x = self.b(x) + self.short(torch.nn.functional.avg_pool2d(x, 2))
        return self.head(torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.mark.skipif(not here(), reason="the kernels of float layers are for AVX-512")
def test_float_layers_beside_codes_have_the_nets_bits(tmp_path: Path) -> None:
    """In C, and in onnxruntime with our operators; one image in four would show a code that went the other way."""
    torch.manual_seed(0)
    x = torch.randint(0, 256, (64, 3, 20, 20), dtype=torch.uint8)
    net = packed(FloatEnds(), [{"match": name, "w": "bwn", "x": "sign"} for name in "ab"], x.float() / 255)
    report = bw.export.c(net, x, tmp_path / "net.c")
    assert report.largest == 0 and report.compiled and len(report.floats) >= 5
    assert np.array_equal(bits(answers(tmp_path / "net.c", x, 10)), bits(net(x)))
    assert np.array_equal(bits(torch.cat([net(x[i : i + 1]) for i in range(8)])), bits(net(x)[:8]))
    pytest.importorskip("onnxscript")
    bw.export.onnx(net, x[:4] / 255, tmp_path / "net.onnx")
    session = bw.ort.session(tmp_path / "net.onnx")
    got = session.run(None, {session.get_inputs()[0].name: (x / 255).numpy()})[0]
    assert np.array_equal(bits(np.asarray(got)), bits(net(x / 255)))


class Pixelwise(nn.Module):
    """Operators on each number by itself, between layers that keep them from becoming thresholds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.slope, self.b = nn.Conv2d(2, 6, 3), nn.PReLU(6, -0.3), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.a(x)) * 0.7 + 0.1
        x = self.b(torch.clamp(x, -0.25, 0.5))
        return torch.nn.functional.pad(x[:, 1:, ::2], (1, 0, 0, 2, 1, 1))


@pytest.mark.slow
def test_numbers_by_themselves_and_an_image_as_the_answer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 2, 7, 6)
    net = packed(Pixelwise(), [{"match": "b", "w": "ttq"}], x)
    report = bw.export.c(net, x, tmp_path / "net.c")
    assert report.differ == 0 and "net_run(" not in (tmp_path / "net.h").read_text()
    assert self_check(tmp_path / "net.c", *SANITIZED) == 0
    got = answers(tmp_path / "net.c", x, net(x)[0].numel(), "net_run_float")
    assert np.allclose(got.reshape(net(x).shape), net(x), atol=1e-6)


def test_a_zero_of_its_own_for_each_channel_at_a_padded_border(tmp_path: Path) -> None:
    """The constant of the input is not one number, and is missing where the window hangs over the border."""
    from bitwright.engine.packed import PackedModel

    torch.manual_seed(0)
    x = torch.randint(0, 256, (8, 3, 6, 5), dtype=torch.uint8)
    recipe = [
        {"match": "*", "w": {"part": "uniform", "bits": 2}, "x": {"part": "uniform", "bits": 2, "symmetric": False}}
    ]
    net = packed(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), recipe, x.float() / 255)
    graph = net.graph.copy()
    graph.work = None
    next(n for n in graph.nodes if n.op == "quantize").attrs["zero"] = [-1, 2, 5]
    net = PackedModel(graph)
    report = bw.export.c(net, x, tmp_path / "net.c")
    assert report.largest == 0
    assert self_check(tmp_path / "net.c", *SANITIZED) == 0


def test_floats_that_the_net_was_not_made_for_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    net = packed(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), [{"match": "*", "w": "ttq"}], x)
    bw.export.c(net, x, tmp_path / "net.c")
    run = ctypes.CDLL(str(built(tmp_path / "net.c", "-O2", "-shared", "-fPIC")))["net_run_float"]
    out = np.zeros(2, np.float32)
    for bad, code in ((0.5, 0), (np.nan, 1), (np.inf, 1), (2e6, 1), (2.0**20, 0)):
        given = np.array([0, 0, bad, 0], np.float32)
        assert run(ctypes.c_void_p(given.ctypes.data), ctypes.c_void_p(out.ctypes.data)) == code, bad


# -- options and refusals ------------------------------------------------------------------------------------------
def test_options(exported: dict[str, Path], tmp_path: Path) -> None:
    name, path = "digits-mlp-zero_one", tmp_path / "net.c"
    x = bw.zoo.data(bw.zoo.card(name)).pictures(torch.arange(8))
    report = bw.export.c(bw.zoo.load(name), x, path, batch=4, progmem=True, bare=True)
    text, header = path.read_text(), path.with_suffix(".h").read_text()
    assert "main(" not in text and '.rodata.net"' in text and "#define NET_BATCH 4" in header
    assert f"Constants: {report.flash} bytes. Memory: {report.arena} bytes" in header
    assert "#include" not in text.replace('#include "net.h"', "") and header.count("#include") == 1  # stdint.h alone
    library = ctypes.CDLL(str(built(path, "-O2", "-shared", "-fPIC", "-DNET_SELF_CHECK")))
    assert library.net_self_check() == 0
    found = np.zeros((4, 10), np.float32)
    library.net_run(ctypes.c_void_p(x[:4].contiguous().numpy().ctypes.data), ctypes.c_void_p(found.ctypes.data))
    assert np.array_equal(bits(found), bits(bw.zoo.load(name)(x[:4])))


def test_without_a_compiler_the_definition_is_compared(
    exported: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    x = bw.zoo.data(bw.zoo.card("digits-mlp-zero_one")).pictures(torch.arange(32))
    report = bw.export.c(bw.zoo.load("digits-mlp-zero_one"), x, tmp_path / "net.c")
    assert report.compiled is None and "no C compiler" in str(report)
    assert (tmp_path / "net.c").read_bytes() == exported["digits-mlp-zero_one"].read_bytes()


@pytest.mark.parametrize(("net", "x", "said"), [
    (nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2)), torch.randn(2, 4), "sigmoid.default has no form in C"),
    (nn.Sequential(nn.Conv1d(2, 3, 3)), torch.randn(2, 2, 9), "its value is 2x9"),
    (nn.Sequential(nn.Linear(4, 2)), torch.randn(2, 5, 4), "its value is 5x4"),
])  # fmt: skip
def test_what_has_no_c_is_refused_by_name(net: nn.Module, x: Tensor, said: str, tmp_path: Path) -> None:
    done = packed(net, [{"match": "0", "w": "ttq"}], x)
    with pytest.raises(InputError) as error:
        bw.export.c(done, x, tmp_path / "net.c")
    assert said in str(error.value) and "\n" not in str(error.value) and error.value.remedy
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("gate", [
    {"gate": {"part": "fbs", "keep": 0.5}},
    {"gate": {"part": "channel_gate", "splits": 2}},
    {"w": "bwn", "x": {"part": "uniform", "bits": 4}, "gate": {"part": "precision_gate", "bits": 4, "top": 2}},
])  # fmt: skip
def test_a_gate_is_refused_with_its_layer(gate: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)), torch.rand(4, 2, 9, 9)
    made = packed(net, [{"match": "0", **gate}], x)
    with pytest.raises(
        InputError, match=r"export c: 0 \(\w+\): a gate has no form in C. Possible: the packed file or ONNX"
    ) as e:
        bw.export.c(made, x, tmp_path / "net.c")
    assert e.value.layer == "0" and not list(tmp_path.iterdir())


def test_names_of_layers_may_be_anything(tmp_path: Path) -> None:
    """They become comments and identifiers; none may end the one, or be one of the program's own names."""
    torch.manual_seed(0)
    net = nn.Sequential()
    for name in ("net", "*/ int x; /*", "int", "9", "grün\\", "net_bits", "a-b", "a_b"):
        net.add_module(name, nn.Linear(6, 6))
    x = torch.randn(8, 6)
    report = bw.export.c(packed(net, [{"match": "*", "w": "ttq"}], x), x, tmp_path / "9-net.c")
    assert report.differ == 0 and "*/ int x" not in (tmp_path / "9-net.h").read_text()
    assert self_check(tmp_path / "9-net.c") == 0


def test_minus_zero_is_zero(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
        layer.bias.zero_()
    net = nn.Sequential(layer, nn.PReLU(1, -1.0))
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    done = packed(net, [{"match": "0", "w": "ttq"}], x)
    bw.export.c(done, x, tmp_path / "net.c")
    assert bits(answers(tmp_path / "net.c", x, 2, "net_run_float"))[:, 1].tolist() == [0, 0]


def test_wrong_use(tmp_path: Path) -> None:
    net, x = bw.zoo.load("digits-mlp-zero_one"), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("net.cc", {}, "that ends in .c"), ("net.c", {"batch": 0}, "batch=0"), ("net.c", {"mean": [0.5]}, "possible: both"),
    ]  # fmt: skip
    for name, more, said in cases:
        with pytest.raises(InputError, match=said):
            bw.export.c(net, x, tmp_path / name, **more)
    with pytest.raises(InputError, match="not packed as one graph"):
        bw.export.c(nn.Linear(2, 2), x, tmp_path / "net.c")
    with pytest.raises(InputError, match="the example is empty"):
        bw.export.c(net, x[:0], tmp_path / "net.c")


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(1, 50)), max_size=20))
def test_values_that_live_at_the_same_time_share_no_memory(spans: list[tuple[int, int, int]]) -> None:
    values = [Value(str(i), "floats", 1, 1, size, first=at, last=at + more) for i, (at, more, size) in enumerate(spans)]
    end = place(values)
    for i, a in enumerate(values):
        assert a.at + a.size <= end
        for b in values[:i]:
            if a.first <= b.last and b.first <= a.last:
                assert a.at + a.size <= b.at or b.at + b.size <= a.at


@pytest.mark.slow
def test_command(tmp_path: Path) -> None:
    run = [
        sys.executable,
        "-m",
        "bitwright",
        "export",
        "c",
        "zoo:digits-mlp-zero_one",
        "-o",
        str(tmp_path / "net.c"),
        "--json",
    ]
    ran = subprocess.run(run, capture_output=True, text=True, timeout=300)
    said = json.loads(ran.stdout)["export"]
    assert ran.returncode == 0 and said["largest"] == 0 and said["images"] == 256
    assert self_check(tmp_path / "net.c") == 0


def test_command_on_a_file_with_pixels_as_the_net_was_trained(tmp_path: Path) -> None:
    name = "digits-mlp-dorefa-w2a2"
    file = tmp_path / "net.packed.safetensors"
    bw.save(bw.zoo.load(name), file)
    assert command(["export", "c", str(file), "--mean", "0.3058", "--std", "0.3761", "--bare"]) == 0
    text = (tmp_path / "net.c").read_text()
    assert "input_pixel_scale" in text and "main(" not in text
    assert command(["export", "c", str(file), "--mean", "a,b"]) == 2
    assert command(["export", "c", str(file), "--mean", "0.5"]) == 2
    assert command(["export", "c", str(tmp_path / "none.safetensors")]) == 2
