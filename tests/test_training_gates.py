"""Gated nets through `train` and `eval`: what is counted, what is written, and that neither processes nor batches matter."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import bitwright as bw
from bitwright.cli.run import run as command
from bitwright.errors import InputError
from bitwright.experiment import to_toml
from bitwright.runs import Run
from bitwright.runs.build import dataset
from bitwright.runs.cells import TABLES
from bitwright.training import Stopped, train
from bitwright.training.evaluate import Evaluation, evaluate
from gated import GATES, experiment
from processes import Child, finished
from stepping import stop_at

pytestmark = pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning")
TIMES = {"data_ms", "step_ms", "images_per_s", "seconds"}


def rows(run: Path, name: str) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Run(run).read_csv(name)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run with all three gates, and the lines it printed."""
    folder, lines = tmp_path_factory.mktemp("gated"), []
    train(experiment(folder), folder / "a", echo=lines.append)
    return folder / "a", lines


def work_of(run: Path, batch: int = 500) -> Evaluation:
    opened = Run(run)
    test = dataset(opened.experiment, "test")
    return evaluate(opened.model(), test, batch=batch, count=True)


# -- the files ------------------------------------------------------------------------------------------------------------
def test_metrics_and_compute_say_what_count_macs_says(trained: tuple[Path, list[str]]) -> None:
    run = trained[0]
    net, test = Run(run).model(), dataset(Run(run).experiment, "test")
    with torch.no_grad(), bw.count_macs(net) as count:
        for x, _ in test.batches(90):
            net(x)
    n = len(test)
    compute = rows(run, "compute.csv")
    assert [int(r["macs"]) for r in compute] == count.per_sample.tolist()
    assert [int(r["bops"]) for r in compute] == count.per_sample_bops.tolist()
    assert [int(r["true"]) for r in compute] == test.labels.tolist()
    assert [r["said"] for r in compute] == [r["said"] for r in rows(run, "predictions.csv")]
    first, *later = rows(run, "metrics.csv")
    assert (first["macs"], first["dense_bops"]) == ("", ""), "a stage without gates counts nothing"
    last = later[-1]
    for key, value in (("macs", count.total), ("dense_macs", count.dense), ("bops", count.bops)):
        assert float(last[key]) == value / n, key
    assert float(last["macs"]) < float(last["dense_macs"])


def test_gates_csv_has_a_row_per_epoch_and_gate(trained: tuple[Path, list[str]]) -> None:
    run = trained[0]
    table = rows(run, "gates.csv")
    assert [(r["stage"], r["epoch"], r["layer"]) for r in table] == [("1", e, n) for e in "01" for n in GATES]
    rates = work_of(run).work
    gates: dict[str, Any] = dict(Run(run).model().named_modules())
    assert rates is not None
    last = {r["layer"]: r for r in table[-3:]}
    for name, rate in rates.rates.items():
        assert float(last[name]["rate"]) == rate
    t: Any = gates["6"].gate.threshold.detach()
    assert float(last["6"]["threshold_mean"]) == pytest.approx(float(t.mean()))
    assert [float(last["6"][k]) for k in ("threshold_min", "threshold_max", "target")] == pytest.approx(
        [float(t.min()), float(t.max()), 0.5]
    )
    assert last["3"]["keep"] == "0.5" and last["3"]["threshold_mean"] == "" and float(last["3"]["rate"]) <= 0.5
    assert last["6"]["keep"] == last["6"]["saliency"] == "", "only fbs has them"
    test = dataset(Run(run).experiment, "test")
    net: Any = Run(run).model()
    seen: list[torch.Tensor] = []
    net[3].gate.register_forward_pre_hook(lambda gate, args: seen.append(gate.saliencies(args[0].raw).double()))
    with torch.no_grad():
        for x, _ in test.batches(500):
            net(x)
    assert float(last["3"]["saliency"]) == pytest.approx(float(torch.cat(seen).mean()), rel=1e-6)


def test_every_table_has_the_columns_of_its_class(trained: tuple[Path, list[str]]) -> None:
    run = Run(trained[0])
    written = [table for table in TABLES if run.has(table.file) and table.file.endswith(".csv")]
    assert {table.file for table in written} == {path.name for path in run.path.glob("*.csv")} and len(written) == 7
    for table in written:
        head = tuple(run.read_text(table.file).partition("\n")[0].split(","))
        assert head == table.columns() or (table.open and set(table.columns()) - set(head) == {"latency_ms"}), (
            table.file
        )
        assert len(run.read(table)) == len(run.read_csv(table.file))


