"""connections: counts by hand, live units by a slow walk over paths, which layers count, which order they have."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright as bw
from bitwright.analysis.connections import connections
from bitwright.errors import InputError


def linear(weight: Any, **slots: Any) -> Any:
    w = torch.as_tensor(weight, dtype=torch.float32)
    layer = bw.nn.Linear(w.shape[1], w.shape[0], bias=False, **({"w": "zero_one"} | slots))
    with torch.no_grad():
        layer.weight.copy_(w)
    return layer


CHAIN = (
    [[0.9, 0.5, 0.0], [0.4, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.6]],  # unit 1 hears nothing (0.4 is off)
    [[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]],  # units 2 and 3 are heard by nobody
)


def test_counts_and_live_units_by_hand() -> None:
    found = connections(nn.Sequential(linear(CHAIN[0]), nn.Tanh(), nn.BatchNorm1d(4), linear(CHAIN[1])))
    first, second = found.rows
    assert (first.layer, first.weights, first.units, first.on, first.share) == ("0", 12, 4, 4, 4 / 12)
    assert (first.fan_in_mean, first.fan_in_max, first.no_input, first.live, first.dead) == (1.0, 2, 1, 1, 3)
    assert (second.layer, second.on, second.fan_in_mean, second.fan_in_max, second.no_input) == ("3", 3, 1.5, 2, 0)
    assert second.live == 1, "class 1 hears only a unit that hears nothing"
    assert (found.weights, found.on, found.units, found.live) == (20, 7, 6, 2)
    assert found.share == 7 / 20
    assert (found.inputs, found.inputs_used, found.left_out, found.all_off) == (3, 2, (), [])


def paths(weights: list[list[list[int]]]) -> list[list[bool]]:
    """Slowly: which unit of which layer lies on a path from an input to an output; every path is walked."""
    alive = [[False] * len(w) for w in weights]

    def walk(depth: int, unit: int, trail: list[int]) -> None:
        trail = [*trail, unit]
        if depth == len(weights) - 1:
            for level, u in enumerate(trail):
                alive[level][u] = True
            return
        for after in range(len(weights[depth + 1])):
            if weights[depth + 1][after][unit]:
                walk(depth + 1, after, trail)

    for unit, row in enumerate(weights[0]):
        for on in row:
            if on:
                walk(0, unit, [])
    return alive


sizes = st.lists(st.integers(1, 5), min_size=2, max_size=5)


@settings(max_examples=60, deadline=None)
@given(sizes, st.floats(0.05, 0.9), st.integers(0, 999), st.booleans())
def test_live_units_are_those_on_paths(widths: list[int], share: float, seed: int, traced: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    drawn = [(torch.rand(o, i, generator=g) < share).int().tolist() for i, o in itertools.pairwise(widths)]
    net = nn.Sequential(*(m for w in drawn for m in (linear(w), nn.Tanh())))
    found = connections(net, torch.zeros(2, widths[0]) if traced else None)
    assert [r.live for r in found.rows] == [sum(level) for level in paths(drawn)]
    assert [r.on for r in found.rows] == [sum(map(sum, w)) for w in drawn]
    assert [r.no_input for r in found.rows] == [sum(not any(row) for row in w) for w in drawn]
    assert sum(r.live or 0 for r in found.rows) <= found.units
    assert found.inputs == widths[0] and (found.inputs_used or 0) <= widths[0]


def test_only_layers_with_zero_one_weights_count() -> None:
    """The notebook's statistics cover every parameter, batch norms too."""
    net = nn.Sequential(
        nn.Linear(3, 3), nn.BatchNorm1d(3), linear(torch.eye(3)), nn.BatchNorm1d(3), bw.nn.Linear(3, 3, w="bwn"),
        nn.BatchNorm1d(3), nn.Linear(3, 2),
    )  # fmt: skip
    found = connections(net)
    assert [r.layer for r in found.rows] == ["2"] and found.weights == 9 and found.on == 3
    assert found.live == 3, "float and other layers pass everything on"
    net = nn.Sequential(nn.Linear(3, 3), linear([[1, 0, 0], [1, 0, 0], [0, 0, 0]]), nn.Linear(3, 2))
    assert connections(net).live == 2


@pytest.mark.parametrize(
    ("on", "off", "threshold", "count"),
    [(1.0, 0.0, 0.5, 5), (0.0, 0.0, 0.5, 5), (2.0, -1.0, 0.5, 5), (1.0, 0.0, 0.95, 1)],
)
def test_a_connection_is_a_latent_at_the_threshold_whatever_it_is_worth(
    on: float, off: float, threshold: float, count: int
) -> None:
    slot = {"part": "zero_one", "on": on, "off": off, "threshold": threshold, "init": "keep"}
    layer = linear([[0.9, 0.5, 0.0], [0.4, 0.9, 0.9], [1.0, 0.49, 0.0]], w=slot)
    assert connections(nn.Sequential(layer)).on == count


