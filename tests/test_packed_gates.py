"""Gated nets packed: decisions and values are the trained layer's for every gate, and files hold them."""

from __future__ import annotations

import functools
import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native
from bitwright.engine.convert import Converted
from bitwright.engine.fold import fold
from bitwright.engine.gates import SplitOperator
from bitwright.engine.graph import Graph, Node
from bitwright.engine.operators import OPERATORS
from bitwright.engine.packed import PackedModel
from bitwright.engine.store import check_graph, from_json, stored
from bitwright.engine.trace import trace
from bitwright.errors import BitwrightWarning, InputError
from bitwright.measure.why import steps_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
B = bw.nn
BACKENDS = [*(["native"] if native.available() else []), "reference"]  # `few` takes most cases of the first
X = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(0))
FBS, CG, PG = ({"part": name} for name in ("fbs", "channel_gate", "precision_gate"))
PG4 = {**PG, "bits": 4, "top": 2}
W8, P4 = {"part": "sign_magnitude", "bits": 8}, {"part": "pact", "bits": 4}
# slots of the gated layer, and whether it adds whole numbers: then nothing may differ
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "fbs": ({"gate": {**FBS, "keep": 0.5}}, False),
    "fbs, 9.6 channels": ({"gate": {**FBS, "keep": 0.3}}, False),  # of 32: 10 are kept
    "fbs in blocks": ({"gate": {**FBS, "keep": 0.5, "channel_block": 16}}, False),
    "fbs of codes": ({"w": "bwn", "x": {"part": "pact", "bits": 2}, "gate": FBS}, False),
    "fbs behind a norm": ({"w": "bwn", "x": ["norm", "sign"], "gate": FBS}, False),
    "fbs on bits": ({"w": "bwn", "gate": FBS}, False),
    "channels": ({"gate": CG}, False),
    "channels, first ones": ({"gate": {**CG, "group": False, "unit": "raw"}}, False),
    "channels, two norms": ({"gate": {**CG, "output_bn": "dual", "shuffle": True}}, False),
    "channels of codes": ({"w": W8, "x": P4, "gate": CG}, True),
    "channels of bits": ({"w": "bwn", "x": P4, "gate": {**CG, "splits": 2}}, True),
    "channels, two terms": ({"w": "ttq", "x": P4, "gate": {**CG, "shuffle": True}}, False),
    "channels, codes alone": ({"x": P4, "gate": CG}, False),
    "channels, bits alone": ({"w": "bwn", "gate": CG}, False),
    "bits, own code": ({"gate": PG4}, False),
    "bits of codes": ({"w": W8, "x": P4, "gate": PG4}, True),
    "bits of signed codes": (
        {"w": "bwn", "x": ["norm", {"part": "lsq", "bits": 4, "signed": True}], "gate": PG4},
        True,
    ),
    "bits, codes alone": ({"x": P4, "gate": {**PG4, "top": 1, "unit": "normalized"}}, False),
    "bits, 8 and 4": ({"w": W8, "x": {"part": "pact", "bits": 8}, "gate": {**PG, "bits": 8, "top": 4}}, True),
}


def net(slots: dict[str, Any], outputs: int = 32, inputs: int = 32, **conv: Any) -> Any:
    """conv, gated conv with its norm, conv, classifier; every norm and gate away from where it starts."""
    generator = torch.Generator().manual_seed(1)
    first = [nn.Conv2d(3, inputs, 3), nn.BatchNorm2d(inputs), nn.ReLU()]
    gated = nn.Conv2d(inputs, outputs, **{"kernel_size": 3, "padding": 1, "bias": False, **conv})
    last = [nn.ReLU(), nn.Conv2d(outputs, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    whole: Any = nn.Sequential(*first, gated, nn.BatchNorm2d(outputs), *last)
    with torch.no_grad():
        for p in whole.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.dim() > 1 else 1))
        for module in whole.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
        bw.apply(whole, [{"match": "3", **slots}], X)
        for name, p in whole[3].gate.named_parameters():
            if "threshold" in name or "output_norm" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
            if "predictor.weight" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        whole.train()(X)
    return whole.eval()


