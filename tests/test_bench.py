"""The benchmark table: arithmetic on made-up times, peers that are not there, twins. No assertion looks at a clock."""

from __future__ import annotations

import builtins
import csv
import io
import itertools
import logging
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright import timing
from bitwright.engine.packed import PackedModel
from bitwright.errors import InputError
from bitwright.measure import peers, peers_ort, precision, why
from bitwright.measure.bench import bench, measure
from bitwright.measure.conv import conv_bench
from bitwright.measure.peers import Peer
from bitwright.measure.table import BenchRow, BenchTable, ranked
from bitwright.timing import Timing
from bitwright.transforms import twin
from bitwright.transforms.twin_trace import trace

pytest.importorskip("onnxruntime")


def row(name: str, precision: str, ms: float | None, spread: float = 0.1) -> BenchRow:
    if ms is None:
        return BenchRow(name, precision, note="unavailable: made up")
    seconds = ms / 1e3
    return BenchRow.measured(
        name, precision, Timing(seconds, seconds * (1 - spread / 2), seconds * (1 + spread / 2), seconds * 2, 30), 1
    )


def table(ours: float | None = 1.0, spread: float = 0.1) -> BenchTable:
    rows = [row("torch-fp32", "fp32", 9.0), row("ort-int8", "int8", 2.5), row("torch-int8", "int8", 3.0)]
    rows += [row("torch-bf16", "bf16", 0.5), row("ort-fp32", "fp32", None)]
    return BenchTable(
        ranked(row("bitwright", "1 bit", ours, spread), rows),
        {"cpu": "Made Up", "kernels": "made-up", "threads": 1},
        1,
        (3, 8, 8),
        5,
    )


# ---- arithmetic ----


def test_ratios_best_and_order():
    t = table()
    assert [r.name for r in t.rows] == ["bitwright", "ort-int8", "torch-int8", "torch-bf16", "torch-fp32", "ort-fp32"]
    assert [r.ratio for r in t.rows] == [None, 2.5, 3.0, 0.5, 9.0, None]
    assert [r.name for r in t.rows if r.best_of_precision] == ["ort-int8", "torch-bf16", "torch-fp32"]
    best = t.best("int8")
    assert best is not None and best.name == "ort-int8"
    assert t.best("int4") is None
    assert (
        t.summary()
        == "in one line: 0.5x the speed of the fastest program here, torch-bf16 (slower); 2.5x the best int8, ort-int8"
    )
    assert t.ours.per_second == pytest.approx(1000)


def test_text_names_what_is_missing_and_the_noise():
    t = table(spread=0.5)
    lines = str(t).splitlines()
    assert lines[0].startswith("Made Up, kernels made-up, 1 thread, batch 1, input 3x8x8, 5 rounds interleaved")
    assert "ort-fp32 not measured: made up" in lines
    assert lines[-1] == "quality: NOISY, repeat when idle (quartile spread 50 %)" and t.noisy
    assert not table().noisy
    assert "|" not in str(t) and all(len(line) <= 120 for line in lines)


def test_one_reason_of_several_peers_is_one_line():
    absent = [BenchRow(f"openvino-{p}", p, note="unavailable: pip install openvino") for p in ("fp32", "int8")]
    rows = ranked(
        row("bitwright", "1 bit", 1.0), [*absent, row("torch-fp32", "fp32", 2.0), row("ort-int8", "int8", None)]
    )
    lines = BenchTable(rows, {}).text().splitlines()
    assert [line for line in lines if "not measured" in line] == [
        "openvino-int8, openvino-fp32 not measured: pip install openvino",
        "ort-int8 not measured: made up",
    ]


def test_a_narrow_table_loses_quartiles_then_rate_then_p95():
    assert "p95" in next(line for line in table().text(110).splitlines() if line.startswith("candidate"))
    head = next(line for line in table().text(80).splitlines() if line.startswith("candidate"))
    assert "quartiles" not in head and "p95" in head
    head = next(line for line in table().text(70).splitlines() if line.startswith("candidate"))
    assert "img/s" not in head and "p95" in head
    assert all(len(line) <= 60 for line in table().text(60).splitlines())
    head = next(line for line in table().text(60).splitlines() if line.startswith("candidate"))
    assert "p95" not in head and "ours faster by" in head


