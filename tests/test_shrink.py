"""`shrink`: channels that are off become smaller layers, and the net computes the same."""

from __future__ import annotations

import json
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import BitwrightWarning, InputError
from bitwright.experiment import parse
from bitwright.runs import Run
from bitwright.tensors import read_tensors, write_tensors

NEEDS = pytest.mark.skipif(find_spec("torch_pruning") is None, reason="needs the extra shrink")


def shaken(net: nn.Module, seed: int = 0) -> Any:
    """Batch norms with statistics and gains as after training, so that constants behind them are not 0."""
    g = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None and m.running_var is not None:
            m.running_mean.copy_(torch.randn(m.num_features, generator=g))
            m.running_var.copy_(torch.rand(m.num_features, generator=g) + 0.5)
            m.weight.data.copy_(torch.randn(m.num_features, generator=g))
            m.bias.data.copy_(torch.randn(m.num_features, generator=g))
    return net.eval()


def off(net: Any, name: str, *filters: int) -> None:
    """Puts a mask on a layer, if there is none, and switches filters off."""
    if not hasattr(net.get_submodule(name), "w"):
        bw.apply(net, [{"match": name, "w": "mask"}])
    net.get_submodule(name).w.mask[list(filters)] = 0


def check(net: Any, x: Tensor) -> Any:
    before = net(x).detach()
    report = bw.procedures.shrink(net, [(x, None)])
    assert torch.allclose(net(x), before, atol=1e-5 * float(before.abs().max()))
    return report


# -- values by hand -------------------------------------------------------------------------------------------
@NEEDS
def test_a_constant_goes_into_the_bias_by_hand() -> None:
    net: Any = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    net[0].weight.data = torch.tensor([[1.0, 2.0], [5.0, 5.0], [3.0, -1.0]])
    net[0].bias.data = torch.tensor([0.5, 2.0, -1.0])
    net[2].weight.data = torch.tensor([[10.0, 4.0, 7.0]])
    net[2].bias.data = torch.tensor([1.0])
    off(net, "0", 1)  # leaves relu(2) = 2, times 4: 8 more
    report = check(net, torch.randn(6, 2))
    assert net[0].weight.tolist() == [[1.0, 2.0], [3.0, -1.0]] and net[0].bias.tolist() == [0.5, -1.0]
    assert net[2].weight.tolist() == [[10.0, 7.0]] and net[2].bias.tolist() == [9.0]
    assert net[0].w.mask.tolist() == [[1, 1], [1, 1]] and (net[0].out_features, net[2].in_features) == (2, 2)
    assert (report.weights, report.weights_left, report.rows[0].off) == (9, 6, 1)
    assert "66.7 % of the weights" in report.speed


@NEEDS
def test_behind_a_border_of_zeros_one_channel_takes_over_the_constants_by_hand() -> None:
    """Filters 0 and 2 leave 2 and 6 behind the norm; the next layer pads, so that its corners see the constant less often
    than its middle. The larger one stays and takes over 2/6 of the other's weights."""
    net: Any = nn.Sequential(
        nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3, eps=0), nn.Conv2d(3, 1, 3, padding=1, bias=False)
    ).eval()
    net[1].running_mean.copy_(torch.tensor([-1.0, 0.0, -3.0]))
    net[1].running_var.fill_(1.0)
    net[1].weight.data.fill_(2.0)  # (0 - mean) * 2
    net[2].weight.data = torch.stack([torch.full((3, 3), v) for v in (3.0, 5.0, 7.0)])[None]
    off(net, "0", 0, 2)
    report = check(net, torch.randn(2, 1, 4, 4))
    assert net[2].weight[0, :, 0, 0].tolist() == [5.0, pytest.approx(7 + 3 * 2 / 6)]
    assert net[1].running_mean.tolist() == [0.0, -3.0] and net[1].num_features == 2
    assert report.rows[0].why == "filter 2: it carries the constant 6, and 2 pads with zeros"


@NEEDS
def test_a_channel_without_a_reader_goes_and_then_what_only_it_read() -> None:
    net: Any = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    net[4].weight.data[:, 1] = 0  # nobody reads unit 1 of layer 2
    net[2].weight.data[[0, 2], 3] = 0  # and only that unit reads unit 3 of layer 0
    check(net, torch.randn(5, 3))
    assert [tuple(net[i].weight.shape) for i in (0, 2, 4)] == [(3, 3), (2, 3), (2, 2)]


