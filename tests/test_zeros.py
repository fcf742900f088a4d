"""Masks and pruned weights in files: fewer bytes, the same bits, and no harm from files that lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.tensors import read_tensors, write_tensors
from bitwright.zeros import WORDS, bits_of, compressed, expanded


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit: NaN and -0 too."""
    if a.dtype in WORDS:
        a, b = a.contiguous().view(WORDS[a.dtype]), b.contiguous().view(WORDS[b.dtype])
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


# -- bytes by hand --------------------------------------------------------------------------------------------
def test_the_bytes_of_a_file_by_hand(tmp_path: Path) -> None:
    """80 weights, every fourth kept: 20 floats, and 10 bytes of 0x11 that the mask and the weight share."""
    mask = (torch.arange(80) % 4 == 0).to(torch.uint8).reshape(8, 10)
    weight = torch.where(mask.bool(), torch.arange(1.0, 81.0).reshape(8, 10), torch.zeros(()))
    write_tensors(tmp_path / "a.safetensors", {"w": weight, "m": mask}, {}, compress=True)
    raw = (tmp_path / "a.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8 : 8 + size])
    assert json.loads(head.pop("__metadata__")["compressed"]) == {
        "m": {"shape": [8, 10]},
        "w": {"shape": [8, 10], "bits": "m"},
    }
    assert {k: v["shape"] for k, v in head.items()} == {"m": [10], "w": [20]} and len(raw) == 8 + size + 20 * 4 + 10
    assert raw[-10:] == b"\x11" * 10 and raw[8 + size : 8 + size + 4] == b"\x00\x00\x80\x3f"
    back, _ = read_tensors(tmp_path / "a.safetensors")
    assert same(back["w"], weight) and same(back["m"], mask)


def test_what_does_not_pay_is_left_alone() -> None:
    dense, few = torch.arange(1.0, 129.0), torch.zeros(60)
    almost = torch.cat([torch.zeros(12), torch.ones(116)])  # 464 + 16 of 512 bytes
    codes, count = torch.arange(128, dtype=torch.uint8), torch.zeros(100, dtype=torch.int64)
    given = {"dense": dense, "few": few, "almost": almost, "codes": codes, "count": count}
    kept, metadata = compressed(given)
    assert metadata == {} and all(kept[k] is given[k] for k in given)
    kept, metadata = compressed({"a": torch.zeros(100), "a#bits": torch.ones(3)})  # the name is taken
    assert metadata == {} and set(kept) == {"a", "a#bits"}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([*WORDS]), st.integers(1, 400), st.floats(0, 1))
def test_every_tensor_comes_back_bit_for_bit(seed: int, dtype: torch.dtype, size: int, share: float) -> None:
    g = torch.Generator().manual_seed(seed)
    odd = torch.tensor([torch.nan, -0.0, torch.inf, 1e-45], dtype=torch.float64).to(dtype)
    values = torch.where(
        torch.rand(size, generator=g) < 0.2,
        odd[torch.randint(4, (size,), generator=g)],
        torch.randn(size, generator=g).to(dtype),
    )
    mask = torch.rand(size, generator=g) < share
    tensors = {"w": torch.where(mask, values, torch.zeros((), dtype=dtype)), "m": mask.to(torch.uint8), "v": values}
    tensors["twin"] = tensors["w"] * 1  # the same places once more: bits of its own
    kept, metadata = compressed(tensors)
    back = expanded(kept, metadata.get("compressed", "{}"))
    assert set(back) == set(tensors) and all(same(back[k], tensors[k]) for k in tensors)


# -- nets -----------------------------------------------------------------------------------------------------
def pruned(pattern: Any = None) -> Any:
    net = nn.Sequential(
        nn.Conv2d(8, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 4, 64)
    ).eval()
    batches = [torch.randn(256, 8, 4, 4)]
    if pattern:
        bw.procedures.sparse_gpt(net, batches, pattern=pattern)
    else:
        bw.procedures.l_obs(net, batches, keep=0.1)
    return net


@pytest.mark.parametrize("pattern", ["2:4", None])
def test_a_pruned_net_is_smaller_in_its_file_and_the_same_after_it(tmp_path: Path, pattern: Any) -> None:
    net = pruned(pattern)
    bytes_ = bw.save(net, tmp_path / "a.safetensors")
    weights = sum(m.weight.numel() for m in net if hasattr(m, "w"))
    share = 0.5 if pattern else 0.1
    assert bytes_ < weights * (4 * share + 1 / 8) + 4500  # norms, the header
    fresh = nn.Sequential(
        nn.Conv2d(8, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 4, 64)
    )
    loaded = bw.load(tmp_path / "a.safetensors", fresh)
    assert all(same(v, loaded.state_dict()[k]) for k, v in net.state_dict().items())