def test_rates_of_classes_average_to_the_rate(trained: tuple[Path, list[str]]) -> None:
    run = trained[0]
    labels = dataset(Run(run).experiment, "test").labels
    last = {r["layer"]: float(r["rate"]) for r in rows(run, "gates.csv")[-3:]}
    table = rows(run, "gate_classes.csv")
    assert len(table) == 10 * len(GATES)
    for name, rate in last.items():
        mean = sum(float(r["rate"]) * int((labels == int(r["class"])).sum()) for r in table if r["layer"] == name)
        assert mean / len(labels) == pytest.approx(rate, rel=1e-12), name


def test_pictures_are_of_the_cheapest_and_the_costliest(trained: tuple[Path, list[str]]) -> None:
    run = trained[0]
    kept = load_file(run / "compute.safetensors")
    macs = torch.tensor([int(r["macs"]) for r in rows(run, "compute.csv")])
    index, few = kept["index"], len(kept["index"]) // 2
    assert few == 8 and torch.equal(kept["images"], dataset(Run(run).experiment, "test").pictures(index))
    assert macs[index[:few]].tolist() == macs.sort().values[:few].tolist()
    assert macs[index[few:]].tolist() == macs.sort(descending=True).values[:few].tolist()


def test_the_epochs_line_says_the_reduction(trained: tuple[Path, list[str]]) -> None:
    run, lines = trained
    last = rows(run, "metrics.csv")[-1]
    share, bops = (float(last[k]) / float(last[f"dense_{k}"]) for k in ("macs", "bops"))
    texts = [line for line in lines if line.startswith("stage")]
    assert "MACs" not in texts[0]
    assert texts[-1].endswith(f"MACs {share:.2f}x, {1 / share:.2f}x fewer; BOPs {bops:.2f}x, {1 / bops:.2f}x fewer")


def test_a_net_without_gates_writes_nothing_of_gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitwright.training import work

    monkeypatch.setattr(work, "Ledger", None)  # nothing may be watched
    lines: list[str] = []
    result = train(experiment(tmp_path, {}, stage=[{"epochs": 1}]), tmp_path / "a", echo=lines.append)
    assert result.work is None and not any("MACs" in line for line in lines)
    assert not [p for p in (tmp_path / "a").iterdir() if p.stem in ("gates", "compute", "gate_classes")]
    assert rows(tmp_path / "a", "metrics.csv")[0]["macs"] == ""


# -- eval -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [30, 64])
def test_neither_counts_nor_answers_depend_on_the_batch(trained: tuple[Path, list[str]], batch: int) -> None:
    whole, parts = work_of(trained[0]), work_of(trained[0], batch)
    assert whole.work is not None and parts.work is not None
    assert torch.equal(whole.said, parts.said)
    for key in ("per_macs", "per_bops", "fired"):
        assert torch.equal(getattr(whole.work, key), getattr(parts.work, key)), key
    same = {"saliency": {}}
    drop = {key: torch.zeros(0) for key in ("per_macs", "per_bops", "fired")}
    assert replace(whole.work, **drop, **same).to_dict() == replace(parts.work, **drop, **same).to_dict()


@pytest.mark.few("40", "64")
@pytest.mark.parametrize("batch", [1, 40, 64])
def test_a_counted_pass_always_has_the_same_number_of_images(trained: tuple[Path, list[str]], batch: int) -> None:
    """Another number makes torch sum in another order: one last bit turns a decision."""
    run = Run(trained[0])
    net, test = run.model(), dataset(run.experiment, "test").limit(41)
    seen: list[int] = []
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    found = evaluate(net, test, batch=batch, count=True)
    assert set(seen) == {32} and found.work is not None and found.work.images == len(found.said) == 41
    whole = work_of(trained[0]).work
    assert whole is not None and torch.equal(found.work.per_macs, whole.per_macs[:41])


def test_gates_that_read_their_batch_get_it(tmp_path: Path) -> None:
    e = experiment(tmp_path, {"6": {"part": "precision_gate", "scale": "batch_max"}}, data={"limit": 64})
    train(e, tmp_path / "a")
    net, seen = Run(tmp_path / "a").model(), list[int]()
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    evaluate(net, dataset(e, "test").limit(100), batch=60, count=True)
    assert seen == [60, 40]


