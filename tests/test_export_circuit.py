"""Circuits: sums, comparisons and classes on every pattern of their inputs, each form of file, and what is refused."""

from __future__ import annotations

import itertools
import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitwright as bw
from bitwright.engine.packed import PackedModel
from bitwright.errors import InputError
from bitwright.export import to_circuit
from bitwright.export_circuit.aiger import ands
from bitwright.export_circuit.choice import argmax, larger, look_up
from bitwright.export_circuit.compile import compiled
from bitwright.export_circuit.gates import FALSE, TRUE, Builder, Netlist, simulate
from bitwright.export_circuit.names import module_name
from bitwright.export_circuit.samples import columns, uncolumned
from bitwright.export_circuit.sums import reaches, total, weighted
from circuits import KINDS, Layer, packed, patterns

FORMS = (".v", ".aag", ".aig", ".blif", ".c", ".json")
ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "circuit"
GUIDE = ROOT / "docs" / "guides" / "circuits.md"


def values(net: Netlist, bits: np.ndarray) -> dict[str, list[int]]:
    """Each output as whole numbers, one per row of bits."""
    found = uncolumned(simulate(net, columns(bits), len(bits)), len(bits)).astype(int)
    starts = itertools.accumulate((len(v) for v in net.outputs.values()), initial=0)
    return {
        name: (found[:, at : at + len(v)] << np.arange(len(v))).sum(1).tolist()
        for (name, v), at in zip(net.outputs.items(), starts, strict=False)
    }


def every(inputs: int) -> np.ndarray:
    return patterns(inputs).numpy().astype(int)


# ---- sums -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", range(10))
def test_a_unit_is_on_from_its_threshold(n: int) -> None:
    bits = every(n)
    b = Builder(n)
    what = weighted([(2 * i + 2, 1) for i in range(n)])
    outputs = {f"y{t}": [reaches(b, what, t)] for t in range(-1, n + 3)}
    found = values(b.done(outputs | {"sum": total(b, what.terms)}), bits)
    for t in range(-1, n + 3):
        assert found[f"y{t}"] == (bits.sum(1) >= t).astype(int).tolist()
    assert found["sum"] == bits.sum(1).tolist()


def test_small_units_are_small() -> None:
    def gates(n: int, need: int) -> dict[str, int]:
        b = Builder(n)
        return b.done({"y": [reaches(b, weighted([(2 * i + 2, 1) for i in range(n)]), need)]}).counts()

    assert sum(gates(1, 1).values()) == 0  # a wire
    assert gates(4, 1) == {"and": 1, "nor": 2, "xor": 0}  # ~(~(a | b) & ~(c | d)), of which the last is ~: an OR of ORs
    assert gates(4, 4) == {"and": 3, "nor": 0, "xor": 0}
    assert sum(gates(3, 2).values()) == 4  # ab | c(a | b): three ANDs and ORs, and one more
    assert sum(gates(4, 0).values()) == sum(gates(4, 5).values()) == 0  # constants


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(-4, 4)), max_size=9), st.integers(-3, 3), st.integers(-25, 25)
)
def test_any_weights_any_signals(items: list[tuple[int, int]], offset: int, bound: int) -> None:
    """Literals 0 and 1 are the constants; signals come twice, inverted and not."""
    bits = every(5)
    b = Builder(5)
    what = weighted(items, offset)
    assert all(w > 0 for _, w in what.terms) and len({lit >> 1 for lit, _ in what.terms}) == len(what.terms)
    found = values(b.done({"y": [reaches(b, what, bound)], "sum": total(b, what.terms)}), bits)
    signals = np.concatenate([np.zeros((32, 1), int), bits], 1)
    want = offset + sum((w * (signals[:, lit >> 1] ^ lit & 1) for lit, w in items), np.zeros(32, int))
    assert found["y"] == (want >= bound).astype(int).tolist()
    assert (what.offset + what.step * np.array(found["sum"])).tolist() == want.tolist()