def test_weights_hidden_behind_a_mask_stay_in_the_file(tmp_path: Path) -> None:
    net: Any = nn.Sequential(nn.Linear(32, 32))
    bw.procedures.magnitude(net, keep=0.25)
    bw.save(net, tmp_path / "a.safetensors")
    loaded: Any = bw.load(tmp_path / "a.safetensors", nn.Sequential(nn.Linear(32, 32)))
    assert same(loaded[0].weight, net[0].weight) and int((loaded[0].weight != 0).sum()) == 1024
    assert read_tensors(tmp_path / "a.safetensors")[0]["0.w.mask"].dtype == torch.uint8


def test_convert_says_how_much_faster_a_linear_layer_of_zeros_is() -> None:
    """The verdict says what the times of the report are, whichever way they fall."""
    net = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)).eval()
    bw.procedures.magnitude(net, keep=0.05)
    report = bw.convert(net, torch.rand(32, 1024), force=True, verify=False).report
    assert "runs on the others alone" in report.rows[0].why
    assert report.ms_before and report.ms_after
    faster = report.ms_before > report.ms_after and not report.level
    says = "x the speed of its float net in torch" if faster else "but not faster"
    assert "smaller by its zeros, " in report.verdict and says in report.verdict


def test_convert_says_that_zeros_save_bytes_and_no_time(tmp_path: Path) -> None:
    net, x = pruned(), torch.randn(2, 8, 4, 4)
    refused = bw.convert(net, x)
    assert refused.model is None and "a CPU multiplies by them as fast as by anything else" in refused.report.verdict
    done = bw.convert(net, x, force=True)
    assert "smaller by its zeros, but not faster" in done.report.verdict
    row = done.report.rows[0]
    assert "90% of its weights are 0: fewer bytes, the same time" in row.why
    assert row.bytes_after == 4 * 230 + 32 * 72 // 8 + 4 * 32  # kept weights, bits, the bias of the norm
    bytes_ = done.save(tmp_path / "p.safetensors")
    assert bytes_ == done.report.file_bytes and bytes_ < 0.3 * 4 * (32 * 72 + 128 * 64)
    back = bw.load(tmp_path / "p.safetensors")
    assert done.model is not None and torch.equal(back(x), done.model(x))


# -- files that lie -------------------------------------------------------------------------------------------
W = {"shape": [8, 10], "bits": "m"}
M = {"shape": [8, 10]}


@pytest.mark.parametrize(
    "table",
    [
        "", "[]", "{", "1", '{"m":1}', '{"zz":{"shape":[1]}}', '{"m":{}}', '{"m":{"shape":[8,10],"more":1}}',
        '{"m":{"shape":[80.0]}}', '{"m":{"shape":[-80]}}', '{"m":{"shape":[0]}}', '{"m":{"shape":[true]}}', '{"m":{"shape":"80"}}',
        '{"m":{"shape":[8,11]}}', '{"m":{"shape":[1099511627776,1099511627776]}}', '{"m":{"shape":[1099511627775]}}',
        '{"m":{"shape":[80,1,1,1,1,1,1,1,1]}}', '{"w":{"shape":[20]}}', "[" * 100_000,
        json.dumps({"w": {"shape": [8, 10], "bits": "w"}}), json.dumps({"w": {"shape": [8, 10], "bits": "zz"}}),
        json.dumps({"w": {"shape": [8, 10], "bits": 3}}), json.dumps({"m": M, "w": {"shape": [80, 10], "bits": "m"}}),
        json.dumps({"m": M, "w": W, "v": W}), json.dumps({"m": W, "w": W}), json.dumps({"m": M, "short": W}),
        json.dumps({"m": M, "flat": W}), json.dumps({"m": M, "whole": W}), json.dumps({"tail": {"shape": [9]}}),
    ],
    ids=range(29),
)  # fmt: skip
def test_a_damaged_table_is_one_error(tmp_path: Path, table: str) -> None:
    mask = torch.arange(80) % 4 == 0
    tensors = {
        "m": bits_of(mask), "w": torch.ones(20), "v": torch.full((20,), 2.0), "short": torch.ones(19),
        "flat": torch.ones(4, 5), "whole": torch.ones(20, dtype=torch.int32), "tail": torch.tensor([255, 255], dtype=torch.uint8),
    }  # fmt: skip
    write_tensors(tmp_path / "a.safetensors", tensors, {"compressed": table})
    with pytest.raises(InputError, match="its compressed tensors are damaged"):
        read_tensors(tmp_path / "a.safetensors")


def test_the_name_is_taken_from_the_caller(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="metadata compressed"):
        bw.save(nn.Linear(2, 2), tmp_path / "a.safetensors", compressed="x")
