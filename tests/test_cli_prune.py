"""`bitwright prune` and `quantize`, and the same procedures as stages of an experiment."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import bitwright as bw
from bitwright.errors import BitwrightWarning, InputError
from bitwright.experiment import parse
from bitwright.procedures.layerwise.select import mask_of
from bitwright.runs import Run, build_model, dataset
from bitwright.training.procedures import done

HEAD = """
[data]
name = "digits"
limit = 300
limit_test = 100
batch = 100
[model]
name = "mlp"
hidden = 16
depth = 1
[log]
tensorboard = false
"""
TRAIN = '[[stage]]\nepochs = 1\noptimizer = { name = "adam", lr = 1e-3 }\n'


def train(text: str, out: Path) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitwrightWarning)
        bw.train(parse(text), out, echo=lambda line: None)
    return Run(out)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(HEAD + TRAIN, tmp_path_factory.mktemp("prune") / "run")


def test_prune_then_quantize(run: Run, call: Any) -> None:
    words = ("--keep", "*=.25,fc2=.5", "--rounds", "2", "--batches", "3", "--test", "50", "--json")
    code, text, note = call("prune", str(run.path), "--method", "l_obs", *words)
    assert code == 0, note + text
    said = json.loads(text)["prune"]
    assert said["procedure"] == "l_obs" and said["samples"] == 300 and said["images"] == 50
    assert 0 <= said["before"] <= 1 and 0 <= said["after"] <= 1
    assert {row["layer"]: row["kept"] / row["weights"] for row in said["rows"]}["fc2"] == pytest.approx(0.5, abs=0.01)
    net = bw.load(said["file"], build_model(run.experiment, dataset(run.experiment, "test"), weights=False))
    rows = {row["layer"]: row["kept"] for row in said["rows"]}
    assert {name: int(mask.sum()) for name, m in net.named_modules() if (mask := mask_of(m)) is not None} == rows
    assert not list(run.path.glob("*.journal"))
    code, text, note = call(
        "quantize", str(run.path), "--bits", "4", "-o", str(run.path / "q.safetensors"), "--test", "0"
    )
    assert code == 0 and "4 bits" in text and (run.path / "q.safetensors").is_file(), note
    assert [row["procedure"] for row in done(run)] == ["l_obs", "gptq"]


def test_words_for_people(run: Run, call: Any) -> None:
    code, text, note = call("prune", str(run.path), "--method", "magnitude", "--keep", ".5", "--test", "20")
    assert code == 0, note
    assert (
        "energy kept" in text and "top-1 of 20 test images" in text and "a plain CPU does not skip single zeros" in text
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("prune", "RUN", "--method", "gptq"), "gptq is run by bitwright quantize; possible here: l_obs, magnitude,"),
        (("quantize", "RUN", "--method", "l_obs"), "l_obs is run by bitwright prune"),
        (("prune", "RUN"), "l_obs: neither keep nor sparsity is given"),
        (("prune", "RUN", "--keep", "2"), "l_obs: keep=2.0; possible: above 0 and at most 1"),
        (("prune", "RUN", "--keep", "half"), "procedure l_obs: keep = 'half'"),
        (("prune", "RUN", "--kepe", ".5"), "unknown option 'kepe'. Nearest: keep."),
        (("prune", "zoo:nothing", "--keep", ".5"), "zoo nothing: no such net"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], text: str, run: Run, call: Any) -> None:
    code, _, note = call(*(str(run.path) if word == "RUN" else word for word in words), "--quiet")
    assert code == 2 and text in note and len(note.strip().splitlines()) == 1


def test_a_stopped_command_goes_on(run: Run, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitwright.procedures.layerwise import work

    words = ("prune", str(run.path), "--keep", ".5", "--test", "0", "-o", str(run.path / "p.safetensors"), "--json")
    real, solved = work._row, []

    def row(stats: Any, *rest: Any) -> Any:
        if solved:
            raise KeyboardInterrupt
        solved.append(stats.name)
        return real(stats, *rest)

    monkeypatch.setattr(work, "_row", row)
    assert call(*words)[0] == 130
    assert len(list((run.path / "p.safetensors.journal").iterdir())) == 1
    monkeypatch.setattr(work, "_row", lambda stats, *rest: solved.append(stats.name) or real(stats, *rest))
    code, text, note = call(*words)
    assert code == 0, note
    rows = [r["layer"] for r in json.loads(text)["prune"]["rows"]]
    assert solved == rows and not (run.path / "p.safetensors.journal").exists()


STAGES = """
[[stage]]
procedure = { name = "l_obs", keep = 0.5, batches = 3 }
[[stage]]
procedure = { name = "gptq", bits = 4, batches = 3 }
epochs = 1
optimizer = { name = "adam", lr = 1e-3 }
"""


def test_a_chain_in_one_experiment(tmp_path: Path) -> None:
    run = train(HEAD + TRAIN + STAGES, tmp_path / "run")
    assert [row["procedure"] for row in done(run)] == ["l_obs", "gptq"]
    net = run.model()
    layers: list[tuple[Any, torch.Tensor]] = [(m, mask) for m in net.modules() if (mask := mask_of(m)) is not None]
    assert layers and all(m.w.part_name == "codebook+mask" for m, _ in layers)
    assert all(bool((m.quantized_weight()[mask == 0] == 0).all()) for m, mask in layers)
    assert all(int(mask.sum()) == round(m.weight.numel() * 0.5) for m, mask in layers)
    assert not list(run.path.glob("journal-*")) and torch.isfinite(net(torch.zeros(2, 1, 8, 8))).all()


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        (
            '[[stage]]\nprocedure = { name = "gptq" }\n[[stage]]\nprocedure = { name = "l_obs", keep = 0.5 }\n',
            "stage 1: l_obs would move weights that gptq of stage 0 put on levels; possible: prune first, then quantize",
        ),
        (
            '[[stage]]\nrecipe = "bwn"\nepochs = 1\n[[stage]]\nprocedure = { name = "magnitude", keep = 0.5 }\n',
            "stage 1: magnitude would move weights that the recipe of stage 0 put on levels",
        ),
    ],
)
def test_an_order_that_cannot_work_is_told_before_any_work(stages: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text):
        train(HEAD + stages, tmp_path / "run")