def test_equal_gates_are_one_and_dead_ones_go() -> None:
    b = Builder(3)
    x, y, z = 2, 4, 6
    assert b.both(x, y) == b.both(y, x) and b.xor(x, y) == b.xor(x ^ 1, y) ^ 1
    assert (b.both(x, x ^ 1), b.both(x, TRUE), b.xor(x, x), b.either(x, x ^ 1)) == (FALSE, x, FALSE, TRUE)
    b.xor(y, z)
    net = b.done({"y": [b.both(b.both(x, y), z)]})
    assert net.gates == [("and", 2, 4), ("and", 6, 8)] and net.depth() == 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["both", "either", "xor"]), st.integers(0, 99), st.integers(0, 15)), max_size=14)
)
def test_gates_that_are_never_built_would_have_said_the_same(steps: list[tuple[str, int, int]]) -> None:
    b, truth = Builder(3), {0: 0, 2: 0b10101010, 4: 0b11001100, 6: 0b11110000}
    truth |= {lit ^ 1: table ^ 255 for lit, table in truth.items()}
    known = list(truth)
    for name, i, j in steps:
        x, y = known[i % len(known)], known[-1 - j % len(known)]
        lit = getattr(b, name)(x, y)
        table = {"both": truth[x] & truth[y], "either": truth[x] | truth[y], "xor": truth[x] ^ truth[y]}[name]
        assert simulate(b.done({"y": [lit]}), [truth[2], truth[4], truth[6]], 8) == [table]
        truth |= {lit: table, lit ^ 1: table ^ 255}
        known += [lit, lit ^ 1]


# ---- classes ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("classes", [1, 2, 3, 5])
def test_the_first_of_equal_classes_wins(classes: int) -> None:
    bits = every(2 * classes)
    b = Builder(2 * classes)
    net = b.done({"y": argmax(b, [[4 * c + 2, 4 * c + 4] for c in range(classes)])})
    want = (bits[:, ::2] + 2 * bits[:, 1::2]).argmax(1)  # numpy gives the first one
    assert values(net, bits)["y"] == want.tolist()
    assert len(net.outputs["y"]) == {1: 1, 2: 1, 3: 2, 5: 3}[classes]


def test_numbers_of_different_widths_compare() -> None:
    bits = every(5)
    b = Builder(5)
    net = b.done({"y": [larger(b, [2, 4, 6], [8, 10])], "z": [larger(b, [8, 10], [2, 4, 6])]})
    x, y = bits[:, :3] @ [1, 2, 4], bits[:, 3:] @ [1, 2]
    assert values(net, bits) == {"y": (x > y).astype(int).tolist(), "z": (y > x).astype(int).tolist()}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
def test_a_table_is_looked_up(size: int) -> None:
    table = np.random.default_rng(size).integers(0, 40, size).tolist()
    width = max(1, (size - 1).bit_length())
    b = Builder(width)
    net = b.done({"y": look_up(b, [2 * k + 2 for k in range(width)], table)})
    assert values(net, every(width)[:size])["y"] == table


# ---- nets -------------------------------------------------------------------------------------------------------------------
def nor_net() -> PackedModel:
    """h0 = NOR(x0, x1), h1 = NOT x2; class 0 counts h0, class 1 both, class 2 nothing. By hand: class 1 where h1, else class 0."""
    hidden = Layer([[1, 1, 0], [0, 0, 1]], scale=-1.0, add=1.0)
    return packed(hidden, Layer([[1, 0], [1, 1], [0, 0]]))


