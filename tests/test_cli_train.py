"""`bitwright train` and `bitwright eval` as a user sees them."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitwright.cli.run import run
from bitwright.runs import Run

SMALL = ("data.limit=200", "data.batch=50", "stage.0.epochs=2", "stage.1.epochs=2", "log.tensorboard=false",
         "train.device=cpu", "train.threads=1")  # fmt: skip


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run(list(words))
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_transcript(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Form of experience.md 2: head, a line per epoch, the end, what comes next; piped, so no bar."""
    code, out, err = call(capsys, "train", "digits-mlp-bwn", *SMALL)
    assert code == 0
    lines = out.splitlines()
    assert re.fullmatch(r"digits 200 train / 360 test \| mlp, 0\.15 M weights \| 2 stages \| seed 0 \| .+", lines[0])
    assert lines[1] == "run: runs/digits-mlp-bwn"
    epoch = r"stage {}  epoch   \d  loss \d+\.\d{{3}}  train \d+\.\d %  test \d+\.\d %  lr [\d.e-]+  \d+\.\d s"
    assert all(re.fullmatch(epoch.format(0), line) for line in lines[2:4]), lines
    assert all(re.fullmatch(epoch.format(1) + r"  flips [\d.]+ %  dead [\d.]+ %", line) for line in lines[4:6]), lines
    assert re.fullmatch(r"done: test \d+\.\d % \(last epoch\), \d+:\d\d, \d+ warnings?", lines[6])
    assert len(lines) == 7, "epochs were overridden, so nothing is expected of them"
    assert "next:   bitwright convert runs/digits-mlp-bwn" in err
    assert err.splitlines()[0] == "digits-mlp-bwn: 2 stages, 4 epochs, seed 0"
    assert re.search(r"loader alone [\d,]+ img/s, training [\d,]+ img/s: the loader", err)
    assert (here / "runs/digits-mlp-bwn/command.txt").read_text().split()[:3] == [
        "bitwright",
        "train",
        "digits-mlp-bwn",
    ]
    # a second time nothing is overwritten
    code, out, err = call(capsys, "train", "digits-mlp-bwn", *SMALL)
    assert code == 2 and out == ""
    assert "runs/digits-mlp-bwn exists. Go on: --resume; another folder: --out DIR; begin again: --force" in err
    # another experiment is no resume
    code, out, err = call(capsys, "train", "digits-mlp-bwn", *SMALL, "data.batch=40", "--resume")
    assert code == 1 and "experiment differs from the saved one (data.batch 50 -> 40)" in err
    # a run may be given as one
    code, out, err = call(capsys, "train", "runs/digits-mlp-bwn", "--resume")
    assert code == 0 and "resumed: stage 1 is done" in err
    code, out, err = call(capsys, "train", "runs/digits-mlp-bwn/experiment.toml", "--out", "again", "--quiet")
    assert code == 0 and out.startswith("done: test") and len(out.splitlines()) == 1
    assert (
        Run(here / "again").read_csv("metrics.csv")[-1]["test_top1"]
        == Run(here / "runs/digits-mlp-bwn").read_csv("metrics.csv")[-1]["test_top1"]
    )


def test_eval(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "train", "digits-mlp-bwn", *SMALL, "--out", "a run")
    before = Run(here / "a run").read_csv("results.csv")
    code, out, err = call(capsys, "eval", "a run", "--json")
    assert code == 0
    (net,) = json.loads(out)["eval"]["nets"]
    assert net["net"] == "trained" and net["images"] == 360
    assert net["accuracy"] == float({r["net"]: r for r in before}["trained"]["accuracy"])
    assert Run(here / "a run").read_csv("results.csv") == before, "the same numbers again"
    code, out, err = call(capsys, "eval", "a run", "--packed")
    assert code == 2 and "bitwright convert 'a run'" in err
    code, out, err = call(capsys, "eval", "a run", "--weights", "a run/stages/0.safetensors")
    assert code == 0 and "a run/stages/0.safetensors" in out
    run_float = float({r["net"]: r for r in before}["float"]["accuracy"])
    assert f"{run_float * 100:.1f}" in out
    code, out, err = call(capsys, "eval", "nowhere")
    assert code == 2 and "no such folder" in err


