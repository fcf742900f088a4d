"""Run directories on the command line: convert, bench, cost, plan, in the form of the transcripts; a run made by hand."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright import experiment, models
from bitwright.cli import app, complete, convert_run, convert_text
from bitwright.engine import convert as engine_convert
from bitwright.engine.report import ConvertReport, Disagreement, ReportRow
from bitwright.runs import Run, apply_stage, build_model, dataset, example_of

EXPERIMENT = """
[data]
name = "digits"
limit_test = 64
[model]
name = "bireal_resnet20"
width = 0.25
[[stage]]
epochs = 1
[[stage]]
epochs = 2
recipe = "bireal"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run but for the training: random weights, which convert and bench do not mind."""
    torch.manual_seed(0)
    made = Run(tmp_path_factory.mktemp("runs") / "digits-bireal")
    spec = experiment.parse(EXPERIMENT)
    made.write_text("experiment.toml", experiment.to_toml(spec))
    images = dataset(spec, "test")
    net, x = build_model(spec, images), example_of(spec, images)
    (made.path / "stages").mkdir()
    bw.save(net, made.file("stages/0.safetensors"))
    for i in range(len(spec.stage)):
        apply_stage(net, spec, i, x)
    bw.save(net, made.file("model.safetensors"))
    made.write_json("state.json", {"status": "done", "test_top1": 0.1, "float_top1": 0.125})
    return made.path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of its own, with a blank in its name."""
    return Path(shutil.copytree(made, tmp_path / "my run"))


@pytest.mark.slow
def test_convert_then_bench_a_run(folder: Path, call: Any):
    code, out, err = call("convert", str(folder))
    lines = out.splitlines()
    assert code == 0, out + err
    assert re.split(r"\s{2,}", lines[0]) == [
        "layer", "runs as", "w/x", "kB float", "kB", "ms float", "ms", "max diff", "why"
    ]  # fmt: skip
    assert all(len(line) <= 100 for line in lines[:-1]) and any(
        re.fullmatch(r"\.\.\.  \d+ more bits layers \(--all\)", x) for x in lines
    )
    total = next(line for line in lines if line.startswith("whole net"))
    assert "18 bits, 4 float" in total and "x smaller" in " ".join(lines)
    assert any(line.startswith("verify  64 of 64 test images: same class") for line in lines)
    assert re.fullmatch(rf"(PASS|WARN) .*{re.escape(str(folder / 'packed.safetensors'))}  [\d.,]+ kB", lines[-1])
    assert err.splitlines()[-1].startswith(f"next:   bitwright bench '{folder}'")

    here = Run(folder)
    facts, layers, rows = here.read_json("convert.json"), here.read_csv("layers.csv"), here.read_csv("results.csv")
    assert facts["accuracy"] == facts["trained_accuracy"] == float(rows[0]["accuracy"]) and facts["images"] == 64
    assert list(layers[0]) == [
        "layer", "kind", "w", "x", "w_bits", "x_bits", "macs", "runs_as", "bytes_before", "bytes_after", "ms_before",
        "ms_after", "max_abs_diff", "why",
    ]  # fmt: skip
    assert sum(int(r["bytes_after"]) for r in layers) == facts["bytes_after"] and len(layers) == len(facts["rows"])
    coded = [r for r in layers if r["runs_as"] == "bits"]
    assert len(coded) == 18 and {(r["w"], r["x"], r["w_bits"], r["x_bits"]) for r in coded} == {
        ("bireal", "sign", "1", "1")
    }
    assert all(int(r["macs"]) > 0 for r in layers)
    assert rows[0]["net"] == "bitwright" and int(rows[0]["bytes"]) == (folder / "packed.safetensors").stat().st_size

    code, out, err = call("bench", str(folder), "--rounds", "1", "--against", "torch-fp32,torch-int8")
    assert code == 0 and "\nin one line: " in out and "\nquality: " in out, out + err
    assert out.splitlines()[1].split()[:3] == ["candidate", "precision", "ms"] or "candidate" in out
    assert err.splitlines()[-1].startswith(f"next:   bitwright report '{folder}'")
    bench, rows = here.read_json("bench.json"), {r["net"]: r for r in here.read_csv("results.csv")}
    assert set(rows) == {"bitwright", "torch-fp32", "torch-int8"}
    assert float(rows["bitwright"]["latency_ms"]) == bench["rows"][0]["latency_ms"]
    assert rows["bitwright"]["accuracy"] == str(facts["accuracy"]) and rows["bitwright"]["precision"] == "1 bit"
    assert (rows["torch-fp32"]["accuracy"], rows["torch-int8"]["accuracy"]) == ("0.125", "")
    slow = float(rows["torch-int8"]["ratio"]) < 1.5
    assert ("not faster here because: " in out) == slow == bool(bench["why"])


