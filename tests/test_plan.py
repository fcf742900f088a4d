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
from bitwright.numbers import kb_unit
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


def test_sign_after_relu_is_what_apply_refuses() -> None:
    table = plan(Net(), [{"match": "*", "w": "bwn"}, {"match": "conv2", "x": "sign"}], X)
    assert len(table.warnings) == 1
    for word in (
        "conv2",
        "a relu in the model's forward",
        'x = ["norm", "sign"] in rule 1',
        'activation="identity"',
    ):
        assert word in table.warnings[0]
    assert "apply refuses this plan: conv2" in str(table) and plan(Net(), "xnor", X).warnings == []


def test_many_warnings_are_one_line() -> None:
    net: Any = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(2, 2), nn.ReLU())])
    (text,) = plan(net, [{"match": "*", "x": "sign"}], torch.zeros(1, 2)).warnings
    assert text.startswith("plan: 2 and 2 more take the sign of the output of 1 (relu)")


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


NO_RELU = "no ReLU behind the gate: negative sums count, and stay partial"
GATES: dict[str, Any] = {
    "channel_gate": {"part": "channel_gate", "splits": 2},
    "precision_gate": {"part": "precision_gate", "bits": 4, "top": 2},
}


def noted(net: nn.Module, gate: Any, x: Tensor, *rules: dict[str, Any]) -> set[str]:
    """Layers whose note misses a ReLU."""
    rows = plan(net, [{"match": "*", "gate": gate}, *rules], x).rows
    assert all(NO_RELU in row.note or "ReLU" not in row.note for row in rows)
    return {row.name for row in rows if NO_RELU in row.note}


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
@pytest.mark.parametrize(
    ("behind", "missing"),
    [
        ([nn.BatchNorm2d(4), nn.ReLU()], False),
        ([nn.ReLU(inplace=True)], False),
        ([nn.GroupNorm(2, 4), nn.MaxPool2d(2), nn.ReLU6()], False),
        ([nn.Hardtanh(0, 3)], False),
        ([], True),
        ([nn.BatchNorm2d(4)], True),
        ([nn.Hardtanh()], True),
        ([nn.Sigmoid()], True),
        ([nn.LeakyReLU(), nn.ReLU()], True),
        ([nn.AvgPool2d(2), nn.ReLU()], True),  # a mean of sums is not the mean of their positive sides
    ],
    ids=lambda v: ("-".join(type(m).__name__ for m in v) or "nothing") if isinstance(v, list) else str(v),
)
def test_a_one_sided_gate_without_a_relu_behind_it_is_noted(gate: Any, behind: list[nn.Module], missing: bool) -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), *behind)
    assert noted(net, gate, torch.zeros(1, 4, 4, 4)) == ({"0"} if missing else set())
    assert noted(apply(copy.deepcopy(net), [{"match": "0", "gate": gate}]), "float", torch.zeros(1, 4, 4, 4)) == set()


def test_a_gate_that_is_there_already_is_noted_too() -> None:
    net = apply(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten()), [{"match": "0", "gate": GATES["channel_gate"]}])
    assert plan(net, [{"match": "0", "w": "bwn"}], torch.zeros(1, 4, 4, 4)).rows[0].note == NO_RELU


def test_residual_blocks_say_which_of_their_gates_a_relu_follows() -> None:
    """The second conv of a block meets the shortcut first; in the post-activated net both have their ReLU."""
    x, ends = torch.zeros(1, 3, 32, 32), [{"match": m, "gate": "float"} for m in ("first", "last")]
    second = {f"layer{stage}.{block}.conv2" for stage in (1, 2, 3) for block in range(3)}
    for gate in GATES.values():
        assert noted(bw.models.create("resnet20", width=0.25), gate, x, *ends) == second
        assert noted(bw.models.create("resnet20_postact", width=0.25), gate, x, *ends) == set()


@pytest.mark.parametrize(("part", "missing"), [("pact", set()), ("sign_magnitude", {"0"})])
def test_inputs_that_clip_at_zero_are_a_relu(part: str, missing: set[str]) -> None:
    """Only where all readers clip, and the model does not give the sums away."""
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU())
    rule = {"match": "2", "x": {"part": part, "bits": 4}}
    assert noted(net, GATES["channel_gate"], torch.zeros(1, 4, 4, 4), rule) == missing


def test_no_note_without_a_decision_or_an_example() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1))
    row = plan(net, [{"match": "*", "gate": GATES["channel_gate"]}], torch.zeros(1, 1, 4, 4)).rows[0]
    assert "leave nothing to split" in row.note and NO_RELU not in row.note
    row = plan(nn.Sequential(nn.Conv2d(4, 4, 1)), [{"match": "*", "gate": GATES["channel_gate"]}]).rows[0]
    assert row.note == ""


