"""zero_one: a connection is on or off; latents in [0, 1], drawn by expected fan-in, one random on-value per step."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.parts import moment
from bitwright.parts.zero_one import ZeroOne
from oracles.compare import check_weights, special
from oracles.self_pruning import Notebook


def part(**options: Any) -> ZeroOne:
    made = bw.make_part("zero_one", **options)
    assert isinstance(made, ZeroOne)
    return made


def latents(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


# -- value, gradient, codes -------------------------------------------------------------------------------------------
def test_values_and_gradient_by_hand() -> None:
    w = torch.tensor([[0.5, 0.4999, 1.0, 0.0]], requires_grad=True)
    value = part(on=3.0, off=-1.0)(w)
    assert value.tolist() == [[3.0, -1.0, 3.0, -1.0]]
    value.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert w.grad is not None and w.grad.tolist() == [[1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize("options", [{}, {"on": 0.3, "off": -0.7, "threshold": 0.9}])
def test_equals_the_oracle(options: dict[str, float]) -> None:
    on, off, threshold = options.get("on", 1.0), options.get("off", 0.0), options.get("threshold", 0.5)
    check_weights(
        part(**options),
        lambda w, g: ([[on if v >= threshold else off for v in row] for row in w], g),
        special(3, 4, 2, 2),
    )


@pytest.mark.parametrize(
    ("on", "off", "numbers", "unit"),
    [(1.0, 0.0, [0, 1], 1.0), (2.5, 0.0, [0, 1], 2.5), (0.5, -0.5, [-1, 1], 0.5), (0.0, -3.0, [-1, 0], 3.0)]
    + [(3.0, 1.0, [1, 3], 1.0), (0.0, 0.0, [0, 1], 0.0)],
)
def test_whole_numbers_where_the_values_share_a_unit(on: float, off: float, numbers: list[int], unit: float) -> None:
    whole, size = part(on=on, off=off).whole(torch.tensor([0.1, 0.9]))
    assert whole.tolist() == numbers and size.item() == unit


def test_no_whole_numbers_where_they_do_not_and_the_code_still_says_both_values() -> None:
    odd = part(on=1.0, off=0.3)
    assert moment(odd, "whole") is None
    code = odd.encode(torch.tensor([0.1, 0.9]))
    assert code.planes == 1 and code.value().tolist() == torch.tensor([0.3, 1.0]).tolist()


def test_a_nan_shows_in_training() -> None:
    w = torch.tensor([0.7, torch.nan, torch.inf, -torch.inf])
    for off in (0.0, -1.0):
        value = part(off=off)(w)
        assert value.isnan().tolist() == [False, True, False, False]
        assert value[[0, 2, 3]].tolist() == [1.0, 1.0, off]  # the next clip makes infinities 1 and 0
    assert part().encode(w).bit.tolist() == [[1, 0, 1, 0]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"on": math.nan}, "a finite number"),
        ({"off": math.inf}, "a finite number"),
        ({"on": -1.0}, "below off"),
        ({"threshold": 0.0}, "above 0, at most 1"),
        ({"threshold": 1.5}, "above 0, at most 1"),
        ({"random_mag": -0.1}, "0 or more"),
        ({"random_mag": math.inf}, "0 or more"),
        ({"epsilon": 1.1}, "a probability"),
        ({"init": "fan_in:0.5"}, "possible: fan_in:C"),
        ({"init": "bernoulli:0"}, "possible: fan_in:C"),
        ({"init": "gauss"}, "possible: fan_in:C"),
        ({"init": "fan_in:inf"}, "possible: fan_in:C"),
        ({"decay": -0.1}, "0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"part zero_one: .*{says}"):
        bw.make_part("zero_one", **options)


# -- on can be assigned -----------------------------------------------------------------------------------------------
def test_assigning_on_changes_evaluation_codes_and_what_is_saved(tmp_path: Path) -> None:
    net = nn.Sequential(bw.nn.Linear(8, 4, bias=False, w="zero_one")).eval()
    x = torch.rand(3, 8)
    one = net(x)
    slot: Any = net[0].w
    slot.on = 2.5
    assert torch.allclose(net(x), 2.5 * one) and slot.on == 2.5
    assert slot.encode(latents(net[0])).value().max() == 2.5
    bw.save(net, tmp_path / "net.safetensors")
    other = bw.load(tmp_path / "net.safetensors", nn.Sequential(nn.Linear(8, 4, bias=False)))
    assert torch.equal(other.eval()(x), net(x))
    slot.on = 0.0  # the first point of a sweep: every weight is the same
    assert not net(x).any()
    for wrong in (math.nan, -0.5, "2"):
        with pytest.raises(InputError, match="part zero_one: "):
            slot.on = wrong
    assert slot.on == 0.0


# -- the latent -------------------------------------------------------------------------------------------------------
def test_latents_are_clipped_to_zero_and_one() -> None:
    w = torch.tensor([[0.2, -0.7, 1.3]])
    part().after_step(w)
    assert torch.equal(w, torch.tensor([[0.2, 0.0, 1.0]]))


def test_only_a_bias_with_the_part_is_clipped() -> None:
    plain, coded = bw.nn.Linear(8, 4, w="zero_one"), bw.nn.Linear(8, 4, w="zero_one", b="zero_one")
    assert coded.bias is not None and not coded.bias.any()  # the notebook's biases start at 0
    assert plain.bias is not None
    for layer in (plain, coded):
        assert layer.bias is not None
        layer.bias.data.copy_(torch.tensor([-1.0, 0.6, 2.0, 0.1]))
        optimizer = torch.optim.SGD(layer.parameters(), 0.0)
        with bw.attach(layer, optimizer):
            layer(torch.rand(2, 8)).sum().backward()
            optimizer.step()
    assert plain.bias.tolist() == coded.bias.new_tensor([-1.0, 0.6, 2.0, 0.1]).tolist()
    assert coded.bias.tolist() == coded.bias.new_tensor([0.0, 0.6, 1.0, 0.1]).tolist()
    coded.weight.data.zero_()
    assert coded.eval()(torch.rand(1, 8)).tolist() == [[0.0, 1.0, 1.0, 0.0]]


# -- where latents come from ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("init", "expected"), [("fan_in:4", 4), ("fan_in:8", 8), ("bernoulli:0.1", 20)])
def test_a_float_layer_starts_with_the_expected_number_of_connections(init: str, expected: float) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(200, 500, bias=False))
    bw.apply(net, [{"match": "*", "w": {"part": "zero_one", "init": init}}])
    drawn = latents(net[0])
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    # a binomial count per output: five deviations of the mean of 500 of them
    assert drawn.sum(1).mean().item() == pytest.approx(expected, abs=5 * math.sqrt(expected / 500))


def test_a_start_is_a_function_of_the_seed() -> None:
    def made(seed: int) -> Tensor:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 3))
        bw.apply(net, [{"match": "*", "w": "zero_one"}])
        return torch.cat([latents(m).flatten() for m in net])

    assert torch.equal(made(1), made(1)) and not torch.equal(made(1), made(2))


def test_the_fan_in_of_a_convolution_is_that_of_one_filter() -> None:
    torch.manual_seed(0)
    drawn = latents(bw.nn.Conv2d(64, 500, 3, groups=4, w="zero_one"))  # 16 * 9 inputs
    assert drawn.sum((1, 2, 3)).mean().item() == pytest.approx(4, abs=5 * math.sqrt(4 / 500))
    turned = latents(bw.nn.ConvTranspose2d(64, 400, 3, groups=4, w="zero_one"))  # [64, 100, 3, 3]: 16 * 9 inputs too
    assert turned.sum().item() / 400 == pytest.approx(4, abs=5 * math.sqrt(4 / 400))


def test_latents_that_are_there_are_kept() -> None:
    for values in ([0.0, 0.2, 0.4, 0.0], [0.0, 0.0, 0.0, 0.0], [0.5, 0.2, 0.7, 1.4]):
        layer = nn.Linear(4, 1, bias=False)
        layer.weight.data.copy_(torch.tensor([values]))
        net = bw.apply(nn.Sequential(layer), [{"match": "*", "w": "zero_one"}])
        assert latents(net[0]).tolist() == torch.tensor([values]).clamp(0, 1).tolist()
    kept = nn.Linear(4, 1, bias=False)
    kept.weight.data.copy_(torch.tensor([[-0.1, 0.2, 0.7, 1.4]]))
    bw.apply(nn.Sequential(kept), [{"match": "*", "w": {"part": "zero_one", "init": "keep"}}])
    assert latents(kept).tolist() == torch.tensor([[0.0, 0.2, 0.7, 1.0]]).tolist()


def test_a_trained_float_layer_with_large_weights_is_drawn_too() -> None:
    for scale in (1, 10):  # a few, and about half of them
        layer = nn.Linear(64, 32, bias=False)
        layer.weight.data[0, :3] = 0.9
        layer.weight.data.mul_(scale)
        bw.apply(nn.Sequential(layer), [{"match": "*", "w": "zero_one"}])
        assert latents(layer).sum().item() / 32 == pytest.approx(4, abs=5 * math.sqrt(4 / 32))


def test_a_second_recipe_and_a_plan_draw_nothing_and_a_dead_layer_stays_what_it_is() -> None:
    rule = [{"match": "*", "w": "zero_one"}]
    net = nn.Sequential(nn.Linear(16, 8, bias=False))
    before = latents(net[0]).clone()
    bw.plan(net, rule)
    assert torch.equal(latents(net[0]), before)
    bw.apply(net, rule)
    latents(net[0]).zero_()[0, 0] = 0.3
    bw.apply(net, rule)
    assert latents(net[0]).count_nonzero() == 1
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    with bw.attach(net, optimizer):
        net(torch.ones(1, 16)).sum().backward()
        optimizer.step()  # every latent falls below 0, none is on: clipped, not drawn
    assert not latents(net[0]).any()


@pytest.mark.parametrize(("init", "inputs"), [("bernoulli:0.001", 784), ("published", 64), ("bernoulli:0.01", 64)])
def test_a_start_that_leaves_most_outputs_without_a_connection_is_refused(init: str, inputs: int) -> None:
    net = nn.Sequential(OrderedDict(flat=nn.Flatten(), fc1=nn.Linear(inputs, 8, bias=False)))
    before = latents(net[1]).clone()
    with pytest.raises(InputError, match=rf"fc1: .*{inputs} inputs start with 0\..*dead.*fan_in:4") as caught:
        bw.apply(net, [{"match": "*", "w": {"part": "zero_one", "init": init}}])
    assert caught.value.code == "zero-one-dead" and caught.value.layer == "fc1"
    assert type(net[1]) is nn.Linear and torch.equal(latents(net[1]), before)


def test_the_published_start_serves_the_published_widths() -> None:
    torch.manual_seed(0)
    for inputs in (784, 4000):
        drawn = latents(bw.nn.Linear(inputs, 300, w={"part": "zero_one", "init": "published"}))
        assert drawn.mean().item() == pytest.approx(0.001, abs=5 * math.sqrt(0.001 / drawn.numel()))


# -- the random on-value ----------------------------------------------------------------------------------------------
NOISY = {"part": "zero_one", "random_mag": 0.5}


def noisy_net(**options: Any) -> nn.Sequential:
    torch.manual_seed(7)
    slot = {**NOISY, **options}
    return nn.Sequential(bw.nn.Linear(6, 5, w=slot), bw.nn.Linear(5, 4, w=slot, b=slot))


def on_values(net: nn.Module) -> list[float]:
    """The on-value of every slot of the net in one forward."""
    parts = [m for m in net.modules() if isinstance(m, ZeroOne)]
    return [m(torch.ones(1)).item() for m in parts]


def trained(net: nn.Module, steps: int) -> list[float]:
    """The on-value of each of `steps` steps, the same in all layers."""
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    seen = []
    with bw.attach(net, optimizer):
        for _ in range(steps):
            values = on_values(net)
            assert len(set(values)) == 1
            seen.append(values[0])
            net(torch.rand(2, 6)).sum().backward()
            optimizer.step()
    return seen


def test_one_draw_for_all_layers_of_a_step_a_new_one_for_the_next() -> None:
    net = noisy_net()
    seen = trained(net, 200)
    assert len(set(seen)) == 200 and all(1 < v < 1.5 for v in seen)
    # uniform on (1, 1.5): a deviation of 0.144
    assert sum(seen) / 200 == pytest.approx(1.25, abs=5 * 0.144 / math.sqrt(200))
    assert set(on_values(net.eval())) == {1.0}


@pytest.mark.slow
def test_the_coin_decides_before_the_magnitude() -> None:
    seen = trained(noisy_net(epsilon=0.25), 400)
    drawn = [v for v in seen if v != 1]
    assert len(drawn) / 400 == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 400))
    assert sum(drawn) / len(drawn) == pytest.approx(1.25, abs=5 * 0.144 / math.sqrt(len(drawn)))
    with_all = trained(noisy_net(), 400)
    assert [a for a, b in zip(with_all, seen, strict=True) if b != 1] == drawn  # the same magnitudes, coin or not


def test_a_resumed_net_draws_what_the_unbroken_one_draws_and_seeds_differ() -> None:
    net = noisy_net()
    trained(net, 3)
    twin = noisy_net()
    twin.load_state_dict(copy.deepcopy(net.state_dict()))
    assert trained(net, 5) == trained(twin, 5)
    torch.manual_seed(8)
    other = nn.Sequential(bw.nn.Linear(6, 5, w=NOISY))
    assert trained(noisy_net(), 3) != trained(other, 3)


def test_a_new_recipe_for_some_layers_keeps_all_in_step() -> None:
    net = noisy_net()
    trained(net, 4)
    torch.manual_seed(99)
    bw.apply(net, [{"match": "0", "w": {**NOISY, "epsilon": 0.9999}}])
    again = noisy_net()
    trained(again, 4)
    assert trained(net, 3) == trained(again, 3)  # which also asks that all layers agree


def test_without_noise_there_is_no_state() -> None:
    assert not part().state_dict() and not part(random_mag=1.0, epsilon=0.0).state_dict()
    assert set(part(random_mag=1.0).state_dict()) == {"stream", "count"}


# -- the notebook's loop ----------------------------------------------------------------------------------------------
def test_five_steps_equal_the_notebooks_save_binarize_restore_loop() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        bw.nn.Linear(12, 16, bias=False, w="zero_one"),
        nn.Tanh(),
        nn.BatchNorm1d(16, eps=1e-4, momentum=0.15),
        bw.nn.Linear(16, 3, bias=False, w="zero_one"),
        nn.Tanh(),
        nn.BatchNorm1d(3, eps=1e-4, momentum=0.15),
    ).double()
    first, last = net[0], net[3]
    for layer in (first, last):  # near the threshold, so that connections do change within five steps
        latents(layer).uniform_(0.3, 0.7)[0, :4] = torch.tensor([0.0, 1.0, 0.5, 0.49999], dtype=torch.float64)
    oracle = Notebook([latents(first).tolist(), latents(last).tolist()], rate=0.05)
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    flips = 0
    with bw.attach(net, optimizer):
        for step in range(5):
            made = torch.Generator().manual_seed(step)
            x = torch.rand(6, 12, generator=made).round().double()
            target = torch.randint(0, 3, (6,), generator=made)
            before = [latents(m) >= 0.5 for m in (first, last)]
            loss = F.cross_entropy(net(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert loss.item() == pytest.approx(oracle.step(x.tolist(), target.tolist()), abs=1e-6)
            for layer, expected in zip((first, last), oracle.latents, strict=True):
                assert (latents(layer) - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-6
            flips += sum(int((b != (latents(m) >= 0.5)).sum()) for b, m in zip(before, (first, last), strict=True))
    assert flips > 20 and any(bool(((w == 0) | (w == 1)).any()) for w in map(latents, (first, last)))


# -- decay of the latents ---------------------------------------------------------------------------------------------
def decaying(**slots: Any) -> nn.Sequential:
    torch.manual_seed(0)
    w = {"part": "zero_one", "decay": 0.5}
    return nn.Sequential(bw.nn.Linear(6, 5, bias=False, w=w, **slots), bw.nn.Linear(5, 4, w="zero_one"))


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD])
def test_decay_is_taken_from_latents_and_from_nothing_else(cls: Any) -> None:
    net = decaying()
    optimizer = cls(bw.param_groups(net, 0.1, 0.01))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with bw.attach(net, optimizer):
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    after = dict(net.named_parameters())
    assert torch.allclose(after["0.weight"], before["0.weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(after["1.weight"], before["1.weight"]) and torch.equal(after["1.bias"], before["1.bias"])


def test_a_chain_and_a_bias_have_the_decay_of_their_part() -> None:
    decay = {"part": "zero_one", "decay": 0.5}
    net = nn.Sequential(bw.nn.Linear(6, 5, w=[decay, "mask"], b=decay))
    latents = [g for g in bw.param_groups(net, 0.1, 0.01) if g["name"] == "latents"]
    assert [(len(g["params"]), g["weight_decay"]) for g in latents] == [(2, 0.5)]


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.NAdam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_an_optimizer_that_would_divide_the_decay_is_refused(cls: Any) -> None:
    net = decaying()
    with pytest.raises(
        InputError, match=f"0.w: .*decay=0.5 with {cls.__name__}.*Possible: AdamW, SGD, or decay=0"
    ) as error:
        bw.attach(net, cls(bw.param_groups(net, 0.1, 0.01)))
    assert isinstance(error.value, InputError) and error.value.layer == "0"
    bw.attach(nn.Sequential(net[1]), cls(bw.param_groups(net[1], 0.1, 0.01)))  # without a decay: nothing to refuse
    bw.attach(net, torch.optim.NAdam(bw.param_groups(net, 0.1, 0.01), decoupled_weight_decay=True))


def test_a_decay_that_the_optimizer_does_not_have_is_told() -> None:
    net = decaying()
    with pytest.warns(bw.BitwrightWarning, match="weight decay of 0.2"):
        bw.attach(net, torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.2))


def test_decay_keeps_off_what_only_noise_would_switch_on() -> None:
    """Gradients of random sign: without a decay latents walk across 1/2; a steady gradient keeps its connections."""
    shares = {}
    for decay in (0.0, 0.1):
        torch.manual_seed(1)
        layer: Any = bw.nn.Linear(100, 20, bias=False, w={"part": "zero_one", "decay": decay})
        optimizer = torch.optim.AdamW(bw.param_groups(layer, 1e-2, 0.0))
        with bw.attach(layer, optimizer):
            for _ in range(1500):
                layer.weight.grad = torch.randn_like(layer.weight)
                layer.weight.grad[:, :10] -= 1.0  # what the loss asks for, step after step
                optimizer.step()
        on = layer.w(layer.weight.detach())
        shares[decay] = (float(on[:, 10:].mean()), float(on[:, :10].mean()))
    assert shares[0.0][0] > 0.2 and shares[0.1][0] < 0.05
    assert shares[0.0][1] == shares[0.1][1] == 1.0