def test_a_net_by_hand(tmp_path: Path) -> None:
    report = bw.export.circuit(nor_net(), torch.rand(5, 3), tmp_path / "nor.json", outputs="counts")
    said = json.loads((tmp_path / "nor.json").read_text())
    # x are the literals 2, 4, 6: gate 8 is h0 = ~x0 & ~x1, and h1 = 7; the sum of both is h0 ^ h1 (inverted twice), h0 & h1
    assert said["gates"] == [["and", 3, 5], ["xor", 6, 8], ["and", 7, 8]]
    assert said["outputs"] == {"y": [7, 0], "count_0": [8], "count_1": [11, 12], "count_2": [0]}
    assert (report.gates, report.depth) == ({"and": 1, "nor": 1, "xor": 1}, 2)
    assert report.layers == {"fc1": 1, "fc2": 2} and report.thresholds == 0.5
    assert (report.images, report.patterns, report.exhaustive) == (5, 8, True)
    assert (
        "kB, 3 inputs, 6 outputs, 3 gates (1 and, 1 nor, 1 xor), depth 2; read back: equal on 5 samples and all 8"
        in str(report)
    )


@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_these_bytes(form: str, tmp_path: Path) -> None:
    """Written twice, the bytes are the same; those in tests/golden were looked through by hand."""
    for _ in range(2):
        bw.export.circuit(nor_net(), torch.zeros(1, 3), tmp_path / f"nor{form}", outputs="counts")
        assert (tmp_path / f"nor{form}").read_bytes() == (GOLDEN / f"nor{form}").read_bytes()


WEIGHTS = st.sampled_from(sorted(KINDS))


@st.composite
def nets(draw: st.DrawFn) -> PackedModel:
    """Small nets with everything that a layer may have: kinds of weights, codes of several levels, norms, scales of each output."""
    sizes = [draw(st.integers(1, 6)), *draw(st.lists(st.integers(1, 4), max_size=2)), draw(st.integers(1, 4))]
    layers = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        kind = draw(WEIGHTS)
        rows = st.lists(st.sampled_from(KINDS[kind][0]), min_size=inputs, max_size=inputs)
        levels = 1 if i == 0 else draw(st.integers(1, 3))
        halves = st.integers(-6, 6).map(lambda v: v / 2)
        cut = sorted(draw(st.lists(halves, min_size=levels, max_size=levels)))
        numbers = st.lists(st.sampled_from([1.0, -1.0, 0.5, 0.37, 0.0]), min_size=outputs, max_size=outputs)
        layers.append(
            Layer(
                weight=draw(st.lists(rows, min_size=outputs, max_size=outputs)),
                kind=kind,
                cut=[cut] * inputs if draw(st.booleans()) else cut,
                mult=draw(st.sampled_from([1, 2])),
                zero=draw(st.sampled_from([0, -1])),
                scale=draw(st.one_of(st.just(1.0), st.just(-0.25), numbers)),
                add=draw(st.one_of(st.just(0.0), st.lists(halves, min_size=outputs, max_size=outputs))),
            )
        )
        if draw(st.booleans()):
            scales = st.lists(st.sampled_from([1.0, -1.0, 0.25, 0.0]), min_size=inputs, max_size=inputs)
            layers[-1].norm = draw(scales), draw(st.lists(halves, min_size=inputs, max_size=inputs))
    return packed(*layers)


@settings(max_examples=30, deadline=None)
@given(nets())
def test_any_small_net_answers_as_packed(net: PackedModel) -> None:
    found = compiled(net.graph, "class", 10**6)
    inputs = found.cut.size
    bits = every(inputs)
    cut = torch.from_numpy(found.cut).nan_to_num(posinf=0.0, neginf=0.0)  # infinite: an input that changes nothing
    x = torch.where(torch.from_numpy(bits) == 1, cut, cut - 1)
    assert values(found.net, bits)["y"] == net(x).argmax(1).tolist()
    assert values(ands(found.net), bits) == values(found.net, bits)


@settings(max_examples=12, deadline=None)
@given(nets(), st.sampled_from([f for f in FORMS if f != ".c"]))
def test_files_of_any_small_net_are_equal(
    tmp_path_factory: pytest.TempPathFactory, net: PackedModel, form: str
) -> None:
    path = tmp_path_factory.mktemp("net") / f"net{form}"
    x = torch.randn(9, *net.inputs[0].shape)
    report = bw.export.circuit(net, x, path, outputs="counts")
    assert report.exhaustive and report.images == 9 and report.bytes == path.stat().st_size


