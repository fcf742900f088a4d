"""Models: shapes, MACs with the arithmetic written out, parameter counts, names, export, one-line errors."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitwright import models
from bitwright.errors import InputError

# A small version of each model: quick on one core, and every option is used.
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": 32, "size": 8},
    "lenet5": {"size": 16, "width": 0.5},
    "lenet300": {"size": 8, "width": 0.25},
    "nin": {"size": 8, "width": 0.05},
    "cifarnet": {"size": 15, "width": 0.25},
    "m_cifarnet": {"size": 9, "width": 0.0625},
    "vgg_small": {"size": 8, "width": 0.0625},
    "vgg15": {"size": 32, "width": 0.03125},
    "resnet20": {"size": 8, "width": 0.25},
    "resnet32": {"size": 8, "width": 0.25},
    "resnet44": {"size": 8, "width": 0.25},
    "resnet56": {"size": 8, "width": 0.25},
    "resnet20_postact": {"size": 8, "width": 0.25},
    "resnet20_plain": {"size": 8, "width": 0.25},
    "bireal_resnet20": {"size": 8, "width": 0.25},
    "bireal_resnet32": {"size": 8, "width": 0.25},
    "resnet18": {"size": 33, "width": 0.0625},
    "bireal_resnet18": {"size": 32, "width": 0.0625},
    "alexnet": {"size": 67, "width": 0.03125},
    "demo": {"size": 8, "width": 0.125},
    "selfprune_mlp": {"hidden": 32, "size": 8},
    "selfprune_conv": {"size": 8, "width": 0.25},
}
NATIVE: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("mlp", "lenet5", "lenet300", "selfprune_mlp", "selfprune_conv"), (1, 28)),
    "demo": (1, 8),
    "resnet18": (3, 224),
    "bireal_resnet18": (3, 224),
    "alexnet": (3, 227),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(name: str, num_classes: int = 7, **options: Any) -> tuple[nn.Module, Tensor]:
    channels = NATIVE.get(name, (3, 32))[0]
    torch.manual_seed(0)
    model = models.create(name, num_classes, **(SMALL[name] | options))
    return model.eval(), torch.randn(3, channels, SMALL[name]["size"], SMALL[name]["size"])


def test_every_model_has_a_small_version():
    assert set(models.list()) == set(SMALL)


@pytest.mark.parametrize("name", models.list())
def test_output_shape(name: str):
    model, x = small(name)
    y = model(x)
    assert y.shape == (3, 7) and y.isfinite().all()


@pytest.mark.parametrize("name", models.list())
def test_full_size_on_meta(name: str):
    channels, size = NATIVE.get(name, (3, 32))
    with torch.device("meta"):
        assert models.create(name)(torch.empty(2, channels, size, size)).shape == (2, 10)


@pytest.mark.parametrize("name", models.list())
def test_trains_and_reaches_every_parameter(name: str):
    model, x = small(name)
    model.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", models.list())
def test_in_channels_and_width(name: str):
    wide, _ = small(name, in_channels=2, width=2 * SMALL[name].get("width", 1))
    narrow, _ = small(name, in_channels=2)
    y = wide(torch.randn(1, 2, SMALL[name]["size"], SMALL[name]["size"]))
    assert y.shape == (1, 7)
    assert sum(p.numel() for p in wide.parameters()) > 1.5 * sum(p.numel() for p in narrow.parameters())


def macs(name: str, num_classes: int, **options: Any) -> int:
    """Multiply-accumulates of all conv and linear weights for one image, from the shapes that hooks see."""
    channels, size = NATIVE.get(name, (3, 32))
    total = 0

    def count(module: nn.Module, _: Any, y: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += module.weight.numel() * (y.shape[2] * y.shape[3] if y.dim() == 4 else 1)

    with torch.device("meta"):
        model = models.create(name, num_classes, **options).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(count)
        model(torch.empty(1, channels, size, size))
    return total


def test_macs_resnet20():
    stem = 3 * 16 * 9 * 32 * 32
    stage1 = 6 * 16 * 16 * 9 * 32 * 32
    stage2 = (16 * 32 + 5 * 32 * 32) * 9 * 16 * 16
    stage3 = (32 * 64 + 5 * 64 * 64) * 9 * 8 * 8
    assert macs("resnet20", 10) == stem + stage1 + stage2 + stage3 + 64 * 10 == 40_551_040


def test_macs_bireal_resnet20():
    shortcuts = 16 * 32 * 16 * 16 + 32 * 64 * 8 * 8  # the float 1x1 convs, after pooling
    assert macs("bireal_resnet20", 10) == 40_551_040 + shortcuts


def test_macs_resnet18():
    stem = 3 * 64 * 49 * 112 * 112
    stage1 = 4 * 64 * 64 * 9 * 56 * 56
    stage2 = ((64 * 128 + 3 * 128 * 128) * 9 + 64 * 128) * 28 * 28
    stage3 = ((128 * 256 + 3 * 256 * 256) * 9 + 128 * 256) * 14 * 14
    stage4 = ((256 * 512 + 3 * 512 * 512) * 9 + 256 * 512) * 7 * 7
    total = stem + stage1 + stage2 + stage3 + stage4 + 512 * 1000
    assert macs("resnet18", 1000) == total == 1_814_073_344
    assert macs("bireal_resnet18", 1000) == total  # 1x1 after pooling costs what a strided 1x1 costs


def test_macs_alexnet():
    convs = 3 * 96 * 121 * 55 * 55 + 96 * 256 * 25 * 27 * 27
    convs += (256 * 384 + 384 * 384 + 384 * 256) * 9 * 13 * 13
    linears = 256 * 6 * 6 * 4096 + 4096 * 4096 + 4096 * 1000
    assert macs("alexnet", 1000) == convs + linears == 1_135_256_096


def test_macs_vgg_small():
    convs = (3 * 128 + 128 * 128) * 9 * 32 * 32
    convs += (128 * 256 + 256 * 256) * 9 * 16 * 16
    convs += (256 * 512 + 512 * 512) * 9 * 8 * 8
    assert macs("vgg_small", 10) == convs + 512 * 4 * 4 * 10 == 607_600_640


def test_macs_vgg15():
    convs = (3 * 64 + 64 * 64) * 9 * 32 * 32
    convs += (64 * 128 + 128 * 128) * 9 * 16 * 16
    convs += (128 * 256 + 2 * 256 * 256) * 9 * 8 * 8
    convs += (256 * 512 + 2 * 512 * 512) * 9 * 4 * 4
    convs += 3 * 512 * 512 * 9 * 2 * 2
    assert macs("vgg15", 100) == convs + 512 * 1024 + 1024 * 100 == 313_823_232


def test_macs_of_the_relatives_of_resnet20():
    """The same convs; a 1x1 shortcut costs its MACs, a stem of stride 3 on 96 pixels is ResNet-20 on 32."""
    assert macs("resnet20_postact", 10) == macs("resnet20_plain", 10) == 40_551_040
    shortcuts = 16 * 32 * 16 * 16 + 32 * 64 * 8 * 8
    assert macs("resnet20", 10, shortcut="conv") == 40_551_040 + shortcuts
    with torch.device("meta"):
        stl = models.create("resnet20", stem_stride=3, size=96)
        assert stl.get_submodule("conv1")(torch.empty(1, 3, 96, 96)).shape == (1, 16, 32, 32)


def test_macs_of_the_cifarnets():
    convs = (3 * 32 * 32 * 32 + 32 * 32 * 15 * 15 + 32 * 64 * 7 * 7) * 25
    assert macs("cifarnet", 10) == convs + 576 * 64 + 64 * 10 == 10_763_904
    convs = (3 * 64 + 64 * 64) * 9 * 30 * 30
    convs += (64 * 128 + 2 * 128 * 128) * 9 * 15 * 15
    convs += (128 * 192 + 2 * 192 * 192) * 9 * 8 * 8
    assert macs("m_cifarnet", 10) == convs + 192 * 10 == 174_301_824  # "174.30 M" in the paper's code


def test_macs_nin():
    stage1 = (3 * 192 * 25 + 192 * 160 + 160 * 96) * 32 * 32
    stage2 = (96 * 192 * 25 + 192 * 192 + 192 * 192) * 16 * 16
    stage3 = (192 * 192 * 9 + 192 * 192 + 192 * 10) * 8 * 8
    assert macs("nin", 10) == stage1 + stage2 + stage3


def test_macs_of_the_gray_models():
    assert macs("mlp", 10) == macs("selfprune_mlp", 10) == 784 * 4000 + 2 * 4000 * 4000 + 4000 * 10
    assert macs("selfprune_conv", 10) == 9 * (32 * 28 * 28 + 32 * 64 * 14 * 14 + 64 * 128 * 7 * 7) + 1152 * 10
    assert macs("lenet300", 10) == 784 * 300 + 300 * 100 + 100 * 10
    assert macs("lenet5", 10) == 20 * 25 * 24 * 24 + 20 * 50 * 25 * 8 * 8 + 800 * 500 + 500 * 10


@pytest.mark.parametrize(
    ("name", "num_classes", "count"),
    [
        ("resnet20", 10, 269_722),  # "0.27 M" in the paper; option A adds nothing
        ("resnet56", 10, 853_018),
        ("resnet18", 1000, 11_689_512),  # torchvision's
        ("lenet300", 10, 266_610),
        ("resnet20_postact", 10, 269_722),
        ("resnet20_plain", 10, 269_722),
        ("cifarnet", 10, 3 * 32 * 25 + 32 + 32 * 32 * 25 + 32 + 32 * 64 * 25 + 64 + 576 * 64 + 64 + 64 * 10 + 10),
        (
            "m_cifarnet",
            10,
            9 * (3 * 64 + 64 * 64 + 64 * 128 + 2 * 128 * 128 + 128 * 192 + 2 * 192 * 192) + 2 * 1088 + 1930,
        ),
        ("bireal_resnet20", 10, 269_722 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64),  # two 1x1 convs, norms
    ],
)
def test_parameter_count(name: str, num_classes: int, count: int):
    with torch.device("meta"):
        assert sum(p.numel() for p in models.create(name, num_classes).parameters()) == count


def test_names_that_recipes_use():
    names = {n: dict(models.create(n, **SMALL[n]).named_modules()) for n in models.list()}
    for layer in ("conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1", "layer3.2.conv2", "layer2.0.act2", "fc"):
        assert layer in names["resnet20"]
    assert isinstance(names["bireal_resnet20"]["layer2.0.shortcut.0"], nn.AvgPool2d)
    assert isinstance(names["bireal_resnet20"]["layer2.0.shortcut.1"], nn.Conv2d)
    assert isinstance(names["bireal_resnet20"]["layer2.0.shortcut.2"], nn.BatchNorm2d)
    assert isinstance(names["bireal_resnet20"]["layer1.0.act1"], nn.Hardtanh)
    assert isinstance(names["resnet18"]["layer2.0.downsample.0"], nn.Conv2d)
    order = [n.removeprefix("features.") for n in names["vgg_small"] if n.startswith("features.")]
    assert order[:8] == ["conv1", "bn1", "act1", "conv2", "bn2", "act2", "pool2", "conv3"]


@pytest.mark.parametrize("name", models.list())
@pytest.mark.parametrize(
    ("kind", "cls"),
    [("relu", nn.ReLU), ("identity", nn.Identity), ("hardtanh", nn.Hardtanh), ("prelu", nn.PReLU), ("tanh", nn.Tanh)],
)
def test_activation_is_honored(name: str, kind: str, cls: type[nn.Module]):
    model, x = small(name, activation=kind)
    acts = [m for n, m in model.named_modules() if n.rpartition(".")[2].startswith("act")]
    seen: list[nn.Module] = []
    for module in acts:
        assert type(module) is cls
        module.register_forward_hook(lambda m, *_: seen.append(m))
    model(x)
    assert len(acts) >= 2 and seen == acts  # separate modules, each called once, in the order of the names


def test_residual_blocks_by_hand():
    model, _ = small("resnet20")
    block: Any = model.get_submodule("layer2.0")
    h = torch.randn(2, 4, 8, 8)
    y = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(h)))))
    shortcut = torch.zeros(2, 8, 4, 4)
    shortcut[:, 2:6] = h[:, :, ::2, ::2]
    torch.testing.assert_close(block(h), torch.relu(y + shortcut))

    for name, shape in (("resnet20_postact", torch.relu(y) + shortcut), ("resnet20_plain", torch.relu(y))):
        model, _ = small(name)
        other: Any = model.get_submodule("layer2.0")
        other.load_state_dict(block.state_dict())
        torch.testing.assert_close(other(h), shape)

    model, _ = small("resnet20", shortcut="conv")
    block = model.get_submodule("layer2.0")
    y = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(h)))))
    around = block.downsample[1](torch.nn.functional.conv2d(h, block.downsample[0].weight, stride=2))
    torch.testing.assert_close(block(h), torch.relu(y + around))

    model, _ = small("bireal_resnet20", rprelu=True)
    block = model.get_submodule("layer1.1")
    with torch.no_grad():
        for p in (*block.rprelu1.parameters(), *block.rprelu2.parameters()):
            p.normal_()
    h = torch.randn(2, 4, 8, 8) * 2
    mid = block.rprelu1(h + block.bn1(block.conv1(h.clamp(-1, 1))))
    torch.testing.assert_close(block(h), block.rprelu2(mid + block.bn2(block.conv2(mid.clamp(-1, 1)))))

    model, _ = small("bireal_resnet20")
    block = model.get_submodule("layer1.1")
    h = torch.randn(2, 4, 8, 8) * 2
    mid = h + block.bn1(block.conv1(h.clamp(-1, 1)))
    torch.testing.assert_close(block(h), mid + block.bn2(block.conv2(mid.clamp(-1, 1))))


@pytest.mark.few(every=8)
@pytest.mark.parametrize("name", models.list())
def test_exports_with_dynamic_batch(name: str):
    model, x = small(name)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=False)
    more = torch.cat([x, x])
    torch.testing.assert_close(program.module()(more), model(more))


@pytest.mark.slow
def test_dropout_only_in_training():
    for name in models.list():
        model, x = small(name, dropout=0.5)
        assert any(isinstance(m, nn.Dropout) and m.p == 0.5 for m in model.modules()), name
        torch.testing.assert_close(model(x), model(x))
    without, _ = small("alexnet", dropout=0)
    assert not any(isinstance(m, nn.Dropout) for m in without.modules())


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: models.create("resnet21"), "unknown model 'resnet21'; did you mean 'resnet20'? Known: mlp,"),
        (lambda: models.create("zzz"), "models: unknown model 'zzz'; Known: mlp,"),
        (lambda: models.create("nin", widht=2), "nin has no option 'widht'; did you mean 'width'? Known:"),
        (lambda: models.create("nin", hidden=2), "models: nin has no option 'hidden'; Known: in_channels,"),
        (lambda: models.create("nin", activation="rleu"), "unknown activation 'rleu'; did you mean 'relu'?"),
        (lambda: models.create("nin", width=0), "models: nin: width=0; possible: a number above 0"),
        (lambda: models.create("nin", dropout=1), "models: nin: dropout=1; possible: 0 up to"),
        (lambda: models.create("lenet5", size=12), "models: lenet5: size=12; possible: at least 16"),
        (lambda: models.create("bireal_resnet20", size=30), "size=30; possible: a multiple of 4"),
        (lambda: models.create("nin", norm_last="yes"), "models: nin: norm_last='yes'; possible: true, false"),
        (lambda: models.create("resnet20", shortcut="cnv"), "resnet20: unknown shortcut 'cnv'; did you mean 'conv'?"),
        (lambda: models.create("resnet20", stem_stride=0), "stem_stride=0; possible: an integer of at least 1"),
        (
            lambda: models.create("selfprune_mlp", norm="batchnorm"),
            "unknown norm 'batchnorm'; did you mean 'batch_norm'?",
        ),
        (lambda: models.create("selfprune_conv", head="linear"), "unknown head 'linear'; Known: block, counts"),
        (lambda: models.create("mlp", num_classes=0), "models: mlp: num_classes=0; possible: an integer"),
    ],
)
def test_errors_are_one_line(call: Any, text: str):
    with pytest.raises(InputError) as caught:
        call()
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_smallest_sizes_run():
    """What the error messages call possible is possible."""
    for name, size in {
        "lenet5": 16, "vgg_small": 8, "alexnet": 67, "bireal_resnet18": 32, "nin": 1,
        "cifarnet": 15, "m_cifarnet": 3, "vgg15": 32, "selfprune_conv": 8,
    }.items():  # fmt: skip
        channels = NATIVE.get(name, (3, 32))[0]
        model = models.create(name, width=0.05, size=size).eval()
        assert model(torch.zeros(1, channels, size, size)).shape == (1, 10)


def test_create_is_documented():
    assert ">>>" in (inspect.getdoc(models.create) or "")
