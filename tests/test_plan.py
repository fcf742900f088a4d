"""plan: the table before anything is changed."""

from __future__ import annotations

import copy
import csv
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.transforms import apply, plan, walk


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(F.relu(self.bn(self.conv1(x)))).mean((2, 3)))


X = torch.zeros(2, 3, 4, 4)


def test_rows() -> None:
    table = plan(Net(), "xnor", X)
    got = [(r.name, r.kind, r.shape, r.rule, r.w, r.x, r.bits, r.macs, r.note) for r in table.rows]
    assert got == [
        ("conv1", "Conv2d", "3>4 3x3", "1", "float", "float", "32/32", 4 * 16 * 27, "first"),
        ("conv2", "Conv2d", "4>4 3x3 g2", "0", "xnor", "norm+sign", "1/1", 4 * 16 * 18, ""),
        ("fc", "Linear", "4>2", "2", "float", "float", "32/32", 8, "last"),
    ]
    assert table.totals["macs"] == 1728 + 1152 + 8 and table.totals["one_bit_macs"] == 1152
    assert table.totals["by_bits"] == {"binary": 1, "float": 2}
    assert table.totals["float_weight_bytes"] == 4 * (108 + 72 + 8)
    assert table.totals["weight_bytes"] == 4 * (108 + 8) + 72 / 8
    assert table.untouched == "1 BatchNorm2d"


def test_plan_agrees_with_apply_and_walk() -> None:
    for recipe in ("xnor", "ttq", "dorefa-w1a2", "w8a8"):
        net: Any = Net()
        table = plan(net, recipe, X)
        rows = walk(apply(net, recipe, X), X)
        for a, b in zip(table.rows, rows, strict=True):
            assert (a.name, a.macs, a.w, a.x, a.w_bits, a.x_bits) == (
                b.name,
                b.macs,
                b.w_part,
                b.x_part,
                b.w_bits,
                b.x_bits,
            )
            assert (a.weight_bytes, a.float_bytes) == (b.weight_bytes, b.float_bytes)


def test_several_deciding_rules() -> None:
    table = plan(
        Net(),
        [{"match": "*", "w": "bwn", "x": "sign"}, {"match": "fc", "w": "ttq"}, {"match": "fc", "w": "bwn"}],
    )
    assert [r.rule for r in table.rows] == ["0", "0", "0,2"]
    assert [r.macs for r in table.rows] == [None] * 3


def test_nothing_is_changed() -> None:
    net: Any = Net()
    net.conv2 = bw.nn.Conv2d(4, 4, 3, padding=1, w="bwn")
    modules, state = [id(m) for m in net.modules()], copy.deepcopy(net.state_dict())
    contents = [dict(m.__dict__) for m in net.modules()]
    parameters, rng = [id(p) for p in net.parameters()], torch.get_rng_state()
    plan(net, [{"match": "*", "w": ["mask", "ttq"], "x": ["norm", "sign"], "g": "float"}], X)
    assert [id(m) for m in net.modules()] == modules and [id(p) for p in net.parameters()] == parameters
    assert [dict(m.__dict__) for m in net.modules()] == contents
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not hasattr(net, "bitwright_recipe")


def test_sign_after_relu_is_a_warning_here() -> None:
    table = plan(Net(), [{"match": "*", "w": "bwn"}, {"match": "conv2", "x": "sign"}], X)
    assert len(table.warnings) == 1
    for word in (
        "conv2",
        "a relu in the model's forward",
        'x = ["norm", "sign"] in rule 1',
        'activation="identity"',
    ):
        assert word in table.warnings[0]
    assert "warn: conv2" in str(table) and plan(Net(), "xnor", X).warnings == []


def test_many_warnings_are_one_line() -> None:
    net: Any = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(2, 2), nn.ReLU())])
    (text,) = plan(net, [{"match": "*", "x": "sign"}], torch.zeros(1, 2)).warnings
    assert text.startswith("2 and 2 more take the sign of the output of 1 (relu)")


def test_errors_say_plan() -> None:
    with pytest.raises(
        InputError,
        match=r'^plan Net: rule 0 match="layer5.*" selects no layer. Names here: conv1, conv2, fc',
    ):
        plan(Net(), [{"match": "layer5.*", "w": "bwn"}])
    with pytest.raises(InputError, match=r"^plan: rule 0: fc: part dorefa_w: bits=9"):
        plan(Net(), [{"match": "fc", "w": {"part": "dorefa_w", "bits": 9}}])


def test_skipped_layers_are_listed() -> None:
    class Mine(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return -super().forward(input)

    table = plan(nn.Sequential(Mine(2, 2), nn.Linear(2, 2)), [{"match": "*", "w": "bwn"}], torch.zeros(1, 2))
    assert [(r.name, r.w, r.macs) for r in table.rows] == [("0", "float", 4), ("1", "bwn", 4)]
    assert table.rows[0].note == "skipped: Mine, subclass of Linear with its own forward"


def test_shared_fused_and_optional_are_noted() -> None:
    shared = nn.Linear(2, 2)
    table = plan(
        nn.Sequential(shared, shared),
        [{"match": "*", "w": "bwn"}, {"match": "z", "w": "bwn", "optional": True}],
    )
    assert len(table.rows) == 1 and table.rows[0].note == "shared: 1" and "no layer, optional" in str(table)
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    notes = {r.name: r.note for r in plan(encoder, [{"match": "*", "w": "bwn"}], torch.zeros(1, 3, 4)).rows}
    assert notes["linear1"] == "fused encoder kernel is switched off"
    assert "MultiheadAttention" in notes["self_attn.out_proj"]


def test_tied_weights_are_checked() -> None:
    net: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    with pytest.raises(InputError, match="share one weight"):
        plan(net, [{"match": "0", "w": "bwn"}, {"match": "1", "w": "ttq"}])


def test_forms_agree() -> None:
    table = plan(Net(), "xnor", X)
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [int(r["macs"]) for r in rows] == [r["macs"] for r in table.to_dict()["rows"]]
    assert table.to_markdown().splitlines()[2].startswith("| conv1 | Conv2d | 3>4 3x3 | 1 |")
    assert "total    3 layers: 1 binary, 2 float" in str(table)


def test_like_rows_are_cut_short() -> None:
    net: Any = nn.Sequential(*[nn.Linear(2, 2) for _ in range(9)])
    text = plan(net, "bwn").text(limit=2)
    assert "...  5 more like these (--all)" in text and "\n3 " not in text
