"""The Connections section: its numbers are those of the files, it says what only looks invariant, other runs have none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.analysis.sweep_result import SweepPoint, WeightSweep
from bitwright.analysis.sweep_words import findings, spread
from bitwright.errors import InputError
from bitwright.reporting.load import load_run
from bitwright.reporting.sections.connections import _places, against_share, sweep_chart
from bitwright.reporting.sections.weights import histograms
from bitwright.runs.folder import Run
from bitwright.training import train
from reporting_example import HOSTILE, example_run, layer_names, selfprune_files
from selfprune import experiment
from test_reporting import page_of


@pytest.fixture
def pruned(tmp_path: Path) -> Run:
    run = example_run(tmp_path / "pruned", 8)
    selfprune_files(run, 5)
    return run


def section(run: Run) -> str:
    text = page_of(run).text
    return text.split('<section id="connections">')[1].split("</section>")[0]


def test_other_runs_have_no_section(tmp_path: Path) -> None:
    found = page_of(example_run(tmp_path / "a", 8))
    assert "connections" not in found.by_id and 'href="#connections"' not in found.text
    assert json.loads(found.by_id["data"])["selfprune"] is None


def test_shares_and_units_are_those_of_the_file(pruned: Run) -> None:
    found = page_of(pruned)
    last = [r for r in pruned.read_csv("connections.csv") if r["epoch"] == "13"]
    text = found.by_id["connections"]
    on, live = (sum(int(r[key]) for r in last) for key in ("on", "live"))
    assert f"{on:,} of {5 * 4096:,} weights are on ({100 * on / (5 * 4096):.2f} %), {live} of 320 units live" in text
    for r in last:
        assert f"{int(r['on']):,} of 4,096" in text and f"{100 * int(r['on']) / 4096:.2f}" in text
        assert f"{r['live']} of 64" in text
    data = json.loads(found.by_id["data"])["selfprune"]
    at = data["columns"].index("on")
    assert [row[at] for row in data["rows"]][-5:] == [int(r["on"]) for r in last] and data["epochs"] == "all"


def test_the_sweep_and_its_words_are_those_of_the_file(pruned: Run) -> None:
    kept = [WeightSweep.from_dict(s | {"rows": s["rows"]}) for s in pruned.read_json("sweep.json")["sweeps"]]
    found = load_run(pruned.path)["selfprune"]
    assert found is not None and list(found.sweeps) == kept and found.batch == 50 and found.analyzed
    page = page_of(pruned)
    text, joined = section(pruned), page.by_id["connections"]
    for sentence in findings(kept):
        assert sentence in joined, sentence
    assert "100 test images" in joined and "(50 images)" in joined
    tips = re.findall(r'aria-label="(running|batch, ranked)\nweights ([\d.]+): ([\d.]+) %"', text)
    assert ("running", "1", "40.0") in tips and ("batch, ranked", "100", "95.0") in tips
    names = {
        line for line in re.findall(r"</svg>([a-z, ]+)</span>", text) if line.split(",")[0] in ("running", "batch")
    }
    assert names == {"running", "running, ranked", "batch", "batch, ranked"}
    data = json.loads(page.by_id["data"])["selfprune"]["sweeps"]
    assert [s["norm"] for s in data] == ["running", "recalibrate", "batch"] and len(data[0]["rows"]) == 44
    assert "analyze sweep" in page.by_id["again"]


def test_accuracy_stands_against_the_share_of_its_epoch(pruned: Run) -> None:
    run = load_run(pruned.path)
    chart = against_share(run, run["selfprune"])
    assert chart is not None and len(chart.points) == 14
    metrics = [r for r in pruned.read_csv("metrics.csv") if r["stage"] == "1"]
    for point, row in zip(chart.points, metrics, strict=True):
        on = sum(int(r["on"]) for r in pruned.read_csv("connections.csv") if r["epoch"] == row["epoch"])
        assert point.x == pytest.approx(100 * on / (5 * 4096)) and point.accuracy == float(row["test_top1"])
    assert [p.main for p in chart.points] == [False] * 13 + [True]


@pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning")
def test_a_training_without_analysis_shows_its_last_sweep(tmp_path: Path) -> None:
    log = {"sweep_every": 1, "sweep_images": 40, "sweep_norms": ["batch", "running"]}
    train(experiment(epochs=2, log=log), tmp_path / "a")
    run = Run(tmp_path / "a")
    found = load_run(run.path)["selfprune"]
    assert found is not None and [s.norm for s in found.sweeps] == ["batch", "running"] and not found.analyzed
    last = [r for r in run.read_csv("sweep.csv") if r["epoch"] == "1" and r["norm"] == "running"]
    for key in ("accuracy", "preactivation", "agreement"):
        assert list(getattr(found.sweeps[1], key).values()) == [float(r[key]) for r in last]
    assert found.sweeps[1].norms == 3 and found.sweeps[1].output == "fcx" and found.sweeps[1].digital is not None
    text = page_of(run).by_id["connections"]
    assert "after the last epoch" in text and findings(found.sweeps)[0] in text


def test_without_a_sweep_one_command_is_left(pruned: Run) -> None:
    pruned.file("sweep.json").unlink()
    text = page_of(pruned).by_id["connections"]
    assert "Accuracy over the weight value was not measured." in text and "analyze sweep" in text
    assert "Same class as the circuit" not in text


def test_a_sweep_alone_is_enough(pruned: Run) -> None:
    pruned.file("connections.csv").unlink()
    text = section(pruned)
    assert "units live" not in text and "Same class as the circuit" in text


@pytest.mark.parametrize("layers", [1, 60])
def test_hostile_names_and_many_layers(tmp_path: Path, layers: int) -> None:
    run = example_run(tmp_path / "a", max(8, layers))
    selfprune_files(run, layers)
    found = page_of(run)
    assert len(found.text.encode()) < 500_000
    assert all(name in found.by_id["connections"] for name in layer_names(layers)) and HOSTILE not in found.text


# ---- words ------------------------------------------------------------------------------------------------------------------
def sweep(norm: str, right: dict[float, int], **facts: Any) -> WeightSweep:
    ranked = facts.get("ranked", {})
    points = tuple(SweepPoint(v, n, ranked.get(v, n), 50, 90 if v in ranked else 0) for v, n in right.items())
    rest = {"trained_on": 1.0, "output": "fc", "ranking": "smallest", "digital": 1.0, "norms": 1}
    return WeightSweep(norm, 100, points, **{**rest, **{k: v for k, v in facts.items() if k != "ranked"}})


def test_what_only_looks_invariant_is_said() -> None:
    """The measured behavior of nets with batch norms: flat with batch statistics alone."""
    running = sweep("running", {0.5: 60, 1: 88, 2: 66, 4: 58})
    flat = sweep("batch", {0.5: 88, 1: 89, 2: 88, 4: 88})
    text = " ".join(findings([running, flat]))
    assert "With the statistics of training, accuracy depends on the weight value: 58.0 to 88.0 %" in text
    assert "With the statistics of each test batch, accuracy hardly depends on the weight value: 88.0 to 89.0 %" in text
    assert "looks flatter than the net is" in text
    assert "looks flatter" not in " ".join(findings([running, sweep("batch", running_counts())]))
    assert spread(sweep("running", {0.0: 1, 1.0: 5})) is None and findings([]) == []


def test_a_net_that_guesses_is_not_called_invariant() -> None:
    guesses, learned = {0.0: 10, 1: 11, 4: 10}, {0.0: 10, 1: 90, 4: 89}
    text = " ".join(findings([sweep("running", guesses)]))
    assert (
        "10.0 to 11.0 % over 0.5 to 4, no more than the 10.0 % of a net whose weights are all off: it guesses" in text
    )
    assert "depends on the weight value" not in text
    assert "hardly depends on the weight value" in " ".join(findings([sweep("running", learned)]))
    assert "it guesses" not in " ".join(findings([sweep("running", {1: 11, 4: 10})]))  # not known without a value at 0


def running_counts() -> dict[float, int]:
    return {0.5: 60, 1: 88, 2: 66, 4: 59}


def test_ties_and_circuits_are_said() -> None:
    tied = sweep("running", {1: 90, 4: 88, 10: 40, 100: 41}, ranked={10: 83}, norms=0)
    text = " ".join(findings([tied]))
    assert "Without batch norms, accuracy" in text
    assert (
        "At 10, classes share the largest output for 90.0 % of the images: 40.0 % right if the first one wins, "
        "83.0 % ranked by what fc computes (the smallest wins)." in text
    )
    assert "At 100, every hidden activation takes at most two values: the net is a circuit, right for 41.0 %" in text
    assert "50.0 % of the images get that class at the net's own value 1 too." in text
    apart = sweep("running", {1: 90, 4: 88, 100: 60}, norms=0)
    assert "share the largest output" not in " ".join(findings([apart])), "a norm per class is no tie"
    open_ = " ".join(findings([sweep("running", {1: 90, 4: 88}, digital=0.9999)]))
    assert "99.9 % of the hidden activations take two values: the net is no circuit there" in open_
    assert "circuit" not in " ".join(findings([sweep("running", {1: 90, 4: 88}, digital=None)]))


# ---- places -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("values", [[0, 1, 2, 4, 5, 10, 100], [0.5, 1], [5, 10], [1, 50], [0, 4, *range(5, 40)]])
def test_values_keep_their_order_on_the_axis(values: list[float]) -> None:
    place, ticks, cut = _places([float(v) for v in values])
    xs = [place[v] for v in values]
    assert xs == sorted(xs) and len(set(xs)) == len(xs) and min(xs) >= 44 and max(xs) <= 386
    assert all(44 <= x <= 386 for x, _ in ticks)
    assert (cut is not None) == (sum(v <= 4 for v in values) > 1 and max(values) > 4)
    one = WeightSweep("running", 10, (SweepPoint(1.0, 5, 5, 5),))
    assert sweep_chart([one], "t", ("accuracy",)) is None, "a line needs two values"


# ---- damage -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("connections.csv", (",40,", ",many,"), "connections.csv row 1: on is 'many'"),
        ("connections.csv", (",64,", ",,"), "connections.csv row 1: units is missing or negative"),
        ("sweep.json", ('"images": 100', '"images": 0'), "norm is 'running' of 0 images; possible: running"),
        ("sweep.json", ('"norm": "running"', '"norm": "own"'), "norm is 'own' of 100 images"),
        ("sweep.json", ('"right_images": 30', '"right_images": "x"'), "right_images is 'x'"),
        ("sweep.json", ('"on": 0.1', '"on": null'), "on is missing or no finite number"),
    ],
)
def test_damage_is_one_line_with_its_place(pruned: Run, name: str, change: tuple[str, str], said: str) -> None:
    text = pruned.read_text(name)
    assert change[0] in text
    pruned.write_text(name, text.replace(*change, 1))
    with pytest.raises(InputError, match=re.escape(said)):
        page_of(pruned)


def test_a_sweep_table_without_shares_is_damage(pruned: Run) -> None:
    pruned.file("sweep.json").unlink()
    row = {"stage": 1, "epoch": 0, "norm": "running", "on": 1.0, "accuracy": "", "agreement": 0.5, "images": 10}
    pruned.write_csv("sweep.csv", [row])
    with pytest.raises(InputError, match=r"sweep\.csv row 1: accuracy is missing"):
        page_of(pruned)


def test_latents_of_zero_one_weights_are_counted_from_their_threshold(tmp_path: Path) -> None:
    """Most of them lie at 0, which is as decided as can be; a signed weight there is not."""
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    chained = ["mask", {"part": "zero_one", "init": "keep", "threshold": 0.25}]
    rules = [{"match": "0", "w": {"part": "zero_one", "init": "keep"}}, {"match": "1", "w": chained}]
    bw.apply(net, [*rules, {"match": "2", "w": "bwn"}])
    with torch.no_grad():
        for layer in net:
            layer.weight.zero_()  # type: ignore[operator]
            layer.weight.view(-1)[0] = 1.0  # type: ignore[index, operator]
        net[1].weight.view(-1)[1] = 0.3  # type: ignore[index, operator]
    bw.save(net, tmp_path / "model.safetensors")
    first, second, signed = histograms(tmp_path / "model.safetensors", ["0", "1", "2"])
    assert (first.undecided, second.undecided, signed.undecided) == (0.0, 1 / 16, 7 / 8)
    assert (first.largest, second.largest) == (0.5, 0.75)


def test_weights_that_a_mask_removes_are_not_undecided(tmp_path: Path) -> None:
    net = nn.Sequential(bw.nn.Linear(4, 1, w=["mask", "bwn"]))
    layer: Any = net[0]
    layer.w.mask.mask.copy_(torch.tensor([[1, 1, 0, 0]]))
    layer.weight.data.copy_(torch.tensor([[1.0, 0.05, 0.0, 0.0]]))
    bw.save(net, tmp_path / "model.safetensors")
    (found,) = histograms(tmp_path / "model.safetensors", ["0"])
    assert (found.weights, found.undecided) == (2, 0.5)
