"""metaquant: the gradient through the quantizer is learned; the step is the paper's, the graph is one layer's piece."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.experiment import Experiment
from bitwright.parts.meta_net import NETS, MetaNet
from bitwright.parts.metaquant import MetaQuant
from bitwright.training import Stopped
from oracles.metaquant import Learner
from stepping import stop_at

pytestmark = pytest.mark.few(every=3)  # of each test with many parameters; the rest runs slowly

SIZES = {"fc_grad": 5, "multi_fc": 5, "lstm_fc": 3, "mlp": 4}


class Net(nn.Module):
    """Two layers with the part, smooth between them."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        spec = {"part": "metaquant", **options}
        self.conv = bw.nn.Conv2d(2, 4, 3, bias=False, w=spec)
        self.linear = bw.nn.Linear(16, 3, bias=False, w=spec)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.conv(x)).flatten(1))


def net_of(seed: int = 0, scale: float = 1.0, **options: Any) -> Net:
    torch.manual_seed(seed)
    net = Net(**options).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(scale)
    return net


def part_of(layer: Any) -> MetaQuant:
    assert isinstance(layer.w, MetaQuant)
    return layer.w


def data(seed: int = 1, count: int = 8) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, 4, 4, generator=draws, dtype=torch.float64)
    return x, torch.randn(count, 3, generator=draws, dtype=torch.float64)


def loss_of(net: nn.Module, seed: int) -> Tensor:
    x, goal = data(seed)
    return (net(x) - goal).square().mean()


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> list[float]:
    """Losses of steps, each on data of its own."""
    losses = []
    for seed in seeds:
        optimizer.zero_grad()
        loss = loss_of(net, seed)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def oracle_run(seed: int) -> Callable[[list[Tensor]], Tensor]:
    x, goal = data(seed)
    return lambda w: (torch.tanh(F.conv2d(x, w[0])).flatten(1) @ w[1].T - goal).square().mean()


def make(kind: str, net: nn.Module, lr: float) -> torch.optim.Optimizer:
    groups = bw.param_groups(net, lr, 0.0)
    if kind == "adam":
        return torch.optim.Adam(groups)
    return torch.optim.SGD(groups, momentum=0.5 if kind == "momentum" else 0.0)


# -- the step -----------------------------------------------------------------------------------------------------------
@pytest.mark.few(every=5)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("refine", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("options", [{"bits": 1}, {"bits": 3}, {"quantizer": "bwn"}], ids=str)
@pytest.mark.parametrize("init", ["ste", "random"])
def test_two_phases_are_the_one_graph_of_the_paper(net: str, refine: str, options: dict[str, Any], init: str) -> None:
    lr = 0.05
    model = net_of(net=net, init=init, hidden=SIZES[net], meta_lr=0.05, **options)
    meta = part_of(model.conv).meta
    oracle = Learner(
        [model.conv.weight.detach(), model.linear.weight.detach()], net, meta.shapes, meta.phi, lr=lr,
        refine="adam" if refine == "adam" else "sgd", momentum=0.5 if refine == "momentum" else 0.0, meta_lr=0.05,
        skip=init == "ste", quantizer=options.get("quantizer", "dorefa"), bits=options.get("bits", 1),
    )  # fmt: skip
    optimizer = make(refine, model, lr)
    bw.attach(model, optimizer)
    for seed in range(6):
        (loss,) = steps(model, optimizer, range(seed, seed + 1))
        wanted, weights = oracle.step(oracle_run(seed))
        assert loss == pytest.approx(wanted, rel=1e-6)
        for layer, weight in zip((model.conv, model.linear), weights, strict=True):
            torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-6, atol=1e-6)
    model(data()[0])  # the step of the meta net waits for the next forward
    got = part_of(model.conv).meta.phi
    torch.testing.assert_close(
        got, torch.cat([p.detach().reshape(-1) for p in oracle.phi.values()]), rtol=1e-6, atol=1e-6
    )
    assert not torch.equal(got, meta_start(net, init)), "the meta net has not learned"