def test_units_that_are_constant_and_classes_without_connections(tmp_path: Path) -> None:
    # h0 has no input and a threshold of 0: 1. h1 has none and a threshold of 1: 0. h2 needs more than it has. h3 = h4 = x0
    hidden = Layer([[0, 0], [0, 0], [1, 1], [1, 0], [1, 0]], add=[0.5, 0.0, -2.0, 0.0, 0.0])
    last = Layer([[0] * 5, [1, 1, 1, 0, 0], [0, 0, 0, 1, 1]])
    report = bw.export.circuit(packed(hidden, last), torch.zeros(1, 2), tmp_path / "net.v", outputs="counts")
    text = (tmp_path / "net.v").read_text()
    assert report.gates == {"and": 0, "nor": 0, "xor": 0} and report.depth == 0
    # class 1 always counts 1, class 2 counts 2 where x0: class 2 there, else class 1
    assert "assign y[0] = ~x[0];" in text and "assign y[1] = x[0];" in text
    assert "assign count_0[0] = 1'b0;" in text and "assign count_1[0] = 1'b1;" in text and "x[1]" not in text


def test_the_count_of_a_class_whose_scale_is_0_is_its_sum(tmp_path: Path) -> None:
    net = packed(Layer([[1, 0], [0, 1]], add=-0.5), Layer([[1, 1]], scale=0.0))
    bw.export.circuit(net, patterns(2), tmp_path / "net.v", outputs="counts")
    assert "count_0[1]" in (tmp_path / "net.v").read_text()  # 0, 1 or 2: two bits


def test_ties_of_scaled_classes_stay_ties(tmp_path: Path) -> None:
    """Class 0 has half the scale of class 1: 2 of two inputs are as much as 1 of one, and then class 0 wins."""
    net = packed(Layer([[1, 1, 0], [0, 0, 1]], scale=[0.5, 1.0]))
    report = bw.export.circuit(net, patterns(3), tmp_path / "net.blif")
    assert report.gates["and"] + report.gates["nor"] + report.gates["xor"] <= 2  # y = x2 and not (x0 and x1)
    falling = packed(Layer([[1, 1, 0], [0, 0, 1]], scale=-1.0))  # the smallest count wins
    assert bw.export.circuit(falling, patterns(3), tmp_path / "net.aag").exhaustive
    clipped = packed(Layer([[1, 1, 0], [0, 0, 1]]), behind=("clamp", {"low": None, "high": 1.0}))
    assert bw.export.circuit(clipped, patterns(3), tmp_path / "net.aag").exhaustive


def test_an_input_that_never_reaches_its_threshold_is_constant(tmp_path: Path) -> None:
    net = packed(Layer([[1, 0, 0], [0, 1, 0], [0, 0, 1]], cut=[[float("inf")], [float("-inf")], [0.0]]))
    report = bw.export.circuit(net, torch.randn(4, 3), tmp_path / "net.v")
    assert report.thresholds == [float("inf"), float("-inf"), 0.0] and sum(report.gates.values()) == 0


