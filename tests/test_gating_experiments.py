"""Gates on a model and images of one's own: recipe lines in an experiment, no library code."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import bitwright as bw
from bitwright.experiment import load
from bitwright.parts.fbs import FBS

# what a user has: a model that says nothing of gates, and images by a function
MINE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.body = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.tail = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, bias=False)
        self.tail_norm = nn.BatchNorm2d(2 * channels)
        self.head = nn.Linear(2 * channels, 3)

    def forward(self, x):
        y = self.norm(self.body(self.stem(x))).relu()
        y = self.tail_norm(self.tail(y)).relu()
        return self.head(y.mean((2, 3)))


def images(split: str):
    g = torch.Generator().manual_seed(len(split))
    labels = torch.randint(0, 3, (48,), generator=g)
    pixels = torch.randint(0, 64, (48, 3, 8, 8), generator=g)
    pixels[torch.arange(48), labels] += 150
    return pixels.to(torch.uint8), labels
"""
FLOAT_ENDS = """
[[stage.rule]]
match = "first"
w = "float"
x = "float"
gate = "float"
[[stage.rule]]
match = "last"
w = "float"
x = "float"
gate = "float"
"""


def stage(*rules: str) -> str:
    text = "[[stage]]\nepochs = 2\noptimizer = { name = 'sgd', lr = 0.05, momentum = 0.9 }\n"
    return text + "".join(f"[[stage.rule]]\n{rule}\n" for rule in rules) + (FLOAT_ENDS if rules else "")


def fbs(keep: float) -> str:
    return stage(f'match = "*"\nkind = "Conv2d"\ngate = {{ part = "fbs", keep = {keep} }}')


METHODS = {
    "fbs": stage() + fbs(1) + fbs(0.75) + fbs(0.5),
    "channel_gate": stage('match = "*"\nkind = "Conv2d"\ngate = { part = "channel_gate", splits = 2, target = 0.5 }'),
    "precision_gate": stage(
        'match = "*"\nw = { part = "sign_magnitude", bits = 4 }\nx = { part = "pact", bits = 3 }',
        'match = "body"\ngate = { part = "precision_gate", bits = 3, top = 1 }',
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    return tmp_path


@pytest.mark.few(every=2)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning")  # what small nets are told, has its own tests
def test_own_model_and_images(method: str, folder: Path) -> None:
    head = '[data]\nname = "mine.py:images"\nbatch = 16\naugment = false\n[model]\nname = "mine.py:Net"\n'
    rest = '[train]\ndevice = "cpu"\nthreads = 1\n[log]\ntensorboard = false\n'
    (folder / "mine.toml").write_text(head + METHODS[method] + rest, encoding="utf-8")
    result = bw.train(load("mine.toml"), folder / "run")
    assert result.images == 48
    namespace: dict[str, type[torch.nn.Module]] = {}
    exec(MINE, namespace)
    net = bw.load(folder / "run" / "model.safetensors", namespace["Net"]()).eval()
    with bw.count_macs(net) as macs:
        net(torch.rand(6, 3, 8, 8))
    assert macs.samples == 6 and set(macs.rates) == ({"body"} if method == "precision_gate" else {"body", "tail"})
    if method == "precision_gate":
        assert macs.bops < macs.dense_bops
    else:
        assert macs.total < macs.dense


def test_a_stage_lowers_keep_and_goes_on_from_what_was_learned() -> None:
    """Recipe after recipe: predictor, norm and shift are the same objects, and only the share changes."""
    net = bw.models.create("resnet20", width=0.25)
    example = torch.rand(2, 3, 16, 16)
    gate: FBS | None = None
    for recipe, keep in (("fbs-keep100", 1.0), ("fbs-keep90", 0.9), ("fbs-keep70", 0.7), ("fbs", 0.5)):
        bw.apply(net, recipe, example)
        new = net.get_submodule("layer2.1.conv2.gate")
        assert isinstance(new, FBS) and new.keep == keep
        assert gate is None or (new.predictor, new.norm, new.shift) == (gate.predictor, gate.norm, gate.shift)
        gate = new
    with bw.count_macs(net.eval()) as macs:
        net(example)
    assert max(macs.rates.values()) <= 0.5


@pytest.mark.parametrize("recipe", ["fbs", "channel_gate", "precision_gate-w8a3p2", "precision_gate-w8a8p4"])
def test_first_conv_and_classifier_have_no_gate_and_no_quantizer(recipe: str) -> None:
    net = bw.apply(bw.models.create("resnet20", width=0.5), recipe, torch.rand(1, 3, 16, 16))
    assert type(net.get_submodule("conv1")) is torch.nn.Conv2d
    assert type(net.get_submodule("fc")) is torch.nn.Linear
    gated = {n for n, m in net.named_modules() if getattr(m, "gate", None) is not None}
    assert len(gated) == (18 if recipe == "fbs" else 9)


def test_postact_gates_both_convs() -> None:
    net = bw.models.create("resnet20_postact", width=0.5)
    bw.apply(net, "channel_gate-postact", torch.rand(1, 3, 16, 16))
    assert len([m for m in net.modules() if getattr(m, "gate", None) is not None]) == 18


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "model"),
    [
        ("fbs", "resnet20"),
        ("channel_gate", "resnet20"),
        ("channel_gate-postact", "resnet20_postact"),
        ("precision_gate-w8a3p2", "resnet20"),
        ("precision_gate-w8a8p4", "resnet20"),
    ],
)
def test_convert_packs_every_shipped_gated_net(recipe: str, model: str, tmp_path: Path) -> None:
    x = torch.rand(4, 3, 16, 16)
    net = bw.apply(bw.models.create(model, width=0.25), recipe, x)
    net.train()(x)
    done = bw.convert(net.eval(), x)
    assert done.model is not None and done.report.form == "graph" and not done.report.beyond
    gated = [row for row in done.report.rows if row.why.startswith("gated: ")]
    assert len(gated) == (9 if recipe in ("channel_gate", "precision_gate-w8a3p2", "precision_gate-w8a8p4") else 18)
    done.save(tmp_path / "net.safetensors")
    assert torch.equal(bw.load(tmp_path / "net.safetensors")(x), done.model(x))


