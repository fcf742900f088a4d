"""Every law on every registered part and its interesting options; and every law is able to fail."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import bitwright as bw
from bitwright.errors import InputError
from bitwright.fn.coded import sign_code
from bitwright.fn.ste import sign, ste
from bitwright.parts import forget, part
from bitwright.testing import LAWS, Case, Law, LawError, cases, laws
from bitwright.testing.case import after_steps, inputs
from bitwright.types import Coded
from processes import spawned

# Beyond the defaults; a part that is not listed is tried with its defaults and `bits` 1, 2, 3, 8.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "binaryconnect": [
        {"scale": 0.1, "stochastic": True},  # of the latents' size: else 30 steps are mostly noise
        {"scale": 0.1, "stochastic": True, "evaluate": "sign"},
    ],
    "bwn": [{"granularity": "layer"}, {"compat": "seed"}],
    "bireal": [{"clip": False}],
    "channel_gate": [
        {"splits": 2, "group": False, "unit": "raw", "sparse_backprop": False},
        {"shuffle": True, "init": -9.0},
        {"compat": "seed"},
    ],
    "codebook": [
        {"levels": "pow2:7", "granularity": "layer"},
        {"levels": "uniform:16"},
        {"levels": "uniform:256", "granularity": "layer"},
        {"levels": "uniform:5", "group": 7},
    ],
    "dorefa_g": [{"bits": 1}],
    "dropout": [{"p": 0.2}],
    "fbs": [{"keep": 1.0}, {"keep": 0.25, "channel_block": 2, "l1": 1e-3}, {"compat": "seed"}],
    "heaviside": [
        {"threshold": 0.5, "boundary": "open"},
        {"surrogate": "approx"},
        {"surrogate": "identity"},
        {"surrogate": "swish", "threshold": -0.25},
    ],
    "input8": [
        {"mean": "measured"},
        {"mean": 0.5, "std": 0.25},
        {"mean": [0.1, 0.2, 0.3, 0.4], "std": [0.2, 0.3, 0.2, 0.3]},
    ],
    "kbit": [
        {"bits": 1},
        {"bits": 4, "weight_scale": "max"},
        {"bits": 3, "weight_scale": "std"},
        {"bits": 2, "weight_scale": "lsq"},
        {"bits": 2, "clip": False},
        {"bits": 2, "compat": "seed"},
    ],
    "lsq": [{"bits": 1, "signed": False}, {"bits": 3, "per_channel": True}, {"bits": 8, "signed": True}],
    "mask": [{"grow": True}],
    "metaquant": [
        {"quantizer": "bwn", "net": "mlp", "gate": True},
        {"quantizer": "bwn", "granularity": "filter", "net": "multi_fc"},
        {"bits": 3, "net": "lstm_fc", "hidden": 4, "refine": "adam", "lr": 0.01},
    ],
    "pact": [{"bits": 1, "alpha": 1.0}, {"bits": 8, "alpha": 0.7}, {"compat": "seed"}],
    "precision_gate": [
        {"bits": 3, "top": 1, "unit": "normalized", "penalty": "sq"},
        {"bits": 8, "top": 4, "sparse_backprop": False},
        {"scale": "batch_max"},
        {"compat": "seed"},
    ],
    "rsign": [],
    "sign_magnitude": [{"bits": 1}, {"bits": 3, "scale": "static"}, {"bits": 2, "compat": "seed"}],
    "sign": [
        {"surrogate": s, "boundary": b} for s, b in (("approx", "open"), ("identity", "closed"), ("swish", "open"))
    ]
    + [{"boundary": "open"}, {"compat": "seed"}],
    "ttq": [{"threshold": 0.3, "init": "one"}, {"threshold": 0.0}, {"compat": "seed"}, {"grid": 127}],
    "twn": [{"granularity": "layer"}],
    "uniform": [
        {"bits": 1, "signed": False},
        {"bits": 3, "granularity": "channel"},
        {"bits": 4, "signed": True},
        {"bits": 4, "signed": False, "observer": "percentile"},
        {"bits": 2, "symmetric": False, "observer": "mse"},
        {"bits": 8, "symmetric": False, "granularity": "channel"},
        {"bits": 4, "observer": "ema"},
        {"bits": 8, "signed": True, "observer": "mse", "granularity": "channel"},
    ],
    "xnor": [{"center": "graph"}, {"center": "off"}, {"compat": "seed"}],
    "xnor_k": [{"detach": False}],
    "zero_one": [
        {"on": 0.5, "off": -0.5},
        {"random_mag": 0.5, "epsilon": 0.5},
        {"threshold": 0.9, "init": "fan_in:8"},
        {"decay": 0.05},
    ],
}
# Four means fit four channels: laws that build other layers cannot take them.
FOUR_CHANNELS = "mean=["


def variants(name: str) -> list[dict[str, Any]]:
    listed = OPTIONS.get(name, [{"bits": b} for b in (1, 2, 3, 8)] if "bits" in bw.parts()[name].options else [])
    return [{}, *listed]


def of_other_widths(law: Law, case: Case) -> bool:
    return FOUR_CHANNELS in str(case) and law.name in ("finite_values", "after_step", "learns")


CASES = [case for name in sorted(bw.parts()) for options in variants(name) for case in cases(name, **options)]
DEFAULTS = [case for case in CASES if not case.options]
COMPILED_FAST = {"bwn": "w", "sign": "x", "dorefa_g": "g", "fbs": "gate"}  # a part of each slot; the rest below, slowly


@pytest.mark.few(*map(str, DEFAULTS))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_laws(case: Case) -> None:
    """Every law that is quick; what is said of a failure names the law."""
    for law in LAWS:
        if not law.slow and law.applies(case) and not of_other_widths(law, case):
            law(case)


@pytest.mark.few(every=3)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_laws_that_train_or_compile(case: Case) -> None:
    for law in LAWS:
        if law.slow and law.applies(case) and (law.name != "compiled" or COMPILED_FAST.get(case.part) == case.slot):
            law(case)


@pytest.mark.slow
@pytest.mark.parametrize("law", [law for law in LAWS if law.slow], ids=str)
@pytest.mark.parametrize("name", sorted(bw.parts()))
def test_slow_laws_on_every_option(law: Any, name: str) -> None:
    for options in variants(name):
        for case in cases(name, **options):
            if law.applies(case) and not of_other_widths(law, case):
                law(case)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bwn", "dorefa_a", "ttq", "uniform"])
def test_the_default_compiler_gives_the_same_loss(name: str) -> None:
    for case in cases(name):
        layer, x = case.layer().eval(), inputs()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = torch.compile(layer, fullgraph=True)(x).square().mean()
        torch.testing.assert_close(loss, layer(x).square().mean(), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.slow
def test_laws_says_what_it_checked() -> None:
    checked = laws("bwn")
    assert {"dtype", "encode", "planes", "after_step", "projection", "keep", "learns", "compiled"} <= set(checked)
    assert not {"encode", "planes", "after_step"} & set(laws("dropout"))


def test_laws_refuses_unknown_parts_and_options() -> None:
    with pytest.raises(InputError, match="Nearest: bwn"):
        laws("bwm")
    with pytest.raises(InputError, match="unknown option bit=3"):
        laws("dorefa_a", bit=3)
    with pytest.raises(InputError, match="serves slot x only"):
        laws("sign", slot="w")


def test_an_option_that_serves_one_slot_is_tried_there() -> None:
    assert [case.slot for case in cases("uniform", observer="ema")] == ["x"]


# -- each law can fail: a good part, and one change that breaks it


class Good(nn.Module):
    """Binary weights without a scale, for these tests.

    value     +1 or -1
    gradient  g where |w| <= 1
    source    none

    >>> Good()(torch.tensor([0.5])).tolist()
    [1.0]
    """

    bits = 1
    planes = 1
    storage_bits = 1
    projects = True

    def __init__(self, size: float = 1.0) -> None:
        super().__init__()
        self.size = size

    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        return ste(w, sign(w.detach()), w.detach().abs() <= 1) * self.size

    def encode(self, w: Tensor, keep: Tensor | None = None) -> Coded:
        return sign_code(w, torch.full((), self.size, dtype=w.dtype))

    @torch.no_grad()
    def after_step(self, weight: Tensor) -> None:
        weight.clamp_(-1, 1)


class Float32(Good):
    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        return super().forward(w).float()


class OtherShape(Good):
    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        return super().forward(w).flatten()


class DividesByZero(Good):
    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        return super().forward(w) * (w.abs().max() / w.abs().max()).detach()


class ThreeLevels(Good):
    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        return ste(w, torch.sign(w.detach())) * self.size


class ReadsMemory(Good):
    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        flat = w.as_strided((w.numel(),), (1,), w.storage_offset()).reshape(w.shape) if w.numel() else w
        return super().forward(flat)


class SeesPruned(Good):
    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        return super().forward(w - w.detach().mean())


class OtherCode(Good):
    def encode(self, w: Tensor, keep: Tensor | None = None) -> Coded:
        return sign_code(-w, torch.ones((), dtype=w.dtype))


class Withholds(Good):
    """Says that it has no code, and gives one all the same."""

    def offers(self, moment: str) -> bool:
        return moment != "encode"


class GraphInCode(Good):
    def encode(self, w: Tensor, keep: Tensor | None = None) -> Coded:
        return sign_code(w, w.abs().mean() * 0 + 1)


class TwoPlanes(Good):
    planes = 2


class NoStorage(Good):
    storage_bits = None


class NoGradient(Good):
    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        return sign(w.detach()) * self.size + 0 * w


class NanGradient(Good):
    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        return ste(w, sign(w.detach()), torch.full_like(w, torch.nan))


class Twice(Good):
    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        soft = torch.tanh(3 * w)
        return soft + (sign(w) - soft).detach()


class Counts(Good):
    def __init__(self, size: float = 1.0) -> None:
        super().__init__(size)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        self.calls.add_(1)  # type: ignore[operator, union-attr]
        return super().forward(w)


class Forgets(Good):
    def __init__(self, size: float = 1.0) -> None:
        super().__init__(size)
        self.seen = 1.0

    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        if self.training:
            self.seen += 1.0
        return super().forward(w) * self.seen


class KeepsGraph(Good):
    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        self.last = super().forward(w)
        return self.last


class OddOption(Good):
    def __init__(self, size: Any = 1 + 2j) -> None:
        super().__init__(1.0)


class Drifts(Good):
    @torch.no_grad()
    def after_step(self, weight: Tensor) -> None:
        weight.mul_(0.5)


class ToNan(Good):
    @torch.no_grad()
    def after_step(self, weight: Tensor) -> None:
        weight.div_(0)


class Prints(Good):
    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        if float(w.detach().sum()) > 1e9:
            return w
        return super().forward(w)


class Deaf(Good):
    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        return ste(w, sign(w.detach()), torch.full_like(w, -1e-6))


class NoDocs(Good):
    pass


class BadPenalty(Good):
    def penalty(self) -> Tensor:
        return torch.ones(3)


class BadDensity(Good):
    def density(self) -> float:
        return 1.5


BROKEN: list[tuple[type[nn.Module], str]] = [
    (Float32, "dtype"),
    (OtherShape, "dtype"),
    (DividesByZero, "finite_values"),
    (ThreeLevels, "grid"),
    (ReadsMemory, "memory"),
    (SeesPruned, "keep"),
    (OtherCode, "encode"),
    (GraphInCode, "encode"),
    (ThreeLevels, "encode"),
    (TwoPlanes, "planes"),
    (Withholds, "withheld"),
    (NoStorage, "declares"),
    (NoGradient, "gradient"),
    (NanGradient, "gradient"),
    (Twice, "double_backward"),
    (Counts, "evaluation"),
    (Forgets, "evaluation"),
    (KeepsGraph, "copies"),
    (OddOption, "options"),
    (Drifts, "projection"),
    (ToNan, "after_step"),
    (Prints, "compiled"),
    (Deaf, "learns"),
    (NoDocs, "docstring"),
    (BadPenalty, "moments"),
    (BadDensity, "moments"),
]


@pytest.fixture
def registered() -> Any:
    names: list[str] = []

    def register(cls: type[nn.Module], *slots: str) -> str:
        name = f"law_test_{cls.__name__.lower()}"
        part(name, *slots)(cls)
        names.append(name)
        return name

    yield register
    for name in names:
        forget(name)


def test_the_good_part_obeys(registered: Callable[..., str]) -> None:
    assert {law.name for law in LAWS} - set(laws(registered(Good))) == {
        "bits32",
        "batch_free",
        "pixel_bytes",
        "withheld",
        "whole",
        "not_a_number",
        "moments",
    }


@pytest.mark.parametrize(("cls", "name"), BROKEN, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_a_broken_part_is_caught_by_its_law(cls: type[nn.Module], name: str, registered: Callable[..., str]) -> None:
    law = next(law for law in LAWS if law.name == name)
    case = Case(registered(cls), "w")
    assert law.applies(case)
    with pytest.raises(LawError, match=f"law {name} .*part {case.part}"):
        law(case)


def test_laws_stops_at_the_first_broken_law_and_says_which(registered: Callable[..., str]) -> None:
    name = registered(OtherCode)
    with pytest.raises(LawError, match=rf"law encode \(.*\), part {name}\[w\] size=2.0: random .*conv: code and value"):
        laws(name, size=2.0)


class BatchStatistics(nn.Module):
    """An x part that depends on its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().max()


