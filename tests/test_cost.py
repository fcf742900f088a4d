"""cost: every number written out."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.analysis import cost
from bitwright.analysis.energy import load_energy
from bitwright.errors import InputError


def test_binary_linear_by_hand() -> None:
    (row,) = cost(nn.Sequential(bw.nn.Linear(64, 10, w="bwn", x="sign")), torch.zeros(4, 64)).rows
    assert row.macs == 640 and row.bops == 640 * 1 * 1
    assert row.weight_bytes == 640 / 8
    assert row.float_bytes == 4 * (10 + 10)  # bias, one scale a row
    assert row.activation_bytes == 64 / 8 + 10 * 4
    mac = 0.2 * 1 * 1 / 64 + 0.1 * (1 + 1) / 32
    assert row.compute_pj == pytest.approx(640 * mac)
    assert row.memory_pj == pytest.approx((80 + 80 + 8 + 40) * 100 / 8)  # 1 MB SRAM: 100 pJ per 8 bytes
    assert row.energy_pj == pytest.approx(row.compute_pj + row.memory_pj)


def test_float_conv_by_hand() -> None:
    (row,) = cost(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False)), torch.zeros(2, 3, 6, 6)).rows
    macs = 8 * 4 * 4 * 3 * 3 * 3
    assert row.macs == macs and row.bops == macs * 32 * 32
    assert row.weight_bytes == 8 * 27 * 4 and row.float_bytes == 0
    assert row.activation_bytes == (3 * 6 * 6 + 8 * 4 * 4) * 4
    assert row.compute_pj == pytest.approx(macs * (3.7 + 0.9))


def test_planes_of_mixed_bits() -> None:
    layer: Any = bw.nn.Linear(8, 4, w="ttq", x={"part": "dorefa_a", "bits": 3})
    (row,) = cost(nn.Sequential(layer), torch.zeros(1, 8)).rows
    assert row.bops == 32 * 2 * 3


def test_energy_table() -> None:
    table = load_energy("horowitz45")
    assert table.mac_pj(32, 32) == pytest.approx(3.7 + 0.9)
    assert table.mac_pj(1, 32) == table.mac_pj(2, 32) == 0.9
    assert table.mac_pj(4, 32) == pytest.approx(3.7 + 0.9)
    assert table.mac_pj(8, 8) == pytest.approx(0.2 + 0.05)
    assert table.byte_pj == 12.5
    assert "Horowitz" in table.source


def test_totals_are_the_sums() -> None:
    net: Any = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), bw.nn.Linear(6, 4, w="bwn"))
    table = cost(net, torch.zeros(3, 8))
    for key in ("macs", "bops", "weight_bytes", "float_bytes", "activation_bytes", "energy_pj"):
        assert table.totals[key] == pytest.approx(sum(getattr(r, key) for r in table.rows))
    assert table.totals["macs"] == 8 * 6 + 6 * 4
    assert table.totals["bops"] == 48 * 32 * 32 + 24 * 1 * 32


def test_batch_size_does_not_matter() -> None:
    net: Any = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 2))
    one, many = cost(net, torch.zeros(1, 2, 6, 6)), cost(net, torch.zeros(7, 2, 6, 6))
    assert one.totals == many.totals


def test_density_is_weighed_by_macs() -> None:
    masked: Any = bw.nn.Linear(4, 2, w="mask", bias=False)
    masked.w.mask[0] = 0
    table = cost(nn.Sequential(nn.Linear(8, 4), masked), torch.zeros(1, 8))
    assert table.totals["density"] == pytest.approx((32 * 1 + 8 * 0.5) / 40)


def test_unknown_is_printed() -> None:
    class Own(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return t

    table = cost(nn.Sequential(bw.nn.Linear(4, 2, w=Own())), torch.zeros(1, 4))
    assert table.rows[0].bops == 8 * 32 * 32
    assert "unknown/32" in str(table) and "unknown bits, counted as float: 0" in str(table)
    assert "unknown" in table.to_csv() and table.to_dict()["totals"]["unknown"] == ["0"]


def test_forms_agree() -> None:
    table = cost(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.zeros(1, 4))
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [int(r["macs"]) for r in rows] == [r["macs"] for r in table.to_dict()["rows"]] == [12, 6]
    assert table.to_markdown().count("\n") == 1 + 2 + 1
    assert str(table).splitlines()[3].startswith("total")


def test_unknown_energy_table() -> None:
    with pytest.raises(InputError, match=r"energy horowitz: no such table or file. Nearest: horowitz45."):
        cost(nn.Sequential(nn.Linear(1, 1)), torch.zeros(1, 1), energy="horowitz")


def test_resnet20() -> None:
    from bitwright import models

    net = models.create("resnet20")
    table = cost(net, torch.zeros(1, 3, 32, 32))
    blocks = 6 * 16 * 16 * 9 * 32 * 32 + (16 * 32 + 5 * 32 * 32) * 9 * 16 * 16 + (32 * 64 + 5 * 64 * 64) * 9 * 8 * 8
    assert table.totals["macs"] == 3 * 16 * 9 * 32 * 32 + blocks + 64 * 10


def test_words_stand_to_the_left_and_numbers_to_the_right() -> None:
    table = bw.cost(bw.models.create("lenet5"), torch.zeros(1, 1, 28, 28))
    assert table.to_markdown().splitlines()[1] == "| " + " | ".join(["---"] * 4 + ["---:"] * 6 + ["---"]) + " |"
    head, *rows = str(table).splitlines()[: len(table.rows) + 2]
    at = head.index("MACs, k") + len("MACs, k")  # one unit for the whole column
    assert all(row[at - 1].isdecimal() for row in rows) and not any(
        mark in str(rows) for mark in (" k ", " M ", " kB ")
    )
    assert all(row.index(r.kind) == head.index("kind") for row, r in zip(rows, table.rows, strict=False))