@pytest.mark.slow
def test_converting_again_replaces_the_runs_own_results_and_says_so(folder: Path, call: Any):
    assert call("convert", str(folder), "--quiet")[0] == 0
    call("bench", str(folder), "--rounds", "1", "--against", "torch-fp32", "--quiet")
    packed = (folder / "packed.safetensors").read_bytes()
    code, _, err = call("convert", str(folder))
    assert code == 0 and "replaces packed.safetensors, convert.json and layers.csv of this run" in err
    assert (folder / "packed.safetensors").read_bytes() == packed and (folder / "bench.json").is_file()
    assert {r["net"] for r in Run(folder).read_csv("results.csv")} == {"bitwright", "torch-fp32"}
    # another trained net: the times measured before are not its times
    net = Run(folder).model()
    with torch.no_grad():
        net.get_parameter("fc.weight").mul_(2)
    bw.save(net, folder / "model.safetensors")
    code, _, err = call("convert", str(folder))
    assert code == 0 and "are removed; measure again" in err and not (folder / "bench.json").exists()
    (row,) = Run(folder).read_csv("results.csv")
    assert row["net"] == "bitwright" and not row.get("latency_ms")


@pytest.mark.slow
def test_quiet_and_json_on_a_run(folder: Path, call: Any):
    code, out, err = call("convert", str(folder), "--quiet")
    assert code == 0 and err == "" and out.count("\n") == 1 and out.startswith(("PASS  ", "WARN  "))
    answer = json.loads(call("convert", str(folder), "--json")[1])
    assert answer["status"] in ("PASS", "WARN") and answer["report"]["same"] == 64 and answer["accuracy"] is not None
    code, out, err = call("bench", str(folder), "--rounds", "1", "--against", "torch-fp32", "--quiet")
    assert code == 0 and err == "" and out.startswith("in one line: ") and out.count("\n") == 1


def test_cost_and_plan_of_a_run(folder: Path, call: Any):
    code, out, _ = call("cost", str(folder))
    assert code == 0 and "bireal/sign" in out
    assert "bireal/sign" not in call("cost", str(folder), "xnor")[1]
    code, out, err = call("plan", str(folder))
    assert code == 0 and "\nstage 0  no recipe, 1 epoch\n" in out and "\nstage 1  bireal, 2 epochs\n" in out
    assert "18 binary, 4 float" in out and err.startswith("next:   bitwright cost ")
    stages = json.loads(call("plan", str(folder), "--json")[1])["plan"]["stages"]
    assert [s["totals"]["by_bits"].get("binary", 0) for s in stages] == [0, 18]
    assert json.loads(call("plan", str(folder), "xnor", "--json")[1])["plan"]["recipe"] == "xnor"