class HidesNan(nn.Module):
    """An x part that swallows what is not a number."""

    bits = planes = storage_bits = 1

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0)

    def encode(self, x: Tensor) -> Coded:
        return sign_code(x, torch.ones(()))


@pytest.mark.parametrize(("cls", "name"), [(BatchStatistics, "batch_free"), (HidesNan, "not_a_number")])
def test_broken_input_parts(cls: type[nn.Module], name: str, registered: Callable[..., str]) -> None:
    with pytest.raises(LawError, match=f"law {name}"):
        next(law for law in LAWS if law.name == name)(Case(registered(cls, "x"), "x"))


# -- data parallel


def _rank(rank: int) -> None:
    """Two ranks, other data on each, three steps of one net that holds every part: parameters stay equal."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module="torch")
    torch.manual_seed(0)
    layers = [case.layer() for name in bw.parts() for case in cases(name) if case.slot != "gate"]
    net = nn.ModuleList(layers)

    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([layer(x).square().mean() for layer in self.net]).sum()

    model = DistributedDataParallel(All())
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    torch.manual_seed(100 + rank)
    for _ in range(3):
        loss = model(inputs(batch=4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after_steps(model)
    for key, p in model.module.named_parameters():
        got = [torch.zeros_like(p) for _ in range(2)]
        dist.all_gather(got, p.detach())
        assert torch.isfinite(p).all() and torch.equal(got[0], got[1]), f"{key} differs between ranks"
    model(inputs(batch=4))  # rank 0's ranges reach all at the start of a forward pass


@pytest.mark.slow
def test_two_processes_stay_equal(tmp_path: Path) -> None:
    spawned(_rank, tmp_path / "store")
