"""What stands between layers on images of floats, on the kernels: pooling, means and shortcuts, against torch's own operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import fuse_floats, native
from bitwright.engine import packed as packed_module
from bitwright.engine.graph import Node
from bitwright.engine.native_images import lay_image
from bitwright.engine.native_library import IMAGE_OPERATIONS
from bitwright.engine.native_run import NativeRun
from bitwright.engine.packed import PackedModel

pytestmark = pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")


class Between(nn.Module):
    """A layer with bits, something between, and a layer with bits: a float that is off by its last bit can turn a bit behind it."""

    def __init__(self, between: Callable[[Tensor], Tensor], behind: nn.Module, both: bool = False) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 20, 3), nn.Conv2d(20, 20, 3, padding=1), nn.BatchNorm2d(20)
        self.between, self.behind, self.both = between, behind, both

    def forward(self, x: Tensor) -> Any:
        y = self.between(self.norm(self.conv(self.stem(x))))
        z = self.behind(y)
        return (y, z) if self.both else z


def packed_net(net: nn.Module, x: Tensor, **options: Any) -> PackedModel:
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_()
            module.get_buffer("running_var").uniform_(1, 2)
    bw.apply(net.eval(), "xnor", x)
    packed = bw.convert(net, x, **options).model
    assert isinstance(packed, PackedModel)
    return packed


def plain(packed: PackedModel) -> PackedModel:
    """The same kernels, with torch's operators between them."""
    made = PackedModel(packed.graph)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_module, "image_kernels", lambda graph: graph)
        assert not operations(made)
    return made


def operations(packed: PackedModel) -> list[str]:
    return [n.op for n, _, _ in packed.steps if n.op in IMAGE_OPERATIONS]


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(20, 8, 1), nn.BatchNorm2d(8))


def rows() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 6), nn.Linear(6, 3))


def subsampled(x: Tensor) -> Tensor:
    return F.pad(x[:, :, ::2, ::3], (0, 0, 0, 0, 4, 3))


POOLS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "largest": (nn.MaxPool2d(3, 2, 1), ""),  # the layer does it
    "largest, dilated": (nn.MaxPool2d((2, 3), (1, 2), (0, 1), (2, 1)), "maxpool_floats"),
    "largest, standing out": (nn.MaxPool2d(3, 2, ceil_mode=True), "maxpool_floats"),
    "average": (nn.AvgPool2d(2), "avgpool_floats"),
    "average with borders": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), "avgpool_floats"),
    "average with zeros around": (nn.AvgPool2d(3, 2, 1), ""),  # torch's
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling_between_layers_with_bits(name: str) -> None:
    pool, operation = POOLS[name]
    x = torch.randn(2, 3, 11, 14)
    packed = packed_net(Between(pool, conv()), x)
    assert operations(packed) == [operation] * bool(operation)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 11, 14)
        assert torch.equal(packed(x), plain(packed)(x))


@pytest.mark.parametrize("flat", [True, False])
def test_a_mean_and_rows_behind_it(flat: bool) -> None:
    mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()) if flat else nn.AdaptiveAvgPool2d(1)
    x = torch.randn(3, 3, 9, 8)
    packed = packed_net(Between(mean, rows() if flat else conv(), both=True), x)
    assert operations(packed) == ["mean_floats"]
    for mine, want in zip(packed(x), plain(packed)(x), strict=True):
        assert mine.shape == want.shape and torch.equal(mine, want)


def test_a_mean_that_others_read_too_stays_an_image() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(20, 3)

        def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
            m = F.adaptive_avg_pool2d(y, 1)
            return m * 2, self.last(m.flatten(1))

    net = Between(nn.Identity(), Both())
    x = torch.randn(2, 3, 9, 8)
    packed = packed_net(net, x)
    assert operations(packed) == ["mean_floats"]
    for mine, want in zip(packed(x), plain(packed)(x), strict=True):
        assert mine.shape == want.shape and torch.equal(mine, want)


