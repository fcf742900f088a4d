"""The trained net, fake-quantized and in eval, through torch's own exporter: for every part, with the same answers."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ACTIVATION: dict[str, Any] = {"w": {"part": "uniform", "bits": 4}}
WEIGHT: dict[str, Any] = {"x": {"part": "uniform", "bits": 4}}
GATED: dict[str, dict[str, Any]] = {
    "fbs": {"gate": {"part": "fbs", "keep": 0.5}},
    "channel_gate": {"w": "bwn", "gate": "channel_gate"},
    "precision_gate": {"x": {"part": "pact", "bits": 8}, "gate": {"part": "precision_gate", "bits": 8, "top": 4}},
    "xnor_k": {"w": "bwn", "x": ["norm", "sign"], "gate": "xnor_k"},
}
MORE: dict[str, dict[str, Any]] = {
    "uniform signed": {"x": {"part": "uniform", "bits": 8, "signed": True}, **ACTIVATION},
    "uniform affine": {"x": {"part": "uniform", "bits": 4, "symmetric": False}, **ACTIVATION},
    "uniform per channel": {"w": {"part": "uniform", "bits": 4, "granularity": "channel"}, **WEIGHT},
    "input8 measured": {"x": {"part": "input8", "mean": "measured"}, **ACTIVATION},
    "norm, sign": {"w": "xnor", "x": ["norm", "sign"]},
    "bwn, mask": {"w": ["bwn", "mask"], **WEIGHT},
    "weights only": {"w": "ttq"},
}


def rules() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {**GATED, **MORE}
    for name, info in bw.parts().items():
        if name in GATED or name in ("float", "mask", "dropout"):
            continue
        spec = {"part": name, "bits": 2} if "bits" in info.options else name
        for slot in info.slots:
            found[f"{name} {slot}"] = {**(WEIGHT if slot != "x" else ACTIVATION), slot: spec}
    return found


CASES = rules()
FAST = ("dorefa_a x", "ttq w")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in CASES])
def test_every_part_exports(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = "0" if name.startswith("input8") else "2"
    net: Any = nn.Sequential(
        nn.Conv2d(4, 8, 3),
        nn.Hardtanh(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 4),
    )
    x = torch.rand(4, 4, 8, 8)
    bw.apply(net, [{"match": layer, **CASES[name]}], x)
    bw.calibrate(net, [x])
    net.train()(x)
    want = net.eval()(x).detach()
    assert not torch.equal(want, want[:1].expand_as(want))
    path = tmp_path / "net.onnx"
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about itself
            torch.onnx.export(net, (x,), str(path), dynamo=True, verbose=False)
    finally:
        logging.disable(logging.NOTSET)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
