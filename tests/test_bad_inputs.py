"""What is given wrongly to a packed net, its loader, its exporter and its sessions: one line that says what is possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native
from bitwright.engine.packed import PackedModel
from bitwright.errors import InputError

export: Any = bw.export.onnx  # so that what the types forbid can be given
session: Any = bw.ort.session
load: Any = bw.load
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def trained() -> nn.Module:
    torch.manual_seed(0)
    conv = bw.nn.Conv2d(3, 4, 3, w="bwn", x="sign")
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()


@pytest.fixture(scope="module")
def net() -> Any:
    return bw.convert(trained(), X, verify=False).model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, net: Any) -> Path:
    """A packed net, a trained one, an ONNX file, an empty file and one that is nothing."""
    folder = tmp_path_factory.mktemp("files")
    bw.save(net, folder / "net.safetensors")
    bw.save(trained(), folder / "trained.safetensors")
    export(net, X, folder / "net.onnx")
    (folder / "empty").write_bytes(b"")
    (folder / "junk").write_bytes(b"\x08\x07junk" * 20)
    return folder


def one_line(call: Any, text: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert text in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, "input is NoneType; possible: a dense tensor of real numbers on the CPU"),
        ([1.0], "input is list"),
        (X.numpy(), "input is ndarray"),
        (X.to("meta"), "input is on meta"),
        (X.to(torch.complex64), "input is complex"),
        (X.to_sparse(), "input is sparse_coo"),
    ],
    ids=["none", "list", "array", "meta", "complex", "sparse"],
)
def test_inputs_of_a_packed_net(given: Any, text: str, net: Any) -> None:
    one_line(lambda: net(given), text)
    layers: Any = bw.convert(trained(), X, form="layers", verify=False).model
    one_line(lambda: layers[0](given), text)


def test_a_single_number_is_named(net: Any) -> None:
    one_line(lambda: net(torch.tensor(1.0)), "input is a single number, the model was converted for 3x8x8")


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 10**6])
def test_threads_of_a_packed_net(threads: Any, net: Any) -> None:
    one_line(lambda: PackedModel(net.graph, threads=threads), "possible: 1 to 1024, or None for torch's number")
    one_line(lambda: bw.convert(trained(), X, threads=threads, verify=False), f"threads={threads!r}")


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def test_examples_of_an_export(net: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    for given in ("x", None, X.numpy(), {"x": X}, (), (X, "y")):
        one_line(lambda given=given: export(net, given, path), "possible: a tensor with at least one sample")
    for given in (X[:0], torch.tensor(1.0)):
        one_line(lambda given=given: export(net, given, path), "the example is no sample")
    one_line(lambda: export(net, X[0], path), "one sample has no batch axis")
    one_line(lambda: export(net, (X, X), path), "takes 1 inputs (input), got 2")
    one_line(
        lambda: export(nn.Linear(3, 2), torch.randn(2, 4), path, packed=False),
        "Linear does not take the example (2x4): RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    )
    one_line(
        lambda: export(Branch(), X, path, packed=False),
        "torch's exporter does not take this net: GuardOnDataDependentSymNode: ",
    )
    for model in (None, "net.safetensors", nn.Linear):
        one_line(lambda model=model: export(model, X, path), "possible: what bw.convert or bw.load returns")
    assert not path.exists()


@pytest.mark.slow
@pytest.mark.few(every=3)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.uint8])
def test_an_export_compares_what_the_net_takes(dtype: torch.dtype, net: Any, tmp_path: Path) -> None:
    given = torch.randint(0, 2, X.shape).to(dtype)
    assert export(net, given, tmp_path / "a.onnx").differ == 0


def test_paths_of_an_export(net: Any, tmp_path: Path) -> None:
    for path in (tmp_path, "", None, 3, b"a.onnx"):
        one_line(lambda path=path: export(net, X, path), "is no file name; possible: net.onnx")
    one_line(lambda: export(net, X, tmp_path / "no" / "a.onnx"), "does not exist")


def test_files_and_threads_of_a_session(folder: Path) -> None:
    for given in (None, 3, bytearray(b"a")):
        one_line(lambda given=given: session(given), "possible: a path, or the content of a file as bytes")
    for given in ("no.onnx", folder):
        one_line(lambda given=given: session(given), "there is no file")
    for given in (folder / "empty", folder / "junk", folder / "net.safetensors", b"", b"abc"):
        one_line(lambda given=given: session(given), "bw.ort.session: onnxruntime does not take")
    for threads in (-1, 1.5, "2", None, True, 10**12):
        one_line(lambda t=threads: session(folder / "net.onnx", threads=t), "possible: 0 to 1024")
    one_line(lambda: bw.ort.register(None), "possible: onnxruntime.SessionOptions")


def test_files_models_and_devices_of_a_load(folder: Path) -> None:
    for given in (None, 3, b"net.safetensors"):
        one_line(lambda given=given: load(given), "possible: the path of a file")
    for given in (folder, folder / "no.safetensors"):
        one_line(lambda given=given: load(given), "no such file")
    for given in (folder / "empty", folder / "junk", folder / "net.onnx"):
        one_line(lambda given=given: load(given), "not a readable safetensors file")
    one_line(lambda: load(folder / "trained.safetensors"), "give the model, bw.load(path, model)")
    for model in ("resnet20", nn.Linear, trained):
        one_line(lambda m=model: load(folder / "trained.safetensors", m), "possible: a module")
    for device in ("bogus", None, ""):
        one_line(lambda d=device: load(folder / "net.safetensors", device=d), "possible: cpu, cuda, cuda:1")
    one_line(lambda: load(folder / "net.safetensors", device="cuda"), "packed nets run on the CPU, not on 'cuda'")
    one_line(lambda: load(folder / "trained.safetensors", trained(), device="cuda:77"), "torch finds no device")
    assert isinstance(load(folder / "net.safetensors", device=torch.device("cpu")), PackedModel)


@pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")
def test_a_plan_that_cannot_be_kept(net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    one_line(lambda: net.explain(measure=True), "XDG_CACHE_HOME names another folder")