@NEEDS
def test_a_merged_constant_opens_the_mask_of_the_layer_that_reads_it() -> None:
    net = shaken(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 3, 3, padding=1)))
    bw.procedures.magnitude(net, keep=0.4)
    off(net, "0", 0, 1, 2)
    x = torch.randn(3, 2, 8, 8)
    check(net, x)
    assert net[0].out_channels == 2
    net.train()  # the latent weights behind the mask are still there, and the net trains
    net(x).sum().backward()
    assert net[3].weight.grad is not None and net[3].weight.grad.shape == (3, 2, 3, 3)


# -- kinds of nets ----------------------------------------------------------------------------------------------
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.n1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.n2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n0(self.stem(x)).relu()
        x = (x + self.n2(self.b(self.n1(self.a(x)).relu()))).relu()
        return self.fc(x.mean((2, 3)))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.n, self.c, self.fc = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 3), nn.Linear(4 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.n(torch.cat([self.a(x), self.b(x)], 1)).relu()
        return self.fc(torch.nn.functional.max_pool2d(self.c(y).relu(), 2).flatten(1))


@NEEDS
def test_residual_channels_go_only_where_all_that_is_added_is_off() -> None:
    net = shaken(Residual())
    off(net, "stem", 1, 2, 3)
    off(net, "b", 2, 3, 5)
    off(net, "a", 0, 7)
    x = torch.randn(3, 3, 6, 6)
    report = check(net, x)
    # a: two are off, one carries the constant; the stream: 2 and 3 are off on both sides, one of the two carries the constant
    assert net.a.out_channels == net.b.in_channels == 7
    assert net.stem.out_channels == net.b.out_channels == net.n2.num_features == net.fc.in_features == 7
    rows = {row.layer: row for row in report.rows}
    assert rows["stem"].why.startswith("filter 1: it is not constant where") and rows["stem"].outputs_left == 7


@NEEDS
def test_concatenated_and_flattened_channels() -> None:
    net = shaken(Concat())
    off(net, "a", 0, 3)
    off(net, "b", 1, 2, 5)
    off(net, "c", 1)
    check(net, torch.randn(2, 3, 8, 8))
    assert (net.a.out_channels, net.b.out_channels) == (2, 3)  # c has a bias and no border
    assert net.n.num_features == net.c.in_channels == 5 and net.fc.in_features == 3 * 9


@NEEDS
def test_groups_stay_of_one_size_and_depthwise_ones_go_as_a_whole() -> None:
    net = shaken(
        nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    )
    off(net, "0", 0, 1, 5)  # two of the first group, one of the second
    off(net, "2", 3)  # one of the second group alone
    report = check(net, torch.randn(2, 2, 9, 9))
    assert (net[2].in_channels, net[2].out_channels, net[2].groups) == (6, 6, 2)
    assert {row.layer: row.why for row in report.rows}["2"] == "filter 3: 2: its groups stay of one size"
    net = shaken(
        nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)
        )
    )
    off(net, "2", 1, 4)  # depthwise: the channel ends here
    off(net, "0", 0)
    check(net, torch.randn(2, 2, 9, 9))
    assert (net[0].out_channels, net[2].groups, net[2].in_channels, net[4].in_channels) == (3, 3, 3, 3)
    net = shaken(nn.Sequential(nn.Conv1d(2, 3, 1), nn.Conv1d(3, 6, 3, groups=3), nn.ReLU(), nn.Conv1d(6, 2, 1)))
    off(net, "0", 1)
    off(net, "1", 2, 3)  # both outputs of the middle group
    check(net, torch.randn(2, 2, 9))
    assert (net[0].out_channels, net[1].groups, net[1].out_channels) == (2, 2, 4)


