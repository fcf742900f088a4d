"""Linear layers by look-ups, every instruction set of this machine, against float64; and nets that run on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native, table_linear
from bitwright.engine.packed import PackedModel
from bitwright.engine.table_linear import TableTerm

pytestmark = pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")
ISAS = native.isas() if native.available() else []
LEVELS = {
    "one": (3,),
    "binary": (-1, 1),
    "bits": (0, 1),
    "ternary": (-1, 0, 1),
    "odd": (-3, -1, 1, 3),
    "many": tuple(range(-9, 7)),
}


def whole(levels: tuple[int, ...], o: int, k: int) -> Tensor:
    return torch.tensor(levels)[torch.randint(0, len(levels), (o, k))].int()


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 64, 32), (3, 130, 77), (1, 65, 1000)], ids=str)
def test_it_is_the_product(isa: str, levels: str, size: tuple[int, int, int]) -> None:
    n, o, k = size
    weight, x, scale, add = whole(LEVELS[levels], o, k), torch.randn(n, k), torch.rand(o) + 0.5, torch.randn(o)
    want = x.double() @ weight.double().t() * scale + add
    term = TableTerm(weight, scale, add)
    bound = 1e-6 * float((x.abs() @ weight.abs().float().t()).max()) + 1e-6
    for threads in (1, 3):
        assert float((term.run(x, threads=threads) - want).abs().max()) <= bound
    onto = torch.ones(n, o)
    assert float((term.run(x, onto) - want - 1).abs().max()) <= 2 * bound
    assert torch.equal(term.run(x[:1]), term.run(x)[:1])


def test_whole_numbers_are_exact_and_nan_stays_in_its_row(isa: str) -> None:
    weight, x = whole(LEVELS["ternary"], 70, 300), torch.randint(-50, 50, (4, 300)).float()
    term = TableTerm(weight, torch.ones(1), torch.zeros(1))
    assert torch.equal(term.run(x), x @ weight.float().t())
    x[2, 5] = torch.nan
    y = term.run(x)
    assert bool(y[2].isnan().any()) and not bool(y[[0, 1, 3]].isnan().any())


D4, D8 = ({"part": "dorefa_w", "bits": b} for b in (4, 8))


# batches of 1, 3 and 40 rows: two levels pay for all, three for two of them; two scales are two terms; 255 levels have no table
@pytest.mark.parametrize(("part", "calls"), [("bwn", 3), ("twn", 2), ("ttq", 6), (D4, 2), (D8, 0)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_runs_on_them(part: Any, calls: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_linear, "PAYS", dict.fromkeys(ISAS, table_linear.WIDE))
    torch.manual_seed(1)
    model = nn.Sequential(bw.nn.Linear(512, 300, bias=bias, w=part), nn.ReLU(), nn.Linear(300, 4)).eval()
    x, runs = torch.randn(40, 512), []
    kept = TableTerm.run
    monkeypatch.setattr(TableTerm, "run", lambda *a, **k: runs.append(1) or kept(*a, **k))
    done = bw.convert(model, x, verify=[x])
    packed, first = done.model, done.report.rows[0]
    assert isinstance(packed, PackedModel)
    assert first.runs_as == ("bits" if calls else "bits on disk, float run")
    assert ("looked up" in first.why) == ("save bytes, not time" not in done.report.verdict) == (calls > 0)
    runs.clear()
    for rows in (1, 3, 40):
        torch.testing.assert_close(packed(x[:rows]), model(x[:rows]), rtol=1e-5, atol=1e-5)
    assert len(runs) == calls


def test_few_weights_stay_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_linear, "TableTerm", None)
    x = torch.randn(2, 64)
    bw.convert(nn.Sequential(bw.nn.Linear(64, 32, w="bwn")).eval(), x, verify=[x])
