"""`bitwright export onnx`: each form of the file, and what a user reads where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

import bitwright as bw

B = bw.nn
EIGHT = {"part": "uniform", "bits": 8}


class Net(nn.Module):
    def __init__(self, x: Any = EIGHT) -> None:
        super().__init__()
        self.conv, self.norm = B.Conv2d(3, 8, 3, w="bwn", x=x), nn.BatchNorm2d(8)
        self.head = B.Linear(8, 4, w=EIGHT, x=EIGHT if x else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def file(folder: Path, net: nn.Module, form: str = "graph") -> Path:
    x = torch.rand(4, 3, 6, 6)
    with torch.no_grad():
        net.train()(x)
    path = folder / "net.packed.safetensors"
    bw.convert(net.eval(), x, form=form, verify=False, force=True).save(path)
    return path


def operators(path: Path) -> set[str]:
    import onnx

    return {node.domain for node in onnx.load(path).graph.node}


@pytest.mark.few("ours")
@pytest.mark.parametrize("flags", [[], ["--standard"], ["--qdq"]], ids=["ours", "standard", "qdq"])
def test_each_form_of_the_file_runs(flags: list[str], tmp_path: Path, call: Any) -> None:
    source, target = file(tmp_path, Net()), tmp_path / "out.onnx"
    code, out, err = call("export", "onnx", str(source), "-o", str(target), "--json", *flags)
    report = json.loads(out)["export"]
    assert code == 0, err
    assert report["path"] == str(target) and report["bytes"] == target.stat().st_size and report["images"] == 16
    assert ("bitwright" in operators(target)) == (flags == [])
    if "--qdq" in flags:
        assert report["operators"]["DequantizeLinear"] == 4  # input and weight of two layers
    session = ort.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    x = torch.rand(3, 3, 6, 6)
    got, want = np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]), bw.load(source)(x).numpy()
    assert np.abs(got - want).max() <= 0.02 * np.abs(want).max()


def test_the_file_gets_the_targets_name(tmp_path: Path, call: Any) -> None:
    source = file(tmp_path, Net())
    code, _, err = call("export", "onnx", str(source))
    assert code == 0 and (tmp_path / "net.onnx").is_file()
    assert err.splitlines()[-1].startswith("next:   python -c") and "bw.ort.session" in err.splitlines()[-1]


def test_what_cannot_be_exported_is_one_line_with_flags_of_the_command(tmp_path: Path, call: Any) -> None:
    def says(*argv: str) -> str:
        code, out, err = call("export", "onnx", *argv)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2 and out == "" and len(lines) == 1 and "Traceback" not in err
        return lines[0]

    source = file(tmp_path, Net(x=None))
    assert says(str(source), "--qdq").endswith(
        "Possible: standard operators (packed=False; --standard on the command line)"
    )
    assert says(str(source), "-o", str(tmp_path)).endswith(f"{tmp_path} is a folder; give -o FILE.onnx")
    assert says(str(source), "-o", str(tmp_path / "no" / "a.onnx")).endswith("no; give -o FILE.onnx")
    layers = file(tmp_path, Net(), form="layers")
    assert "Pack it anew: bitwright convert FILE --model MODEL --form graph" in says(str(layers))
    bw.save(Net(), tmp_path / "trained.safetensors")
    assert "trained, not packed. Pack it: bitwright convert" in says(str(tmp_path / "trained.safetensors"))
    (tmp_path / "junk.safetensors").write_bytes(b"x" * 100)
    assert "not a readable safetensors file" in says(str(tmp_path / "junk.safetensors"))
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize("form", ["onnx", "c"])
def test_both_forms_answer_a_wrong_target_or_place_alike(form: str, tmp_path: Path, call: Any) -> None:
    for words, said in (
        (["zoo:digits-mlp-zero_one", "-o", str(tmp_path)], "is a folder; give -o FILE"),
        (["zoo:digits-mlp-zero_one", "-o", str(tmp_path / "no" / "x")], "no folder"),
        ([str(tmp_path / "no.safetensors")], "no file"),
    ):
        code, _, err = call("export", form, *words)
        assert code == 2 and said in err and err.startswith("error: export"), err
    bw.save(torch.nn.Linear(2, 2), tmp_path / "float.safetensors")
    code, _, err = call("export", form, str(tmp_path / "float.safetensors"))
    assert code == 2 and "trained, not packed. Pack it: bitwright convert" in err


@pytest.mark.slow
def test_a_run_knows_what_was_exported_of_it(tmp_path: Path, call: Any) -> None:
    pytest.importorskip("qonnx", reason="pip install qonnx")
    from bitwright.runs import Run
    from bitwright.runs.result_tables import Export

    run, outside = tmp_path / "run", tmp_path / "net.onnx"
    quick = ("stage.0.epochs=1", "data.limit=256", "data.limit_test=64", "log.tensorboard=false")
    assert call("train", "digits-mlp-zero_one", *quick, "--out", str(run))[0] == 0
    code, _, err = call("export", "qonnx", str(run), "-o", str(outside))  # of the trained net: no convert before it
    assert code == 0, err
    assert call("convert", str(run))[0] == 0
    for words in (["onnx", str(run)], ["c", str(run)], ["c", str(run)], ["circuit", str(run)]):
        code, _, err = call("export", *words)
        assert code == 0, err
    rows = Run.open(run, "test").read(Export)
    assert [(r.form, r.path, r.source) for r in rows] == [
        ("qonnx", "../net.onnx", "model.safetensors"),
        ("onnx", "packed.onnx", "packed.safetensors"),
        ("c", "packed.c", "packed.safetensors"),
        ("circuit", "packed.v", "packed.safetensors"),
    ]
    assert all(r.bytes == (run / r.path).stat().st_size for r in rows)
    assert "keep the trained net's class" in rows[0].check and "onnxruntime" in rows[1].check
    assert rows[3].check == "read back: equal on 64 samples and 4,162 further patterns"
    assert call("report", str(run))[0] == 0
    page = (run / "report.html").read_text()
    assert all(f'<a href="{r.path}">{r.path}</a></th>' in page for r in rows) and "of an earlier net" not in page