def meta_start(net: str, init: str) -> Tensor:
    torch.manual_seed(0)
    return MetaNet(net, SIZES[net], init).double().phi


@pytest.mark.parametrize("net", NETS)
def test_the_gradient_of_the_meta_net_is_that_of_finite_differences(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a smooth function in place of the quantizer: 2 t - 1, whose slope is what straight-through assumes."""
    monkeypatch.setattr(MetaQuant, "value", lambda self, w, keep: torch.tanh(w) / 0.9)
    slopes = lambda self, w, keep: (torch.tanh(w) / 1.8 + 0.5, (1 - torch.tanh(w) ** 2) / 0.9)  # noqa: E731
    monkeypatch.setattr(MetaQuant, "before", slopes)
    model = net_of(net=net, hidden=SIZES[net], init="random", meta_lr=0.0)
    optimizer = make("sgd", model, 0.3)
    bw.attach(model, optimizer)
    steps(model, optimizer, range(3))
    probe = copy.deepcopy(model)
    probe_optimizer = make("sgd", probe, 0.3)
    bw.attach(probe, probe_optimizer)
    meta = part_of(probe.conv).meta
    meta.slope.zero_()
    meta.waiting.zero_()

    def loss_at(phi: Tensor) -> float:
        meta.phi.copy_(phi)
        for layer in (probe.conv, probe.linear):
            part_of(layer).move.value = None
        return loss_of(probe, 3).item()

    start, found = meta.phi.clone(), []
    for i in range(len(start)):
        shift = torch.zeros_like(start)
        shift[i] = 1e-5
        found.append((loss_at(start + shift) - loss_at(start - shift)) / 2e-5)
    loss_at(start)
    steps(probe, probe_optimizer, range(3, 4))
    wanted = torch.tensor(found, dtype=torch.float64)
    assert wanted.abs().max() > 1e-6
    torch.testing.assert_close(meta.slope, wanted, rtol=2e-4, atol=1e-9)


@pytest.mark.few(every=3)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "adamw"])
@pytest.mark.parametrize("quantizer", ["dorefa", "bwn"])
def test_it_starts_as_the_straight_through_estimator(net: str, kind: str, quantizer: str) -> None:
    """Until its net moves (meta_lr = 0: never), each forward is that of a plain optimizer behind the same quantizer."""
    options: dict[str, Any] = {"quantizer": quantizer, "gate": True}
    scale = 6.0 if quantizer == "bwn" else 1.0  # some latents beyond 1, where the estimator lets nothing through
    twin, model = net_of(scale=scale, **options), net_of(scale=scale, net=net, meta_lr=0.0, **options)
    runs = []
    for each in (twin, model):
        if kind == "adamw":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(each.parameters(), 0.02, weight_decay=0.1)
        else:
            optimizer = make(kind, each, 0.02)
            optimizer.param_groups[0]["weight_decay"] = 0.01
        if each is model:
            bw.attach(each, optimizer)
        runs.append(steps(each, optimizer, range(8)))
    assert runs[0] == pytest.approx(runs[1], rel=1e-12)
    assert runs[0][0] != runs[0][-1]


def test_the_loss_is_that_of_the_weight_which_the_step_stores() -> None:
    model = net_of(net="mlp")
    optimizer = make("adam", model, 0.05)
    bw.attach(model, optimizer)
    stored = model.conv.weight.detach().clone()
    for seed in range(4):
        loss = loss_of(model, seed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss_of(model.eval(), seed).item() == loss.item()
        model.train()
        moved = not torch.equal(stored, model.conv.weight)
        assert moved == (seed > 0), "the first step only keeps the gradient"
        stored = model.conv.weight.detach().clone()


def test_a_step_by_hand() -> None:
    layer = bw.nn.Linear(1, 1, bias=False, w={"part": "metaquant", "quantizer": "bwn", "hidden": 1, "meta_lr": 0.5})
    layer.weight.data.fill_(0.75)
    optimizer = torch.optim.SGD(layer.parameters(), 0.125)
    bw.attach(layer, optimizer)
    x = torch.ones(1, 1)
    for factor in (2.0, 4.0, 1.0):  # the gradients of the three steps
        optimizer.zero_grad()
        (layer(x) * factor).sum().backward()
        optimizer.step()
        assert layer.weight.grad is not None and layer.weight.grad.item() == factor
    # step 0 keeps 2. Step 1: 0.75 - 0.125 * 2 = 0.5, and the net learns from -0.125 * 4 * 2 < 0: u = v = 1 + 0.5, so 2.25.
    # Step 2: 0.5 - 0.125 * 2.25 * 4 = -0.625
    assert layer.weight.item() == pytest.approx(-0.625, abs=1e-6)


# -- one net for all layers, in pieces ----------------------------------------------------------------------------------
def test_layers_of_one_optimizer_share_a_net_and_others_have_their_own() -> None:
    model = net_of()
    first, second = part_of(model.conv), part_of(model.linear)
    assert first.meta is not second.meta
    bw.attach(model, make("sgd", model, 0.1))
    assert first.meta is second.meta
    assert not list(first.parameters()), "no optimizer of the user's moves it"
    apart = net_of()
    for layer in (apart.conv, apart.linear):
        bw.attach(layer, torch.optim.SGD(layer.parameters(), 0.1))
    assert part_of(apart.conv).meta is not part_of(apart.linear).meta


@pytest.mark.parametrize("net", NETS)
def test_pieces_give_the_whole(net: str) -> None:
    runs = []
    for rows in (None, 7):
        model = net_of(net=net, hidden=SIZES[net], meta_lr=0.05)
        optimizer = make("sgd", model, 0.05)
        bw.attach(model, optimizer)
        if rows is not None:
            part_of(model.conv).meta.rows = rows
        runs.append(steps(model, optimizer, range(5)))
    assert runs[0] == pytest.approx(runs[1], rel=1e-10)


@pytest.mark.parametrize("kind", NETS)
def test_memory_of_a_piece_does_not_grow_with_the_layer(kind: str) -> None:
    net = MetaNet(kind, hidden=64)
    assert net.rows * {"fc_grad": 1, "multi_fc": 1, "lstm_fc": 10 * 64, "mlp": 3 * 64}[kind] <= 2**22
    assert net.rows <= 2**18


@pytest.mark.parametrize("hidden", [1, 3, 16, 100, 1000])
def test_the_start_is_exact_for_any_width(hidden: int) -> None:
    g, t = torch.randn(50), torch.rand(50)
    for kind in ("fc_grad", "multi_fc", "mlp"):
        assert torch.equal(MetaNet(kind, hidden).gradient(g, t)[0], g)
    state = (torch.zeros(50, hidden), torch.zeros(50, hidden))
    assert torch.equal(MetaNet("lstm_fc", hidden).gradient(g, t, state)[0], g)


def test_making_a_net_draws_nothing_from_the_users_generator() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    one, two = (MetaNet("mlp", 8, "random") for _ in range(2))
    assert torch.equal(torch.rand(1), wanted) and torch.equal(one.phi, two.phi)


# -- loops of all kinds -------------------------------------------------------------------------------------------------
def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    runs = []
    for pieces in (1, 4):
        model = net_of(net="mlp", meta_lr=0.05)
        optimizer = make("adam", model, 0.05)
        bw.attach(model, optimizer)
        for seed in range(5):
            x, goal = data(seed)
            optimizer.zero_grad()
            for part, wanted in zip(x.chunk(pieces), goal.chunk(pieces), strict=True):
                ((model(part) - wanted).square().mean() / pieces).backward()
            optimizer.step()
        runs.append([p.detach() for p in model.parameters()])
    for one, two in zip(*runs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_a_layer_used_twice_gets_the_gradient_of_both_uses() -> None:
    torch.manual_seed(0)
    layer = bw.nn.Linear(4, 4, bias=False, w={"part": "metaquant", "net": "mlp", "meta_lr": 0.05}).double()
    meta = part_of(layer).meta
    oracle = Learner([layer.weight.detach()], "mlp", meta.shapes, meta.phi, lr=0.1, refine="sgd", meta_lr=0.05)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    bw.attach(layer, optimizer)
    x = torch.randn(5, 4, dtype=torch.float64)
    for _ in range(4):
        optimizer.zero_grad()
        loss = torch.tanh(layer(torch.tanh(layer(x)))).square().mean()
        loss.backward()
        optimizer.step()
        wanted, weights = oracle.step(lambda w: torch.tanh(torch.tanh(x @ w[0].T) @ w[0].T).square().mean())
        assert loss.item() == pytest.approx(wanted, rel=1e-9)
        torch.testing.assert_close(layer.weight.detach(), weights[0], rtol=1e-9, atol=1e-12)


def test_one_weight_in_two_layers_is_refused() -> None:
    spec = {"part": "metaquant", "quantizer": "bwn"}
    model = nn.Sequential(bw.nn.Linear(4, 4, w=spec), bw.nn.Linear(4, 4, w=spec))
    model[1].weight = model[0].weight
    model(torch.ones(1, 4)).sum().backward()  # straight through serves
    bw.attach(model, torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(InputError, match="one weight in two layers"):
        model(torch.ones(1, 4))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", ["conv", "transposed"])
def test_grouped_depthwise_and_transposed_convolutions(groups: int, kind: str) -> None:
    torch.manual_seed(0)
    spec = {"part": "metaquant", "quantizer": "bwn", "granularity": "filter", "meta_lr": 0.0, "gate": True}
    cls = bw.nn.Conv2d if kind == "conv" else bw.nn.ConvTranspose2d
    layer = cls(4, 4, 3, groups=groups, bias=False, w=spec).double()
    twin = copy.deepcopy(layer)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    runs = []
    for each in (twin, layer):
        optimizer = torch.optim.SGD(each.parameters(), 0.1, momentum=0.9)
        if each is layer:
            bw.attach(each, optimizer)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = (each(x) - 0.3).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        runs.append(losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-12) and runs[0][0] != runs[0][-1]


def test_a_layer_that_a_step_does_not_use_stays() -> None:
    model = net_of()
    optimizer = make("sgd", model, 0.1)
    bw.attach(model, optimizer)
    steps(model, optimizer, range(2))
    before = copy.deepcopy(model.linear.state_dict())
    optimizer.zero_grad()
    model.conv(data()[0]).square().mean().backward()
    optimizer.step()
    for key, value in model.linear.state_dict().items():
        assert "meta" in key or torch.equal(value, before[key])


@pytest.mark.slow
def test_a_compiled_training_is_the_plain_one() -> None:
    runs = []
    for compiled in (False, True):
        model = net_of(net="mlp", meta_lr=0.05)
        optimizer = make("sgd", model, 0.05)
        bw.attach(model, optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer about its own insides
            ran: Any = torch.compile(model, backend="eager") if compiled else model
            runs.append(steps(ran, optimizer, range(4)))
    torch._dynamo.reset()
    assert runs[0] == pytest.approx(runs[1], rel=1e-10)


def test_the_schedule_and_a_rate_of_its_own() -> None:
    moved = []
    for lr, factor in ((None, 1.0), (None, 0.5), (0.05, 0.5)):
        model = net_of(lr=lr, meta_lr=0.0)
        optimizer = make("sgd", model, 0.1)
        bw.attach(model, optimizer)
        steps(model, optimizer, range(1))
        start = model.conv.weight.detach().clone()
        optimizer.load_state_dict(optimizer.state_dict())  # replaces the groups
        for group in optimizer.param_groups:
            group["lr"] *= factor
        steps(model, optimizer, range(1, 2))
        moved.append((model.conv.weight.detach() - start).norm().item())
    assert moved[1] == pytest.approx(0.5 * moved[0], rel=1e-9) and moved[2] == pytest.approx(moved[1], rel=1e-9)


def test_a_removed_attachment_and_a_dead_optimizer_leave_straight_through() -> None:
    model = net_of()
    optimizer = make("sgd", model, 0.1)
    handle = bw.attach(model, optimizer)
    other = bw.attach(model, make("sgd", model, 0.2))
    handle.remove()
    assert part_of(model.conv).settings() is not None, "the second attachment serves"
    other.remove()
    assert part_of(model.conv).settings() is None
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    model.conv(x).sum().backward()
    grad, w = model.conv.weight.grad, model.conv.weight.detach()
    assert grad is not None
    flat = F.conv2d(x, torch.ones_like(w).requires_grad_(), None)
    assert flat.shape[1] == 4
    slope = (1 - torch.tanh(w) ** 2) / torch.tanh(w).abs().max()
    patches = F.unfold(x, 3).sum(2).reshape(1, 2, 3, 3)
    torch.testing.assert_close(grad, slope * patches)
    bw.attach(model, make("sgd", model, 0.1))
    gc.collect()
    assert part_of(model.conv).settings() is None


def test_masked_weights_stay_out_of_it() -> None:
    torch.manual_seed(0)
    layer = bw.nn.Linear(6, 4, w=["mask", {"part": "metaquant", "quantizer": "bwn"}])
    mask = (torch.rand(4, 6) < 0.5).to(torch.uint8)
    chain: Any = layer.w
    chain.mask.mask.copy_(mask)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    bw.attach(layer, optimizer)
    start = layer.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        (layer(torch.ones(2, 6)) - 1).square().mean().backward()
        optimizer.step()
    off = mask == 0
    assert torch.equal(layer.weight[off], start[off]) and not torch.equal(layer.weight[~off], start[~off])
    assert not layer.eval().quantized_weight()[off].any()


# -- state --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_a_loaded_state_goes_on_with_the_last_gradient(net: str, kind: str) -> None:
    model = net_of(net=net, hidden=SIZES[net], meta_lr=0.05)
    optimizer = make(kind, model, 0.05)
    bw.attach(model, optimizer)
    steps(model, optimizer, range(4))
    assert model.state_dict()["conv.w.g"].shape == model.conv.weight.shape
    other = net_of(5, net=net, hidden=SIZES[net], meta_lr=0.05)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    second = make(kind, other, 0.05)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    bw.attach(other, second)
    assert steps(model, optimizer, range(4, 8)) == steps(other, second, range(4, 8))


@pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning")  # so few steps do not get far
@pytest.mark.parametrize("step", [1, 6, 9])
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Of two stages, whose parts share one net: stopped in the first step, in the middle, and in the second stage."""
    spec = {"part": "metaquant", "net": "mlp", "meta_lr": 0.01}
    stage = {"rule": [{"match": "*", "w": spec}], "epochs": 1, "optimizer": {"name": "adam", "lr": 0.01}}
    experiment = Experiment.model_validate(
        {
            "data": {"name": "digits", "batch": 32, "limit": 192},
            "model": {"name": "mlp", "hidden": 16, "depth": 1},
            "stage": [stage, {**stage, "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9}}],
            "log": {"tensorboard": False, "histograms_every": 0},
        }
    )
    bw.train(experiment, tmp_path / "whole")
    stop_at(monkeypatch, step)
    with pytest.raises(Stopped):
        bw.train(experiment, tmp_path / "stopped")
    monkeypatch.undo()
    bw.train(experiment, tmp_path / "stopped", resume=True)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert one.keys() == two.keys() and any(key.endswith(".w.g") for key in one)
    for key, value in one.items():
        assert torch.equal(value, two[key]), key


def test_averages_of_another_kind_of_optimizer_begin_anew() -> None:
    model, twin = net_of(meta_lr=0.0), net_of(meta_lr=0.0)
    first = make("adam", model, 0.05)
    with bw.attach(model, first):
        steps(model, first, range(3))
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    for layer in (twin.conv, twin.linear):
        for name in ("mean", "square"):
            setattr(layer.w, name, torch.zeros(0))
    runs = []
    for each in (model, twin):
        second = make("momentum", each, 0.05)
        with bw.attach(each, second):
            runs.append(steps(each, second, range(3, 7)))
    assert runs[0] == runs[1]
    third = make("adam", model, 0.05)
    with bw.attach(model, third):
        steps(model, third, range(2))
    assert int(part_of(model.conv).steps) == 2, "bias correction begins with the averages"


def test_copies_are_attached_to_nothing() -> None:
    model = net_of()
    optimizer = make("sgd", model, 0.1)
    bw.attach(model, optimizer)
    steps(model, optimizer, range(2))
    loss_of(model, 2).backward()
    twin = copy.deepcopy(model)
    assert part_of(twin.conv).settings() is None and part_of(twin.conv).move.value is None
    assert part_of(twin.conv).meta is part_of(twin.linear).meta, "copied once"


def test_it_packs_and_what_training_needed_is_gone(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    bw.apply(model, [{"match": "2", "w": {"part": "metaquant", "quantizer": "bwn", "net": "mlp"}, "x": "dorefa_a"}])
    optimizer = torch.optim.Adam(bw.param_groups(model, 0.01, 0.0))
    x, y = torch.rand(256, 16), torch.randint(0, 4, (256,))
    with bw.attach(model, optimizer):
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    bw.save(model, tmp_path / "trained.safetensors")
    float_net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    again = bw.load(tmp_path / "trained.safetensors", float_net).eval()
    assert torch.equal(again(x), model.eval()(x))
    report = bw.convert(model, x)
    assert report.model is not None
    bw.save(report.model, tmp_path / "packed.safetensors")
    assert (tmp_path / "packed.safetensors").stat().st_size < (tmp_path / "trained.safetensors").stat().st_size / 3


# -- values and errors --------------------------------------------------------------------------------------------------
def test_values_by_hand() -> None:
    w = torch.tensor([[0.5, -1.5], [0.0, 2.0]])
    assert MetaQuant()(w).tolist() == [[1.0, -1.0], [1.0, 1.0]]
    assert MetaQuant("bwn")(w).tolist() == [[1.0, -1.0], [1.0, 1.0]]
    assert MetaQuant("bwn", granularity="filter")(2 * w).tolist() == [[2.0, -2.0], [2.0, 2.0]]
    t = torch.tanh(w).double() / (2 * torch.tanh(torch.tensor(2.0)))
    wanted = 2 * ((t + 0.5) * 3).round() / 3 - 1
    torch.testing.assert_close(MetaQuant(bits=2)(w).double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantizer": "sawb"}, "quantizer='sawb' is none of dorefa, bwn"),
        ({"net": "cnn"}, "net='cnn' is none of fc_grad, multi_fc, lstm_fc, mlp"),
        ({"quantizer": "bwn", "bits": 2}, "quantizer bwn has 1 bit, bits=2; use dorefa"),
        ({"granularity": "filter"}, "dorefa reads the whole layer"),
        ({"refine": "lion"}, "refine='lion' is none of sgd, adam"),
        ({"init": "zero"}, "init='zero' is none of ste, random"),
        ({"lr": -1.0}, "lr=-1.0; 0 or more"),
        ({"hidden": 0}, "hidden=0; a whole number from 1"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        bw.make_part("metaquant", **options)


def test_an_optimizer_that_is_neither_sgd_nor_adam_is_named_with_its_layer() -> None:
    model = net_of()
    with pytest.raises(InputError, match=r"conv\.w: part metaquant: moves a weight as SGD or Adam would, and RMSprop"):
        bw.attach(model, torch.optim.RMSprop(model.parameters()))
    model = net_of(refine="sgd")
    optimizer = torch.optim.RMSprop(model.parameters(), 0.01)
    bw.attach(model, optimizer)
    steps(model, optimizer, range(3))