def test_a_mask_takes_connections_away() -> None:
    layer = linear(torch.ones(2, 3), w=["zero_one", "mask"])
    layer.w.mask.mask[0] = 0
    found = connections(nn.Sequential(layer))
    assert found.on == 3 and found.rows[0].no_input == 1


def test_all_off_is_named() -> None:
    net = nn.Sequential(linear(torch.ones(3, 2)), nn.BatchNorm1d(3), linear(torch.zeros(2, 3)), nn.BatchNorm1d(2))
    found = connections(net)
    assert found.all_off == ["2"] and found.live == 0 and found.inputs_used == 0
    assert found.rows[1].share == 0.0 and "0.00" in str(found)


class Residual(nn.Module):
    """y = c(h + b(h)), h = a(x); d is never called and stands before all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.d = linear(torch.ones(2, 2))
        self.c = linear([[0, 1]])
        self.b = linear([[1, 0], [0, 0]])
        self.a = linear([[1, 0], [0, 1]])

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.c(h + torch.tanh(self.b(h)))


def test_the_order_is_that_of_execution_and_adds_join() -> None:
    found = connections(Residual(), torch.zeros(2, 2))
    assert [(r.layer, r.live) for r in found.rows] == [("a", 1), ("b", 0), ("c", 1)]
    assert found.left_out == ("d",) and found.weights == 10


def test_without_an_example_what_does_not_fit_is_unknown() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = linear(torch.ones(2, 5)), linear(torch.ones(5, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    net = Turned()
    blind, seeing = connections(net), connections(net, torch.zeros(1, 3))
    assert [r.live for r in blind.rows] == [None, None] and blind.live is None and blind.inputs is None
    assert blind.on == seeing.on and seeing.live == 7 and str(blind).splitlines()[-1].endswith("-")


def test_convolutions_count_channels_and_flatten() -> None:
    conv: Any = bw.nn.Conv2d(2, 3, 2, bias=False, w="zero_one")
    grouped: Any = bw.nn.Conv2d(4, 4, 1, groups=2, bias=False, w="zero_one")
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 0, 0] = conv.weight[0, 0, 1, 1] = conv.weight[2, 1, 0, 0] = 1
    last = torch.zeros(2, 3 * 4)
    last[0, 0:4], last[1, 4:8] = 1, 1  # all positions of channel 0, and of channel 1, which hears nothing
    found = connections(nn.Sequential(conv, nn.Tanh(), nn.Flatten(), linear(last)), torch.zeros(1, 2, 3, 3))
    assert [(r.units, r.on, r.fan_in_max, r.no_input, r.live) for r in found.rows] == [(3, 3, 2, 1, 1), (2, 8, 4, 0, 1)]
    assert (found.inputs, found.inputs_used) == (2, 1)
    with torch.no_grad():
        grouped.weight.zero_()
        grouped.weight[2, 1] = 1  # output 2 is in group 1, whose second input is input 3
    found = connections(nn.Sequential(grouped, grouped_reader(4)), torch.zeros(1, 4, 1, 1))
    assert [r.live for r in found.rows] == [1, 1] and found.inputs_used == 1


def grouped_reader(n: int) -> Any:
    reader: Any = bw.nn.Conv2d(n, 1, 1, bias=False, w="zero_one")
    with torch.no_grad():
        reader.weight.fill_(1)
    return reader


def test_concatenated_layers_are_not_guessed() -> None:
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = linear(torch.ones(2, 3)), linear(torch.ones(2, 3)), linear(torch.ones(1, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    found = connections(Cat(), torch.zeros(1, 3))
    assert found.live is None and found.on == 16


def test_nothing_changes_and_forms() -> None:
    net = nn.Sequential(linear(CHAIN[0]), nn.BatchNorm1d(4), linear(CHAIN[1])).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = connections(net, torch.rand(3, 3))
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["totals"] == {"weights": 20, "on": 7, "share": 0.35, "units": 6, "live": 2}
    assert plain["rows"][0]["layer"] == "0" and plain["rows"][0]["share"] == pytest.approx(1 / 3)
    lines = found.to_markdown().splitlines()
    assert lines[0].startswith("| layer | weights | on | on % |") and lines[-1].startswith("| total | 20 | 7 | 35.00 |")
    assert found.to_csv().splitlines()[1].startswith("0,0.333")


def test_refusal() -> None:
    with pytest.raises(InputError, match="connections: the model has no layer with 0/1 weights"):
        connections(nn.Sequential(bw.nn.Linear(2, 2, w="bwn"), nn.BatchNorm1d(2)))
