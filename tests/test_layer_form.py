"""The layer form: any forward, with packed layers in place; same answers, nothing lost, through files and copies."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine.layer_form import PackedLayer, packed_layers, sole_norms
from bitwright.errors import InputError

B = bw.nn
ONE = {"w": "bwn", "x": "sign"}
TWO = {"w": {"part": "dorefa_w", "bits": 2}, "x": {"part": "dorefa_a", "bits": 2}}
X = torch.randn(6, 3, 10, 10, generator=torch.Generator().manual_seed(2))


def settle(net: nn.Module) -> Any:
    torch.manual_seed(5)
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            m.weight.data.normal_()
    return net.eval()


class Net(nn.Module):
    """Stem, body with its norm, two heads; `forward` branches on a value, so that no graph holds it."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3)
        self.body, self.norm = nn.Conv2d(32, 40, 3, padding=1), nn.BatchNorm2d(40)
        self.mid, self.head = nn.Linear(40, 16), nn.Linear(16, 5)

    def features(self, x: Tensor) -> Tensor:
        x = self.norm(self.body(self.stem(x))).relu()
        return self.mid(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        if y.sum() > 0:
            y = y * 2
        return self.head(y)


def made(recipe: Any = "w1a1", net: type[nn.Module] = Net, x: Any = X) -> Any:
    torch.manual_seed(1)
    return settle(bw.apply(net(), recipe, x))


def packed(net: nn.Module, example: Any = X, **options: Any) -> Any:
    """Converted in layer form, and verified."""
    done = bw.convert(net, example, **options)
    assert done.report.form == "layers" and done.report.layers_exact and not done.report.beyond
    assert done.model is not None and done.report.status == "WARN"
    return done


def runs_as(done: Any) -> dict[str, str]:
    """How each layer runs; on bits or on bytes of them depends on the machine."""
    return {r.layer: "codes" if r.runs_as in ("bits", "int8") else r.runs_as for r in done.report.rows}


def close(got: Tensor, want: Tensor) -> bool:
    return bool((got - want).abs().max() <= 1e-5 * want.abs().max().clamp_min(1))


@pytest.mark.few("w1a1", "w8a8")
@pytest.mark.parametrize("recipe", ["w1a1", "bwn", "w8a8", "lsq-w2a2"])
def test_a_forward_with_branches_converts(recipe: str) -> None:
    net = made(recipe)
    done = packed(net)
    assert type(done.model) is Net and close(done.model(X), net(X))
    wanted, rows = "bits on disk, float run" if recipe == "bwn" else "codes", runs_as(done)
    assert rows["body"] == rows["mid"] == wanted
    assert "branches on a tensor value" in done.report.form_why and "test_layer_form.py line" in done.report.form_why
    assert done.report.verdict.startswith("runs with your code, ")
    assert isinstance(net.body, B.Conv2d) and not packed_layers(net)  # the user's net is left alone


def test_the_form_can_be_asked_for() -> None:
    plain = settle(nn.Sequential(B.Conv2d(3, 8, 3, **ONE), nn.BatchNorm2d(8), B.Conv2d(8, 4, 3, **ONE), nn.Flatten()))
    graph, layers = bw.convert(plain, X, form="graph"), packed(plain, form="layers")
    assert graph.report.form == "graph" and close(layers.model(X), plain(X))
    assert [type(m).__name__ for m in layers.model] == ["PackedConv2d", "Identity", "PackedConv2d", "Flatten"]
    with pytest.raises(InputError, match="form 'onnx' is none of auto, graph, layers"):
        bw.convert(plain, X, form="onnx")
    with pytest.raises(InputError, match="packed already"):
        bw.convert(layers.model, X)


# -- the packed layer -------------------------------------------------------------------------------------
@pytest.mark.few()
@pytest.mark.parametrize("p", [ONE, TWO, {"w": "bwn"}], ids=["1 bit", "2 bits", "weight only"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda p: B.Conv2d(6, 8, 3, padding=1, groups=2, **p), (6, 5, 7)),
        (lambda p: B.Conv2d(6, 8, (3, 1), stride=2, dilation=2, **p), (6, 9, 7)),
        (lambda p: B.Conv1d(6, 8, 3, padding="same", **p), (6, 9)),
        (lambda p: B.Linear(6, 8, **p), (6,)),
    ],
    ids=["groups", "strides", "1-d", "linear"],
)
def test_any_batch_size_and_type(layer: Any, shape: tuple[int, ...], p: Any) -> None:
    trained = layer(p).eval()
    done = packed(trained, torch.randn(2, *shape), form="layers").model
    assert isinstance(done, PackedLayer)
    longer = (*shape[:1], *(s + 3 for s in shape[1:]))
    with torch.no_grad():
        for given in (torch.randn(0, *shape), torch.randn(7, *shape), torch.randn(*shape), torch.randn(3, *longer)):
            got, want = done(given), trained(given)
            assert got.shape == want.shape and torch.allclose(got, want, rtol=1e-5, atol=1e-6)
            assert got.is_contiguous() or not want.is_contiguous()
        given = torch.randn(2, *shape)
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            got = done(given.to(dtype))
            assert got.dtype == dtype and torch.equal(got, done(given.to(dtype).float()).to(dtype))
        if not shape[1:]:
            rows = torch.randn(2, 3, 4, 6)
            assert torch.allclose(done(rows), trained(rows), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match=r"input is .* it takes 6"):
        done(torch.randn(2, 5, *shape[1:]))


