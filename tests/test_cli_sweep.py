"""`bitwright analyze sweep RUN` and `--judge connections`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import bitwright as bw
from bitwright.analysis.analyze import connections, weight_sweep
from bitwright.analysis.sweep_result import NORMS, WeightSweep
from bitwright.runs import Run
from bitwright.runs.build import dataset
from selfprune import experiment

pytestmark = pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning")
VALUES = [0.0, 0.5, 1.0, 2.0, 10.0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run with batch norms, and one with inverters."""
    folder = tmp_path_factory.mktemp("sweep")
    for norm in ("batch_norm", "hard_invert"):
        bw.train(experiment(norm), folder / norm)
    return {norm: Run(folder / norm) for norm in ("batch_norm", "hard_invert")}


def test_the_file_holds_what_the_function_gives(trained: dict[str, Run], call: Any) -> None:
    opened = trained["batch_norm"]
    code, text, _ = call("analyze", "sweep", str(opened.path), "--on", "0,0.5:1:0.5,2,10", "--json")
    assert code == 0
    found = json.loads(text)["analyze"]
    kept = opened.read_json("sweep.json")
    assert kept["sweeps"] == found["sweeps"] and kept["batch"] == 40
    test, train = (dataset(opened.experiment, split) for split in ("test", "train"))
    for mode, plain in zip(NORMS, found["sweeps"], strict=True):
        batches = (d.batches(40, normalize=False) for d in (test, train))
        assert WeightSweep.from_dict(plain) == weight_sweep(opened.model(), next(batches), VALUES, mode, next(batches))
    assert [s["train_images"] for s in found["sweeps"]] == [None, 300, None]


def test_table_and_words(trained: dict[str, Run], call: Any) -> None:
    opened = trained["batch_norm"]
    words = ["analyze", "sweep", str(opened.path), "--images", "100", "--test-images", "80"]
    code, text, note = call(*words)
    lines = text.splitlines()
    assert code == 0, note
    assert lines[0].split() == ["on", "right", "%", "ranked", "%", "as", "circuit", "%"]
    heads = [line for line in lines if line.split(":")[0] in NORMS]
    assert [line.split(":")[0] for line in heads] == list(NORMS)
    sweep = WeightSweep.from_dict(opened.read_json("sweep.json")["sweeps"][0])
    assert lines[2].split() == [
        "0",
        *(f"{100 * s[0.0]:.1f}" for s in (sweep.accuracy, sweep.preactivation, sweep.agreement)),
    ]
    assert sweep.images == 80 and len(sweep.points) == 44
    assert "32 more values are in sweep.json (-v shows them)" in " ".join(text.split())
    assert "With the statistics of each test batch, accuracy" in " ".join(text.split())
    assert lines[-1].startswith(f"done  {opened.file('sweep.json')}  80 test images, 44 weight values, 3 norm modes")
    assert "next:   bitwright report" in note
    code, text, _ = call(*words, "-v", "--norm", "batch,running")
    assert code == 0 and len([line for line in text.splitlines() if re.fullmatch(r"[ \d.]+", line)]) == 88
    assert all(len(line) <= 100 for line in lines[:-1])  # the last one holds a path


def test_without_norms_one_mode_is_all(trained: dict[str, Run], call: Any) -> None:
    opened = trained["hard_invert"]
    code, text, _ = call("analyze", "sweep", str(opened.path), "--quiet")
    assert code == 0 and text.startswith("done") and "1 norm mode" in text
    code, text, _ = call("analyze", "sweep", str(opened.path))
    joined = " ".join(text.split())
    assert "No batch norm: all norm modes are one" in joined and "the smallest wins" in joined
    assert "Without batch norms, accuracy" in joined and "the net is a circuit" in joined
    assert [s["norm"] for s in opened.read_json("sweep.json")["sweeps"]] == ["running"]


@pytest.mark.parametrize("norm", ["batch_norm", "hard_invert"])
def test_connections(trained: dict[str, Run], call: Any, norm: str) -> None:
    opened = trained[norm]
    found = connections(opened.model())
    code, text, note = call("analyze", "connections", str(opened.path))
    assert code == 0 and "bitwright analyze sweep" in note
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["layer", "fc1", "fc2", "fcx", "total"], "never the norms"
    assert lines[4].split()[1:3] == [f"{found.weights:,}", f"{found.on:,}"]
    assert lines[-1].startswith(f"done  {found.on:,} of {found.weights:,} weights on")
    assert f"{found.live} of {found.units} units live" in lines[-1]
    code, text, _ = call("analyze", "connections", str(opened.path), "--json")
    assert json.loads(text)["analyze"]["rows"] == found.to_dict()["rows"]


def test_a_layer_without_a_connection_is_said(trained: dict[str, Run], tmp_path: Path, call: Any) -> None:
    shutil.copytree(trained["batch_norm"].path, tmp_path / "off")
    opened = Run(tmp_path / "off")
    net: Any = opened.model()
    net.fc2.weight.data.zero_()
    bw.save(net, opened.file("model.safetensors"))
    code, text, note = call("analyze", "connections", str(opened.path))
    assert code == 0 and "all weights of fc2 are off: everything behind it, norms too, is constant" in note
    assert "0 of 64 inputs have a path to an output" in text


def test_one_line_for_each_mistake(trained: dict[str, Run], tmp_path: Path, call: Any) -> None:
    path, sweep = str(trained["batch_norm"].path), "sweep"
    for words, said in (
        ((sweep, path, "--on", "0:4"), "--on '0:4'; possible: numbers and ranges"),
        ((sweep, path, "--on", "0:4:0"), "--on '0:4:0'; possible"),
        ((sweep, path, "--on", "4:0:0.1"), "--on '4:0:0.1'; possible"),
        ((sweep, path, "--on", "x"), "--on 'x'; possible"),
        ((sweep, path, "--on", "inf"), "not a finite number"),
        ((sweep, path, "--norm", "runing"), "--norm 'runing'. Nearest: running. Possible: all, running"),
        ((sweep, path, "--delta", "3"), "analyze sweep: No such option: --delta"),
        (("pca", path, "--on", "1"), "analyze pca: No such option: --on"),
        (("connections", path, "--norm", "all"), "analyze connections: No such option: --norm"),
        ((path,), "Possible: pca, sweep, connections"),
        ((sweep, path, "--norm", "batch", "--batch", "89", "--on", "1"), "two images in every batch"),
        ((sweep, str(tmp_path / "none")), "no such folder"),
    ):
        code, _, note = call("analyze", *words)
        assert code == 2 and said in note and note.count("\n") == 1, (words, note)


def test_other_nets_are_refused(tmp_path: Path, call: Any) -> None:
    bw.train(experiment(stage=[{"epochs": 1}]), tmp_path / "float")
    for look in ("sweep", "connections"):
        code, _, note = call("analyze", look, str(tmp_path / "float"))
        assert code == 2 and 'no layer with 0/1 weights; give its layers w = "zero_one"' in note