@pytest.mark.slow
def test_eval_prints_and_gives_the_work(trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    run = trained[0]
    assert command(["eval", str(run), "--json"]) == 0
    (net,) = json.loads(capsys.readouterr().out)["eval"]["nets"]
    macs = sorted(int(r["macs"]) for r in rows(run, "compute.csv"))
    assert net["work"]["macs"] == sum(macs) / len(macs) and net["work"]["total_macs"] == sum(macs)
    assert net["work"]["macs_spread"]["p50"] == macs[round(0.5 * (len(macs) - 1))]
    assert net["work"]["reduction"] == pytest.approx(net["work"]["dense_macs"] / net["work"]["macs"])
    assert command(["eval", str(run)]) == 0
    text = capsys.readouterr().out
    assert "MACs per image p5" in text and f"{net['work']['reduction']:.2f}x fewer" in text
    assert f"{net['work']['comparisons']:,.0f} comparisons besides" in text
    assert f"mean input bits {net['work']['gated_bits']:.2f} in layers gated by precision" in text
    assert f"as the public codes print it: {net['work']['unweighted_sparsity'] * 100:.1f} %" in text


def test_work_says_what_the_count_is_made_of(trained: tuple[Path, list[str]]) -> None:
    run = trained[0]
    net, test = Run(run).model(), dataset(Run(run).experiment, "test")
    with torch.no_grad(), bw.count_macs(net) as count:
        for x, _ in test.batches(90):
            net(x)
    n, written = len(test), Run(run).read_json("work.json")
    found = work_of(run).work
    assert found is not None and written == {"images": n, **json.loads(json.dumps(found.to_dict()))}
    assert count.overhead > 0 and count.comparisons > 0 and count.quadratic <= count.total
    for key, value in (
        ("overhead_macs", count.overhead / n), ("comparisons", count.comparisons / n),
        ("quadratic_macs", count.quadratic / n), ("quadratic_reduction", count.dense / count.quadratic),
        ("unweighted_sparsity", count.unweighted_sparsity), ("net_bits", count.net_bits),
        ("mean_bits", {"9": count.mean_bits["9"]}), ("gated_bits", count.mean_bits["9"]),
    ):  # fmt: skip
        assert written[key] == pytest.approx(value), key
    assert written["gated_bits"] == pytest.approx(2 + 2 * count.rates["9"], abs=0.2), "but for channels that are off"
    last = {r["layer"]: r["mean_bits"] for r in rows(run, "gates.csv")[-3:]}
    assert float(last["9"]) == written["gated_bits"] and last["3"] == last["6"] == ""


def test_lines_of_the_papers_stand_only_where_they_say_something(trained: tuple[Path, list[str]]) -> None:
    from bitwright.training.work_words import detail_lines

    work = work_of(trained[0]).work
    assert work is not None
    plain = replace(work, quadratic=work.macs, gated_bits=None)
    assert [line.split()[0] for line in detail_lines(plain)] == ["predictors", "unweighted"]
    other = replace(work, quadratic=work.dense_macs // 4)
    assert "4.00x fewer; an upper bound" in detail_lines(other)[1] and len(detail_lines(other)) == 4


@pytest.mark.parametrize("stages", [1, 2])
def test_a_budget_out_of_reach_leaves_no_run_in_the_way_unless_something_was_learned(
    tmp_path: Path, stages: int
) -> None:
    e = experiment(tmp_path, {n: g for n, g in GATES.items() if n != "3"})
    gated = {**e.stage[1].model_dump(exclude_none=True), "budget": {"macs": 0.001}}
    float_stage = [s.model_dump(exclude_none=True) for s in e.stage[: stages - 1]]
    e = type(e).model_validate({**e.model_dump(exclude_none=True), "stage": [*float_stage, gated]})
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="Possible"):
        train(e, tmp_path / "run")
    assert (tmp_path / "run" / "last.ckpt").exists() == (stages == 2)
    assert (tmp_path / "run").exists() == (stages == 2)


# -- resume ---------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.few("16-budget2")
@pytest.mark.parametrize(("step", "budget"), [(9, None), (14, None), (16, {"macs": 0.95})])
def test_resume_is_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: tuple[Path, list[str]], step: int, budget: Any
) -> None:
    """Inside the gated stage and with its evaluation due; the third moves the thresholds by a budget."""
    gates = {n: g for n, g in GATES.items() if n != "3"} if budget else None
    e = experiment(tmp_path, gates)
    if budget:
        e = type(e).model_validate({**e.model_dump(exclude_none=True)} | {"stage": [
            *[s.model_dump(exclude_none=True) for s in e.stage[:1]],
            {**e.stage[1].model_dump(exclude_none=True), "budget": budget},
        ]})  # fmt: skip
        train(e, tmp_path / "a")
    whole = tmp_path / "a" if budget else trained[0]
    stop_at(monkeypatch, step)
    with pytest.raises(Stopped):
        train(e, tmp_path / "b")
    monkeypatch.undo()
    train(e, tmp_path / "b", resume=True)
    x, y = (load_file(run / "model.safetensors") for run in (whole, tmp_path / "b"))
    assert x.keys() == y.keys() and any("threshold" in key for key in x)
    assert all(torch.equal(x[key], y[key]) for key in x)
    for name in ("metrics.csv", "gates.csv", "compute.csv", "gate_classes.csv"):
        assert rows(whole, name) == rows(tmp_path / "b", name), name


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, {"macs": 0.95}])
def test_two_processes_count_what_one_counts(tmp_path: Path, budget: Any) -> None:
    """All gates in one net, 361 test images (so the halves differ); killed and resumed too."""
    gates = {n: g for n, g in GATES.items() if n != "3"} if budget else None
    e = experiment(tmp_path, gates, train={"device": "cpu", "threads": 1, "devices": 2, "checkpoint_every": 3})
    text = to_toml(e)
    if budget:
        text = text.replace("epochs = 2\n", "epochs = 2\nbudget = { macs = 0.95 }\n")
    (tmp_path / "toy.toml").write_text(text)

    def words(out: str, *more: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "bitwright",
            "train",
            str(tmp_path / "toy.toml"),
            "--out",
            str(tmp_path / out),
            *more,
        ]

    finished(words("a"))
    shared = rows(tmp_path / "a", "metrics.csv")[-1]
    one = work_of(tmp_path / "a", 130)
    assert one.work is not None
    n = one.images
    for key in ("macs", "dense_macs", "bops", "dense_bops"):
        assert float(shared[key]) == getattr(one.work, key) / n, key
    assert float(shared["test_top1"]) == one.top1
    assert {r["layer"]: float(r["rate"]) for r in rows(tmp_path / "a", "gates.csv")[-len(one.work.rates) :]} == (
        one.work.rates
    )
    assert sum(int(r["macs"]) for r in rows(tmp_path / "a", "compute.csv")) == one.work.macs
    child = Child(words("b"))
    child.until("stage 1  epoch   0")
    child.signal(signal.SIGINT)
    code, said = child.finish()
    assert code == 130, said
    finished(words("b", "--resume"))
    x, y = (load_file(tmp_path / run / "model.safetensors") for run in "ab")
    assert all(torch.equal(x[key], y[key]) for key in x)
    assert rows(tmp_path / "a", "gates.csv") == rows(tmp_path / "b", "gates.csv")