def test_what_forwards_read_of_a_layer() -> None:
    trained = B.Conv2d(6, 8, (3, 1), stride=2, padding=(1, 0), **ONE).eval()
    trained.__dict__["note"] = "mine"
    done = packed(trained, torch.randn(2, 6, 8, 8), form="layers").model
    for key in ("stride", "padding", "dilation", "groups", "kernel_size", "in_channels", "out_channels", "note"):
        assert getattr(done, key) == getattr(trained, key)
    assert isinstance(done, nn.Conv2d) and not isinstance(done, B.Conv2d)
    for key in ("weight", "bias"):
        assert getattr(done, key).shape == getattr(trained, key).shape and getattr(done, key).isnan().all()
        assert getattr(done, key).dtype == torch.float32 and getattr(done, key).device.type == "cpu"
    y = done(torch.ones(1, 6, 8, 8))
    assert done.half().weight.dtype == torch.float16 and torch.equal(done(torch.ones(1, 6, 8, 8)), y)
    assert packed(B.Linear(4, 2, bias=False, **ONE), torch.randn(2, 4), form="layers").model.bias is None
    with pytest.raises(InputError, match="packed layers run on the CPU, not on 'meta'"):
        done.to("meta")


def test_one_program_takes_every_size() -> None:
    trained = B.Conv2d(3, 4, 3, **ONE).eval()
    done = packed(trained, X, form="layers").model
    runtime = done.packed.runtime
    for height, width in ((3, 3), (5, 20), (33, 8)):
        x = torch.randn(2, 3, height, width)
        assert torch.equal(done(x), trained(x))
    assert done.packed.runtime is runtime


def test_a_copy_has_numbers_of_its_own() -> None:
    done, other = (packed(settle(bw.apply(Net(), "w1a1", X))).model for _ in range(2))
    for p in other.parameters():
        p.data.mul_(-1)
    other.body.packed.get_buffer("layer/scale").mul_(-1)
    before, copied = done(X), copy.deepcopy(done)
    copied.load_state_dict(other.state_dict())
    assert torch.equal(done(X), before) and not torch.equal(copied(X), before)