@NEEDS
def test_transposed_three_dimensional_and_token_layers() -> None:
    net = shaken(
        nn.Sequential(
            nn.ConvTranspose2d(3, 6, 3, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 4, 3, groups=2),
            nn.Flatten(),
            nn.Linear(4 * 121, 2),
        )
    )
    net[0].weight.data[:, [0, 4]] = 0
    net[0].bias.data[[0, 4]] = -1.0  # 0 behind the ReLU
    net[2].weight.data[3:, 1] = 0
    net[2].weight.data[:3, 0] = 0
    check(net, torch.randn(2, 3, 4, 4))
    assert net[0].weight.shape == (3, 4, 3, 3) and net[2].weight.shape == (4, 1, 3, 3) and net[4].in_features == 2 * 121
    net = shaken(nn.Sequential(nn.Conv3d(1, 4, 2), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 2)))
    off(net, "0", 3)
    check(net, torch.randn(2, 1, 4, 4, 4))
    assert net[0].out_channels == 3
    net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    off(net, "0", 2, 3)
    check(net, torch.randn(2, 5, 4))
    assert net[0].out_features == 6


@NEEDS
@pytest.mark.few("0", "2")
@pytest.mark.parametrize("seed", range(6))
def test_nets_of_the_papers_with_random_filters_off(seed: int) -> None:
    name, options = [("resnet20", {"width": 0.5}), ("vgg_small", {"width": 0.25}), ("lenet5", {})][seed % 3]
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = shaken(bw.models.create(name, **options), seed)
    x = torch.randn(2, *((1, 28, 28) if name == "lenet5" else (3, 32, 32)))
    layers = [n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))][:-1]
    for layer in layers:
        out = net.get_submodule(layer).weight.shape[0]
        off(net, layer, *[i for i in range(out) if float(torch.rand((), generator=g)) < 0.4])
    report = check(net, x)
    assert report.weights_left < 0.9 * report.weights
    again = bw.procedures.shrink(net, [x])
    assert again.weights_left == again.weights == report.weights_left


# -- what stays ---------------------------------------------------------------------------------------------
class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).softmax(-1))


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("gain", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu() * self.gain)


@NEEDS
def test_channels_that_depend_on_each_other_stay_and_the_row_says_why() -> None:
    for net, why in (
        (Mixed(), "filter 1: b reads it mixed with others"),
        (Gain(), "filter 1: b reads it mixed with others"),
    ):
        off(net, "a", 1)
        report = check(net, torch.randn(4, 3))
        assert report.rows[0].why == why and report.weights_left == report.weights
        assert report.speed == "No channel could go, so the net is as large and as fast as before."
    net: Any = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    off(net, "2", 0)
    assert check(net, torch.randn(4, 3)).rows[0].why == "filter 0: the net puts it out"
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    off(net, "0", 0, 1, 2, 3)
    check(net, torch.randn(4, 3))
    assert net[0].out_features == 1
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    bw.apply(net, [{"match": "2", "x": {"part": "dorefa_a", "bits": 2}}])
    off(net, "0", 0)
    assert check(net, torch.randn(4, 3)).rows[0].why.startswith("filter 0: layer 2: it has the part dorefa_a")
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    off(net, "0", 0)
    net[0].register_forward_hook(lambda *_: None)
    assert check(net, torch.randn(4, 3)).rows[0].why == "filter 0: layer 0: it has a forward hook"
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    net[2].weight = net[0].weight
    net[0].weight.data[1] = 0
    assert "shares a parameter" in check(net, torch.randn(4, 4)).rows[0].why


class FixedView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().view(-1, 16))


class TwoViews(FixedView):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(super().forward(x))


@NEEDS
def test_channels_whose_number_the_code_knows_stay_and_others_go() -> None:
    net: Any = FixedView()
    off(net, "a", 1)
    weight = net.a.weight
    report = check(net, torch.randn(2, 1, 4, 4))
    assert net.a.weight is weight and report.rows[0].why.startswith(
        "filter 1: the model's code does not run with fewer"
    )
    net = TwoViews()
    off(net, "a", 1)
    off(net, "head.0", 2, 3)
    check(net, torch.randn(2, 1, 4, 4))
    assert net.a.out_channels == 4 and net.head[0].out_features == 3


def test_bad_calls_get_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(InputError, match=r"torch-pruning is not installed; pip install 'bitwright\[shrink\]'"):
        bw.procedures.shrink(net, [torch.randn(2, 3)])


@NEEDS
def test_no_images() -> None:
    with pytest.raises(InputError, match="shrink: no images"):
        bw.procedures.shrink(nn.Sequential(nn.Linear(3, 4)), [])