STEPS = [
    why.TimedStep("stem", "int8", 3, 0.5),
    why.TimedStep("a", "bits", 16, 0.1),
    why.TimedStep("b", "bits", 16, 0.1),
]


def test_why_it_is_not_faster_by_hand():
    assert why.explain([*STEPS, why.TimedStep("", "", 0, 0.3)], 1.0, 1) == (
        "stem takes 50 % (3 input channels, runs as int8)",
        "a and 1 more bits layers have 16 channels, less than a word of 32 per tap, and take 20 %",
        "what lies between the layers (adds, pooling, norms, activations) takes 30 %",
        "more gain: wider layers or --batch 32",
    )
    wide = [why.TimedStep("a", "bits", 64, 1.0)]
    assert why.explain(wide, 1.0, 1) == ("no single reason: the largest layer, a, takes 100 %",)
    (tiny, more) = why.explain(wide, 0.003, 1)
    assert tiny.startswith("the net is tiny: 0.00300 ms per layer") and more.startswith("more gain")
    assert len(why.explain(wide, 0.003, 32)) == 1


def test_why_a_depthwise_layer_is_not_faster():
    """Known from the graph: as many groups as channels. Its sentence names the selector of rules, and no word of channels."""

    def layer(i: int, o: int, k: int, groups: int = 1, **parts: Any) -> Any:
        return bw.nn.Conv2d(i, o, k, padding=k // 2, groups=groups, **parts)

    coded: Any = {"w": "bwn", "x": "sign"}
    net = torch.nn.Sequential(
        layer(3, 32, 3), layer(32, 32, 3, 32), layer(32, 32, 5, 32, **coded), layer(32, 32, 1, **coded)
    )
    x = torch.randn(2, 3, 8, 8)
    packed: Any = bw.convert(net.eval(), x, verify=False).model
    steps = {s.name: s for s in why.steps_of(packed, [x])}
    assert {n: s.window for n, s in steps.items()} == {"0": 0, "1": 9, "2": 25, "3": 0, "": 0}
    one = [why.TimedStep("a", "bits", 64, 0.8), why.TimedStep("dw", "int8", 1, 0.2, 9)]
    (said,) = why.explain(one, 1.0, 32)
    assert said == (
        "dw takes 20 % (depthwise, run as int8): a window of 9 products is too little work for bits; a rule with "
        'kind = "depthwise" leaves such layers float or gives them 8 bits'
    )
    (said,) = why.explain([*one, why.TimedStep("dw2", "float", 1, 0.4, 25)], 1.0, 32)
    assert said.startswith("dw2 and 1 more depthwise layers take 60 % (depthwise, run as float/int8): a window of 25")


def test_why_is_asked_only_below_one_and_a_half_times_the_fastest_program_of_any_precision(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(why, "steps_of", lambda packed, x: STEPS)
    packed: Any = None
    assert why.reasons(table(ours=0.25), packed, (torch.zeros(1),)) == ()  # bf16 takes 0.5 ms, int8 2.5
    said = why.reasons(table(ours=1.0), packed, (torch.zeros(1),))  # 2.5x the best int8, but half the speed of bf16
    assert said[0].startswith("stem takes 50 %")
    assert why.reasons(table(ours=None), packed, (torch.zeros(1),)) == ()
    assert why.reasons(table(ours=2.0), packed, (torch.zeros(1),))[0].startswith("stem takes 50 %")


def test_shares_of_the_steps_sum_to_one():
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3),
        nn.BatchNorm2d(64),
        bw.nn.Conv2d(64, 64, 3, w="bwn", x="sign"),
        nn.Flatten(),
        nn.Linear(256, 2),
    )
    x = torch.randn(1, 3, 6, 6)
    packed: Any = bw.convert(net.eval(), x).model
    steps = why.steps_of(packed, (x,))
    assert [(s.name, s.runs_as, s.channels) for s in steps] == [
        ("0", "float", 3),
        ("2", "bits", 64),  # on every instruction set
        ("4", "float", 256),
        ("", "", 0),
    ]
    assert sum(s.share for s in steps) == pytest.approx(1) and precision.precision_of(packed) == "1 bit"


