"""`bitwright experiments`: the list, one of them, an unknown name; all of it without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib

import pytest

from bitwright.cli.run import run
from bitwright.experiment import load, names


def test_lists_every_shipped_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["experiments"]) == 0
    out, err = capsys.readouterr()
    head, *rows = out.splitlines()
    assert head.split() == ["name", "epochs", "what", "it", "is"]
    assert [row.split()[0] for row in rows] == names()
    assert max(map(len, out.splitlines())) <= 100
    assert "next:   bitwright train digits-" in err


def test_prints_one_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["experiments", "cifar10-resnet20-bwn"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("# ResNet-20 on CIFAR-10: binary weights")
    assert tomllib.loads(out)["stage"][1]["recipe"] == "bwn"
    assert "next:   bitwright train cifar10-resnet20-bwn" in err


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["experiments", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["experiments"]
    assert {row["name"] for row in rows} == set(names())
    for row in rows:
        experiment = load(row["name"])
        assert row["epochs"] == [stage.epochs for stage in experiment.stage]
        assert row["recipes"] == [stage.recipe for stage in experiment.stage if stage.recipe]
    assert run(["experiments", "digits-mlp-bwn", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)["experiment"]
    assert (one["data"], one["model"], one["recipes"]) == ("digits", "mlp", ["bwn"]) and "[[stage]]" in one["toml"]


def test_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["experiments", "cifar10-resnet20-xnorr"]) == 2
    assert capsys.readouterr().err == (
        "error: experiment cifar10-resnet20-xnorr: no such experiment. Nearest: cifar10-resnet20-xnor. "
        "All: bitwright experiments\n"
    )


def test_needs_no_heavy_library() -> None:
    code = (
        "import sys\nfrom bitwright.cli.run import run\nrun(['experiments', '--quiet'])\n"
        "print([m for m in ('torch', 'numpy', 'bitwright.experiment') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"