def decided(whole: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """(answers, decisions of the gate) of the trained net."""
    seen: list[Tensor] = []
    whole[3].gate.watchers = (lambda part, on: seen.append(on.detach()),)
    with torch.no_grad():
        y = whole(x)
    whole[3].gate.watchers = ()
    return y, seen[0]


def packed(whole: nn.Module, backend: str = "reference", x: Tensor = X) -> PackedModel:
    return PackedModel(fold(trace(whole, x).graph), backend)


@functools.cache
def made(name: str) -> tuple[Any, Graph]:
    """The net of a case and its folded graph, for tests that change neither."""
    whole = net(CASES[name][0])
    return whole, packed(whole).graph


def gate_of(model: PackedModel, x: Tensor) -> Tensor:
    """What the packed gate decides, from the values of a run."""
    env = model.values(model.environment(x), plain=True)
    node = next(
        n for n in model.graph.nodes if n.op in ("winners", "channel_gate", "coded_channel_gate", "precision_gate")
    )
    if node.op == "winners":
        return env[node.name]
    gate = SplitOperator(node, model.graph)
    return gate.decide(gate.sums(env[node.inputs[0]])[0])


@pytest.mark.few()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_the_packed_layer_is_the_trained_one(name: str, backend: str, tmp_path: Path) -> None:
    whole, graph = made(name)
    want, on = decided(whole, X)
    model = PackedModel(graph, backend)
    assert 0.05 < float(on.float().mean()) < 0.95
    assert torch.equal(gate_of(model, X), on)
    torch.testing.assert_close(model(X), want, rtol=1e-5, atol=1e-5)
    for x in (X[:1], X[:0]):
        torch.testing.assert_close(model(x), want[: len(x)], rtol=1e-5, atol=1e-5)
    bw.save(model, tmp_path / "net.safetensors")
    again: Any = bw.load(tmp_path / "net.safetensors")
    assert torch.equal(PackedModel(again.graph, backend)(X), model(X))


@pytest.mark.parametrize("name", [name for name, (_, whole) in CASES.items() if whole])
def test_on_whole_numbers_the_layer_is_equal_bit_for_bit(name: str) -> None:
    """Given the same input, the layer's floats are the trained ones, on plain torch and on the kernels."""
    whole, _ = made(name)
    seen: list[Tensor] = []
    handle = whole[3].register_forward_hook(lambda module, args, y: seen.extend((args[0].detach(), y.detach())))
    with torch.no_grad():
        whole(X)
    handle.remove()
    x, want = seen
    graph = packed(nn.Sequential(whole[3]), x=x).graph
    for backend in BACKENDS:
        assert torch.equal(PackedModel(graph, backend)(x), want), backend


def test_nan_in_an_image_reaches_its_answer_alone() -> None:
    x = X.clone()
    x[1, 0, 4, 4] = torch.nan
    for name in ("fbs", "channels", "bits of codes"):
        y = PackedModel(made(name)[1], "reference")(x)
        assert bool(y[1].isnan().all()) and not bool(y[[0, 2, 3, 4, 5]].isnan().any())


@pytest.mark.few()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name", ["channels", "channels, two norms", "channels of codes", "bits of codes", "bits, own code"]
)
@pytest.mark.parametrize("end", [math.inf, -math.inf])
def test_shut_and_open_split_gates(name: str, end: float, backend: str) -> None:
    whole = net(CASES[name][0])
    nn.init.constant_(whole[3].gate.threshold, end)
    want, on = decided(whole, X)
    model = packed(whole, backend)
    assert bool((on == (end < 0)).all()) and torch.equal(gate_of(model, X), on)
    torch.testing.assert_close(model(X), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_channel_and_all_channels_win(backend: str) -> None:
    off = net({"gate": FBS})
    nn.init.constant_(off[3].gate.predictor.bias, -1e3)
    open_ = net({"gate": {**FBS, "keep": 1.0}})
    nn.init.constant_(open_[3].gate.predictor.bias, 1.0)
    nn.init.zeros_(open_[3].gate.predictor.weight)
    for whole, share in ((off, 0.0), (open_, 1.0)):
        want, on = decided(whole, X)
        assert float(on.mean()) == share
        torch.testing.assert_close(packed(whole, backend)(X), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_base_at_its_threshold_is_off(backend: str) -> None:
    """The base of the middle pixel is 1 + 2 = 3 exactly: thresholds 3, its neighbor below, its neighbor above."""
    layer: Any = B.Conv2d(2, 3, 1, bias=False, gate={**CG, "splits": 2, "group": False, "unit": "raw"})
    near = torch.nextafter(torch.tensor(3.0), torch.tensor(0.0)), torch.nextafter(torch.tensor(3.0), torch.tensor(9.0))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([3.0, 7.0]).reshape(1, 2, 1, 1).expand(3, 2, 1, 1))
        layer.gate.threshold.copy_(torch.tensor([3.0, float(near[0]), float(near[1])]))
    x = torch.ones(1, 2, 1, 1)
    assert layer.eval()(x).flatten().tolist() == [3.0, 10.0, 3.0]
    assert packed(nn.Sequential(layer), backend, x)(x).flatten().tolist() == [3.0, 10.0, 3.0]


@pytest.mark.few()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(5, 7, 1), (6, 9, 1), (3, 4, 1), (1, 4, 1), (8, 12, 2)])
@pytest.mark.parametrize(
    "gate", [CG, {**CG, "output_bn": "dual"}, PG4, FBS], ids=lambda g: "-".join(map(str, g.values()))
)
def test_leftover_channels_groups_and_too_few_to_split(
    gate: dict[str, Any], sizes: tuple[int, int, int], backend: str
) -> None:
    inputs, outputs, groups = sizes
    whole = net({"gate": gate}, outputs, inputs, groups=groups, stride=2)
    with torch.no_grad():
        want = whole(X)
    torch.testing.assert_close(packed(whole, backend)(X), want, rtol=1e-5, atol=1e-5)


