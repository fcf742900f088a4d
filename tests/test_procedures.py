"""Procedures by name: from Python, in a stage of an experiment, on the command line. A new one is a file and an entry."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright import procedures
from bitwright.errors import BitwrightWarning, InputError
from bitwright.experiment import parse
from bitwright.experiment.write import to_toml
from bitwright.runs import Run, build_model, dataset
from bitwright.training.procedures import done

HEAD = """
[data]
name = "digits"
limit = 200
limit_test = 64
batch = 50
[model]
name = "mlp"
hidden = 16
depth = 1
[log]
tensorboard = false
"""
STAGE = '[[stage]]\nprocedure = { name = "scaling", batches = 2, by = 0.5 }\n'


@pytest.fixture
def scaling() -> Iterator[Any]:
    """The procedure of `scaling.py`."""
    import scaling

    if "scaling" not in procedures.names():
        importlib.reload(scaling)
    yield scaling.scaling
    procedures.forget("scaling")


def train(text: str, out: Path, *overrides: str, resume: bool = False) -> Run:
    """Quietly: these nets learn next to nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitwrightWarning)
        bw.train(parse(text, overrides), out, resume=resume, echo=lambda line: None)
    return Run(out)


def net_of(run: Run, stage: int) -> nn.Module:
    """The net as a stage left it."""
    model = build_model(run.experiment, dataset(run.experiment, "test"), weights=False)
    return bw.load(run.file(f"stages/{stage}.safetensors"), model)


# -- from Python -------------------------------------------------------------------------------------------------------
def test_a_procedure_by_name_is_the_function(scaling: Any) -> None:
    nets: list[Any] = [nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 3))]
    nets[1].load_state_dict(nets[0].state_dict())
    before, data = nets[0][0].weight.clone(), [(torch.zeros(5, 2), torch.zeros(5))]
    reports = scaling(nets[0], data, by=3.0), procedures.get("scaling")(nets[1], data, by=3)
    for net, report in zip(nets, reports, strict=True):
        assert torch.equal(net[0].weight, 3 * before)
        assert isinstance(report, procedures.Report) and report.to_dict() == {
            "procedure": "scaling",
            "samples": 5,
            "rows": [{"layer": "0", "weights": 6}],
        }
        assert report.to_markdown().splitlines() == ["| layer | weights |", "| --- | ---: |", "| 0 | 6 |"]


def test_options_are_the_keywords_of_the_function(scaling: Any) -> None:
    found = procedures.get("scaling")
    assert found.data and found.summary == "All weights times one number"
    assert found.check({"by": "0.5"}) == {"by": 0.5, "layers": None}
    for options, text in (
        ({}, "by is missing"),
        ({"by": -1}, "by = -1; possible: greater than 0"),
        ({"by": 1, "layer": []}, "unknown option 'layer'. Nearest: layers. Options: by, layers"),
    ):
        with pytest.raises(InputError) as caught:
            found.check(options)
        assert str(caught.value) == f"procedure scaling: {text}" and caught.value.code == "procedure-option"
    with pytest.raises(InputError, match=r"unknown procedure 'scalign'\. Nearest: scaling\."):
        procedures.get("scalign")
    with pytest.raises(InputError, match="is taken by"):
        procedures.procedure("scaling")(scaling)


@pytest.mark.parametrize("name", procedures.names())
def test_every_shipped_procedure_is_public_and_described(name: str) -> None:
    assert getattr(bw.procedures, name) is procedures.get(name).function and procedures.get(name).summary