# -- lessons --------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    ("gate", "text"),
    [
        ({"part": "channel_gate", "init": 50.0, "weight": 0.0}, r"6: the gate channel_gate never fires .*try: a lower target"),
        ({"part": "channel_gate", "init": -50.0, "weight": 0.0}, r"6: the gate channel_gate always fires .*a higher target"),
        ({"part": "fbs", "keep": 1.0}, ""),
        ({"part": "channel_gate"}, ""),
    ],
)  # fmt: skip
def test_a_gate_that_decides_nothing_is_told_once(tmp_path: Path, gate: dict[str, Any], text: str) -> None:
    import re

    e = experiment(tmp_path, {"6": gate}, data={"limit": 128})
    told = [t for t in train(e, tmp_path / "a").warnings if "fires" in t]
    assert len(told) == bool(text) and (not text or re.search(text, told[0]))


def test_gates_of_one_kind_are_one_lesson() -> None:
    from bitwright.training.lessons import lessons
    from bitwright.training.state import State

    row = {"epoch": 0, "data_ms": None, "step_ms": None, "test_top1": 0.9}
    gate = {"stage": 0, "epoch": 0, "gate": "fbs", "rate": 0.0, "keep": 0.5, "target": None}
    gates = [gate | {"layer": name} for name in "abc"]
    state = State(tables={"metrics.csv": [row], "gates.csv": gates})
    e = experiment_of_one_stage()
    (told,) = lessons(e, state, lambda name: False, 10, 1000)
    assert told.startswith("a and 2 more: the gate fbs never fires") and "l1 = 0" in told
    state.tables = {"metrics.csv": [row | {"epoch": 1}], "gates.csv": [g | {"epoch": 1} for g in gates]}
    assert lessons(e, state, lambda name: False, 10, 1000) == [], "once per layer and stage"


def experiment_of_one_stage() -> Any:
    from bitwright.experiment import parse

    return parse('[data]\nname = "digits"\n[model]\nname = "mlp"\n[[stage]]\nepochs = 20\n')