def test_eval_of_the_packed_net(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import bitwright as bw
    from bitwright.runs import dataset, example_of

    call(capsys, "train", "digits-mlp-bwn", *SMALL, "--out", "a")
    opened = Run(here / "a")
    example = example_of(opened.experiment, dataset(opened.experiment, "test"))
    packed = bw.convert(opened.model(), example, backend="reference")
    assert packed.model is not None
    packed.save(opened.file("packed.safetensors"))
    code, out, _err = call(capsys, "eval", "a", "--json")
    nets = {n["net"]: n for n in json.loads(out)["eval"]["nets"]}
    assert code == 0 and abs(nets["bitwright"]["right"] - nets["trained"]["right"]) <= 2
    assert {r["net"] for r in opened.read_csv("results.csv")} == {"float", "trained", "bitwright"}


def test_dry_run_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _err = call(capsys, "train", "digits-mlp-bwn", *SMALL, "--dry-run")
    assert code == 0 and not list(here.iterdir())
    assert "stage 0: 2 epochs x 4 steps = 8 steps" in out and "total 16 steps; disk at most about" in out
    assert re.search(r"fc2 +Linear +256>256 +0 +bwn +float", out)


@pytest.mark.slow
def test_the_band(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bitwright import experiment

    base = experiment.load("digits-mlp-bwn", SMALL)
    for low, high, word, wanted in ((0.0, 1.0, "inside", 0), (0.999, 1.0, "BELOW", 1)):
        table = base.model_dump(exclude_none=True) | {"expected": {"low": low, "high": high, "seeds": 3}}
        name = f"{word}.toml"
        Path(name).write_text(experiment.to_toml(type(base).model_validate(table)))
        code, out, _err = call(capsys, "train", name, "seed=1")
        assert code == wanted
        assert re.search(rf"      expected for this recipe: [\d.]+-100\.0 %, 3 seeds: {word}$", out.strip())
    code, out, _err = call(capsys, "train", "BELOW.toml", "stage.0.epochs=1", "--out", "other")
    assert code == 0 and "expected" not in out, "with other epochs nothing is expected"


def test_mistakes_are_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, text in (
        (["digits-mlp-bwm"], "Nearest: digits-mlp-bwn"),
        (["digits-mlp-bwn", "stage.0.epoch=2"], "epochs"),
        (["digits-mlp-bwn", "train.precision=fp16", "train.device=cpu"], "fp16 needs a GPU"),
        (["digits-mlp-bwn", "stage.0.optimizer.name=sgd", "stage.0.loss=msee"], "Nearest: mse"),
    ):
        code, _out, err = call(capsys, "train", *words, "--quiet")
        assert code == 2 and len(err.splitlines()) == 1 and text in err, err


def test_nan_is_exit_1(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("stage.0.optimizer.name=sgd", "stage.0.optimizer.lr=1e30")
    code, out, _err = call(capsys, "train", "digits-mlp-bwn", *SMALL, *words, "--json")
    error = json.loads(out)["error"]
    assert code == 1 and error["code"] == "train-nan" and "try" in error and "clip=1.0" in error["message"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_the_printed_command(tmp_path: Path, number: int) -> None:
    """The two lines of the transcript, exit code 130, within a second; the `next:` line really goes on."""
    words = [
        sys.executable,
        "-m",
        "bitwright",
        "train",
        "digits-mlp-bwn",
        "stage.0.epochs=2000",
        "log.tensorboard=false",
    ]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if line.startswith("stage 0  epoch"):
            break
    process.send_signal(number)
    _rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    word = r"\^C" if number == signal.SIGINT else "SIGTERM"
    assert re.search(rf"^{word} stopped at stage 0, epoch \d+, step \d+ of 45; saved \(\d+\.\d s\)\.", err, re.M), err
    (following,) = re.findall(r"^next: +(.*)$", err, re.M)
    assert following == "bitwright train digits-mlp-bwn stage.0.epochs=2000 log.tensorboard=false --resume"
    again = subprocess.Popen(
        [sys.executable, "-m", *shlex.split(following)], cwd=tmp_path, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert again.stderr is not None
    lines = [again.stderr.readline(), again.stderr.readline()]
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=60)
    assert lines[1].startswith("resumed: stage 0, epoch"), lines


@pytest.mark.slow
def test_a_live_line_on_a_terminal(tmp_path: Path) -> None:
    """On a pseudo terminal: a bar that is redrawn, with the time left, and gone before each line."""
    import os
    import pty
    import select

    master, slave = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR")} | {
        "TERM": "xterm",
        "COLUMNS": "120",
    }
    words = [sys.executable, "-m", "bitwright", "train", "digits-mlp-bwn", "stage.0.epochs=8", "stage.1.epochs=1"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=slave, env=environment)
    os.close(slave)
    shown, end = b"", time.monotonic() + 120
    while time.monotonic() < end:
        if select.select([master], [], [], 0.1)[0]:
            try:
                shown += os.read(master, 65536)
            except OSError:  # the terminal is closed: the process has ended
                break
        elif process.poll() is not None:
            break
    out = process.communicate(timeout=60)[0].decode()
    os.close(master)
    assert process.returncode == 0 and out.count("epoch") == 10  # 9 epochs and the last line
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"stage 0/1 float  epoch \d/8 .* %.*loss [\d.]+  train [\d.]+ %  [\d,]+ img/s", text), text[-2000:]
    assert re.search(r"left \d+:\d\d", text) and "left 0:00" not in text