# -- in an experiment --------------------------------------------------------------------------------------------------
def test_a_stage_with_a_procedure_needs_no_epochs_and_no_recipe() -> None:
    found = parse(HEAD + STAGE)
    call = found.stage[0].procedure
    assert call is not None and (call.name, call.batches, call.options) == ("scaling", 2, {"by": 0.5})
    assert found.stage[0].epochs == 0 and parse(to_toml(found)) == found
    assert parse(HEAD + STAGE + "[[stage]]\nepochs = 1", ["epochs=3"]).stage[1].epochs == 3
    assert parse(HEAD + STAGE, ["epochs=3"]).stage[0].epochs == 0  # it does not train
    assert parse(HEAD + STAGE + "epochs = 2", ["epochs=3"]).stage[0].epochs == 3
    with pytest.raises(InputError, match=r"stage\.0\.epochs is missing"):
        parse("[[stage]]\nloss = 'mse'")
    with pytest.raises(InputError, match="a stage has a procedure or a recipe, not both"):
        parse(HEAD + STAGE + "epochs = 1\nrecipe = 'xnor'")


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ('name = "scalign"', "stage 0: unknown procedure 'scalign'"),
        ('name = "scaling", by = 0', "stage 0: procedure scaling: by"),
    ],
)
def test_a_wrong_procedure_is_told_before_any_work(table: str, text: str, scaling: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text):
        bw.train(parse(HEAD + f"[[stage]]\nprocedure = {{ {table} }}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stage_runs_it_once_and_its_report_is_kept(scaling: Any, tmp_path: Path) -> None:
    run = train(HEAD + "[[stage]]\nepochs = 1\n" + STAGE, tmp_path / "run")
    before, after = net_of(run, 0).state_dict(), net_of(run, 1).state_dict()
    for key, value in before.items():
        assert torch.equal(after[key], value * 0.5 if key.startswith("fc") and key.endswith("weight") else value), key
    final = run.model().state_dict()
    assert all(torch.equal(final[key], value) for key, value in after.items())
    (row,) = done(run)
    assert (row["stage"], row["procedure"], row["samples"]) == (1, "scaling", 100)
    assert [r["weights"] for r in row["rows"]] == [
        m.weight.numel() for m in run.model().modules() if isinstance(m, nn.Linear)
    ]


def test_a_resumed_stage_does_not_run_it_again(scaling: Any, tmp_path: Path) -> None:
    """Two epochs behind the procedure, stopped after one: the same weights as unbroken, one row in the report."""
    text = HEAD + '[[stage]]\nprocedure = { name = "scaling", by = 0.5 }\nepochs = 2\n'
    whole = train(text, tmp_path / "whole")
    train(text, tmp_path / "broken", "epochs=1")
    broken = train(text, tmp_path / "broken", resume=True)
    a, b = (run.model().state_dict() for run in (whole, broken))
    assert all(torch.equal(a[key], b[key]) for key in a) and len(done(broken)) == 1


def test_a_recipe_that_a_procedure_gives_is_followed_and_rebuilt(tmp_path: Path) -> None:
    text = HEAD.replace("depth = 1", "depth = 4") + (
        '[[stage]]\nepochs = 1\n[[stage]]\nprocedure = { name = "pca_hybrid", batches = 4, delta = 1 }\nepochs = 2\n'
    )
    train(text, tmp_path / "run", "stage.1.epochs=1")
    run = train(text, tmp_path / "run", resume=True)
    assert len(done(run)) == 1
    kept = bw.Recipe.from_toml(done(run)[0]["recipe"])
    assert kept.rules and bw.recipe_of(run.model()).rules == kept.rules


# -- on the command line -----------------------------------------------------------------------------------------------
def test_compress(scaling: Any, call: Any, tmp_path: Path) -> None:
    run = train(HEAD + "[[stage]]\nepochs = 1\n", tmp_path / "run")
    before = run.model()
    code, text, note = call("compress", str(run.path), "--method", "scaling", "--by", ".5", "--batches=1", "--json")
    assert code == 0, note
    said = json.loads(text)["compress"]
    assert said["samples"] == 50 and said["file"] == str(run.file("compressed.safetensors"))
    after = bw.load(said["file"], build_model(run.experiment, dataset(run.experiment, "test"), weights=False))
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(new, old * 0.5 if name.startswith("fc") and name.endswith("weight") else old)
    assert all(torch.equal(a, b) for a, b in zip(run.model().parameters(), before.parameters(), strict=True))
    assert [row["stage"] for row in done(run)] == [None]
    code, text, note = call("eval", str(run.path), "--weights", said["file"])
    assert code == 0, note


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--method", "scalign"], "unknown procedure 'scalign'"),
        (["--method", "scaling", "--bye", "2"], "unknown option 'bye'. Nearest: by."),
        (["--method", "scaling", "--by"], "'--by'; possible: options of the procedure as --name value"),
        (["--method", "scaling", "by=2"], "'by'; possible: options of the procedure as --name value"),
    ],
)
def test_compress_tells_a_wrong_option_in_one_line(words: list[str], text: str, scaling: Any, call: Any) -> None:
    code, _, note = call("compress", "nowhere", *words)
    assert code == 2 and text in note and len(note.strip().splitlines()) == 1


# -- a new one ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_new_procedure_is_one_file_and_one_entry(tmp_path: Path) -> None:
    """In a scratch copy of the package: then Python, a stage and the command line run it."""
    package = tmp_path / "bitwright"
    shutil.copytree(Path(bw.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("scaling.py"), package / "procedures" / "scaling.py")
    entries = package / "procedures" / "__init__.py"
    head, tail = entries.read_text().split("\n__all__", 1)
    entries.write_text(f"{head}\nfrom bitwright.procedures.scaling import scaling\n__all__{tail}")
    (tmp_path / "e.toml").write_text(HEAD + STAGE)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    python = "import bitwright as bw, torch; net = torch.nn.Linear(1, 1); print(bw.procedures.scaling(net, [], by=2.0))"
    for words in (
        ["-c", python],
        ["-m", "bitwright", "train", "e.toml", "--out", "run"],
        ["-m", "bitwright", "compress", "run", "--method", "scaling", "--by", "2"],
    ):
        made = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
    rows = json.loads((tmp_path / "run" / "procedures.json").read_text())["procedures"]
    assert [row["stage"] for row in rows] == [0, None]