def test_the_guide_says_what_the_csv_of_sparse_backprop_says() -> None:
    docs = Path(__file__).parent.parent / "docs"
    with (docs / "results" / "sparse_backprop.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    ratios, on = [float(r["ratio"]) for r in rows], [100 * float(r["gates_on"]) for r in rows]
    text = " ".join((docs / "guides" / "gating.md").read_text(encoding="utf-8").split())
    assert f"took {min(ratios):.2f} to {max(ratios):.2f} times the step without" in text
    assert f"median of {rows[0]['rounds']} rounds side by side, one thread, batch {rows[0]['batch']}" in text
    assert f"{min(on):.0f} to {max(on):.0f} % of the gates on" in text


def test_the_guide_says_what_the_csv_of_gates_says() -> None:
    docs = Path(__file__).parent.parent / "docs"
    with (docs / "results" / "gates.csv").open(newline="", encoding="utf-8") as f:
        over = {(r["row"], r["block"], r["live"]): float(r["over_dense"]) for r in csv.DictReader(f)}
    both = [
        [f"{over[f'{net}, {gate}', '', '']:.1f}" for net in ("resnet20", "resnet18")]
        for gate in ("channel gate, float32", "channel gate, w8a8", "precision gate 8/4, w8")
    ]
    text = " ".join((docs / "guides" / "gating.md").read_text(encoding="utf-8").split())
    assert f"is {over['conv 128>128 3x3 28x28', '1', '0.5']:.1f} times as fast as the same kernel" in text
    assert (
        f"are {over['resnet20', '1', '']:.1f} and {over['resnet18', '1', '']:.1f} times as fast as the same nets"
        in text
    )
    floats, codes, bits = (" and ".join(pair) for pair in both)
    assert f"on floats {floats} times as fast, in codes of 8 bits {codes} times" in text
    assert f"with 30 % on {bits} times" in text


def test_the_guide_says_who_is_ahead_as_the_rows_do() -> None:
    docs = Path(__file__).parent.parent / "docs"
    with (docs / "results" / "gating.csv").open(newline="", encoding="utf-8") as f:
        rows = {r["row"]: r for r in csv.DictReader(f)}
    text = " ".join((docs / "guides" / "gating.md").read_text(encoding="utf-8").split())
    top = {name: 100 * float(r["accuracy"]) for name, r in rows.items()}
    assert "the channel-gated nets were behind narrower nets of equal MACs" in text
    assert all(top[name] < top[f"static of {name}"] for name in ("CG original", "CG post-activated"))
    assert "precision gating was a little ahead of PACT nets of equal bit operations" in text
    bops = {name: float(r["bops"]) for name, r in rows.items()}
    for name, low, high in (("PG 3/2", "PACT 2", "PACT 3"), ("PG 8/4", "PACT 3", "PACT 8")):
        share = (bops[name] - bops[low]) / (bops[high] - bops[low])
        assert 0 < top[name] - (top[low] + share * (top[high] - top[low])) < 1
    assert (
        "`fbs` at half of the channels cost two to three points" in text and 2 < top["dense"] - top["FBS keep 0.5"] < 3
    )
