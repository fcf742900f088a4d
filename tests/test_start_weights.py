"""Start weights, teachers and nets to evaluate: the files that people have."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import bitwright as bw
from bitwright import experiment
from bitwright.errors import BitwrightWarning, InputError
from bitwright.runs.build import build_model
from bitwright.runs.weight_files import put_weights, read_weights


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))


def state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {k: torch.randn(v.shape).abs() if v.is_floating_point() else v + 5 for k, v in net().state_dict().items()}


def marked(prefix: str) -> dict[str, Tensor]:
    return {prefix + k: v for k, v in state().items()}


FILES: dict[str, Any] = {
    "bare.pth": state,
    "state_dict.pt": lambda: {"state_dict": state(), "epoch": 3},
    "model.pth.tar": lambda: {"model": marked("module."), "optimizer": {"lr": 0.1}},
    "net.pth": lambda: {"net": state()},
    "lightning.ckpt": lambda: {"state_dict": marked("model."), "pytorch-lightning_version": "2.0"},
    "no_suffix": state,
    "parallel.safetensors": lambda: marked("module."),
    "compiled.safetensors": lambda: marked("_orig_mod.module."),
    "old.safetensors": lambda: {k: v for k, v in state().items() if "num_batches" not in k},
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_fit(name: str, tmp_path: Path) -> None:
    path, held = tmp_path / name, FILES[name]()
    save_file(held, str(path)) if name.endswith("safetensors") else torch.save(held, path)
    model = net()
    put_weights(model, read_weights(path, "model weights")[0], "model weights")
    wanted = state()
    if name.startswith("old"):
        wanted["1.num_batches_tracked"] = torch.tensor(0)
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


def test_the_old_format_of_torch_save(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "old", _use_new_zipfile_serialization=False)
    assert read_weights(tmp_path / "old", "model weights")[0].keys() == state().keys()


def test_the_weights_of_an_experiment(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\ndef net():\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))\n"
    )
    torch.save({"state_dict": marked("module.")}, tmp_path / "a.pth")
    text = f'[data]\nname = "digits"\n[model]\nname = "{tmp_path}/own.py:net"\nweights = "{tmp_path}/a.pth"\n[[stage]]\nepochs = 1'
    model = build_model(experiment.parse(text))
    assert torch.equal(model.get_parameter("3.weight"), state()["3.weight"])


def test_keys_that_nobody_takes_are_named() -> None:
    tensors = state() | {f"{i}.weight": torch.ones(1) for i in range(7, 12)}
    with pytest.warns(
        BitwrightWarning, match=r"w.pth: keys that .* are left out: 7.weight, 8.weight, 9.weight and 2 more"
    ):
        put_weights(net(), tensors, "w.pth")
    model = net()
    was = model.get_parameter("3.weight").clone()
    del tensors["3.weight"]
    with pytest.raises(
        InputError, match=r"3.weight is missing \(1 missing, 0 of other shape, 7.weight, .* left over\)"
    ):
        put_weights(model, tensors, "w.pth")
    assert torch.equal(model.get_parameter("3.weight"), was)


def test_parts_of_a_trained_file_are_left_out_in_silence() -> None:
    low: Any = bw.apply(net(), [{"match": "*", "w": "ttq", "x": {"part": "lsq", "bits": 4}}])
    model = net()
    put_weights(model, low.state_dict(), "w")
    assert torch.equal(model.get_parameter("3.weight"), low[3].weight)


class Holder(nn.Module):
    """`module` is a name of its own here."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.weight = nn.Linear(2, 2, bias=False), nn.Parameter(torch.zeros(2, 2))


def test_a_model_with_a_submodule_called_module() -> None:
    given, model = Holder(), Holder()
    put_weights(model, given.state_dict(), "w")
    assert torch.equal(model.module.weight, given.module.weight)


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, held in (("a.pth", {"state_dict": state(), "args": Runs()}), ("b.pt", net())):
        torch.save(held, tmp_path / name)
        with pytest.raises(InputError, match=f"model weights {tmp_path / name}: the file wants .* nothing was run"):
            read_weights(tmp_path / name, "model weights")
    (tmp_path / "c.pth").write_bytes(pickle.dumps(Runs()))
    (tmp_path / "d.pth").write_bytes(b"")
    (tmp_path / "e").write_bytes(b"PK but no archive")
    for name in "cde":
        path = next(tmp_path.glob(f"{name}*"))
        with pytest.raises(InputError, match=f"^model weights {path}: "):
            read_weights(path, "model weights")
    assert not (tmp_path / "owned").exists()
    with pytest.raises(InputError, match=r"model weights .*gone.pth: no such file"):
        read_weights(tmp_path / "gone.pth", "model weights")