KINDS: dict[str, tuple[nn.Module, tuple[int, ...], type[nn.Module]]] = {
    "rows": (nn.Linear(12, 8), (5, 12), nn.BatchNorm1d),
    "signals": (nn.Conv1d(12, 8, 3, stride=2, padding=2, dilation=2), (5, 12, 11), nn.BatchNorm1d),
}


@pytest.mark.few()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "slots", [{"gate": FBS}, {"gate": CG}, {"gate": PG4}, {"w": W8, "x": P4, "gate": PG4}], ids=str
)
def test_rows_and_signals(slots: dict[str, Any], kind: str, backend: str) -> None:
    layer, shape, norm = KINDS[kind]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    whole: Any = nn.Sequential(layer, norm(8))
    bw.apply(whole, [{"match": "0", **slots}], x)
    with torch.no_grad():
        whole.train()(x)
        want = whole.eval()(x)
    torch.testing.assert_close(packed(whole, backend, x)(x), want, rtol=1e-5, atol=1e-5)


# -- convert ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["fbs", "channels, two norms", "bits of codes"])
def test_convert_proves_it_and_names_the_gate(name: str) -> None:
    whole = net(CASES[name][0])
    done = bw.convert(whole, X, verify=[X, X.flip(0) * 2])
    row = next(r for r in done.report.rows if r.layer == "3")
    assert done.model is not None and done.report.form == "graph" and not done.report.beyond
    assert row.runs_as in ("gated", "int8") and row.why.startswith(f"gated: {whole[3].gate.part_name}")
    assert "nothing is packed" not in done.report.verdict


def test_a_wrong_decision_is_refused() -> None:
    """A threshold, a winner too many, a predictor's bias: each beyond rounding."""
    from bitwright.engine.verify import verify

    for name, role, change in (
        ("channels", "threshold", 0.05),
        ("bits of codes", "threshold", 0.5),
        ("fbs", "bias", 0.3),
    ):
        whole = net(CASES[name][0])
        model = packed(whole)
        assert not verify(whole, model, [X]).beyond
        node = next(n for n in model.graph.nodes if n.op in ("saliency", "channel_gate", "precision_gate"))
        model.graph.tensors[str(node.key(role))][::2] += change
        model.forget_steps()
        beyond = verify(whole, model, [X]).beyond
        found = next(b for b in beyond if b.where == "gate of 3")
        assert found.difference > found.bound


def test_a_decision_within_rounding_is_told() -> None:
    """All bases lie at their thresholds: each machine may decide as it likes, and the proof follows the trained net."""
    from bitwright.engine.verify_gates import Told

    node = Node("winners", "w", ["g"], {"count": 1, "block": 1, "owner": "3"})
    graph, g = Graph([node], {}), torch.tensor([[1.0, 1.0 + 2e-7, 0.1]])
    for on, wrong in (([1.0, 0, 0], False), ([0, 1.0, 0], False), ([0, 0, 1.0], True)):
        told, env = Told({"3": [torch.tensor([on])]}), {"g": g}
        assert told.step(node, graph, env) and bool(told.wrong) == wrong
        assert env["w"].tolist() == [on]