def test_the_memory_layout_is_that_of_the_trained_layer() -> None:
    trained = B.Conv2d(3, 4, 3, **ONE).eval()
    last = X.contiguous(memory_format=torch.channels_last)
    done = packed(trained, X, form="layers").model
    for x in (X, last):
        assert done(x).stride() == trained(x).stride()
    trained = trained.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert packed(trained, X, form="layers").model(X).stride() == trained(X).stride()


@pytest.mark.slow
def test_copies_pickles_state_dicts_and_train() -> None:
    done = packed(made()).model
    want = done(X)
    assert torch.equal(copy.deepcopy(done)(X), want) and torch.equal(pickle.loads(pickle.dumps(done))(X), want)
    other = packed(settle(bw.apply(Net(), "w1a1", X))).model
    assert not torch.equal(other(X), want)
    other.load_state_dict(done.state_dict())
    assert torch.equal(other(X), want)
    assert done.train().training and not done.body.training  # your code follows train(), packed layers do not


# -- nothing is lost ----------------------------------------------------------------------------------------
def test_hooks_stay_and_are_named() -> None:
    net = made("w8a8")
    net.body.register_forward_pre_hook(lambda m, i: (i[0] * 0.5 - 0.2,))
    net.mid.register_forward_hook(lambda m, i, o: o * torch.arange(16))
    seen: list[Any] = []
    net.head.register_forward_hook(lambda m, i, o: seen.append(o.shape))
    done = packed(net)
    assert close(done.model(X), net(X)) and seen
    why = {r.layer: r.why for r in done.report.rows}
    assert why["body"] == "keeps your forward pre-hook" and why["mid"] == "keeps your forward hook" and not why["head"]
    # the norm behind a hooked layer stays: the hook must see what it saw
    assert isinstance(done.model.norm, nn.BatchNorm2d)


@pytest.mark.parametrize("form", ["graph", "layers"])
def test_a_hook_that_changes_a_layer_is_in_either_form(form: str) -> None:
    net = settle(nn.Sequential(B.Conv2d(3, 8, 3, **ONE), B.Conv2d(8, 4, 3, **ONE), nn.Flatten()))
    net[1].register_forward_hook(lambda m, i, o: o.neg_())  # in place, and returns it
    net[1].register_forward_pre_hook(lambda m, i: (i[0] * 3 - 1,))
    done = bw.convert(net, X, form=form)
    assert done.report.form == form and close(done.model(X), net(X))  # type: ignore[misc]


def test_a_part_with_a_hook_keeps_its_layer_out_of_both() -> None:
    net = settle(nn.Sequential(B.Conv2d(3, 8, 3, **ONE), B.Conv2d(8, 4, 3, **ONE), nn.Flatten()))
    net[1].x.register_forward_hook(lambda m, i, o: -o)
    with pytest.raises(
        InputError, match=r"1: a forward hook of its part x changes values, .* a graph has no place for it"
    ):
        bw.convert(net, X, form="graph")
    done = packed(net)
    assert close(done.model(X), net(X)) and [*runs_as(done).values()] == ["codes", "your code"]


def test_hooks_that_look_do_not_cost_the_graph() -> None:
    net = settle(nn.Sequential(B.Conv2d(3, 8, 3, **ONE), nn.ReLU(), B.Conv2d(8, 4, 3, **TWO), nn.Flatten()))
    seen: list[float] = []
    for m in net:
        m.register_forward_hook(lambda m, i, o: seen.append(float(o.detach().mean())))
        m.register_forward_pre_hook(lambda m, i: None)
    done: Any = bw.convert(net, X)
    assert done.report.form == "graph" and close(done.model(X), net(X)) and seen
    assert all(len(m._forward_hooks) == len(m._forward_pre_hooks) == 1 for m in net)


def test_a_replaced_forward_stays_the_users_code() -> None:
    net = made()
    was = net.body.forward
    net.body.forward = lambda x: -was(x)
    done = packed(net)
    row = next(r for r in done.report.rows if r.layer == "body")
    assert row.runs_as == "your code" and "forward was replaced" in row.why
    assert close(done.model(X), net(X)) and isinstance(done.model.mid, PackedLayer)