@pytest.mark.parametrize("form", FORMS)
def test_many_inputs_and_samples_that_are_no_multiple_of_64(form: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    first, second = draw.integers(0, 2, (9, 20)), draw.integers(0, 2, (4, 9)) * 2 - 1
    net = packed(Layer(first.tolist(), add=-5.0), Layer(second.tolist(), kind="-1/1", scale=[1.0, 0.9, 1.1, 1.0]))
    report = bw.export.circuit(net, (torch.rand(67, 20) > 0.5).float(), tmp_path / f"net{form}")
    assert (report.images, report.patterns, report.exhaustive) == (67, 2 + 20 + 4096, False)


def test_convolutions_pooling_and_padding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        bw.nn.Conv2d(1, 3, 3, padding=1, bias=False, w="zero_one", x={"part": "heaviside", "threshold": 0.5}),
        nn.BatchNorm2d(3),
        nn.MaxPool2d(2),
        bw.nn.Conv2d(3, 4, 2, stride=2, bias=False, w="bwn", x="sign"),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        bw.nn.Linear(16, 3, w="twn", x="sign"),
    )
    x = (torch.rand(200, 1, 8, 8) > 0.6).float()
    with torch.no_grad():
        model.train()(x)
    report = bw.export.circuit(model.eval(), x, tmp_path / "net.aig", outputs="counts")
    assert report.inputs == 64 and report.layers.keys() == {"0", "3", "6"} and report.images == 200


def test_groups_strides_and_dilation(tmp_path: Path) -> None:
    torch.manual_seed(1)
    bits = {"part": "heaviside", "threshold": 0.5}
    model = nn.Sequential(
        bw.nn.Conv2d(2, 4, (1, 3), padding=(0, 2), stride=(1, 2), dilation=2, groups=2, bias=False, w="bwn", x=bits),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        bw.nn.Linear(16, 2, bias=False, w="zero_one", x="sign"),
    )
    x = torch.rand(60, 2, 1, 7)
    with torch.no_grad():
        model.train()(x)
    report = bw.export.circuit(model.eval(), x, tmp_path / "net.v")
    assert report.exhaustive and report.patterns == 1 << 14