def test_what_cannot_be_packed_says_why_and_what_helps() -> None:
    for gate, words in (
        ({**PG4, "scale": "batch_max"}, 'use scale="static"'),
        ({**FBS, "compat": "seed"}, "train without it"),
    ):
        done = bw.convert(net({"gate": gate}), X)
        assert done.model is None and words in done.report.verdict and "\n" not in done.report.verdict


# -- files ------------------------------------------------------------------------------------------------------
def golden() -> PackedModel:
    """One gate of each kind, every number written down."""
    fbs = B.Conv2d(2, 4, 1, bias=False)
    cg: Any = B.Conv2d(4, 2, 1, bias=False, gate={**CG, "splits": 2, "group": False, "unit": "raw"})
    pg = B.Conv2d(2, 2, 1, bias=False, w="bwn", x={"part": "pact", "bits": 4, "alpha": 15.0}, gate={**PG4, "init": 4.0})
    whole: Any = nn.Sequential(fbs, nn.BatchNorm2d(4, eps=0.0), nn.ReLU(), cg, pg)
    bw.apply(whole, [{"match": "0", "gate": {**FBS, "keep": 0.5}}], torch.zeros(2, 2, 1, 1))
    with torch.no_grad():
        fbs.weight.copy_(torch.tensor([[1.0, 2.0], [2.0, 1.0], [-1.0, 1.0], [0.5, 0.5]]).reshape(4, 2, 1, 1))
        whole[0].gate.shift.zero_()
        whole[0].gate.predictor.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-1.0, 0.0]]))
        whole[0].gate.predictor.bias.zero_()
        cg.weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.25, 0.25, 1.0, 0.0]]).reshape(2, 4, 1, 1))
        cg.gate.threshold.copy_(torch.tensor([5.0, 5.0]))
        pg.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).reshape(2, 2, 1, 1))
    return packed(whole.eval(), "reference", torch.zeros(2, 2, 1, 1))


def test_the_golden_file(tmp_path: Path) -> None:
    """x = (1, 2): sizes (1, 2, 1.5, 0), so channels 1 and 2 win with 2 * 4 = 8 and 1.5 * 1 = 1.5. Base of cg: (8, 2) over
    channels 0 and 1; only the first is above 5 and gets 1.5: (9.5, 2). Codes 10 and 2, high bits 8 and 0: bases 8 and 8,
    above 4, low bits 2 and 2 added: 12 and 8."""
    path = Path(__file__).parent / "golden" / "gates_v1.safetensors"
    bw.save(golden(), tmp_path / "t.safetensors")
    assert (tmp_path / "t.safetensors").read_bytes() == path.read_bytes()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == GOLDEN
    loaded: Any = bw.load(path)
    for backend in BACKENDS:
        y = PackedModel(loaded.graph, backend)(torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1))
        assert y.flatten().tolist() == [12.0, 8.0], backend


GOLDEN = "f36d85829262195feddb1b1ea5b84e0a40c774498254abcc8376ad14d9d96430"

# operator -> a node of it, what a file may not say of it: (attributes or roles that change, part of the reason)
HOSTILE: dict[str, list[tuple[dict[str, Any], str]]] = {
    "winners": [
        ({"count": 0}, "out of bounds"),
        ({"count": 33}, "count=33"),
        ({"block": 5}, "block=5"),
        ({"count": True}, "out of bounds"),
    ],
    "saliency": [({"weight": torch.zeros(32, 3)}, "3 channels"), ({"bias": torch.zeros(3)}, "bias"), ({"last": 1}, "bounds")],
    "switch": [({"inputs": 2}, "inputs"), ({"last": True}, "channels")],
    "channel_gate": [
        ({"splits": 1}, "out of bounds"),
        ({"splits": 64}, "64 splits"),
        ({"group": 1}, "out of bounds"),
        ({"threshold": torch.zeros(3)}, "threshold is not one number"),
        ({"threshold": torch.full((32,), torch.nan)}, "NaN"),
        ({"on_scale": torch.zeros(32)}, "one of the two norms"),
        ({"rank": 4}, "out of bounds"),
        ({"rank": 1}, "axes"),
        ({"rank": 0}, "axes"),
        ({"groups": 3}, "groups"),
        ({"stride": [0, 1]}, "out of bounds"),
        ({"stride": [1]}, "one step for each axis"),
    ],
    "precision_gate": [
        ({"step": 1}, "out of bounds"),
        ({"scale": torch.zeros(1, 3)}, "no table of whole numbers"),
        ({"unit": "x"}, "out of bounds"),
        ({"last": True}, "axes"),
    ],
}  # fmt: skip
HOSTS = {
    "winners": "fbs",
    "saliency": "fbs",
    "switch": "fbs",
    "channel_gate": "channels",
    "precision_gate": "bits of codes",
}


