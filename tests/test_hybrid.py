"""Hybrid nets: the recipes that follow from PCA, the baselines beside them, what they cost, and that they pack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bitwright as bw
from bitwright.analysis import cost
from bitwright.analysis.baselines import layer_sets
from bitwright.analysis.energy import load_energy
from bitwright.analysis.hybrid import commented
from bitwright.analysis.pca_result import Pca, PcaLayer
from bitwright.errors import InputError
from bitwright.transforms import Recipe

NAMES = [f"layer{i}.{j}.conv{k}" for i in (1, 2, 3) for j in (0, 1, 2) for k in (1, 2)]
COUNTS = [14, 14, 14, 13, 13, 13, 23, 26, 27, 25, 25, 23, 41, 50, 51, 51, 52, 50]  # the published curves at 0.99
WIDTHS = [16] * 6 + [32] * 6 + [64] * 6
INPUTS = [16] * 7 + [32] * 6 + [64] * 5
WEIGHTS = [9 * a * b for a, b in zip(INPUTS, WIDTHS, strict=True)]
CHOSEN = ["layer2.0.conv1", "layer2.0.conv2", "layer3.0.conv1", "layer3.0.conv2"]
BINARY = {"binary": {"w": "xnor", "x": ["norm", "sign"]}, "first": {"w": "float", "x": "float"},
          "last": {"w": "float", "x": "float"}}  # fmt: skip


def published() -> Pca:
    """The result that the published counts would be."""
    rows = tuple(
        PcaLayer(name, c, 10_000, n, (n, n), (1.0,) * c, w)
        for name, c, n, w in zip(NAMES, WIDTHS, COUNTS, WEIGHTS, strict=True)
    )
    before = dict(zip(NAMES[1:], NAMES, strict=False))
    return Pca(rows, before, CHOSEN, (CHOSEN, CHOSEN), {}, "conv1", "fc", 0.99, 2, "below", parts=BINARY)


def bits_of(model: nn.Module) -> dict[str, tuple[int, int]]:
    x = torch.zeros(1, 3, 32, 32)
    return {i.name: (i.w_bits or 0, i.x_bits or 0) for i in bw.walk(model, x)}


def target(width: float = 0.25, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return bw.models.create("bireal_resnet20", 10, width=width, activation="identity", **options)


X = torch.zeros(2, 3, 32, 32)


# ---- recipes ----


def test_recipe_by_layer() -> None:
    net = bw.apply(target(), published().recipe(bits=(2, 3)), X)
    found = bits_of(net)
    assert {n for n, pair in found.items() if pair == (2, 3)} == set(CHOSEN)
    float_layers = {"conv1", "fc", "layer2.0.shortcut.1", "layer3.0.shortcut.1"}
    assert {n for n, pair in found.items() if pair == (32, 32)} == float_layers
    assert {pair for n, pair in found.items() if n not in float_layers | set(CHOSEN)} == {(1, 1)}


@pytest.mark.parametrize(
    ("model", "two", "shortcuts"),
    [
        ("bireal_resnet20", CHOSEN, (2, 3)),
        ("bireal_resnet32", CHOSEN, (2, 3)),
        ("bireal_resnet18", [*CHOSEN, "layer4.0.conv1", "layer4.0.conv2"], (2, 3, 4)),
        ("vgg15", [f"features.conv{i}" for i in (3, 5, 8, 11, 12)], ()),
    ],
)
def test_the_shipped_recipe_finds_its_layers(model: str, two: list[str], shortcuts: tuple[int, ...]) -> None:
    """Its rules are optional, so a renamed layer would be binary without a word."""
    found = bits_of(bw.apply(bw.models.create(model, width=0.25, activation="identity"), "hybrid", X))
    assert {n for n, pair in found.items() if pair == (2, 2)} == set(two)
    ends = {next(iter(found)), list(found)[-1]}
    assert {n for n, pair in found.items() if pair == (32, 32)} == ends | {f"layer{i}.0.shortcut.1" for i in shortcuts}
    assert all(pair == (1, 1) for n, pair in found.items() if pair not in ((2, 2), (32, 32)))


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])
def test_shortcut_policies(known: bool) -> None:
    """By the usual names, or traced in the net to be trained: the same."""
    options: dict[str, Any] = {"target": target(), "example": X} if known else {}
    for policy, wanted in (("fp", (32, 32)), ("binary", (1, 1)), ("kbit", (2, 2))):
        net = bw.apply(target(), published().recipe(shortcut=policy, **options), X)
        assert {bits_of(net)[f"layer{i}.0.shortcut.1"] for i in (2, 3)} == {wanted}, policy
    # a shortcut has the precision of the layer that it bypasses
    one = published().recipe(shortcut="kbit", layers=["layer2.0.conv1", "layer3.0.conv2"], **options)
    found = bits_of(bw.apply(target(), one, X))
    assert found["layer2.0.shortcut.1"] == (2, 2) and found["layer3.0.shortcut.1"] == (1, 1)
    with pytest.raises(InputError, match="shortcut='float'; possible: fp, kbit, binary"):
        published().recipe(shortcut="float")


def test_norm_stays_and_options_arrive() -> None:
    net = bw.apply(target(), published().recipe(bits=2, clip=False, weight_scale="none", compat="seed"), X)
    layer: Any = net.get_submodule("layer2.0.conv1")
    assert layer.x.part_name == "norm+kbit" and layer.x.links[1].clip is False
    assert layer.w.clip is False and layer.w.weight_scale == "none" and layer.w.seed
    plain: Any = bw.apply(target(), published().recipe(base="bireal"), X)
    assert plain.layer1[0].conv1.x.part_name == "sign" and plain.layer2[0].conv1.x.part_name == "kbit"


def test_unbounded_inputs_count_as_float_and_say_unknown() -> None:
    layer: Any = bw.nn.Linear(8, 4, w={"part": "kbit", "bits": 2}, x={"part": "kbit", "bits": 2, "clip": False})
    (row,) = cost(nn.Sequential(layer), torch.zeros(1, 8)).rows
    assert row.x_bits is None and row.w_bits == 2 and "input bits unknown" in row.note
    assert row.bops == 32 * 2 * 32


def test_file_is_read_back_and_says_why() -> None:
    found = published()
    recipe = found.recipe()
    text = found.recipe_text(recipe)
    assert Recipe.from_toml(text) == recipe
    assert '# 23 of 32 components, 10 more than layer1.2.conv2\n[[rule]]\nmatch = "layer2.0.conv1"' in text
    assert "layer3.2.conv2        64          50    -2   1/1" in text
    # to give one more layer k bits is one more rule, and one line of difference per line of it
    more = found.recipe_text(found.recipe(layers=[*CHOSEN, "layer3.1.conv1"]))
    added = [line for line in more.splitlines() if line.startswith("match")]
    assert len(added) == 1 + sum(line.startswith("match") for line in text.splitlines())
    assert commented(Recipe.load("xnor"), {}) == Recipe.load("xnor").to_toml()
    with pytest.raises(InputError, match=r"hybrid: layer3.1.conv3 is no analyzed layer. Nearest: layer3.1.conv"):
        found.recipe(layers=["layer3.1.conv3"])


class Unlike(nn.Module):
    """Four layers by other names."""

    def __init__(self, inner: int = 2) -> None:
        super().__init__()
        self.begin, self.end = nn.Linear(4, 8), nn.Linear(8, 2)
        self.body = nn.Sequential(*(nn.Linear(8, 8) for _ in range(inner)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.body(self.begin(x)))


def test_layers_of_other_names_are_found_by_position() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(1, 8), nn.Linear(8, 2))
    found = bw.analyze.pca(net, [torch.randn(200, 4)], count="needed", always=["2"])
    fitted = found.fitted(Unlike(), torch.zeros(2, 4))
    assert list(fitted.components) == ["body.0", "body.1"] and fitted.significant == ["body.1"]
    assert (fitted.first, fitted.last, fitted.before) == ("begin", "end", {"body.1": "body.0"})
    rows = bw.plan(Unlike(), fitted.recipe(), torch.zeros(2, 4)).rows
    assert [r.bits for r in rows] == ["32/32", "1/1", "2/2", "32/32"]
    with pytest.raises(InputError, match="the analyzed net has 2 inner layers, Unlike has 3"):
        found.recipe(target=Unlike(3), example=torch.zeros(2, 4))


def test_a_float_net_gets_binary_parts_that_fit_relu() -> None:
    net = bw.models.create("resnet20_plain", 10, width=0.25)
    found = bw.analyze.pca(net, [torch.randn(40, 3, 32, 32)])
    assert found.parts["binary"] == {"w": "xnor", "x": ["norm", "sign"]}
    assert not bw.plan(net, found.recipe(), X).warnings


# ---- baselines ----


def test_sets_have_equal_extra_bits() -> None:
    weights = dict(zip(NAMES, WEIGHTS, strict=True))
    sets = layer_sets(CHOSEN, weights, 5, seed=1)
    assert list(sets) == ["pca", "binary", "kbit", *(f"random-{i}" for i in range(5)), "first-heavy", "last-heavy"]
    wanted = sum(weights[n] for n in CHOSEN)
    random = [sets[f"random-{i}"] for i in range(5)]
    assert len({*random, sets["pca"]}) == 6
    assert all(abs(sum(weights[n] for n in found) / wanted - 1) < 0.01 for found in random)
    assert sets == layer_sets(CHOSEN, weights, 5, seed=1) != layer_sets(CHOSEN, weights, 5, seed=2)
    assert sets["first-heavy"][:6] == tuple(NAMES[:6]) and sets["last-heavy"][-1] == NAMES[-1]
    assert all(sum(weights[n] for n in sets[end]) <= wanted for end in ("first-heavy", "last-heavy"))
    assert sets["kbit"] == tuple(NAMES) and sets["binary"] == ()


def test_a_small_net_has_fewer_random_sets() -> None:
    assert list(layer_sets(["a"], {"a": 4, "b": 8}, 3)) == ["pca", "binary", "kbit", "first-heavy", "last-heavy"]
    three = layer_sets(["a"], {"a": 4, "b": 4, "c": 4}, 3)
    assert {three["random-0"], three["random-1"]} == {("b",), ("c",)} and "random-2" not in three


def test_baselines_are_recipes() -> None:
    recipes = published().baselines(bits=2, random=2, seed=3)
    for name, layers in published().sets(2, 3).items():
        found = bits_of(bw.apply(target(), recipes[name], X))
        assert {n for n, pair in found.items() if pair == (2, 2)} == set(layers), name
    assert recipes["pca"] == published().recipe()


# ---- cost ----


def test_energy_of_the_papers_formula_by_hand() -> None:
    table = load_energy("hybrid45")
    assert table.mac_pj(32, 32) == pytest.approx(3.1 + 0.1) and table.mac_pj(1, 1) == pytest.approx(3.1 / 32 + 0.1)
    assert table.mac_pj(1, 2) == table.mac_pj(2, 1) == table.mac_pj(2, 2)  # the larger bits decide
    net: Any = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        bw.nn.Conv2d(4, 4, 3, padding=1, bias=False, w="bwn", x="sign"),
        bw.nn.Conv2d(4, 8, 3, padding=1, bias=False, w={"part": "kbit", "bits": 2}, x={"part": "kbit", "bits": 2}),
    )
    totals = cost(net, torch.zeros(2, 3, 6, 6), energy="hybrid45").totals

    def energy(k: int, inputs: int, weights: int, macs: int) -> float:
        return (inputs + weights) * 2.5 * k + macs * (3.1 * k / 32 + 0.1)

    stem = (32, 3 * 36, 3 * 9 * 4, 3 * 9 * 4 * 36)
    second, third = (4 * 36, 4 * 9 * 4, 4 * 9 * 4 * 36), (4 * 36, 4 * 9 * 8, 4 * 9 * 8 * 36)
    mine = energy(*stem) + energy(1, *second) + energy(2, *third)
    as_float = energy(*stem) + energy(32, *second) + energy(32, *third)
    binary = energy(*stem) + energy(1, *second) + energy(1, *third)
    assert totals["energy_pj"] == pytest.approx(mine)
    assert totals["energy_efficiency"] == pytest.approx(as_float / mine)
    assert totals["binary_energy_efficiency"] == pytest.approx(as_float / binary)
    norm, scales = 4 * 4 * 4, (4 + 8) * 4  # weight, bias, mean, variance of 4 channels; a scale per filter
    bytes_float = 4 * (108 + 144 + 288) + norm
    bytes_mine = 4 * 108 + 144 / 8 + 288 * 2 / 8 + scales + norm
    bytes_binary = 4 * 108 + (144 + 288) / 8 + scales + norm
    assert totals["storage_bytes"] == bytes_mine
    assert totals["compression"] == pytest.approx(bytes_float / bytes_mine)
    assert totals["binary_compression"] == pytest.approx(bytes_float / bytes_binary)


def test_bit_operations_as_a_table() -> None:
    net: Any = nn.Sequential(bw.nn.Linear(8, 4, w={"part": "kbit", "bits": 2}, x={"part": "kbit", "bits": 3}))
    table = cost(net, torch.zeros(1, 8), energy="bops")
    assert table.totals["energy_pj"] == 32 * 2 * 3 and table.totals["energy_efficiency"] == 32 * 32 / 6
    assert "uJ" not in str(table) and "bit operations" in str(table)


def test_masks_thresholds_and_norms_are_stored() -> None:
    net: Any = nn.Sequential(
        bw.nn.Linear(8, 4, bias=False, w=["bwn", "mask"], x=["norm", "rsign"]), nn.BatchNorm1d(4), nn.PReLU()
    )
    found = cost(net, torch.zeros(2, 8)).totals
    norm_in_slot, shifts, scales = 8 * 4, 8, 4  # its weight, bias, mean and variance
    outside = 4 * 4 + 1
    assert found["storage_bytes"] == 32 * 2 / 8 + 4 * (norm_in_slot + shifts + scales + outside)


def test_float_nets_have_nothing_to_compare() -> None:
    table = cost(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.zeros(1, 4))
    assert table.totals["energy_efficiency"] == table.totals["compression"] == 1.0
    assert "float / this net" not in str(table)


def test_damaged_formula(tmp_path: Any) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\nsource = "x"\n[formula]\nmacs = 1.0\n')
    with pytest.raises(InputError, match=r"not an energy table: .*formula.macs; possible: mac, mac_per_bit"):
        load_energy(tmp_path / "mine.toml")


# ---- training and packing ----


def trained(net: nn.Module) -> Any:
    """A few steps on 32 images, then packed and compared on them."""
    optimizer = torch.optim.Adam(bw.param_groups(net, lr=2e-3, weight_decay=0.0))
    bw.attach(net, optimizer)
    x, y = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0]
    done = bw.convert(net.eval(), x[:1], verify=[x])
    assert done.report.status in ("PASS", "WARN") and done.model is not None
    assert done.report.same == done.report.images == 32 and done.report.layers_exact
    with torch.no_grad():
        assert torch.equal(done.model(x).argmax(1), net(x).argmax(1))
    return {row.layer: row for row in done.report.rows}


@pytest.mark.slow
def test_a_tiny_hybrid_net_trains_and_packs() -> None:
    """Binary, 2/2-bit and 2-bit shortcut layers in one net: packed layers are exact, the classes are the same."""
    net = target(width=0.5)
    rows = trained(bw.apply(net, published().recipe(bits=(2, 2), shortcut="kbit"), X))
    for name in CHOSEN:
        assert rows[name].bits == "2/2" and rows[name].runs_as in ("bits", "int8"), rows[name]
    assert rows["layer1.0.conv1"].bits == "1/1"


@pytest.mark.slow
@pytest.mark.parametrize(("model", "width"), [("bireal_resnet32", 0.5), ("vgg15", 0.125), ("bireal_resnet18", 0.25)])
def test_the_other_hybrid_nets_train_and_pack(model: str, width: float) -> None:
    torch.manual_seed(0)
    net = bw.models.create(model, 10, width=width, activation="identity")
    bits = [row.bits for row in trained(bw.apply(net, "hybrid", X)).values()]
    assert {"1/1", "2/2"} <= set(bits)