def test_plan_of_an_experiment_without_its_data(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BITWRIGHT_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "e.toml"
    file.write_text('[data]\nname = "cifar10"\n[model]\nname = "resnet20"\n[[stage]]\nepochs = 3\nrecipe = "xnor"\n')
    code, out, err = call("plan", str(file))
    assert code == 2 and out == "" and err.count("\n") == 1 and "--input 3,32,32" in err
    code, out, err = call("plan", str(file), "--input", "3,32,32")
    assert code == 0 and "stage 0  xnor, 3 epochs" in out and err.startswith("next:   bitwright train ")


def test_plan_diff(folder: Path, call: Any, tmp_path: Path):
    code, out, _ = call("plan", "--diff", "xnor", "bwn")
    assert code == 0 and '- w = "xnor"' in out.splitlines() and '+ w = "bwn"' in out.splitlines()
    assert call("plan", "--diff", str(folder), str(folder / "model.safetensors"))[1].endswith("equal rules\n")
    assert call("plan", "--diff", "xnor")[0] == 2 and call("plan", "--diff", "xnor", "xnorr")[0] == 2


def test_a_run_knows_its_model_and_data(folder: Path, call: Any):
    for argv in (["convert", "--model", "resnet20"], ["convert", "--data", "digits"], ["bench", "--recipe", "xnor"]):
        code, _, err = call(argv[0], str(folder), *argv[1:])
        assert code == 2 and err.count("\n") == 1 and "is for files and models" in err and argv[1] in err


def test_unfinished_and_unconverted_runs_say_what_to_type(folder: Path, call: Any):
    code, _, err = call("bench", str(folder))
    assert code == 2 and f"Run: bitwright convert '{folder}'" in err and err.count("\n") == 1
    (folder / "model.safetensors").unlink()
    for command in ("convert", "bench", "cost"):
        code, _, err = call(command, str(folder))
        assert code == 2 and "--resume" in err and err.count("\n") == 1, err


@pytest.mark.slow
def test_a_refused_run_writes_its_report_and_no_packed_file(folder: Path, call: Any):
    (folder / "packed.safetensors").write_bytes(b"of an earlier conversion")
    here = Run(folder)
    spec = experiment.parse(EXPERIMENT.rpartition("[[stage]]")[0])
    here.write_text("experiment.toml", experiment.to_toml(spec))
    bw.save(build_model(spec).eval(), here.file("model.safetensors"))
    code, out, err = call("convert", str(folder))
    last = out.splitlines()[-1]
    assert code == 1 and last.startswith("REFUSE  nothing to pack: 22 of 22 layers stay float. First: conv1")
    assert "--force for a file" in last and "removed" in err
    assert not here.has("packed.safetensors") and here.read_json("convert.json")["status"] == "REFUSE"
    code, _, err = call("bench", str(folder))
    assert code == 1 and "convert refused this run" in err
    code, out, _ = call("convert", str(folder), "--force")
    assert (
        code == 0
        and out.splitlines()[-1].startswith("WARN  forced: nothing is packed")
        and here.has("packed.safetensors")
    )
    assert "image 0" not in out and "verify  64 of 64" in out


@pytest.mark.slow
def test_force_never_writes_a_wrong_answer(folder: Path, call: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_convert, "WARN_SHARE", 1.1)
    code, out, _ = call("convert", str(folder), "--force")
    assert (
        code == 1 and "--force does not help" in out.splitlines()[-1] and not (folder / "packed.safetensors").exists()
    )


@pytest.mark.slow
def test_convert_bench_and_report_print_one_size_ratio(folder: Path, call: Any):
    """Bytes of the packed file against bytes of the file with the float net: never the bytes of the layers alone."""
    run = Run(folder)
    said = call("convert", str(folder))[1]
    float_bytes, file_bytes = (run.file(name).stat().st_size for name in ("stages/0.safetensors", "packed.safetensors"))
    ratio = f"{float_bytes / file_bytes:.1f}x"
    found = run.read_json("convert.json")
    assert (found["float_bytes"], found["file_bytes"]) == (float_bytes, file_bytes)
    assert f"{found['bytes_before'] / found['bytes_after']:.1f}x" != ratio, "else this test shows nothing"
    said += call("bench", str(folder), "--rounds", "1", "--against", "torch-fp32")[1]
    said += call("report", str(folder))[1]
    said += re.sub(r"<[^>]*>", "", run.read_text("report.html"))
    ratios = re.findall(r"([\d.,]+x)\s+smaller", said)
    assert len(ratios) >= 4 and set(ratios) == {ratio}, ratios


# ---- text of reports, by hand ----


def report(**more: Any) -> ConvertReport:
    names = ["features.stage1.block0.conv_with_a_long_name_that_never_ends", *(f"b{i}" for i in range(5)), "fc"]
    rows = [ReportRow(n, "Conv2d 64>64 3x3", "bits", "1/1", 1000, 40, 0.0, 0.02, 0.01) for n in names[:-1]]
    rows.append(ReportRow(names[-1], "Linear 64>10", "float", "float", 2560, 2560, why="its slots are empty"))
    values: dict[str, Any] = {
        "status": "WARN",
        "verdict": "995 of 1,000 same class",
        "images": 1000,
        "same": 995,
        "float_bytes": 9000,
        "file_bytes": 3000,
    }
    given: dict[str, Any] = values | {"ms_before": 1.0, "ms_after": 2.0} | more
    return ConvertReport(rows, **given)


def test_rows_fold_and_columns_drop_in_the_stated_order():
    text = report().table(None, 2)
    assert text[3] == "...  4 more bits layers (--all)" and len(text) == 7 and len(report().table()) == 10
    assert text[-1] == "gain       3.0x smaller, 0.5x float in torch (slower)"
    assert re.split(r"\s{2,}", text[-2])[:4] == ["whole net", "6 bits, 1 float", "9.00", "3.00"], "bytes of the files"
    assert "max diff" in report().table(110)[0] and "max diff" not in report().table(85)[0]
    narrow = report().table(52)
    assert "kB float" not in narrow[0] and "ms float" not in narrow[0] and re.match(r"f\w+\.\.\.\w*s  bits", narrow[1])
    assert all(len(line) <= 52 for line in narrow)


def test_warning_names_near_ties_and_details_lists_all():
    wrong = [Disagreement(i, 1, 2, 1e-7, "" if i else "b3") for i in range(5)]
    many = report(disagreements=wrong)
    assert convert_text.warning(many).endswith("(4 near-ties at float layer fc, see --details)")
    assert len(many.proof(None, "test images", 3)) == 2 + 3 + 1 and len(many.proof(None, "test images", None)) == 2 + 5
    assert "first differing layer b3" in many.proof(None)[2]


def test_accuracy_of_the_trained_net_follows_from_the_disagreements():
    class Packed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    answers = torch.eye(3)[[0, 1, 2, 0]]
    labels = torch.tensor([0, 1, 1, 0])
    converted: Any = type("C", (), {})()
    converted.model, converted.report = Packed(), report(disagreements=[Disagreement(2, 1, 2, 0.0, "")])
    assert convert_run.accuracies(converted, labels, [(answers, labels)]) == (0.75, 1.0)
    converted.model = None
    assert convert_run.accuracies(converted, labels, []) == (None, None)


def test_help_of_convert_prints_the_thresholds(call: Any):
    text = " ".join(call("convert", "--help")[1].split())
    assert f"at least {engine_convert.PASS_SHARE:.1%}".replace("%", " %") in text
    assert f"at least {engine_convert.WARN_SHARE:.0%}".replace("%", " %") in text and "exit 1" in text


# ---- completion ----


def test_completion_knows_what_the_library_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path):
    assert tuple(models.list()) == complete.MODELS and {*bw.data.names()} <= {*complete.DATA}
    assert complete.complete_recipe("") == list(bw.recipes())
    assert set(complete.complete_part("tt")) == {"ttq"}
    assert set(experiment.names()) <= set(complete.complete_experiment(""))
    shutil.copytree(made, tmp_path / "runs" / "a")
    (tmp_path / "runs" / "b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert complete.complete_run("") == ["runs/a"] == complete.complete_run("runs/")
    assert complete.complete_run("r") == ["runs/"] and complete.complete_run("none/") == []


def test_completed_overrides_are_accepted():
    keys = complete.complete_override("")
    assert {"seed=", "data.limit=", "stage.0.optimizer.lr=", "stage.1.recipe=", "epochs="} <= set(keys)
    assert set(complete.complete_override("stage.0.schedule.name=")) >= {"stage.0.schedule.name=cosine"}
    assert complete.complete_override("data.augment=t") == ["data.augment=true"]
    assert complete.complete_override("seed=") == complete.complete_override("no.such.key=") == []
    for key in keys:
        if not key.startswith(("stage.1.", "stage.2.")):
            try:
                experiment.parse("[[stage]]\nepochs = 1\n", [f"{key}1"])
            except bw.InputError as error:
                assert error.code != "experiment-key" or "is missing" in str(error), f"{key}: {error}"


def shell(words: str, monkeypatch: pytest.MonkeyPatch, call: Any) -> list[str]:
    """What bash gets for a half typed line."""
    monkeypatch.setenv("_BITWRIGHT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    code, out, err = call()
    assert code == 0 and err == ""
    return out.split()


def test_the_shell_asks_and_is_answered(monkeypatch: pytest.MonkeyPatch, call: Any):
    assert "convert" in shell("bitwright con", monkeypatch, call)
    assert shell("bitwright recipes xno", monkeypatch, call) == ["xnor"]
    assert shell("bitwright methods tt", monkeypatch, call) == ["ttq"]
    assert shell("bitwright plan resnet5", monkeypatch, call) == ["resnet56"]
    assert shell("bitwright train digits-mlp-b", monkeypatch, call) == ["digits-mlp-bwn"]
    assert "stage.0.optimizer.lr=" in shell("bitwright train digits-mlp-bwn stage.0.opt", monkeypatch, call)
    assert shell("bitwright experiments digits-mlp-b", monkeypatch, call) == ["digits-mlp-bwn"]


def test_completion_script_can_be_shown(call: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    monkeypatch.setattr(app, "command", app.command.__wrapped__)  # typer reads that name when a command is built
    for name in ("bash", "zsh", "fish"):
        code, out, err = call("--show-completion", name)
        assert code == 0 and "_BITWRIGHT_COMPLETE" in out and err == "", out + err