# -- files --------------------------------------------------------------------------------------------------
def small() -> tuple[Any, Tensor]:
    net, x = shaken(Residual()), torch.randn(3, 3, 6, 6)
    off(net, "a", 0, 4, 7)
    bw.procedures.shrink(net, [x])
    return net, x


@NEEDS
def test_a_file_makes_the_model_of_the_code_as_small(tmp_path: Path) -> None:
    net, x = small()
    bw.save(net, tmp_path / "a.safetensors")
    assert json.loads(read_tensors(tmp_path / "a.safetensors")[1]["shrunk"])["a"] == [6, 8, 1]
    for fresh in (Residual(), bw.load(tmp_path / "a.safetensors", Residual())):
        loaded: Any = bw.load(tmp_path / "a.safetensors", fresh)
        assert loaded.a.out_channels == 6 and torch.equal(loaded.eval()(x), net(x))
    masked: Any = Residual()
    bw.apply(masked, bw.recipe_of(net))
    assert torch.equal(bw.load(tmp_path / "a.safetensors", masked).eval()(x), net(x))
    bw.save(loaded, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@NEEDS
def test_a_shrunk_net_is_quantized_converted_and_loaded_in_both_forms(tmp_path: Path) -> None:
    net, x = small()
    bw.procedures.gptq(net, [torch.randn(64, 3, 6, 6)], bits={"a": 4, "b": 4})
    want = net(x)
    for form in ("graph", "layers"):
        packed = bw.convert(net, x, form=form).model
        assert packed is not None
        bw.save(packed, tmp_path / f"{form}.safetensors")
        back = bw.load(tmp_path / f"{form}.safetensors", None if form == "graph" else Residual())
        assert torch.allclose(back(x), want, atol=1e-4)


@NEEDS
@pytest.mark.parametrize(
    "table",
    ["[]", "{", '{"a": [9, 8, 1]}', '{"a": [6, 8, 0]}', '{"a": [6, 8]}', '{"a": [6, true, 1]}', '{"a": [1e9, 8, 1]}',
     '{"zz": [1]}', '{"": [1]}', '{"fc": [-5, 8, 1]}', '{"a": [6, 8, 4]}', '{"a": "x"}', '{"a": [5, 8, 1]}'],
)  # fmt: skip
def test_hostile_sizes_are_refused_and_the_model_stays(tmp_path: Path, table: str) -> None:
    net, _ = small()
    bw.save(net, tmp_path / "a.safetensors")
    tensors, metadata = read_tensors(tmp_path / "a.safetensors")
    write_tensors(tmp_path / "b.safetensors", tensors, {**metadata, "shrunk": table})
    fresh = Residual()
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    with pytest.raises(InputError, match="load "):
        bw.load(tmp_path / "b.safetensors", fresh)
    assert fresh.a.out_channels == 8 and all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())


# -- runs ---------------------------------------------------------------------------------------------------
EXPERIMENT = """
[data]
name = "digits"
limit = 200
limit_test = 64
batch = 50
[model]
name = "mlp"
hidden = 16
depth = 2
[log]
tensorboard = false
[[stage]]
procedure = { name = "magnitude", keep = 0.02 }
[[stage]]
procedure = { name = "shrink", batches = 1 }
epochs = 2
optimizer = { name = "adam", lr = 1e-3 }
"""


def trained(out: Path, *overrides: str, resume: bool = False) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitwrightWarning)
        bw.train(parse(EXPERIMENT, overrides), out, resume=resume, echo=lambda line: None)
    return Run(out)


@NEEDS
def test_a_stage_shrinks_and_a_stopped_run_goes_on_with_the_small_net(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    net: Any = whole.model()
    assert net.fc1.out_features < 16 and net.fc2.in_features == net.fc1.out_features
    trained(tmp_path / "cut", "stage.1.epochs=1")
    cut = trained(tmp_path / "cut", resume=True)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in cut.model().state_dict().items())


@NEEDS
def test_on_the_command_line(tmp_path: Path, call: Any) -> None:
    run = trained(tmp_path / "run")
    code, text, note = call(
        "prune", str(run.path), "--method", "shrink", "--test", "20", "-o", str(tmp_path / "s.safetensors")
    )
    assert code == 0, note
    assert "filters off" in text and ("% of the weights" in text or "No channel could go" in text)
    code, text, note = call("eval", str(run.path), "--weights", str(tmp_path / "s.safetensors"))
    assert code == 0, note + text