# ---- what is refused --------------------------------------------------------------------------------------------------------
def refused(net: Any, x: torch.Tensor, path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        bw.export.circuit(net, x, path, **options)
    assert not path.exists() and "\n" not in str(error.value)
    return str(error.value)


def test_a_layer_without_gates_is_named(tmp_path: Path) -> None:
    path, x = tmp_path / "net.v", torch.rand(3, 4)
    bits = {"part": "heaviside", "threshold": 0.5}

    def said(*layers: nn.Module) -> str:
        return refused(bw.convert(nn.Sequential(*layers), x, verify=False, form="graph"), x, path)

    first = bw.nn.Linear(4, 4, w="bwn", x=bits)
    assert said(bw.nn.Linear(4, 2, w="bwn")).startswith(
        "export circuit: 0: it reads the input as floats. Possible: inputs"
    )
    two = bw.nn.Linear(4, 2, w="bwn", x={"part": "dorefa_a", "bits": 2})
    assert said(two).startswith("export circuit: 0.x: it cuts the input into 4 levels")
    assert "export circuit: 2: it computes with floats" in said(first, nn.ReLU(), bw.nn.Linear(4, 2, w="bwn"))
    pooled = first, nn.Unflatten(1, (1, 4)), nn.AvgPool1d(2), nn.Flatten(), bw.nn.Linear(2, 2, w="bwn", x="sign")
    assert "export circuit: 0: its sums are read as floats by" in said(*pooled)
    assert "export circuit: 0: its weights have levels of two units" in said(bw.nn.Linear(4, 2, w="ttq", x=bits))
    assert "softmax stands between the last sums and the answer" in said(first, nn.Softmax(1))


def test_wrong_arguments(tmp_path: Path) -> None:
    net, x = nor_net(), torch.zeros(1, 3)
    assert "'net.vhd' has no known suffix; possible: .v, .aag, .aig, .blif, .c, .json" in refused(
        net, x, tmp_path / "net.vhd"
    )
    assert "outputs='sums'; possible: 'class', 'counts'" in refused(net, x, tmp_path / "net.v", outputs="sums")
    assert "about 30 gates, more than limit=29" in refused(net, x, tmp_path / "net.v", limit=29)
    assert module_name("module") == "module_net" and module_name("1-a") == "layer_1_a"


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_differs_is_not_written(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One inverter too many in the file, anywhere, is found."""
    writer, reader = to_circuit.FORMS[form]

    def broken(which: int) -> Any:
        def write(net: Netlist, *more: Any) -> bytes:
            kind, a, b = net.gates[which]
            gates = [*net.gates[:which], (kind, a, b ^ 1), *net.gates[which + 1 :]]
            return writer(Netlist(net.inputs, gates, net.outputs, net.marks), *more)

        return write

    for which in range(3):
        monkeypatch.setitem(to_circuit.FORMS, form, (broken(which), reader))
        if form == ".json":
            monkeypatch.setattr(to_circuit.json_form, "write", broken(which))
        said = refused(nor_net(), torch.zeros(2, 3), tmp_path / f"net{form}", outputs="counts")
        assert "differs from the packed net on" in said and "nothing was written" in said


def test_a_blif_table_of_many_rows_and_inputs() -> None:
    head = b".model net\n.inputs x[0] x[1] x[2]\n.outputs y[0]\n.names x[0] x[1] x[2] y[0]\n"
    net = to_circuit.FORMS[".blif"][1](head + b"111 1\n000 1\n100 1\n.end\n")
    assert values(net, every(3))["y"] == [1, 1, 0, 0, 0, 0, 0, 1]  # x0 is the lowest bit of the pattern
    with pytest.raises(InputError, match="cannot read"):
        to_circuit.FORMS[".blif"][1](head + b"1-1 1\n.end\n")


def test_readers_answer_damage_in_one_line() -> None:
    for form, data in (
        (".v", b"module net (\n  input [0:0] x,\n  output [0:0] y\n);\n  assign y[0] = x[0] + 1;\nendmodule\n"),
        (".aag", b"aag 1 1 1 0 0\n2\n"),
        (".blif", b".model net\n.inputs x[0]\n.outputs y[0]\n.latch x[0] y[0]\n.end\n"),
        (".json", b'{"format": "other", "version": 1, "inputs": 1}'),
    ):
        with pytest.raises(InputError, match="cannot read"):
            to_circuit.FORMS[form][1](data)


# ---- the command and its pages ------------------------------------------------------------------------------------------------------------
def test_the_command_writes_the_zoos_net(tmp_path: Path, call: Any) -> None:
    path = tmp_path / "net.aig"
    code, out, err = call("export", "circuit", "zoo:digits-mlp-zero_one", "-o", str(path), "--json", "--images", "50")
    assert code == 0, err
    said = json.loads(out)["export"]
    assert said["bytes"] == path.stat().st_size and said["inputs"] == 64 and said["outputs"] == {"y": 4}
    assert said["layers"].keys() == {"fc1", "fc2", "fc3"} and sum(said["layers"].values()) == sum(
        said["gates"].values()
    )
    code, _, err = call("export", "circuit", "zoo:digits-mlp-zero_one", "-o", str(path), "--limit", "100")
    assert code == 2 and "more than limit=100" in err


def test_the_pages_show_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    sections = import_module("results_circuits")
    rows = sections.rows_of()
    assert {r["net"] for r in rows} == {"digits-mlp-zero_one"} and {r["outputs"] for r in rows} == {"class", "counts"}
    assert sections.table_of(rows) in GUIDE.read_text(encoding="utf-8")
    assert sections.circuits() in (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8")
    net, row = bw.zoo.load("digits-mlp-zero_one"), rows[0]
    assert isinstance(net, PackedModel)
    found = compiled(net.graph, "class", to_circuit.LIMIT).net
    assert {kind: int(row[kind]) for kind in ("and", "nor", "xor")} == found.counts() and int(
        row["depth"]
    ) == found.depth()


@pytest.mark.slow
def test_the_commands_of_the_guide_run(tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```console\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    for line in lines:
        code, out, err = call(*line.removeprefix("$ bitwright ").split())
        assert code == 0 and "equal on 360 samples and 4,162 further patterns" in out, err
    assert {p.name for p in tmp_path.iterdir()} == {line.split("-o ")[1].split()[0] for line in lines} and len(
        lines
    ) == 6