def test_a_subclass_stays_the_users_code() -> None:
    class Mine(B.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    net = settle(nn.Sequential(B.Conv2d(3, 8, 3, **ONE), Mine(8, 4, 3, **ONE), nn.Flatten()))
    done = packed(net, form="layers")
    assert [*runs_as(done).values()] == ["codes", "your code"] and close(done.model(X), net(X))
    assert type(done.model[1]) is Mine


@pytest.mark.slow
def test_a_weight_that_others_compute_with_stays() -> None:
    class Tied(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y + self.mid.weight.norm()

    net = made("w1a1", Tied)
    done = packed(net)
    row = next(r for r in done.report.rows if r.layer == "mid")
    assert row.runs_as == "your code" and "computes with its weight" in row.why
    assert close(done.model(X), net(X)) and isinstance(done.model.body, PackedLayer)


def test_one_layer_in_two_places_called_with_two_sizes() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = B.Conv2d(3, 3, 3, padding=1, **ONE)
            self.same, self.norm = self.a, nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.a(x))
            return self.same(y[:, :, ::2] + float(y.detach().sum() * 0)).flatten(1)

    net = settle(Twice())
    done = packed(net)
    assert done.model.a is done.model.same and close(done.model(X), net(X))
    assert isinstance(done.model.norm, nn.BatchNorm2d)  # the layer has two readers


def test_layers_that_inference_never_reaches() -> None:
    class Aux(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.aux = B.Conv2d(3, 8, 3, **ONE), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).mean((2, 3))
            return self.aux(x) if self.training else x

    net = settle(Aux())
    for form in ("graph", "layers"):
        done = bw.convert(net, X, form=form)
        row = next(r for r in done.report.rows if r.layer == "aux")
        assert row.runs_as == "float" and "never called in evaluation" in row.why
        assert close(done.model(X), net(X))  # type: ignore[misc]


# -- norms ---------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_norm_is_merged_where_nothing_else_can_read_the_layer() -> None:
    class Readers(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.how, self.a, self.n = how, B.Conv2d(3, 4, 3, **ONE), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Any:
            y = self.a(x)
            if self.how == "kept":
                self.last = y
            if self.how == "branch" and y.sum() > 0:
                return y
            z = self.n(y)
            return {"twice": lambda: z + y, "returned": lambda: (z, y), "again": lambda: self.n(z)}.get(
                self.how, lambda: z
            )()

    for how, wanted in (("sole", {"a": "n"}), *((h, {}) for h in ("kept", "branch", "twice", "returned", "again"))):
        assert sole_norms(settle(Readers(how)), {"a"}) == wanted, how
        net = settle(Readers(how))
        done = packed(net, form="layers")
        got, want = done.model(X), net(X)
        pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
        assert all(close(a, b) for a, b in pairs), how


def test_rows_with_a_merged_norm_refuse_another_rank() -> None:
    net = settle(nn.Sequential(B.Linear(6, 4, **ONE), nn.BatchNorm1d(4)))
    done = packed(net, torch.randn(5, 6), form="layers").model
    assert done[0].norm == "1"
    with pytest.raises(InputError, match="with its BatchNorm 1 inside"):
        done(torch.randn(2, 4, 6))


# -- inputs and outputs of every kind ------------------------------------------------------------------------
class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.a, self.b = nn.Embedding(9, 8), B.Linear(8, 6, **TWO), B.Linear(6, 3, **ONE)

    def forward(self, words: Tensor, extra: Tensor | None = None, *, scale: float = 1.0) -> dict[str, Any]:
        y = self.a(self.words(words)).mean(1)
        y = y if extra is None else y + self.a(extra)
        return {"logits": self.b(y) * scale, "parts": [y, y.sum()], "name": "n"}


@pytest.mark.parametrize(
    "example",
    [
        torch.randint(0, 9, (4, 5)),
        (torch.randint(0, 9, (4, 5)), torch.randn(4, 8)),
        {"words": torch.randint(0, 9, (4, 5)), "scale": 0.5},
        (torch.randint(0, 9, (4, 5)), None),
    ],
    ids=["one", "two", "keywords", "none"],
)
def test_inputs_and_outputs_of_every_kind(example: Any) -> None:
    net = settle(Siamese())
    done = packed(net, example, form="layers")
    names = {o.name for o in done.report.outputs}
    assert names == {"['logits']", "['parts'][0]", "['parts'][1]"} and done.report.images == 4
    call = (lambda m: m(**example)) if isinstance(example, dict) else lambda m: m(*example)
    if isinstance(example, Tensor):
        call = lambda m: m(example)  # noqa: E731
    got, want = call(done.model), call(net)
    assert close(got["logits"], want["logits"]) and close(got["parts"][0], want["parts"][0])


@pytest.mark.slow
def test_two_inputs_to_verify_on() -> None:
    net, pair = settle(Siamese()), (torch.randint(0, 9, (4, 5)), torch.randn(4, 8))
    labels = torch.zeros(4, dtype=torch.long)
    for batches in ([pair], [list(pair)], [(pair, labels)], [(*pair, labels)], [[*pair, labels]]):
        assert packed(net, pair, form="layers", verify=batches).report.images == 4
    with pytest.raises(InputError, match=r"a batch is made like the example \(tuple\) or a pair, got Tensor"):
        bw.convert(net, pair, form="layers", verify=[pair[0]])


def test_a_list_is_one_argument() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = B.Conv2d(3, 8, 3, **ONE)

        def forward(self, xs: list[Tensor]) -> Tensor:
            return sum(self.a(x).mean((2, 3)) for x in xs)  # type: ignore[return-value]

    net = settle(Sum())
    assert close(packed(net, [X, X[:, :, 2:]]).model([X, X]), net([X, X]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_around_the_layers(dtype: torch.dtype) -> None:
    net = made().to(dtype)
    done = packed(net, X.to(dtype))
    got = done.model(X.to(dtype))
    assert got.dtype == dtype and done.model.body.weight.dtype == dtype
    exact = copy.deepcopy(net).float()(X.to(dtype).float())
    assert (got.float() - exact).abs().max() <= {torch.float64: 1e-5}.get(dtype, 0.05) * exact.abs().max()


def test_loops_lists_and_random_numbers() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(B.Conv2d(3, 3, 3, padding=1, **ONE) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            n = 0
            while float(x.detach().abs().mean()) > 0.01 and n < 6:
                x = self.blocks[n % 3](x) * 0.1 + torch.randn(1) * 0.01
                n += 1
            return x.flatten(1)

    net = settle(Loop())
    done = packed(net)
    torch.manual_seed(3)
    want = net(X)
    torch.manual_seed(3)
    assert close(done.model(X), want)


def test_gated_layers_stay_where_the_form_is_asked_for() -> None:
    gate = {"part": "precision_gate", "bits": 4, "top": 2}
    net = settle(
        nn.Sequential(
            B.Conv2d(3, 8, 3, w="bwn", x={"part": "dorefa_a", "bits": 4}, gate=gate),
            B.Conv2d(8, 4, 3, **ONE),
            nn.Flatten(),
        )
    )
    done = packed(net, form="layers")
    assert [*runs_as(done).values()] == ["float", "codes"] and close(done.model(X), net(X))


# -- files ---------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("start", ["float", "recipe"])
def test_a_file_restores_into_the_users_class(tmp_path: Path, start: str) -> None:
    net = made("w8a8")
    done = packed(net)
    path = tmp_path / "net.safetensors"
    size = done.save(path, note="mine")
    assert size == path.stat().st_size == done.report.file_bytes
    assert size < 0.6 * 4 * sum(p.numel() for p in net.parameters())
    fresh = Net() if start == "float" else bw.apply(Net(), "w8a8", X)
    back = bw.load(path, fresh)
    assert back is fresh and torch.equal(back(X), done.model(X)) and not back.training
    bw.save(back, tmp_path / "again.safetensors", note="mine")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert b"features" not in path.read_bytes()  # no code


def test_layers_that_stay_come_back_with_their_parts(tmp_path: Path) -> None:
    def net() -> Any:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 4, 3), nn.Flatten())

    trained = settle(bw.apply(net(), [{"match": "*", **ONE}], X))
    done = packed(trained, form="layers")
    assert [*runs_as(done).values()] == ["codes", "codes", "float"]
    done.save(tmp_path / "a.safetensors")
    back: Any = bw.load(tmp_path / "a.safetensors", net())
    assert isinstance(back[2], B.ConvTranspose2d) and torch.equal(back(X), done.model(X))


def test_half_precision_and_shared_layers_come_back(tmp_path: Path) -> None:
    net = made().half()
    done = packed(net, X.half())
    done.save(tmp_path / "a.safetensors")
    back = bw.load(tmp_path / "a.safetensors", Net())
    assert back(X.half()).dtype == torch.float16 and torch.equal(back(X.half()), done.model(X.half()))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed layers of `Net`; to be read only."""
    path = tmp_path_factory.mktemp("layers") / "a.safetensors"
    packed(made()).save(path)
    return path


def test_files_that_do_not_fit(file: Path) -> None:
    with pytest.raises(InputError, match="packed layers of a model, which runs with its own code; give the model"):
        bw.load(file)
    other = Net()
    other.body = nn.Conv2d(32, 40, 3)  # no padding
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(InputError, match="body is Conv2d 32>40 3x3 here and another layer in the file"):
        bw.load(file, other)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items()) and type(other.mid) is nn.Linear
    with pytest.raises(InputError, match="no Linear or convolution layer 'body'"):
        bw.load(file, nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(InputError, match="run on the CPU, not on 'cuda'"):
        bw.load(file, Net(), "cuda")


@pytest.mark.parametrize(
    "change",
    [
        lambda e: "[",
        lambda e: json.dumps({"body": 3}),
        lambda e: json.dumps({**e, "body": {**e["body"], "dtype": "qint8"}}),
        lambda e: json.dumps({**e, "body": {**e["body"], "graph": "[]"}}),
        lambda e: json.dumps({**e, "body": {**e["body"], "graph": e["mid"]["graph"]}}),
        lambda e: json.dumps({**e, "body": {**e["body"], "norm": "nowhere"}}),
        lambda e: json.dumps({"mid": e["mid"]}),
    ],
    ids=["no json", "no table", "type", "empty graph", "another graph", "norm", "missing"],
)
def test_damaged_lists_of_layers_are_one_line(file: Path, tmp_path: Path, change: Any) -> None:
    path = tmp_path / "a.safetensors"
    from safetensors import safe_open

    with safe_open(str(file), "pt") as f:
        metadata = dict(f.metadata())
    metadata["layers"] = change(json.loads(metadata["layers"]))
    save_file(load_file(file), path, metadata)
    fresh = Net()
    with pytest.raises(InputError) as error:
        bw.load(path, fresh)
    assert "\n" not in str(error.value) and type(fresh.body) is nn.Conv2d


def test_a_single_image_is_told_from_a_batch() -> None:
    with pytest.raises(
        InputError, match=r"shape \[3, 10, 10\]: .* With a batch axis in front it does: example\[None\]"
    ):
        bw.convert(made(), X[0])


# -- what else takes the form --------------------------------------------------------------------------------
def test_bench_takes_it() -> None:
    done = packed(made(), verify=False)
    table = bw.bench(done, X, rounds=2, against=["torch-fp32"])
    assert table.ours.median_ms and len(table.rows) == 2