@pytest.mark.parametrize(("op", "change", "reason"), [(op, *c) for op, found in HOSTILE.items() for c in found])
def test_a_hostile_file_is_one_line(op: str, change: dict[str, Any], reason: str) -> None:
    graph = made(HOSTS[op])[1].copy()
    node = next(n for n in graph.nodes if n.op == op)
    for key, value in change.items():
        if key == "inputs":
            node.inputs = node.inputs[:value]
        elif isinstance(value, Tensor):
            graph.put(node, key, value)
        else:
            node.attrs[key] = value
    for n in graph.nodes:
        n.attrs.pop("shape", None) if n.op != "input" else None
    with pytest.raises(InputError) as error:
        from_json(*stored(graph))
    assert "\n" not in str(error.value) and reason in str(error.value) and f"({op})" in str(error.value)


# -- operators alone ----------------------------------------------------------------------------------------------
def test_winners_of_blocks_by_hand() -> None:
    run = OPERATORS["winners"].run
    assert run is not None
    g = torch.tensor([[0.0, 5.0, 2.0, 2.0, 3.0, 0.0]])
    for block, count, want in ((1, 2, [0, 1, 0, 0, 1, 0]), (2, 1, [0, 1, 0, 0, 0, 0]), (3, 2, [0, 1, 1, 1, 1, 0])):
        assert run(Node("winners", "w", ["g"], {"block": block, "count": count}), Graph([], {}))(g).tolist() == [want]


def test_a_gated_graph_is_checked_when_it_is_made() -> None:
    graph = made("channels")[1].copy()
    check_graph(graph)
    assert [n.op for n in graph.nodes].count("channel_gate") == 1


# -- exports ------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fbs", "fbs of codes", "channels, two norms", "channels of codes", "bits of codes"])
def test_onnx_in_standard_operators(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    done: Converted = bw.convert(net(CASES[name][0]), X, verify=False)
    report = bw.export.onnx(done, X, tmp_path / "net.onnx")
    assert report.largest < 1e-5


def test_c_names_the_gate_it_has_no_form_of(tmp_path: Path) -> None:
    for name, op in (("fbs", "saliency"), ("channels", "channel_gate"), ("bits of codes", "precision_gate")):
        done = bw.convert(net(CASES[name][0]), X, verify=False)
        with pytest.raises(
            InputError, match=rf"\({op}\): a gate has no form in C. Possible: the packed file or ONNX"
        ) as error:
            bw.export.c(done, X[:2], tmp_path / "net.c")
        assert "\n" not in str(error.value)


def test_depthwise_layers_are_left_without_a_gate() -> None:
    with pytest.warns(BitwrightWarning, match="depthwise"):
        layer = B.Conv2d(4, 4, 3, groups=4, gate=FBS)
    assert F.mse_loss(packed(nn.Sequential(layer.eval()), x=torch.ones(1, 4, 4, 4))(torch.ones(1, 4, 4, 4)),
                      layer(torch.ones(1, 4, 4, 4))) < 1e-10  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_time_of_gated_layers_counts_as_theirs(backend: str) -> None:
    first = B.Conv2d(3, 8, 3, gate={**FBS, "keep": 0.5})
    gated = nn.Sequential(first, nn.ReLU(), B.Conv2d(8, 8, 3, gate="channel_gate")).eval()
    found = {step.name: step.runs_as for step in steps_of(packed(gated, backend), [X])}
    # in plain torch, what fbs switches off is computed, too
    assert found == {"0": "gated" if backend == "native" else "float", "2": "gated", "": ""}
