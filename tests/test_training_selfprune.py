"""Nets of 0/1 weights in training: connections.csv, sweep.csv, TensorBoard; a resumed run neither doubles nor loses rows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bitwright.analysis.analyze import connections, weight_sweep
from bitwright.experiment import Experiment, to_toml
from bitwright.experiment import parse as parse_experiment
from bitwright.runs import Run, example_of
from bitwright.runs.build import dataset
from bitwright.training import Stopped, train
from selfprune import experiment
from stepping import stop_at

pytestmark = pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning")
LOG = {"sweep_every": 2, "sweep_norms": ["running", "recalibrate", "batch"], "sweep_images": 60}
LAYERS = ["fc1", "fc2", "fcx"]
TIMES = {"data_ms", "step_ms", "images_per_s", "seconds"}


def rows(run: Path, name: str) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Run(run).read_csv(name)]


def swept(**changes: Any) -> Experiment:
    return experiment(log={**LOG, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder, lines = tmp_path_factory.mktemp("selfprune"), list[str]()
    train(swept(), folder / "a", echo=lines.append)
    return folder / "a", lines


# -- the files ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_connections_have_a_row_per_epoch_and_layer(trained: tuple[Path, list[str]]) -> None:
    run = Run(trained[0])
    table = rows(run.path, "connections.csv")
    assert [(r["stage"], r["epoch"], r["layer"]) for r in table] == [("1", e, n) for e in "012" for n in LAYERS]
    test = dataset(run.experiment, "test")
    found = connections(run.model(), example_of(run.experiment, test, 2))
    for kept, row in zip(table[-3:], found.rows, strict=True):
        assert {k: float(v) for k, v in kept.items() if k not in ("stage", "epoch", "layer")} == pytest.approx(
            {k: float(v) for k, v in row.to_dict().items() if k != "layer"}
        )
    assert float(table[0]["share"]) != float(table[-3]["share"]), "training moves connections"


def test_the_epochs_line_says_the_share(trained: tuple[Path, list[str]]) -> None:
    run, lines = trained
    last = rows(run, "connections.csv")[-3:]
    share = sum(int(r["on"]) for r in last) / sum(int(r["weights"]) for r in last)
    texts = [line for line in lines if line.startswith("stage")]
    assert texts[-1].endswith(f"  on {100 * share:.2f} %") and " on " not in texts[0]


def test_sweeps_come_every_other_epoch_and_after_the_last(trained: tuple[Path, list[str]]) -> None:
    run = Run(trained[0])
    table = rows(run.path, "sweep.csv")
    assert len(table) == 2 * 3 * 44
    assert list(dict.fromkeys((r["epoch"], r["norm"]) for r in table)) == [
        (e, n) for e in ("1", "2") for n in LOG["sweep_norms"]
    ]
    assert [r["on"] for r in table[:44]] == [*(f"{i / 10:.1f}" for i in range(41)), "5.0", "10.0", "100.0"]
    test, images = (dataset(run.experiment, split).limit(60) for split in ("test", "train"))
    for i, norm in enumerate(LOG["sweep_norms"]):
        data = (d.batches(40, normalize=False) for d in (test, images))
        sweep = weight_sweep(run.model(), next(data), "large", norm, next(data))
        kept = table[3 * 44 + i * 44 :][:44]
        for key in ("accuracy", "preactivation", "agreement"):
            assert [float(r[key]) for r in kept] == list(getattr(sweep, key).values()), (norm, key)
        assert {r["images"] for r in kept} == {"60"} and {r["ranking"] for r in kept} == {sweep.ranking}
        assert {r["digital"] for r in kept} == {str(sweep.digital)} and {r["trained_on"] for r in kept} == {"1.0"}


def test_a_sweep_changes_nothing_of_the_training(trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    train(experiment(), tmp_path / "plain")
    a, b = (load_file(p / "model.safetensors") for p in (trained[0], tmp_path / "plain"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert rows(trained[0], "metrics.csv") == rows(tmp_path / "plain", "metrics.csv")
    assert not (tmp_path / "plain" / "sweep.csv").exists() and (tmp_path / "plain" / "connections.csv").exists()


def test_other_nets_have_neither_file(tmp_path: Path) -> None:
    train(swept_float(), tmp_path / "a")
    assert not [p.name for p in (tmp_path / "a").iterdir() if p.name in ("connections.csv", "sweep.csv")]


def swept_float() -> Experiment:
    return experiment(log=LOG, stage=[{"epochs": 1}])


# -- what the published loop gets wrong ----------------------------------------------------------------------------------
@pytest.mark.parametrize("images", [40, 70, 110], ids=["one batch", "two", "three"])
def test_means_of_an_epoch_are_of_its_images(tmp_path: Path, images: int) -> None:
    """Not of its batches, and not of one batch less. A rate of next to nothing keeps the net still."""
    still = {"name": "sgd", "lr": 1e-30}
    stage = [{"epochs": 1, "optimizer": still, "rule": [{"match": "*", "w": "zero_one"}]}]
    e = experiment("hard_invert", data={"limit": images}, stage=stage)
    train(e, tmp_path / "a")
    (row,) = rows(tmp_path / "a", "metrics.csv")
    x, y = next(iter(dataset(e, "train").batches(images, normalize=False)))
    with torch.no_grad():
        out = Run(tmp_path / "a").model()(x)
    assert float(row["top1"]) == pytest.approx(int((out.argmax(1) == y).sum()) / images)
    assert float(row["loss"]) == pytest.approx(float(torch.nn.functional.cross_entropy(out, y)), rel=1e-5)


def test_evaluation_depends_on_no_batch_and_leaves_nothing_in_the_norms(tmp_path: Path) -> None:
    for name, size in (("a", 90), ("b", 7)):
        train(experiment(epochs=2, data={"eval_batch": size}), tmp_path / name)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert any(key.endswith("running_var") for key in a) and all(torch.equal(a[k], b[k]) for k in a)
    for key in ("test_top1", "test_top5"):
        assert [r[key] for r in rows(tmp_path / "a", "metrics.csv")] == [
            r[key] for r in rows(tmp_path / "b", "metrics.csv")
        ]


# -- resume ---------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.few("18")
@pytest.mark.parametrize("step", [9, 15, 18])
def test_a_resumed_run_has_the_same_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: tuple[Path, list[str]], step: int
) -> None:
    """Before the first sweep, between both, and with an evaluation and a sweep due."""
    stop_at(monkeypatch, step)
    with pytest.raises(Stopped):
        train(swept(), tmp_path / "b")
    monkeypatch.undo()
    done = len(rows(tmp_path / "b", "connections.csv")) if (tmp_path / "b" / "connections.csv").exists() else 0
    assert done < 9
    train(swept(), tmp_path / "b", resume=True)
    for name in ("connections.csv", "sweep.csv", "metrics.csv"):
        assert rows(tmp_path / "b", name) == rows(trained[0], name), name


@pytest.mark.slow
def test_a_sweep_can_be_stopped_and_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: tuple[Path, list[str]]
) -> None:
    from bitwright.training.watch.sweep import SweepWatcher
    from bitwright.training.watch.watcher import Ended

    asked = SweepWatcher.rows

    def stopping(self: SweepWatcher, ended: Ended) -> Any:
        if ended.at == {"stage": 1, "epoch": 1}:
            ended.job.signals.wanted = "^C"
        return asked(self, ended)

    monkeypatch.setattr(SweepWatcher, "rows", stopping)
    with pytest.raises(Stopped):
        train(swept(), tmp_path / "b")
    monkeypatch.undo()
    assert len(rows(tmp_path / "b", "connections.csv")) == 3 and not (tmp_path / "b" / "sweep.csv").exists()
    train(swept(), tmp_path / "b", resume=True)
    for name in ("connections.csv", "sweep.csv", "metrics.csv"):
        assert rows(tmp_path / "b", name) == rows(trained[0], name), name


def test_rows_later_than_the_checkpoint_go(tmp_path: Path, trained: tuple[Path, list[str]]) -> None:
    """A process that died after writing the tables and before the checkpoint: no row may come twice."""
    run = tmp_path / "b"
    shutil.copytree(trained[0], run)
    opened = Run(run)
    opened.write_csv("sweep.csv", [*opened.read_csv("sweep.csv"), {"stage": 9, "norm": "running"}])
    train(swept(), run, resume=True)
    assert rows(run, "sweep.csv") == rows(trained[0], "sweep.csv")


@pytest.mark.slow
def test_sweeps_may_be_switched_on_while_resuming(tmp_path: Path) -> None:
    train(experiment(epochs=1), tmp_path / "a")
    more = experiment(epochs=2, log=LOG)
    train(more, tmp_path / "a", resume=True)
    table = rows(tmp_path / "a", "sweep.csv")
    assert {r["epoch"] for r in table} == {"1"} and len(rows(tmp_path / "a", "connections.csv")) == 6


# -- keys and TensorBoard ---------------------------------------------------------------------------------------------------
def test_keys() -> None:
    again = parse_experiment(to_toml(swept()))
    assert (again.log.sweep_every, again.log.sweep_norms, again.log.sweep_images) == (2, LOG["sweep_norms"], 60)
    plain = experiment()
    assert (plain.log.sweep_every, plain.log.sweep_norms, plain.log.sweep_images) == (0, ["running"], 1000)
    for wrong in ({"sweep_norms": ["eval"]}, {"sweep_norms": []}, {"sweep_images": 0}, {"sweep_every": -1}):
        with pytest.raises(ValueError):
            experiment(log=wrong)


def test_tensorboard_has_histograms_every_n_steps_and_each_epoch(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = {"tensorboard": True, "histograms_every": 4, "sweep_every": 1, "sweep_images": 40}
    train(experiment(epochs=1, log=log), tmp_path / "a")
    events = EventAccumulator(str(tmp_path / "a" / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    kinds = {f"{kind}/{name}" for kind in ("weights", "activations") for name in LAYERS}
    assert kinds <= set(tags["histograms"])
    for tag in kinds:  # six steps an epoch: the first, every fourth and the last of each
        assert [e.step for e in events.Histograms(tag)] == [1, 5, 6, 7, 11, 12], tag
    shares = {f"{kind}/{name}" for kind in ("on_share", "live_units") for name in LAYERS}
    assert shares | {"sweep_running_accuracy/0.3", "sweep_running_agreement/100.0"} <= set(tags["scalars"])
    point = events.Scalars("sweep_running_accuracy/0.3")[-1]
    assert point.value == pytest.approx(float(rows(tmp_path / "a", "sweep.csv")[3]["accuracy"]))
