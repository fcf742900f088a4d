"""Traits of parts: stated in one place, read in one place, and a new one costs a line."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.parts.gate_call import GateCall
from bitwright.parts.traits import Traits, title_of, traits_of

ROOT = Path(bw.__file__).parent
NAMES = {each.name for each in fields(Traits)}


def lookups(source: str) -> list[str]:
    """Traits that a file asks for by name: getattr, hasattr and setattr with a string."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            name = node.args[1]
            asks = node.func.id in ("getattr", "hasattr", "setattr")
            if asks and isinstance(name, ast.Constant) and name.value in NAMES:
                found.append(f"line {node.lineno}: {name.value}")
    return found


def test_lookups_are_found() -> None:
    assert lookups('if getattr(part, "bits", 32) == 32: pass') == ["line 1: bits"]
    assert lookups('x = hasattr(gate, "keep"); y = traits_of(gate).keep; z = getattr(a, "weight")') == ["line 1: keep"]


def test_no_other_file_looks_a_trait_up_by_name() -> None:
    others = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "parts" / "traits.py"]
    found = {path.relative_to(ROOT).as_posix(): lookups(path.read_text()) for path in others}
    assert {name: lines for name, lines in found.items() if lines} == {}


COUNTERS = [
    *sorted((ROOT / "engine").glob("*.py")),
    *(ROOT / "analysis" / f"{n}.py" for n in ("count", "active", "cost")),
]
COUNTERS += [ROOT / "analysis" / f"{n}.py" for n in ("budget", "budget_fit", "mac_count", "tally")]
SHARED = {"moments", "traits", "registry", "chain", "gate_call", "split_gate", "scale"}  # no method among them


@pytest.mark.parametrize("path", COUNTERS, ids=lambda p: p.name)
def test_engine_and_counters_know_no_method(path: Path) -> None:
    methods = {cls.__module__ for cls in map(bw.parts.part_class, bw.parts())}  # type: ignore[operator]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.module not in methods, f"{path.name} imports {node.module}"
        if isinstance(node, ast.Compare) and "part_name" in ast.unparse(node):
            raise AssertionError(f"{path.name} line {node.lineno} compares the name of a part")


def test_what_a_part_does_not_state_has_the_default() -> None:
    for each in fields(Traits):
        assert getattr(traits_of(nn.ReLU()), each.name) == getattr(Traits(), each.name) == each.default
        assert getattr(traits_of(None), each.name) == each.default
    assert title_of(nn.ReLU()) == "ReLU" and title_of(bw.make_part("sign")) == "sign"


def test_a_trait_may_hang_on_options() -> None:
    layer = nn.Conv2d(8, 8, 3)
    split = bw.make_part("channel_gate", layer=layer)
    assert traits_of(split).one_sided and traits_of(split).governed is False and traits_of(split).needs_code
    with pytest.warns(bw.BitwrightWarning, match="nothing to split"):
        single = bw.make_part("channel_gate", layer=nn.Conv2d(1, 1, 3))
    assert not traits_of(single).one_sided  # it decides nothing
    assert traits_of(bw.make_part("fbs", layer=layer, keep=0.25)).keep == 0.25
    static, batch = (bw.make_part("precision_gate", layer=layer, scale=s) for s in ("static", "batch_max"))
    assert not traits_of(static).reads_batch and traits_of(batch).reads_batch


def test_a_name_that_is_no_trait_is_an_error() -> None:
    with pytest.raises(KeyError):
        _ = traits_of(nn.ReLU()).bit  # type: ignore[attr-defined]


def test_a_new_trait_costs_one_line(tmp_path: Path) -> None:
    """In a copy of the package: one line in `Traits`, then a part may state it and any file may read it."""
    copy = tmp_path / "traits.py"
    source = (ROOT / "parts" / "traits.py").read_text()
    after = "    keep: float | None = None"
    assert source.count(after) == 1
    copy.write_text(source.replace(after, "    warm: int = 3  # steps in which it only looks on\n" + after))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import traits\n"
        "class Warm: warm = 7\n"
        "print(traits.traits_of(Warm()).warm, traits.traits_of(object()).warm)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "7 3\n"


class Doubling(nn.Module):
    """A gate that needs nothing."""

    def forward(self, op: GateCall, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        assert op.raw is None and op.code is None and op.w_code is None
        return 2 * op(x, w, b)


class Curious(nn.Module):
    """A gate that reads everything."""

    needs_raw_input = True
    needs_code = True

    def forward(self, op: GateCall, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        assert op.raw is not None and op.code is not None
        numbers, unit = op.code
        assert torch.equal(numbers * unit, x)
        assert (op.w_code is None) == self.training
        if op.w_code is not None:
            numbers, unit = op.w_code
            assert torch.allclose(op.from_slot(numbers * unit), w)
        return op(x, w, b) + op.raw.sum() * 0


@pytest.mark.parametrize("training", [True, False])
def test_every_gate_is_called_the_same_way(training: bool) -> None:
    x = torch.randn(2, 4)
    for gate, factor in ((Doubling(), 2.0), (Curious(), 1.0)):
        layer = bw.nn.Linear(4, 3, w="bwn", x=["norm", "sign"], gate=gate).train(training)
        plain = bw.nn.Linear(4, 3, w="bwn", x=["norm", "sign"]).train(training)
        plain.load_state_dict(layer.state_dict())
        assert torch.allclose(layer(x), factor * plain(x), atol=1e-6)
