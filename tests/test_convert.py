"""convert itself: its report, refusals, errors, the packed module, memory over a long life."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from packing import ONE_BIT, TWO_BIT, B, Net, pack, part, settle


# -- convert itself ----------------------------------------------------------------------------------
def small(p: dict[str, Any] = ONE_BIT) -> Any:
    return settle(
        nn.Sequential(
            nn.Conv2d(3, 32, 3),
            nn.BatchNorm2d(32),
            B.Conv2d(32, 32, 3, **p),
            nn.BatchNorm2d(32),
            nn.Flatten(),
            nn.Linear(512, 4),
        )
    )


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))

PACKED = ("bits", "int8")  # which of the two is faster depends on the instruction set


def test_report_and_result() -> None:
    net = small()
    done = bw.convert(net, X)
    assert done.report.layers_exact and done.report.images == 4 and done.report.codes_checked == 1
    assert [r.layer for r in done.report.rows if r.runs_as in PACKED] == ["2"] and len(done.report.rows) == 3
    row = done.report.rows[1]
    assert (row.bits, row.bytes_before, row.bytes_after) == ("1/1", 4 * (32 * 32 * 9 + 32), 32 * 32 * 9 // 8 + 8 * 32)
    assert done.report.status in ("PASS", "WARN") and done.model is not None
    assert (done.model(X) - net(X)).abs().max() < 1e-4
    assert "codes of 1 layers equal bit for bit" in str(done.report)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_alone(training: bool) -> None:
    net = small({"w": ["bwn", "mask"], "x": ["norm", "dropout", "sign"]}).train(training)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modules = [(n, type(m), m.training) for n, m in net.named_modules()]
    threads = torch.get_num_threads()
    bw.convert(net, X)
    assert [(n, type(m), m.training) for n, m in net.named_modules()] == modules
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.get_num_threads() == threads
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_int8_layers_and_uint8_pixels() -> None:
    net = settle(
        nn.Sequential(
            B.Conv2d(3, 16, 3, w=part("uniform", bits=8), x=part("input8", mean=0.4, std=0.25)),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            B.Conv2d(16, 4, 3, **ONE_BIT),
            nn.Flatten(),
        )
    )
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    done = bw.convert(net, pixels, verify=[pixels, pixels.float() / 255])
    assert done.report.layers_exact and done.report.rows[0].runs_as == "int8"
    assert done.report.images == 6 and done.model is not None
    assert torch.equal(done.model(pixels), done.model(pixels.float() / 255))
    assert torch.allclose(done.model(pixels), net(pixels), rtol=1e-4, atol=1e-4)


def test_bits_of_weight_only_nets_save_bytes_not_time() -> None:
    net = settle(
        nn.Sequential(
            B.Conv2d(3, 32, 3, w="ttq"), nn.BatchNorm2d(32), nn.ReLU(), B.Conv2d(32, 8, 3, w="bwn"), nn.Flatten()
        )
    )
    done = bw.convert(net, X)
    assert done.report.status == "WARN" and done.report.verdict.startswith("its bits save bytes, not time:")
    assert [r.runs_as for r in done.report.rows] == ["bits on disk, float run"] * 2
    constant = "; 1 of its 32 outputs are left out: no weight reads them, or they never change"  # its gain is 0
    assert [r.why for r in done.report.rows] == [f"its input is float{constant}", "its input is float"]
    assert done.model is not None and (done.model(X) - net(X)).abs().max() < 1e-5
    from bitwright.engine.reference import stored_weight

    graph: Any = done.model.graph
    last = next(n for n in graph.nodes if n.name == "3")
    assert torch.equal(stored_weight(graph, last), net[3].w(net[3].weight).detach())


def test_nothing_to_pack_is_a_refusal(tmp_path: Any) -> None:
    done = bw.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), X)
    assert done.report.status == "REFUSE" and done.model is None
    assert done.report.verdict == (
        "nothing to pack: 1 of 1 layers stay float. First: 0 (Conv2d 3>4 3x3): its slots are empty."
        ' Try: a recipe (bw.apply(model, "w1a1", example); bitwright train), then convert'
    )
    with pytest.raises(InputError, match="nothing was converted: nothing to pack"):
        done.save(tmp_path / "no.safetensors")
    assert not list(tmp_path.iterdir())


class Gate(nn.Module):
    def forward(self, op: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return op(x, w, b) * 0.5


class Odd(nn.Module):
    """A part without codes."""

    def forward(self, t: Tensor, keep: Any = None) -> Tensor:
        return torch.tanh(t)


PER_CHANNEL = part("uniform", bits=3, granularity="channel")
REFUSALS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "padding mode": (
        lambda: B.Conv2d(32, 8, 3, padding=1, padding_mode="circular", **ONE_BIT),
        "Conv2d 32>8 3x3|padding_mode='circular'; bit kernels take zeros",
    ),
    "weight part without codes": (
        lambda: B.Conv2d(32, 8, 3, w=Odd(), x="sign"),
        "Conv2d 32>8 3x3|slot w holds Odd, which has no integer codes",
    ),
    "input part without codes": (
        lambda: B.Conv2d(32, 8, 3, w="bwn", x=Odd()),
        "Conv2d 32>8 3x3|slot x holds Odd, which has no integer codes",
    ),
    "a step per channel": (
        lambda: B.Conv2d(32, 8, 3, w="bwn", x=PER_CHANNEL),
        "Conv2d 32>8 3x3|slot x holds uniform(bits=3, granularity='channel'): one step per input channel: "
        "the sum over channels is not an integer product",
    ),
    "transposed": (
        lambda: B.ConvTranspose2d(32, 8, 3, **ONE_BIT),
        "ConvTranspose2d 32>8 3x3|ConvTranspose2d has no bit kernel; Linear, Conv1d, Conv2d have",
    ),
    "gate": (
        lambda: B.Conv2d(32, 8, 3, gate=Gate(), **ONE_BIT),
        "Conv2d 32>8 3x3|slot gate holds Gate; a gate runs in the graph form alone",
    ),
    "float weight": (
        lambda: B.Conv2d(32, 8, 3, x="sign"),
        "Conv2d 32>8 3x3|slot w is empty; codes of the input alone gain nothing",
    ),
    "bias part": (
        lambda: B.Conv2d(32, 8, 3, b=Odd(), **ONE_BIT),
        "Conv2d 32>8 3x3|slot b holds Odd; biases stay float",
    ),
    "nine planes": (
        lambda: B.Conv2d(32, 8, 3, w=[part("dorefa_w", bits=8), "mask"], x="sign"),
        "Conv2d 32>8 3x3|slot w holds dorefa_w+mask: 9 planes; bit kernels take 1 to 8",
    ),
}


def line_of(text: str) -> int:
    return next(i for i, s in enumerate(Path(__file__).read_text().splitlines(), 1) if text in s)


class Holder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.body = B.Conv2d(3, 32, 3, **ONE_BIT), layer

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x)).flatten(1)  # the line that reports quote


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_layer_runs_in_float_and_says_why(name: str) -> None:
    build, text = REFUSALS[name]
    kind, why = text.split("|")
    net = settle(Holder(build()))
    done = bw.convert(net, X)
    row = done.report.rows[1]
    assert (row.layer, row.kind, row.runs_as) == ("body", kind, "float")
    line = line_of("return op(x, w, b) * 0.5" if name == "gate" else "# the line that reports")
    assert row.why == f"{why} (test_convert.py line {line})"
    assert done.model is not None and (done.model(X) - net(X)).abs().max() < 1e-4
    assert done.report.rows[0].runs_as in PACKED and done.report.layers_exact
    assert done.report.refused == [row]


def test_empty_slots_beside_packed_ones() -> None:
    net = settle(nn.Sequential(B.Conv2d(3, 8, 3, **ONE_BIT), B.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 2)))
    assert [r.why for r in bw.convert(net, X).report.rows] == ["", "", "its slots are empty"]


def test_data_dependent_control_flow_is_one_line_with_the_users_line() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = B.Conv2d(3, 4, 3, **ONE_BIT)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            if y.sum() > 0:  # the branch that cannot be traced
                y = -y
            return y

    line = line_of("# the branch that cannot")
    with pytest.raises(InputError) as error:
        bw.convert(Branch(), X, form="graph")
    text = str(error.value)
    assert (
        "\n" not in text
        and f"test_convert.py line {line}" in text
        and text.startswith("convert Branch: cannot trace forward")
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's, of the trained net
@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (4, 1), (2, 3), ((2, 3), 1)])
def test_same_padding_of_an_even_kernel_packs(kernel: Any, dilation: int) -> None:
    """One more zero right and below: the codes there add nothing."""
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), B.Conv2d(32, 8, kernel, padding="same", dilation=dilation, **ONE_BIT)
    ).eval()
    done = bw.convert(net, X)
    assert done.report.layers_exact and done.report.rows[1].runs_as in PACKED and done.model is not None
    torch.testing.assert_close(done.model(X), net(X), rtol=1e-5, atol=1e-5)


def test_an_operator_outside_the_table_is_named() -> None:
    net = Net(lambda s, x: torch.linalg.qr(s.a(x))[0], a=B.Conv2d(3, 4, 3, **ONE_BIT))
    with pytest.raises(
        InputError, match=r"uses aten\.linalg_qr \(packing.py line \d+\), which a packed graph cannot hold"
    ):
        bw.convert(net, X, form="graph")


@pytest.mark.parametrize(
    ("example", "text"),
    [
        (torch.zeros(3), r"one batch of inputs \[N, ...\], got \[3\]"),
        (torch.zeros(0, 3, 8, 8), r"got \[0, 3, 8, 8\]"),
        ([1, 2], "got list"),
        (torch.zeros(1, 4, 8, 8), r"does not run on this example of shape \[1, 4, 8, 8\]"),
    ],
    ids=["rank", "empty", "list", "channels"],
)
def test_wrong_examples(example: Any, text: str) -> None:
    with pytest.raises(InputError, match=text) as error:
        bw.convert(small(), example)
    assert "\n" not in str(error.value)


def test_an_input_of_another_size_is_one_line() -> None:
    packed = pack(small(), X)
    with pytest.raises(InputError, match="input is 1x3x9x9, the model was converted for 3x8x8"):
        packed(torch.zeros(1, 3, 9, 9))


def test_what_passed_once_does_not_let_others_pass() -> None:
    """Kinds of inputs are remembered: shape, type and strides, not less."""
    done = bw.convert(nn.Sequential(bw.nn.Conv2d(3, 4, 3, w="bwn", x="pact"), nn.Flatten()), torch.randn(1, 3, 8, 8))
    model, x = done.model, torch.randn(2, 3, 8, 8)
    assert model is not None
    want = model(x)
    assert torch.equal(model(x), want)
    for other in (
        x.double(),
        x.contiguous(memory_format=torch.channels_last),
        x.clone().requires_grad_(),
        x[:, :, :, :],
    ):
        y = model(other)
        assert torch.equal(y, want) and not y.requires_grad
    for bad, text in (
        (x[:, :2], "converted for 3x8x8"),
        (x.to("meta"), "is on meta"),
        (x.to_sparse(), "sparse"),
        (x * 1j, "complex"),
    ):
        with pytest.raises(InputError, match=text):
            model(bad)
    broken = x.clone()
    broken[1, 0, 0, 0] = torch.nan
    y = model(broken)
    assert torch.equal(y[0], want[0]) and bool(y[1].isnan().all())


def test_backends_and_their_errors() -> None:
    with pytest.raises(InputError, match="backend 'cuda' is none of auto, native, reference"):
        bw.convert(small(), X, backend="cuda")
    assert bw.convert(small(), X, backend="reference").report.isa == "torch"


# -- the packed module ---------------------------------------------------------------------------------
def test_copies_pickles_and_state_dicts() -> None:
    net = small(TWO_BIT)
    packed = pack(net, X)
    want = packed(X)
    assert torch.equal(copy.deepcopy(packed)(X), want)
    assert torch.equal(pickle.loads(pickle.dumps(packed))(X), want)
    other = pack(small(TWO_BIT), X)
    other(X)
    assert not torch.equal(other(X), want)
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other(X), want), "kernel layouts of the old tensors were kept"
    assert not packed.train().training and not list(packed.parameters())


def test_layouts_and_dtypes_of_the_input_do_not_matter() -> None:
    packed = pack(small(), X)
    want = packed(X)
    for x in (X.contiguous(memory_format=torch.channels_last), X.double(), torch.stack([X, X], -1)[..., 0]):
        assert torch.equal(packed(x), want)
    assert torch.allclose(packed(X[:1]), want[:1], rtol=1e-5)  # the float head sums in another order


@pytest.mark.parametrize("times", [1, 2])
def test_without_the_native_core_it_says_so_once_and_runs_on_torch(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitwright.engine import packed

    monkeypatch.setattr(packed.native, "available", lambda: False)
    monkeypatch.setattr(packed.native, "notice", lambda: "no core here")
    monkeypatch.setattr(packed, "_said", set())
    net = nn.Sequential(bw.nn.Linear(8, 4, w="bwn", x="sign")).eval()
    x = torch.randn(3, 8)
    with pytest.warns(bw.BitwrightWarning, match="no core here; packed nets run on plain torch") as said:
        done = [bw.convert(net, x) for _ in range(times)]
    assert len(said) == 1
    assert all(d.report.backend == "reference" and d.report.same == 3 for d in done)


def test_a_packed_net_is_not_packed_again() -> None:
    x = torch.randn(2, 8)
    done = bw.convert(nn.Sequential(bw.nn.Linear(8, 4, w="bwn", x="sign")).eval(), x)
    assert done.model is not None
    with pytest.raises(InputError, match="packed already"):
        bw.convert(done.model, x)


# -- memory of a long life


def test_float_convolutions_meet_few_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the answers are those of the samples one by one."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2), nn.ReLU(), B.Conv2d(2, 3, 1, w="bwn")
    )
    packed = bw.convert(net.eval(), torch.rand(2, 3, 5, 5), force=True).model
    assert packed is not None
    seen: set[int] = set()
    for name in ("conv2d", "conv_transpose2d"):
        plain = getattr(F, name)
        monkeypatch.setattr(F, name, lambda x, *a, plain=plain: (seen.add(len(x)), plain(x, *a))[1])
    x = torch.rand(300, 3, 5, 5)
    want = torch.cat([packed(one[None]) for one in x])
    for n in range(301):
        torch.testing.assert_close(packed(x[:n]), want[:n])
    assert len(seen) <= 8 + 4 * 6 and max(seen) == 320


MANY_SIZES = """
import torch, bitwright as bw
from pathlib import Path
def resident():
    return next(int(l.split()[1]) / 1024 for l in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in l)
torch.set_num_threads(1)
block = lambda i, o: [torch.nn.Conv2d(i, o, 3, padding=1, bias=False), torch.nn.BatchNorm2d(o), torch.nn.Hardtanh()]
net = torch.nn.Sequential(*block(3, 32), *block(32, 32), torch.nn.Flatten(), torch.nn.Linear(32 * 36, 10))
bw.apply(net, "w1a1", torch.rand(1, 3, 6, 6))
packed = bw.convert(net.eval(), torch.rand(8, 3, 6, 6), force=True).model
images = torch.rand(700, 3, 6, 6)
packed(images)
before = resident()
for i in range(3000):
    packed(images[: 1 + i * 37 % 700])
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_many_batch_sizes_do_not_grow_a_process() -> None:
    """Where torch makes code for every size, one float convolution alone takes more than 200 MB."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MANY_SIZES], capture_output=True, text=True, check=True
    )
    assert float(done.stdout.splitlines()[-1]) < 120
