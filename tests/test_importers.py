"""Old checkpoints: the imported net equals an independent evaluation of the old one; nothing in a file is run."""

from __future__ import annotations

import json
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright import importers
from bitwright.cli.run import run
from bitwright.importers import Imported, import_checkpoint, xnor_net
from bitwright.runs.pth import read_checkpoint
from oracles import xnor_net as oracle

SHAPES = {"lenet5": (1, 28, 28), "nin": (3, 32, 32), "alexnet": (3, 227, 227)}
SMALL: dict[str, dict[str, Any]] = {"lenet5": {}, "nin": {"width": 0.125}, "alexnet": {"width": 0.0625, "classes": 12}}
NETS = tuple(SHAPES)
State = dict[str, Tensor]


def write(path: Path, content: Any, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def wrapped(state: State) -> dict[str, Any]:
    """As the old main programs save."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))])
    return {"epoch": 3, "best_acc": torch.tensor(86.25), "state_dict": state, "optimizer": optimizer.state_dict()}


def prefixed(net: str, state: State) -> State:
    """DataParallel around the whole net, or around the features of AlexNet only."""
    if net == "alexnet":
        return {k.replace("features.", "features.module."): v for k, v in state.items()}
    return {f"module.{k}": v for k, v in state.items()}


def signs_of(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Answers of a net, and what its x parts gave, in order."""
    seen: list[Tensor] = []
    parts = [m.get_submodule("x") for m in model.modules() if isinstance(getattr(m, "x", None), nn.Module)]
    hooks = [p.register_forward_hook(lambda m, args, out: seen.append(out.detach())) for p in parts]
    answers = model(x).detach()
    for hook in hooks:
        hook.remove()
    return answers, seen


def check_same(net: str, state: State, imported: Imported, x: Tensor) -> None:
    """Signs equal wherever the old value is not on the very edge; answers equal to float rounding."""
    answers, signs = signs_of(imported.model, x)
    wanted, before = oracle.evaluate(net, state, x, signs)
    assert len(signs) == len(before) == len(oracle.binary_keys(net, state))
    for sign, value in zip(signs, before, strict=True):
        decided = value.abs() > 1e-4
        assert decided.float().mean() > 0.995
        assert torch.equal(sign[decided], torch.where(value >= 0, 1.0, -1.0)[decided])
    torch.testing.assert_close(answers.double(), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


# ---- the same function ----


@pytest.mark.parametrize("net", NETS)
def test_outputs_are_those_of_the_old_net(net: str, tmp_path: Path):
    state = oracle.make_state(net, **SMALL[net])
    x = torch.randn(2, *SHAPES[net])
    imported = import_checkpoint(write(tmp_path / "a.pth.tar", wrapped(state)), "xnor-net")
    assert imported.name == net and imported.weights == "latents" and not imported.model.training
    assert imported.facts == {"epoch": 3, "best_acc": 86.25}
    check_same(net, state, imported, x)


@pytest.mark.parametrize("net", NETS)
def test_weights_are_bits_with_their_signs(net: str, tmp_path: Path):
    state = oracle.make_state(net, **SMALL[net])
    imported = import_checkpoint(write(tmp_path / "a.pth", state), "xnor-net")
    coded = oracle.binarized(net, state)
    new = {row.old: row.new for row in imported.rows}
    for key in oracle.binary_keys(net, state):
        layer = imported.model.get_submodule(new[key].removesuffix(".weight"))
        assert isinstance(layer, bw.nn.SlotLayer)
        mine = layer.quantized_weight()
        assert torch.equal(mine.sign(), coded[key].sign())
        torch.testing.assert_close(mine, coded[key], rtol=1e-6, atol=0)
    plain = [
        m for m in imported.model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and getattr(m, "w", None) is None
    ]
    assert len(plain) == 2


def test_a_norm_that_carries_a_bias_does_nothing_else(tmp_path: Path):
    """Exactly: variance and epsilon together are 1."""
    state = oracle.make_state("lenet5")
    model = import_checkpoint(write(tmp_path / "a.pth", state), "xnor-net").model
    for name, bias, shape in (("bn2", "bin_conv2.conv.bias", (-1, 1, 1)), ("bn3", "bin_ip1.linear.bias", (-1,))):
        x = torch.randn(3, len(state[bias]), *[2] * (len(shape) - 1)) * 100
        assert torch.equal(model.get_submodule(name)(x), x + state[bias].reshape(shape))


@pytest.mark.parametrize("net", NETS)
def test_a_file_saved_inside_a_step_gives_the_same(net: str, tmp_path: Path):
    """Its weights are products already: another centering would change them."""
    state = oracle.make_state(net, **SMALL[net])
    latents = import_checkpoint(write(tmp_path / "a.pth", state), "xnor-net")
    products = import_checkpoint(write(tmp_path / "b.pth", oracle.binarized(net, state)), "xnor-net")
    assert products.weights == "binarized"
    x = torch.randn(2, *SHAPES[net])
    torch.testing.assert_close(products.model(x), latents.model(x), rtol=1e-4, atol=1e-4)


def test_latents_that_were_projected_already(tmp_path: Path):
    """What the old programs save after an evaluation; clipping has broken the zero mean, and they center again."""
    state = oracle.make_state("lenet5", seed=2)
    for key in oracle.binary_keys("lenet5", state):
        state[key] = oracle.projected(4 * state[key])
    imported = import_checkpoint(write(tmp_path / "a.pth", state), "xnor-net")
    check_same("lenet5", state, imported, torch.randn(2, 1, 28, 28))


def test_the_earlier_lenet_has_a_norm_per_feature(tmp_path: Path):
    state = oracle.make_state("lenet5", maps=False)
    imported = import_checkpoint(write(tmp_path / "a.pth", state), "xnor-net")
    check_same("lenet5", state, imported, torch.randn(2, 1, 28, 28))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("net", NETS)
def test_prefix_and_format_change_nothing(net: str, legacy: bool, tmp_path: Path):
    state = oracle.make_state(net, **SMALL[net])
    plain = import_checkpoint(write(tmp_path / "a.pth", state), "xnor-net", net)
    other = import_checkpoint(write(tmp_path / "b.pth.tar", wrapped(prefixed(net, state)), legacy), "xnor-net", net)
    mine, theirs = plain.model.state_dict(), other.model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert {(r.old, r.new) for r in plain.rows} == {(r.old, r.new) for r in other.rows}


def test_strings_of_python_2(tmp_path: Path):
    """The published files come from Python 2: byte strings everywhere."""
    state = oracle.make_state("lenet5")
    path = write(tmp_path / "a.pth", wrapped(state), legacy=True)
    old = python2(path.read_bytes())
    assert old != path.read_bytes()
    path.write_bytes(old)
    assert import_checkpoint(path, "xnor-net").name == "lenet5"


def python2(content: bytes) -> bytes:
    """The pickles at the head of a legacy file with SHORT_BINSTRING for every short text."""
    out, rest = b"", content
    for _ in range(5):  # magic number, version, system, content, storage keys
        end = next(place or 0 for op, _, place in pickletools.genops(rest) if op.name == "STOP") + 1
        piece, rest = rest[:end], rest[end:]
        starts = [place for _, _, place in pickletools.genops(piece)] + [end]
        for (op, value, place), after in zip(pickletools.genops(piece), starts[1:], strict=False):
            short = op.name == "BINUNICODE" and isinstance(value, str) and value.isascii() and len(value) < 256
            text = value.encode() if short and isinstance(value, str) else b""
            out += b"U" + bytes([len(text)]) + text if short else piece[place or 0 : after]
    return out + rest


def test_rows_name_every_key_and_nothing_is_left_to_chance(tmp_path: Path):
    state = oracle.make_state("nin", width=0.125)
    state["xnor.3.bn.num_batches_tracked"] = torch.tensor(5)
    imported = import_checkpoint(write(tmp_path / "a.pth", state), "xnor-net")
    assert {row.old for row in imported.rows} == set(state)
    written = {row.new for row in imported.rows}
    left = {k: v for k, v in imported.model.state_dict().items() if v.is_floating_point() and k not in written}
    # norms that only carry a bias (bn2..bn8), and gain and shift of those that had none (bn1, bn9)
    assert all(k.startswith("bn") for k in left)
    assert all(len(v.unique()) == 1 for v in left.values())


def test_saved_loaded_converted(tmp_path: Path):
    """The NIN through bw.save, bw.load with the importer's builder, and convert."""
    state = oracle.make_state("nin", width=0.25)
    imported = import_checkpoint(write(tmp_path / "a.pth", state), "xnor-net")
    bw.save(imported.model, tmp_path / "n.safetensors")
    again = bw.load(tmp_path / "n.safetensors", xnor_net.nin(width=0.25)).eval()
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(again(x), imported.model(x))
    converted = bw.convert(again, x[:1], verify=[x])
    assert converted.report.status in ("PASS", "WARN") and converted.report.same == 4
    with pytest.raises(bw.InputError, match="bn9"):  # the NIN of bw.models is another net, and says so
        bw.load(tmp_path / "n.safetensors", bw.models.create("nin", width=0.25))


# ---- files that are wrong ----


def fails(call: Callable[[], object], code: str, *texts: str) -> str:
    with pytest.raises(bw.InputError) as caught:
        call()
    message = str(caught.value)
    assert caught.value.code == code and "\n" not in message, (caught.value.code, message)
    assert all(text in message for text in texts), message
    return message


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return eval, (f"open({str(self.mark)!r}, 'w').close()",)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_hostile_file_is_run(legacy: bool, tmp_path: Path):
    mark = tmp_path / "mark"
    state = oracle.make_state("lenet5")
    for i, content in enumerate((Evil(mark), {"state_dict": state, "x": Evil(mark)}, {**state, "x": Evil(mark)})):
        path = write(tmp_path / f"{i}.pth", content, legacy)
        fails(
            lambda path=path: import_checkpoint(path, "xnor-net"),
            "import-unsafe",
            "eval",
            "nothing was run",
            "torch.save(",
        )
    bare = tmp_path / "bare.pth"
    bare.write_bytes(pickle.dumps(Evil(mark), protocol=2))
    with pytest.raises(bw.InputError):
        import_checkpoint(bare, "xnor-net")
    assert not mark.exists()
    pickle.loads(bare.read_bytes())  # the trap is a real one
    assert mark.exists()


def test_a_whole_model_is_refused_with_its_class(tmp_path: Path):
    path = write(tmp_path / "m.pth", nn.Sequential(nn.Linear(2, 2)))
    fails(lambda: import_checkpoint(path, "xnor-net"), "import-unsafe", "Sequential", "Save it again")


@pytest.mark.parametrize("legacy", [False, True])
def test_files_cut_short(legacy: bool, tmp_path: Path):
    whole = write(tmp_path / "a.pth", oracle.make_state("lenet5"), legacy).read_bytes()
    for i in (0, 1, 10, 100, 1000, len(whole) // 2, len(whole) - 8):
        path = tmp_path / "cut.pth"
        path.write_bytes(whole[:i])
        fails(lambda path=path: import_checkpoint(path, "xnor-net"), "file-damaged", "cut.pth")
    for text in (b"hello", b"\x80\x02.", struct.pack("<q", 1 << 60) + b"{}"):
        path.write_bytes(text)
        fails(lambda: import_checkpoint(path, "xnor-net"), "file-damaged")


def test_no_file(tmp_path: Path):
    fails(lambda: import_checkpoint(tmp_path / "none.pth", "xnor-net"), "file-missing", "none.pth")
    fails(lambda: import_checkpoint(tmp_path, "xnor-net"), "file-missing", "folder")


def test_contents_that_are_no_weights(tmp_path: Path):
    path = tmp_path / "a.pth"
    for content in ([1, 2], {"a": 1}, {}, {"state_dict": {"a": [1]}}, torch.ones(2)):
        write(path, content)
        fails(lambda: import_checkpoint(path, "xnor-net"), "file-damaged", "a.pth")
    state = oracle.make_state("lenet5")
    write(path, {**state, "module.conv1.weight": state["conv1.weight"]})
    fails(lambda: import_checkpoint(path, "xnor-net"), "file-damaged", "conv1.weight twice")
    write(path, {**state, "conv1.bias": state["conv1.bias"] * float("nan")})
    fails(lambda: import_checkpoint(path, "xnor-net"), "import-nan", "conv1.bias")
    write(path, {**state, "conv1.bias": torch.zeros(1).expand(1 << 40)})
    fails(lambda: import_checkpoint(path, "xnor-net"), "file-damaged", "conv1.bias")
    write(path, {**state, "conv1.bias": torch.zeros(20, dtype=torch.int64)})
    fails(lambda: import_checkpoint(path, "xnor-net"), "import-shape", "conv1.bias", "int64")


def test_missing_and_unused_keys_by_name(tmp_path: Path):
    state = oracle.make_state("lenet5")
    del state["ip2.bias"]
    state["ip3.bias"] = torch.ones(2)
    path = write(tmp_path / "a.pth", state)
    fails(
        lambda: import_checkpoint(path, "xnor-net"),
        "import-keys",
        "1 key missing: ip2.bias",
        "1 key not of this net: ip3.bias",
    )


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("bin_conv2.conv.weight", (50, 20, 3, 3)),
        ("bin_ip1.bn.weight", (40,)),
        ("ip2.weight", (10, 400)),
        ("conv1.bias", ()),
    ],
)
def test_wrong_shapes_by_name(key: str, shape: tuple[int, ...], tmp_path: Path):
    path = write(tmp_path / "a.pth", {**oracle.make_state("lenet5"), key: torch.ones(shape)})
    fails(lambda: import_checkpoint(path, "xnor-net"), "import-shape", key, "x".join(map(str, shape)))


def test_wrong_family(tmp_path: Path):
    path = write(tmp_path / "a.pth", oracle.make_state("lenet5"))
    fails(
        lambda: import_checkpoint(path, "xnor-net", "nin"),
        "import-keys",
        "keys of lenet5, not of nin",
        "--model lenet5",
    )
    fails(lambda: import_checkpoint(path, "xnor-net", "lenet"), "model-unknown", "Nearest: lenet5.")
    write(path, bw.models.create("resnet20").state_dict())
    fails(lambda: import_checkpoint(path, "xnor-net"), "import-keys", "of no net of xnor-net", "conv1.weight")


def test_zeros_among_signs_have_no_bit(tmp_path: Path):
    state = oracle.binarized("lenet5", oracle.make_state("lenet5"))
    state["bin_conv2.conv.weight"] = state["bin_conv2.conv.weight"].clone()
    state["bin_conv2.conv.weight"][0, 0, 0, 0] = 0
    path = write(tmp_path / "a.pth", state)
    fails(lambda: import_checkpoint(path, "xnor-net"), "import-zeros", "bin_conv2.conv.weight", "1 zeros")


def test_sources():
    assert importers.sources() == ("xnor-net", "network-compression", "pca-hybrid", "dnn-gating")
    fails(lambda: import_checkpoint("x.pth", "xnornet"), "import-source", "Nearest: xnor-net.")


def test_facts_are_plain_values(tmp_path: Path):
    state = oracle.make_state("lenet5")
    path = write(tmp_path / "a.pth", {"state_dict": state, "acc": 99.23, "arch": "LeNet_5", "flag": True, "list": [1]})
    assert read_checkpoint(path).facts == {"acc": 99.23, "arch": "LeNet_5"}


# ---- the command ----


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    state = oracle.make_state("lenet5")
    write(tmp_path / "le net.best.pth.tar", wrapped(prefixed("lenet5", state)), legacy=True)
    assert run(["import", "le net.best.pth.tar", "--from", "xnor-net"]) == 0
    shown = capsys.readouterr()
    assert all(key in shown.out for key in state) and "best_acc 86.25" in shown.out
    next_line = shown.err.splitlines()[-1]
    assert next_line.startswith("next:   bitwright convert 'le net.best.safetensors' --model lenet5")
    model = bw.load("le net.best.safetensors", bw.models.create("lenet5")).eval()
    check_same("lenet5", state, Imported(model, (), bw.Recipe()), torch.randn(2, 1, 28, 28))
    assert run(["import", "le net.best.pth.tar", "--from", "xnor-net"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(["import", "le net.best.pth.tar", "--from", "xnor-net", "-o", "b.safetensors", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["import"]
    assert answer["spec"] == "lenet5" and len(answer["rows"]) == len(state)
    assert answer["file"]["bytes"] == Path("b.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["none.pth", "--from", "xnor-net"], "none.pth: no such file"),
        (["none.pth", "--from", "dnn-gateing"], "Nearest: dnn-gating. Known: xnor-net, network-compression,"),
        (["none.pth"], "--from"),
        (["none.pth", "--from", "xnor-net", "-o", "no/such/x.safetensors"], "no folder"),
    ],
)
def test_command_errors_are_one_line(
    argv: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert run(["import", *argv]) == 2
    shown = capsys.readouterr()
    assert text in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert not list(tmp_path.iterdir())


def test_the_command_that_comes_next_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "lenet.pth", oracle.make_state("lenet5"))
    run(["import", "lenet.pth", "--from", "xnor-net", "--json"])
    command = json.loads(capsys.readouterr().out)["next"][0].split()
    assert run(command[1:]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[0] in ("PASS", "WARN")