# -- how each layer will run -------------------------------------------------------------------------
def body(mid: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), mid, nn.ReLU(), nn.Conv2d(8, 1, 1))


STUCK = {
    "ConvTranspose2d has no bit kernel": lambda: nn.ConvTranspose2d(8, 8, 4, 2, 1),
    "padding_mode='reflect'; bit kernels take zeros": lambda: nn.Conv2d(8, 8, 5, padding=2, padding_mode="reflect"),
}


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("kernel", [4, (3, 4)])
def test_same_padding_of_an_even_kernel_is_planned_as_it_packs(kernel: Any) -> None:
    net, x = body(nn.Conv2d(8, 8, kernel, padding="same")), torch.randn(2, 3, 12, 12)
    row = plan(net, "bwn-a8", x).rows[1]
    assert (row.why, row.runs) == ("", "int8")
    apply(net, "bwn-a8", x)
    bw.calibrate(net, [x])
    assert {r.layer: r.runs_as for r in bw.convert(net.eval(), x).report.rows}["2"] in ("bits", "int8")


@pytest.mark.parametrize("words", STUCK)
@pytest.mark.parametrize("recipe", ["w1a1", "bwn"])
def test_a_layer_that_cannot_be_packed_says_so_before_training(words: str, recipe: str) -> None:
    net, x = body(STUCK[words]()), torch.zeros(1, 3, 12, 12)
    table = plan(net, recipe, x)
    row = table.rows[1]
    assert words in row.why and row.note == f"stays float when packed: {row.why}" and row.runs == "float"
    assert f"packed   2: float, {kb_unit(4 * row.weights)} and not {kb_unit(row.weight_bytes)}" in str(table)
    apply(net, recipe, x)
    assert f"stays float when packed: {row.why}" in {r.name: r for r in bw.cost(net, x).rows}["2"].note


@pytest.mark.parametrize(
    ("rule", "runs"),
    [
        ({"w": "bwn", "x": ["norm", "sign"]}, "bits"),
        ({"w": {"part": "lsq", "bits": 4}, "x": {"part": "lsq", "bits": 4}}, "int8"),
        ({"w": {"part": "uniform", "bits": 8}, "x": {"part": "uniform", "bits": 8}}, "int8"),
        ({"w": "ttq"}, "float"),  # bits in the file
        ({"w": {"part": "sign_magnitude", "bits": 8}, "x": {"part": "pact", "bits": 3}}, "float"),
        ({"w": "bwn", "x": "sign", "gate": "xnor_k"}, "float"),
    ],
)
def test_what_the_plan_says_of_running_is_what_convert_does(rule: dict[str, Any], runs: str) -> None:
    net: Any = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(1152, 2)
    )
    x = torch.randn(4, 3, 10, 10)
    row = plan(net, [{"match": "2", **rule}], x).rows[1]
    assert row.runs == runs
    apply(net, [{"match": "2", **rule}], x)
    if isinstance(rule["w"], dict):
        bw.calibrate(net, [x])
    done = {r.layer: r for r in bw.convert(net.eval(), x, verify=False).report.rows}["2"]
    either = ("bits", "int8")  # exact both: the machine decides
    assert done.runs_as in either if runs in either else done.runs_as.removesuffix(" run").endswith(runs)
    assert (row.why != "") == (done.why != "" and done.runs_as == "float")


class Twice(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_code_of_the_users_is_named() -> None:
    net = nn.Sequential(Twice(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Flatten())
    rows = plan(net, [{"match": "*", "w": "bwn", "x": "sign"}, {"match": "2", "w": "float", "x": "float"}]).rows
    assert [r.runs for r in rows] == ["your code", "bits", "float"]


def test_depthwise_layers_have_a_note_and_a_kind() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 16, 1, groups=8), nn.Conv2d(16, 1, 1)
    )
    rules = [{"match": "*", "w": "bwn"}, {"match": "*", "kind": "depthwise", "w": {"part": "uniform", "bits": 8}}]
    rows = plan(net, rules).rows
    assert [r.w for r in rows] == ["uniform", "bwn", "uniform", "bwn"]
    assert [r.note for r in rows] == ["depthwise", "", "depthwise", ""]
    with pytest.raises(InputError, match=r'kind="depthwise" selects no layer.* Kinds here: Linear'):
        plan(nn.Sequential(nn.Linear(2, 2)), [{"match": "*", "kind": "depthwise", "w": "bwn"}])
    with pytest.raises(InputError, match="Kinds here: Conv2d, depthwise"):
        plan(net, [{"match": "*", "kind": "Linear", "w": "bwn"}])