def test_a_shortcut_of_every_so_many_pixels_and_zeros() -> None:
    x = torch.randn(2, 3, 12, 13)
    packed = packed_net(Between(subsampled, nn.Conv2d(27, 5, 3), both=True), x)
    assert operations(packed) == ["subsample_floats"]
    (y, z), (want_y, want_z) = packed(x), plain(packed)(x)
    assert torch.equal(y, want_y) and torch.equal(z, want_z)
    assert not y[:, :4].any() and not y[:, 24:].any() and y[:, 4:24].any()


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.booleans(),
    st.tuples(st.integers(0, 2), st.integers(0, 2)), st.booleans(), st.integers(5, 9), st.integers(5, 9),
)  # fmt: skip
def test_windows_are_those_of_torch(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    ceil: bool,
    padding: tuple[int, int],
    average: bool,
    h: int,
    w: int,
) -> None:
    padding = (min(padding[0], kernel[0] // 2), min(padding[1], kernel[1] // 2))
    x = torch.randn(2, 7, h, w).contiguous(memory_format=torch.channels_last)
    if average:
        want, op = F.avg_pool2d(x, kernel, stride, padding, ceil, False), "avgpool_floats"
    else:
        want, op = F.max_pool2d(x, kernel, stride, padding, 1, ceil), "maxpool_floats"
    window = ([*kernel], [*stride], [*padding], [1], ceil)
    node = Node(op, "y", ["x"], {"window": window, "shape": list(want.shape[1:])})
    for threads in (1, 2):
        env = {"x": x}
        NativeRun([node], [lay_image(node)], threads)(env)
        assert env["y"].shape == want.shape
        assert torch.allclose(env["y"], want, rtol=0, atol=1e-6) if average else torch.equal(env["y"], want)


def test_a_window_without_a_pixel_is_that_of_torch() -> None:
    """Two rows that are two apart, around an image of one row: both lie in the padding."""
    x = torch.randn(1, 5, 1, 6).contiguous(memory_format=torch.channels_last)
    window = ([2, 1], [1, 1], [1, 0], [2, 1], False)
    want = F.max_pool2d(x, *window)
    assert want.isinf().all()
    env, node = {"x": x}, Node("maxpool_floats", "y", ["x"], {"window": window, "shape": list(want.shape[1:])})
    NativeRun([node], [lay_image(node)], 1)(env)
    assert torch.equal(env["y"], want)


@pytest.mark.parametrize("isa", ["portable", ""])
def test_a_shortcut_behind_torchs_own_operators(isa: str) -> None:
    """Where no kernel wrote the image it is not laid out for ours: on CPUs whose float layers are torch's, and behind any float operator."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 6, 3), bw.nn.Conv2d(13, 5, 3, w="bwn", x={"part": "uniform", "bits": 8})

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.stem(x)
            return F.pad(y.sin()[:, :, ::2, ::3], (0, 0, 0, 0, 4, 3)), self.conv(
                F.pad(y[:, :, ::2], (0, 0, 0, 0, 4, 3))
            )

    native.force_isa(isa)
    try:
        net, x = Net().eval(), torch.rand(2, 3, 13, 14)
        net(x)
        packed = bw.convert(net, x).model
        assert packed is not None
        for mine, want in zip(packed(x), net(x), strict=True):
            torch.testing.assert_close(mine, want, rtol=1e-5, atol=1e-5)
    finally:
        native.force_isa("")


def test_images_of_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_floats, "ISAS", tuple(native.isas()))
    x = torch.randn(1, 3, 16, 16)
    net = Between(nn.AvgPool2d(2), nn.Sequential(conv(), nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    packed = packed_net(net, x, dynamic_size=True)
    assert operations(packed) == ["avgpool_floats", "maxpool_floats", "mean_floats"]
    for size in ((16, 16), (21, 18), (40, 13)):
        x = torch.randn(2, 3, *size)
        assert torch.equal(packed(x), plain(packed)(x))


@pytest.mark.parametrize(
    "model, recipe, side",
    [("bireal_resnet20", "bireal", 32), ("resnet20", "dorefa-w1a2", 32)],
)
def test_a_net_is_one_call(model: str, recipe: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the input to the answer no operator of torch stands between the kernels, on instruction sets with float layers."""
    monkeypatch.setattr(fuse_floats, "ISAS", tuple(native.isas()))
    net, x = bw.models.create(model), torch.rand(2, 3, side, side)
    bw.apply(net, recipe, x)
    packed = bw.convert(net.eval(), x, verify=False).model
    assert isinstance(packed, PackedModel)
    (only,) = packed._joined
    assert isinstance(only[1], NativeRun)
    assert torch.isfinite(packed(x)).all()