def test_ours_missing_is_a_row_too():
    t = table(ours=None)
    assert all(r.ratio is None for r in t.rows) and t.summary() == "in one line: ours was not measured"


def test_csv_dict_and_markdown_hold_the_same_values():
    t = table()
    records = list(csv.DictReader(io.StringIO(t.to_csv())))
    assert [r["name"] for r in records] == [r.name for r in t.rows]
    assert float(records[1]["latency_ms"]) == pytest.approx(2.5) and records[-1]["latency_ms"] == ""
    assert {"cpu", "threads", "latency_q1_ms", "clock", "batch"} <= set(records[0])
    assert float(records[1]["latency_p95_ms"]) == pytest.approx(5.0) and records[-1]["latency_p95_ms"] == ""
    assert t.to_dict()["rows"][1]["latency_ms"] == pytest.approx(2.5)
    assert t.to_markdown().count("\n| ") == 1 + len(t.rows)  # the rule below the head too


def test_quartiles_by_hand():
    t = timing.summarize([5.0, 1.0, 3.0, 2.0, 4.0], 10)
    assert (t.q1, t.median, t.q3, t.runs) == (2.0, 3.0, 4.0, 10) and t.spread == pytest.approx(2 / 3)
    assert t.p95 == pytest.approx(4.8)  # at 0.95 * 4 = 3.8 between the fourth and the fifth
    assert timing.summarize([2.0], 1) == Timing(2.0, 2.0, 2.0, 2.0, 1)


def test_interleave_goes_round_and_divides_by_calls():
    ticks = itertools.count()
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    clock = itertools.count(step=10).__next__
    result = timing.interleave(calls, rounds=3, slice_seconds=4, clock=clock, wall=lambda: float(next(ticks)))
    repeats = result["a"].runs // 3
    assert repeats >= 1 and result["a"].median == pytest.approx(10 / repeats)
    tail = order[-3 * 2 * (repeats + 1) :]  # each slice: one call unmeasured, then `repeats`
    assert tail == (["a"] * (repeats + 1) + ["b"] * (repeats + 1)) * 3


def test_a_pause_stands_before_each_slice(monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: order.append(f"sleep {seconds}"))
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    ticks = itertools.count()
    timing.interleave(calls, rounds=2, slice_seconds=1, pause=0.5, clock=lambda: 0.0, wall=lambda: float(next(ticks)))
    assert order[-12:] == ["sleep 0.5", "a", "a", "sleep 0.5", "b", "b"] * 2


def test_several_threads_pause_and_one_does_not(monkeypatch: pytest.MonkeyPatch):
    seen: list[float] = []
    done = Timing(1e-3, 1e-3, 1e-3, 1e-3, 3)
    monkeypatch.setattr(
        "bitwright.measure.bench.interleave",
        lambda calls, **how: seen.append(how["pause"]) or dict.fromkeys(calls, done),
    )
    for threads in (1, 2):
        measure(lambda: None, [], shape=(1, 4), threads=threads)
    assert seen == [0.0, timing.SPINNING]


def test_faster_layout_is_quoted(monkeypatch: pytest.MonkeyPatch):
    fake = {
        "bitwright/plain": Timing(1e-3, 1e-3, 1e-3, 1e-3, 3),
        "p/plain": Timing(4e-3, 4e-3, 4e-3, 4e-3, 3),
        "p/cl": Timing(3e-3, 3e-3, 3e-3, 3e-3, 3),
    }
    monkeypatch.setattr("bitwright.measure.bench.interleave", lambda calls, **_: {k: fake[k] for k in calls})
    t = measure(lambda: None, [Peer("p", "fp32", {"plain": lambda: 0, "cl": lambda: 0})], shape=(2, 4))
    assert t.rows[1].median_ms == pytest.approx(3.0) and t.rows[1].note == "cl; plain 4.00"
    assert t.rows[1].per_second == pytest.approx(2 / 3e-3)


# ---- twins ----


class Odd(nn.Module):
    """A branch on a shape, a residual, and a norm that must not be folded (its convolution has two readers)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = bw.nn.Conv2d(4, 4, 3, padding=1, w="bwn", x=["norm", "sign"]), nn.BatchNorm2d(4)
        self.b, self.nb = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 4:
            raise ValueError("4 channels")
        n, c, h, w = x.shape
        y = self.na(self.a(x)).relu()
        z = self.b(y)
        z = self.nb(z) + z
        return self.fc(z.reshape(n, c, h * w).mean(2))


def odd() -> Odd:
    net = Odd().eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None and m.running_var is not None:
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return net


def test_float_twin_empties_slots_and_leaves_the_model():
    net = odd()
    other = twin.float_twin(net)
    assert isinstance(net.a, bw.nn.Conv2d) and net.a.w is not None
    assert [type(m) for m in other.modules() if isinstance(m, nn.Conv2d)] == [nn.Conv2d, nn.Conv2d]
    weight = dict(other.named_parameters())["a.weight"]
    assert weight is not net.a.weight and torch.equal(weight, net.a.weight)


def test_batchnorm_is_folded_only_where_it_may_be():
    x = torch.randn(2, 4, 6, 6)
    plain = twin.float_twin(odd()).eval()
    net = twin.float_net(odd(), (x,))
    plain = twin.float_twin(plain)
    folded = twin.fold_batchnorm(plain, (x,))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == 1
    torch.testing.assert_close(folded(x), plain(x), rtol=1e-4, atol=1e-5)
    assert net.note == "" and net.single is None


def test_tracing_follows_shapes():
    graph = trace(twin.float_twin(odd()), (torch.randn(2, 4, 6, 6),)).graph
    assert not any(n.target is getattr for n in graph.nodes)


def test_a_net_that_is_one_layer_is_known():
    conv = nn.Conv2d(3, 4, 3)
    assert twin.float_net(nn.Sequential(conv, nn.BatchNorm2d(4)), (torch.randn(1, 3, 5, 5),)).single is not None
    assert twin.float_net(nn.Sequential(conv, nn.ReLU()), (torch.randn(1, 3, 5, 5),)).single is None


def test_precision_column():
    assert precision.precision_of(odd()) == "1 bit"
    assert precision.precision_of(nn.Linear(2, 2)) == "float"


# ---- peers ----


def test_all_peers_run_on_a_small_net_and_nothing_of_the_program_changes():
    threads, engine = torch.get_num_threads(), torch.backends.quantized.engine
    handlers, filters = list(logging.getLogger().handlers), list(warnings.filters)
    t = bench(odd(), torch.randn(2, 4, 6, 6), rounds=1)
    missing = {r.note for r in t.rows if r.median_ms is None}
    assert missing <= {"unavailable: pip install openvino"}  # the only peer that comes with an extra
    assert {r.precision for r in t.rows[1:]} == {"fp32", "bf16", "int8"}
    assert torch.get_num_threads() == threads and torch.backends.quantized.engine == engine
    assert logging.getLogger().handlers == handlers and list(warnings.filters) == filters


def test_operators_with_other_answers_are_not_timed(monkeypatch: pytest.MonkeyPatch):
    """The time of a net that answers wrongly is worth nothing: the file of another net is not taken for this one."""
    from bitwright.export import to_onnx

    x = torch.randn(1, 4, 6, 6)
    torch.manual_seed(0)
    packed, other = (bw.convert(odd().eval(), x, verify=False).model for _ in range(2))
    assert isinstance(packed, PackedModel) and isinstance(other, PackedModel)
    peers_ort.packed(packed, (x,), 1)
    proto = to_onnx.packed_proto(other, (x,))
    monkeypatch.setattr(to_onnx, "packed_proto", lambda *_: proto)
    with pytest.raises(InputError, match="bench: 1 of 1 samples differ from the net"):
        peers_ort.packed(packed, (x,), 1)


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.Linear(8, 4)], ids=["conv", "linear"])
def test_single_operators_run_quantized(layer: nn.Module):
    x = torch.randn(1, 8, 6, 6) if isinstance(layer, nn.Conv2d) else torch.randn(3, 8)
    # one large weight for each output: on CPUs without VNNI the peers cut sums of two products off at 16 bits
    with torch.no_grad():
        weight = next(layer.parameters())
        weight.flatten(1)[:, 0] = 8 * weight.abs().max()
    net = twin.float_net(layer, (x,))
    for name in ("torch-int8", "ort-int8"):
        peer = peers.build_peer(name, net, 1)
        assert peer.variants, peer.note
    with torch.inference_mode():
        q = next(iter(peers.build_peer("torch-int8", net, 1).variants.values()))()
    assert isinstance(q, Tensor) and q.dtype == torch.quint8
    with torch.inference_mode():
        y = layer(x)
    # the same layer up to 8-bit steps: half a step of the output, and errors of 1/254 in each of its terms
    torch.testing.assert_close(q.dequantize(), y, rtol=0, atol=0.1 * float(y.abs().max()))


def test_without_onnxruntime_the_row_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def no_onnx(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("onnx", "onnxruntime"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_onnx)
    t = bench(nn.Linear(4, 4), torch.randn(1, 4), rounds=1, against=("ort-fp32", "ort-int8"))
    assert [r.note for r in t.rows[1:]] == ["unavailable: pip install onnx onnxscript onnxruntime"] * 2
    assert "openvino" in t.machine  # a version of each program, None where it is not installed
    assert "pip install" in str(t) and t.summary() == "in one line: no peer was measured"


def test_a_peer_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch):
    def broken(net: Any, threads: int) -> Any:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setitem(peers.PEERS, "torch-bf16", ("bf16", broken))
    t = bench(nn.Linear(4, 4), torch.randn(1, 4), rounds=1, against=("torch-bf16",))
    assert t.rows[1].note == "unavailable: RuntimeError: first line"


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.fc(x) if not more else more[0]


def test_a_net_that_cannot_be_traced_keeps_its_float_peers():
    t = bench(Branching().eval(), torch.randn(1, 4), rounds=1, against=("torch-fp32", "torch-int8"))
    assert t.rows[1].name in ("torch-fp32", "torch-int8") and any(r.median_ms for r in t.rows[1:])


def test_wrong_use_is_one_line():
    x = torch.randn(1, 4)
    for call in (
        lambda: bench(nn.Linear(4, 4), x, threads=0),
        lambda: bench(nn.Linear(4, 4), x, rounds=True),
        lambda: bench("resnet20", x),
        lambda: bench(nn.Linear(4, 4), torch.tensor(1.0)),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("against", ["torch-fp23", ("torch-fp23", "torch-fp32"), ("tvm", 7)])
def test_an_unknown_peer_is_a_row_that_says_so(against: Any):
    t = bench(nn.Linear(4, 4), torch.randn(1, 4), rounds=1, against=against)
    asked = [against] if isinstance(against, str) else [str(a) for a in against]
    found = {r.name: r for r in t.rows[1:]}
    assert sorted(found) == sorted(asked) and t.ours.median_ms
    for name, row in found.items():
        known = name == "torch-fp32"
        assert (row.median_ms is not None) == known
        assert known or (row.note.startswith(f"unavailable: unknown peer '{name}'.") and "openvino-int8" in row.note)
    if "torch-fp23" in found:
        assert "Nearest: torch-fp32" in found["torch-fp23"].note
        assert "torch-fp23 not measured: unknown peer 'torch-fp23'. Nearest" in " ".join(t.text().split())


def test_the_command_prints_p50_p95_and_peers_that_it_does_not_know(call: Any):
    code, out, err = call("bench", "conv:32x4", "--rounds", "2", "--against", "torch-fp32,tvm")
    head = next(line for line in out.splitlines() if line.startswith("candidate"))
    assert code == 0, err
    assert "ms median" in head and "p95" in head
    assert "tvm not measured: unknown peer 'tvm'. Known: torch-fp32" in " ".join(out.split())


# ---- one convolution ----


def test_conv_bench_takes_a_callable():
    calls: list[int] = []
    t = conv_bench(32, 4, ours=lambda: calls.append(1), rounds=1, against=("torch-int8", "torch-fp32"))
    assert calls and t.rows[0].name == "bitwright" and t.input == (32, 4, 4)
    assert all(r.ratio is not None for r in t.rows[1:])


def test_conv_bench_finds_our_kernel_or_says_why_not():
    t = conv_bench(32, 4, rounds=1, against=("torch-fp32",))
    assert t.rows[1].median_ms is not None
    assert (t.rows[0].median_ms is not None) != t.rows[0].note.startswith("unavailable: native core")
